"""The checks of lesson 2.3 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import ddpm as checks
from course_utils.exercises import examine
from course_utils.lessons import ddpm
from course_utils.lessons.ddpm import at, q_sample, velocity

from . import accepts, every, refuses


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


def sampler(levels=None, jump=None, told=None, fresh=None, result=None, moved=True):
    """A sampler with one part replaced: levels(T, steps), jump(x, x0, eps, t, s, schedule, eta, z), told(t), fresh(shape, generator, eta), result(x, guesses, keep)."""
    levels = levels or (lambda T, steps: torch.linspace(T, 0, steps + 1).round().long().unique().flip(0))
    fresh = fresh or (lambda shape, g, eta: torch.randn(shape, generator=g) if eta else None)
    result = result or (lambda x, guesses, keep: (x, guesses) if keep else x)

    @torch.no_grad()
    def run(model, shape, steps=50, schedule=None, target="v", eta=0.0, clip=True, generator=None, device="cpu", start=None, keep=False):
        schedule = schedule or ddpm.make_schedule()
        x, guesses = (torch.randn(shape, generator=generator) if start is None else start).to(device if moved else "cpu"), []
        times = levels(schedule.T, steps)
        for now, then in zip(times[:-1], times[1:]):
            t, s = now.to(x.device).expand(len(x)), then.to(x.device).expand(len(x))
            x0, eps = ddpm.split(model(x, told(t) if told else t), x, t, schedule, target, clip)
            x = (jump or ddpm.ddim_step)(x, x0, eps, t, s, schedule, eta, fresh(shape, generator, eta))
            guesses.append(x0)
        return result(x, guesses, keep)

    return run


def with_gradient(*args, **more):
    with torch.enable_grad():
        return ddpm.ddim_sample.__wrapped__(*args, **more)


def in_place_start(model, shape, *args, start=None, **more):
    out = ddpm.ddim_sample(model, shape, *args, start=start, **more)
    if start is not None:
        start.zero_()
    return out


def seeds_all(model, shape, *args, generator=None, **more):
    torch.manual_seed(0)
    return ddpm.ddim_sample(model, shape, *args, generator=generator, **more)


def looked_up_first(x0, xt, t, s):
    beta, abar, before = (at(table, t, xt) for table in (s.beta, s.abar, s.abar.roll(1)))
    return before.sqrt() * beta / (1 - abar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - abar) * xt, beta * (1 - before) / (1 - abar)


def step_with_fixed_noise(x, a, e, t, s, c, eta=0.0, z=None):
    return ddpm.ddim_step(x, a, e, t, s, c, eta, None if z is None else z.detach())


def endless(model, shape, steps=50, schedule=None, **more):
    t = schedule.T if schedule else 1
    while t > 0:
        pass


WRONG = {
    "q_sample": [
        (q_without_roots, "square root"),
        (q_one_small_step, "one small step"),
        (q_off_by_one, "too early"),
        (q_swapped, "exchanged"),
        (q_of_first_t_only, "first one's t"),
        (lambda x, t, e, s: q_sample(x.clamp(-4, 4), t, e, s), "large numbers"),
        (lambda x, t, e, s: at(s.abar.clamp(min=1e-3), t, x).sqrt() * x + (1 - at(s.abar.clamp(min=1e-3), t, x)).sqrt() * e, "1000 steps"),
        (lambda x, t, e, s: q_sample(x, t, e.detach(), s), "no gradient reaches eps"),
        (lambda x, t, e, s: q_sample(x, t, e, s).float(), "dtype"),
        (lambda x, t, e, s: x.mul_(at(s.abar, t, x).sqrt()) + (1 - at(s.abar, t, x)).sqrt() * e, "changes its argument x"),
        (lambda x, t, e, s: s.abar[t].sqrt().reshape(-1, 1, 1, 1) * x + (1 - s.abar[t]).sqrt().reshape(-1, 1, 1, 1) * e, "shape"),
    ],
    "posterior": [
        (posterior_with_beta, "forward step"),
        (posterior_with_std, "standard deviation"),
        (posterior_swapped, "exchanged"),
        (posterior_in_single_precision, "off by|dtype"),
        (posterior_without_variance, "should be 2 values"),
        (looked_up_first, "looked up first"),
        (lambda x, y, t, s: ddpm.posterior(x.clamp(-5, 5), y, t, s), "large numbers"),
        (lambda x, y, t, s: ddpm.posterior(x, y, (t - 1).clamp(min=1), s), "off by"),
        (lambda x, y, t, s: ddpm.posterior(x, y.detach(), t, s), "no gradient reaches xt"),
        (lambda x, y, t, s: (ddpm.posterior(x, y, t, s)[0], ddpm.posterior(x, y, t, s)[1].flatten()), "shape"),
    ],
    "denoising_loss": [
        (loss_of_clean_picture, "clean picture"),
        (loss_always_eps, "eps whatever"),
        (loss_summed, "over each picture"),
        (loss_detached, "no gradient"),
        (lambda m, x, t, e, s, target="eps": ddpm.denoising_loss(m, x, t, e, s, target), "without a target"),
        (lambda m, x, t, e, s, target="v": F.l1_loss(m(q_sample(x, t, e, s), t), e if target == "eps" else velocity(x, t, e, s)), "absolute"),
        (lambda m, x, t, e, s, target="v": ddpm.denoising_loss(lambda y, u: m(y, u / s.T), x, t, e, s, target), "told t as it is"),
        (lambda m, x, t, e, s, target="v": ddpm.denoising_loss(lambda y, u: m(y, u.float()), x, t, e, s, target), "told t as it is"),
        (
            lambda m, x, t, e, s, target="v": 20 * F.smooth_l1_loss(m(q_sample(x, t, e, s), t), e if target == "eps" else velocity(x, t, e, s), beta=10.0),
            "large",
        ),
        (lambda m, x, t, e, s, target="v": ddpm.denoising_loss(lambda y, u: (m(y, u) + m(y, u)) / 2, x, t, e, s, target), "called 2 times"),
        (lambda m, x, t, e, s, target="v": ddpm.denoising_loss(m, x.detach(), t, e, s, target), "no gradient reaches x0"),
        (lambda m, x, t, e, s, target="v": ddpm.denoising_loss(m, x, t[:1].expand_as(t), e, s, target), "told t|off by"),
    ],
    "ddim_step": [
        (ddim_without_new_noise, "fresh noise is missing"),
        (ddim_at_t, "level t"),
        (ddim_noise_piles_up, "piles up"),
        (ddim_eta_not_squared, "squared"),
        (ddim_always_wants_noise, "stopped with TypeError"),
        (step_with_fixed_noise, "no gradient reaches z"),
        (lambda x, a, e, t, s, c, eta=0.0, z=None: ddpm.ddim_step(x, a.clamp(-5, 5), e, t, s, c, eta, z), "large numbers"),
        (lambda x, a, e, t, s, c, eta=0.0, z=None: ddpm.ddim_step(x, e, a, t, s, c, eta, z), "exchanged"),
        (lambda x, a, e, t, s, c, eta=0.0, z=None: ddpm.ddim_step(x, a, e.detach(), t, s, c, eta, z), "no gradient reaches eps_hat"),
        (lambda x, a, e, t, s, c, eta=0.0, z=None: ddpm.ddim_step(x, a, e, t[:1].expand_as(t), s, c, eta, z), "off by"),
    ],
    "ddim_sample": [
        (sampler(levels=lambda T, n: torch.linspace(T, 0, n).round().long()), "asked at the levels"),
        (sampler(levels=lambda T, n: torch.linspace(T, 1, n + 1).round().long()), "asked at the levels"),
        (sampler(levels=lambda T, n: torch.linspace(T, 0, n + 1).long()), "asked at the levels"),
        (sampler(levels=lambda T, n: torch.linspace(T, 0, n + 1).round().long()), "asked at the levels|nan"),
        (sampler(levels=lambda T, n: torch.linspace(1000, 0, n + 1).round().long().unique().flip(0)), "stopped with"),
        (sampler(jump=lambda x, a, e, t, s, c, eta, z: ddpm.ddim_step(x, a, e, t, s, c)), "eta=1.0"),
        (sampler(jump=lambda x, a, e, t, s, c, eta, z: ddpm.ddim_step(x, e, a, t, s, c, eta, z)), "off by"),
        (sampler(told=lambda t: t[0]), "one level for each example"),
        (sampler(told=lambda t: t - 1), "asked at the levels"),
        (sampler(fresh=lambda shape, g, eta: torch.randn(shape) if eta else None), "eta=1.0"),
        (sampler(fresh=lambda shape, g, eta: torch.randn(shape, generator=g)), ""),
        (sampler(result=lambda x, guesses, keep: x), "two things"),
        (sampler(result=lambda x, guesses, keep: (x, guesses)), "x_0 alone"),
        (sampler(result=lambda x, guesses, keep: (x, guesses[::-1]) if keep else x), "guesses"),
        (with_gradient, "collect gradients"),
        (in_place_start, "changes its argument start"),
        (sampler(moved=False), "another device"),
        (seeds_all, "own dice"),
        (endless, "never ends"),
    ],
}

RIGHT = {
    "q_sample": [lambda x, t, e, s: torch.stack([s.abar[k].sqrt().to(a) * a + (1 - s.abar[k]).sqrt().to(a) * n for a, k, n in zip(x, t, e)])],
    "posterior": [
        lambda x, y, t, s: (
            at((s.abar.roll(1).sqrt() * s.beta / (1 - s.abar)), t, y) * x + at(((1 - s.beta).sqrt() * (1 - s.abar.roll(1)) / (1 - s.abar)), t, y) * y,
            at(torch.cat([torch.zeros(1).double(), (1 - s.abar[:-1]) / (1 - s.abar[1:]) * s.beta[1:]]), t, y),
        )
    ],
    "denoising_loss": [
        lambda m, x, t, e, s, target="v": ((m(q_sample(x, t, e, s), t) - {"eps": e, "v": q_sample(e, t, -x, s)}[target]) ** 2).flatten().mean(),
    ],
    "ddim_step": [
        lambda x, a, e, t, s, c, eta=0.0, z=None: (
            at(c.abar, s, x).sqrt() * a
            + (1 - at(c.abar, s, x) - (eta * ((1 - at(c.abar, s, x)) / (1 - at(c.abar, t, x)) * (1 - at(c.abar, t, x) / at(c.abar, s, x))).sqrt()) ** 2)
            .clamp(min=0)
            .sqrt()
            * e
            + (0 if z is None else eta * ((1 - at(c.abar, s, x)) / (1 - at(c.abar, t, x)) * (1 - at(c.abar, t, x) / at(c.abar, s, x))).sqrt() * z)
        )
    ],
    "ddim_sample": [sampler(), sampler(levels=lambda T, n: torch.tensor(sorted({round(T * k / n) for k in range(n + 1)}, reverse=True)))],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words, monkeypatch):
    from course_utils import exercises

    monkeypatch.setattr(exercises, "PATIENCE", 0.5 if answer is endless else exercises.PATIENCE)
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


@pytest.mark.parametrize("name", [n for n in checks.HINTS if n not in ("ddim_sample", "denoising_loss")])
def test_a_wrong_shape_gets_one_sentence(name):
    wrong = {"posterior": (torch.zeros(2, 3), torch.zeros(4, 1, 1, 1))}.get(name, torch.zeros(2, 3))
    refuses(getattr(checks, name), lambda *inputs: wrong, "should have shape")


def test_nothing_returned():
    refuses(checks.q_sample, lambda *inputs: None, "None")
