"""What all figures share: colours, matplotlib's defaults, and how a figure reaches the notebook."""

from __future__ import annotations

import base64
import io
import re
import struct

from ..errors import say

COLORS = {
    "blue": "#2563a8",
    "orange": "#e07b21",
    "green": "#3a8f5c",
    "red": "#c23b3b",
    "purple": "#7a5aa6",
    "teal": "#1f8a99",
    "brown": "#8c6346",
    "grey": "#7d8590",
}
PALETTE = list(COLORS.values())
SEQUENTIAL = "viridis"  # one-sided values
DIVERGING = "RdBu_r"  # values around zero
TINT = {
    "blue": "#dbe8f5",
    "orange": "#fbe6d2",
    "green": "#dcefe3",
    "red": "#f6dcdc",
    "purple": "#e8e0f2",
    "teal": "#d8eef0",
    "brown": "#eee3da",
    "grey": "#eceef0",
}


DPI = 80  # screen pixels an inch; pictures are stored at twice that and shown at this size
DENSITY = 2
collecting = False  # True while ``play`` calls a drawing function: its figures are left open for it
_told = set()


def use_style() -> None:
    """Set matplotlib's defaults for the course; called by ``lesson.start``."""
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update(
        {
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "figure.figsize": (6.4, 3.4),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",  # a ground of their own: figures stay readable on a dark page
            "savefig.facecolor": "white",
            "axes.facecolor": "white",
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e3e6ea",
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "font.size": 10,
            "font.family": ["DejaVu Sans", *korean_fonts()[:1]],
            "image.interpolation": "nearest",
        }
    )
    if in_notebook():
        try:  # figures that a lesson shows by plt.show(): twice the density, too
            from matplotlib_inline.backend_inline import set_matplotlib_formats
        except ImportError:
            return
        set_matplotlib_formats("retina")


def korean_fonts() -> list[str]:
    """Names of the installed fonts that have Hangul, the best known first."""
    from matplotlib import font_manager

    known = (
        "Noto Sans CJK KR",
        "Noto Sans CJK JP",
        "Noto Sans KR",
        "NanumGothic",
        "Malgun Gothic",
        "Apple SD Gothic Neo",
        "AppleGothic",
        "UnDotum",
        "Noto Serif CJK KR",
    )
    here = {f.name for f in font_manager.fontManager.ttflist}
    return [name for name in known if name in here]


def label(text) -> str:
    """A text as a figure can show it: dollars that make no formula are dollars; Hangul is romanised where no font has it, which is said once."""
    text = str(text)
    if "$" in text:
        from matplotlib.mathtext import MathTextParser

        try:
            for line in re.sub("[^\\x00-\\x7f]", "x", text).split("\n"):
                MathTextParser("path").parse(line)
        except ValueError:
            text = re.sub(r"(?<!\\)\$", r"\\$", text)
    if re.search("[가-힣]", text) and not korean_fonts():
        if "hangul" not in _told:
            _told.add("hangul")
            say("No Korean font is installed here, so Korean words in figures are written in Latin letters; a font such as Noto Sans CJK or Nanum mends that.")
        text = re.sub("[가-힣]+", lambda m: romanised(m[0]), text)
    return text


def romanised(hangul: str) -> str:
    """Hangul syllables in Latin letters (Revised Romanization, letter by letter): "곰" → "gom"."""
    first = "g kk n d tt r m b pp s ss  j jj ch k t p h".split(" ")
    vowel = "a ae ya yae eo e yeo ye o wa wae oe yo u wo we wi yu eu ui i".split(" ")
    last = " k k k n n n t l k m p l l p l m p p t t ng t t k t p t".split(" ")
    code = [ord(c) - 0xAC00 for c in hangul]
    return "".join(first[n // 588] + vowel[n % 588 // 28] + last[n % 28] for n in code)


def array(x):
    """A numpy array from a tensor on any device, a list of them, or an array."""
    import numpy as np

    if isinstance(x, (list, tuple)):
        return np.stack([array(v) for v in x])
    if hasattr(x, "detach"):
        x = x.detach().cpu().float().numpy() if x.is_floating_point() else x.detach().cpu().numpy()
    return np.asarray(x)


def finish(fig) -> None:
    """Show a finished figure: at double density in a notebook, by ``plt.show`` elsewhere. While ``play`` collects, it stays open."""
    import matplotlib.pyplot as plt

    if collecting:
        return
    if in_notebook():
        emit(still(png(fig), "<figure>"))
    else:
        plt.show()


def png(fig) -> bytes:
    """The figure as a PNG of double density; the figure is closed. (Stored notebooks get a palette: ``with_palette``.)"""
    import matplotlib.pyplot as plt

    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=DENSITY * fig.dpi)
    plt.close(fig)
    return out.getvalue()


def with_palette(raw: bytes) -> bytes:
    """A PNG with the 64, 128 or 256 colours that suit it best, where that is smaller and hardly seen; else as it is. Takes a second or two."""
    from PIL import Image

    image = Image.open(io.BytesIO(raw))
    if image.mode == "RGBA" and image.getextrema()[3][0] < 255:
        return raw
    rgb, has = image.convert("RGB"), len(image.getcolors() or ()) if image.mode == "P" else 1 << 24
    for colours, most in ((64, 1.0), (128, 2.0), (256, 6.0)):  # the mean change of a channel that we bear, of 255
        if has > colours:
            small, changed = _quantised(rgb, colours)
            if changed < most and len(small) < 0.9 * len(raw):
                return small
    return raw


def _quantised(rgb, colours: int) -> tuple[bytes, float]:
    """A picture as PNG with so many colours, and by how much that changes it on average."""
    import numpy as np
    from PIL import Image

    small, out = rgb.quantize(colours, dither=Image.Dither.NONE, kmeans=1), io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return out.getvalue(), float(np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(rgb, float)).mean())


def pixels(raw: bytes) -> tuple[int, int]:
    """(width, height) of a PNG, read from its header."""
    return struct.unpack(">II", raw[16:24])


def still(raw: bytes, text: str, density: int = DENSITY, **more) -> tuple[dict, dict]:
    """A PNG as what a notebook shows: (data, metadata), the size on screen being that of its pixels divided by the density."""
    width, height = pixels(raw)
    data = {"image/png": base64.b64encode(raw).decode(), "text/plain": text, **more}
    return data, {"image/png": {"width": width // density, "height": height // density}}


def emit(bundle: tuple[dict, dict] | dict, **options):
    """Show data by kind (and what goes with it) in a notebook; elsewhere print its text."""
    data, about = bundle if isinstance(bundle, tuple) else (bundle, {})
    if not in_notebook():
        say(data.get("text/plain", ""))
        return None
    from IPython.display import display

    return display(data, raw=True, metadata=about, **options)


def in_notebook() -> bool:
    """Is this a kernel (or an IPython shell), where pictures can be shown?"""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None
