"""A reader's own picture, whatever it is: ``data.picture("cat.jpg", 64)``."""

from __future__ import annotations

from pathlib import Path

from ..errors import CourseError

LARGEST = 100_000_000  # pixels


def picture(source, size: int, fit: str = "crop"):
    """One picture as a float tensor (3, size, size) in [0, 1]: cut (or padded with white) to a square, then averaged down or enlarged to ``size``.

    ``source``: a file name, a PIL picture, or an array or tensor (H, W), (H, W, 1|3|4), (3, H, W) or (1, H, W); grey, colour, palette, 16 bits, with transparency (laid on white), turned by its
    EXIF data. Whole numbers hold 0..255, floats 0..1. ``fit``: "crop" cuts the middle square out, "pad" keeps all. Raises CourseError, with one sentence, for what is no picture.
    """
    import torch
    from PIL import Image

    if fit not in ("crop", "pad"):
        raise CourseError(f'fit={fit!r} is neither "crop" nor "pad".')
    if not isinstance(size, int) or size < 1:
        raise CourseError(f"size={size!r} should be a whole number of pixels, 1 or more.")
    image = source if isinstance(source, Image.Image) else _read(source) if isinstance(source, (str, Path)) else None
    x = _unit(_values(image)) if image is not None else _unit(_channels_last(source))
    if x.shape[-1] in (2, 4):
        x = x[..., :-1] * x[..., -1:] + 1 - x[..., -1:]
    x = torch.from_numpy(x).float().permute(2, 0, 1)
    x = x.expand(3, -1, -1) if len(x) == 1 else x
    return _square(x, size, fit).clamp(0, 1)


def _read(path):
    from PIL import Image, UnidentifiedImageError

    if not Path(path).exists():
        raise CourseError(f"There is no file {str(path)!r}: give the name of a picture, for instance a PNG or JPEG beside the notebook.")
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST:
                raise CourseError(f"{Path(path).name} has {image.width} × {image.height} pixels: make it smaller first, 100 million are the limit.")
            image.load()
            return image.copy()
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as e:
        raise CourseError(f"{Path(path).name} cannot be read as a picture: is it complete, and a PNG, JPEG, WebP or GIF?") from e


def _values(image):
    """A PIL picture as an array (H, W, channels), upright, palettes resolved."""
    import numpy as np
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        x = np.asarray(image, float)
        return np.clip(x / (65535 if image.mode.startswith("I") and x.max() > 255 else 255 if x.max() > 1 else 1), 0, 1)[..., None]
    if image.mode == "1":
        return np.asarray(image)[..., None]
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    x = np.asarray(image)
    return x[..., None] if x.ndim == 2 else x


def _channels_last(source):
    """An array or tensor as (H, W, 1, 2, 3 or 4)."""
    from ..show import array

    x = array(source)
    if x.ndim == 4 and len(x) == 1:
        x = x[0]
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim == 3 and x.shape[-1] not in (1, 3, 4) and x.shape[0] in (1, 3, 4):
        x = x.transpose(1, 2, 0)
    if x.ndim != 3 or x.shape[-1] not in (1, 3, 4):
        raise CourseError(f"One picture has shape (H, W), (H, W, 3), (H, W, 4) or (3, H, W), not {tuple(array(source).shape)}.")
    return x


def _unit(x):
    """Values of any kind as floats in 0..1."""
    import numpy as np

    if not x.size:
        raise CourseError("The picture is empty: it has no pixels.")
    if x.dtype == bool:
        return x.astype(float)
    if x.dtype.kind in "iu":
        top = 65535 if x.dtype == np.uint16 and x.max() > 255 else 255
        if x.min() < 0 or x.max() > top:
            raise CourseError(f"A picture of whole numbers holds 0..255, but this one holds {x.min()}..{x.max()}: scale it first.")
        return x / top
    if not np.isfinite(x).all():
        raise CourseError("The picture holds nan or inf: replace those pixels first.")
    if x.min() < -1e-3 or x.max() > 1 + 1e-3:
        raise CourseError(f"A picture of floats holds 0..1, but this one holds {x.min():.3g}..{x.max():.3g}: divide by 255, or convert it to uint8.")
    return np.clip(x.astype(float), 0, 1)


def _square(x, size: int, fit: str):
    """(3, H, W) to (3, size, size): averaging where it shrinks, bilinear where it grows."""
    import torch.nn.functional as F

    H, W = x.shape[1:]
    side = min(H, W) if fit == "crop" else max(H, W)
    if fit == "crop":
        top, left = (H - side) // 2, (W - side) // 2
        x = x[:, top : top + side, left : left + side]
    else:
        top, left = (side - H) // 2, (side - W) // 2
        x = F.pad(x, (left, side - W - left, top, side - H - top), value=1.0)
    if side > size:
        return (
            F.interpolate(x[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
            if side % size
            else F.avg_pool2d(x[None], side // size)[0]
        )
    return F.interpolate(x[None], size=(size, size), mode="bilinear", align_corners=False)[0] if side < size else x
