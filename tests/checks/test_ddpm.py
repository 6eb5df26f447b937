"""The checks of lesson 2.3 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import ddpm as checks
from course_utils.lessons import ddpm
from course_utils.lessons.ddpm import at, q_sample, velocity

from . import WRONG_SHAPE, accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, ddpm, name)


def q_without_roots(x0, t, eps, schedule):
    abar = at(schedule.abar, t, x0)
    return abar * x0 + (1 - abar) * eps


def q_one_small_step(x0, t, eps, schedule):
    beta = at(schedule.beta, t, x0)
    return (1 - beta).sqrt() * x0 + beta.sqrt() * eps


def q_off_by_one(x0, t, eps, schedule):
    return q_sample(x0, (t - 1).clamp(min=0), eps, schedule)


def q_swapped(x0, t, eps, schedule):
    return q_sample(eps, t, x0, schedule)


def q_of_first_t_only(x0, t, eps, schedule):
    return q_sample(x0, t[:1].expand(len(t)), eps, schedule)


def posterior_with_beta(x0, xt, t, schedule):
    return ddpm.posterior(x0, xt, t, schedule)[0], at(schedule.beta, t, xt)


def posterior_with_std(x0, xt, t, schedule):
    mean, var = ddpm.posterior(x0, xt, t, schedule)
    return mean, var.sqrt()


def posterior_swapped(x0, xt, t, schedule):
    return ddpm.posterior(xt, x0, t, schedule)


def posterior_in_single_precision(x0, xt, t, schedule):
    beta, abar, before = (at(v, t, xt.float()) for v in (schedule.beta, schedule.abar, schedule.abar.roll(1)))
    mean = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * xt) / (1 - abar)
    return mean, (beta * (1 - before) / (1 - abar)).to(xt)


def posterior_without_variance(x0, xt, t, schedule):
    return ddpm.posterior(x0, xt, t, schedule)[0]


def loss_of_clean_picture(model, x0, t, eps, schedule, target="v"):
    return F.mse_loss(model(x0, t), eps if target == "eps" else velocity(x0, t, eps, schedule))


def loss_always_eps(model, x0, t, eps, schedule, target="v"):
    return F.mse_loss(model(q_sample(x0, t, eps, schedule), t), eps)


def loss_summed(model, x0, t, eps, schedule, target="v"):
    wanted = eps if target == "eps" else velocity(x0, t, eps, schedule)
    return (model(q_sample(x0, t, eps, schedule), t) - wanted).square().flatten(1).sum(1).mean()


def loss_detached(model, x0, t, eps, schedule, target="v"):
    return ddpm.denoising_loss(model, x0, t, eps, schedule, target).detach()


def ddim_without_new_noise(xt, x0_hat, eps_hat, t, s, schedule, eta=0.0, z=None):
    return ddpm.ddim_step(xt, x0_hat, eps_hat, t, s, schedule)


def ddim_at_t(xt, x0_hat, eps_hat, t, s, schedule, eta=0.0, z=None):
    return q_sample(x0_hat, t, eps_hat, schedule)


def ddim_noise_piles_up(xt, x0_hat, eps_hat, t, s, schedule, eta=0.0, z=None):
    now, then = at(schedule.abar, t, xt), at(schedule.abar, s, xt)
    var = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    return q_sample(x0_hat, s, eps_hat, schedule) + (var.sqrt() * z if eta else 0)


def ddim_eta_not_squared(xt, x0_hat, eps_hat, t, s, schedule, eta=0.0, z=None):
    return ddpm.ddim_step(xt, x0_hat, eps_hat, t, s, schedule, eta**0.5, z)


def ddim_always_wants_noise(xt, x0_hat, eps_hat, t, s, schedule, eta=0.0, z=None):
    return ddpm.ddim_step(xt, x0_hat, eps_hat, t, s, schedule, eta, z) + 0 * z


WRONG = {
    "q_sample": [
        (q_without_roots, "square root"),
        (q_one_small_step, "one small step"),
        (q_off_by_one, "off by"),
        (q_swapped, "swapped"),
        (q_of_first_t_only, "own t"),
    ],
    "posterior": [
        (posterior_with_beta, "forward step"),
        (posterior_with_std, "standard deviation"),
        (posterior_swapped, "exchanged"),
        (posterior_in_single_precision, "off by"),
        (posterior_without_variance, "two things"),
    ],
    "denoising_loss": [
        (loss_of_clean_picture, "clean picture"),
        (loss_always_eps, "compared with eps"),
        (loss_summed, "mean over"),
        (loss_detached, "gradient"),
    ],
    "ddim_step": [(ddim_without_new_noise, "sigma"), (ddim_at_t, "abar_s"), (ddim_noise_piles_up, "piles up"), (ddim_eta_not_squared, "squared")],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


def test_noise_is_not_needed_without_eta():
    with pytest.raises(TypeError):  # reported by check() as the learner's own error
        checks.ddim_step(ddim_always_wants_noise)


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_a_wrong_shape_gets_one_sentence(name):
    wrong = {"posterior": (torch.zeros(2, 3), torch.zeros(4, 1, 1, 1))}.get(name, torch.zeros(2, 3))

    def answer(*inputs):
        if name == "denoising_loss":
            model, x0, t, eps, schedule, _ = inputs
            model(q_sample(x0, t, eps, schedule), t)
        return wrong

    refuses(getattr(checks, name), answer, WRONG_SHAPE)


def test_nothing_returned():
    refuses(checks.q_sample, lambda *inputs: None, "None")
