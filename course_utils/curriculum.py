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
_PART_COLORS = {1: "blue", 2: "orange", 3: "green", 4: "purple"}


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
    return {n: Lesson(n, **{**row, "needs": tuple(row["needs"]), "part": by_number[int(row["number"].split(".")[0])]}) for n, row in rows}


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


def _all_needs(name: str) -> set[str]:
    """Everything that a lesson needs, directly or by way of others."""
    own = lessons()[name].needs
    return set(own).union(*map(_all_needs, own))


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


def table() -> None:
    """Show the lessons that stand, with links, and the planned ones by number (in a notebook; as text elsewhere)."""
    from . import scoreboard

    board = scoreboard.lessons()
    rows = ["| | lesson | 강의 | time on 2 cores | needs |", "|---|---|---|---|---|"]
    for lesson in ready():
        seconds = board.get(lesson.name, {}).get("seconds", {}).get("quick")
        needs = ", ".join(lessons()[n].number for n in lesson.needs) or "–"
        link = lesson.path.removeprefix("notebooks/")
        rows.append(f"| {lesson.number} | [{lesson.title}]({link}) | {lesson.korean} | {f'{seconds:.0f} s' if seconds else '–'} | {needs} |")
    planned = [x.number for x in lessons().values() if x.status == "planned"]
    if planned:
        rows += ["", f"Planned: {len(planned)} more lessons."]
    text = "\n".join(rows)
    try:
        from IPython.display import Markdown, display
    except ImportError:
        print(text)
    else:
        display(Markdown(text))


def draw_map(size: tuple[float, float] = (9.2, 6.6)):
    """The map of the course: one box a lesson, one row of boxes a part, an arrow from each lesson to those that build on it (arrows that follow from others
    are left out). Lessons that stand are filled, planned ones dashed.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    from . import show

    every = lessons()
    at = {}
    for part in parts():
        own = [x for x in every.values() if x.part == part]
        for i, lesson in enumerate(own):
            at[lesson.name] = (i, -1.75 * part.number)
    width, height = 0.86, 0.62
    fig, ax = plt.subplots(figsize=size)
    for lesson in every.values():
        for need in lesson.needs:
            if any(need in _all_needs(other) for other in lesson.needs):
                continue  # already reached by way of another lesson
            (x0, y0), (x1, y1) = at[need], at[lesson.name]
            color = show.COLORS[_PART_COLORS[every[need].part.number]]
            if y0 == y1:  # along the row: an arc under the boxes, or a short arrow to the next box
                near = abs(x1 - x0) == 1
                start, end = ((x0 + width / 2, y0), (x1 - width / 2, y1)) if near else ((x0 + 0.1, y0 - height / 2), (x1 - 0.1, y1 - height / 2))
                bend = 0 if near else 2 * (0.22 + 0.055 * (x1 - x0)) / (x1 - x0)
            else:
                down = y1 < y0
                start, end = (x0, y0 - height / 2 if down else y0 + height / 2), (x1, y1 + height / 2 if down else y1 - height / 2)
                bend = 0.12
            style = {"arrowstyle": "-|>", "mutation_scale": 9, "lw": 1.1, "alpha": 0.75, "color": color, "shrinkA": 0, "shrinkB": 0}
            ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", zorder=1, **style))
    for lesson in every.values():
        x, y = at[lesson.name]
        color, done = _PART_COLORS[lesson.part.number], lesson.status == "ready"
        box = "round,pad=0,rounding_size=0.08"
        face, edge = (show.COLORS[color], show.COLORS[color]) if done else ("white", show.COLORS[color])
        ax.add_patch(
            FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=box, fc=face, ec=edge, lw=1.2, ls="-" if done else (0, (3, 2)), zorder=2)
        )
        words = f"{lesson.number}\n" + _SHORT.get(lesson.name, lesson.title)
        ax.text(x, y, words, ha="center", va="center", fontsize=6.6, color="white" if done else "#3a4047", weight="bold" if done else "normal", zorder=3)
    for part in parts():
        ax.text(
            -width / 2,
            -1.75 * part.number + 0.47,
            f"Part {part.number} · {part.title}",
            fontsize=9.5,
            weight="bold",
            color=show.COLORS[_PART_COLORS[part.number]],
            zorder=4,
        ).set_bbox({"fc": "white", "ec": "none", "pad": 1})
    ax.set(xlim=(-0.6, 9.6), ylim=(-1.75 * 4 - 0.75, -1.75 + 0.95))
    ax.axis("off")
    plt.show()


_SHORT = {
    "alignment": "alignment",
    "clip": "CLIP",
    "dalle2": "DALL-E 2",
    "sound_to_image": "sound to\nimage",
    "speech2face": "Speech2Face",
    "image_to_speech": "image to\nspeech",
    "show_attend_tell": "Show, Attend\nand Tell",
    "instructblip": "InstructBLIP",
    "pixelrnn": "PixelRNN",
    "ddpm": "DDPM",
    "latent_diffusion": "latent\ndiffusion",
    "prompt_to_prompt": "Prompt-to-\nPrompt",
    "instruct_pix2pix": "Instruct-\nPix2Pix",
    "marigold": "Marigold",
    "structure_from_motion": "structure\nfrom motion",
    "representations": "shape",
    "detection": "detection",
    "segmentation": "segmentation",
    "nerf": "NeRF",
    "gaussian_splatting": "Gaussian\nsplatting",
    "linear_blend_skinning": "blend\nskinning",
    "multiply": "MultiPly",
}
