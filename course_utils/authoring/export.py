"""From notebook to module: cells tagged ``export`` become ``course_utils/lessons/<lesson>.py``.

The notebook is the only source. ``python -m course_utils export`` writes the modules, ``--check`` says which are out of step. A module is a docstring, the cells' leading
imports put together in one order, and the cells as they stand: no formatter is asked, so the bytes are the same on every machine.
"""

from __future__ import annotations

import ast
import re
import sys
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
        imports += head
        if body:
            bodies.append(body)
    origin = f"{notebook.parent.name}/{notebook.name}"
    header = f'"""Generated from notebooks/{origin} by `python -m course_utils export`. Do not edit: change the notebook."""'
    return "\n\n\n".join(["\n\n".join(filter(None, [header, import_block(imports)])), *bodies]) + "\n"


def _clean(code: str) -> str:
    """Drop the solution markers; refuse what cannot stand in a module."""
    lines = [line for line in code.splitlines() if not re.match(r"\s*### (BEGIN|END) SOLUTION\s*$", line)]
    if any(re.match(r"\s*[%!]", line) for line in lines):
        raise CourseError("A cell tagged export holds a magic or a shell line: move it to a cell of its own.")
    return "\n".join(lines).strip("\n")


def _split_imports(code: str) -> tuple[list[ast.stmt], str]:
    """(leading import statements, the rest of the cell)."""
    head, last = [], 0
    for node in ast.parse(code).body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            break
        head.append(node)
        last = node.end_lineno
    return head, "\n".join(code.splitlines()[last:]).strip("\n")


def import_block(nodes: list[ast.stmt]) -> str:
    """Import statements as one block: standard library, other packages, the course; each module once, names in order."""
    whole = {(alias.name, alias.asname) for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names: dict[str, set] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names.setdefault("." * node.level + (node.module or ""), set()).update((alias.name, alias.asname) for alias in node.names)
    lines = [(_section(module), 0, module, f"import {_spelled(module, alias)}") for module, alias in whole]
    lines += [(_section(module), 1, module, _from(module, found)) for module, found in names.items()]
    sections = {line[0]: [] for line in sorted(lines)}
    for section, _, _, text in sorted(lines):
        sections[section].append(text)
    return "\n\n".join("\n".join(texts) for texts in sections.values())


def _section(module: str) -> int:
    top = module.partition(".")[0]
    return 0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 3 if top in {"", "course_utils"} else 2


def _spelled(name: str, alias: str | None) -> str:
    return f"{name} as {alias}" if alias else name


def _kind(name: str) -> int:
    return 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2


def _from(module: str, names: set) -> str:
    """``from module import A, b``: constants, classes, functions, each in the order of the alphabet; on several lines where one would be long."""
    spelled = [_spelled(*pair) for pair in sorted(names, key=lambda pair: (_kind(pair[0]), pair[0], pair[1] or ""))]
    line = f"from {module} import {', '.join(spelled)}"
    return line if len(line) <= 160 else f"from {module} import (\n" + "".join(f"    {name},\n" for name in spelled) + ")"


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
