"""What all figures share: colours, matplotlib's defaults, and how a figure reaches the notebook."""

from __future__ import annotations

import io

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


def use_style() -> None:
    """Set matplotlib's defaults for the course; called by ``lesson.start``."""
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "figure.figsize": (6.4, 3.4),
            "figure.constrained_layout.use": True,
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
            "image.interpolation": "nearest",
        }
    )


def array(x):
    """A numpy array from a tensor on any device, a list of them, or an array."""
    import numpy as np

    if isinstance(x, (list, tuple)):
        return np.stack([array(v) for v in x])
    if hasattr(x, "detach"):
        x = x.detach().cpu().float().numpy() if x.is_floating_point() else x.detach().cpu().numpy()
    return np.asarray(x)


def finish(fig):
    import matplotlib.pyplot as plt

    plt.show()
    return None


def png(fig) -> bytes:
    """The figure as PNG, and close it."""
    import matplotlib.pyplot as plt

    out = io.BytesIO()
    fig.savefig(out, format="png")
    plt.close(fig)
    return out.getvalue()


def emit(bundle: dict) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is None:
        print(bundle.get("text/plain", ""))
    else:
        display(bundle, raw=True)
