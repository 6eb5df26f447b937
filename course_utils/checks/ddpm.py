"""Checks of lesson 2.3 (DDPM): each computes its own answer with plain numbers, one example at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from ..exercises import Wrong, agree, alike, right, same

HINTS = {
    "q_sample": [
        "x_t is a weighted sum of x0 and eps. What do the two weights squared add up to?",
        "`at(schedule.abar, t, x0)` looks abar up for every example and gives it a shape that multiplies with x0.",
        "The weights are the square roots of abar and of 1 - abar.",
    ],
    "posterior": [
        "Three tables are enough: beta, abar, and abar one step earlier. Which of them do the coefficients of x0 and of x_t need?",
        "Each of the three coefficients is a table of its own, in double precision (1 - abar is tiny for small t); the look-up comes last.",
        "With before = schedule.abar.roll(1): of_x0 = √before · beta / (1 - abar), of_xt = √(1 - beta) · (1 - before) / (1 - abar), var = beta · (1 - before) / (1 - abar).",
    ],
    "denoising_loss": [
        "Three lines: the noisy picture, the target, the mean squared error. What does the model get to see?",
        "The model sees the noised batch and t, nothing else. The target is eps itself, or the velocity.",
        'F.mse_loss(model(q_sample(x0, t, eps, schedule), t), eps if target == "eps" else velocity(x0, t, eps, schedule)).',
    ],
    "ddim_step": [
        "First the variance sigma² from the second formula. What is it when eta is 0?",
        "The coefficient of eps_hat is √(1 - abar_s - sigma²): what the fresh noise adds, the old noise gives up.",
        "With a_t, a_s = at(schedule.abar, t, xt), at(schedule.abar, s, xt): var = eta² (1 - a_s) / (1 - a_t) (1 - a_t / a_s); √a_s · x0_hat + √(1 - a_s - var) · eps_hat, plus √var · z when eta > 0.",
    ],
    "ddim_sample": [
        "List the levels first, from T down to 0. How many jumps are there between n levels?",
        "In each jump: tell the model the level of every example, split its answer into x0_hat and eps_hat, and take one ddim_step. Which two numbers does the step need from the list?",
        "times = torch.linspace(schedule.T, 0, steps + 1).round().long().unique().flip(0); for now, then in zip(times[:-1], times[1:]): t = now.expand(len(x)), s = then.expand(len(x)); "
        "x0, eps = split(model(x, t), x, t, schedule, target, clip); z only when eta > 0.",
    ],
}


def _schedule(T: int = 40) -> SimpleNamespace:
    """A schedule unlike the lesson's: beta grows from 0.01 to 0.2."""
    beta = [0.0] + [0.01 + 0.19 * (k / max(1, T - 1)) ** 2 for k in range(T)]
    abar = [math.prod(1 - b for b in beta[: t + 1]) for t in range(T + 1)]
    return SimpleNamespace(beta=torch.tensor(beta, dtype=torch.float64), abar=torch.tensor(abar, dtype=torch.float64), T=T)


S = _schedule()


def _long_schedule() -> SimpleNamespace:
    """1000 small steps, as in the paper: 1 - abar is 1e-4 at the beginning, and abar 4e-5 at the end."""
    beta = torch.cat([torch.zeros(1, dtype=torch.float64), torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)])
    return SimpleNamespace(beta=beta, abar=(1 - beta).cumprod(0), T=1000)


LONG = _long_schedule()


def _far(case, *names, by=100.0):
    """The case with values in one row that are larger than any clamp."""

    def draw(g):
        given = case(g)
        for name in names:
            given[name][0] *= by
        return given

    return draw


def _each(fn, times, *tensors):
    """fn(t as a number, one example of each tensor) for every example, stacked."""
    return torch.stack([fn(int(times[i]), *(v[i] for v in tensors)) for i in range(len(times))])


def _noised(x0, t, eps, s, a=lambda s, k: math.sqrt(s.abar[k]), b=lambda s, k: math.sqrt(1 - s.abar[k])):
    return _each(lambda k, x, e: a(s, k) * x + b(s, k) * e, t, x0, eps)


def q_sample(answer):
    earlier = lambda t: (t - 1).clamp(min=0)
    suspects = [
        (
            "the weights are abar and 1 - abar themselves: their square roots are wanted.",
            lambda x, t, e, s: _noised(x, t, e, s, lambda s, k: float(s.abar[k]), lambda s, k: float(1 - s.abar[k])),
        ),
        (
            "this is one small step with beta_t: the whole jump takes the product abar_t.",
            lambda x, t, e, s: _noised(x, t, e, s, lambda s, k: math.sqrt(1 - s.beta[k]), lambda s, k: math.sqrt(s.beta[k])),
        ),
        ("the table is read one place too early.", lambda x, t, e, s: _noised(x, earlier(t), e, s)),
        ("signal and noise have exchanged their weights.", lambda x, t, e, s: _noised(e, t, x, s)),
        ("all examples use the first one's t.", lambda x, t, e, s: _noised(x, t[:1].expand(len(t)), e, s)),
    ]

    def case(*shape, dtype=torch.float64):
        return lambda g: {
            "x0": torch.randn(shape, generator=g, dtype=dtype),
            "t": torch.tensor([0, 1, 7, 25, 40])[: shape[0]],
            "eps": torch.randn(shape, generator=g, dtype=dtype),
            "schedule": S,
        }

    for tol, cases in ((1e-10, [case(5, 3, 4, 2), case(5, 6), case(5), case(1, 3, 2, 2)]), (1e-5, [case(5, 3, 4, 2, dtype=torch.float32)])):
        agree(answer, _noised, cases, what="x_t", grad=("x0", "eps"), tol=tol, suspects=suspects)
    late = lambda g: case(5, 6)(g) | {"t": torch.tensor([1000, 999, 2, 1, 0]), "schedule": LONG}
    agree(answer, _noised, late, what="x_t in a schedule of 1000 steps", grad=("x0", "eps"), tol=1e-10)
    agree(answer, _noised, _far(case(5, 3, 2), "x0", "eps"), what="x_t of a picture with large numbers", grad=("x0", "eps"), tol=1e-10)


def _bayes(k, x0, xt, s):
    """Mean and variance of q(x_{k-1} | x_k, x_0) by adding precisions: prior from x0 to k - 1, likelihood of x_k given x_{k-1}."""
    if k == 1:
        return x0, 0.0
    prior, a, b = 1 - s.abar[k - 1].item(), 1 - s.beta[k].item(), s.beta[k].item()
    var = 1 / (1 / prior + a / b)
    return var * (math.sqrt(s.abar[k - 1]) / prior * x0 + math.sqrt(a) / b * xt), var


def posterior(answer):
    def brute(x0, xt, t, s, var=lambda k, v: v, swap=False):
        mean = _each(lambda k, x, y: _bayes(k, y, x, s)[0] if swap else _bayes(k, x, y, s)[0], t, x0, xt)
        shape = (len(t), *[1] * (x0.ndim - 1))
        return mean, torch.tensor([var(int(k), _bayes(int(k), 0.0, 0.0, s)[1]) for k in t], dtype=x0.dtype).reshape(shape)

    suspects = [
        ("x0 and x_t have exchanged their coefficients.", lambda *a: brute(*a, swap=True)),
        (
            "the variance is beta_t, that of the forward step: the posterior's is smaller, and 0 at t = 1.",
            lambda *a: brute(*a, var=lambda k, v: float(S.beta[k])),
        ),
        ("this is the standard deviation: the variance is wanted.", lambda *a: brute(*a, var=lambda k, v: math.sqrt(v))),
        ("the variance is shifted by one step.", lambda *a: brute(*a, var=lambda k, v: _bayes(max(1, k - 1), 0.0, 0.0, S)[1])),
    ]

    def case(*shape, dtype=torch.float64):
        return lambda g: {
            "x0": torch.randn(shape, generator=g, dtype=dtype),
            "xt": torch.randn(shape, generator=g, dtype=dtype),
            "t": torch.tensor([1, 2, 17, 40])[: shape[0]],
            "schedule": S,
        }

    for tol, cases in ((1e-10, [case(4, 3, 2, 5), case(4, 6), case(2, 1)]), (1e-5, [case(4, 3, 2, 5, dtype=torch.float32)])):
        agree(answer, brute, cases, what="(mean, variance)", grad=("x0", "xt"), tol=tol, suspects=suspects)
    agree(answer, brute, _far(case(4, 6), "x0", "xt"), what="(mean, variance) of a picture with large numbers", grad=("x0", "xt"), tol=1e-10)
    small = lambda g: case(4, 3, 2, dtype=torch.float32)(g) | {"t": torch.tensor([1, 2, 500, 1000]), "schedule": LONG}
    what = "(mean, variance) of single-precision pictures, where 1 - abar is 0.0001,"
    early = [("the coefficients were looked up first and computed in the pictures' precision: 1 - abar loses its digits.", _looked_up_first)]
    agree(answer, brute, small, what=what, tol=1e-5, suspects=early)


def _looked_up_first(x0, xt, t, s):
    """The posterior from tables that were rounded to the pictures' precision before the coefficients were computed."""
    shape = (len(t), *[1] * (x0.ndim - 1))
    beta, abar, before = (table[i].to(x0.dtype).reshape(shape) for table, i in ((s.beta, t), (s.abar, t), (s.abar, t - 1)))
    mean = before.sqrt() * beta / (1 - abar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - abar) * xt
    return mean, beta * (1 - before) / (1 - abar)


def _velocity(x0, t, eps, s):
    return _noised(eps, t, -x0, s)


def denoising_loss(answer):
    calls = []

    def network(x, times, weight):
        return weight * x.sin() + 0.01 * times.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)

    def work(x0, t, eps, schedule, target, weight):
        calls.clear()

        def model(x, times):
            calls.append((x.detach(), times))
            return network(x, times, weight)

        out = answer(model, x0, t, eps, schedule, target)
        right(len(calls) == 1, f"the model should be called once, as model(x_t, t); it was called {len(calls)} times.")
        told = calls[0][1]
        right(torch.is_tensor(told) and told.dtype == t.dtype and told.shape == t.shape and torch.equal(told, t), "the model should be told t as it is.")
        right(not torch.equal(calls[0][0], x0.detach()), "the model was shown the clean picture.")
        alike(calls[0][0], _noised(x0, t, eps, schedule).detach(), "what the model sees", 1e-5)
        return out

    def loss(x0, t, eps, schedule, target, weight, of=None, reduce=torch.mean, power=2):
        xt = _noised(x0, t, eps, schedule)
        wanted = {"eps": eps, "v": _velocity(x0, t, eps, schedule), "x0": x0, "xt": xt}[of or target]
        return reduce((network(xt, t, weight) - wanted).abs() ** power)

    each = lambda e: e.flatten(1).sum(1).mean()
    suspects = [
        ("the output was compared with eps whatever the target says.", lambda *a: loss(*a, of="eps")),
        ("the output was compared with v whatever the target says.", lambda *a: loss(*a, of="v")),
        ("the output was compared with x0.", lambda *a: loss(*a, of="x0")),
        ("the output was compared with x_t.", lambda *a: loss(*a, of="xt")),
        ("the squares were summed: their mean over everything is wanted.", lambda *a: loss(*a, reduce=torch.sum)),
        ("the squares were summed over each picture: their mean over everything is wanted.", lambda *a: loss(*a, reduce=each)),
        ("absolute errors were taken: squares are wanted.", lambda *a: loss(*a, power=1)),
    ]

    def case(target, *shape):
        def draw(g):
            x0, eps = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
            weight = torch.rand((), generator=g, dtype=torch.float64) + 0.3
            return {"x0": x0, "t": torch.tensor([1, 9, 22, 40])[: shape[0]], "eps": eps, "schedule": S, "target": target, "weight": weight}

        return draw

    cases = [case(target, *shape) for target in ("eps", "v") for shape in ((4, 3, 4, 5), (3, 6))]
    agree(work, loss, cases, what="the loss", grad=("x0", "eps", "weight"), tol=1e-9, suspects=suspects)
    agree(work, loss, _far(case("eps", 4, 6), "eps"), what="the loss with one large error", grad=("weight",), tol=1e-9, suspects=suspects)
    given = case("v", 4, 3, 4, 5)(torch.Generator().manual_seed(9))
    x0, t, eps, schedule, _, weight = given.values()
    got = answer(lambda x, times: network(x, times, weight), x0, t, eps, schedule)
    same(got, loss(x0, t, eps, schedule, "v", weight), 'the loss without a target (it is "v" then)', tol=1e-9)


def _step(xt, x0, eps, t, s, schedule, eta=0.0, z=None, squared=True, shrink=True, level=None):
    out = []
    for i in range(len(t)):
        a, b = schedule.abar[t[i]].item(), schedule.abar[(s if level is None else level(t, s))[i]].item()
        sigma = (eta if squared else math.sqrt(eta)) * math.sqrt(max(0.0, (1 - b) / (1 - a) * (1 - a / b)))
        old = math.sqrt(max(0.0, 1 - b - (sigma**2 if shrink else 0)))
        out.append(math.sqrt(b) * x0[i] + old * eps[i] + (sigma * z[i] if sigma else 0))
    return torch.stack(out)


def ddim_step(answer):
    suspects = [
        ("eta makes no difference: the fresh noise is missing.", lambda x, a, e, t, s, c, eta=0.0, z=None: _step(x, a, e, t, s, c)),
        ("eta is not squared in sigma².", lambda *a: _step(*a, squared=False)),
        ("the old noise keeps its whole weight, so with the fresh noise it piles up.", lambda *a: _step(*a, shrink=False)),
        ("the result stands at level t: level s is wanted.", lambda *a: _step(*a, level=lambda t, s: t)),
        ("x0_hat and eps_hat are exchanged.", lambda x, a, e, *rest: _step(x, e, a, *rest)),
    ]

    def case(eta, *shape, noise=True, dtype=torch.float64):
        def draw(g):
            parts = {k: torch.randn(shape, generator=g, dtype=dtype) for k in ("xt", "x0_hat", "eps_hat")}
            times = {"t": torch.tensor([40, 30, 12, 5])[: shape[0]], "s": torch.tensor([39, 10, 11, 0])[: shape[0]], "schedule": S}
            return parts | times | ({"eta": eta, "z": torch.randn(shape, generator=g, dtype=dtype)} if noise else {})

        return draw

    cases = [case(eta, 4, 3, 2, 5) for eta in (0.0, 1.0, 0.5)] + [case(0.7, 4, 6), case(0.0, 4, 3, 2, 5, noise=False)]
    agree(answer, _step, cases, what="x_s", grad=("x0_hat", "eps_hat"), tol=1e-9, suspects=suspects)
    agree(answer, _step, _far(case(0.5, 4, 6), "x0_hat"), what="x_s of a picture with large numbers", grad=("x0_hat", "eps_hat", "z"), tol=1e-9)
    agree(answer, _step, case(0.5, 4, 3, 2, 5, dtype=torch.float32), what="x_s in single precision", tol=1e-5)


def ddim_sample(answer):
    def network(x, t):
        return (1.3 * x).sin() + 0.02 * t.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)

    def brute(T, steps, target, eta, clip, start, seed, told):
        s, g = _schedule(T), torch.Generator().manual_seed(seed)
        x = torch.randn(2, 3, 4, generator=g) if start is None else start
        levels = []
        for i in range(steps + 1):
            level = int(torch.linspace(T, 0, steps + 1)[i].round())
            if level not in levels:
                levels.append(level)
        guesses = []
        for now, then in zip(levels, levels[1:]):
            told.append(now)
            t, u = torch.full((2,), now), torch.full((2,), then)
            out, a, b = network(x, t), math.sqrt(s.abar[now]), math.sqrt(1 - s.abar[now])
            x0 = {"eps": (x - b * out) / a, "v": a * x - b * out, "x0": out}[target]
            x0 = x0.clamp(-1, 1) if clip else x0
            eps = (x - a * x0) / b
            z = torch.randn(2, 3, 4, generator=g) if eta else None
            x = _step(x, x0, eps, t, u, s, eta, z)
            guesses.append(x0)
        return x, guesses

    start, dice = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(8)), torch.get_rng_state()
    plan = [
        (12, 4, "v", 0.0, True, start),
        (12, 5, "eps", 0.0, False, None),
        (10, 7, "x0", 0.0, False, start),
        (12, 4, "v", 1.0, True, None),
        (9, 9, "v", 0.5, False, start),
    ]
    plan += [(12, 1, "v", 0.0, False, start), (5, 9, "v", 0.0, True, start), (1, 2, "v", 0.0, False, start)]
    for n, (T, steps, target, eta, clip, begin) in enumerate(plan):
        calls, told = [], []
        weight = torch.ones((), requires_grad=True)

        def model(x, t):
            calls.append(t)
            return weight * network(x, t)

        where = f"with T = {T} and steps = {steps}"
        more = {"target": target, "eta": eta, "clip": clip, "generator": torch.Generator().manual_seed(n)} | ({} if begin is None else {"start": begin})
        want, guesses = brute(T, steps, target, eta, clip, begin, n, told)
        got = answer(model, (2, 3, 4), steps, _schedule(T), keep=True, **more)
        right(isinstance(got, (tuple, list)) and len(got) == 2, "with keep=True return two things: x_0 and the list of guesses.")
        levels = [int(t.flatten()[0]) for t in calls]
        right(all(t.shape == (2,) for t in calls), "the model should be told one level for each example: t has shape (B,).")
        right(levels == told, f"{where} the model should be asked at the levels {told}, but it was asked at {levels}.")
        right(
            isinstance(got[0], torch.Tensor) and torch.isfinite(got[0]).all(), f"{where} the result holds nan or inf: is there a jump from a level to itself?"
        )
        alike(got[1], guesses, f"the guesses {where}, target={target!r}, eta={eta}", 1e-4)
        same(got[0], want, f"x_0 {where}, target={target!r}, eta={eta}, clip={clip}", tol=1e-4)
        right(not got[0].requires_grad, "the sampler should not collect gradients (torch.no_grad).")
        plain = answer(model, (2, 3, 4), steps, _schedule(T), **(more | {"generator": torch.Generator().manual_seed(n)}))
        right(isinstance(plain, torch.Tensor), "without keep return x_0 alone.")
        same(plain, want, f"x_0 {where} without keep", tol=1e-4)
    _on_its_device(answer)
    used = torch.Generator().manual_seed(3)
    answer(network, (2, 3), 3, _schedule(12), generator=used, start=torch.zeros(2, 3))
    right(
        torch.equal(used.get_state(), torch.Generator().manual_seed(3).get_state()),
        "with a start and eta = 0 nothing is random: the generator should stay as it is.",
    )
    one = answer(network, (1, 2), 3, clip=False, generator=torch.Generator().manual_seed(1))
    right(isinstance(one, torch.Tensor) and one.shape == (1, 2), "without a schedule the lesson's own, make_schedule(), is used.")
    if torch.equal(one, answer(network, (1, 2), 3, clip=False, generator=torch.Generator().manual_seed(2))):
        raise Wrong("two generators give the same sample: x_T does not come from `generator`.")
    right(torch.equal(torch.get_rng_state(), dice), "PyTorch's own dice were thrown or seeded: only `generator` is yours to use.")


def _on_its_device(answer):
    """What the model is first asked stands on the device that was named; "meta" is one without numbers, on every machine."""
    for start in (None, torch.zeros(2, 3)):
        seen = []

        def model(x, t):
            seen.extend([x.device.type, t.device.type])
            raise _Asked

        try:
            answer(model, (2, 3), 3, _schedule(12), generator=torch.Generator(), device="meta", start=start)
        except Exception as e:
            if not seen and not isinstance(e.__cause__, _Asked):
                raise
        right(seen[:2] == ["meta", "meta"], "x and t reach the model on another device than `device`: on a GPU the model would stop.")


class _Asked(Exception):
    """Raised by a model that has seen enough."""
