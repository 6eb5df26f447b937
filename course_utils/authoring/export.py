"""From notebook to module: cells tagged ``export`` become ``course_utils/lessons/<lesson>.py``.

The notebook is the only source. ``python -m course_utils export`` writes the modules, ``--check`` says which are out of step.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CourseError
from . import notebooks

LESSONS = Path(__file__).resolve().parent.parent / "lessons"


def module_text(notebook: Path) -> str:
    """The module that a notebook's exported cells make."""
    cells = [c for c in notebooks.read(notebook)["cells"] if c["cell_type"] == "code" and "export" in c["metadata"].get("tags", [])]
    parts = [_clean(notebooks.source(c)) for c in cells]
    imports, bodies = [], []
    for part in parts:
        head, body = _split_imports(part)
        imports += [line for line in head if line not in imports]
        if body:
            bodies.append(body)
    origin = f"{notebook.parent.name}/{notebook.name}"
    header = f'"""Generated from notebooks/{origin} by `python -m course_utils export`. Do not edit: change the notebook."""\n\n'
    text = header + "\n".join(imports) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"
    return _format(text)


def _clean(code: str) -> str:
    """Drop the solution markers; refuse what cannot stand in a module."""
    lines = [line for line in code.splitlines() if not re.match(r"\s*### (BEGIN|END) SOLUTION\s*$", line)]
    if any(re.match(r"\s*[%!]", line) for line in lines):
        raise CourseError("A cell tagged export holds a magic or a shell line: move it to a cell of its own.")
    return "\n".join(lines).strip("\n")


def _split_imports(code: str) -> tuple[list[str], str]:
    """Leading import statements (and comments above them stay with the body)."""
    import ast

    lines = code.splitlines()
    head, last = [], 0
    for node in ast.parse(code).body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            break
        head.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        last = node.end_lineno
    return head, "\n".join(lines[last:]).strip("\n")


def _format(text: str) -> str:
    """ruff's import order and format when ruff is there (it is with the dev extra), else the text as it is."""
    import shutil
    import subprocess
    import sys

    beside = Path(sys.executable).with_name("ruff")
    ruff = str(beside) if beside.exists() else shutil.which("ruff")
    if not ruff:
        return text
    name = str(LESSONS / "generated.py")
    for command in (["check", "--select", "I", "--fix", "--quiet", "--stdin-filename", name, "-"], ["format", "--quiet", "--stdin-filename", name, "-"]):
        done = subprocess.run([ruff, *command], input=text, capture_output=True, text=True)
        text = done.stdout or text
    return text


def export(names: list[str] | None = None, check: bool = False) -> list[str]:
    """Write (or with ``check`` compare) the modules; returns the names that changed or are out of step."""
    changed = []
    for name, notebook in notebooks.lessons().items():
        if names and name not in names:
            continue
        text, target = module_text(notebook), LESSONS / f"{name}.py"
        if not target.exists() or target.read_text(encoding="utf8") != text:
            changed.append(name)
            if not check:
                target.write_text(text, encoding="utf8")
    return changed
