"""The practice edition: every exercise fails as "not attempted", nothing before it does, and nothing else is lost. `assignments/` holds it, in step with the notebooks.

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
from course_utils.authoring import assignments, badges, cli, notebooks, run_notebook

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
    changed = [i for i, _ in code(ours) if notebooks.source(ours[i]) != notebooks.source(theirs[i])]
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


@each_lesson
def test_words_are_the_same_and_links_lead_to_the_same_places(lesson, edition):
    ours, theirs = pair(lesson, edition)
    without_links = lambda text: re.sub(r"\]\([^)\s]+\)", "]()", text)  # noqa: E731
    repository, tag = badges.origin()
    home = f"https://github.com/{repository}/blob/{tag}"
    for a, b in zip(ours, theirs):
        if a["cell_type"] != "markdown":
            continue
        before, after = notebooks.source(a), notebooks.source(b)
        assert without_links(before) == without_links(after)
        for link in re.findall(r"\]\(([^)\s]+\.(?:ipynb|md)[^)\s]*)\)", after):
            if link.startswith(home):
                assert (ROOT / link.removeprefix(home + "/").split("#")[0]).is_file()
            elif not re.match(r"[a-z]+:", link):
                assert (edition / lesson.path.removeprefix("notebooks/")).parent.joinpath(link.split("#")[0]).is_file(), "a neighbour in the edition"


def test_one_notebook_for_every_lesson_that_stands(edition):
    assert {p.relative_to(edition).as_posix() for p in edition.rglob("*") if p.is_file()} == {x.path.removeprefix("notebooks/") for x in STANDING}


# The edition that the repository holds


def test_it_is_in_step():
    assert assignments.drift(assignments.folder()) == [], "run `make assignments`"


@each_lesson
def test_it_is_small_and_its_links_are_good(lesson):
    file = assignments.folder() / lesson.path.removeprefix("notebooks/")
    assert file.stat().st_size <= 100_000
    text = "\n".join(notebooks.source(c) for c in notebooks.read(file)["cells"] if c["cell_type"] == "markdown")
    links = [x.split("#")[0] for x in re.findall(r"\]\(([^)\s]+\.(?:ipynb|md)[^)\s]*)\)", text) if not re.match(r"[a-z]+:", x)]
    assert links and [x for x in links if not (file.parent / x).is_file()] == []


def test_what_is_out_of_step_is_named(tmp_path, capsys):
    files = assignments.write(tmp_path)
    assert assignments.drift(tmp_path) == []
    files[0].write_text(files[0].read_text(encoding="utf8").replace("NotImplementedError", "ValueError"), encoding="utf8")
    files[1].unlink()
    (tmp_path / "gone.ipynb").write_text("{}")
    wanted = sorted([*(f.relative_to(tmp_path).as_posix() for f in files[:2]), "gone.ipynb"])
    assert assignments.drift(tmp_path) == wanted
    assert cli.main(["assignments", "--out", str(tmp_path), "--check"]) == 1
    assert ", ".join(wanted) in capsys.readouterr().out


def test_a_link_out_of_the_edition_is_rehomed():
    here, practice = "notebooks/2_generative/02_vae.ipynb", {"notebooks/1_multimodal/02_clip.ipynb"}
    text = "[1](../1_multimodal/02_clip.ipynb#x) [2](../00_start_here.ipynb) [3](../../README.md#a) [4](https://x.org/a.md) [5](#b) $[i](x)$"
    assert assignments.rehomed(text, here, "../..", practice) == (
        "[1](../1_multimodal/02_clip.ipynb#x) [2](../../notebooks/00_start_here.ipynb) [3](../../README.md#a) [4](https://x.org/a.md) [5](#b) $[i](x)$"
    )


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
