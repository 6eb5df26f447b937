"""The checks of lesson 2.8 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.checks import instruct_pix2pix as checks
from course_utils.exercises import examine
from course_utils.lessons import instruct_pix2pix as lesson
from course_utils.lessons.ddpm import ddim_sample, make_schedule

from . import WRONG_SHAPE, accepts, every, refuses

KEPT = {}  # what the wrong answers with a memory keep between calls


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, lesson, name)


def direction_of_ends(a, b, s, t):
    return F.cosine_similarity(b, t, dim=-1)


def direction_reversed(a, b, s, t):
    return F.cosine_similarity(a - b, t - s, dim=-1)


def direction_as_dot(a, b, s, t):
    return ((b - a) * (t - s)).sum(-1)


def direction_matrix(a, b, s, t):
    return F.normalize(b - a, dim=-1) @ F.normalize(t - s, dim=-1).T


def direction_over_zero(a, b, s, t):
    u, v = b - a, t - s
    return (u * v).sum(-1) / u.norm(dim=-1) / v.norm(dim=-1)


def direction_half_cut(a, b, s, t):
    return lesson.direction_similarity(a, b, s.detach(), t)


def direction_by_largest(a, b, s, t):
    u, v = b - a, t - s
    return (u * v).sum(-1) / (u.norm(dim=-1).max() * v.norm(dim=-1)).clamp(min=1e-8)


def direction_kept(a, b, s, t):
    return KEPT.setdefault(("direction", a.shape), lesson.direction_similarity(a, b, s, t))


def direction_by_hand(a, b, s, t):
    return (F.normalize(b - a, dim=-1) * F.normalize(t - s, dim=-1)).sum(-1)


def direction_by_rows(a, b, s, t):
    return torch.stack([F.cosine_similarity(v - u, y - x, dim=0) for u, v, x, y in zip(a, b, s, t)])


def direction_with_epsilon(a, b, s, t):
    u, v = b - a, t - s
    return (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1) + 1e-8)


def direction_in_single(*given):
    return lesson.direction_similarity(*(x.float() for x in given)).double()


def direction_of_unit_vectors(*given):
    return lesson.direction_similarity(*(F.normalize(x, dim=-1) for x in given))


def widen_random(conv, extra):
    wide = lesson.widen(conv, extra)
    nn.init.normal_(wide.weight[:, conv.in_channels :], std=0.1)
    return wide


def widen_in_front(conv, extra):
    wide = lesson.widen(conv, extra)
    wide.weight.data = wide.weight.data.roll(extra, 1)
    return wide


def widen_without_bias(conv, extra):
    wide = lesson.widen(conv, extra)
    nn.init.zeros_(wide.bias)
    return wide


def widen_shared(conv, extra):
    wide = lesson.widen(conv, extra)
    wide.bias = conv.bias
    return wide


def widen_frozen(conv, extra):
    wide = lesson.widen(conv, extra)
    wide.weight.requires_grad_(False)
    return wide


def widen_not_at_all(conv, extra):
    return copy.deepcopy(conv)


def widen_without_stride(conv, extra):
    wide = lesson.widen(conv, extra)
    wide.stride = (1, 1)
    return wide


def widen_as_float32(conv, extra):
    return lesson.widen(conv, extra).float()


def widen_without_padding(conv, extra):
    wide = lesson.widen(conv, extra)
    wide.padding = (5, 5)
    return wide


def widen_as_tensor(conv, extra):
    return lesson.widen(conv, extra).weight


def widen_invents_a_bias(conv, extra):
    wide = lesson.widen(conv, extra)
    if wide.bias is None:
        wide.bias = nn.Parameter(torch.zeros(conv.out_channels).to(conv.weight))
    return wide


def widen_as_the_old_one_learns(conv, extra):
    return lesson.widen(conv, extra).requires_grad_(conv.weight.requires_grad)


def widen_itself(conv, extra):
    conv.weight = nn.Parameter(F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, extra)))
    conv.in_channels += extra
    return conv


def widen_and_freeze(conv, extra):
    wide = lesson.widen(conv, extra)
    conv.requires_grad_(False)
    return wide


def widen_kept(conv, extra):
    return KEPT.setdefault(conv, lesson.widen(conv, extra))


def widen_on_the_cpu(conv, extra):
    wide = nn.Conv2d(conv.in_channels + extra, conv.out_channels, conv.kernel_size, bias=conv.bias is not None, **geometry(conv)).to(conv.weight.dtype)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : conv.in_channels] = conv.weight
        if conv.bias is not None:
            wide.bias.copy_(conv.bias)
    return wide


def geometry(conv):
    return {k: getattr(conv, k) for k in ("stride", "padding", "dilation", "padding_mode")}


def widen_as_a_new_layer(conv, extra):
    wide = nn.Conv2d(conv.in_channels + extra, conv.out_channels, conv.kernel_size, bias=conv.bias is not None, **geometry(conv)).to(conv.weight)
    zeros = conv.weight.new_zeros(conv.out_channels, extra, *conv.kernel_size)
    wide.load_state_dict({**conv.state_dict(), "weight": torch.cat([conv.weight, zeros], 1)})
    return wide


def widen_new_channels_only(conv, extra):
    wide = lesson.widen(conv, extra)
    wide.weight.register_hook(lambda g: F.pad(g[:, conv.in_channels :], (0, 0, 0, 0, conv.in_channels, 0)))
    return wide


def drop_never_both(picture, words, nothing, u, p=0.05):
    a, b = u < p, (u >= p) & (u < 2 * p)
    return torch.where(b[:, None, None, None], 0 * picture, picture), torch.where(a[:, None, None], nothing, words)


def drop_always_both(picture, words, nothing, u, p=0.05):
    a = u < 3 * p
    return torch.where(a[:, None, None, None], 0 * picture, picture), torch.where(a[:, None, None], nothing, words)


def drop_swapped(picture, words, nothing, u, p=0.05):
    a, b = (u >= p) & (u < 3 * p), u < 2 * p
    return torch.where(b[:, None, None, None], 0 * picture, picture), torch.where(a[:, None, None], nothing, words)


def drop_to_zero(picture, words, nothing, u, p=0.05):
    return lesson.drop_conditions(picture, words, 0 * nothing, u, p)


def drop_in_place(picture, words, nothing, u, p=0.05):
    picture[(u >= p) & (u < 3 * p)] = 0
    return picture, torch.where((u < 2 * p)[:, None, None], nothing, words)


def drop_nothing(picture, words, nothing, u, p=0.05):
    return picture, words


def drop_words_only(picture, words, nothing, u, p=0.05):
    return lesson.drop_conditions(picture, words, nothing, u, p)[1]


def drop_fixed_share(picture, words, nothing, u, p=0.05):
    return lesson.drop_conditions(picture, words, nothing, u, 0.05)


def drop_closed(picture, words, nothing, u, p=0.05):
    a, b = u <= 2 * p, (u >= p) & (u <= 3 * p)
    return torch.where(b[:, None, None, None], 0 * picture, picture), torch.where(a[:, None, None], nothing, words)


def drop_late(picture, words, nothing, u, p=0.05):
    a, b = u <= 2 * p, (u > p) & (u <= 3 * p)
    return torch.where(b[:, None, None, None], 0 * picture, picture), torch.where(a[:, None, None], nothing, words)


def drop_cut(picture, words, nothing, u, p=0.05):
    return lesson.drop_conditions(picture, words, nothing.detach(), u, p)


def drop_by_the_first(picture, words, nothing, u, p=0.05):
    return lesson.drop_conditions(picture, words, nothing, u[:1].expand_as(u), p)


def drop_other_default(picture, words, nothing, u, p=0.1):
    return lesson.drop_conditions(picture, words, nothing, u, p)


def drop_by_stretch(picture, words, nothing, u, p=0.05):
    ends = torch.tensor([p, 2 * p, 3 * p], dtype=u.dtype)
    stretch = torch.bucketize(u, ends, right=True)
    pictures = [0 * x if k in (1, 2) else x for x, k in zip(picture, stretch.tolist())]
    return torch.stack(pictures), torch.stack([nothing[0] if k < 2 else c for c, k in zip(words, stretch.tolist())])


def drop_by_masks(picture, words, nothing, u, p=0.05):
    look, hear = ((u < p) | (u >= 3 * p)).to(picture)[:, None, None, None], (u >= 2 * p).to(words)[:, None, None]
    return look * picture, hear * words + (1 - hear) * nothing


def guide_swapped(none, picture, both, s_I, s_T):
    return lesson.guide_both(none, picture, both, s_T, s_I)


def guide_from_nothing(none, picture, both, s_I, s_T):
    return none + s_I * (picture - none) + s_T * (both - none)


def guide_one_scale(none, picture, both, s_I, s_T):
    return none + s_T * (both - none)


def guide_cut(none, picture, both, s_I, s_T):
    return lesson.guide_both(none.detach(), picture, both, s_I, s_T)


def guide_in_place(none, picture, both, s_I, s_T):
    both -= picture
    return none + s_I * (picture - none) + s_T * both


def guide_clamped(none, picture, both, s_I, s_T):
    return lesson.guide_both(none, picture, both, max(s_I, 0), max(s_T, 0))


def guide_weighted(none, picture, both, s_I, s_T):
    return torch.einsum("k,k...->...", none.new_tensor([1 - s_I, s_I - s_T, s_T]), torch.stack([none, picture, both]))


def guide_in_two(none, picture, both, s_I, s_T):
    return torch.lerp(none, picture, float(s_I)) + s_T * both - s_T * picture


def sampler(
    ask_all=False,
    swap=False,
    clip=False,
    still=False,
    front=False,
    fresh=False,
    apart=False,
    level=0,
    style=0,
    zero=False,
    loop=False,
    t_as=torch.long,
    style_as=torch.long,
    eta=0.0,
):
    """The guided sampler with one thing wrong, or (``loop``) right but written otherwise."""

    def answer(unet, picture, words, nothing, s_I, s_T, start, steps, schedule):
        none = (0 if zero else 1) * nothing.expand_as(words)
        blank = picture if still else 0 * picture
        needed = [True] * 3 if ask_all else [s_I != 1, s_I != s_T, s_T != 0]
        looks = [x for x, there in zip((blank, picture, picture), needed) if there]
        says = [x for x, there in zip((none, none, words), needed) if there]

        def model(z, t):
            pairs = [torch.cat([x, z] if front else [z, x], 1) for x in looks]
            levels, styles = (t - level).to(t_as), torch.full_like(t, style, dtype=style_as)
            if apart:
                out = [unet(x, levels, c, styles) for x, c in zip(pairs, says)]
            else:
                n = len(pairs)
                out = list(unet(torch.cat(pairs), levels.repeat(n), torch.cat(says), styles.repeat(n)).chunk(n))
            full = [out.pop(0) if there else torch.zeros_like(z) for there in needed]
            return lesson.guide_both(*full, *((s_T, s_I) if swap else (s_I, s_T)))

        if loop:
            return by_levels(model, start, steps, schedule)
        start = torch.randn_like(start) if fresh else start
        return ddim_sample(model, start.shape, steps, schedule, clip=clip, start=start, eta=eta)

    return answer


def by_levels(model, z, steps, schedule):
    """DDIM with the velocity, level by level."""
    marks = torch.linspace(schedule.T, 0, steps + 1).round().long().unique().flip(0)
    for now, then in zip(marks, marks[1:]):
        v = model(z, now.expand(len(z)))
        a, s = schedule.abar[now].sqrt().to(z), (1 - schedule.abar[now]).sqrt().to(z)
        z = schedule.abar[then].sqrt().to(z) * (a * z - s * v) + (1 - schedule.abar[then]).sqrt().to(z) * (s * z + a * v)
    return z


def sampler_kept(*given):
    return KEPT.setdefault(("sampler", given[6].shape), lesson.sample_edit(*given))


def sampler_one_step_more(*given):
    return lesson.sample_edit(*given[:7], given[7] + 1, given[8])


WRONG = {
    "direction_similarity": [
        (direction_of_ends, "not how the two moved"),
        (direction_reversed, "after to before"),
        (direction_as_dot, "lengths"),
        (direction_matrix, "shape"),
        (direction_over_zero, "did not move.*nan"),
        (direction_half_cut, "gradient with respect to|no gradient reaches"),
        (direction_by_largest, "off by"),
        (direction_kept, "second call"),
        (direction_in_single, "off by"),
        (direction_of_unit_vectors, "off by"),
        (lambda *given: lesson.direction_similarity(*given).clamp(min=0), "off by"),
        (lambda a, b, s, t: lesson.direction_similarity(a, b, s, t)[:, None], "shape"),
    ],
    "widen": [
        (widen_random, "not zero"),
        (widen_in_front, "come first"),
        (widen_without_bias, "bias"),
        (widen_shared, "share memory|could never learn"),
        (widen_frozen, "never learn"),
        (widen_not_at_all, "should have shape"),
        (widen_without_padding, "padding"),
        (widen_without_stride, "stride"),
        (widen_as_float32, "dtype"),
        (widen_as_tensor, "nn.Conv2d"),
        (widen_invents_a_bias, "has no bias"),
        (widen_as_the_old_one_learns, "never learn"),
        (widen_itself, "old layer itself"),
        (widen_and_freeze, "requires_grad was changed"),
        (widen_kept, "second call|old layer itself"),
        (widen_on_the_cpu, "device"),
        (widen_new_channels_only, "old channels' weights"),
    ],
    "drop_conditions": [
        (drop_never_both, "without both"),
        (drop_always_both, "always go together"),
        (drop_swapped, "changed places"),
        (drop_to_zero, "not zeros"),
        (drop_in_place, "changes its argument picture"),
        (drop_nothing, "nothing was left out"),
        (drop_words_only, "2 values"),
        (drop_fixed_share, "p is an argument"),
        (drop_closed, "off by"),
        (drop_late, "exactly p, 2p or 3p"),
        (drop_cut, "no gradient reaches nothing"),
        (drop_by_the_first, "off by|nothing was left out"),
        (drop_other_default, "without p"),
    ],
    "guide_both": [
        (guide_swapped, "changed places"),
        (guide_from_nothing, "starts from nothing"),
        (guide_one_scale, "one difference only"),
        (guide_cut, "gradient with respect to none|no gradient reaches none"),
        (guide_in_place, "changes its argument both"),
        (guide_clamped, "off by"),
    ],
    "sample_edit": [
        (sampler(swap=True), "changed places"),
        (sampler(clip=True), "clipped"),
        (sampler(still=True), "still sees the picture"),
        (sampler(zero=True), "not zeros"),
        (sampler(front=True), "off by"),
        (sampler(fresh=True), "off by"),
        (sampler(level=1), "off by"),
        (sampler(style=1), "off by"),
        (sampler(eta=1.0), "off by"),
        (lambda *given: sampler()(*given[:8], make_schedule("linear", 40)), "off by"),
        (lambda unet, picture, *rest: lesson.sample_edit(unet, picture[:1].expand_as(picture), *rest), "off by"),
        (sampler(t_as=torch.float32), "levels t are whole numbers"),
        (sampler(style_as=torch.int32), "styles are whole numbers"),
        (sampler(apart=True), "asked once at each"),
        (sampler(ask_all=True), "other than 0"),
        (sampler_kept, "asked|second call"),
        (sampler_one_step_more, "it was asked"),
        (lambda *given: lesson.sample_edit(*given)[:, :1], "shape"),
    ],
}

RIGHT = {
    "direction_similarity": [direction_by_hand, direction_by_rows, direction_with_epsilon],
    "widen": [widen_as_a_new_layer],
    "drop_conditions": [drop_by_stretch, drop_by_masks],
    "guide_both": [guide_weighted, guide_in_two],
    "sample_edit": [sampler(), sampler(loop=True)],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


@pytest.mark.parametrize("name", ["direction_similarity", "drop_conditions", "guide_both", "sample_edit"])
def test_a_wrong_shape_gets_one_sentence(name):
    wrong = (torch.zeros(2, 3),) * 2 if name == "drop_conditions" else torch.zeros(2, 3)
    refuses(getattr(checks, name), lambda *inputs: wrong, "asked" if name == "sample_edit" else WRONG_SHAPE)


def test_nothing_returned():
    refuses(checks.guide_both, lambda *inputs: None, "None")
