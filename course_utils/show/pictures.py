"""Pictures: grids, heat maps, overlays, animations."""

from __future__ import annotations

import base64
import io
import math

from ..errors import CourseError
from .style import DIVERGING, SEQUENTIAL, array, emit, finish


def pictures(images):
    """(N, H, W, 3) floats in 0..1 from (N,3,H,W), (N,1,H,W), (N,H,W), (N,H,W,3), or one picture without N; uint8 or float."""
    import numpy as np

    x = array(images)
    if x.dtype == np.uint8:
        x = x / 255.0
    if x.ndim == 2 or (x.ndim == 3 and (x.shape[0] == 3 or x.shape[-1] == 3) and x.shape[1] != 3):
        x = x[None]
    if x.ndim == 3:
        x = x[..., None]
    elif x.ndim == 4 and x.shape[-1] not in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise CourseError(f"Pictures should be (N,3,H,W), (N,1,H,W), (N,H,W) or (N,H,W,3), not {tuple(array(images).shape)}.")
    return np.clip(np.repeat(x, 3, -1) if x.shape[-1] == 1 else x, 0, 1)


def grid(images, titles=None, cols: int = 8, size: float = 1.0, suptitle: str | None = None, colors=None):
    """A grid of pictures; ``titles`` one a picture, ``size`` inches a picture, ``colors`` of the titles."""
    import matplotlib.pyplot as plt

    x = pictures(images)
    cols = min(cols, len(x))
    rows = math.ceil(len(x) / cols)
    extra = 0.24 if titles is not None else 0.0
    fig, axes = plt.subplots(rows, cols, figsize=(cols * size, rows * (size + extra) + (0.3 if suptitle else 0)), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(x):
            ax.imshow(x[i], interpolation="nearest")
            if titles is not None and i < len(titles):
                ax.set_title(str(titles[i]), fontsize=8, pad=2, color=colors[i] if colors is not None else "black")
    if suptitle:
        fig.suptitle(suptitle, fontsize=11)
    return finish(fig)


def heat(matrix, xlabels=None, ylabels=None, title=None, xlabel="", ylabel="", annotate=False, ax=None, diverging=False, size=None):
    """A matrix as colours with a colour bar; ``annotate`` writes the numbers."""
    import matplotlib.pyplot as plt

    m = array(matrix)
    own = ax is None
    if own:
        fig, ax = plt.subplots(figsize=size or (min(8, 2 + 0.35 * m.shape[1]), min(7, 1.6 + 0.3 * m.shape[0])))
    top = abs(m).max() if diverging else None
    image = ax.imshow(m, cmap=DIVERGING if diverging else SEQUENTIAL, vmin=-top if diverging else None, vmax=top, aspect="auto")
    ax.grid(False)
    ax.set(title=title or "", xlabel=xlabel, ylabel=ylabel)
    if xlabels is not None:
        ax.set_xticks(range(len(xlabels)), xlabels, rotation=45, ha="right", fontsize=8)
    if ylabels is not None:
        ax.set_yticks(range(len(ylabels)), ylabels, fontsize=8)
    if annotate:
        mid = (m.max() + m.min()) / 2
        for i in range(m.shape[0]):
            for j in range(m.shape[1]):
                dark = abs(m[i, j]) > 0.6 * top if diverging else m[i, j] < mid
                ax.text(j, i, f"{m[i, j]:.2g}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.figure.colorbar(image, ax=ax, shrink=0.85)
    return finish(ax.figure) if own else ax


def overlay(image, weights, title: str | None = None, ax=None, alpha: float = 0.6):
    """A heat map over a picture; the map is stretched to the picture's size."""
    import matplotlib.pyplot as plt

    own = ax is None
    if own:
        fig, ax = plt.subplots(figsize=(2.4, 2.6))
    x, w = pictures(image)[0], array(weights)
    ax.imshow(x, extent=(0, 1, 0, 1))
    ax.imshow(w, extent=(0, 1, 0, 1), cmap="inferno", alpha=alpha, interpolation="bilinear")
    ax.axis("off")
    ax.set_title(title or "", fontsize=9)
    return finish(ax.figure) if own else ax


def gif(frames, fps: float = 8, scale: int = 1) -> bytes:
    """Frames (N,3,H,W) or (N,H,W,3) as the bytes of a looping GIF, each pixel enlarged ``scale`` times."""
    import numpy as np
    from PIL import Image

    x = (pictures(frames) * 255).astype(np.uint8).repeat(scale, 1).repeat(scale, 2)
    images = [Image.fromarray(f).quantize(64, dither=Image.Dither.NONE) for f in x]
    out = io.BytesIO()
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=int(1000 / fps), loop=0, optimize=True)
    return out.getvalue()


def animate(frames, fps: float = 8, scale: int = 1, alt: str = "animation") -> None:
    """Show frames as a looping GIF, with the last frame as the still picture."""
    data = base64.b64encode(gif(frames, fps, scale)).decode()
    emit({"text/html": f'<img alt="{alt}" src="data:image/gif;base64,{data}"/>', "image/png": _png_of(pictures(frames)[-1], scale), "text/plain": f"<{alt}>"})


def _png_of(picture, scale: int = 1) -> str:
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray((picture * 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()
