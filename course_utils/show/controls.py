"""Sliders and menus for a function that draws, with a still picture that stays in the stored notebook."""

from __future__ import annotations

import io

from ..errors import CourseError, say
from . import style
from .style import emit, in_notebook, pixels, png, still

WIDGET = "application/vnd.jupyter.widget-view+json"


def play(fn, **controls):
    """Controls for a function that draws with matplotlib (and may print): ``show.play(draw, angle=(0, 180, 5), method=["LBS", "DQS"])``.

    A control is what ipywidgets' ``interact`` takes: (low, high, step), a list, True/False, a text, or a widget; the function's defaults are the starting values.
    The function is first called once as it is, so that its errors surface; that picture stays in the stored notebook.
    """
    import inspect

    defaults = {k: p.default for k, p in inspect.signature(fn).parameters.items() if p.default is not inspect.Parameter.empty}
    missing = [k for k in controls if k not in defaults and not _first_value(controls[k])[0]]
    if missing:
        raise CourseError(f"show.play needs a starting value for {missing[0]!r}: give the function's parameter a default.")
    values = {k: defaults.get(k, _first_value(c)[1]) for k, c in controls.items()}
    first, text = _drawn(fn, values)
    data, about = still(first, text or "<picture with controls>")
    if not in_notebook():
        say(data["text/plain"])
        return
    import ipywidgets as widgets

    panel = {k: widgets.interactive.widget_from_abbrev(c, values[k]) for k, c in controls.items()}
    picture, words = widgets.Image(format="png"), widgets.HTML(_pre(text))
    for name, widget in panel.items():
        if not getattr(widget, "description", ""):
            widget.description = name
        if hasattr(widget.style, "description_width"):
            widget.style.description_width = "100px"  # "temperature" in full
        if hasattr(widget, "continuous_update"):
            widget.continuous_update = False

    def put(raw):
        width, height = pixels(raw)
        picture.value, picture.width, picture.height = raw, str(width // style.DENSITY), str(height // style.DENSITY)

    def redraw(change):
        try:
            raw, printed = _drawn(fn, {k: w.value for k, w in panel.items()})
            put(raw)
            words.value = _pre(printed)
        except Exception as e:  # shown beside the picture: a widget's callback has no cell to fail
            words.value = _pre(f"{type(e).__name__}: {e}")

    put(first)
    for widget in panel.values():
        widget.observe(redraw, names="value")
    box = widgets.VBox([*panel.values(), picture, words])
    data[WIDGET] = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    emit((data, about))


def _first_value(control):
    """(has a starting value of its own?, that value)"""
    if isinstance(control, list):
        first = control[0]
        return True, first[1] if isinstance(first, tuple) else first
    if isinstance(control, (bool, str, int, float)):
        return True, control
    if hasattr(control, "value"):
        return True, control.value
    if isinstance(control, tuple) and len(control) >= 2:
        low, high = control[0], control[1]
        middle = (low + high) / 2
        return True, int(middle) if all(isinstance(v, int) for v in control) else middle
    return False, None


def _drawn(fn, values: dict) -> tuple[bytes, str]:
    """Call fn, and take its figure as PNG and its prints as text."""
    import contextlib

    import matplotlib.pyplot as plt

    plt.close("all")
    printed = io.StringIO()
    backend_show, plt.show = plt.show, lambda *a, **k: None
    style.collecting = True
    try:
        with contextlib.redirect_stdout(printed):
            result = fn(**values)
    finally:
        plt.show, style.collecting = backend_show, False
    fig = result if hasattr(result, "savefig") else plt.gcf()
    return png(fig), printed.getvalue().strip()


def _pre(text: str) -> str:
    import html

    return f"<pre style='margin:0'>{html.escape(text)}</pre>" if text else ""
