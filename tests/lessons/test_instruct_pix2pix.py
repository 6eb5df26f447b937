"""Lesson 2.8 against diffusers' InstructPix2Pix pipeline, and what must hold of edits, instructions, the widened U-Net and the stored weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from torch import nn

from course_utils import data, weights
from course_utils.errors import CourseError
from course_utils.lessons import instruct_pix2pix as lesson
from course_utils.lessons.ddpm import ddim_sample, make_schedule
from course_utils.lessons.latent_diffusion import TextUNet

SCALES = [(1.5, 7.5), (1.0, 3.0), (2.0, 2.0), (1.2, 1.5)]


def randomise(model, seed=0, size=0.08):
    """Every parameter drawn anew, so that nothing is hidden by a start at zero or one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * size + (1.0 if p.ndim == 1 and p.mean() > 0.5 else 0.0))
    return model.eval()


def tiny(**more):
    return randomise(TextUNet(**{"widths": (16, 32), "context_width": 24, "groups": 4, "head_dim": 8, **more}))


def scheduler_of(schedule):
    """diffusers' DDIM with our tables in double precision, v-prediction, and steps at the same levels as ours."""
    s = DDIMScheduler(
        1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    s.betas, s.alphas_cumprod = schedule.beta[1:], schedule.abar[1:]
    s.alphas, s.final_alpha_cumprod = 1 - s.betas, torch.ones((), dtype=torch.float64)
    return s


class Outside(nn.Module):
    """Our U-Net with the calling convention of diffusers (levels counted from 0, conditions by name)."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.config = unet, SimpleNamespace(in_channels=8)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x, t, encoder_hidden_states, **_):
        t = (t + 1).expand(len(x))
        return (self.unet(x, t, encoder_hidden_states, torch.zeros_like(t)),)


def pipeline(unet, schedule):
    vae = nn.Module()
    vae.config = SimpleNamespace(block_out_channels=(1, 1, 1), latent_channels=4, scaling_factor=1.0)
    text = nn.Module()
    for part in (vae, text):
        part.dtype, part.device = torch.float32, torch.device("cpu")
    parts = {"vae": vae, "text_encoder": text, "unet": unet, "scheduler": scheduler_of(schedule)}
    pipe = StableDiffusionInstructPix2PixPipeline(**parts, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(batch=2, width=24, seed=1):
    g = torch.Generator().manual_seed(seed)
    z, picture = torch.randn(2, batch, 4, 8, 8, generator=g)
    return z, picture, torch.randn(batch, 20, width, generator=g), torch.randn(1, 20, width, generator=g)


def run_theirs(pipe, z, picture, words, nothing, s_I, s_T, steps):
    more = {"negative_prompt_embeds": nothing.expand_as(words), "num_inference_steps": steps, "output_type": "latent"}
    return pipe(prompt_embeds=words, image=picture, latents=z, guidance_scale=s_T, image_guidance_scale=s_I, **more).images


@pytest.mark.parametrize("s_I, s_T", SCALES)
def test_sampling_equals_the_pipeline_with_our_unet(s_I, s_T):
    schedule, unet = make_schedule(), tiny(channels=8, out_channels=4)
    z, picture, words, nothing = inputs()
    with torch.no_grad():
        got = lesson.sample_edit(unet, picture, words, nothing, s_I, s_T, z, 5, schedule)
        want = run_theirs(pipeline(Outside(unet), schedule), z, picture, words, nothing, s_I, s_T, 5)
    assert (got - z).abs().max() > 0.1
    torch.testing.assert_close(got, want.float(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("s_I, s_T", SCALES[:2])
def test_sampling_equals_the_pipeline_with_their_unet(s_I, s_T):
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
    }
    theirs = randomise(UNet2DConditionModel(8, 8, 4, **blocks, layers_per_block=1, cross_attention_dim=24, attention_head_dim=4, norm_num_groups=4), seed=2)
    schedule, (z, picture, words, nothing) = make_schedule(), inputs(seed=3)
    unet = lambda x, t, c, style: theirs(x, t - 1, c).sample  # noqa: E731
    with torch.no_grad():
        got = lesson.sample_edit(unet, picture, words, nothing, s_I, s_T, z, 4, schedule)
        want = run_theirs(pipeline(theirs, schedule), z, picture, words, nothing, s_I, s_T, 4)
    torch.testing.assert_close(got, want.float(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("s_I, s_T", [*SCALES, (0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (-0.5, 9.0)])
def test_guidance_in_double_precision(s_I, s_T):
    none, picture, both = torch.randn(3, 4, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    diffusers_order = none + s_T * (both - picture) + s_I * (picture - none)  # the pipeline's own line
    got = lesson.guide_both(none, picture, both, s_I, s_T)
    torch.testing.assert_close(got, diffusers_order, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got, (1 - s_I) * none + (s_I - s_T) * picture + s_T * both, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("s_I, s_T, passes", [(1.5, 3.0, 3), (1.0, 3.0, 2), (2.0, 2.0, 2), (1.5, 0.0, 2), (1.0, 1.0, 1), (1.0, 0.0, 1)])
def test_passes_that_cancel_are_left_out(s_I, s_T, passes):
    unet, schedule, (z, picture, words, nothing) = tiny(channels=8, out_channels=4), make_schedule(), inputs()
    rows = []

    def counting(x, *rest):
        rows.append(len(x))
        return unet(x, *rest)

    def three_questions(z, t):
        ask = lambda p, c: unet(torch.cat([z, p], 1), t, c, torch.zeros_like(t))  # noqa: E731
        none = nothing.expand_as(words)
        return lesson.guide_both(ask(0 * picture, none), ask(picture, none), ask(picture, words), s_I, s_T)

    with torch.no_grad():
        got = lesson.sample_edit(counting, picture, words, nothing, s_I, s_T, z, 3, schedule)
        want = ddim_sample(three_questions, z.shape, 3, schedule, clip=False, start=z)
    assert rows == [2 * passes] * 3
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


def test_the_guidance_holds_for_velocities_as_for_noise():
    """v = (e - sigma z) / alpha, and the weights of equation 3 add up to 1: guiding one is guiding the other."""
    z, *e = torch.randn(4, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    alpha, sigma = 0.6, 0.8
    v = [(x - sigma * z) / alpha for x in e]
    got = lesson.guide_both(*v, 1.7, 4.0)
    torch.testing.assert_close(got, (lesson.guide_both(*e, 1.7, 4.0) - sigma * z) / alpha, rtol=1e-12, atol=1e-12)


# The widened U-Net


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_at_first_the_editor_is_the_base(dtype, tol):
    base = tiny().to(dtype)
    editor = lesson.make_editor(base)
    z, picture, words, _ = (v.to(dtype) for v in inputs())
    t, style = torch.tensor([1, 900]), torch.tensor([0, 2])
    with torch.no_grad():
        got, want = editor(torch.cat([z, 50 * picture], 1), t, words, style), base(z, t, words, style)
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)
    assert editor.conv_in.in_channels == 32 and base.conv_in.in_channels == 16


@pytest.mark.parametrize("how", [{"bias": False}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2, "padding_mode": "reflect"}, {"device": "meta"}])
def test_a_widened_layer_is_the_old_one_in_all_else(how):
    conv = nn.Conv2d(4, 6, 3, dtype=torch.float64, **how).requires_grad_(False)
    wide = lesson.widen(conv, 5)
    assert (wide.bias is None) == (conv.bias is None) and wide.weight.device == conv.weight.device and wide.weight.dtype == torch.float64
    assert all(p.requires_grad for p in wide.parameters()) and not conv.weight.requires_grad and wide.in_channels == 9
    if "device" not in how:
        x, more = torch.randn(2, 4, 9, 8, dtype=torch.float64), torch.randn(2, 5, 9, 8, dtype=torch.float64)
        torch.testing.assert_close(wide(torch.cat([x, more], 1)), conv(x), rtol=1e-12, atol=1e-12)


def test_only_the_chosen_parameters_learn_and_the_base_stays():
    base = tiny()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    editor = lesson.make_editor(base)
    z, picture, words, _ = inputs()
    out = editor(torch.cat([z, picture], 1), torch.tensor([5, 500]), words, torch.zeros(2, dtype=torch.long))
    out.square().mean().backward()
    with torch.no_grad():
        for name, p in editor.named_parameters():
            assert (p.grad is not None) == lesson.is_trained(name)
            if p.grad is not None:
                p.sub_(p.grad)
    assert editor.conv_in.weight.grad[:, 16:].abs().max() > 0
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    kept = {k for k, _ in editor.named_parameters() if not lesson.is_trained(k)}
    assert all(torch.equal(editor.get_parameter(k), before[k]) for k in kept) and kept


def test_the_trained_part_is_saved_and_loaded(tmp_path):
    base = tiny()
    editor, again = randomise(lesson.make_editor(base), seed=5), lesson.make_editor(base)
    for name, p in editor.named_parameters():
        if not lesson.is_trained(name):
            p.data.copy_(base.get_parameter(name))
    weights.save("edit", {"unet": lesson.Changed(editor)}, folder=tmp_path, half=False)
    weights.load("edit", {"unet": lesson.Changed(again)}, folder=tmp_path)
    assert all(torch.equal(v, editor.state_dict()[k]) for k, v in again.state_dict().items())
    with pytest.raises(CourseError, match="do not fit"):
        weights.load("edit", {"unet": lesson.Changed(lesson.make_editor(tiny(attention=(False, False))))}, folder=tmp_path)


# Conditions and edits


def test_shares_of_dropped_conditions():
    n = 200_000
    u = torch.rand(n, generator=torch.Generator().manual_seed(6))
    a, b = lesson.drop_conditions(torch.ones(n, 1, 1, 1), torch.ones(n, 1, 1), torch.zeros(1, 1, 1), u)
    a, b = a.flatten() == 1, b.flatten() == 1
    for mask, share in ((a & b, 0.85), (a & ~b, 0.05), (~a & b, 0.05), (~a & ~b, 0.05)):
        assert abs(mask.double().mean().item() - share) < 0.003


def test_conditions_at_the_ends_of_the_stretches():
    p = 0.125
    u = torch.tensor([0.0, p, 2 * p, 3 * p])
    picture, words = lesson.drop_conditions(torch.ones(4, 1, 1, 1), torch.ones(4, 1, 1), torch.zeros(1, 1, 1), u, p)
    assert picture.flatten().tolist() == [1, 0, 0, 1] and words.flatten().tolist() == [0, 0, 1, 1]


def test_noise_levels_and_chances_at_the_ends():
    g = torch.Generator().manual_seed(0)
    assert lesson.noise_levels(5, g, T=1).tolist() == [1] * 5 and lesson.noise_levels(0, g).shape == (0,)
    many = lesson.noise_levels(1000, g)
    assert many.min() >= 1 and many.max() <= 1000
    one = lesson.Edits(np.array(["other"], dtype=object), np.array([""], dtype=object), np.array([0]), np.array([1]))
    assert lesson.draw_chances(one, np.array(["a", "b"])).tolist() == [0.0]  # a kind without a share, and no nan


@pytest.fixture(scope="module")
def pack():
    return data.emoji("google", 8)


def test_every_edit_changes_one_attribute(pack):
    edits, n = lesson.find_edits(pack), len(pack)
    assert len(edits) > 20_000 and set(edits.kind) == set(lesson.ATTRIBUTES)
    label = {k: np.tile(getattr(pack, k), 2) for k in ("tone", "gender", "facing", "concept")} | {"style": np.repeat(["Noto", "Twemoji"], n)}
    for kind in lesson.ATTRIBUTES:
        rows = edits.kind == kind
        before, after = edits.before[rows], edits.after[rows]
        assert (label[kind][after] == edits.value[rows]).all() and (label[kind][before] != label[kind][after]).all()
        assert all((label[k][before] == label[k][after]).all() for k in label if k != kind)
        assert set(edits.value[rows]) <= set(lesson.ATTRIBUTES[kind])
    assert len({*zip(edits.before, edits.after)}) == len(edits)


def test_labels_and_chances(pack):
    edits = lesson.find_edits(pack)
    found = lesson.labels(edits, 2 * len(pack))
    tone = np.tile(pack.tone, 2)
    known = found["tone"] >= 0
    assert all(lesson.ATTRIBUTES["tone"][c] == tone[i] for i, c in enumerate(found["tone"].tolist()) if known[i])
    chance = lesson.draw_chances(edits, np.tile(pack.concept, 2))
    assert abs(chance.sum() - 1) < 1e-9 and (chance > 0).all()
    assert abs(chance[edits.kind == "tone"].sum() - 0.4) < 1e-9 and abs(chance[edits.kind == "facing"].sum() - 0.05) < 1e-9


def test_wordings_tell_values_apart_and_keep_one_back():
    owner = {}
    for kind, values in lesson.ATTRIBUTES.items():
        for value in values:
            for language in ("en", "ko"):
                trained, held = (lesson.wordings(kind, value, language, h) for h in (False, True))
                assert trained and held and not set(trained) & set(held)
                for sentence in trained + held:
                    assert owner.setdefault(sentence, (kind, value)) == (kind, value), sentence
                    assert "{" not in sentence and (language == "ko") == any("가" <= c <= "힣" for c in sentence)
    assert "make the skin dark" in owner and "피부를 어둡게 해 줘" in owner and "draw it as Twemoji" in owner and "change to a woman" in owner


def test_what_did_not_move_has_no_direction():
    a = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    assert lesson.direction_similarity(a, a, a, a + 1).tolist() == [0.0, 0.0] and lesson.direction_similarity(a, a + 1, a, a).tolist() == [0.0, 0.0]


def test_direction_similarity_by_numpy():
    a, b, s, t = torch.randn(4, 6, 128, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    got = lesson.direction_similarity(a, b, s, t)
    u, v = (b - a).numpy(), (t - s).numpy()
    want = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-10)


def test_the_judge_names_values():
    judge = lesson.Judge(4).eval()
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    logits = judge(x)
    assert {k: v.shape[1] for k, v in logits.items()} == {k: len(v) for k, v in lesson.ATTRIBUTES.items()}
    said = judge.says(x, ["tone", "style", "gender"])
    assert said[1] == lesson.ATTRIBUTES["style"][int(logits["style"][1].argmax())] and said[0] in lesson.ATTRIBUTES["tone"]


def test_one_string_is_refused():
    x = torch.rand(2, 3, 64, 64)
    with pytest.raises(CourseError, match="list of strings"):
        lesson.edit(None, None, x, "make it dark")
    with pytest.raises(CourseError, match="list of strings"):
        lesson.make_pairs(None, "cat", ["dog"] * 3, torch.zeros(3), None)
    with pytest.raises(CourseError, match="list of strings"):
        lesson.Judge(4).eval().says(x, "tone")
    with pytest.raises(CourseError, match="list of strings"):
        lesson.clip_scores(lesson.load_clip(image="both"), x, x, "cat", ["cat", "dog"])


def test_one_instruction_a_picture():
    with pytest.raises(CourseError, match="one instruction a picture, not 3 for 2"):
        lesson.edit(None, None, torch.rand(2, 3, 64, 64), ["a", "b", "c"])


BAD_PICTURES = {
    "none": torch.rand(0, 3, 64, 64),
    "one without its batch axis": torch.rand(3, 64, 64),
    "grey": torch.rand(1, 1, 64, 64),
    "RGBA": torch.rand(1, 4, 64, 64),
    "an odd size": torch.rand(1, 3, 60, 64),
    "bytes": torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    "0 to 255": torch.full((1, 3, 64, 64), 255.0),
    "nan": torch.full((1, 3, 64, 64), torch.nan),
}


@pytest.mark.parametrize("x", BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_pictures_that_cannot_be_read_get_one_sentence(x):
    with pytest.raises(CourseError, match="Pictures are wanted"):
        lesson.edit(None, None, x, ["make it dark"] * len(x))


def test_pictures_from_numpy_in_double_precision_are_read():
    x = np.random.default_rng(0).random((2, 3, 32, 48))
    assert torch.equal(lesson.readable(x), torch.from_numpy(x).float())


def test_other_slips_get_one_sentence():
    x, judge = torch.rand(2, 3, 64, 64), lesson.Judge(4).eval()
    with pytest.raises(CourseError, match="at least one step"):
        lesson.edit(None, None, x, ["a", "b"], steps=0)
    for kinds in (["tone"], ["tone", "hair"]):
        with pytest.raises(CourseError, match="one of tone, gender, facing, style"):
            judge.says(x, kinds)
    for kind, language in (("hair", "en"), ("tone", "de")):
        with pytest.raises(CourseError, match="No wordings"):
            lesson.wordings(kind, "dark", language)
    with pytest.raises(CourseError, match="one of each a pair"):
        lesson.clip_scores(lesson.load_clip(image="both"), x, x, ["a"], ["b", "c"])
    for before, after, noises in ((["a"], ["b", "c"], 1), (["a"], ["b"], 2), ([], [], 0)):
        with pytest.raises(CourseError, match="one of each a pair"):
            lesson.make_pairs(None, before, after, 0.5, torch.zeros(noises, 4, 16, 16))


# The stored weights


def test_stored_weights_edit_a_held_out_picture():
    assert weights.file("instruct_pix2pix").stat().st_size <= 4_000_000
    ld, unet = lesson.load_editor()
    base = ld.unet.state_dict()
    assert all(torch.equal(v, base[k]) for k, v in unet.state_dict().items() if not lesson.is_trained(k))
    assert unet.conv_in.weight[:, 16:].abs().mean() > 1e-3
    noto = data.emoji("google", 64)
    rows = [i for i in range(len(noto)) if noto.split[i] == "concepts" and noto.tone[i] == "light" and noto.gender[i] == ""][:2]
    x = noto[np.array(rows)].tensor()
    y = lesson.edit(ld, unet, x, ["make the skin dark"] * len(x), s_I=1.5, s_T=2.0, steps=8)
    assert y.shape == x.shape and y.mean() < x.mean()  # darker, on the whole
    assert (y - x).abs().mean() < 0.3  # and still the same picture
