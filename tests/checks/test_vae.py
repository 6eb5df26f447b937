"""The checks of lesson 2.2 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import math

import pytest
import torch

from course_utils.checks import vae as checks
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


WRONG = {
    "reparameterise": [
        (z_with_variance, "by the variance"),
        (z_with_logvar, "logvar itself"),
        (z_without_noise, "noise is missing"),
        (z_with_noise_of_its_own, "draw none"),
        (z_detached, "logvar"),
        (z_from_torch, "should have shape|draw none"),
    ],
    "kl_divergence": [
        (kl_negative, "sign is turned"),
        (kl_without_half, "1/2"),
        (kl_mean_over_code, "sum, since"),
        (kl_of_batch, "over the batch"),
        (kl_last_axis_only, "should have shape"),
        (kl_with_sigma, "never negative|off by"),
    ],
    "elbo": [
        (elbo_at_mu, "scored at mu"),
        (elbo_plus_kl, "price"),
        (elbo_as_loss, "negative"),
        (elbo_without_beta, "beta is not used"),
        (elbo_mean, "each picture"),
        (elbo_only, "three things"),
        (elbo_with_beta_in_kl, "without beta"),
        (elbo_detached, "gradient"),
    ],
    "iwae_bound": [
        (iwae_sum, "subtract log K"),
        (iwae_mean_of_logs, "after the log"),
        (iwae_plain_exp, "logsumexp"),
        (iwae_without_q, "log q"),
        (iwae_without_prior_and_q, "only p"),
        (iwae_with_closed_kl, "closed-form"),
        (iwae_over_everything, "axis 0"),
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_a_wrong_shape_gets_one_sentence(name):
    wrong = torch.zeros(2, 7)
    answer = (lambda model, x, eps, beta=1.0: (model.log_px(x, eps) * 0 + wrong[:, :1],) * 3) if name == "elbo" else lambda *inputs: wrong
    refuses(getattr(checks, name), answer, WRONG_SHAPE)


def test_nothing_returned():
    refuses(checks.reparameterise, lambda *inputs: None, "None")
