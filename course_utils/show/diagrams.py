"""Drawings made of boxes and arrows: architectures, and the map of the course."""

from __future__ import annotations

from .style import COLORS, TINT, finish, label

_PART_COLORS = {1: "blue", 2: "orange", 3: "green", 4: "purple"}


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
        ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=style, fc=TINT[color], ec=COLORS[color], lw=1.4, zorder=2))
        ax.text(x, y, label(box[0]), ha="center", va="center", fontsize=9, zorder=3)
    for arrow in arrows:
        a, b, text = arrow[0], arrow[1], arrow[2] if len(arrow) > 2 else ""
        dashed, text = text.startswith("~"), text.lstrip("~")
        start, end = _edges(at[a], at[b], width, height)
        style = {"arrowstyle": "-|>", "color": "#444a52", "lw": 1.3, "ls": "--" if dashed else "-", "shrinkA": 1, "shrinkB": 1}
        ax.annotate("", end, start, arrowprops=style, zorder=1)
        if text:
            ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.07, label(text), ha="center", va="bottom", fontsize=8, color="#444a52", zorder=4)
    ax.set(xlim=(min(xs) - width * 0.62, max(xs) + width * 0.62), ylim=(min(ys) - height * 0.9, max(ys) + height * 0.9), title=label(title or ""))
    ax.set_aspect("equal")
    ax.axis("off")
    return finish(fig)


def _edges(p, q, width, height):
    """Where the arrow from box p to box q leaves and arrives."""
    dx, dy = q[0] - p[0], q[1] - p[1]
    if abs(dx) * height >= abs(dy) * width * 0.8:
        s = 1 if dx > 0 else -1
        return (p[0] + s * width / 2, p[1]), (q[0] - s * width / 2, q[1])
    s = 1 if dy > 0 else -1
    return (p[0], p[1] + s * height / 2), (q[0], q[1] - s * height / 2)


def course_map(size: tuple[float, float] = (13.0, 8.2)):
    """The map of the course: one box a lesson, one row of boxes a part, an arrow from each lesson to those that build on it (arrows that follow from others
    are left out). Lessons that stand are filled, planned ones dashed.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    from .. import curriculum

    every = curriculum.lessons()
    at = {}
    for part in curriculum.parts():
        own = [x for x in every.values() if x.part == part]
        for i, lesson in enumerate(own):
            at[lesson.name] = (i, -1.75 * part.number)
    width, height = 0.9, 0.66
    fig, ax = plt.subplots(figsize=size)
    for lesson in every.values():
        for need in lesson.needs:
            if any(need in curriculum.all_needs(other) for other in lesson.needs):
                continue  # already reached by way of another lesson
            (x0, y0), (x1, y1) = at[need], at[lesson.name]
            color = COLORS[_PART_COLORS[every[need].part.number]]
            if y0 == y1:  # along the row: an arc under the boxes, or a short arrow to the next box
                near = abs(x1 - x0) == 1
                start, end = ((x0 + width / 2, y0), (x1 - width / 2, y1)) if near else ((x0 + 0.1, y0 - height / 2), (x1 - 0.1, y1 - height / 2))
                bend = 0 if near else 2 * (0.22 + 0.055 * (x1 - x0)) / (x1 - x0)
            else:
                down = y1 < y0
                start, end = (x0, y0 - height / 2 if down else y0 + height / 2), (x1, y1 + height / 2 if down else y1 - height / 2)
                bend = 0.12
            style = {"arrowstyle": "-|>", "mutation_scale": 11, "lw": 1.1, "alpha": 0.75, "color": color, "shrinkA": 0, "shrinkB": 0}
            ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", zorder=1, **style))
    for lesson in every.values():
        x, y = at[lesson.name]
        color, done = _PART_COLORS[lesson.part.number], lesson.status == "ready"
        box = "round,pad=0,rounding_size=0.08"
        face, edge = (COLORS[color], COLORS[color]) if done else ("white", COLORS[color])
        ax.add_patch(
            FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=box, fc=face, ec=edge, lw=1.2, ls="-" if done else (0, (3, 2)), zorder=2)
        )
        words = f"{lesson.number}\n" + lesson.short
        ax.text(x, y, words, ha="center", va="center", fontsize=9, color="white" if done else "#3a4047", weight="bold" if done else "normal", zorder=3)
    for part in curriculum.parts():
        ax.text(
            -width / 2,
            -1.75 * part.number + 0.47,
            f"Part {part.number} · {part.title}",
            fontsize=12,
            weight="bold",
            color=COLORS[_PART_COLORS[part.number]],
            zorder=4,
        ).set_bbox({"fc": "white", "ec": "none", "pad": 1})
    ax.set(xlim=(-0.6, 9.6), ylim=(-1.75 * 4 - 0.75, -1.75 + 0.95))
    ax.axis("off")
    return finish(fig)
