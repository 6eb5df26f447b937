"""What every notebook says about its place: its address (said once, in ``[project.urls]`` of pyproject.toml), its neighbours, its times, the start page's table."""

from __future__ import annotations

import math
import re
from pathlib import Path

from .. import curriculum, scoreboard
from ..errors import CourseError
from . import notebooks

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

READ = "https://img.shields.io/badge/Colab-read-2563a8?logo=googlecolab"
PRACTISE = "https://img.shields.io/badge/Colab-practise-e07b21?logo=googlecolab"


def root() -> Path:
    """The repository's root."""
    return notebooks.folder().parent


def origin() -> tuple[str, str]:
    """(``owner/name``, tag) from pyproject.toml."""
    urls = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf8"))["project"]["urls"]
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", urls["repository"])
    if not found:
        raise CourseError('[project.urls] in pyproject.toml: write repository = "https://github.com/owner/name", without anything after the name.')
    return found[1], urls["tag"].rsplit("/", 1)[-1]


def colab(path: str, origin: tuple[str, str]) -> str:
    """The address that opens a notebook of the repository in Colab."""
    return f"https://colab.research.google.com/github/{origin[0]}/blob/{origin[1]}/{path}"


def rewritten(text: str, origin: tuple[str, str]) -> str:
    """The text with every address of the course set to ``origin``: Colab links, the set-up cell's install line, plain repository links."""
    repository, tag = origin
    text = re.sub(
        r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[^/\s)]+/((?:notebooks|assignments)/[\w./-]+\.ipynb)",
        lambda m: colab(m[1], origin),
        text,
    )
    text = re.sub(r"(course-utils @ git\+)https://github\.com/[\w.-]+/[\w.-]+@[\w.-]+", rf"\g<1>https://github.com/{repository}@{tag}", text)
    name = repository.split("/")[1]
    return re.sub(rf"https://github\.com/(?:OWNER|[\w.-]+)/(?:{re.escape(name)}|vision-models-from-scratch)\b", f"https://github.com/{repository}", text)


# What the first and the last text cell of a lesson say about its place in the course


def both(path: str, origin: tuple[str, str]) -> str:
    """The two Colab badges of a notebook: read it, or practise in the edition without solutions."""
    practice = path.replace("notebooks/", "assignments/", 1)
    return f"[![Read in Colab]({READ})]({colab(path, origin)}) [![Practise in Colab]({PRACTISE})]({colab(practice, origin)})"


def way(lesson: curriculum.Lesson) -> str:
    """The line with links to the lesson before, the start page and the lesson after, among those that stand."""
    standing = curriculum.ready()
    at = standing.index(lesson)
    link = lambda x, text: f"[{text}](../{x.path.removeprefix('notebooks/')})"  # noqa: E731
    before = [link(standing[at - 1], f"← {standing[at - 1].number} {standing[at - 1].title}")] if at else []
    after = [link(standing[at + 1], f"{standing[at + 1].number} {standing[at + 1].title} →")] if at + 1 < len(standing) else []
    return " · ".join([*before, "[start page](../00_start_here.ipynb)", *after])


def spell(seconds: float | None) -> str:
    """Seconds as a reader wants them: 41 s, 2 min."""
    return "–" if not seconds else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def study_minutes(nb: dict) -> int:
    """Minutes to read a lesson and solve its exercises: what the exercises say, 120 words and 12 lines of code a minute, to the next ten."""
    texts = [notebooks.source(c) for c in nb["cells"] if c["cell_type"] == "markdown"]
    code = [notebooks.source(c) for c in nb["cells"] if c["cell_type"] == "code"]
    solving = sum(int(m) for t in texts for m in re.findall(r"\*\*Exercise \d+ [●○]+ · (\d+) min", t))
    words = sum(len(re.findall(r"[^\W\d_]+", t)) for t in texts[1:-1])
    lines = sum(1 for c in code for line in c.splitlines() if line.strip())
    return 10 * math.ceil((solving + words / 120 + lines / 12) / 10)


def times(name: str, nb: dict) -> tuple[str, str]:
    """What the title's table says about time: (to read and solve, to compute)."""
    seconds = scoreboard.lessons()[name].get("seconds", {})
    return f"about {study_minutes(nb)} min", f"{spell(seconds.get('quick'))} on 2 cores; about {spell(seconds.get('full'))} on a GPU"


def _title(text: str, lesson: curriculum.Lesson, nb: dict, origin: tuple[str, str]) -> str:
    """The first text cell with badges, way and times in step."""
    head, _, rest = text.partition("\n")
    rest = re.sub(r"\A\s*(?:\[!\[[^\n]*\n+|[^\n]*\[start page\][^\n]*\n+)*", "", rest)
    text = f"{head}\n\n{both(lesson.path, origin)}\n\n{way(lesson)}\n\n{rest}"
    found = re.search(r"^\| in the lecture \|.*\n\|[-| ]+\|\n(\|.*)$", text, re.M)
    if not found:
        raise CourseError(f"{lesson.stem}: the first cell has no table that begins with '| in the lecture |' (see CONTRIBUTING.md).")
    cells = found[1].split(" | ")
    cells[2:4] = times(lesson.name, nb)
    return text[: found.start(1)] + " | ".join(cells) + text[found.end(1) :]


def _end(text: str, lesson: curriculum.Lesson) -> str:
    """The last text cell with the way at its end."""
    return re.sub(r"\n+[^\n]*\[start page\][^\n]*\Z", "", text.rstrip()) + f"\n\n{way(lesson)}"


def placed(lesson: curriculum.Lesson, nb: dict, origin: tuple[str, str]) -> dict[int, str]:
    """Position of a text cell → its text in step, for the first and the last one."""
    at = [i for i, c in enumerate(nb["cells"]) if c["cell_type"] == "markdown"]
    source = lambda i: notebooks.source(nb["cells"][i])  # noqa: E731
    return {at[0]: _title(source(at[0]), lesson, nb, origin), at[-1]: _end(source(at[-1]), lesson)}


def drift(write: bool = False) -> list[str]:
    """Files whose addresses differ from pyproject.toml; with ``write`` they are mended."""
    from .readme import start_page

    where = origin()
    changed, by_path = [], {x.path: x for x in curriculum.ready()}
    for file in [notebooks.find("start_here"), *notebooks.lessons().values()]:
        if not file.exists():
            continue
        nb = notebooks.read(file)
        before = [notebooks.source(c) for c in nb["cells"]]
        after = [rewritten(text, where) for text in before]
        lesson = by_path.get(file.relative_to(root()).as_posix())
        if lesson:
            mended = {"cells": [{**c, "source": text} for c, text in zip(nb["cells"], after)]}
            for i, text in placed(lesson, mended, where).items():
                after[i] = text
        else:
            after = [start_page(text) if c["cell_type"] == "markdown" else text for c, text in zip(nb["cells"], after)]
        if before != after:
            changed.append(file.relative_to(root()).as_posix())
            for cell, text in zip(nb["cells"], after):
                cell["source"] = text
            if write:
                notebooks.write(file, notebooks.normalise(nb))
    for file in [root() / n for n in ("README.md", "README.ko.md", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md")]:
        if not file.exists():
            continue
        before = file.read_text(encoding="utf8")
        after = rewritten(before, where)
        if before != after:
            changed.append(file.name)
            if write:
                file.write_text(after, encoding="utf8")
    return changed


def main(args) -> int:
    """Rewrite, or with ``--check`` only report, what differs from pyproject.toml."""
    changed = drift(write=not args.check)
    if args.check and changed:
        print(f"out of step with [project.urls]: {', '.join(changed)}. Run `python -m course_utils badges`.")
        return 1
    print("\n".join(f"rewrote {name}" for name in changed) or f"all in step with {'@'.join(origin())}")
    return 0
