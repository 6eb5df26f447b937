"""Three dimensions: meshes, points, cameras; to turn by hand in plotly, with a still picture for pages that show none."""

from __future__ import annotations

from ..errors import say
from .style import COLORS, DPI, SEQUENTIAL, array, emit, finish, in_notebook, label, png, still

PLOTLY = "application/vnd.plotly.v1+json"


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
    ax.set_title(label(title or ""))
    if still:
        return finish(fig)
    import numpy as np
    import plotly.graph_objects as go

    P, T = _z_up(array(V).astype(float), up).round(4).astype(np.float32), array(F)
    paint = {"color": color} if isinstance(color, str) else {"vertexcolor": (array(color) * 255).astype(np.uint8)}
    lighting = {"ambient": 0.55, "diffuse": 0.6, "specular": 0.1}
    part = go.Mesh3d(x=P[:, 0], y=P[:, 1], z=P[:, 2], i=T[:, 0], j=T[:, 1], k=T[:, 2], flatshading=True, lighting=lighting, **paint)
    _plotly([part], title, png(fig), azimuth, elevation)


def mesh_snapshot(V, F, color="#8fa9c9", azimuth=30, elevation=15, up="y", centre=None, half: float | None = None, size: int = 192, background="white"):
    """A small square picture (size, size, 3) in 0..1 of a mesh, for animations: the camera looks at ``centre`` (of the mesh, or (3,)) and sees ``half`` to each side (units of V)."""
    import matplotlib.pyplot as plt
    import numpy as np

    V = array(V).astype(float)
    low, high = V.min(0), V.max(0)
    x, y = (view_matrix(azimuth, elevation, up) @ ((low + high) / 2 if centre is None else array(centre)))[:2]
    half = half or 0.52 * float(np.linalg.norm(high - low))
    fig = plt.figure(figsize=(size / DPI, size / DPI), dpi=DPI, facecolor=background, layout="none")
    ax = draw_mesh(fig.add_axes((0, 0, 1, 1)), V, F, color, azimuth, elevation, up)
    ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half))
    fig.canvas.draw()
    picture = np.asarray(fig.canvas.buffer_rgba())[..., :3] / 255
    plt.close(fig)
    return picture


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
    ax.set_title(label(title or ""))
    if still:
        return finish(fig)
    import plotly.graph_objects as go

    Z = _z_up(P, up).round(4)
    paint = c if isinstance(c, str) or c.ndim == 1 else [f"rgb({r},{g},{b})" for r, g, b in (c * 255).astype(int)]
    part = go.Scatter3d(x=Z[:, 0], y=Z[:, 1], z=Z[:, 2], mode="markers", marker={"size": size, "color": paint, "colorscale": "Viridis"})
    _plotly([part], title, png(fig), azimuth, elevation)


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
    ax.set_title(label(title or ""))
    if still:
        return finish(fig)
    import plotly.graph_objects as go

    gap = np.full((1, 3), np.nan)
    path = _z_up(np.concatenate([np.concatenate([line, gap]) for line in lines]), up).round(4)
    path = [[None if np.isnan(v) else v for v in column] for column in path.T]
    parts = [go.Scatter3d(x=path[0], y=path[1], z=path[2], mode="lines", line={"color": COLORS["blue"], "width": 2}, connectgaps=False)]
    if points is not None:
        Q = _z_up(array(points).astype(float), up).round(4)
        parts.append(go.Scatter3d(x=Q[:, 0], y=Q[:, 1], z=Q[:, 2], mode="markers", marker={"size": 2, "color": COLORS["orange"]}))
    _plotly(parts, title, png(fig), azimuth, elevation)


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
    if not in_notebook():
        say(f"<3D view{': ' + title if title else ''}>")
    elif "plotly_mimetype" in (pio.renderers.default or ""):
        emit(still(png, "<3D view>", **{PLOTLY: fig.to_plotly_json() | {"config": {}}}))
    else:
        fig.show()
