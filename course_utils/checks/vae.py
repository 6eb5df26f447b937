"""Checks of lesson 2.2 (VAE): each computes its own answer with plain numbers, one example at a time."""

from __future__ import annotations

import math

import torch

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "reparameterise": [
        "Move and stretch the standard normal eps: its mean should become mu, its standard deviation sigma.",
        "logvar is the logarithm of the variance sigma². What is sigma?",
        "return mu + (0.5 * logvar).exp() * eps.",
    ],
    "kl_divergence": [
        "One number per entry of the code, (mu² + sigma² - 1 - log sigma²) / 2, then a sum over everything but the batch.",
        "sigma² is logvar.exp(), and log sigma² is logvar itself. flatten(1).sum(1) sums everything but the batch.",
        "return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1).",
    ],
    "elbo": [
        "Four steps: model.encode, reparameterise, model.log_px, kl_divergence.",
        "The decoder is scored at the draw z = reparameterise(mu, logvar, eps), not at mu. Only the bound contains beta.",
        "mu, logvar = model.encode(x); log_px = model.log_px(x, reparameterise(mu, logvar, eps)); kl = kl_divergence(mu, logvar); "
        "return log_px - beta * kl, log_px, kl.",
    ],
    "iwae_bound": [
        "First the logarithm of each weight, (K, B): log p(x|z) + log p(z) - log q(z|x). Then the mean of the weights, in logarithms.",
        "log p(z) is log_normal(z), log q(z|x) is log_normal(z, mu, logvar). The mean over K is logsumexp over axis 0, minus log K.",
        "mu, logvar = model.encode(x); z = reparameterise(mu, logvar, eps); log_w = model.log_px(x, z) + log_normal(z) - log_normal(z, mu, logvar); "
        "return torch.logsumexp(log_w, 0) - math.log(len(eps)).",
    ],
}


class _Model:
    """A model with known answers: 3 pixels, 2 numbers of code, p(x|z) = N(Az, I). ``far`` lowers log p(x|z), as with many pixels."""

    def __init__(self, seed: int, far: float = 0.0):
        g = torch.Generator().manual_seed(seed)
        self.A, self.M = torch.randn(3, 2, generator=g), torch.randn(2, 3, generator=g)
        self.shift, self.far, self.seen = torch.tensor([-0.7, 0.4], requires_grad=True), far, []

    def encode(self, x):
        return x @ self.M.T * 0.5, (0.3 * x[:, :2]).sin() + self.shift

    def log_px(self, x, z):
        self.seen.append(z)
        return -0.5 * ((x - z @ self.A.T) ** 2).sum(-1) - self.far

    def plain(self, x, eps):
        """(log p(x|z), log p(z), log q(z|x), KL, log p(x|mu)) of one example, with Python's numbers."""
        with torch.no_grad():
            mu, logvar = (v[0].double().tolist() for v in self.encode(x[None]))
        eps, xs, A = eps.double().tolist(), x.double().tolist(), self.A.double().tolist()
        z = [m + math.exp(v / 2) * e for m, v, e in zip(mu, logvar, eps)]

        def fit(code):
            return sum(-0.5 * (v - sum(a * c for a, c in zip(row, code))) ** 2 for v, row in zip(xs, A)) - self.far

        prior = sum(-0.5 * (c * c + math.log(2 * math.pi)) for c in z)
        q = sum(-0.5 * (e * e + v + math.log(2 * math.pi)) for e, v in zip(eps, logvar))
        kl = sum(0.5 * (m * m + math.exp(v) - 1 - v) for m, v in zip(mu, logvar))
        return fit(z), prior, q, kl, fit(mu)


def reparameterise(answer):
    g = torch.Generator().manual_seed(1)
    for shape, front in (((4, 3), ()), ((2, 5), (6,))):
        mu, logvar = torch.randn(2, *shape, generator=g).unbind(0)
        eps = torch.randn(*front, *shape, generator=g)
        mu.requires_grad_(), logvar.requires_grad_()
        got = answer(mu, logvar, eps)
        want = mu + torch.tensor([math.sqrt(math.exp(v)) for v in logvar.detach().flatten().tolist()]).reshape(shape) * eps
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            right(not torch.allclose(got, mu + logvar.exp() * eps, atol=1e-5), "eps was stretched by the variance: the standard deviation is exp(logvar / 2).")
            right(not torch.allclose(got, mu + logvar * eps, atol=1e-5), "eps was stretched by logvar itself: the standard deviation is exp(logvar / 2).")
            right(not torch.allclose(got, mu.expand(want.shape), atol=1e-5), "this is mu: the noise is missing.")
        same(got, want, "z", "z = mu + sigma · eps, with sigma = exp(logvar / 2); use the eps that is given, and draw none yourself.")
        needs_grad(got, {"mu": mu, "logvar": logvar}, "z")


def kl_divergence(answer):
    g = torch.Generator().manual_seed(2)
    for shape, dtype in (((4, 3), torch.float32), ((3, 5), torch.float64), ((2, 4, 3, 3), torch.float64)):
        mu, logvar = torch.randn(2, *shape, generator=g, dtype=dtype).unbind(0)
        mu.requires_grad_(), logvar.requires_grad_()
        got = answer(mu, logvar)
        each = [[0.5 * (m * m + math.exp(v) - 1 - v) for m, v in zip(a.flatten().tolist(), b.flatten().tolist())] for a, b in zip(mu, logvar)]
        want = torch.tensor([math.fsum(row) for row in each], dtype=dtype)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            right(not torch.allclose(got, -want, atol=1e-5), "the sign is turned: a KL divergence is never negative.")
            right(not torch.allclose(got, 2 * want, atol=1e-5), "the factor 1/2 is missing.")
            mean = torch.tensor([math.fsum(row) / len(row) for row in each], dtype=dtype)
            right(not torch.allclose(got, mean, atol=1e-5), "this is the mean over the code: sum, since nats of independent numbers add up.")
            right(bool((got > -1e-6).all()), "a KL divergence is never negative: check the signs, and that sigma² is logvar.exp().")
        if isinstance(got, torch.Tensor) and got.ndim == 0:
            raise Wrong(f"the KL should have shape {tuple(want.shape)}, one number for each picture, but it has (): do not sum or average over the batch.")
        same(got, want, "the KL", "(mu² + sigma² - 1 - log sigma²) / 2, summed over everything but the batch.", 1e-5 if dtype == torch.float32 else 1e-12)
        needs_grad(got, {"mu": mu, "logvar": logvar}, "the KL")


def elbo(answer):
    g = torch.Generator().manual_seed(3)
    x, eps = torch.randn(4, 3, generator=g), torch.randn(4, 2, generator=g)
    for beta in (1.0, 3.0):
        model = _Model(5)
        got = answer(model, x, eps, beta)
        if not (isinstance(got, tuple) and len(got) == 3):
            raise Wrong("return three things: the bound, log p(x|z), and the KL.")
        fit, _, _, kl, at_mu = (torch.tensor(v, dtype=torch.float32) for v in zip(*(model.plain(a, b) for a, b in zip(x, eps))))
        right(len(model.seen) >= 1, "log p(x|z) has to come from model.log_px(x, z).")
        if isinstance(got[0], torch.Tensor) and got[0].ndim == 0:
            raise Wrong("the bound should have shape (4,), one number for each picture, but it has (): take no mean over the batch here.")
        if isinstance(got[0], torch.Tensor) and got[0].shape == fit.shape:
            right(
                not torch.allclose(got[0], at_mu - beta * kl, atol=1e-4), "the decoder was scored at mu: it should see a draw, reparameterise(mu, logvar, eps)."
            )
            right(not torch.allclose(got[0], fit + beta * kl, atol=1e-4), "the KL is a price: subtract it.")
            right(not torch.allclose(got[0], beta * kl - fit, atol=1e-4), "this is the loss: the bound is its negative.")
            right(beta == 1 or not torch.allclose(got[0], fit - kl, atol=1e-4), "beta is not used: it weighs the KL in the bound.")
        same(got[0], fit - beta * kl, "the bound", "log p(x|z) - beta · KL.")
        same(got[1], fit, "log p(x|z)", "It is model.log_px(x, z) at the draw z.")
        if beta != 1 and isinstance(got[2], torch.Tensor) and got[2].shape == kl.shape:
            right(not torch.allclose(got[2], beta * kl, atol=1e-4), "the third answer is the KL itself, without beta.")
        same(got[2], kl, "the KL", "It is kl_divergence(mu, logvar).")
        needs_grad(got[0], {"the encoder": model.shift}, "the bound")


def iwae_bound(answer):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(4, 3, generator=g)
    for K, far in ((6, 0.0), (1, 0.0), (5, 300.0)):  # at -300 nats the plain exponential is 0 in single precision
        model, eps = _Model(6, far), torch.randn(K, 4, 2, generator=g)
        got = answer(model, x, eps)
        parts = [[model.plain(x[i], eps[k, i]) for i in range(4)] for k in range(K)]
        log_w = torch.tensor([[p[0] + p[1] - p[2] for p in row] for row in parts], dtype=torch.float64)
        want = log_w.add(far).exp().mean(0).log().sub(far).float()
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            right(torch.isfinite(got).all().item(), "the bound is inf or nan: exp of -300 is 0 in single precision. Stay in logarithms, with torch.logsumexp.")
            right(K == 1 or not torch.allclose(got, want + math.log(K), atol=1e-4), "logsumexp is the log of a sum: subtract log K to get the mean.")
            right(
                K == 1 or not torch.allclose(got, log_w.mean(0).float(), atol=1e-4),
                "the mean was taken after the log; that is the ELBO. Average the weights before the log.",
            )
            no_q = torch.tensor([[p[0] + p[1] for p in row] for row in parts], dtype=torch.float64).add(far).exp().mean(0).log().sub(far).float()
            right(not torch.allclose(got, no_q, atol=1e-4), "log q(z|x) is missing from the weights: subtract log_normal(z, mu, logvar).")
            no_p = torch.tensor([[p[0] for p in row] for row in parts], dtype=torch.float64).add(far).exp().mean(0).log().sub(far).float()
            right(not torch.allclose(got, no_p, atol=1e-4), "the weights hold only p(x|z): add log p(z) and subtract log q(z|x).")
            closed = torch.tensor([[p[0] - p[3] for p in row] for row in parts], dtype=torch.float64).add(far).exp().mean(0).log().sub(far).float()
            right(not torch.allclose(got, closed, atol=1e-4), "this uses the closed-form KL: inside the mean each draw needs its own log p(z) - log q(z|x).")
        if isinstance(got, torch.Tensor) and got.ndim == 0:
            raise Wrong("the bound should have shape (4,), one number for each picture, but it has (): logsumexp runs over axis 0 only.")
        same(got, want, f"the bound with K = {K}", "logsumexp over k of log p(x|z) + log p(z) - log q(z|x), minus log K.", 1e-4 if far else 1e-5)
        needs_grad(got, {"the encoder": model.shift}, "the bound")
