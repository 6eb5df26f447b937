"""Checks of lesson 2.2 (VAE): sums written out, a model small enough to be followed by hand, and one training step done twice."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from ..exercises import Wrong, agree, alike, right, same, same_state

HINTS = {
    "reparameterise": [
        "Move and stretch the standard normal eps: its mean should become mu, its standard deviation sigma.",
        "logvar is the logarithm of the variance sigma². What is sigma?",
        "sigma is exp(logvar / 2); multiply eps by it and add mu.",
    ],
    "kl_divergence": [
        "One number per entry of the code. Which axes are summed, which one stays?",
        "sigma² is logvar.exp(), and log sigma² is logvar itself. flatten(1).sum(1) sums everything but the batch.",
        "(mu² + exp(logvar) - 1 - logvar) / 2, flattened behind the batch and summed.",
    ],
    "elbo": [
        "Four steps: model.encode, reparameterise, model.log_px, kl_divergence. Which of them sees the dice?",
        "The decoder is scored at the draw z = reparameterise(mu, logvar, eps), not at mu. Only the bound contains beta.",
        "Return log_px - beta * kl, log_px, kl, with log_px = model.log_px(x, z) and kl = kl_divergence(mu, logvar).",
    ],
    "iwae_bound": [
        "First the logarithm of each weight, (K, B). Then the mean of the weights; how is that done when only their logarithms fit into a float?",
        "log p(z) is log_normal(z), log q(z|x) is log_normal(z, mu, logvar). torch.logsumexp over axis 0 is the log of a sum, not yet of a mean.",
        "log_w = model.log_px(x, z) + log_normal(z) - log_normal(z, mu, logvar); then logsumexp(log_w, 0) - log K.",
    ],
    "train_step": [
        "Forward, loss, three lines of optimiser, log. What does the optimiser minimise when the bound should rise?",
        "The loss is minus the mean of elbo(model, x, eps, beta)[0]. Gradients of the step before must be cleared. What is logged is the true bound, without beta.",
        "eps = torch.randn(len(x), model.latent, generator=generator).to(x.device); bound, log_px, kl = elbo(model, x, eps, beta); loss = -bound.mean(); zero_grad, backward, step; "
        'return {"minus_elbo": (kl - log_px).mean().item(), "rebuild": ..., "price": ...}.',
    ],
}


def _numbers(g, dtype, **shapes):
    return {k: torch.randn(s, generator=g, dtype=dtype) for k, s in shapes.items()}


def reparameterise(answer):
    stretch = lambda by: lambda mu, logvar, eps: mu + by(logvar) * eps
    suspects = [
        ("eps was stretched by the variance: the standard deviation is its root.", stretch(lambda v: v.exp())),
        ("eps was stretched by logvar itself.", stretch(lambda v: v)),
        ("eps was stretched by exp(-logvar / 2).", stretch(lambda v: (-v / 2).exp())),
        ("this is mu: the noise is missing.", lambda mu, logvar, eps: mu.expand(eps.shape)),
        ("eps was not stretched at all.", lambda mu, logvar, eps: mu + eps),
    ]

    def case(shape, front=(), dtype=torch.float64):
        return lambda g: _numbers(g, dtype, mu=shape, logvar=shape, eps=(*front, *shape))

    def far(g):
        given = case((4, 3))(g)
        given["logvar"][0] = torch.tensor([-50.0, 45.0, 60.0])  # any real number, in one row
        return given

    cases = [case((4, 3)), case((2, 5), (6,)), case((3, 2), (4, 5)), case((4, 3), dtype=torch.float32), far]
    want = lambda mu, logvar, eps: mu + torch.sqrt(torch.exp(logvar)) * eps
    agree(answer, want, cases, what="z", grad=("mu", "logvar", "eps"), tol=1e-6, suspects=suspects)


def kl_divergence(answer):
    def brute(mu, logvar, half=0.5, var=torch.exp, sign=1.0, reduce=lambda e: e.flatten(1).sum(1)):
        return sign * reduce(half * (mu**2 + var(logvar) - 1 - logvar))

    suspects = [
        ("the sign is turned: a KL divergence is never negative.", lambda m, v: brute(m, v, sign=-1.0)),
        ("the factor 1/2 is missing.", lambda m, v: brute(m, v, half=1.0)),
        ("this is the mean over the code: nats of independent numbers add up.", lambda m, v: brute(m, v, reduce=lambda e: e.flatten(1).mean(1))),
        ("sigma stands where sigma² belongs.", lambda m, v: brute(m, v, var=lambda u: (u / 2).exp())),
        ("everything was averaged into one number: each picture has its own.", lambda m, v: brute(m, v).mean()),
        ("everything was summed into one number: each picture has its own.", lambda m, v: brute(m, v).sum()),
        ("only the last axis was summed: sum over everything but the batch.", lambda m, v: brute(m, v, reduce=lambda e: e.sum(-1))),
    ]

    def case(*shape, dtype=torch.float64):
        return lambda g: _numbers(g, dtype, mu=shape, logvar=shape)

    def far(at):
        def draw(g):
            given = case(4, 3)(g)
            given["logvar"][1] = torch.tensor([at, -1.0, 0.5])
            return given

        return draw

    cases = [case(4, 3), case(2, 4, 3, 5), case(1, 6), case(3, 5, dtype=torch.float32), far(-40.0), far(25.0)]
    agree(answer, brute, cases, what="the KL", grad=("mu", "logvar"), tol=1e-6, suspects=suspects)
    same(answer(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2), "the KL of a code that says nothing")


class _Model:
    """A model with known answers: 3 pixels, 2 numbers of code, p(x|z) = N(Az, I). ``far`` lowers log p(x|z), as with many pixels."""

    latent = 2

    def __init__(self, A, M, shift, far=0.0):
        self.A, self.M, self.shift, self.far = A, M, shift, far

    def encode(self, x):
        return x @ self.M.T * 0.5, (0.3 * x[..., :2]).sin() + self.shift

    def log_px(self, x, z):
        return -0.5 * ((x - z @ self.A.T) ** 2).sum(-1) - self.far


def _parts(A, M, shift, x, eps, far=0.0):
    """log p(x|z), log p(z), log q(z|x), KL and log p(x|mu), written out from the definitions."""
    mu, logvar = x @ M.T * 0.5, (0.3 * x[..., :2]).sin() + shift
    z = mu + torch.sqrt(torch.exp(logvar)) * eps
    fit = lambda code: -0.5 * sum((x[..., i] - sum(A[i, j] * code[..., j] for j in range(2))) ** 2 for i in range(3)) - far
    prior = sum(-0.5 * (z[..., j] ** 2 + math.log(2 * math.pi)) for j in range(2))
    q = sum(-0.5 * (eps[..., j] ** 2 + logvar[..., j] + math.log(2 * math.pi)) for j in range(2))
    kl = sum(0.5 * (mu[..., j] ** 2 + logvar[..., j].exp() - 1 - logvar[..., j]) for j in range(2))
    return fit(z), prior, q, kl, fit(mu)


def _model_case(front=(), dtype=torch.float64, **more):
    return lambda g: _numbers(g, dtype, A=(3, 2), M=(2, 3), shift=(2,), x=(4, 3), eps=(*front, 4, 2)) | more


def elbo(answer):
    def work(A, M, shift, x, eps, *beta):
        return answer(_Model(A, M, shift), x, eps, *beta)

    def bound(A, M, shift, x, eps, beta=1.0, of=lambda fit, kl, mu, beta: fit - beta * kl, third=lambda kl, beta: kl):
        fit, _, _, kl, mu = _parts(A, M, shift, x, eps)
        return of(fit, kl, mu, beta), fit, third(kl, beta)

    def at_mu(A, M, shift, x, eps, beta=1.0):
        return bound(A, M, shift, x, 0 * eps, beta)

    suspects = [
        ("the decoder was scored at mu: it should see a draw.", at_mu),
        ("the KL was added: it is a price.", lambda *a: bound(*a, of=lambda fit, kl, mu, beta: fit + beta * kl)),
        ("the first answer is the loss: the bound is its negative.", lambda *a: bound(*a, of=lambda fit, kl, mu, beta: beta * kl - fit)),
        ("beta is not used: it weighs the KL in the bound.", lambda *a: bound(*a, of=lambda fit, kl, mu, beta: fit - kl)),
        ("the third answer is the KL itself, without beta.", lambda *a: bound(*a, third=lambda kl, beta: beta * kl)),
        ("beta weighs the rebuilding: it belongs to the KL.", lambda *a: bound(*a, of=lambda fit, kl, mu, beta: beta * fit - kl)),
    ]
    for beta in (3.0, 0.5, 1.0, 0.0):
        cases = [_model_case(beta=beta), _model_case((5,), beta=beta), _model_case((2, 3), beta=beta), _model_case(dtype=torch.float32, beta=beta)]
        grad = ("A", "M", "shift", "x", "eps")
        agree(work, bound, cases, what=f"(bound, log p(x|z), KL) with beta = {beta:g}", grad=grad, tol=1e-5, suspects=suspects if beta != 1 else suspects[:3])
    agree(work, bound, _model_case(), what="(bound, log p(x|z), KL) without beta", tol=1e-6)


def iwae_bound(answer):
    def weights(A, M, shift, x, eps, far, prior=1.0, q=1.0, closed=False):
        fit, p, log_q, kl, _ = _parts(A, M, shift, x, eps, far)
        return fit - kl if closed else fit + prior * p - q * log_q

    def mean(log_w):
        top = log_w.detach().max(0).values
        return (log_w - top).exp().mean(0).log() + top

    def work(A, M, shift, x, eps, far):
        return answer(_Model(A, M, shift, far), x, eps)

    bound = lambda *a: mean(weights(*a))
    suspects = [
        ("this is the log of the sum of the weights: their mean is wanted.", lambda *a: mean(weights(*a)) + math.log(len(a[4]))),
        ("the mean was taken after the log; that is the ELBO.", lambda *a: weights(*a).mean(0)),
        ("log q(z|x) is missing from the weights.", lambda *a: mean(weights(*a, q=0.0))),
        ("the weights hold only p(x|z).", lambda *a: mean(weights(*a, prior=0.0, q=0.0))),
        ("log p(z) is missing from the weights.", lambda *a: mean(weights(*a, prior=0.0))),
        ("log q(z|x) was added: the weights are divided by q.", lambda *a: mean(weights(*a, q=-1.0))),
        ("this uses the closed-form KL: inside the mean each draw needs its own log p(z) - log q(z|x).", lambda *a: mean(weights(*a, closed=True))),
        ("the best draw alone was taken, not the mean.", lambda *a: weights(*a).max(0).values),
    ]

    def case(K, far=0.0, dtype=torch.float64, odd=0.0):
        def draw(g):
            given = _model_case((K,), dtype)(g) | {"far": far}
            given["x"][0] += odd  # one picture that is far less probable than the others
            return given

        return draw

    grad = ("A", "M", "shift", "x", "eps")
    agree(work, bound, [case(6), case(3)], what="the bound", grad=grad, tol=1e-6, suspects=suspects)
    agree(work, bound, case(1), what="the bound with one draw", grad=grad, tol=1e-6)
    what = "the bound where log p(x|z) is about -300 (the exponential of that is 0 in single precision)"
    agree(work, bound, case(5, 300.0, torch.float32), what=what, tol=1e-5)
    agree(work, bound, case(5, 0.0, torch.float32, odd=40.0), what="the bound where one picture is far less probable than the others", grad=("A",), tol=1e-4)


class _Net(nn.Module):
    """A small VAE whose parameters learn: 5 pixels, 3 numbers of code."""

    latent = 3

    def __init__(self, seed, wide=0.0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.encoder, self.decoder = nn.Linear(5, 6).double(), nn.Linear(3, 5).double()
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.5)
        self.encoder.bias.data[3:] += wide  # wide codes: a high price with a steep gradient

    def encode(self, x):
        return self.encoder(x).chunk(2, -1)

    def log_px(self, x, z):
        return -nn.functional.binary_cross_entropy_with_logits(self.decoder(z), x.expand(*z.shape[:-1], 5), reduction="none").sum(-1)


def _by_hand(net, optimiser, x, generator, beta, loss=lambda f, k, b: (b * k - f).mean(), clear="before", log=lambda f, k, b: (k - f, -f, k), again=False):
    """The step written without the lesson's functions; the switches build the usual mistakes."""
    eps = torch.randn(len(x), 3, generator=generator)

    def parts():
        mu, logvar = net.encoder(x)[:, :3], net.encoder(x)[:, 3:]
        logits = net.decoder(mu + torch.sqrt(torch.exp(logvar)) * eps)
        log_px = (x * torch.log(torch.sigmoid(logits)) + (1 - x) * torch.log(torch.sigmoid(-logits))).sum(1)
        return log_px, (0.5 * (mu**2 + torch.exp(logvar) - 1 - logvar)).sum(1)

    log_px, kl = parts()
    if clear == "before":
        optimiser.zero_grad()
    loss(log_px, kl, beta).backward()
    optimiser.step()
    if clear == "after":
        optimiser.zero_grad()
    log_px, kl = parts() if again else (log_px, kl)
    return dict(zip(("minus_elbo", "rebuild", "price"), (v.mean().item() for v in log(log_px, kl, beta))))


_SUSPECTS = [
    ("the parameters move the wrong way: the bound should rise, and an optimiser lowers its loss.", dict(loss=lambda f, k, b: (f - b * k).mean())),
    ("the bound was summed over the batch: its mean is wanted.", dict(loss=lambda f, k, b: (b * k - f).sum())),
    ("gradients left over from before were added to this step's.", dict(clear="never")),
    ("gradients left over from before were added to this step's: clear them before the backward pass, not after.", dict(clear="after")),
    ("beta is not used in the loss.", dict(loss=lambda f, k, b: (k - f).mean())),
    ("minus_elbo in the log holds beta: the true bound has the full price.", dict(log=lambda f, k, b: (b * k - f, -f, k))),
    ("minus_elbo in the log is the bound itself: turn its sign.", dict(log=lambda f, k, b: (f - k, -f, k))),
    ("rebuild in the log is log p(x|z) itself: turn its sign.", dict(log=lambda f, k, b: (k - f, f, k))),
    ("price in the log holds beta: the KL itself is wanted.", dict(log=lambda f, k, b: (k - f, -f, b * k))),
    ("the log tells of the model after the step: it should tell of the loss that made the step.", dict(again=True)),
]


def _told_apart(answer, x, seed):
    """The message of the suspect that does what the answer does, from one start, two steps long; None where there is none."""

    def twice(step):
        net, generator = _Net(1), torch.Generator().manual_seed(seed)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
        for p in net.parameters():
            p.grad = torch.full_like(p, 0.1)
        logs = [step(net, optimiser, x, generator, 0.25) for _ in range(2)]
        return {**net.state_dict(), **{f"{k} {i}": torch.tensor(v) for i, log in enumerate(logs) for k, v in log.items()}}

    def like(a, b):
        return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=1e-8, atol=1e-10) for k in a)

    try:
        got = twice(answer)
        return next((m for m, how in _SUSPECTS if like(got, twice(lambda *a, how=how: _by_hand(*a, **how)))), None)
    except Exception:  # an answer that breaks here has its own message
        return None


def train_step(answer):
    sgd = lambda lr: lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9)
    rounds = ((lambda p: torch.optim.Adam(p, lr=0.05), 1.0, 0.0), (sgd(0.3), 0.25, 0.0), (sgd(1e-4), 1.0, 8.0))
    for seed, (make, beta, wide) in enumerate(rounds):
        mine, theirs = _Net(1, wide), _Net(1, wide)
        my_optimiser, their_optimiser = make(mine.parameters()), make(theirs.parameters())
        ours, others = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        for step in range(3):
            x = torch.bernoulli(torch.full((7 - step, 5), 0.4, dtype=torch.float64), generator=torch.Generator().manual_seed(step))
            if step == 0:  # gradients left over from something else must not count
                for p in mine.parameters():
                    p.grad = torch.full_like(p, 10.0)
            before, dice = copy.deepcopy(mine.state_dict()), torch.get_rng_state()
            got = answer(mine, my_optimiser, x, ours, beta)
            want = _by_hand(theirs, their_optimiser, x, others, beta)
            where = f"step {step + 1} with beta = {beta:g}"
            if not isinstance(got, dict) or set(got) != set(want):
                raise Wrong("return a dictionary with the three keys minus_elbo, rebuild and price.")
            right(
                all(isinstance(v, float) for v in got.values()),
                "the values for the log should be plain numbers (.item()): a tensor would keep the whole graph of the step alive.",
            )
            right(
                any(not torch.equal(v, before[k]) for k, v in mine.state_dict().items()),
                f"in {where} no parameter moved: is the optimiser's step missing, or the backward pass?",
            )
            try:
                alike(got, want, f"the log of {where}", 1e-9)
                same_state(mine, theirs, f"after {where} the model", 1e-9)
            except Wrong:
                if cause := _told_apart(answer, x, seed):
                    raise Wrong(cause) from None
                raise
            right(torch.equal(torch.get_rng_state(), dice), "PyTorch's own dice were thrown or seeded: only `generator` is yours to use.")
            right(mine.training, "the step leaves the model in another mode (eval) than it found it in.")
            right(torch.equal(ours.get_state(), others.get_state()), f"in {where} the generator should give one draw of shape (B, latent), and nothing else.")
