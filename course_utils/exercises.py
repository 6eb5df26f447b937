"""Exercise checks: ``check("clip.info_nce", info_nce)``, graded hints, and the course's own solution for a learner who is stuck.

A check is a function with the exercise's name in ``course_utils/checks/<lesson>.py``. It calls the learner's answer on inputs of its own, compares with a closed form or a
brute-force computation, and raises :class:`Wrong` with the sentence that helps most.
"""

from __future__ import annotations

import importlib
import inspect

from .errors import CourseError, under_ci


class Wrong(AssertionError):
    """The answer is wrong; the message names the likely mistake."""


class CheckFailed(CourseError):
    """Under CI: a check did not pass."""


_hints_given: dict[str, int] = {}


def _find(name: str):
    """(module of checks, function) of the exercise ``lesson.exercise``."""
    lesson, _, exercise = name.partition(".")
    try:
        module = importlib.import_module(f"course_utils.checks.{lesson}")
    except ModuleNotFoundError as e:
        if e.name != f"course_utils.checks.{lesson}":
            raise
        raise CourseError(f"There is no lesson {lesson!r} with checks: the name is written lesson.exercise, as in clip.info_nce.") from e
    known = [n for n in getattr(module, "HINTS", {})]
    if exercise not in known:
        raise CourseError(f"{lesson} has no exercise {exercise!r}: choose one of {', '.join(known)}.")
    return module, getattr(module, exercise)


def check(name: str, answer) -> bool:
    """Hold an answer against its check. Prints ✅, ❌ with a hint, or ⏳ when it is not attempted; raises under CI unless it passes."""
    _, test = _find(name)
    try:
        test(answer)
    except NotImplementedError:
        return _report("⏳", name, f'not attempted yet. Write the body above and run both cells; `hint("{name}")` helps.')
    except Wrong as e:
        return _report("❌", name, str(e))
    except Exception as e:  # the learner's own code broke
        return _report("❌", name, f"your code stopped with {type(e).__name__}: {_first_line(e)}")
    print(f"✅ {name}")
    return True


def _report(mark: str, name: str, message: str) -> bool:
    if under_ci():
        raise CheckFailed(f"{mark} {name}: {message}")
    print(f"{mark} {name}: {message}")
    return False


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no message"


def hint(name: str) -> None:
    """Print the next hint of an exercise; one more each call, from gentle to nearly all."""
    module, _ = _find(name)
    hints = module.HINTS[name.partition(".")[2]]
    n = min(_hints_given.get(name, 0) + 1, len(hints))
    _hints_given[name] = n
    for i, text in enumerate(hints[:n], 1):
        print(f"Hint {i} of {len(hints)}: {text}")
    if n == len(hints):
        print(f'That was the last one. `reveal("{name}")` shows the course\'s own solution.')


def reveal(name: str) -> None:
    """Show the course's own solution of an exercise."""
    _find(name)
    lesson, _, exercise = name.partition(".")
    solution = getattr(importlib.import_module(f"course_utils.lessons.{lesson}"), exercise)
    code = inspect.getsource(solution)
    try:
        from IPython.display import Code, display

        display(Code(code, language="python"))
    except ImportError:
        print(code)


# What checks are made of


def same(got, want, what: str = "the result", hint: str = "", tol: float = 1e-5):
    """Raise :class:`Wrong` unless ``got`` is a tensor with the shape, kind and values of ``want``."""
    import torch

    want = torch.as_tensor(want)
    if not isinstance(got, torch.Tensor):
        if got is None:
            raise Wrong(f"{what} is None: does your function end in `return ...`?")
        if want.ndim or not isinstance(got, (int, float)):
            raise Wrong(f"{what} should be a tensor of shape {tuple(want.shape)}, but it is a {type(got).__name__}.")
        got = torch.as_tensor(got, dtype=want.dtype)
    if got.shape != want.shape:
        raise Wrong(f"{what} should have shape {tuple(want.shape)}, but it has {tuple(got.shape)}.{_space(hint)}")
    if got.dtype != want.dtype:
        raise Wrong(f"{what} should keep the dtype {want.dtype}, but it is {got.dtype}.")
    if got.device != want.device:
        raise Wrong(f"{what} should stay on {want.device}, but it is on {got.device}: create new tensors with device=x.device.")
    got, want = got.detach(), want.detach()
    if not torch.isfinite(got.double()).all() and torch.isfinite(want.double()).all():
        raise Wrong(f"{what} holds nan or inf.{_space(hint)}")
    error = (got.double() - want.double()).abs().max().item() if want.numel() else 0.0
    limit = tol * max(1.0, want.double().abs().max().item() if want.numel() else 1.0)
    if error > limit:
        raise Wrong(f"{what} is off by {error:.2g} at most.{_space(hint)}")


def right(condition: bool, message: str):
    """Raise :class:`Wrong` with ``message`` unless the condition holds."""
    if not condition:
        raise Wrong(message)


def needs_grad(output, inputs: dict, what: str = "the result"):
    """Raise :class:`Wrong` unless a finite, non-zero gradient of ``output.sum()`` reaches every tensor of ``inputs`` (name → tensor with requires_grad)."""
    import torch

    if not getattr(output, "requires_grad", False):
        raise Wrong(f"no gradient flows through {what}: was something detached, turned into a number, or computed under no_grad?")
    grads = torch.autograd.grad(output.sum(), list(inputs.values()), allow_unused=True)
    for name, grad in zip(inputs, grads):
        if grad is None or not torch.isfinite(grad).all() or grad.abs().max() == 0:
            raise Wrong(f"no useful gradient of {what} reaches {name}: was it detached?")


def _space(text: str) -> str:
    return f" {text}" if text else ""
