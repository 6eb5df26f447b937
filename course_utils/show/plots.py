"""Curves, bars, tables, and the live curve of a training."""

from __future__ import annotations

import math
import textwrap

from .style import COLORS, array, emit, finish, in_notebook, label, png, still


def curves(
    lines: dict,
    xlabel: str = "step",
    ylabel: str = "loss",
    title: str | None = None,
    logy: bool = False,
    logx: bool = False,
    ax=None,
    marker=None,
    line: bool = True,
):
    """Lines by name: ``{"name": ys}`` or ``{"name": (xs, ys)}``. ``line=False`` draws the points alone, where a line between them would claim too much."""
    import matplotlib.pyplot as plt

    own = ax is None
    if own:
        fig, ax = plt.subplots()
    for name, values in lines.items():
        xs, ys = values if isinstance(values, tuple) else (range(1, len(values) + 1), values)
        style = {"lw": 1.6, "marker": marker} if line else {"lw": 0, "marker": marker or "o"}
        ax.plot(array(list(xs) if isinstance(xs, range) else xs), array(ys), label=label(name), ms=4, **style)
    ax.set(xlabel=label(xlabel), ylabel=label(ylabel), title=label(title or ""))
    if logy:
        ax.set_yscale("log")
    if logx:
        ax.set_xscale("log")
    if len(lines) > 1:
        ax.legend()
    return finish(ax.figure) if own else ax


def runs(live, stored, ylabel: str = "loss", title: str | None = None, logy: bool = False, live_is: str = "this run", stored_is: str = "the stored run"):
    """Two trainings side by side on one scale of values: the short one just made, and the long one whose weights are loaded. Each is ys or (xs, ys)."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.0), sharey=True)
    for ax, values, name, color in zip(axes, (live, stored), (live_is, stored_is), (COLORS["blue"], COLORS["orange"])):
        xs, ys = values if isinstance(values, tuple) else (range(1, len(values) + 1), values)
        ax.plot(list(xs), array(ys), lw=1.4, color=color)
        ax.set(xlabel="step", ylabel=label(ylabel), title=f"{label(name)}: {max(xs):,} steps", xlim=(0, max(xs)))
        ax.set_yscale("log" if logy else "linear")
    axes[1].set_ylabel("")
    if title:
        fig.suptitle(label(title), fontsize=11)
    return finish(fig)


def bars(values: dict, ylabel: str = "", title: str | None = None, baseline=None, baseline_is: str = "baseline", colors=None, ax=None):
    """One bar a name, its value written on it, and a dashed line at each baseline, named beside the axes.

    ``baseline``: a number, called ``baseline_is``, or a dict from names to numbers. ``colors``: only where colour means something.
    """
    import matplotlib.pyplot as plt

    own = ax is None
    lines = baseline if isinstance(baseline, dict) else {} if baseline is None else {baseline_is: baseline}
    if own:
        fig, ax = plt.subplots(figsize=(max(3.2, 1.1 * len(values) + 1) + (1.3 if lines else 0), 3.0))
    names = [textwrap.fill(label(n), 16, break_long_words=False) if "\n" not in str(n) else label(n) for n in values]
    drawn = ax.bar(names, [float(v) for v in values.values()], color=colors or COLORS["blue"], width=0.65)
    ax.margins(y=0.15)
    for at, name, value in zip(_spread(list(lines.values()), ax), lines, lines.values()):
        ax.axhline(value, ls="--", color=COLORS["grey"], lw=1.2)
        text = textwrap.fill(f"{label(name)}: {value:.3g}", 16)
        ax.annotate(text, (1.01, at), xycoords=("axes fraction", "data"), ha="left", va="center", fontsize=9, color="#545b64", annotation_clip=False)
    for value in ax.bar_label(drawn, fmt="%.3g", fontsize=9, padding=2):
        value.set_bbox({"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.85})
    ax.set(ylabel=label(ylabel), title=label(title or ""))
    ax.grid(axis="x", visible=False)
    return finish(ax.figure) if own else ax


def _spread(values: list[float], ax) -> list[float]:
    """Where to write the names of some heights so that they do not lie on each other: at least a seventh of the axis apart."""
    low, high = ax.get_ylim()
    out, room = dict(enumerate(values)), (high - low) / 7
    order = sorted(out, key=out.get)
    for a, b in zip(order, order[1:]):
        out[b] = max(out[b], out[a] + room)
    return [out[i] for i in range(len(values))]


def table(rows, headers) -> None:
    """A small table; as HTML in a notebook, as text elsewhere."""
    import html

    text = [[str(c) if not isinstance(c, float) else f"{c:.3g}" for c in row] for row in rows]
    widths = [max([len(str(h))] + [len(r[i]) for r in text]) for i, h in enumerate(headers)]
    plain = "\n".join("  ".join(str(c).ljust(w) for c, w in zip(r, widths)) for r in [headers, *text])
    cell = 'style="text-align:left;padding:2px 10px"'
    head = "".join(f"<th {cell}>{html.escape(str(h))}</th>" for h in headers)
    body = "".join("<tr>" + "".join(f"<td {cell}>{html.escape(c)}</td>" for c in r) + "</tr>" for r in text)
    emit({"text/html": f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "text/plain": plain})


def smoothed(values: list[float], window: int) -> list[float]:
    """Running mean over the last ``window`` values; same length. A value that is not finite spoils the windows that hold it and no others."""
    out = []
    for i in range(len(values)):
        recent = values[max(0, i + 1 - max(1, window)) : i + 1]
        out.append(math.fsum(recent) / len(recent) if all(map(math.isfinite, recent)) else math.nan)
    return out


class live_panel:
    """The loss curve that grows while a model trains: one picture, redrawn in place."""

    def __init__(self):
        self.handle, self.on = None, in_notebook()

    def draw(self, log, name: str, title: str, total: int, last: bool = False) -> None:
        if not self.on:
            return
        import matplotlib.pyplot as plt

        ys = log.history[name]
        fig, ax = plt.subplots(figsize=(5.6, 2.6))
        ax.plot(range(1, len(ys) + 1), ys, color=COLORS["blue"], lw=0.8, alpha=0.35)
        ax.plot(range(1, len(ys) + 1), smoothed(ys, max(1, len(ys) // 25)), color=COLORS["blue"], lw=1.8)
        ax.set(xlim=(0, total * len(ys) / max(1, log.step)), xlabel="step", ylabel=label(name), title=label(title))
        data, about = still(png(fig), f"<curve of {name}>")
        if self.handle is None:
            self.handle = emit((data, about), display_id=True)
        else:
            self.handle.update(data, raw=True, metadata=about)
