"""The practice edition: every solution replaced by ``raise NotImplementedError``, outputs cleared, all else as it is. It is kept in ``assignments/``."""

from __future__ import annotations

import ast
import os
import posixpath
import re
from pathlib import Path

from .. import curriculum
from ..errors import CourseError
from . import badges, notebooks

_BEGIN = re.compile(r"^(\s*)### BEGIN SOLUTION\s*$")
_END = re.compile(r"^\s*### END SOLUTION\s*$")
_DEF = re.compile(r"^\s*(?:def|class) (\w+)")


def without_solutions(code: str) -> str:
    """A cell with each solution replaced by one ``raise NotImplementedError("...")`` at the marker's indentation.

    Raises CourseError where a marker has no partner.
    """
    out, name, inside = [], "this", False
    for line in code.split("\n"):
        if found := _DEF.match(line):
            name = found[1] if not inside else name
        if begin := _BEGIN.match(line):
            if inside:
                raise CourseError("A solution begins inside another one: each ### BEGIN SOLUTION needs its ### END SOLUTION.")
            inside = True
            out.append(f'{begin[1]}raise NotImplementedError("Write {name} here, then run this cell and the check below.")')
        elif _END.match(line):
            if not inside:
                raise CourseError("A solution ends that never began: each ### END SOLUTION needs its ### BEGIN SOLUTION.")
            inside = False
        elif not inside:
            out.append(line)
    if inside:
        raise CourseError("A solution never ends: each ### BEGIN SOLUTION needs its ### END SOLUTION.")
    return "\n".join(out)


def student(nb: dict) -> dict:
    """The practice edition of a notebook (as parsed JSON): same cells, same ids, solutions and outputs gone."""
    cells = []
    for cell in nb["cells"]:
        cell = dict(cell)
        if cell["cell_type"] == "code":
            code = notebooks.source(cell)
            try:
                cell["source"] = without_solutions(code)
                if cell["source"] != code:
                    ast.parse(cell["source"])
            except (CourseError, SyntaxError) as e:
                raise CourseError(f"Cell {cell.get('id', '?')}: {e}") from e
            cell["outputs"], cell["execution_count"] = [], None
        cells.append(cell)
    return {**nb, "cells": cells}


def rehomed(text: str, here: str, home: str, practice: set[str]) -> str:
    """A text cell of the notebook ``here`` as it reads in the practice edition.

    ``here`` and the names in ``practice`` (the lessons that the edition has) are paths in the repository, as in ``notebooks/2_generative/02_vae.ipynb``.
    A relative link to one of these lessons stays as it is, since the folders are alike; any other leads to the file in the repository, which is found at ``home``.
    """

    def moved(link: re.Match) -> str:
        address, _, anchor = link[1].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), address))
        if not address or target in practice or not (badges.root() / target).is_file():  # an anchor, a neighbour, a full address, a formula
            return link[0]
        return f"]({home}/{target}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def edition(out: Path) -> dict[Path, str]:
    """File → content of the practice edition under ``out``: one notebook for every lesson that stands, in the folders of ``notebooks/``."""
    root = badges.root()
    lessons = [x for x in curriculum.ready() if (root / x.path).exists()]
    practice = {x.path for x in lessons}
    repository, tag = badges.origin()
    inside = out.resolve().is_relative_to(root)
    files = {}
    for lesson in lessons:
        target = out / lesson.path.removeprefix("notebooks/")
        home = os.path.relpath(root, target.resolve().parent).replace(os.sep, "/") if inside else f"https://github.com/{repository}/blob/{tag}"
        try:
            nb = student(notebooks.read(root / lesson.path))
        except CourseError as e:
            raise CourseError(f"{lesson.stem}.ipynb: {e}") from e
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = rehomed(notebooks.source(cell), lesson.path, home, practice)
        files[target] = notebooks.text(nb)
    return files


def write(out: Path) -> list[Path]:
    """Write the practice edition under ``out``; returns its files."""
    files = edition(out)
    for target, content in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf8")
    return list(files)


def drift(out: Path) -> list[str]:
    """Notebooks under ``out`` that are missing, out of step, or left over from a lesson that is gone."""
    files = edition(out)
    stale = {f for f, content in files.items() if not f.exists() or f.read_text(encoding="utf8") != content}
    there = {f for f in out.rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts}
    return sorted(f.relative_to(out).as_posix() for f in stale | (there - set(files)))


def folder() -> Path:
    """Where the repository keeps the practice edition."""
    return badges.root() / "assignments"


def main(args) -> int:
    """``python -m course_utils assignments [--out FOLDER] [--check]``."""
    out = Path(args.out) if args.out else folder()
    if args.check:
        stale = drift(out)
        print(f"out of step: {', '.join(stale)}. Run `python -m course_utils assignments`." if stale else "all in step")
        return bool(stale)
    for file in write(out):
        print(f"wrote {file}")
    return 0
