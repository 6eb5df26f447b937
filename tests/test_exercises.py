"""The machinery of checks: marks, hints, one sentence for each kind of mistake."""

import sys
import types

import pytest
import torch

from course_utils import CourseError, check, exercises, hint


@pytest.fixture
def exercise(monkeypatch):
    """A made-up lesson with one exercise: double a tensor."""
    module = types.ModuleType("course_utils.checks.made_up")

    def double(answer):
        x = torch.randn(3, 2)
        exercises.same(answer(x), 2 * x, "double(x)", hint="Did you add instead of multiply?")

    module.double, module.HINTS = double, {"double": ["gentle", "stronger"]}
    monkeypatch.setitem(sys.modules, "course_utils.checks.made_up", module)
    monkeypatch.setenv("CI", "false")
    exercises._hints_given.clear()
    return "made_up.double"


def test_right_answer(exercise, capsys):
    assert check(exercise, lambda x: x + x)
    assert capsys.readouterr().out == "✅ made_up.double\n"


def todo(x):
    raise NotImplementedError


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda x: x + 2, "Did you add"),
        (lambda x: (2 * x).T, r"should have shape (3, 2), but it has (2, 3)"),
        (lambda x: (2 * x).double(), "dtype"),
        (lambda x: None, "return"),
        (lambda x: x / 0, "nan or inf"),
        (lambda x: "six", "str"),
        (lambda x: x @ x, "RuntimeError"),
        (todo, "not attempted"),
    ],
)
def test_wrong_answers_get_one_sentence(exercise, capsys, answer, words):
    assert check(exercise, answer) is False
    out = capsys.readouterr().out
    assert words in out and out.count("\n") == 1
    assert out.startswith("⏳" if answer is todo else "❌")


def test_ci_raises(exercise, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(exercises.CheckFailed, match="not attempted"):
        check(exercise, todo)
    assert check(exercise, lambda x: 2 * x)


def test_hints_come_one_by_one(exercise, capsys):
    hint(exercise)
    assert "gentle" in capsys.readouterr().out
    hint(exercise)
    out = capsys.readouterr().out
    assert "stronger" in out and "reveal" in out


@pytest.mark.parametrize("name, words", [("clop.info_nce", "no lesson 'clop'"), ("made_up.triple", "choose one of double")])
def test_unknown_names(exercise, name, words):
    with pytest.raises(CourseError, match=words):
        check(name, todo)


def test_needs_grad_sees_a_detached_answer():
    x = torch.randn(3, requires_grad=True)
    exercises.needs_grad(x**2, {"x": x})
    with pytest.raises(exercises.Wrong, match="no gradient"):
        exercises.needs_grad((x**2).detach(), {"x": x})
    y = torch.randn(3, requires_grad=True)
    with pytest.raises(exercises.Wrong, match="reaches y"):
        exercises.needs_grad(x + y.detach(), {"x": x, "y": y})
