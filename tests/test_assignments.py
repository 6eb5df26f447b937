"""The student edition: every exercise fails as "not attempted", nothing before it does, and nothing else is lost.

Each lesson is run up to its first exercise and through that exercise's check. For the later exercises the student's cell runs among the lesson's own functions;
that what lies between is sound needs no second run: those cells are the same as in the course's notebook, which the notebook tests execute whole.
"""

import ast
import importlib
import re

import pytest
from conftest import ROOT

from course_utils import CourseError, curriculum
from course_utils import exercises as checking
from course_utils.authoring import assignments, notebooks, run_notebook

STANDING = [x for x in curriculum.ready() if (ROOT / x.path).exists() and (ROOT / f"course_utils/checks/{x.name}.py").exists()]
each_lesson = pytest.mark.parametrize("lesson", STANDING, ids=lambda x: x.name)


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    out = tmp_path_factory.mktemp("assignments")
    assignments.write(out)
    return out


def pair(lesson, edition):
    ours = notebooks.read(ROOT / lesson.path)["cells"]
    theirs = notebooks.read(edition / lesson.path.removeprefix("notebooks/"))["cells"]
    return ours, theirs


def code(cells):
    return [(i, notebooks.source(c)) for i, c in enumerate(cells) if c["cell_type"] == "code"]


def exercises(cells):
    """(position of the exercise, its name, position of its check)."""
    for i, text in code(cells):
        if asked := re.match(r'check\("\w+\.(\w+)"', text):
            yield max(j for j, other in code(cells) if j < i), asked[1], i


@each_lesson
def test_nothing_is_lost(lesson, edition):
    ours, theirs = pair(lesson, edition)
    assert [(c["id"], c["cell_type"], c["metadata"]) for c in ours] == [(c["id"], c["cell_type"], c["metadata"]) for c in theirs]
    changed = [i for i, (a, b) in enumerate(zip(ours, theirs)) if notebooks.source(a) != notebooks.source(b)]
    assert changed == [i for i, _, _ in exercises(ours)]
    for i in changed:
        before, after = notebooks.source(ours[i]), notebooks.source(theirs[i])
        assert after.count("raise NotImplementedError(") == before.count("### BEGIN SOLUTION") >= 1
        kept = re.sub(r"( *)### BEGIN SOLUTION\n.*?### END SOLUTION", "", before, flags=re.S)
        assert [line for line in kept.splitlines() if line.strip()] == [
            line for line in after.splitlines() if line.strip() and "NotImplementedError" not in line
        ]


@each_lesson
def test_no_solution_and_no_output_is_left(lesson, edition):
    _, theirs = pair(lesson, edition)
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in theirs if c["cell_type"] == "code")
    text = "\n".join(t for _, t in code(theirs))
    assert "SOLUTION" not in text
    assert f"course_utils.lessons.{lesson.name}" not in text and f"from course_utils.lessons import {lesson.name}" not in text, "it imports its own solution"
    assert not re.search(r"^\s*reveal\(", text, re.M)


@each_lesson
def test_the_first_exercise_fails_and_nothing_before_it(lesson, edition, under_ci, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "quick")
    _, theirs = pair(lesson, edition)
    first = min(check for _, _, check in exercises(theirs))
    space = {"__name__": "student", "display": lambda *a, **k: None}
    for i, text in code(theirs):
        if i < first:
            run_notebook._execute(run_notebook.plain(text), f"{lesson.name}[cell {i}]", space)
    with pytest.raises(checking.CheckFailed, match="⏳.*not attempted"):
        run_notebook._execute(notebooks.source(theirs[first]), f"{lesson.name}[cell {first}]", space)


@each_lesson
def test_every_exercise_is_not_attempted_in_it_and_passes_in_ours(lesson, edition, under_ci):
    ours, theirs = pair(lesson, edition)
    module = importlib.import_module(f"course_utils.lessons.{lesson.name}")
    found = list(exercises(theirs))
    assert len(found) >= 3
    for exercise, name, asked in found:
        for cells, passes in ((theirs, False), (ours, True)):
            space = {**vars(module), "check": checking.check, "__name__": "student"}
            space.pop(name)
            exec(compile(notebooks.source(cells[exercise]), f"{lesson.name}.{name}", "exec"), space)
            if passes:
                exec(notebooks.source(cells[asked]), space)
            else:
                with pytest.raises(checking.CheckFailed, match=f"⏳ {lesson.name}.{name}: not attempted"):
                    exec(notebooks.source(cells[asked]), space)


@each_lesson
def test_outside_ci_a_learner_sees_one_sentence_and_goes_on(lesson, edition, outside_ci, capsys):
    _, theirs = pair(lesson, edition)
    module = importlib.import_module(f"course_utils.lessons.{lesson.name}")
    for exercise, name, _ in exercises(theirs):
        space = dict(vars(module))
        exec(compile(notebooks.source(theirs[exercise]), name, "exec"), space)
        assert checking.check(f"{lesson.name}.{name}", space[name]) is False
        out = capsys.readouterr().out
        assert out.startswith("⏳") and out.count("\n") == 1


def test_the_folders_are_the_same(edition):
    ours = {p.relative_to(notebooks.folder()) for p in notebooks.folder().rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert {p.relative_to(edition) for p in edition.rglob("*") if p.is_file()} == ours


# The replacement itself


def test_a_solution_is_replaced_at_its_own_depth():
    before = (
        "class Block(nn.Module):\n"
        "    def forward(self, x):\n"
        '        """(B, D) → (B, D)."""\n'
        "        ### BEGIN SOLUTION\n"
        "        def inner(y):\n            return y\n\n"
        "        return inner(x)\n"
        "        ### END SOLUTION\n\n"
        "    def size(self):\n"
        "        n = 2\n"
        "        ### BEGIN SOLUTION\n        n += 1\n        ### END SOLUTION\n"
        "        return n\n"
    )
    after = assignments.without_solutions(before)
    assert after.count("raise NotImplementedError") == 2 and "inner" not in after and "n += 1" not in after
    assert '        raise NotImplementedError("Write forward here' in after and '        raise NotImplementedError("Write size here' in after
    ast.parse(after)


@pytest.mark.parametrize(
    "text, words",
    [
        ("def f():\n    ### BEGIN SOLUTION\n    pass", "never ends"),
        ("def f():\n    pass\n    ### END SOLUTION", "never began"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", "inside another"),
    ],
)
def test_markers_without_a_partner(text, words):
    with pytest.raises(CourseError, match=words):
        assignments.without_solutions(text)
