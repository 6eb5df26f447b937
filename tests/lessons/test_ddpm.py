"""Lesson 2.3 against diffusers (schedules, samplers, the whole U-Net) and against closed forms for Gaussian data."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from scipy.linalg import sqrtm

from course_utils.errors import CourseError
from course_utils.lessons import ddpm

from .naming import level_names

KINDS = {"linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}, "cosine": {"beta_schedule": "squaredcos_cap_v2"}}


def theirs(cls, kind, T=1000, exact=True, **settings):
    """A diffusers scheduler; with ``exact`` its float32 tables are replaced by ours, since 1 - abar loses four digits near t = 0 in single precision."""
    scheduler = cls(num_train_timesteps=T, clip_sample=False, **KINDS[kind], **settings)
    if exact:
        schedule = ddpm.make_schedule(kind, T)
        scheduler.betas, scheduler.alphas_cumprod = schedule.beta[1:], schedule.abar[1:]
        scheduler.alphas = 1 - scheduler.betas
        scheduler.one = torch.ones((), dtype=torch.float64)
        if hasattr(scheduler, "final_alpha_cumprod"):
            scheduler.final_alpha_cumprod = scheduler.one
    return scheduler


def triple(seed=0, shape=(3, 3, 8, 8), dtype=torch.float64):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Schedules


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_equals_diffusers(kind):
    ours, scheduler = ddpm.make_schedule(kind), theirs(DDPMScheduler, kind, exact=False)
    torch.testing.assert_close(ours.beta[1:].float(), scheduler.betas, rtol=1e-5, atol=2e-7)  # theirs are computed in float32
    torch.testing.assert_close(ours.abar[1:].float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert ours.beta[0] == 0 and ours.abar[0] == 1 and ours.T == 1000
    assert (ours.abar.diff() < 0).all() and (ours.beta >= 0).all() and ours.beta.max() <= 0.999


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="linear or cosine"):
        ddpm.make_schedule("square")


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", KINDS)
def test_q_sample_and_velocity_equal_diffusers(kind, dtype, tol):
    scheduler, schedule = theirs(DDPMScheduler, kind), ddpm.make_schedule(kind)
    x0, eps, _ = triple(dtype=dtype)
    for t in ([1, 2, 3], [40, 500, 999], [998, 999, 1000]):
        t = torch.tensor(t)
        torch.testing.assert_close(ddpm.q_sample(x0, t, eps, schedule), scheduler.add_noise(x0, eps, t - 1), rtol=tol, atol=tol)
        torch.testing.assert_close(ddpm.velocity(x0, t, eps, schedule), scheduler.get_velocity(x0, eps, t - 1), rtol=tol, atol=tol)


def test_zero_noise_is_the_picture():
    x0, eps, _ = triple()
    torch.testing.assert_close(ddpm.q_sample(x0, torch.zeros(3, dtype=torch.long), eps, ddpm.make_schedule()), x0)


@pytest.mark.parametrize("target", ["eps", "v", "x0"])
def test_three_targets_name_the_same_guess(target):
    schedule = ddpm.make_schedule()
    x0, eps, _ = triple()
    t = torch.tensor([1, 300, 990])
    xt = ddpm.q_sample(x0, t, eps, schedule)
    output = {"eps": eps, "x0": x0, "v": ddpm.velocity(x0, t, eps, schedule)}[target]
    a, b = ddpm.split(output, xt, t, schedule, target)
    torch.testing.assert_close(a, x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(b, eps, rtol=1e-8, atol=1e-8)
    clipped, eps_hat = ddpm.split(output, xt, t, schedule, target, clip=True)
    assert clipped.abs().max() <= 1
    torch.testing.assert_close(ddpm.q_sample(clipped, t, eps_hat, schedule), xt)  # the pair still explains x_t


# Samplers


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target, name", [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
def test_ancestral_step_equals_diffusers(kind, target, name, dtype, tol):
    scheduler, schedule = theirs(DDPMScheduler, kind, prediction_type=name, variance_type="fixed_small"), ddpm.make_schedule(kind)
    xt, output, _ = triple(1, dtype=dtype)
    if target != "eps":  # with eps, x0_hat is divided by sqrt(abar): at the noisy end of the cosine schedule it is astronomically large in both
        assert schedule.abar[1000] < 1e-3
    for t in (1, 2, 30, 500, 900) if target == "eps" else (1, 2, 30, 500, 900, 1000):
        times = torch.full((3,), t)
        x0, _ = ddpm.split(output, xt, times, schedule, target)
        mean, var = ddpm.posterior(x0, xt, times, schedule)
        z = torch.randn(xt.shape, generator=torch.Generator().manual_seed(t), dtype=dtype)
        want = scheduler.step(output, t - 1, xt, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(mean + var.sqrt() * z, want, rtol=tol, atol=tol * max(1, mean.abs().max().item()))


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("target, name", [("eps", "epsilon"), ("v", "v_prediction")])
def test_ddim_step_equals_diffusers(eta, target, name, dtype, tol):
    scheduler = theirs(DDIMScheduler, "linear", prediction_type=name, set_alpha_to_one=True)
    scheduler.set_timesteps(50)  # jumps of 20
    schedule = ddpm.make_schedule("linear")
    xt, output, _ = triple(2, dtype=dtype)
    for t in (981, 501, 21, 1):
        times, earlier = torch.full((3,), t), torch.full((3,), max(t - 20, 0))
        x0, eps = ddpm.split(output, xt, times, schedule, target)
        z = torch.randn(xt.shape, generator=torch.Generator().manual_seed(t), dtype=dtype)
        want = scheduler.step(output, t - 1, xt, eta=eta, generator=torch.Generator().manual_seed(t)).prev_sample
        got = ddpm.ddim_step(xt, x0, eps, times, earlier, schedule, eta, z)
        torch.testing.assert_close(got, want, rtol=tol, atol=tol * max(1, x0.abs().max().item()))


def test_whole_ddpm_chain_equals_diffusers():
    """Same noise, same (linear) denoiser, all 50 steps, with clipping."""
    T, shape = 50, (2, 3, 4, 4)
    scheduler = theirs(DDPMScheduler, "cosine", T, prediction_type="v_prediction")
    scheduler.register_to_config(clip_sample=True)
    model = lambda x, t: 0.3 * x + 0.01 * t.reshape(-1, 1, 1, 1)  # noqa: E731
    got = ddpm.ddpm_sample(model, shape, ddpm.make_schedule("cosine", T), generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator)
    for t in range(T - 1, -1, -1):
        out = model(x, torch.full((2,), t + 1))
        x = scheduler.step(out, t, x, generator=generator).prev_sample.float()
    torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-5)


def test_ddim_with_single_noisy_steps_is_ancestral():
    schedule = ddpm.make_schedule()
    xt, x0, z = triple(4)
    for t in (1, 2, 300, 999, 1000):
        t = torch.full((3,), t)
        _, eps = ddpm.split(x0, xt, t, schedule, "x0")
        mean, var = ddpm.posterior(x0, xt, t, schedule)
        torch.testing.assert_close(ddpm.ddim_step(xt, x0, eps, t, t - 1, schedule, 1.0, z), mean + var.sqrt() * z, rtol=1e-9, atol=1e-9)


def test_ddim_sample_returns_guesses_and_uses_start():
    schedule, start = ddpm.make_schedule(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    model = lambda x, t: 0.1 * x  # noqa: E731
    a, guesses = ddpm.ddim_sample(model, (2, 3, 4, 4), 7, schedule, start=start, keep=True)
    b = ddpm.ddim_sample(model, (2, 3, 4, 4), 7, schedule, start=start)
    assert len(guesses) == 7 and torch.equal(a, b)
    torch.testing.assert_close(guesses[-1], a)  # the last jump goes to t = 0: the guess itself


# Gaussian data: the best denoiser is a formula


def test_gaussian_data_give_the_analytic_noise():
    schedule, std, mean = ddpm.make_schedule(), 0.4, torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    denoiser = ddpm.mixture_denoiser(mean, std, schedule)
    for t in (1, 100, 700, 1000):
        times, abar = torch.full((4,), t), schedule.abar[t]
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        want = (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * std**2 + 1 - abar)  # regression of eps on x_t
        torch.testing.assert_close(denoiser(x, times), want, rtol=1e-12, atol=1e-12)


def test_mixture_denoiser_is_the_score():
    """eps_hat = -sqrt(1 - abar) · gradient of log q(x_t), by automatic differentiation."""
    schedule, means, std = ddpm.make_schedule(), torch.tensor([[0.0, 1.0], [1.0, -0.5], [-1.0, 0.2]], dtype=torch.float64), 0.3
    for t in (50, 400, 900):
        abar = schedule.abar[t]
        x = torch.randn(6, 2, generator=torch.Generator().manual_seed(t), dtype=torch.float64, requires_grad=True)
        var = abar * std**2 + 1 - abar
        log_q = torch.logsumexp(-((x[:, None] - abar.sqrt() * means) ** 2).sum(-1) / (2 * var), 1)
        (score,) = torch.autograd.grad(log_q.sum(), x)
        got = ddpm.mixture_denoiser(means, std, schedule)(x.detach(), torch.full((6,), t))
        torch.testing.assert_close(got, -(1 - abar).sqrt() * score, rtol=1e-10, atol=1e-10)


def test_perfect_denoiser_gives_the_data_back():
    schedule, std, mean = ddpm.make_schedule(), 0.4, torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    denoiser = ddpm.mixture_denoiser(mean, std, schedule)
    start = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mapped = ddpm.ddim_sample(denoiser, start.shape, 1000, schedule, "eps", clip=False, start=start)
    torch.testing.assert_close(mapped, mean + std * start, rtol=0, atol=0.02)  # the exact flow of a Gaussian: scale and shift
    drawn = ddpm.ddpm_sample(denoiser, start.shape, schedule, "eps", clip=False, generator=torch.Generator().manual_seed(1))
    assert (drawn.mean(0) - mean).abs().max() < 0.03 and (drawn.std(0) - std).abs().max() < 0.02


# The bound


@pytest.mark.parametrize("kind", KINDS)
def test_bound_terms_are_kl_divergences(kind):
    schedule = ddpm.make_schedule(kind)
    x0, guess, xt = triple(6)
    t = torch.tensor([2, 400, 1000])
    (m, var), (m_hat, _) = ddpm.posterior(x0, xt, t, schedule), ddpm.posterior(guess, xt, t, schedule)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(m, var.sqrt()), normal(m_hat, var.sqrt())).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(ddpm.vlb_terms(x0, guess, t, schedule), kl, rtol=1e-7, atol=1e-9)
    abar = schedule.abar[-1]
    last = torch.distributions.kl_divergence(normal(abar.sqrt() * x0, (1 - abar).sqrt()), normal(0.0, 1.0)).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(ddpm.prior_term(x0, schedule), last, rtol=1e-6, atol=1e-12)


def test_first_term_is_a_distribution_over_256_values():
    schedule = ddpm.make_schedule("linear")
    values = torch.arange(256, dtype=torch.float64).reshape(-1, 1) / 127.5 - 1
    for guess in (-1.0, 0.2, 0.9, 1.0):
        bits = ddpm.vlb_terms(values, torch.full_like(values, guess), torch.ones(256, dtype=torch.long), schedule)
        assert abs((2.0**-bits).sum().item() - 1) < 1e-8  # up to the floor of 1e-12 per value


def test_loss_of_the_perfect_denoiser_is_what_noise_leaves():
    """For unit Gaussian data x_t is unit Gaussian, and the part of eps that x_t does not tell has variance abar."""
    schedule = ddpm.make_schedule()
    perfect = ddpm.mixture_denoiser(torch.zeros(1, 4, dtype=torch.float64), 1.0, schedule)
    x0, eps = torch.randn(2, 50_000, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for t in (100, 500, 900):
        loss = ddpm.denoising_loss(perfect, x0, torch.full((len(x0),), t), eps, schedule, "eps")
        assert abs(loss.item() - schedule.abar[t].item()) < 0.01


# The U-Net


def randomise(module, seed):
    """Overwrite every parameter, so that no default (a zero, a one) hides a mistake."""
    g = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        p.data.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else noise * (0.1 if p.ndim < 2 else p[0].numel() ** -0.5))
    return module.eval()


def pair(widths, layers, attention, channels, groups=8, head_dim=16, seed=0):
    """(ours, theirs) with equal weights; ours with patch = 1."""
    ours = randomise(ddpm.UNet(channels, widths, layers, attention, patch=1, groups=groups, head_dim=head_dim), seed)
    reference = UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=groups,
        attention_head_dim=head_dim,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        downsample_type="conv",
        upsample_type="conv",
        flip_sin_to_cos=True,
        freq_shift=0,
    ).eval()
    missing = reference.load_state_dict(to_diffusers(ours.state_dict(), len(widths), layers))
    assert not missing.missing_keys and not missing.unexpected_keys
    return ours, reference


def to_diffusers(state, levels, layers):
    """Our names → theirs. They keep residual blocks, attentions and resamplers of a level in three lists, and q, k, v apart."""
    place = level_names(levels, layers)
    inner = {"time": "time_emb_proj", "skip": "conv_shortcut", "norm": "group_norm", "out": "to_out.0"}
    outer = {"time_mlp.0": "time_embedding.linear_1", "time_mlp.2": "time_embedding.linear_2", "norm_out": "conv_norm_out"}
    out = {}
    for key, value in state.items():
        owner, kind = key.rsplit(".", 1)
        parts = owner.split(".")
        prefix = next((".".join(parts[:k]) for k in (3, 2) if ".".join(parts[:k]) in place), None)
        if prefix is None:
            out[f"{outer.get(owner, owner)}.{kind}"] = value
            continue
        rest = parts[len(prefix.split(".")) :]
        if rest == ["qkv"]:
            for name, part in zip(("to_q", "to_k", "to_v"), value.chunk(3)):
                out[f"{place[prefix]}.{name}.{kind}"] = part
        else:
            out[".".join([place[prefix], *(inner.get(r, r) for r in rest), kind])] = value
    return out


SHAPES = [((16, 32), 1, (False, True), 3), ((32, 48, 64), 2, (False, True, True), 12), ((16, 16, 32), 1, (True, False, False), 4)]


@pytest.mark.parametrize("widths, layers, attention, channels", SHAPES)
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_unet_equals_diffusers(widths, layers, attention, channels, dtype, tol):
    ours, reference = (m.to(dtype) for m in pair(widths, layers, attention, channels))
    x = torch.randn(3, channels, 16, 16, generator=torch.Generator().manual_seed(8), dtype=torch.float64).to(dtype)
    t = torch.tensor([1, 77, 1000])
    got, want = ours(x, t), reference(x, t).sample
    assert want.std() > 0.05  # the comparison is not of nothing
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)


def test_unet_gradients_equal_diffusers():
    ours, reference = (m.double() for m in pair(*SHAPES[0]))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    t = torch.tensor([5, 600])
    ours(x, t).square().mean().backward()
    reference(x, t).sample.square().mean().backward()
    mine = to_diffusers({k: p.grad for k, p in ours.named_parameters()}, 2, 1)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-8, atol=1e-12, msg=name)


def test_patches_are_only_a_rearrangement():
    ours = randomise(ddpm.UNet(3, (16, 32), 1, (False, True), patch=2, head_dim=16), 0)
    plain = ddpm.UNet(12, (16, 32), 1, (False, True), patch=1, head_dim=16).eval()
    plain.load_state_dict(ours.state_dict())
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(10)), torch.tensor([3, 800])
    folded = x.reshape(2, 3, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 8, 8)
    want = plain(folded, t).reshape(2, 3, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 16, 16)
    torch.testing.assert_close(ours(x, t), want)


def test_each_picture_is_treated_alone():
    ours = randomise(ddpm.UNet(3, (16, 32), 1, (False, True), head_dim=16), 1)
    x, t = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(11)), torch.tensor([3, 80, 500, 900])
    torch.testing.assert_close(ours(x, t)[2:3], ours(x[2:3], t[2:3]), rtol=1e-4, atol=1e-5)


# Metrics


def test_frechet_distance_equals_sqrtm():
    g = torch.Generator().manual_seed(12)
    mix = torch.randn(6, 6, generator=g, dtype=torch.float64)
    a, b = torch.randn(80, 6, generator=g, dtype=torch.float64), 0.3 + torch.randn(60, 6, generator=g, dtype=torch.float64) @ mix
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    want = (a.mean(0) - b.mean(0)).square().sum() + torch.trace(ca + cb) - 2 * sqrtm((ca @ cb).numpy()).real.trace()
    assert abs(ddpm.frechet_distance(a, b) - want.item()) < 1e-9
    assert abs(ddpm.frechet_distance(a, a)) < 1e-9
    assert abs(ddpm.frechet_distance(a, a + 2.0) - 24) < 1e-9  # same shape, shifted by 2 in six dimensions
    assert math.isfinite(ddpm.frechet_distance(a[:4], b))  # fewer samples than dimensions


def test_pca_gaussian_has_the_datas_moments():
    g = torch.Generator().manual_seed(13)
    x = 0.5 + torch.randn(3000, 6, generator=g) @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.01, 0.01]))
    y = ddpm.pca_gaussian(x, 20_000, components=4, generator=g)
    assert y.shape == (20_000, 6)
    assert (y.mean(0) - x.mean(0)).abs().max() < 0.1
    assert (torch.cov(y.T) - torch.cov(x.T)).abs().max() < 0.4


def test_stored_weights_load_and_denoise():
    """The file fits the network that its metadata names, and its guess of a lightly noised picture is better than the noisy picture."""
    from course_utils import data, weights

    about = weights.metadata("ddpm")
    net = ddpm.UNet(**about["model"])
    weights.load("ddpm", net)
    schedule = ddpm.make_schedule(about["training"]["schedule"])
    x0 = data.emoji("google", size=32).subset("concepts")[:16].tensor() * 2 - 1
    t, eps = torch.full((16,), 300), torch.randn(x0.shape, generator=torch.Generator().manual_seed(14))
    xt = ddpm.q_sample(x0, t, eps, schedule)
    with torch.no_grad():
        guess, _ = ddpm.split(net(xt, t), xt, t, schedule, about["training"]["target"])
    assert (guess - x0).square().mean() < 0.2 * (xt - x0).square().mean()


# The ends of the ranges


def test_more_jumps_than_levels_and_a_schedule_of_one_step():
    asked = []
    x = ddpm.ddim_sample(lambda x, t: asked.append(int(t)) or 0 * x, (1, 1, 1, 1), 2, ddpm.make_schedule(T=1))
    assert torch.isfinite(x).all() and asked == [1]
    x = ddpm.ddim_sample(lambda x, t: 0 * x, (2, 3), 50, ddpm.make_schedule(T=7), eta=1.0)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("T", [1, 2, 19, 20, 1000])
def test_schedules_of_any_length_stay_between_0_and_1(kind, T):
    s = ddpm.make_schedule(kind, T)
    assert s.T == T and s.abar[0] == 1 and (s.abar > 0).all() and (s.abar[1:] < s.abar[:-1]).all() and s.beta.max() <= 0.999


def test_a_schedule_without_steps_gets_one_sentence():
    with pytest.raises(ValueError, match="at least one step"):
        ddpm.make_schedule(T=0)


def test_helpful_refusals():
    schedule, x = ddpm.make_schedule(T=10), torch.zeros(2, 3, 8, 8)
    for t in ([-1, 3], [3, 11], [3.0, 4.0]):
        with pytest.raises(CourseError, match="integers from 0 to 10"):
            ddpm.q_sample(x, torch.tensor(t), x, schedule)
    with pytest.raises(CourseError, match="3 levels for 2 pictures"):
        ddpm.q_sample(x, torch.tensor([1, 2, 3]), x, schedule)
    for target in ("x0", "V"):
        with pytest.raises(CourseError, match="eps or v"):
            ddpm.denoising_loss(lambda x, t: x, x, torch.tensor([1, 2]), x, schedule, target)
    for steps in (0, -1):
        with pytest.raises(CourseError, match="at least one step"):
            ddpm.ddim_sample(lambda x, t: x, (2, 3), steps, schedule)
    with pytest.raises(CourseError, match="2 widths and 3 attention"):
        ddpm.UNet(widths=(32, 64))
    with pytest.raises(CourseError, match="multiples of 8"):
        ddpm.UNet()(torch.zeros(1, 3, 12, 16), torch.tensor([1]))


def test_statistics_of_too_few_or_broken_features_are_refused():
    a = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    for b in (a[:1], a[:0], a[:, :3]):
        with pytest.raises(CourseError, match="at least 2 features"):
            ddpm.frechet_distance(a, b)
    with pytest.raises(CourseError, match="NaN"):
        ddpm.frechet_distance(a, a.log() * torch.nan)
    assert ddpm.pca_gaussian(a, 6).shape == (6, 4)  # fewer numbers than components
    with pytest.raises(CourseError, match="at least 2 pictures"):
        ddpm.pca_gaussian(a[:1], 6)
