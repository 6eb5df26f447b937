"""Pictures in one style: grids, curves, heat maps, diagrams, animations, 3D views, and controls that keep a still picture in the stored notebook.

Every function draws into the notebook and returns the figure (or None). Arrays may be numpy or torch, on any device.
"""

from __future__ import annotations

import base64
import io
import math

from .errors import CourseError

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
_TINT = {
    "blue": "#dbe8f5",
    "orange": "#fbe6d2",
    "green": "#dcefe3",
    "red": "#f6dcdc",
    "purple": "#e8e0f2",
    "teal": "#d8eef0",
    "brown": "#eee3da",
    "grey": "#eceef0",
}
_WIDGET = "application/vnd.jupyter.widget-view+json"
_PLOTLY = "application/vnd.plotly.v1+json"


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


def _finish(fig):
    import matplotlib.pyplot as plt

    plt.show()
    return None


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
    return _finish(fig)


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
    return _finish(ax.figure) if own else ax


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
    return _finish(ax.figure) if own else ax


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
    return _finish(ax.figure) if own else ax


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
    return _finish(ax.figure) if own else ax


def table(rows, headers) -> None:
    """A small table; as HTML in a notebook, as text elsewhere."""
    import html

    text = [[str(c) if not isinstance(c, float) else f"{c:.3g}" for c in row] for row in rows]
    widths = [max([len(str(h))] + [len(r[i]) for r in text]) for i, h in enumerate(headers)]
    plain = "\n".join("  ".join(str(c).ljust(w) for c, w in zip(r, widths)) for r in [headers, *text])
    cell = 'style="text-align:left;padding:2px 10px"'
    head = "".join(f"<th {cell}>{html.escape(str(h))}</th>" for h in headers)
    body = "".join("<tr>" + "".join(f"<td {cell}>{html.escape(c)}</td>" for c in r) + "</tr>" for r in text)
    _display({"text/html": f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "text/plain": plain})


def diagram(boxes: dict, arrows, title: str | None = None, size: tuple | None = None, height: float = 0.62, width: float = 1.5):
    """An architecture diagram.

    ``boxes``: name → (label, column, row[, colour name]); columns and rows are grid positions, row 0 on top.
    ``arrows``: (from, to[, label]) each; a label starting with "~" draws a dashed arrow.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    step_x, step_y = width * 1.45, height * 1.9
    at = {name: (b[1] * step_x, -b[2] * step_y) for name, b in boxes.items()}
    xs, ys = [p[0] for p in at.values()], [p[1] for p in at.values()]
    w, h = max(xs) - min(xs) + width * 1.25, max(ys) - min(ys) + height * 1.8
    fig, ax = plt.subplots(figsize=size or (min(9.5, 1.05 * w), min(6.5, 1.15 * h + (0.3 if title else 0))))
    for name, box in boxes.items():
        color = box[3] if len(box) > 3 else "blue"
        x, y = at[name]
        style = "round,pad=0.02,rounding_size=0.12"
        ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=style, fc=_TINT[color], ec=COLORS[color], lw=1.4, zorder=2))
        ax.text(x, y, box[0], ha="center", va="center", fontsize=9, zorder=3)
    for arrow in arrows:
        a, b, label = arrow[0], arrow[1], arrow[2] if len(arrow) > 2 else ""
        dashed, label = label.startswith("~"), label.lstrip("~")
        start, end = _edges(at[a], at[b], width, height)
        style = {"arrowstyle": "-|>", "color": "#444a52", "lw": 1.3, "ls": "--" if dashed else "-", "shrinkA": 1, "shrinkB": 1}
        ax.annotate("", end, start, arrowprops=style, zorder=1)
        if label:
            ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.07, label, ha="center", va="bottom", fontsize=8, color="#444a52", zorder=4)
    ax.set(xlim=(min(xs) - width * 0.62, max(xs) + width * 0.62), ylim=(min(ys) - height * 0.9, max(ys) + height * 0.9), title=title or "")
    ax.set_aspect("equal")
    ax.axis("off")
    return _finish(fig)


def _edges(p, q, width, height):
    """Where the arrow from box p to box q leaves and arrives."""
    dx, dy = q[0] - p[0], q[1] - p[1]
    if abs(dx) * height >= abs(dy) * width * 0.8:
        s = 1 if dx > 0 else -1
        return (p[0] + s * width / 2, p[1]), (q[0] - s * width / 2, q[1])
    s = 1 if dy > 0 else -1
    return (p[0], p[1] + s * height / 2), (q[0], q[1] - s * height / 2)


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
    _display(
        {"text/html": f'<img alt="{alt}" src="data:image/gif;base64,{data}"/>', "image/png": _png_of(pictures(frames)[-1], scale), "text/plain": f"<{alt}>"}
    )


def _png_of(picture, scale: int = 1) -> str:
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray((picture * 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def _png(fig) -> bytes:
    """The figure as PNG, and close it."""
    import matplotlib.pyplot as plt

    out = io.BytesIO()
    fig.savefig(out, format="png")
    plt.close(fig)
    return out.getvalue()


def _display(bundle: dict) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is None:
        print(bundle.get("text/plain", ""))
    else:
        display(bundle, raw=True)


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

        from .train import smoothed

        ys = log.history[name]
        fig, ax = plt.subplots(figsize=(5.6, 2.6))
        ax.plot(range(1, len(ys) + 1), ys, color=COLORS["blue"], lw=0.8, alpha=0.35)
        ax.plot(range(1, len(ys) + 1), smoothed(ys, max(1, len(ys) // 25)), color=COLORS["blue"], lw=1.8)
        ax.set(xlim=(0, total * len(ys) / max(1, log.step)), xlabel="step", ylabel=name, title=label)
        bundle = {"image/png": base64.b64encode(_png(fig)).decode(), "text/plain": f"<curve of {name}>"}
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)


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
    png, text = _drawn(fn, values)
    bundle = {"image/png": base64.b64encode(png).decode(), "text/plain": text or "<picture with controls>"}
    try:
        import ipywidgets as widgets
        from IPython import get_ipython
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is None:
        print(bundle["text/plain"])
        return
    panel = {k: widgets.interactive.widget_from_abbrev(c, values[k]) for k, c in controls.items()}
    picture, words = widgets.Image(value=png, format="png"), widgets.HTML(_pre(text))
    for name, widget in panel.items():
        if not getattr(widget, "description", ""):
            widget.description = name
        if hasattr(widget.style, "description_width"):
            widget.style.description_width = "100px"  # "temperature" in full
        if hasattr(widget, "continuous_update"):
            widget.continuous_update = False

    def redraw(change):
        try:
            picture.value, printed = _drawn(fn, {k: w.value for k, w in panel.items()})
            words.value = _pre(printed)
        except Exception as e:  # shown beside the picture: a widget's callback has no cell to fail
            words.value = _pre(f"{type(e).__name__}: {e}")

    for widget in panel.values():
        widget.observe(redraw, names="value")
    box = widgets.VBox([*panel.values(), picture, words])
    bundle[_WIDGET] = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    _display(bundle)


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
    try:
        with contextlib.redirect_stdout(printed):
            result = fn(**values)
    finally:
        plt.show = backend_show
    fig = result if hasattr(result, "savefig") else plt.gcf()
    return _png(fig), printed.getvalue().strip()


def _pre(text: str) -> str:
    import html

    return f"<pre style='margin:0'>{html.escape(text)}</pre>" if text else ""


# 3D


def view_matrix(azimuth: float = 30, elevation: float = 15, up: str = "y"):
    """Rotation (3,3) whose rows are right, up and towards the viewer, for angles in degrees. Azimuth 0 looks at the front (+z for ``up="y"``, −y for ``up="z"``)."""
    import numpy as np

    a, e = np.radians([azimuth, elevation])
    right = np.array([np.cos(a), 0, -np.sin(a)])
    back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    rotation = np.stack([right, np.cross(back, right), back])
    return rotation if up == "y" else rotation @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def draw_mesh(ax, V, F, color="#b9c4d0", azimuth=30, elevation=15, up="y", alpha=1.0, light=(0.4, 0.6, 0.8), edges=False):
    """Draw a shaded mesh on a matplotlib axis, faces sorted from back to front (orthographic). ``color``: one colour, or (faces,3) or (vertices,3) in 0..1."""
    import numpy as np
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgb

    V, F = array(V).astype(float), array(F)
    P = V @ view_matrix(azimuth, elevation, up).T
    T = P[F]
    normal = np.cross(T[:, 1] - T[:, 0], T[:, 2] - T[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    facing = normal[:, 2] > 0
    L = np.array(light) / np.linalg.norm(light)
    shade = 0.45 + 0.55 * np.clip(normal @ L, 0, 1)
    base = np.array(to_rgb(color))[None] if isinstance(color, str) else array(color)
    base = base[F].mean(1) if len(base) == len(V) and len(base) != len(F) else np.broadcast_to(base, (len(F), 3))
    keep = facing if alpha == 1.0 else np.ones(len(F), bool)
    order = np.argsort(T[keep, :, 2].mean(1))
    rgb = np.clip(base[keep] * shade[keep, None], 0, 1)[order]
    polygons = PolyCollection(T[keep][order][:, :, :2], facecolors=rgb, edgecolors="#5a6270" if edges else rgb, linewidths=0.3, alpha=alpha)
    ax.add_collection(polygons)
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.axis("off")
    return ax


def mesh(V, F, color="#b9c4d0", title: str | None = None, up: str = "y", still: bool = False, azimuth: float = 30, elevation: float = 15):
    """A mesh to turn by hand (plotly), with a still picture for pages that show none. ``color``: one colour, or (vertices,3) in 0..1."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(4, 4))
    draw_mesh(ax, V, F, color, azimuth, elevation, up)
    ax.set_title(title or "")
    if still:
        return _finish(fig)
    import numpy as np
    import plotly.graph_objects as go

    P, T = _z_up(array(V).astype(float), up).round(4).astype(np.float32), array(F)
    paint = {"color": color} if isinstance(color, str) else {"vertexcolor": (array(color) * 255).astype(np.uint8)}
    lighting = {"ambient": 0.55, "diffuse": 0.6, "specular": 0.1}
    part = go.Mesh3d(x=P[:, 0], y=P[:, 1], z=P[:, 2], i=T[:, 0], j=T[:, 1], k=T[:, 2], flatshading=True, lighting=lighting, **paint)
    _plotly([part], title, _png(fig), azimuth, elevation)


def points(P, color=None, title: str | None = None, up: str = "z", size: float = 2.0, still: bool = False, azimuth: float = 30, elevation: float = 20):
    """A point cloud to turn by hand. ``color``: one colour, (points,3) in 0..1, or (points,) values for a colour scale."""
    import matplotlib.pyplot as plt
    import numpy as np

    P = array(P).astype(float)
    Q = P @ view_matrix(azimuth, elevation, up).T
    order = np.argsort(Q[:, 2])
    c = COLORS["blue"] if color is None else color if isinstance(color, str) else array(color)
    fig, ax = plt.subplots(figsize=(4, 4))
    scale = {} if isinstance(c, str) or c.ndim > 1 else {"cmap": SEQUENTIAL}
    ax.scatter(Q[order, 0], Q[order, 1], s=size * 2, c=c if isinstance(c, str) else c[order], linewidths=0, **scale)
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_title(title or "")
    if still:
        return _finish(fig)
    import plotly.graph_objects as go

    Z = _z_up(P, up).round(4)
    paint = c if isinstance(c, str) or c.ndim == 1 else [f"rgb({r},{g},{b})" for r, g, b in (c * 255).astype(int)]
    part = go.Scatter3d(x=Z[:, 0], y=Z[:, 1], z=Z[:, 2], mode="markers", marker={"size": size, "color": paint, "colorscale": "Viridis"})
    _plotly([part], title, _png(fig), azimuth, elevation)


def cameras(K, R, t, size=(64, 64), points=None, scale: float = 0.3, title: str | None = None, up: str = "z", still: bool = False, azimuth=30, elevation=20):
    """Cameras as little pyramids. ``K`` (3,3) or (N,3,3); ``R`` (N,3,3), ``t`` (N,3) world→camera, x right, y down, z forward; ``size`` (H, W) in pixels."""
    import matplotlib.pyplot as plt
    import numpy as np

    K, R, t = array(K).astype(float), array(R).astype(float), array(t).astype(float)
    K = np.broadcast_to(K, (len(R), 3, 3))
    H, W = size
    corners = np.array([[0, 0, 1], [W, 0, 1], [W, H, 1], [0, H, 1]], float)
    lines = []  # one (8,3) polyline a camera: centre, the four corners, back
    for k, r, s in zip(K, R, t):
        c = -r.T @ s
        p = (scale * (np.linalg.inv(k) @ corners.T).T) @ r + c
        lines.append(np.stack([c, p[0], p[1], c, p[2], p[3], c, p[0], p[3], p[2], p[1]]))
    view = view_matrix(azimuth, elevation, up)
    fig, ax = plt.subplots(figsize=(4, 4))
    for line in lines:
        ax.plot(*(line @ view.T)[:, :2].T, color=COLORS["blue"], lw=0.7)
    if points is not None:
        ax.scatter(*(array(points) @ view.T)[:, :2].T, s=2, color=COLORS["orange"])
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_title(title or "")
    if still:
        return _finish(fig)
    import plotly.graph_objects as go

    gap = np.full((1, 3), np.nan)
    path = _z_up(np.concatenate([np.concatenate([line, gap]) for line in lines]), up).round(4)
    path = [[None if np.isnan(v) else v for v in column] for column in path.T]
    parts = [go.Scatter3d(x=path[0], y=path[1], z=path[2], mode="lines", line={"color": COLORS["blue"], "width": 2}, connectgaps=False)]
    if points is not None:
        Q = _z_up(array(points).astype(float), up).round(4)
        parts.append(go.Scatter3d(x=Q[:, 0], y=Q[:, 1], z=Q[:, 2], mode="markers", marker={"size": 2, "color": COLORS["orange"]}))
    _plotly(parts, title, _png(fig), azimuth, elevation)


def _z_up(P, up: str):
    """Plotly's scenes have z up; turn y-up coordinates so that the front faces the same way."""
    return P if up == "z" else P[:, [0, 2, 1]] * [1, -1, 1]


def _plotly(parts, title, png: bytes, azimuth: float, elevation: float) -> None:
    """Show plotly traces with the machine's own renderer; where that is the plain mimetype, add the still picture to the same output."""
    import numpy as np
    import plotly.graph_objects as go
    import plotly.io as pio

    a, e = np.radians([azimuth, elevation])
    eye = {"x": 1.8 * np.sin(a) * np.cos(e), "y": -1.8 * np.cos(a) * np.cos(e), "z": 1.8 * np.sin(e)}
    hidden = {"visible": False}
    scene = {"aspectmode": "data", "xaxis": hidden, "yaxis": hidden, "zaxis": hidden, "camera": {"eye": eye}}
    margin = {"l": 0, "r": 0, "t": 30 if title else 0, "b": 0}
    fig = go.Figure(parts, {"scene": scene, "margin": margin, "width": 480, "height": 420, "title": title, "showlegend": False, "template": "none"})
    try:
        from IPython import get_ipython
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is None:
        print(f"<3D view{': ' + title if title else ''}>")
    elif "plotly_mimetype" in (pio.renderers.default or ""):
        _display({_PLOTLY: fig.to_plotly_json() | {"config": {}}, "image/png": base64.b64encode(png).decode(), "text/plain": "<3D view>"})
    else:
        fig.show()
