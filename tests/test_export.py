"""The generated modules: importable, free of side effects, and made only of what the notebooks export."""

import ast

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
