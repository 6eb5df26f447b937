"""The generated modules: importable, free of side effects, and made only of what the notebooks export."""

import ast
import json

import pytest
from conftest import ROOT

from course_utils.authoring import cli as command
from course_utils.authoring import export, notebooks

MODULES = sorted(p for p in (ROOT / "course_utils" / "lessons").glob("*.py") if p.stem != "__init__")
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)


@each_module
def test_a_module_only_defines(path):
    """Imports, definitions and constants: importing a lesson must not train, print or read a file."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    body = ast.parse(path.read_text(encoding="utf8")).body
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))).startswith("Generated from")
    odd = [ast.unparse(n)[:60] for n in body[1:] if not isinstance(n, allowed)]
    assert odd == []
    names = {n.id for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))) for n in [node] if isinstance(n, ast.Name)}
    assert not names & {"run", "cfg"}, "a name of the notebook that the module does not have"


@each_module
def test_what_is_exported_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf8"))
    bare = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_") and not ast.get_docstring(n)]
    assert bare == [], "exported functions and classes have a docstring with shapes and source"


def test_importing_all_lessons_is_silent(python):
    names = [p.stem for p in MODULES]
    done = python(f"import importlib\nfor n in {names!r}: importlib.import_module('course_utils.lessons.' + n)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_module_without_a_notebook():
    assert {p.stem for p in MODULES} <= set(notebooks.lessons())


def test_check_reports_drift_and_changes_nothing(tmp_path, monkeypatch, capsys):
    if not notebooks.lessons():
        pytest.skip("no notebook yet")
    monkeypatch.setattr(export, "LESSONS", tmp_path)
    name = next(iter(notebooks.lessons()))
    assert command.main(["export", name, "--check"]) == 1
    assert name in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert command.main(["export", name]) == 0 and (tmp_path / f"{name}.py").exists()
    assert command.main(["export", name, "--check"]) == 0


def made(tmp_path, *cells):
    folder = tmp_path / "9_made_up"
    folder.mkdir(exist_ok=True)
    file = folder / "01_made_up.ipynb"
    stored = [{"cell_type": "code", "metadata": {"tags": ["export"]}, "source": c} for c in cells]
    file.write_text(json.dumps({"cells": stored}), encoding="utf8")
    return file


MODULE = '''"""Generated from notebooks/9_made_up/01_made_up.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math
import re
from collections import Counter, defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.lessons.clip import BPE, CLIP, embed


SIZE = 3


def f( x ):  # as the notebook has it
    return x


class A:
    pass
'''


def test_imports_come_together_and_cells_stay_as_they_are(tmp_path):
    file = made(
        tmp_path,
        "import torch\nimport torch.nn.functional as F\nfrom course_utils.lessons.clip import embed\n\nSIZE = 3\n\n\ndef f( x ):  # as the notebook has it\n    return x",
        "from torch import nn\nimport torch\nimport re, math\n",
        "from torch import Tensor\nfrom collections import defaultdict, Counter\nfrom course_utils.lessons.clip import (\n    CLIP,\n    BPE,\n)\nimport numpy as np\n\nclass A:\n    pass\n",
    )
    assert export.module_text(file) == MODULE


def test_a_long_import_is_wrapped(tmp_path):
    names = [f"a_rather_long_name_{i}" for i in range(10)]
    text = export.module_text(made(tmp_path, f"from torch import {', '.join(names)}"))
    assert "from torch import (\n    a_rather_long_name_0,\n" in text and max(map(len, text.splitlines())) <= 160
    compile(text, "made_up", "exec")


def test_the_bytes_do_not_depend_on_a_formatter(tmp_path, monkeypatch):
    """No other program is started: the modules are the same where ruff is missing."""
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("export starts a program"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert export.export(check=True) == []
