"""Whose room is whose: what a learner's notebook calls, what only an author calls, what is generated, and who may import from whom."""

import ast
import re

import pytest
from conftest import ROOT

from course_utils.authoring import run_notebook

PACKAGE = ROOT / "course_utils"
DOOR = "course.py"  # the start page's door: the only learner's module that opens authoring
FILES = sorted(PACKAGE.rglob("*.py"))
LEARNERS = [f for f in FILES if "authoring" not in f.parts and f.name not in {DOOR, "__main__.py"}]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def imported(code, package=""):
    """Every module and name that a piece of code imports, with dots resolved: "course_utils.data", "course_utils.data.path"."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(filter(None, [*parts[: len(parts) - node.level + 1], node.module])) if node.level else node.module
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def of_file(path):
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imported(path.read_text(encoding="utf8"), package)


def of_notebook(path):
    return set().union(*(imported(code) for _, code in run_notebook.cells(path)))


def within(names, package):
    return sorted(n for n in names if n == package or n.startswith(package + "."))


name_of = lambda path: path.relative_to(ROOT).as_posix()  # noqa: E731


@pytest.mark.parametrize("path", LEARNERS, ids=name_of)
def test_a_learners_module_imports_nothing_of_the_authors(path):
    assert within(of_file(path), "course_utils.authoring") == []


def test_the_door_opens_on_demand_only():
    tree = ast.parse((PACKAGE / DOOR).read_text(encoding="utf8"))
    top = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
    assert within(imported(ast.unparse(top), "course_utils"), "course_utils") == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_imports_nothing_of_the_authors(path):
    found = of_notebook(path)
    assert within(found, "course_utils.authoring") == [] and within(found, "course_utils.checks") == [] and within(found, "tests") == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "lessons").glob("*.py")), ids=name_of)
def test_a_lesson_imports_no_check_no_test_no_author(path):
    found = of_file(path)
    assert [n for room in ("course_utils.checks", "course_utils.authoring", "course_utils.exercises", "tests", "notebooks") for n in within(found, room)] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "show").glob("*.py")), ids=name_of)
def test_pictures_know_nothing_of_training_and_lessons(path):
    found = of_file(path)
    assert [n for room in ("train", "lesson", "exercises", "weights", "lessons", "checks") for n in within(found, f"course_utils.{room}")] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "packs").glob("*.py")), ids=name_of)
def test_a_pack_knows_nothing_of_training_and_lessons(path):
    found = of_file(path)
    assert [n for room in ("train", "lesson", "weights", "lessons", "checks") for n in within(found, f"course_utils.{room}")] == []


def test_who_stands_where():
    """New rooms are made on purpose: a module of the package's top is one that a notebook calls, or serves one that is."""
    top = {f.stem for f in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert top == {"course", "curriculum", "data", "errors", "exercises", "lesson", "processor", "scoreboard", "train", "weights"}
    rooms = {f.name for f in PACKAGE.iterdir() if f.is_dir() and f.name != "__pycache__"}
    assert rooms == {"authoring", "checks", "lessons", "packs", "show"}


PRIVATE = re.compile(r"(^|\.)_(?!_)\w")


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_no_test_imports_another_librarys_private_module(path):
    """Where a library has a public way, a test takes it: private names change without notice."""
    own = ("course_utils", "tests", "conftest")
    assert [n for n in of_file(path) if PRIVATE.search(n) and not n.startswith(own)] == []
