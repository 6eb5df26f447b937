"""Where the course lives is said once, in ``[project.urls]`` of pyproject.toml; this writes it into badges, set-up cells, READMEs and CITATION.cff."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CourseError
from . import notebooks

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


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
        r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[^/\s)]+/(notebooks/[\w./-]+\.ipynb)",
        lambda m: colab(m[1], origin),
        text,
    )
    text = re.sub(r"(course-utils @ git\+)https://github\.com/[\w.-]+/[\w.-]+@[\w.-]+", rf"\g<1>https://github.com/{repository}@{tag}", text)
    name = repository.split("/")[1]
    return re.sub(rf"https://github\.com/(?:OWNER|[\w.-]+)/(?:{re.escape(name)}|vision-models-from-scratch)\b", f"https://github.com/{repository}", text)


def drift(write: bool = False) -> list[str]:
    """Files whose addresses differ from pyproject.toml; with ``write`` they are mended."""
    where = origin()
    changed = []
    for file in [notebooks.find("start_here"), *notebooks.lessons().values()]:
        if not file.exists():
            continue
        nb = notebooks.read(file)
        before = [notebooks.source(c) for c in nb["cells"]]
        after = [rewritten(text, where) for text in before]
        if before != after:
            changed.append(file.relative_to(root()).as_posix())
            for cell, text in zip(nb["cells"], after):
                cell["source"] = text
            if write:
                notebooks.write(file, nb)
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
