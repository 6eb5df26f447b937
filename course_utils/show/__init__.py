"""Pictures in one style: grids, curves, heat maps, diagrams, animations, 3D views, and controls that keep a still picture in the stored notebook.

Every function draws into the notebook and returns nothing (or, given an axis, the axis). Arrays may be numpy or torch, on any device.
"""

from .controls import play
from .diagrams import course_map, diagram
from .pictures import animate, gif, grid, heat, overlay, pictures
from .plots import bars, curves, live_panel, runs, smoothed, table
from .scenes import cameras, draw_mesh, mesh, mesh_snapshot, points, view_matrix
from .style import COLORS, DIVERGING, PALETTE, SEQUENTIAL, array, png, romanised, use_style

__all__ = [
    "COLORS", "DIVERGING", "PALETTE", "SEQUENTIAL", "animate", "array", "bars", "cameras", "course_map", "curves", "diagram", "draw_mesh", "gif", "grid", "heat",
    "live_panel", "mesh", "mesh_snapshot", "overlay", "pictures", "play", "png", "points", "romanised", "runs", "smoothed", "table", "use_style", "view_matrix",
]  # fmt: skip
