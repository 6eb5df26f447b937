"""The start page's door to the whole course: its map, and the doctor."""

from __future__ import annotations


def draw_map() -> None:
    """Draw the lessons as boxes, with an arrow from each to those that build on it."""
    from . import show

    show.course_map()


def doctor() -> int:
    """Say what is installed, what is missing, and how to mend it; 0 when all is right."""
    from .authoring import doctor

    return doctor.main()
