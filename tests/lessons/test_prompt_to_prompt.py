"""Lesson 2.7 against diffusers (attention with a processor that edits its maps) and against what must hold: identity, same caption, inversion of a perfect denoiser."""

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention

from course_utils.errors import CourseError
from course_utils.lessons import ddpm
from course_utils.lessons import prompt_to_prompt as p2p
from course_utils.lessons.clip import load_clip
from course_utils.lessons.latent_diffusion import CrossAttention, LatentDiffusion, SpatialTransformer, TextUNet

from .test_latent_diffusion import unets

CAPTIONS = ["woman farmer: dark skin tone", "man farmer: medium-dark skin tone", "woman farmer: dark skin tone", "polar bear"]


@pytest.fixture(scope="module")
def clip():
    return load_clip()


@pytest.fixture(scope="module")
def ld(clip):
    """A small text-to-image model with random weights, every parameter drawn anew."""
    unet = TextUNet(widths=(32, 64))
    g = torch.Generator().manual_seed(0)
    for p in unet.parameters():
        p.data = torch.randn(p.shape, generator=g) / math.sqrt(max(p[0].numel() if p.ndim > 1 else 1, 9))
    return LatentDiffusion(autoencoder=None, unet=unet.eval().requires_grad_(False), clip=clip, schedule=ddpm.make_schedule())


def noise(B, seed=1):
    return torch.randn(B, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


# Maps


class Processor:
    """A diffusers attention processor that keeps its maps and, if told so, edits them as the paper's code does: einsum with the mapper, then a blend with alphas."""

    def __init__(self, source=None, A=None, keep=None, scale=None):
        self.source, self.A, self.keep, self.scale = source, A, keep, scale  # source alone: self-attention

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(f(x)) for f, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context)))
        maps = attn.get_attention_scores(q, k)  # (B · heads, N, T)
        self.maps = maps
        if self.source is not None:
            m = maps.unflatten(0, (-1, attn.heads))
            if self.A is None:
                maps = m[self.source].flatten(0, 1)
            else:
                replaced = torch.einsum("bhpw,bwn->bhpn", m[self.source], self.A)
                alpha = self.keep[:, None, None, :]
                maps = ((replaced * alpha + m * (1 - alpha)) * self.scale[:, None, None, :]).flatten(0, 1)
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(maps, v)))


def pair_of_layers(cross, width=64, heads=2, seed=0):
    """Our attention layer and diffusers' with the same random weights."""
    torch.manual_seed(seed)
    ours = CrossAttention(width, 128 if cross else None)
    theirs = Attention(width, cross_attention_dim=128 if cross else None, heads=heads, dim_head=32, bias=False)
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.2)
    theirs.load_state_dict({k.replace("to_out.", "to_out.0."): v for k, v in ours.state_dict().items()})
    return ours, theirs


@pytest.mark.parametrize("cross", [True, False])
def test_maps_equal_diffusers(cross):
    ours, theirs = pair_of_layers(cross)
    theirs.set_processor(keeper := Processor())
    x, c = torch.randn(3, 16, 64), torch.randn(3, 20, 128) if cross else None
    kept = []
    layers = torch.nn.ModuleDict({"attn2" if cross else "attn1": ours})
    with p2p.controlled(layers, lambda maps, to_words: kept.append((to_words, maps)) or maps):
        out = ours(x, c)
    torch.testing.assert_close(out, theirs(x, encoder_hidden_states=c), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept[0][1].flatten(0, 1), keeper.maps, atol=1e-6, rtol=1e-5)
    assert kept[0][0] is cross
    torch.testing.assert_close(kept[0][1].sum(-1), torch.ones(3, 2, 16))


def test_edited_attention_equals_diffusers_with_an_editing_processor(ld):
    ours, theirs = pair_of_layers(True, seed=1)
    rule = p2p.plan(ld, CAPTIONS, [0, 0, 2, 3], words=1.0, itself=0.0, emphasis={"farmer": 2.5})
    theirs.set_processor(Processor(rule.source, rule.A, rule.keep, rule.scale))
    x, c = torch.randn(4, 16, 64), torch.randn(4, 20, 128)
    with p2p.controlled(torch.nn.ModuleDict({"attn2": ours}), rule):
        got = ours(x, c)
    torch.testing.assert_close(got, theirs(x, encoder_hidden_states=c), atol=1e-5, rtol=1e-5)
    assert (got[1] - ours(x, c)[1]).abs().max() > 1e-3  # the edit did something


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_an_edited_unet_equals_diffusers_with_editing_processors(ld, dtype, tol):
    """The whole U-Net: word maps and self-attention maps of the source rows in every layer."""
    ours, theirs = (m.to(dtype) for m in unets(4, (16, 32), 1, (True, True)))
    rule = p2p.plan(ld, CAPTIONS, [0, 0, 2, 3], words=1.0, itself=1.0, emphasis={"farmer": 2.5})
    rule.A, rule.keep, rule.scale = rule.A.to(dtype), rule.keep.to(dtype), rule.scale.to(dtype)
    z, c = noise(4, seed=5).to(dtype), torch.randn(4, 20, 24, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype)
    t, style = torch.tensor([1, 1, 500, 1000]), torch.tensor([1, 1, 2, 0])
    plain = ours(z, t, c, style)
    with p2p.controlled(ours, rule):
        got = ours(z, t, c, style)
    edit = {"attn1": Processor(rule.source), "attn2": Processor(rule.source, rule.A, rule.keep, rule.scale)}
    theirs.set_attn_processor({name: edit[name.split(".")[-2]] for name in theirs.attn_processors})
    torch.testing.assert_close(got, theirs(z, t, c, class_labels=style).sample, rtol=tol, atol=tol)
    assert (got[1] - plain[1]).abs().max() > 1e-2  # the edited row did change
    torch.testing.assert_close(got[[0, 2, 3]], plain[[0, 2, 3]], rtol=tol, atol=tol)  # the others did not


def test_the_door_is_shut_again(ld):
    block = SpatialTransformer(64, 128)
    with pytest.raises(RuntimeError, match="stop"), p2p.controlled(block, lambda maps, to_words: maps):
        assert "attend" in vars(block.attn1)
        raise RuntimeError("stop")
    assert "attend" not in vars(block.attn1) and "attend" not in vars(block.attn2)


class Grey:
    """An autoencoder for which every picture is the latent 0."""

    def encode(self, x):
        return torch.zeros(len(x), 4, 16, 16)


def test_word_maps_sum_to_one(ld, clip):
    model = LatentDiffusion(Grey(), ld.unet, clip, ld.schedule)
    maps = p2p.word_maps(model, torch.rand(3, 64, 64), "polar bear", levels=(100, 500))
    assert list(maps) == ["<start>", "polar", "bear", "<end>", "nothing"]
    torch.testing.assert_close(sum(maps.values()), torch.ones(8, 8))


@pytest.mark.parametrize("caption", ["red heart red", ": : :", "nothing", "cat " * 18])
def test_a_word_that_occurs_twice_has_two_maps(ld, clip, caption):
    model = LatentDiffusion(Grey(), ld.unet, clip, ld.schedule)
    maps = p2p.word_maps(model, torch.rand(3, 64, 64), caption, levels=(300,))
    torch.testing.assert_close(sum(maps.values()), torch.ones(8, 8))
    assert len(maps) == len(p2p.spans(clip.tokenizer, caption)) and list(maps)[-1] == "nothing"


def test_equal_names_are_told_apart():
    assert p2p.numbered(["red", "heart", "red", "red", "nothing"]) == ["red", "heart", "red (2)", "red (3)", "nothing"]
    assert p2p.numbered(["nothing", "nothing"]) == ["nothing (2)", "nothing"]


# The editor


def test_identity_equals_the_plain_sampler(ld):
    model = ld.denoiser(CAPTIONS, 1, 3.0)
    want = ddpm.ddim_sample(model, None, 6, ld.schedule, clip=False, start=noise(4))
    for source in ([0, 1, 2, 3], [3, 3, 3, 3]):  # each its own source; or others' sources with nothing injected
        rule = p2p.plan(ld, CAPTIONS, source, words=0.0, itself=0.0)
        got = p2p.sample_side_by_side(ld, noise(4), CAPTIONS, rule, steps=6)
        torch.testing.assert_close(got, want, atol=5e-6 * want.abs().max().item(), rtol=0)
    rule = p2p.plan(ld, CAPTIONS, [0, 1, 2, 3], words=1.0, itself=1.0)
    assert torch.equal(p2p.sample_side_by_side(ld, noise(4), CAPTIONS, rule, steps=6), got)


def test_one_pass_under_the_identity_is_within_single_precision(ld):
    t, s, c = torch.full((2,), 600), torch.ones(2, dtype=torch.long), ld.words(CAPTIONS[:2])
    plain = ld.unet(noise(2), t, c, s)
    with p2p.controlled(ld.unet, p2p.plan(ld, CAPTIONS[:2], [0, 1], 1.0, 1.0)):
        watched = ld.unet(noise(2), t, c, s)
    assert (watched - plain).abs().max() / plain.abs().max() < 5e-6
    assert torch.equal(ld.unet(noise(2), t, c, s), plain)


def test_the_same_caption_gives_the_source(ld):
    captions = [CAPTIONS[0], CAPTIONS[0], CAPTIONS[0]]
    for words, itself in ((1.0, 1.0), (0.5, 0.2)):
        rule = p2p.plan(ld, captions, [0, 0, 0], words, itself)
        z = p2p.sample_side_by_side(ld, noise(1).expand(3, -1, -1, -1), captions, rule, steps=5)
        torch.testing.assert_close(z[1:], z[:1].expand(2, -1, -1, -1), atol=2e-6, rtol=0)


def test_full_self_attention_and_words_shares_differ_from_resampling(ld):
    captions = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[1]]
    rule = p2p.plan(ld, captions, [0, 0, 0], words=[0, 0, 0.8], itself=[0, 0, 0.5])
    z = p2p.sample_side_by_side(ld, noise(1).expand(3, -1, -1, -1), captions, rule, steps=5)
    plain = p2p.sample_side_by_side(ld, noise(1), captions[1:2], p2p.plan(ld, captions[1:2], [0]), steps=5)
    torch.testing.assert_close(z[1:2], plain, atol=1e-4, rtol=1e-4)  # share 0 is re-sampling
    assert (z[2] - z[1]).abs().max() > 1e-3


def test_factor_one_is_the_identity_and_others_are_not(ld):
    captions = [CAPTIONS[0]] * 3
    for factor, same in ((1.0, True), (3.0, False)):
        rule = p2p.plan(ld, captions[:2], [0, 0], 1.0, 1.0, emphasis={"farmer": factor})
        z = p2p.sample_side_by_side(ld, noise(1).expand(2, -1, -1, -1), captions[:2], rule, steps=4)
        assert ((z[0] - z[1]).abs().max() < 2e-6) == same


def test_equal_heat_blends_nothing_and_a_spot_keeps_the_rest(ld):
    captions = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[1]]
    rule = p2p.plan(ld, captions, [0, 0, 0], 0.5, 0.2)
    heat = torch.ones(3, 16, 16)
    heat[2, :, 4:] = 0
    z = p2p.sample_side_by_side(ld, noise(1).expand(3, -1, -1, -1), captions, rule, steps=5, heat=heat)
    plain = p2p.sample_side_by_side(ld, noise(1).expand(3, -1, -1, -1), captions, rule, steps=5)
    torch.testing.assert_close(z[:2], plain[:2], atol=2e-6, rtol=0)
    assert torch.equal(z[2, :, :, 4:], z[0, :, :, 4:]) and (z[2] - z[0])[:, :, :4].abs().max() > 1e-3


def test_captions_differ_nowhere_from_themselves(ld):
    heat = p2p.caption_difference(ld, noise(2), CAPTIONS[:2], CAPTIONS[:2])
    assert heat.shape == (2, 16, 16) and heat.max() == 0
    assert p2p.caption_difference(ld, noise(2), CAPTIONS[:2], CAPTIONS[2:]).amax((1, 2))[1] > 0


def test_steps_from_one_to_the_number_of_levels():
    few, all_of_them = ddpm.make_schedule(T=7), p2p.ladder(ddpm.make_schedule(T=7), 7)
    assert all_of_them.tolist() == [7, 6, 5, 4, 3, 2, 1, 0] and p2p.ladder(few, 1).tolist() == [7, 0]
    assert p2p.ladder(ddpm.make_schedule(), 10).tolist() == list(range(1000, -1, -100))
    for steps in (0, -1, 8):
        with pytest.raises(ValueError, match="from 1 to 7"):
            p2p.ladder(few, steps)
    with pytest.raises(ValueError, match="from 1 to 7"):
        p2p.invert(lambda z, t: z, torch.zeros(1, 2), 8, few)


def test_one_step_and_one_level_are_finite():
    one, z = ddpm.make_schedule(T=1), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    path = p2p.invert(lambda z, t: 0 * z, z, 1, one)
    assert len(path) == 2 and path[1].isfinite().all()


# Captions


def test_spans_cover_every_token_once(clip):
    for caption in (*CAPTIONS, "", "곰 얼굴", "person: blond hair"):
        cut = p2p.spans(clip.tokenizer, caption)
        assert sorted(t for _, tokens in cut for t in tokens) == list(range(20))
        ids = clip.tokenizer([caption])[0]
        assert len(ids) == cut[-2][1][0] + 1 and ids[cut[-2][1][0]] == clip.tokenizer.END
    with pytest.raises(ValueError, match="tokens"):
        p2p.spans(clip.tokenizer, "very " * 30)


def test_mapper_keeps_all_attention_and_added_words_keep_their_own(clip):
    cut = [p2p.spans(clip.tokenizer, c) for c in ("woman cook", "woman cook: dark skin tone", "red heart", "polar bear")]
    A, keep = p2p.mapper(p2p.align(cut[0], cut[1]))
    torch.testing.assert_close(A.sum(1), torch.ones(20))
    assert keep[3:7].sum() == 0 and A[:, 3:7].sum() == 0 and keep.sum() == 16
    A, keep = p2p.mapper(p2p.align(cut[2], cut[3]))  # two tokens against three
    torch.testing.assert_close(A.sum(1), torch.ones(20))
    torch.testing.assert_close(A[1:3, 1:4], torch.full((2, 3), 1 / 3))
    assert keep.all()
    A, keep = p2p.mapper(p2p.align(cut[0], cut[0]))
    assert torch.equal(A, torch.eye(20)) and keep.all()


def test_a_caption_that_fills_the_context(ld, clip):
    """18 tokens leave no "nothing": its attention, which carries the value 0, is dropped; every word keeps its own."""
    full = "cat " * 18
    for source, target in (("cat", full), (full, "cat"), (full, full)):
        rule = p2p.plan(ld, [source, target], [0, 0])
        a, b = (p2p.spans(clip.tokenizer, c) for c in (source, target))
        told = [t for word, tokens in a for t in tokens if (word != "nothing" or b[-1][1])]
        given = {i for pair in p2p.align(a, b) for i in pair[0]}
        assert rule.A.isfinite().all() and given <= set(told)
        torch.testing.assert_close(rule.A[1].sum(1), torch.tensor([float(i in given) for i in range(20)]))
        assert rule.keep[1].tolist() == [float(any(j in p[1] for p in p2p.align(a, b))) for j in range(20)]
    with pytest.raises(ValueError, match="19 tokens"):
        p2p.plan(ld, ["cat", "cat " * 19], [0, 0])


def test_an_empty_caption_and_repeated_words(ld):
    rule = p2p.plan(ld, ["", "red heart red"], [0, 0], emphasis={"red": 3.0})
    assert rule.scale[1].tolist() == [1, 3, 1, 3, *[1] * 16] and rule.scale[0].tolist() == [1] * 20
    assert rule.keep[1].tolist() == [1, 0, 0, 0, *[1] * 16]


def test_helpful_refusals(ld, clip):
    with pytest.raises(CourseError, match="list of strings"):
        p2p.plan(ld, "cat", [0])
    with pytest.raises(ValueError, match="source row"):
        p2p.plan(ld, ["cat", "dog"], [0])
    with pytest.raises(ValueError, match="no edited caption holds"):
        p2p.plan(ld, ["cat", "dog"], [0, 0], emphasis={"Dog": 2.0})


# Real pictures


def spots(std=0.1):
    angle = torch.arange(6, dtype=torch.float64) * math.pi / 3
    means = torch.stack([angle.cos(), angle.sin()], 1)
    points = means.repeat(20, 1) + std * torch.randn(120, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return ddpm.mixture_denoiser(means, std, ddpm.make_schedule()), points


def test_inversion_step_undoes_the_ddim_step():
    s = ddpm.make_schedule()
    x, eps = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t, u = torch.tensor([10, 200, 500, 900]), torch.tensor([40, 300, 520, 990])
    up = p2p.inversion_step(x, eps, t, u, s)
    clean = (up - ddpm.at((1 - s.abar).sqrt(), u, up) * eps) / ddpm.at(s.abar.sqrt(), u, up)
    torch.testing.assert_close(ddpm.ddim_step(up, clean, eps, u, t, s), x, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(p2p.inversion_step(x, eps, t * 0, u, s), ddpm.q_sample(x, u, eps, s), atol=1e-10, rtol=1e-10)


def test_inversion_of_a_perfect_denoiser_returns():
    schedule = ddpm.make_schedule()
    model, points = spots()

    def error(steps, rounds):
        top = p2p.invert(model, points, steps, schedule, "eps", rounds)[-1]
        return (ddpm.ddim_sample(model, points.shape, steps, schedule, "eps", clip=False, start=top) - points).abs().max().item()

    assert error(400, 1) < 0.5 * error(100, 1)  # first order in the step
    assert error(100, 40) < 1e-3 * error(100, 1)


def test_inversion_of_a_gaussian_is_the_closed_form():
    """For data from N(0, s² I) the path is a straight scaling: x_t = x_0 · sqrt(abar s² + 1 - abar) / s in the limit of many steps."""
    schedule = ddpm.make_schedule()
    std = 0.5
    model = ddpm.mixture_denoiser(torch.zeros(1, 3), std, schedule)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * std
    top = p2p.invert(model, x, 1000, schedule, "eps", rounds=20)
    for k in (200, 600, 990):
        want = x * (schedule.abar[k] * std**2 + 1 - schedule.abar[k]).sqrt() / std
        torch.testing.assert_close(top[k], want, rtol=2e-3, atol=2e-3)


def test_null_text_step_comes_nearer_and_leaves_the_weights_alone(ld):
    t, u = torch.full((2,), 600), torch.full((2,), 500)
    z, words, s = noise(2), ld.words(CAPTIONS[:2]), torch.ones(2, dtype=torch.long)
    goal = ddpm.ddim_step(z, *ddpm.split(ld.unet(z, t, words, s), z, t, ld.schedule), t, u, ld.schedule)  # w = 1
    empty = ld.words(["", ""])
    before = [p.clone() for p in ld.unet.parameters()]
    fitted, reached, losses = p2p.null_text_step(ld, z, t, u, words, empty, s, 3.0, goal, rounds=5, lr=0.01)
    assert len(losses) == 6 and losses[-1] < losses[0]
    torch.testing.assert_close((reached - goal).square().mean((1, 2, 3)).mean(), torch.tensor(losses[-1]))
    assert (fitted - empty).abs().max() > 0 and not fitted.requires_grad
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, ld.unet.parameters()))
    _, exact, losses = p2p.null_text_step(ld, z, t, u, words, empty, s, 1.0, goal, rounds=0, lr=0.01)  # w = 1 needs no help
    torch.testing.assert_close(exact, goal, atol=1e-6, rtol=1e-5)


# Judges


def test_background_and_its_error():
    a = torch.zeros(1, 3, 16, 16)
    b = a.clone()
    b[0, 1, 8, 8] = 0.5
    mask = p2p.background(a, b)
    assert mask.shape == (1, 1, 16, 16) and (~mask).sum() == 25 and not mask[0, 0, 8, 8]
    c = a + 0.2
    torch.testing.assert_close(p2p.background_error(a, c, mask), torch.tensor([0.2]))
    assert p2p.background_error(a, b, mask) == 0


def test_clip_direction_against_a_loop(clip):
    x, y = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    a, b = ["bear", "cat face", "red heart"], ["tiger face", "dog face", "blue heart"]
    got = p2p.clip_direction(clip, x, y, a, b)
    for i in range(3):
        small = [torch.nn.functional.avg_pool2d(v[i : i + 1], 2) for v in (x, y)]
        di = clip.encode_image(small[1])[0] - clip.encode_image(small[0])[0]
        dt = clip.encode_text([b[i]])[0] - clip.encode_text([a[i]])[0]
        torch.testing.assert_close(got[i], di @ dt / di.norm() / dt.norm(), atol=1e-5, rtol=1e-5)


def test_error_at_a_strength():
    assert p2p.error_at(0.5, [0.3, 0.1], [0.5, 0.5]) == pytest.approx(0.1)
    assert p2p.error_at(0.5, [0.3, 0.1], [0.6, 0.4]) == pytest.approx(0.2, abs=1e-3)
    assert p2p.error_at(0.7, [0.3, 0.1], [0.6, 0.4]) == math.inf
    assert p2p.error_at(0.5, [0.3], [0.6]) == 0.3 and p2p.error_at(0.5, [], []) == math.inf


def test_counts_and_ranges_get_one_sentence(ld, clip):
    captions, x = ["cat", "dog"], torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    for source in ([0, -1], [0, 2]):
        with pytest.raises(CourseError, match="from 0 to 1"):
            p2p.plan(ld, captions, source)
    rule = p2p.plan(ld, captions, [0, 0])
    for z, texts in ((noise(1), captions), (noise(2), captions[:1]), (noise(3), [*captions, "bear"])):
        with pytest.raises(CourseError, match="one of each a row"):
            p2p.sample_side_by_side(ld, z, texts, rule, steps=2)
    with pytest.raises(CourseError, match="3 empty captions for 2 steps"):
        p2p.sample_side_by_side(ld, noise(2), captions, rule, steps=2, empty=torch.zeros(3, 2, 20, 128))
    with pytest.raises(CourseError, match="one of each a row"):
        p2p.caption_difference(ld, noise(2), captions, captions[:1])
    with pytest.raises(CourseError, match="and a level"):
        p2p.caption_difference(ld, noise(2), captions, captions, levels=())
    for picture in (x[0] * 255, x[0] * math.nan, x[0, :1], x, x[0, :, :32, :32]):
        with pytest.raises(CourseError, match="from 0 to 1"):
            p2p.word_maps(ld, picture, "cat")
    with pytest.raises(CourseError, match="at least one round"):
        p2p.invert(lambda z, t: z, noise(1), 2, ddpm.make_schedule(T=7), rounds=0)
    with pytest.raises(CourseError, match="counts differ"):
        p2p.clip_direction(clip, x, x, captions, captions[:1])
    with pytest.raises(CourseError, match="one of each a setting"):
        p2p.error_at(0.5, [0.3, 0.1], [0.5])
