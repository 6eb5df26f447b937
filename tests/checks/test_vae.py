"""The checks of lesson 2.2 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import math

import pytest
import torch

from course_utils.checks import vae as checks
from course_utils.exercises import examine
from course_utils.lessons import vae
from course_utils.lessons.vae import log_normal

from . import WRONG_SHAPE, accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, vae, name)


def z_with_variance(mu, logvar, eps):
    return mu + logvar.exp() * eps


def z_with_logvar(mu, logvar, eps):
    return mu + logvar * eps


def z_without_noise(mu, logvar, eps):
    return mu.expand(eps.shape)


def z_with_noise_of_its_own(mu, logvar, eps):
    return mu + (0.5 * logvar).exp() * torch.randn_like(eps)


def z_detached(mu, logvar, eps):
    return mu + (0.5 * logvar).exp().detach() * eps


def z_from_torch(mu, logvar, eps):
    return torch.distributions.Normal(mu, (0.5 * logvar).exp()).sample()


def kl_negative(mu, logvar):
    return -vae.kl_divergence(mu, logvar)


def kl_without_half(mu, logvar):
    return 2 * vae.kl_divergence(mu, logvar)


def kl_mean_over_code(mu, logvar):
    return vae.kl_divergence(mu, logvar) / mu[0].numel()


def kl_of_batch(mu, logvar):
    return vae.kl_divergence(mu, logvar).mean()


def kl_last_axis_only(mu, logvar):
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1)


def kl_with_sigma(mu, logvar):
    return 0.5 * (mu**2 + (0.5 * logvar).exp() - 1 - logvar).flatten(1).sum(1)


def elbo_at_mu(model, x, eps, beta=1.0):
    return vae.elbo(model, x, torch.zeros_like(eps), beta)


def elbo_plus_kl(model, x, eps, beta=1.0):
    _, log_px, kl = vae.elbo(model, x, eps, beta)
    return log_px + beta * kl, log_px, kl


def elbo_as_loss(model, x, eps, beta=1.0):
    bound, log_px, kl = vae.elbo(model, x, eps, beta)
    return -bound, log_px, kl


def elbo_without_beta(model, x, eps, beta=1.0):
    return vae.elbo(model, x, eps)


def elbo_mean(model, x, eps, beta=1.0):
    return tuple(v.mean() for v in vae.elbo(model, x, eps, beta))


def elbo_only(model, x, eps, beta=1.0):
    return vae.elbo(model, x, eps, beta)[0]


def elbo_with_beta_in_kl(model, x, eps, beta=1.0):
    bound, log_px, kl = vae.elbo(model, x, eps, beta)
    return bound, log_px, beta * kl


def elbo_detached(model, x, eps, beta=1.0):
    return tuple(v.detach() for v in vae.elbo(model, x, eps, beta))


def _log_w(model, x, eps, prior=True, q=True):
    mu, logvar = model.encode(x)
    z = vae.reparameterise(mu, logvar, eps)
    return model.log_px(x, z) + (log_normal(z) if prior else 0) - (log_normal(z, mu, logvar) if q else 0)


def iwae_sum(model, x, eps):
    return torch.logsumexp(_log_w(model, x, eps), 0)


def iwae_mean_of_logs(model, x, eps):
    return _log_w(model, x, eps).mean(0)


def iwae_plain_exp(model, x, eps):
    return _log_w(model, x, eps).exp().mean(0).log()


def iwae_without_q(model, x, eps):
    return torch.logsumexp(_log_w(model, x, eps, q=False), 0) - math.log(len(eps))


def iwae_without_prior_and_q(model, x, eps):
    return torch.logsumexp(_log_w(model, x, eps, False, False), 0) - math.log(len(eps))


def iwae_with_closed_kl(model, x, eps):
    log_w = _log_w(model, x, eps, False, False) - vae.kl_divergence(*model.encode(x))
    return torch.logsumexp(log_w, 0) - math.log(len(eps))


def iwae_over_everything(model, x, eps):
    return torch.logsumexp(_log_w(model, x, eps).flatten(), 0) - math.log(len(eps))


def step(draw=None, loss=None, clear=True, move=True, log=None, before_move=None, after=None):
    """A training step with one part replaced or added: draw(model, x, g), loss(log_px, kl, beta), log(log_px, kl, beta), before_move(model), after(model)."""

    def run(model, optimiser, x, generator, beta=1.0):
        eps = (draw or (lambda m, x, g: torch.randn(len(x), m.latent, generator=g)))(model, x, generator)
        _, log_px, kl = vae.elbo(model, x, eps, beta)
        total = (loss or (lambda log_px, kl, beta: (beta * kl - log_px).mean()))(log_px, kl, beta)
        if clear:
            optimiser.zero_grad()
        total.backward()
        if before_move:
            before_move(model)
        if move:
            optimiser.step()
        if after:
            after(model)
        told = {"minus_elbo": (kl - log_px).mean(), "rebuild": -log_px.mean(), "price": kl.mean()}
        return log(log_px, kl, beta) if log else {k: v.item() for k, v in told.items()}

    return run


_eps = {}
_bound = {}


def means(**values):
    return {k: v.mean().item() for k, v in values.items()}


def cleared_after(model, optimiser, x, generator, beta=1.0):
    log = step(clear=False)(model, optimiser, x, generator, beta)
    optimiser.zero_grad()
    return log


def logged_after(model, optimiser, x, generator, beta=1.0):
    again = torch.Generator()
    again.set_state(generator.get_state())
    step()(model, optimiser, x, generator, beta)
    _, log_px, kl = vae.elbo(model, x, torch.randn(len(x), model.latent, generator=again))
    return means(minus_elbo=kl - log_px, rebuild=-log_px, price=kl)


WRONG = {
    "reparameterise": [
        (z_with_variance, "by the variance"),
        (z_with_logvar, "logvar itself"),
        (z_without_noise, "noise is missing"),
        (z_with_noise_of_its_own, "off by"),
        (z_detached, "no gradient reaches logvar"),
        (z_from_torch, "off by|shape"),
        (lambda mu, logvar, eps: mu.detach() + (0.5 * logvar).exp() * eps, "no gradient reaches mu"),
        (lambda mu, logvar, eps: eps.mul_((0.5 * logvar).exp()).add_(mu), "changes its argument eps"),
        (lambda mu, logvar, eps: mu + (0.5 * logvar.clamp(-1, 1)).exp() * eps, "off by"),
        (lambda mu, logvar, eps: mu + (0.5 * logvar.clamp(-30, 30)).exp() * eps, "off by"),
    ],
    "kl_divergence": [
        (kl_negative, "sign is turned"),
        (kl_without_half, "1/2"),
        (kl_mean_over_code, "mean over the code"),
        (kl_of_batch, "into one number"),
        (kl_last_axis_only, "only the last axis"),
        (kl_with_sigma, "sigma stands"),
        (lambda mu, logvar: vae.kl_divergence(mu, logvar.detach()), "no gradient reaches logvar"),
        (lambda mu, logvar: vae.kl_divergence(mu, logvar).clamp(max=2), "off by|gradient"),
        (lambda mu, logvar: vae.kl_divergence(mu, logvar.clamp(-20, 20)), "off by"),
        (lambda mu, logvar: 0.5 * (mu**2 + logvar.exp() - 1 - (logvar.exp() + 1e-8).log()).flatten(1).sum(1), "off by"),
        (lambda mu, logvar: (0.5 * (mu**2 + logvar.exp() - 1 - logvar)).clamp(min=0.05).flatten(1).sum(1), "off by"),
        (lambda mu, logvar: vae.kl_divergence(mu, logvar).squeeze(), "shape"),
        (lambda mu, logvar: vae.kl_divergence(mu, logvar).float(), "dtype|gradient"),
    ],
    "elbo": [
        (elbo_at_mu, "scored at mu"),
        (elbo_plus_kl, "price"),
        (elbo_as_loss, "negative"),
        (elbo_without_beta, "beta is not used"),
        (elbo_mean, "should have shape"),
        (elbo_only, "3 values"),
        (elbo_with_beta_in_kl, "without beta"),
        (elbo_detached, "no gradient"),
        (lambda m, x, e, beta=1.0: (lambda b, f, k: (f - beta * k.detach(), f, k))(*vae.elbo(m, x, e, beta)), "not the right gradient|no gradient"),
        (lambda m, x, e, beta=1.0: _bound.setdefault((x.dtype, e.shape, beta), vae.elbo(m, x, e, beta)), "first call's result"),
        (lambda m, x, e, beta=2.0: vae.elbo(m, x, e, beta), "without beta"),
        (lambda m, x, e, beta=1.0: vae.elbo(m, x, e.flatten(0, -3) if e.ndim > 3 else e, beta), "shape"),
        (lambda m, x, e, beta=1.0: vae.elbo(m, x, e, max(beta, 0.1)), "beta = 0"),
        (lambda m, x, e, beta=1.0: (lambda b, f, k: (b, f.detach(), k.detach()))(*vae.elbo(m, x, e, beta)), "gradient"),
    ],
    "iwae_bound": [
        (iwae_sum, "log of the sum"),
        (iwae_mean_of_logs, "after the log"),
        (iwae_plain_exp, "about -300"),
        (iwae_without_q, "log q"),
        (iwae_without_prior_and_q, "only p"),
        (iwae_with_closed_kl, "closed-form"),
        (iwae_over_everything, "shape"),
        (lambda m, x, e: (lambda w: (w - w.max()).exp().mean(0).log() + w.max())(_log_w(m, x, e)), "far less probable"),
        (lambda m, x, e: _log_w(m, x, e).max(0).values, "best draw"),
        (lambda m, x, e: vae.iwae_bound(m, x, e[:1]), "off by"),
        (lambda m, x, e: vae.iwae_bound(m, x, e).detach(), "no gradient"),
        (lambda m, x, e: _log_w(m, x, e).double().exp().mean(0).log().to(x.dtype), "far less probable"),
        (lambda m, x, e: torch.logsumexp(_log_w(m, x, e).clamp(min=-1000), 0) - math.log(len(e)), "far less probable"),
        (lambda m, x, e: torch.logsumexp(_log_w(m, x, e), 1) - math.log(len(x)), "shape"),
    ],
    "train_step": [
        (step(loss=lambda f, k, beta: (f - beta * k).mean()), "wrong way"),
        (step(loss=lambda f, k, beta: (k - f).mean()), "beta is not used"),
        (step(loss=lambda f, k, beta: (beta * k - f).sum()), "summed over the batch"),
        (step(clear=False), "left over from before were added to this step's.$"),
        (cleared_after, "before the backward pass"),
        (logged_after, "after the step"),
        (step(move=False), "no parameter moved"),
        (step(draw=lambda m, x, g: torch.zeros(len(x), m.latent)), "log of step 1|one draw"),
        (step(draw=lambda m, x, g: torch.randn(len(x), m.latent)), "log of step 1"),
        (step(draw=lambda m, x, g: torch.randn(1, m.latent, generator=g).expand(len(x), -1)), "log of step 1"),
        (step(draw=lambda m, x, g: _eps.setdefault(len(x), torch.randn(len(x), m.latent, generator=g))), ""),
        (step(log=lambda f, k, beta: means(minus_elbo=beta * k - f, rebuild=-f, price=k)), "holds beta"),
        (step(log=lambda f, k, beta: means(minus_elbo=k - f, rebuild=f, price=k)), "rebuild in the log"),
        (step(log=lambda f, k, beta: {"minus_elbo": (k - f).mean(), "rebuild": -f.mean(), "price": k.mean()}), "plain numbers"),
        (step(log=lambda f, k, beta: means(loss=k - f)), "three keys"),
        (lambda m, o, x, g, beta=1.0: step()(m, o, x.zero_(), g, beta), "changes its argument x|log of step 1"),
        (step(before_move=lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), 100.0)), "after step 1"),
        (step(after=lambda m: [p.data.clamp_(-5, 5) for p in m.parameters()]), "after step 1"),
        (step(after=lambda m: m.eval()), "another mode"),
        (step(after=lambda m: torch.manual_seed(0)), "own dice"),
        (step(loss=lambda f, k, beta: (beta * k.detach() - f).mean()), "after step 1"),
        (lambda m, o, x, g, beta=1.0: [step()(m, o, x, g, beta) for _ in range(2)][0], "after step 1"),
    ],
}

RIGHT = {
    "reparameterise": [lambda mu, logvar, eps: torch.addcmul(mu.expand(eps.shape), logvar.exp() ** 0.5, eps)],
    "kl_divergence": [
        lambda mu, logvar: (
            torch.distributions.kl_divergence(
                torch.distributions.Normal(mu, (logvar / 2).exp()), torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
            )
            .flatten(1)
            .sum(1)
        ),
        lambda mu, logvar: torch.stack([(m.square() + v.exp() - 1 - v).sum() / 2 for m, v in zip(mu, logvar)]),
    ],
    "elbo": [
        lambda m, x, e, beta=1.0: (lambda mu, v: (lambda f, k: (f - beta * k, f, k))(m.log_px(x, mu + v.div(2).exp() * e), vae.kl_divergence(mu, v)))(
            *m.encode(x)
        ),
    ],
    "iwae_bound": [lambda m, x, e: torch.logsumexp(_log_w(m, x, e) - math.log(len(e)), dim=0)],
    "train_step": [step(), step(loss=lambda f, k, beta: beta * k.mean() - f.mean())],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    _eps.clear()
    _bound.clear()
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


@pytest.mark.parametrize("name", [n for n in checks.HINTS if n != "train_step"])
def test_a_wrong_shape_gets_one_sentence(name):
    wrong = torch.zeros(2, 7)
    answer = (lambda model, x, eps, beta=1.0: (model.log_px(x, eps) * 0 + wrong[:, :1],) * 3) if name == "elbo" else lambda *inputs: wrong
    refuses(getattr(checks, name), answer, WRONG_SHAPE)


def test_nothing_returned():
    for name in ("reparameterise", "train_step"):
        refuses(getattr(checks, name), lambda *inputs: None, "None|dictionary")
