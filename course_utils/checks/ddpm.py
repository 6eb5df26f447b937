"""Checks of lesson 2.3 (DDPM): each computes its own answer with plain numbers, one example at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "q_sample": [
        "x_t is a weighted sum of x0 and eps. The two weights squared add up to 1.",
        "`at(schedule.abar, t, x0)` looks abar up for every example and gives it a shape that multiplies with x0.",
        "abar = at(schedule.abar, t, x0); then abar.sqrt() * x0 + (1 - abar).sqrt() * eps.",
    ],
    "posterior": [
        "Three tables are enough: beta, abar, and abar one step earlier, which is schedule.abar.roll(1).",
        "Each of the three coefficients is a table of its own, in double precision (1 - abar is tiny for small t); at(table, t, xt) comes last.",
        "before = schedule.abar.roll(1); of_x0 = before.sqrt() * beta / (1 - abar); of_xt = (1 - beta).sqrt() * (1 - before) / (1 - abar); "
        "var = beta * (1 - before) / (1 - abar); return at(of_x0, t, xt) * x0 + at(of_xt, t, xt) * xt, at(var, t, xt).",
    ],
    "denoising_loss": [
        "Three lines: the noisy picture, the target, the mean squared error.",
        "The model sees q_sample(x0, t, eps, schedule) and t, nothing else. The target is eps itself, or velocity(x0, t, eps, schedule).",
        'return F.mse_loss(model(q_sample(x0, t, eps, schedule), t), eps if target == "eps" else velocity(x0, t, eps, schedule)).',
    ],
    "ddim_step": [
        "First the variance sigma² from the second formula; it is 0 when eta is 0.",
        "The coefficient of eps_hat is sqrt(1 - abar_s - sigma²): what the fresh noise adds, the old noise gives up.",
        "With a_t, a_s = at(schedule.abar, t, xt), at(schedule.abar, s, xt): var = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s); "
        "x = a_s.sqrt() * x0_hat + (1 - a_s - var).sqrt() * eps_hat, plus var.sqrt() * z when eta > 0.",
    ],
}


def _schedule(T: int = 40) -> SimpleNamespace:
    """A schedule unlike the lesson's: beta grows from 0.01 to 0.2."""
    beta = [0.0] + [0.01 + 0.19 * (k / (T - 1)) ** 2 for k in range(T)]
    abar = [math.prod(1 - b for b in beta[: t + 1]) for t in range(T + 1)]
    return SimpleNamespace(beta=torch.tensor(beta, dtype=torch.float64), abar=torch.tensor(abar, dtype=torch.float64), T=T)


def _each(times, *tensors, fn):
    """fn(t, one example of each tensor) for every example, stacked."""
    return torch.stack([fn(*(v[i] for v in (times, *tensors))) for i in range(len(times))])


def q_sample(answer):
    s, g = _schedule(), torch.Generator().manual_seed(1)
    for shape in ((5, 3, 4, 4), (5, 2)):
        x0, eps = torch.randn(2, *shape, generator=g)
        t = torch.tensor([0, 1, 7, 25, 40])
        got = answer(x0, t, eps, s)
        want = _each(t, x0, eps, fn=lambda k, x, e: math.sqrt(s.abar[k]) * x + math.sqrt(1 - s.abar[k]) * e)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            no_root = _each(t, x0, eps, fn=lambda k, x, e: float(s.abar[k]) * x + float(1 - s.abar[k]) * e)
            right(not torch.allclose(got, no_root, atol=1e-5), "the weights are abar and 1 - abar themselves: take the square root of both.")
            small = _each(t, x0, eps, fn=lambda k, x, e: math.sqrt(1 - s.beta[k]) * x + math.sqrt(s.beta[k]) * e)
            right(not torch.allclose(got, small, atol=1e-5), "this is one small step with beta_t: use the product abar_t for the whole jump.")
            right(torch.allclose(got[0], x0[0], atol=1e-5), "at t = 0 the result should be x0 itself: is the index off by one, or are the weights swapped?")
        same(got, want, "x_t", "Every example has its own t; signal has weight sqrt(abar), noise sqrt(1 - abar).")


def posterior(answer):
    s, g = _schedule(), torch.Generator().manual_seed(2)

    def bayes(k, x0, xt):
        """Mean and variance by adding precisions: prior from x0 to t - 1, likelihood of xt given x_{t-1}."""
        k = int(k)
        if k == 1:
            return x0, torch.zeros_like(x0)
        prior, a, b = 1 - s.abar[k - 1].item(), 1 - s.beta[k].item(), s.beta[k].item()
        var = 1 / (1 / prior + a / b)
        return var * (math.sqrt(s.abar[k - 1]) / prior * x0 + math.sqrt(a) / b * xt), torch.full_like(x0, var)

    for dtype in (torch.float32, torch.float64):
        x0, xt = torch.randn(2, 4, 3, 2, 2, generator=g, dtype=dtype)
        t = torch.tensor([1, 2, 17, 40])
        got = answer(x0, xt, t, s)
        if not (isinstance(got, tuple) and len(got) == 2):
            raise Wrong("return two things: the mean and the variance.")
        mean, var = _each(t, x0, xt, fn=lambda *a: torch.stack(bayes(*a))).unbind(1)
        if isinstance(got[0], torch.Tensor) and got[0].shape == mean.shape:
            swapped = _each(t, x0, xt, fn=lambda k, x, y: bayes(k, y, x)[0])
            right(not torch.allclose(got[0], swapped, atol=1e-5), "x0 and x_t have exchanged their coefficients.")
        tol = 1e-5 if dtype == torch.float32 else 1e-10
        same(got[0], mean, "the mean", "Compare the two coefficients with equation 7; abar_{t-1} is schedule.abar[t - 1].", tol)
        if isinstance(got[1], torch.Tensor) and got[1].numel() == 4:
            flat = got[1].reshape(4)
            right(
                not torch.allclose(flat, s.beta[t].to(dtype)), "the variance is beta_t, that of the forward step: the posterior's is smaller, and 0 at t = 1."
            )
            right(not torch.allclose(flat, var[:, 0, 0, 0].sqrt()), "this is the standard deviation: return the variance.")
        same(got[1], var[:, :1, :1, :1], "the variance", "It is (1 - abar_{t-1}) / (1 - abar_t) · beta_t, one number per example, shaped (B, 1, 1, 1).", tol)


def denoising_loss(answer):
    s, g = _schedule(), torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 4, 3, 4, 4, generator=g)
    t, weight = torch.tensor([1, 9, 22, 40]), torch.tensor(0.3, requires_grad=True)
    calls = []

    def model(x, times):
        calls.append((x, times))
        return weight * x + 0.01 * times.reshape(-1, 1, 1, 1)

    for target in ("eps", "v"):
        calls.clear()
        got = answer(model, x0, t, eps, s, target)
        right(len(calls) == 1, "call the model once, as model(x_t, t).")
        xt = _each(t, x0, eps, fn=lambda k, x, e: math.sqrt(s.abar[k]) * x + math.sqrt(1 - s.abar[k]) * e)
        right(not torch.equal(calls[0][0], x0), "the model was shown the clean picture: noise it first with q_sample.")
        same(calls[0][0], xt, "what the model sees", "It should be q_sample(x0, t, eps, schedule).")
        same(calls[0][1], t, "the t that the model is told", "Pass t on as it is.")
        v = _each(t, x0, eps, fn=lambda k, x, e: math.sqrt(s.abar[k]) * e - math.sqrt(1 - s.abar[k]) * x)
        out = weight.detach() * xt + 0.01 * t.reshape(-1, 1, 1, 1)
        want = ((out - (eps if target == "eps" else v)) ** 2).mean()
        if isinstance(got, torch.Tensor) and got.ndim == 0:
            for name, wrong in {"x0": x0, "eps": eps, "v": v, "x_t": xt}.items():
                if name != target and torch.isclose(got, ((out - wrong) ** 2).mean(), rtol=1e-5):
                    raise Wrong(f'with target="{target}" the output was compared with {name}.')
            right(not torch.isclose(got, want * x0[0].numel(), rtol=1e-4), "sum over the pixels: take the mean over everything.")
        same(got, want, f'the loss with target="{target}"', "Mean over all elements of (output - target)².")
        needs_grad(got, {"the model's weights": weight}, "the loss")


def ddim_step(answer):
    s, g = _schedule(), torch.Generator().manual_seed(4)
    xt, x0, eps, z = torch.randn(4, 4, 3, 2, 2, generator=g)
    t, earlier = torch.tensor([40, 30, 12, 5]), torch.tensor([39, 10, 11, 0])
    for eta in (0.0, 1.0, 0.5):

        def step(i, eta=eta):
            a, b = s.abar[t[i]].item(), s.abar[earlier[i]].item()
            sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
            fresh = math.sqrt(b) * x0[i] + sigma * z[i]
            return fresh + math.sqrt(max(0.0, 1 - b - sigma**2)) * eps[i], fresh + math.sqrt(1 - b) * eps[i]

        got = answer(xt, x0, eps, t, earlier, s, eta, z)
        want, unreduced = (torch.stack(v) for v in zip(*(step(i) for i in range(4))))
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            right(
                torch.allclose(got[3], x0[3], atol=1e-5),
                "at s = 0 the step should land exactly on x0_hat: is it abar_s (not abar_t) that weighs x0_hat and eps_hat?",
            )
            right(
                not eta or not torch.allclose(got, unreduced, atol=1e-5),
                "with eta > 0 the weight of eps_hat must shrink to sqrt(1 - abar_s - sigma²), or noise piles up.",
            )
            right(
                not (eta == 1.0 and torch.allclose(got, torch.stack([step(i, 0.0)[0] for i in range(4)]), atol=1e-5)),
                "eta = 1 gives the same as eta = 0: add sigma · z.",
            )
        same(got, want, f"x_s with eta = {eta}", "" if eta == 0 else "sigma² = eta² (1 - abar_s)/(1 - abar_t) (1 - abar_t/abar_s): eta is squared in it.")
    same(
        answer(xt, x0, eps, t, earlier, s),
        torch.stack([_plain(s, x0, eps, earlier, i) for i in range(4)]),
        "x_s without z",
        "With eta = 0 no noise is needed: z may be None.",
    )


def _plain(s, x0, eps, earlier, i):
    b = s.abar[earlier[i]].item()
    return math.sqrt(b) * x0[i] + math.sqrt(1 - b) * eps[i]
