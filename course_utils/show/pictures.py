"""Pictures: grids, heat maps, overlays, animations."""

from __future__ import annotations

import base64
import io
import math
import textwrap

from ..errors import CourseError
from .style import DIVERGING, DPI, SEQUENTIAL, array, emit, finish, label, still

TILE = 96  # screen pixels: no picture is shown smaller
WIDTH = 1180  # screen pixels: no grid is wider


def pictures(images):
    """Pictures as floats (N, H, W, 3) in 0..1.

    Taken are (N, 3, H, W), (N, 1, H, W), (N, H, W, 3), (N, H, W, 4) with transparency on white, (N, H, W) grey, and one picture as (H, W), (H, W, 3) or (H, W, 4). Three axes of which
    the last is neither 3 nor 4 are N grey pictures: one picture with its colours first is ``x[None]``. Kinds: whole numbers 0..255, floats 0..1 (a little more is cut off), truth values.
    Raises CourseError for other shapes, for floats that look like 0..255, for NaN, and for nothing at all.
    """
    import numpy as np

    x = array(images)
    given = tuple(x.shape)
    if not x.size:
        raise CourseError(f"There are no pictures to show: the array has shape {given}.")
    x = _in_unit_range(x)
    if x.ndim == 2 or (x.ndim == 3 and given[-1] in (3, 4)):
        x = x[None]
    if x.ndim == 3:
        x = x[..., None]
    elif x.ndim == 4 and given[1] in (1, 3) and x.shape[-1] not in (3, 4):
        x = x.transpose(0, 2, 3, 1)
    elif x.ndim == 4 and given[1] in (1, 3) and given[2] == given[3]:  # tiny pictures, 3×3 or 4×4
        x = x.transpose(0, 2, 3, 1)
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4):
        raise CourseError(f"Pictures should be (N,3,H,W), (N,1,H,W), (N,H,W), (N,H,W,3) or (N,H,W,4), not {given}.")
    if x.shape[-1] == 4:
        x = x[..., :3] * x[..., 3:] + 1 - x[..., 3:]
    return np.clip(np.repeat(x, 3, -1) if x.shape[-1] == 1 else x, 0, 1)


def _in_unit_range(x):
    """Values of any kind as floats in 0..1, or one sentence."""
    import numpy as np

    if x.dtype == bool:
        return x.astype(float)
    if x.dtype.kind in "iu":
        if x.min() < 0 or x.max() > 255:
            raise CourseError(f"Whole-number pictures hold 0..255, but these hold {x.min()}..{x.max()}: scale them first.")
        return x / 255.0 if x.dtype == np.uint8 or x.max() > 1 else x.astype(float)
    if np.isnan(x).any():
        raise CourseError(f"The pictures hold nan at {int(np.isnan(x).sum())} of {x.size} places: look at what made them.")
    if x.max() > 16 or x.min() < -16:
        raise CourseError(f"Pictures of floats hold 0..1, but these hold {x.min():.3g}..{x.max():.3g}: divide by 255, or convert to uint8.")
    return x


def grid(images, titles=None, cols=8, size: float = 0.0, suptitle: str | None = None, colors=None, rows=None):
    """A grid of pictures, each pixel a square of whole screen pixels, each picture at least 96 screen pixels wide (or high) and ``size`` inches.

    ``titles``: one a picture, in ``colors``. ``cols``: how many columns, or their labels. ``rows``: labels of the rows. A grid that would be wider than a page is cut into bands, so that
    what stands below each other stays so.
    """
    import matplotlib.pyplot as plt

    x = pictures(images)
    names = list(cols) if isinstance(cols, (list, tuple)) else None
    n_cols = len(names) if names else min(cols, len(x))
    n_rows = math.ceil(len(x) / n_cols)
    H, W = x.shape[1:3]
    scale = max(1, math.ceil(max(TILE, size * DPI) / max(H, W)))
    gap, left = 4, (10 + 6 * min(18, max(len(str(r)) for r in rows)) if rows else 0)
    while scale > 1 and left + W * scale > WIDTH:
        scale -= 1
    w, h = W * scale, H * scale
    fit = max(1, (WIDTH - left + gap) // (w + gap))
    bands = math.ceil(n_cols / fit)
    if bands > 1 and n_rows == 1 and not rows and not names:  # one long row: just more rows
        n_cols = math.ceil(n_cols / bands)
        n_rows, bands = math.ceil(len(x) / n_cols), 1
    wide = math.ceil(n_cols / bands)
    texts = [_wrapped(t, w) for t in titles] if titles is not None else []
    above = 15 * max((t.count("\n") + 1 for t in texts), default=0)
    head = 15 * max((_wrapped(c, w).count("\n") + 1 for c in names), default=0) if names else 0
    top = 15 * (_wrapped(suptitle, left + wide * (w + gap)).count("\n") + 1) + 8 if suptitle else 0
    band = head + n_rows * (h + above + gap)
    total_w, total_h = max(left + wide * (w + gap) - gap, 40), top + bands * band + (bands - 1) * 12
    fig = plt.figure(figsize=(total_w / DPI, total_h / DPI), dpi=DPI, layout="none")

    def write(text, px, py, **how):
        fig.text(px / total_w, 1 - py / total_h, text, **{"fontsize": 9, "linespacing": 1.1, **how})

    if suptitle:
        write(_wrapped(suptitle, total_w), total_w / 2, 2, ha="center", va="top", fontsize=11)
    for i, picture in enumerate(x):
        r, c = divmod(i, n_cols)
        b, c_in = divmod(c, wide)
        px, py = left + c_in * (w + gap), top + b * (band + 12) + head + r * (h + above + gap) + above
        ax = fig.add_axes((px / total_w, 1 - (py + h) / total_h, w / total_w, h / total_h))
        ax.imshow(picture, interpolation="nearest", aspect="auto")
        ax.axis("off")
        if i < len(texts):
            write(texts[i], px + w / 2, py - 2, ha="center", va="bottom", color=colors[i] if colors is not None else "black")
        if names and r == 0:
            write(_wrapped(names[c], w), px + w / 2, py - above - 2, ha="center", va="bottom", weight="bold")
        if rows and c_in == 0 and r < len(rows):
            write(_wrapped(rows[r], left - 6, 4), left - 8, py + h / 2, ha="right", va="center")
    return finish(fig)


def _wrapped(text, width: float, lines: int = 2) -> str:
    """A text in at most so many lines of ``width`` screen pixels at 9 points; what does not fit ends in an ellipsis."""
    text, per_line = label(text), max(4, int(width / 6))
    if "$" in text:
        return text
    return "\n".join(textwrap.wrap(text, per_line, max_lines=lines, placeholder=" …")) or text[:per_line]


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
    ax.set(title=label(title or ""), xlabel=label(xlabel), ylabel=label(ylabel))
    if xlabels is not None:
        ax.set_xticks(range(len(xlabels)), [label(x) for x in xlabels], rotation=45, ha="right", fontsize=9)
    if ylabels is not None:
        ax.set_yticks(range(len(ylabels)), [label(y) for y in ylabels], fontsize=9)
    if annotate:
        mid = (m.max() + m.min()) / 2
        for i in range(m.shape[0]):
            for j in range(m.shape[1]):
                dark = abs(m[i, j]) > 0.6 * top if diverging else m[i, j] < mid
                ax.text(j, i, f"{m[i, j]:.2g}", ha="center", va="center", fontsize=9, color="white" if dark else "black")
    ax.figure.colorbar(image, ax=ax, shrink=0.85)
    return finish(ax.figure) if own else ax


def overlay(image, weights, title: str | None = None, ax=None, alpha: float = 0.6):
    """A heat map over one picture, (3, H, W) or (H, W, 3); the map is stretched to the picture's size."""
    import matplotlib.pyplot as plt

    own = ax is None
    if own:
        fig, ax = plt.subplots(figsize=(2.4, 2.6))
    x, w = array(image), array(weights)
    x = pictures(x[None] if x.ndim == 3 else x)[0]
    ax.imshow(x, extent=(0, 1, 0, 1))
    ax.imshow(w, extent=(0, 1, 0, 1), cmap="inferno", alpha=alpha, interpolation="bilinear")
    ax.axis("off")
    ax.set_title(label(title or ""), fontsize=9)
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


def animate(frames, fps: float = 8, scale: int | None = None, alt: str = "animation") -> None:
    """Show frames as a looping GIF, with the last frame as the still picture; without ``scale`` the shorter side has at least 192 screen pixels."""
    x = pictures(frames)
    scale = scale or max(1, math.ceil(192 / min(x.shape[1:3])))
    data = base64.b64encode(gif(frames, fps, scale)).decode()
    emit(still(_png_of(x[-1], scale), f"<{alt}>", density=1, **{"text/html": f'<img alt="{alt}" src="data:image/gif;base64,{data}"/>'}))


def _png_of(picture, scale: int = 1) -> bytes:
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray((picture * 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)).save(out, "PNG", optimize=True)
    return out.getvalue()
