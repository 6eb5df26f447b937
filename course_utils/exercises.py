"""Exercise checks: ``check("clip.info_nce", info_nce)``, graded hints, and the course's own solution for a learner who is stuck.

A check is a function with the exercise's name in ``course_utils/checks/<lesson>.py``. It calls the learner's answer on inputs of its own, compares with a closed form or a
brute-force computation, and raises :class:`Wrong` with the sentence that helps most. Every check goes through :func:`examine`: each call of the answer gets its own copies of its
arguments, an answer that changes one is told which, one that never returns is stopped, and an error inside the answer is kept apart from a result that cannot be read.
:func:`agree` is what most checks are made of: values, gradients input by input, several draws, no state.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import functools
import importlib
import inspect
import threading

from .errors import CourseError, say, under_ci

PATIENCE = 20.0  # seconds that an answer may take in all


class Wrong(AssertionError):
    """The answer is wrong; the message says what differs, and names a cause only where the check has verified it."""


class CheckFailed(CourseError):
    """Under CI: a check did not pass."""


class AnswerStopped(Exception):
    """An error that was raised inside the learner's code."""


class TooSlow(BaseException):
    """Raised inside an answer that does not come to an end."""


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
    """Hold an answer against its check. Prints ✅, ❌ with what differs, or ⏳ when it is not attempted; raises under CI unless it passes."""
    _, test = _find(name)
    try:
        examine(test, answer)
    except NotImplementedError:
        return _report("⏳", name, f'not attempted yet. Write the body above and run both cells; `hint("{name}")` helps.')
    except Wrong as e:
        return _report("❌", name, str(e))
    say(f"✅ {name}")
    return True


def examine(test, answer) -> None:
    """Run one check on an answer, guarded as the module's text says; raises Wrong, or NotImplementedError where the answer does."""
    allowed = getattr(test, "may_change", ())
    stop = _deadline(PATIENCE)
    try:
        test(guarded(answer, allowed))
    except (Wrong, NotImplementedError):
        raise
    except TooSlow:
        raise Wrong(f"your code had not come back after {PATIENCE:.0f} seconds: is there a loop that never ends?") from None
    except AnswerStopped as e:
        cause = e.__cause__
        raise Wrong(f"your code stopped with {type(cause).__name__}: {_first_line(cause)}") from cause
    except Exception as e:
        raise Wrong(f"your code ran, but the check cannot work with what it returned ({type(e).__name__}: {_first_line(e)}).") from e
    finally:
        stop()


def may_change(*names: str):
    """Decorator of a check: the exercise asks for these arguments to be changed in place."""

    def mark(test):
        test.may_change = names
        return test

    return mark


def _report(mark: str, name: str, message: str) -> bool:
    if under_ci():
        raise CheckFailed(f"{mark} {name}: {message}")
    say(f"{mark} {name}: {message}")
    return False


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no message"


def hint(name: str) -> None:
    """Print the next hint of an exercise; one more each call, from gentle to nearly all."""
    module, _ = _find(name)
    hints = module.HINTS[name.partition(".")[2]]
    n = min(_hints_given.get(name, 0) + 1, len(hints))
    _hints_given[name] = n
    for i, text in enumerate(hints[:n], 1):
        say(f"Hint {i} of {len(hints)}: {text}")
    if n == len(hints):
        say(f'That was the last one. `reveal("{name}")` shows the course\'s own solution.')


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
        say(code)


# The guard around an answer


def guarded(answer, allowed=()):
    """The answer as checks call it: a function, or a class whose methods are guarded one by one. ``allowed``: arguments that may be changed in place."""
    inside = []  # methods that call each other are guarded once, from outside
    if inspect.isclass(answer):
        own = {
            n: _guard(f, allowed, inside, method=True)
            for n, f in vars(answer).items()
            if inspect.isfunction(f) and (not n.startswith("__") or n in ("__init__", "__call__"))
        }
        return type(answer.__name__, (answer,), {**own, "__module__": answer.__module__, "__doc__": answer.__doc__})
    return _guard(answer, allowed, inside) if callable(answer) else answer


def _guard(fn, allowed, inside, method=False):
    skip = 1 if method else 0

    @functools.wraps(fn)
    def call(*args, **kwargs):
        if inside:
            return fn(*args, **kwargs)
        own = [*args[:skip], *map(_copy, args[skip:])]
        named = {k: _copy(v) for k, v in kwargs.items()}
        inside.append(fn)
        try:
            out = fn(*own, **named)
        except (Wrong, NotImplementedError, AnswerStopped):
            raise
        except Exception as e:
            raise AnswerStopped from e
        finally:
            inside.pop()
        for name, before, after in [*zip(_names(fn, len(args)), args, own), *((k, kwargs[k], named[k]) for k in kwargs)][skip:]:
            if name not in allowed and _changed(before, after):
                raise Wrong(f"your code changes its argument {name} in place, and the caller still needs it as it was: work on a copy.")
        return out

    return call


def _names(fn, n: int) -> list[str]:
    """The names of a function's first n arguments."""
    try:
        names = [p.name for p in inspect.signature(fn).parameters.values() if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    except (TypeError, ValueError):
        names = []
    return [*names, *(f"number {i + 1}" for i in range(len(names), n))][:n]


def _copy(x):
    """A copy of tensors, arrays and what holds them (a gradient still reaches the original); models, generators and functions as they are."""
    import numpy as np
    import torch

    if isinstance(x, torch.Tensor):
        return x if isinstance(x, torch.nn.Parameter) else x.clone()
    if isinstance(x, np.ndarray):
        return x.copy()
    if isinstance(x, dict) and type(x) is dict:
        return {k: _copy(v) for k, v in x.items()}
    if type(x) in (list, tuple):
        return type(x)(map(_copy, x))
    if dataclasses.is_dataclass(x) and not isinstance(x, type) and not isinstance(x, torch.nn.Module):
        twin = copy.copy(x)
        for f in dataclasses.fields(x):
            object.__setattr__(twin, f.name, _copy(getattr(x, f.name)))
        return twin
    return x


def _changed(before, after) -> bool:
    """Does the copy that an answer was given still hold what the original holds?"""
    import numpy as np
    import torch

    if isinstance(before, torch.Tensor):
        a, b = before.detach(), after.detach()
        return a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(before, np.ndarray):
        return before.shape != after.shape or not np.array_equal(before, after, equal_nan=before.dtype.kind in "fc")
    if type(before) is dict:
        return before.keys() != after.keys() or any(_changed(before[k], after[k]) for k in before)
    if type(before) in (list, tuple):
        return len(before) != len(after) or any(map(_changed, before, after))
    if dataclasses.is_dataclass(before) and before is not after:
        return any(_changed(getattr(before, f.name), getattr(after, f.name)) for f in dataclasses.fields(before))
    return False


def _deadline(seconds: float):
    """Raise TooSlow in this thread when the time is over, and again each second until the returned function is called. Works in a kernel, under pytest, on Windows."""
    thread, done, lock = threading.get_ident(), threading.Event(), threading.Lock()

    def watch():
        wait = seconds
        while not done.wait(wait):
            with lock:
                if not done.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooSlow))
            wait = 1.0

    def stop():
        with lock:
            done.set()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)  # one that is on its way is called back

    threading.Thread(target=watch, daemon=True).start()
    return stop


# What checks are made of


def agree(answer, reference, cases, *, what: str = "the result", grad=(), tol: float = 1e-5, suspects=(), draws: int = 2):
    """Hold an answer against a reference: values, gradients, no state. Raises :class:`Wrong`.

    ``cases``: functions of a ``torch.Generator`` (or one of them), each returning the arguments by name, in their order; each is drawn ``draws`` times with other values of the same shapes.
    ``reference``: called on the same arguments; returns a tensor, a number, or a tuple or dict of them.
    ``grad``: names of the arguments for which the gradient of a random projection of the output must be the reference's.
    ``suspects``: (message, wrong answer) pairs. Where the answer differs from the reference and equals the wrong answer in every case, the message is given: so the cause that it names is verified.
    """
    cases = [cases] if callable(cases) else list(cases)
    for number, case in enumerate(cases):
        earlier = None
        for draw in range(draws):
            given = case(_generator(1000 * number + draw))
            mine, theirs = _leaves(given, grad), _leaves(given, grad)
            want = reference(*theirs.values())
            got = answer(*mine.values())
            try:
                alike(got, want, what, tol)
            except Wrong:
                if earlier is not None and _equal(got, earlier, tol):
                    raise Wrong(f"{what}: a second call with other values gives the first call's result again. Is something kept between calls?") from None
                for message, wrong in suspects:
                    if all(_equal(_quietly(answer, x), _quietly(wrong, x), tol) for x in _inputs(cases)):
                        raise Wrong(message) from None
                raise
            earlier = _detached(got)
            _same_gradients(got, want, mine, theirs, grad, what, tol, number)


def _generator(seed: int):
    import torch

    return torch.Generator().manual_seed(seed)


def _inputs(cases):
    """One draw of every case."""
    return [case(_generator(1000 * number)) for number, case in enumerate(cases)]


def alike(got, want, what: str = "the result", tol: float = 1e-5):
    """:func:`same` for tensors, numbers, and tuples, lists or dicts of them."""
    if isinstance(want, (tuple, list)):
        n = len(want)
        if not isinstance(got, (tuple, list)) or len(got) != n:
            raise Wrong(f"{what} should be {n} values, but it is {_kind(got)}.")
        for i, (g, w) in enumerate(zip(got, want), 1):
            alike(g, w, f"{what}, value {i} of {n}", tol)
    elif isinstance(want, dict):
        if not isinstance(got, dict) or got.keys() != want.keys():
            raise Wrong(f"{what} should be a dictionary with the keys {', '.join(map(str, want))}, but it is {_kind(got)}.")
        for k in want:
            alike(got[k], want[k], f"{what}[{k!r}]", tol)
    elif isinstance(want, (bool, str, type(None))):
        if got != want:
            raise Wrong(f"{what} should be {want!r}, but it is {_kind(got)}.")
    elif isinstance(want, (int, float)) and not isinstance(got, (int, float)):
        raise Wrong(f"{what} should be a plain number, but it is {_kind(got)}.")
    elif isinstance(want, (int, float)):
        import torch

        same(torch.as_tensor(float(got), dtype=torch.float64), torch.as_tensor(float(want), dtype=torch.float64), what, tol=tol)
    else:
        same(got, want, what, tol=tol)


def same_state(model, reference, what: str = "the model", tol: float = 1e-5):
    """Raise :class:`Wrong` unless two models hold the same parameters and buffers; the message names the first that differs."""
    got, want = model.state_dict(), reference.state_dict()
    if got.keys() != want.keys():
        odd = sorted(got.keys() ^ want.keys())
        raise Wrong(f"{what} should have the parameters {', '.join(list(want)[:6])}{' …' if len(want) > 6 else ''}; {odd[0]} is only on one side.")
    for name, value in want.items():
        same(got[name], value, f"{what}'s {name}", tol=tol)


def same_learning(model, got, want, what: str = "the result", tol: float = 1e-5):
    """Raise :class:`Wrong` unless every parameter of a model gets the same gradient through ``got`` as through ``want``, both computed from that model."""
    import torch

    def gradients(out):
        total = sum((t * torch.arange(1.0, t.numel() + 1, dtype=t.dtype).view(t.shape).cos()).sum() for t in _tensors(out))
        return torch.autograd.grad(total, list(model.parameters()), allow_unused=True)

    found, wanted = gradients(got), gradients(want)
    for (name, _), a, b in zip(model.named_parameters(), found, wanted):
        if b is None or b.abs().max() <= 0.01 * tol:  # nothing but rounding
            continue
        if a is None:
            raise Wrong(f"{what}: the values are right, but no gradient reaches {name}: somewhere on its way it is detached or rounded.")
        same(a, b, f"the gradient of {name}", tol=tol)  # of the largest entry


def _leaves(given: dict, grad) -> dict:
    """The arguments, those in ``grad`` as leaves that collect a gradient."""
    return {k: v.detach().clone().requires_grad_() if k in grad else v for k, v in given.items()}


def _same_gradients(got, want, mine, theirs, grad, what, tol, seed):
    import torch

    if not grad:
        return
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(w.shape, generator=g, dtype=torch.float64).to(w.dtype) for w in _tensors(want)]
    value, target = (sum((t * w).sum() for t, w in zip(_tensors(x), weights)) for x in (got, want))
    wanted = torch.autograd.grad(target, [theirs[n] for n in grad], allow_unused=True)
    if not getattr(value, "requires_grad", False):
        raise Wrong(f"{what}: the values are right, but no gradient flows through it: something is detached, turned into a number, or computed under no_grad.")
    found = torch.autograd.grad(value, [mine[n] for n in grad], allow_unused=True)
    for name, a, b in zip(grad, found, wanted):
        if theirs[name].numel() == 0:
            continue
        if b is None or b.abs().max() <= 0.01 * tol:  # nothing but rounding
            if a is not None and a.abs().max() > tol:
                raise Wrong(f"{what}: the values are right, but a gradient reaches {name}, which it should not.")
            continue
        if a is None or not a.any():
            raise Wrong(f"{what}: the values are right, but no gradient reaches {name}: somewhere on its way it is detached or rounded.")
        if not torch.isfinite(a).all():
            raise Wrong(f"{what}: the values are right, but its gradient with respect to {name} holds nan or inf.")
        if (a - b).abs().max() > 10 * tol * max(1.0, b.abs().max().item()):
            raise Wrong(f"{what}: the values are right, but not the right gradient with respect to {name}: something on its way is cut, or let through.")


def _tensors(x) -> list:
    """The floating-point tensors of an output, in order."""
    import torch

    if isinstance(x, torch.Tensor):
        return [x] if x.is_floating_point() else []
    if isinstance(x, dict):
        return [t for v in x.values() for t in _tensors(v)]
    return [t for v in x for t in _tensors(v)] if isinstance(x, (tuple, list)) else []


def _detached(x):
    import torch

    if isinstance(x, torch.Tensor):
        return x.detach().clone()
    if isinstance(x, dict):
        return {k: _detached(v) for k, v in x.items()}
    return type(x)(map(_detached, x)) if type(x) in (tuple, list) else x


def _quietly(fn, given: dict):
    try:
        return fn(*given.values())
    except Exception:  # a suspect that does not run on these inputs is not the cause
        return None


def _equal(got, other, tol) -> bool:
    try:
        alike(got, other, tol=tol)
    except Exception:
        return False
    return other is not None


def _kind(x) -> str:
    """What something is, in two or three words."""
    if x is None:
        return "None (does the function end in `return ...`?)"
    if isinstance(x, (bool, int, float, str)):
        return f"{type(x).__name__} {x!r}"[:60]
    if hasattr(x, "shape"):
        return f"a {type(x).__name__.lower()} of shape {tuple(x.shape)}"
    return f"a {type(x).__name__}" + (f" of {len(x)}" if hasattr(x, "__len__") else "")


def same(got, want, what: str = "the result", hint: str = "", tol: float = 1e-5):
    """Raise :class:`Wrong` unless ``got`` is a tensor with the shape, kind and values of ``want``."""
    import torch

    want = torch.as_tensor(want)
    if not isinstance(got, torch.Tensor):
        if got is None:
            raise Wrong(f"{what}: got None. Does your function end in `return ...`?")
        if want.ndim or not isinstance(got, (int, float)):
            raise Wrong(f"{what} should be a tensor of shape {tuple(want.shape)}, but got a {type(got).__name__}.")
        got = torch.as_tensor(got, dtype=want.dtype)
    if got.shape != want.shape:
        raise Wrong(f"{what} should have shape {tuple(want.shape)}, but it has {tuple(got.shape)}.{_space(hint)}")
    if got.dtype != want.dtype:
        raise Wrong(f"{what} should keep the dtype {want.dtype}, but it is {got.dtype}.")
    if got.device != want.device:
        raise Wrong(f"{what} should stay on {want.device}, but it is on {got.device}: create new tensors with device=x.device.")
    if not want.numel():
        return
    got, want = got.detach().double(), want.detach().double()
    nan = torch.isnan(got) & ~torch.isnan(want)
    if nan.any() or (torch.isinf(got) & ~torch.isinf(want)).any():
        raise Wrong(f"{what}: the result holds {'nan' if nan.any() else 'inf'} where it should be finite.{_space(hint)}")
    error = (got - want).abs()
    error[(got == want) | (torch.isnan(got) & torch.isnan(want))] = 0.0  # inf − inf
    finite = want[torch.isfinite(want)].abs()
    limit = tol * max(1.0, finite.max().item() if len(finite) else 1.0)
    if not error.max().item() <= limit:
        raise Wrong(f"{what}: off by {error.max().item():.2g} at the worst place.{_space(hint)}")


def right(condition: bool, message: str):
    """Raise :class:`Wrong` with ``message`` unless the condition holds."""
    if not condition:
        raise Wrong(message)


def needs_grad(output, inputs: dict, what: str = "the result"):
    """Raise :class:`Wrong` unless a finite, non-zero gradient of ``output.sum()`` reaches every tensor of ``inputs`` (name → tensor with requires_grad)."""
    import torch

    if not getattr(output, "requires_grad", False):
        raise Wrong(f"no gradient flows through {what}: something is detached, turned into a number, or computed under no_grad.")
    grads = torch.autograd.grad(output.sum(), list(inputs.values()), allow_unused=True)
    for name, grad in zip(inputs, grads):
        if grad is None or not torch.isfinite(grad).all() or grad.abs().max() == 0:
            raise Wrong(f"no useful gradient of {what} reaches {name}: somewhere on its way it is detached.")


def _space(text: str) -> str:
    return f" {text}" if text else ""
