"""The start page's door to the whole course: its map, its table of lessons, and the doctor."""

from __future__ import annotations


def draw_map() -> None:
    """Draw the lessons as boxes, with an arrow from each to those that build on it."""
    from . import show

    show.course_map()


def table() -> None:
    """Show the lessons that stand, with links and times."""
    from . import curriculum

    curriculum.table()


def doctor() -> int:
    """Say what is installed, what is missing, and how to mend it; 0 when all is right."""
    from .authoring import doctor

    return doctor.main()
