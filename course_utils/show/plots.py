"""Curves, bars, tables, and the live curve of a training."""

from __future__ import annotations

import base64

from .style import COLORS, PALETTE, array, emit, finish, png


def curves(lines: dict, xlabel: str = "step", ylabel: str = "loss", title: str | None = None, logy: bool = False, logx: bool = False, ax=None, marker=None):
    """Lines by name: ``{"name": ys}`` or ``{"name": (xs, ys)}``."""
    import matplotlib.pyplot as plt

    own = ax is None
    if own:
        fig, ax = plt.subplots()
    for name, line in lines.items():
        xs, ys = line if isinstance(line, tuple) else (range(1, len(line) + 1), line)
        ax.plot(array(list(xs) if isinstance(xs, range) else xs), array(ys), label=name, lw=1.6, marker=marker, ms=4)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    if logy:
        ax.set_yscale("log")
    if logx:
        ax.set_xscale("log")
    if len(lines) > 1:
        ax.legend()
    return finish(ax.figure) if own else ax


def bars(values: dict, ylabel: str = "", title: str | None = None, baseline: float | None = None, baseline_is: str = "baseline", colors=None, ax=None):
    """One bar a name, its value written on it, and a dashed line at the baseline."""
    import matplotlib.pyplot as plt

    own = ax is None
    if own:
        fig, ax = plt.subplots(figsize=(max(3.2, 1.1 * len(values) + 1), 3.0))
    drawn = ax.bar(list(values), list(values.values()), color=colors or PALETTE[: len(values)], width=0.65)
    ax.bar_label(drawn, fmt="%.3g", fontsize=9, padding=2)
    ax.margins(y=0.15)
    if baseline is not None:
        ax.axhline(baseline, ls="--", color=COLORS["grey"], lw=1.2)
        ax.annotate(
            f"{baseline_is}: {baseline:.3g}", (1, baseline), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color=COLORS["grey"]
        )
    ax.set(ylabel=ylabel, title=title or "")
    ax.grid(axis="x", visible=False)
    return finish(ax.figure) if own else ax


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
    """Running mean over the last ``window`` values; same length."""
    if window <= 1:
        return list(values)
    out, total = [], 0.0
    for i, v in enumerate(values):
        total += v - (values[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


class live_panel:
    """The loss curve that grows while a model trains: one picture, redrawn in place."""

    def __init__(self):
        self.handle = None
        try:
            from IPython import get_ipython

            self.on = get_ipython() is not None
        except ImportError:
            self.on = False

    def draw(self, log, name: str, label: str, total: int, last: bool = False) -> None:
        if not self.on:
            return
        import matplotlib.pyplot as plt
        from IPython.display import display

        ys = log.history[name]
        fig, ax = plt.subplots(figsize=(5.6, 2.6))
        ax.plot(range(1, len(ys) + 1), ys, color=COLORS["blue"], lw=0.8, alpha=0.35)
        ax.plot(range(1, len(ys) + 1), smoothed(ys, max(1, len(ys) // 25)), color=COLORS["blue"], lw=1.8)
        ax.set(xlim=(0, total * len(ys) / max(1, log.step)), xlabel="step", ylabel=name, title=label)
        bundle = {"image/png": base64.b64encode(png(fig)).decode(), "text/plain": f"<curve of {name}>"}
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
