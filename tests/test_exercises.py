"""The machinery of checks: marks, hints, guarded calls, gradients, no state, and one true sentence for each kind of mistake."""

import sys
import time
import types

import pytest
import torch
from torch import nn

from course_utils import CourseError, check, exercises, hint
from course_utils.exercises import Wrong, agree, examine


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
        (lambda x: x / 0, "inf"),
        (lambda x: 0 * x / 0, "nan"),
        (lambda x: "six", "str"),
        (lambda x: x @ x, "your code stopped with RuntimeError"),
        (lambda x: x.mul_(2), "changes its argument x in place"),
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
    with pytest.raises(Wrong, match="no gradient"):
        exercises.needs_grad((x**2).detach(), {"x": x})
    y = torch.randn(3, requires_grad=True)
    with pytest.raises(Wrong, match="reaches y"):
        exercises.needs_grad(x + y.detach(), {"x": x, "y": y})


# The guard


def refused(test, answer, words):
    with pytest.raises(Wrong, match=words) as error:
        examine(test, answer)
    assert "\n" not in str(error.value)


def endless(x):
    while True:
        pass


def stubborn(x):
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass


@pytest.mark.parametrize("answer", [endless, stubborn])
def test_an_answer_that_never_returns_is_stopped(monkeypatch, answer):
    monkeypatch.setattr(exercises, "PATIENCE", 0.3)
    began = time.time()
    refused(lambda a: a(1), answer, "never ends")
    assert time.time() - began < 5
    time.sleep(1.2)  # nothing arrives late


def test_errors_of_the_check_and_of_the_answer_are_told_apart():
    refused(lambda a: a(1)[0], lambda x: x, "cannot work with what it returned")
    refused(lambda a: a(1), lambda x: x[0], "your code stopped with TypeError")


def test_inputs_are_the_courses():
    x = torch.randn(4, requires_grad=True)
    kept = x.detach().clone()
    for given, answer in (
        ((x,), lambda q: q.zero_()),
        (([1, 2],), lambda q: q.append(3)),
        (({"a": x},), lambda q: q.pop("a")),
        (((x, [x.detach()]),), lambda q: q[1][0].add_(1)),
        ((x.detach().numpy(),), lambda q: q.sort()),
    ):
        refused(lambda a, given=given: a(*given), answer, "changes its argument q in place")
    assert torch.equal(x, kept)
    examine(lambda a: a(torch.tensor([float("nan")])), lambda q: q + 1)  # nan is equal to itself here


def test_a_check_may_allow_a_change():
    @exercises.may_change("q")
    def test(answer):
        answer(torch.ones(2))

    examine(test, lambda q: q.zero_())


def test_methods_of_a_class_are_guarded():
    class Layer(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.w = nn.Linear(d, d)

        def inner(self, x):
            return x.mul_(2)

        def forward(self, x):
            return self.w(self.inner(x))

    class Clean(Layer):
        def inner(self, x):
            return x * 2

    class Local(Layer):  # changes only what it made itself
        def forward(self, x):
            return self.w(self.inner(x.clone()))

    test = lambda answer: answer(3)(torch.randn(2, 3))  # noqa: E731
    refused(test, Layer, "changes its argument x in place")
    examine(test, Clean)
    examine(test, Local)


# agree


def draw(g):
    return {"x": torch.randn(3, 4, generator=g), "y": torch.randn(3, 4, generator=g)}


def product(x, y):
    return x * y.sin()


_kept = {}


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda x, y: x * y, "off by"),
        (lambda x, y: x + y, "You added"),
        (lambda x, y: (x * y.sin()).detach(), "no gradient flows"),
        (lambda x, y: x * y.sin().detach(), "no gradient reaches y"),
        (lambda x, y: x * (y.sin() + y - y.detach()), "not the right gradient with respect to y"),
        (lambda x, y: _kept.setdefault("result", x * y.sin()), "first call's result"),
        (lambda x, y: None, "return"),
        (lambda x, y: (x * y.sin()).sum(), "shape"),
    ],
)
def test_agree_refuses(answer, words):
    _kept.clear()
    refused(lambda a: agree(a, product, draw, grad=("x", "y"), suspects=[("You added.", lambda x, y: x + y)]), answer, words)


def test_agree_accepts_other_ways_and_other_kinds_of_output():
    examine(lambda a: agree(a, product, [draw], grad=("x", "y")), lambda a, b: torch.einsum("ij,ij->ij", a, torch.cos(b - torch.pi / 2)))
    examine(lambda a: agree(a, lambda x, y: (x, {"sum": y.sum().item()}), draw), lambda x, y: [x + 0, {"sum": float(y.sum())}])
    refused(lambda a: agree(a, lambda x, y: (x, y), draw), lambda x, y: (x, x), "value 2 of 2")
    refused(lambda a: agree(a, lambda x, y: y.sum().item(), draw), lambda x, y: y.sum(), "plain number")


def test_a_gradient_that_should_not_arrive():
    refused(lambda a: agree(a, lambda x, y: x + y.detach(), draw, grad=("x", "y")), lambda x, y: x + y, "reaches y, which it should not")


def test_an_input_without_elements_has_no_gradient_to_compare():
    examine(lambda a: agree(a, product, lambda g: {"x": torch.zeros(0, 3), "y": torch.zeros(0, 3)}, grad=("x", "y")), product)


def test_same_state():
    a, b = nn.Linear(2, 3), nn.Linear(2, 3)
    with pytest.raises(Wrong, match="weight"):
        exercises.same_state(a, b)
    b.load_state_dict(a.state_dict())
    exercises.same_state(a, b)


def test_a_parameter_that_learns_nothing_is_named():
    net, x = nn.Linear(3, 2), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def held(got):
        exercises.same_learning(net, got, x @ net.weight.T + net.bias)

    held(net(x))
    with pytest.raises(Wrong, match="no gradient reaches bias"):
        held(x @ net.weight.T + net.bias.detach())
    with pytest.raises(Wrong, match="the gradient of weight"):
        held(x @ (net.weight + net.weight.detach()).T / 2 + net.bias)
