"""The student edition: every solution replaced by ``raise NotImplementedError``, outputs cleared, all else as it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ..errors import CourseError
from . import notebooks

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
    """The student edition of a notebook (as parsed JSON): same cells, same ids, solutions and outputs gone."""
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


def write(out: Path) -> list[Path]:
    """Write the student edition of every notebook under ``out``, in the folders of ``notebooks/``; returns the files."""
    written = []
    for source in sorted(notebooks.folder().rglob("*.ipynb")):
        if ".ipynb_checkpoints" in source.parts:
            continue
        target = out / source.relative_to(notebooks.folder())
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            notebooks.write(target, student(notebooks.read(source)))
        except CourseError as e:
            raise CourseError(f"{source.name}: {e}") from e
        written.append(target)
    return written


def main(args) -> int:
    """``python -m course_utils assignments [--out FOLDER]``."""
    out = Path(args.out) if args.out else notebooks.folder().parent / "build" / "assignments"
    for file in write(out):
        print(f"wrote {file}")
    return 0
