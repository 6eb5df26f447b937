"""Lesson 2.4 against diffusers (autoencoder, text-conditioned U-Net, guided DDIM sampling) and lesson 1.2's own text encoder, and its identities."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from course_utils.errors import CourseError
from course_utils.lessons import latent_diffusion as ld
from course_utils.lessons.clip import load_clip
from course_utils.lessons.ddpm import UNet, ddim_sample, make_schedule

from .naming import level_names

PRECISIONS = pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomise(module, seed=0):
    """Overwrite every parameter, so that no default (a zero, a one) hides a mistake."""
    g = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in module.modules() if isinstance(m, (torch.nn.GroupNorm, torch.nn.LayerNorm)) for p in [m.weight]}
    for p in module.parameters():
        z = torch.randn(p.shape, generator=g)
        p.data.copy_(1 + 0.2 * z if id(p) in norms else z * (0.1 if p.ndim < 2 else p[0].numel() ** -0.5))
    return module.eval()


def filled(reference, state):
    """The reference module with exactly these tensors."""
    missing = reference.load_state_dict(state)
    assert not missing.missing_keys and not missing.unexpected_keys
    return reference.eval()


def renamed(state, place, inner):
    """Keys by the longest known prefix, then each remaining part by ``inner``; q, k, v of one matrix are taken apart."""
    out = {}
    for key, value in state.items():
        parts = key.split(".")
        prefix = next((".".join(parts[:k]) for k in range(len(parts), 0, -1) if ".".join(parts[:k]) in place), None)
        assert prefix, key
        rest = [inner.get(p, p) for p in parts[len(prefix.split(".")) :]]
        if rest and rest[0] == "qkv":
            out |= {".".join([place[prefix], name, rest[1]]): part for name, part in zip(("to_q", "to_k", "to_v"), value.chunk(3))}
        else:
            out[".".join([place[prefix], *rest])] = value
    return out


# The autoencoder


def autoencoder_to_diffusers(state, levels, layers):
    """Our two plain lists → their named blocks."""
    place, i = {"encoder.1": "encoder.conv_in"}, 2
    for level in range(levels):
        if level:
            place[f"encoder.{i}"] = f"encoder.down_blocks.{level - 1}.downsamplers.0.conv"
            i += 1
        for n in range(layers):
            place[f"encoder.{i}"] = f"encoder.down_blocks.{level}.resnets.{n}"
            i += 1
    middle = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    for k, name in enumerate((*middle, "conv_norm_out", None, "conv_out")):
        place[f"encoder.{i + k}"] = f"encoder.{name}"
    place[f"encoder.{i + 6}"] = "quant_conv"
    place |= {"decoder.0": "post_quant_conv", "decoder.1": "decoder.conv_in"} | {f"decoder.{k + 2}": f"decoder.{name}" for k, name in enumerate(middle)}
    i = 5
    for level in range(levels):
        for n in range(layers + 1):
            place[f"decoder.{i}"] = f"decoder.up_blocks.{level}.resnets.{n}"
            i += 1
        if level < levels - 1:
            place[f"decoder.{i}"] = f"decoder.up_blocks.{level}.upsamplers.0.conv"
            i += 1
    place |= {f"decoder.{i}": "decoder.conv_norm_out", f"decoder.{i + 2}": "decoder.conv_out"}
    state = {k: v for k, v in state.items() if k != "scale"}
    return renamed(state, place, {"skip": "conv_shortcut", "norm": "group_norm", "out": "to_out.0"})


def autoencoders(channels, latent, widths, layers, groups=8):
    """(ours, theirs) with equal weights; ours with patch = 1."""
    ours = randomise(ld.KLAutoencoder(channels, latent, widths, layers, patch=1, groups=groups), 1)
    kind = len(widths)
    reference = AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=latent, block_out_channels=widths, layers_per_block=layers, norm_num_groups=groups,
        down_block_types=["DownEncoderBlock2D"] * kind, up_block_types=["UpDecoderBlock2D"] * kind, sample_size=16,
    )  # fmt: skip
    return ours, filled(reference, autoencoder_to_diffusers(ours.state_dict(), kind, layers))


AUTOENCODERS = [(3, 4, (16, 32), 1), (1, 2, (8, 16, 24), 2)]


@PRECISIONS
@pytest.mark.parametrize("shape", AUTOENCODERS, ids=str)
def test_autoencoder_equals_diffusers(shape, dtype, tol):
    ours, reference = (m.to(dtype) for m in autoencoders(*shape))
    x = noise(2, shape[0], 16, 24, seed=2, dtype=dtype)
    mean, logvar = ours.moments(x)
    theirs = reference.encode(x).latent_dist
    assert theirs.mean.std() > 0.05
    torch.testing.assert_close(mean, theirs.mean, rtol=tol, atol=tol)
    torch.testing.assert_close(logvar, theirs.logvar, rtol=tol, atol=tol)
    torch.testing.assert_close(ours.decode(mean), reference.decode(mean).sample, rtol=tol, atol=tol)
    torch.testing.assert_close(ld.rate(mean, logvar) * mean[0].numel(), theirs.kl().mean(), rtol=tol, atol=tol)


def test_autoencoder_gradients_equal_diffusers():
    ours, reference = (m.double() for m in autoencoders(*AUTOENCODERS[0]))
    x = noise(2, 3, 16, 16, seed=3, dtype=torch.float64)
    ours.decode(ours.moments(x)[0]).square().mean().backward()
    reference.decode(reference.encode(x).latent_dist.mean).sample.square().mean().backward()
    mine = autoencoder_to_diffusers({k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in ours.named_parameters()}, 2, 1)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-8, atol=1e-12, msg=name)


def test_patches_of_the_autoencoder_are_only_a_rearrangement():
    ours = randomise(ld.KLAutoencoder(3, 4, (16, 32), 1, patch=2), 4)
    plain = ld.KLAutoencoder(12, 4, (16, 32), 1, patch=1).eval()
    plain.load_state_dict(ours.state_dict())
    x = noise(2, 3, 16, 16, seed=4)
    folded = F.pixel_unshuffle(x, 2)
    torch.testing.assert_close(ours.encode(x), plain.encode(folded))
    torch.testing.assert_close(ours.decode(ours.encode(x)), F.pixel_shuffle(plain.decode(plain.encode(folded)), 2))


def test_the_scale_cancels():
    ours = randomise(ld.KLAutoencoder(3, 4, (16, 32)), 5)
    x = noise(2, 3, 16, 16, seed=5)
    z, y = ours.encode(x), ours.decode(ours.encode(x))
    ours.scale.fill_(0.25)
    torch.testing.assert_close(ours.encode(x), z / 4)
    torch.testing.assert_close(ours.decode(ours.encode(x)), y, rtol=1e-4, atol=1e-5)
    assert abs(z.mul(ld.latent_scale(z)).std() - 1) < 1e-5


def test_loss_terms():
    x, y = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    mean, logvar = noise(2, 2, 4, 2, 2, seed=6)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(ld.rate(mean, logvar), kl)
    torch.testing.assert_close(ld.autoencoder_loss(y, x, mean, logvar, 0.1), (y - x).abs().mean() + ld.gradient_loss(y, x) + 0.1 * kl)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert ld.gradient_loss(3 * ramp, ramp) == 2 and ld.gradient_loss(ramp.transpose(2, 3), ramp) == 2
    assert ld.psnr(x, x + 0.1).allclose(torch.tensor(20.0), atol=1e-3)


def test_block_pca_is_the_best_linear_code():
    """Its mean squared error is the sum of the covariance's smallest eigenvalues, and no other basis of four does better."""
    x = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(7)).cumsum(-1) / 16
    blocks = F.pixel_unshuffle(x, 4).transpose(0, 1).flatten(1)
    rest = torch.linalg.eigvalsh(torch.cov(blocks, correction=0))[:-4].sum() / 48
    error = (ld.block_pca(x)(x) - x).square().mean()
    torch.testing.assert_close(error, rest, rtol=1e-3, atol=1e-6)
    centred = blocks - blocks.mean(1, keepdim=True)
    basis = torch.linalg.qr(noise(48, 4, seed=7)).Q
    assert (centred - basis @ (basis.T @ centred)).square().mean() > error


@pytest.mark.parametrize("size", [(66, 66), (64, 62), (63, 64), (1, 1)])
def test_pictures_that_do_not_fit_are_refused(size):
    """66×66 came back as 64×64, in silence."""
    ours = ld.KLAutoencoder(widths=(8, 8))
    model = ld.LatentDiffusion(ours, None, None, make_schedule())
    for ask in (ours.encode, ours.moments, model.encode):
        with pytest.raises(ValueError, match="multiples of 4"):
            ask(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("size", [(64, 64), (4, 8), (68, 60)])
def test_pictures_that_fit_keep_their_size(size):
    ours = ld.KLAutoencoder(widths=(8, 8))
    z = ours.encode(torch.zeros(2, 3, *size))
    assert z.shape == (2, 4, size[0] // 4, size[1] // 4) and ours.decode(z).shape == (2, 3, *size)
    assert ld.KLAutoencoder(widths=(8, 8, 8), patch=1).factor == 4 and "factor" not in ours.state_dict()


def test_training_pictures():
    g = torch.Generator().manual_seed(8)
    x = ld.dead_leaves(6, 32, generator=g)
    assert x.shape == (6, 3, 32, 32) and 0 <= x.min() and x.max() <= 1 and x.flatten(1).std(1).min() > 0.02
    assert torch.equal(ld.dead_leaves(2, 16, generator=torch.Generator().manual_seed(1)), ld.dead_leaves(2, 16, generator=torch.Generator().manual_seed(1)))
    y = ld.vary(torch.rand(50, 3, 8, 8, generator=g), g)
    assert y.shape == (50, 3, 8, 8) and 0 <= y.min() and y.max() <= 1


# The words


def test_last_text_state_is_clips_embedding():
    """The state of <end>, through CLIP's projection, is what encode_text returns; after it come zeros; earlier states do not see later words."""
    clip = load_clip()
    captions = ["woman farmer: dark skin tone", "bear", "여자 농부: 검은색 피부", "", "a very long caption " * 9]
    c = ld.text_states(clip, captions)
    ids = clip.tokenizer(captions)
    assert c.shape == (5, 20, 128)
    for row, state, want in zip(ids, c, clip.encode_text(captions)):
        end = row.tolist().index(clip.text.end)
        torch.testing.assert_close(F.normalize(clip.text.project(state[end]), dim=-1), want, rtol=1e-5, atol=1e-5)
        assert (state[end + 1 :] == 0).all() and (state[: end + 1].abs().sum(-1) > 0).all()
    longer = ld.text_states(clip, ["bear face"])
    torch.testing.assert_close(longer[0, :2], c[1, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ld.text_states(clip, captions[:1]), c[:1], rtol=1e-5, atol=1e-5)  # alone or in a batch


@PRECISIONS
def test_cross_attention_module_equals_the_exercise(dtype, tol):
    layer = randomise(ld.CrossAttention(64, 24, head_dim=16), 9).to(dtype)
    x, c = noise(2, 7, 64, seed=9, dtype=dtype), noise(2, 5, 24, seed=10, dtype=dtype)
    want = layer.to_out(ld.cross_attention(x, c, layer.to_q.weight.T, layer.to_k.weight.T, layer.to_v.weight.T, 4))
    torch.testing.assert_close(layer(x, c), want, rtol=tol, atol=tol)
    none = layer(x, torch.zeros_like(c))
    torch.testing.assert_close(none, layer.to_out.bias.expand_as(none))


# The U-Net


def unet_to_diffusers(state, levels, layers):
    """Our names → theirs. They keep residual blocks, transformers and resamplers of a level in three lists."""
    place = level_names(levels, layers) | {"style": "class_embedding", "conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
    place |= {"time_mlp.0": "time_embedding.linear_1", "time_mlp.2": "time_embedding.linear_2"}
    block = "transformer_blocks.0."
    for ours, theirs in [(k, v) for k, v in place.items() if k.endswith("attention")]:
        place |= {f"{ours}.{k}": f"{theirs}.{block}{k}" for k in ("norm1", "norm2", "norm3", "attn1", "attn2")}
        place |= {f"{ours}.expand": f"{theirs}.{block}ff.net.0.proj", f"{ours}.shrink": f"{theirs}.{block}ff.net.2"}
    return renamed(state, place, {"time": "time_emb_proj", "skip": "conv_shortcut", "to_out": "to_out.0"})


def unets(channels, widths, layers, attention, words=24, head_dim=16, groups=8, seed=11):
    """(ours, theirs) with equal weights; ours with patch = 1. Their ``attention_head_dim`` is the NUMBER of heads."""
    shape = dict(context_width=words, styles=3, patch=1, groups=groups, head_dim=head_dim)
    ours = randomise(ld.TextUNet(channels, widths, layers, attention, **shape), seed)
    reference = UNet2DConditionModel(
        in_channels=channels, out_channels=channels, block_out_channels=widths, layers_per_block=layers, norm_num_groups=groups, num_class_embeds=3,
        cross_attention_dim=words, attention_head_dim=[w // head_dim for w in widths], use_linear_projection=False, mid_block_type="UNetMidBlock2DCrossAttn",
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
    )  # fmt: skip
    return ours, filled(reference, unet_to_diffusers(ours.state_dict(), len(widths), layers))


UNETS = [(4, (16, 32), 1, (True, True)), (16, (32, 48, 64), 2, (False, True, True))]


@PRECISIONS
@pytest.mark.parametrize("shape", UNETS, ids=str)
def test_unet_equals_diffusers(shape, dtype, tol):
    ours, reference = (m.to(dtype) for m in unets(*shape))
    z, c = noise(3, shape[0], 8, 8, seed=12, dtype=dtype), noise(3, 5, 24, seed=13, dtype=dtype)
    t, style = torch.tensor([1, 77, 1000]), torch.tensor([0, 2, 1])
    got, want = ours(z, t, c, style), reference(z, t, c, class_labels=style).sample
    assert want.std() > 0.05  # the comparison is not of nothing
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)


def test_unet_gradients_equal_diffusers():
    ours, reference = (m.double() for m in unets(*UNETS[0]))
    z, c = noise(2, 4, 8, 8, seed=14, dtype=torch.float64), noise(2, 5, 24, seed=15, dtype=torch.float64)
    t, style = torch.tensor([5, 600]), torch.tensor([1, 2])
    ours(z, t, c, style).square().mean().backward()
    reference(z, t, c, class_labels=style).sample.square().mean().backward()
    mine = unet_to_diffusers({k: p.grad for k, p in ours.named_parameters()}, 2, 1)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-8, atol=1e-12, msg=name)


def test_without_attention_it_is_the_unet_of_lesson_2_3():
    ours = randomise(ld.TextUNet(4, (16, 32), 1, (False, False)), 16)
    before = UNet(4, (16, 32), 1, (False, False), patch=2).eval()
    state = {k: v for k, v in ours.state_dict().items() if k in before.state_dict()}
    randomise(ours.mid[0].attention, 17)
    ours.mid[0].attention = None
    before.load_state_dict(state | {k: v for k, v in before.state_dict().items() if "attention" in k})
    before.mid[0].attention = torch.nn.Identity()
    ours.style.weight.data.zero_()
    z, t = noise(2, 4, 8, 8, seed=16), torch.tensor([3, 900])
    torch.testing.assert_close(ours(z, t, None, torch.tensor([0, 1])), before(z, t))


def test_control_is_added_where_it_should_be():
    """Zeros change nothing; the residuals follow the order of diffusers' ControlNet."""
    ours, reference = unets(*UNETS[0])
    z, c, t, style = noise(2, 4, 8, 8, seed=18), noise(2, 5, 24, seed=19), torch.tensor([4, 800]), torch.tensor([0, 1])
    stack, h = ours.encode(ours.conv_in(z), ours.embed(t, style), c)
    zeros, some = [torch.zeros_like(s) for s in [*stack, h]], [0.3 * noise(*s.shape, seed=20 + i) for i, s in enumerate([*stack, h])]
    torch.testing.assert_close(ours(z, t, c, style, control=zeros), ours(z, t, c, style))
    more = {"down_block_additional_residuals": some[:-1], "mid_block_additional_residual": some[-1]}
    torch.testing.assert_close(ours(z, t, c, style, control=some), reference(z, t, c, class_labels=style, **more).sample, rtol=1e-5, atol=1e-5)


def test_each_example_is_treated_alone():
    ours = randomise(ld.TextUNet(), 21)
    z, c, t, style = noise(3, 4, 16, 16, seed=21), noise(3, 20, 128, seed=22), torch.tensor([3, 500, 900]), torch.tensor([0, 1, 2])
    torch.testing.assert_close(ours(z, t, c, style)[1:2], ours(z[1:2], t[1:2], c[1:2], style[1:2]), rtol=1e-4, atol=1e-5)


def test_a_shallow_start():
    net = ld.start_shallow(ld.TextUNet(4, (16, 32), head_dim=16))
    z, c = noise(2, 4, 8, 8, seed=23), noise(2, 5, 128, seed=24)
    assert (net(z, torch.tensor([3, 900]), c, torch.tensor([0, 1])) == 0).all()
    block, x = ld.start_shallow(ld.PlainResBlock(8, 8)), noise(1, 8, 4, 4, seed=25)
    torch.testing.assert_close(block(x), x)


# Guidance and sampling


def test_guidance():
    a, b = noise(2, 3, 4, 8, 8, seed=26)
    torch.testing.assert_close(ld.guide(a, b, 1.0), a)
    torch.testing.assert_close(ld.guide(a, b, 0.0), b)
    torch.testing.assert_close(ld.guide(a, a, 5.0), a)
    torch.testing.assert_close(ld.guide(a, b, 3.0) - a, 2 * (a - b))


def test_caption_dropout_drops_whole_captions():
    c, none = noise(3000, 4, 2, seed=27), torch.zeros(4, 2)
    dropped = (ld.drop_captions(c, none, 0.1, torch.Generator().manual_seed(0)) == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1)) and abs(dropped.all(1).float().mean() - 0.1) < 0.02


@PRECISIONS
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_guided_sampling_equals_diffusers(w, dtype, tol):
    """20 guided DDIM steps, network and scheduler both theirs, with the same weights and the same noise."""
    ours, reference = (m.to(dtype) for m in unets(*UNETS[0]))
    c, none, start = noise(2, 5, 24, seed=28, dtype=dtype), noise(2, 5, 24, seed=29, dtype=dtype), noise(2, 4, 8, 8, seed=30, dtype=dtype)
    style, schedule = torch.tensor([1, 2]), make_schedule("cosine")
    model = ld.guided(ours, c, none, style, w)
    scheduler = DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    scheduler.alphas_cumprod = schedule.abar[1:].to(dtype)  # theirs are computed in float32
    scheduler.final_alpha_cumprod = torch.ones((), dtype=dtype)
    scheduler.set_timesteps(20)
    z = start
    with torch.no_grad():
        got = ddim_sample(model, z.shape, 20, schedule, clip=False, start=start)
        for t in scheduler.timesteps:
            both = reference(torch.cat([z, z]), t + 1, torch.cat([none, c]), class_labels=torch.cat([style, style])).sample  # our t = 1..T is their 0..T-1
            without, with_text = both.chunk(2)
            z = scheduler.step(without + w * (with_text - without), t, z).prev_sample
    size = max(1.0, z.abs().max().item())
    torch.testing.assert_close(got / size, z / size, rtol=20 * tol, atol=20 * tol)  # twenty steps in a row


# The whole


@pytest.fixture(scope="module")
def model():
    return ld.load_latent_diffusion()


def test_stored_weights_paint(model):
    """Latents have about unit spread, held-out emoji come back well, and captions decide what is painted."""
    from course_utils import data

    x = data.emoji("google", 64).subset("concepts")[::20].tensor()
    z = model.encode(x)
    assert z.shape == (len(x), 4, 16, 16) and 0.7 < z.std() < 1.3
    assert ld.psnr(x, model.decode(z)).mean() > 26
    painted = model.sample(["red heart", "tiger face"], steps=8)
    assert painted.shape == (2, 3, 64, 64) and 0 <= painted.min() and painted.max() <= 1
    again = model.sample(["tiger face", "tiger face"], steps=8)
    torch.testing.assert_close(again[1], painted[1], rtol=1e-3, atol=1e-3)
    assert (again[0] - painted[0]).abs().mean() > 0.02


def test_helpful_refusals(model):
    for ask in (model.sample, model.words, model.denoiser, lambda c: ld.text_states(model.clip, c)):
        with pytest.raises(CourseError, match="list of strings"):
            ask("red heart")
    for captions, more, words in (([], {}, "at least one"), (["bear"], {"style": 3}, "Twemoji"), (["bear"] * 2, {"start": noise(1, 4, 16, 16)}, "start")):
        with pytest.raises(ValueError, match=words):
            model.sample(captions, steps=1, **more)
    assert not any(p.requires_grad for part in (model.unet, model.autoencoder, model.clip) for p in part.parameters())


def test_control_is_doubled_for_guidance(model):
    """The two halves of a guided batch get the same control."""
    z, t = noise(2, 4, 16, 16, seed=31), torch.tensor([500, 500])
    c, style = model.words(["bear", "red heart"]), torch.tensor([1, 1])
    stack, h = model.unet.encode(model.unet.conv_in(F.pixel_unshuffle(z, 2)), model.unet.embed(t, style), c)
    control = [0.1 * noise(*s.shape, seed=40 + i) for i, s in enumerate([*stack, h])]
    with torch.no_grad():
        got = model.denoiser(["bear", "red heart"], w=2.5, control=control)(z, t)
        a, b = (model.unet(z, t, words, style, control=control) for words in (c, model.words(["", ""])))
    torch.testing.assert_close(got, ld.guide(a, b, 2.5), rtol=1e-4, atol=1e-4)


def test_judge_of_real_pictures(model):
    from course_utils import data

    held = data.emoji("google", 64).subset("compositions")[:40]
    score = ld.judge(model.clip, held.tensor(), held.tensor(), list(held.names_en))
    assert score["features"] == score["pixels"] == 1 and score["r5"] > 0.8
    shuffled = ld.judge(model.clip, held.tensor().roll(7, 0), held.tensor(), list(held.names_en))
    assert shuffled["features"] == 0 and shuffled["r5"] < 0.5 and math.isfinite(shuffled["pixels"])


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((1, 1, 64, 64), torch.float32),
        ((1, 4, 64, 64), torch.float32),
        ((3, 64, 64), torch.float32),
        ((0, 3, 64, 64), torch.float32),
        ((1, 3, 64, 64), torch.uint8),
    ],
)
def test_what_is_no_batch_of_pictures_gets_one_sentence(model, shape, dtype):
    with pytest.raises(ValueError, match="pictures are floats"):
        model.encode(torch.zeros(shape, dtype=dtype))


def test_captions_styles_and_seeds_of_any_kind(model):
    told = dict(steps=1, w=1)
    want = model.sample(["cat", "dog"], style=2, seed=3, **told)
    for style in (np.int64(2), [2, 2], torch.tensor([2, 2])):
        torch.testing.assert_close(model.sample(("cat", "dog"), style=style, seed=np.int64(3), **told), want)
    torch.testing.assert_close(model.sample((c for c in ("cat", "dog")), style=2, seed=3, **told), want)
    for style in (3, -1, 1.0, torch.tensor([1, 7])):
        with pytest.raises(ValueError, match="0 is any"):
            model.sample(["cat", "dog"], style=style, **told)
    with pytest.raises(ValueError, match="at least one of each"):
        model.sample(["cat"], steps=0)
    with pytest.raises(CourseError, match="number 2 of them is None"):
        model.sample(["cat", None], steps=1)


def test_a_picture_of_nan_is_never_a_hit(model):
    real = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    painted = real.clone()
    painted[:3] = math.nan
    scores = ld.judge(load_clip(image="both"), painted, real, ["cat", "dog", "house", "tree", "heart", "star"])
    assert scores["features"] == scores["pixels"] == 0.5
