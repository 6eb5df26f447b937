"""Lesson 2.9 against diffusers (ensemble, the whole pipeline with a tiny network), numpy's lstsq and brute force."""

import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, MarigoldDepthPipeline, UNet2DConditionModel
from torch import nn

from course_utils import weights
from course_utils.lessons import marigold
from course_utils.lessons.ddpm import Schedule, ddim_sample, make_schedule
from course_utils.lessons.latent_diffusion import TextUNet, load_latent_diffusion


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Normalisation, alignment, errors


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_normalisation_equals_numpy(dtype, tol):
    d = (1 + 5 * rand(3, 1, 16, 12, seed=1) ** 3).to(dtype)
    near, far = np.quantile(d.double().flatten(1).numpy(), [0.02, 0.98], axis=1)
    want = np.clip((d[:, 0].double().numpy() - near[:, None, None]) / (far - near)[:, None, None] * 2 - 1, -1, 1)
    torch.testing.assert_close(marigold.normalise_depth(d)[:, 0].double(), torch.tensor(want), atol=tol, rtol=tol)


def test_normalisation_forgets_scale_and_shift():
    d = rand(2, 1, 8, 8, seed=2)
    torch.testing.assert_close(marigold.normalise_depth(7 * d + 3), marigold.normalise_depth(d), atol=1e-12, rtol=1e-12)


def test_normalisation_of_a_constant_map_and_of_one_with_an_unknown_pixel():
    assert torch.equal(marigold.normalise_depth(torch.full((1, 1, 2, 2), 2.0)), -torch.ones(1, 1, 2, 2))
    d = 1 + rand(2, 1, 8, 8, seed=2)
    d[0, 0, 3, 4] = torch.nan
    got = marigold.normalise_depth(d)
    assert got.isnan().sum() == 1 and got[0, 0, 3, 4].isnan()
    known = d[0][d[0].isfinite()].numpy()
    near, far = np.quantile(known, [0.02, 0.98])
    want = np.clip((known - near) / (far - near) * 2 - 1, -1, 1)
    torch.testing.assert_close(got[0][d[0].isfinite()], torch.tensor(want), atol=1e-12, rtol=1e-12)


def test_alignment_equals_lstsq():
    pred, depth, known = rand(5, 1, 16, 16, seed=3), 1 + 3 * rand(5, 1, 16, 16, seed=4), rand(5, 1, 16, 16, seed=5) > 0.4
    s, b = marigold.scale_shift(pred, torch.where(known, depth, torch.nan), known)
    for i, k in enumerate(known):
        A = np.stack([pred[i][k].numpy(), np.ones(int(k.sum()))], 1)
        want = np.linalg.lstsq(A, depth[i][k].numpy(), rcond=None)[0]
        assert abs(s[i].item() - want[0]) < 1e-10 and abs(b[i].item() - want[1]) < 1e-10


def test_alignment_of_a_constant_is_the_mean():
    depth = rand(2, 1, 8, 8, seed=6)
    torch.testing.assert_close(marigold.align(torch.full_like(depth, 3.0), depth).amax((1, 2, 3)), depth.mean((1, 2, 3)))


def test_alignment_bears_holes_in_either_map_and_says_nan_where_nothing_is_known():
    depth = 1 + rand(2, 1, 8, 8, seed=6)
    depth[0, 0, 2, 3] = torch.nan
    got = marigold.align(2 * depth, depth)  # NaN in both
    torch.testing.assert_close(got, depth, equal_nan=True)
    rel, good = marigold.depth_errors(got, depth)
    assert rel.max() < 1e-12 and (good == 1).all()
    depth[1] = torch.nan
    for numbers in (marigold.scale_shift(rand(2, 1, 8, 8, seed=7), depth, depth.isfinite()), marigold.depth_errors(rand(2, 1, 8, 8, seed=7), depth)):
        assert all(v[0].isfinite() and v[1].isnan() for v in numbers)


def test_alignment_undoes_any_scale_and_shift():
    depth = 1 + rand(3, 1, 8, 8, seed=7)
    torch.testing.assert_close(marigold.align(-0.2 * depth + 9, depth), depth, atol=1e-10, rtol=1e-10)


def test_errors_equal_a_loop():
    pred, depth = 3 * rand(3, 1, 7, 9, seed=8) - 0.3, 1 + 2 * rand(3, 1, 7, 9, seed=9)
    depth[rand(3, 1, 7, 9, seed=10) > 0.7] = torch.nan
    rel, good = marigold.depth_errors(pred, depth)
    for i in range(3):
        pairs = [(p, d) for p, d in zip(pred[i].flatten().tolist(), depth[i].flatten().tolist()) if not math.isnan(d)]
        assert rel[i].item() == pytest.approx(sum(abs(p - d) / d for p, d in pairs) / len(pairs), abs=1e-12)
        assert good[i].item() == pytest.approx(sum(p > 0 and max(p / d, d / p) < 1.25 for p, d in pairs) / len(pairs), abs=1e-6)


# The ensemble


def theirs(maps, **settings):
    """diffusers' ensemble of maps (N, 1, H, W), with uncertainty."""
    return MarigoldDepthPipeline.ensemble_depth(maps, output_uncertainty=True, **settings)


def smooth_maps(n, noise, seed=11, size=24):
    """n answers about one scene, with scales and shifts of their own, in [0, 1] as the pipeline has them."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    scene = (0.6 * y + 0.2 * torch.sin(5 * x) * y)[None].float()
    s, b = 0.4 + 0.5 * rand(2, n, 1, 1, 1, seed=seed, dtype=torch.float32)
    maps = s * scene + 0.1 * b + noise * torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return maps, marigold.stretch(scene)


def test_noise_free_ensemble_equals_diffusers():
    maps, scene = smooth_maps(6, 0.0)
    (want, want_spread), (got, spread) = theirs(maps), marigold.ensemble(maps[:, None])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(spread, want_spread, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[0], scene, atol=1e-5, rtol=1e-5)


def test_noisy_ensemble_is_near_diffusers_and_no_worse():
    """Theirs stops BFGS after two steps, so the maps differ a little; ours must not be farther from the truth."""
    maps, scene = smooth_maps(8, 0.02)
    (want, _), (got, spread) = theirs(maps), marigold.ensemble(maps[:, None])
    assert (got - want).abs().mean() < 2e-2 and (got - want).abs().max() < 0.12
    off = [(marigold.align(m, scene[None]) - scene).abs().mean() for m in (got, want, maps[:1])]
    assert off[0] < off[2] and off[0] < 1.1 * off[1]
    assert 0.005 < spread.mean() < 0.06


def test_ensemble_of_several_pictures_is_that_of_each():
    a, b = (smooth_maps(5, 0.03, seed)[0] for seed in (1, 2))
    both, spread = marigold.ensemble(torch.stack([a, b], 1))
    for i, maps in enumerate((a, b)):
        one, its = marigold.ensemble(maps[:, None])
        torch.testing.assert_close(both[i], one[0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(spread[i], its[0], atol=1e-6, rtol=1e-6)


def test_objective_equals_a_loop():
    maps = rand(4, 1, 1, 6, 6, seed=12)
    total = sum(((maps[i] - maps[j]) ** 2).mean() for i in range(4) for j in range(i + 1, 4)) / 6
    m = maps.median(0).values
    assert marigold.disagreement(maps).item() == pytest.approx((total.sqrt() + 0.02 * (m.min().abs() + (1 - m.max()).abs())).item(), abs=1e-12)


def test_one_answer_and_answers_without_contrast():
    one = rand(1, 2, 1, 6, 6, seed=13)
    middle, spread = marigold.ensemble(one)
    torch.testing.assert_close(middle, marigold.stretch(one[0]))
    assert spread.abs().max() < 1e-12
    m = one[0]
    torch.testing.assert_close(marigold.disagreement(one), 0.02 * (m.amin((1, 2, 3)).abs() + (1 - m.amax((1, 2, 3))).abs()))
    flat = marigold.ensemble(torch.full((3, 1, 1, 4, 4), 2.0))
    assert all(torch.equal(v, torch.zeros(1, 1, 4, 4)) for v in flat)


@pytest.mark.parametrize("members, steps", [(0, 4), (3, 0)])
def test_no_answers_or_no_steps_get_one_sentence(members, steps):
    with pytest.raises(ValueError, match="at least one answer and one step"):
        marigold.Marigold(None, None).predict(rand(1, 3, 64, 64), members, steps)


# The second input and the noise


def randomised(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.05)
    return model.eval().requires_grad_(False)


def test_widened_unet_averages_its_two_inputs():
    base = randomised(TextUNet())
    net = marigold.from_base(base)
    a, b = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    t, words, style = torch.tensor([10, 800]), torch.randn(2, 20, 128), torch.tensor([0, 2])
    torch.testing.assert_close(net(torch.cat([a, b], 1), t, words, style), base((a + b) / 2, t, words, style), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(torch.cat([a, a], 1), t, words, style), base(a, t, words, style), atol=1e-5, rtol=1e-4)


def test_noise_levels_and_their_limits():
    levels = marigold.noise_levels((3, 4, 16, 16), torch.Generator().manual_seed(0))
    assert [tuple(n.shape[-2:]) for n in levels] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    white = marigold.multi_resolution_noise(levels, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(white, levels[0] / levels[0].flatten(1).std(1)[:, None, None, None])
    big = marigold.noise_levels((2000, 1, 16, 16), torch.Generator().manual_seed(1))
    average = marigold.multi_resolution_noise(big, torch.full((2000,), 1000)).mean((1, 2, 3)).std()
    assert average > 3 * (1 / 16)  # the mean of 256 white values has spread 1/16


# The whole pipeline


@pytest.fixture(scope="module")
def tiny():
    """diffusers' own pipeline with a tiny random network: every parameter drawn."""
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 16),
        layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32, scaling_factor=0.7,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=4, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=12,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(
        1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    pipe = MarigoldDepthPipeline(randomised(unet, 1), randomised(vae, 2), scheduler, None, None, prediction_type="depth")
    pipe.empty_text_embedding = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(3))
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Parts:
    """The tiny network's parts behind the names that our ``Marigold`` uses."""

    def __init__(self, pipe):
        self.pipe, self.device = pipe, "cpu"
        beta = torch.cat([torch.zeros(1, dtype=torch.float64), pipe.scheduler.betas.double()])
        self.schedule = Schedule(beta, torch.cat([torch.ones(1, dtype=torch.float64), pipe.scheduler.alphas_cumprod.double()]))

    def encode(self, x):
        return self.pipe.vae.encode(x * 2 - 1).latent_dist.mode() * 0.7

    def decode(self, z):
        return self.pipe.vae.decode(z / 0.7).sample / 2 + 0.5

    def words(self, captions):
        assert captions == [""]
        return self.pipe.empty_text_embedding


@pytest.mark.parametrize("steps", [1, 4])
def test_whole_pipeline_equals_diffusers(tiny, steps):
    """Picture in, depth out, from the same starting noise: conditioning, empty caption, trailing DDIM steps on v, mean of the three channels."""
    x, noise = rand(2, 3, 32, 32, seed=4, dtype=torch.float32), torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    want = tiny(
        x, num_inference_steps=steps, ensemble_size=1, processing_resolution=0, match_input_resolution=False, latents=noise.clone(), output_type="pt"
    ).prediction
    parts = Parts(tiny)
    # their time starts at 0, and their U-Net takes no style
    model = marigold.Marigold(parts, lambda z, t, words, style: tiny.unet(z, t - 1, encoder_hidden_states=words).sample)
    z = ddim_sample(model.denoiser(parts.encode(x)), noise.shape, steps, parts.schedule, clip=False, start=noise)
    got = marigold.latent_to_depth(parts, z).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    assert got.std() > 1e-3


# What is stored


def test_rounding_keeps_each_row_within_half_a_step():
    w = {"a.weight": torch.randn(5, 7, 3, 3) * torch.logspace(-2, 1, 5)[:, None, None, None], "b.bias": torch.randn(9)}
    back = marigold.Rounded(w).tensors()
    assert set(back) == set(w) and torch.equal(back["b.bias"], w["b.bias"])
    step = w["a.weight"].flatten(1).abs().amax(1) / 127
    assert ((back["a.weight"] - w["a.weight"]).flatten(1).abs().amax(1) < 0.6 * step).all()


def test_rounded_weights_survive_the_file(tmp_path):
    net = randomised(marigold.DepthNet((8, 16), 4), 6)
    stored = marigold.Rounded(net.state_dict())
    weights.save("tiny", {"plain": stored}, folder=tmp_path)
    again = marigold.Rounded(nn.Module.state_dict(marigold.DepthNet((8, 16), 4)))
    weights.load("tiny", {"plain": again}, folder=tmp_path)
    for k, v in stored.tensors().items():
        torch.testing.assert_close(again.tensors()[k], v, atol=1e-3, rtol=2e-3)


def test_stored_model_belongs_to_the_base():
    """The differences were trained on this very base; they touch what ``trained`` names and nothing else."""
    model, plain = marigold.load_marigold()
    base = load_latent_diffusion()
    assert weights.metadata("marigold")["base_sum"] == pytest.approx(sum(p.double().abs().sum().item() for p in base.unet.parameters()), rel=1e-6)
    first = dict(marigold.from_base(base.unet).named_parameters())
    for name, p in model.unet.named_parameters():
        assert marigold.trained(name) or torch.equal(p, first[name])
    assert any(not torch.equal(p, first[n]) for n, p in model.unet.named_parameters())
    assert not any(p.requires_grad for p in [*model.unet.parameters(), *plain.parameters()])
    assert make_schedule("cosine").abar.shape == model.ld.schedule.abar.shape


@pytest.mark.parametrize("shape, words", [((1, 3, 68, 68), "multiples of 16"), ((1, 1, 64, 64), "pictures are floats"), ((3, 64, 64), "pictures are floats")])
def test_pictures_that_do_not_fit_get_one_sentence(shape, words):
    model = marigold.load_marigold()[0]
    with pytest.raises(ValueError, match=words):
        model.predict(torch.zeros(shape), steps=1)
