"""The 34 lessons: which there are, which stand, and what each needs. The table is ``curriculum.toml``; the metrics are in ``scoreboard.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .errors import CourseError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

FILE = Path(__file__).with_name("curriculum.toml")


@dataclass(frozen=True)
class Part:
    """One of the four parts of the course."""

    number: int
    folder: str
    title: str
    korean: str


@dataclass(frozen=True)
class Lesson:
    """One lesson: ``name`` is its short name, ``needs`` the lessons that it imports from, ``status`` "ready" or "planned"."""

    name: str
    number: str
    stem: str
    title: str
    short: str  # for the map, at most two lines
    korean: str
    section: str
    needs: tuple[str, ...]
    status: str
    part: Part

    @property
    def path(self) -> str:
        """The notebook, relative to the repository's root."""
        return f"notebooks/{self.part.folder}/{self.stem}.ipynb"


@lru_cache(maxsize=1)
def parts() -> tuple[Part, ...]:
    """The four parts in order."""
    return tuple(Part(int(n), **p) for n, p in _table()["parts"].items())


@lru_cache(maxsize=1)
def lessons() -> dict[str, Lesson]:
    """Lesson name → Lesson, in the order of the course."""
    by_number = {p.number: p for p in parts()}
    rows = _table()["lessons"].items()
    return {
        n: Lesson(n, **{"short": row["title"], **row, "needs": tuple(row["needs"]), "part": by_number[int(row["number"].split(".")[0])]}) for n, row in rows
    }


def ready() -> list[Lesson]:
    """The lessons that stand."""
    return [lesson for lesson in lessons().values() if lesson.status == "ready"]


@lru_cache(maxsize=1)
def _table() -> dict:
    try:
        return tomllib.loads(FILE.read_text(encoding="utf8"))
    except FileNotFoundError as e:
        raise CourseError("course_utils/curriculum.toml is missing: install the package again, or restore the file from the repository.") from e


def order(needs: dict[str, tuple[str, ...]]) -> list[str]:
    """Names sorted so that each comes after what it needs; CourseError names the circle if there is one."""
    from graphlib import CycleError, TopologicalSorter

    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as e:
        raise CourseError(f"The lessons need each other in a circle: {' → '.join(e.args[1])}.") from e


def all_needs(name: str) -> set[str]:
    """Everything that a lesson needs, directly or by way of others."""
    own = lessons()[name].needs
    return set(own).union(*map(all_needs, own))


def main() -> int:
    """``python -m course_utils list``: the lessons with state, time and headline."""
    from . import scoreboard

    board = scoreboard.lessons()
    for part in parts():
        print(f"\nPart {part.number} · {part.title} · notebooks/{part.folder}")
        for lesson in lessons().values():
            if lesson.part != part:
                continue
            seconds = board.get(lesson.name, {}).get("seconds", {}).get("quick")
            time = f"{seconds:.0f} s" if seconds else ""
            headline = scoreboard.headline(lesson.name).replace("**", "") if lesson.status == "ready" else "planned"
            needs = f"  (needs {', '.join(lessons()[n].number for n in lesson.needs)})" if lesson.needs else ""
            print(f"  {lesson.number:5}{lesson.name:24}{time:>6}  {headline}{needs}")
    return 0
