"""The checks of lesson 2.8 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.checks import instruct_pix2pix as checks
from course_utils.lessons import instruct_pix2pix as lesson

from . import WRONG_SHAPE, accepts, every, refuses


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
    wide.padding = (2, 2)
    return wide


def widen_as_tensor(conv, extra):
    return lesson.widen(conv, extra).weight


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


def guide_swapped(none, picture, both, s_I, s_T):
    return lesson.guide_both(none, picture, both, s_T, s_I)


def guide_from_nothing(none, picture, both, s_I, s_T):
    return none + s_I * (picture - none) + s_T * (both - none)


def guide_one_scale(none, picture, both, s_I, s_T):
    return none + s_T * (both - none)


WRONG = {
    "direction_similarity": [
        (direction_of_ends, "differences"),
        (direction_reversed, "after to before"),
        (direction_as_dot, "lengths"),
        (direction_matrix, "shape"),
    ],
    "widen": [
        (widen_random, "not zero"),
        (widen_in_front, "come first"),
        (widen_without_bias, "bias"),
        (widen_shared, "changes the old one"),
        (widen_frozen, "never learn"),
        (widen_not_at_all, "should have shape"),
        (widen_without_padding, "padding"),
        (widen_without_stride, "stride"),
        (widen_as_float32, "dtype"),
        (widen_as_tensor, "nn.Conv2d"),
    ],
    "drop_conditions": [
        (drop_never_both, "without both"),
        (drop_always_both, "alone"),
        (drop_swapped, "zeros for"),
        (drop_to_zero, "not zeros"),
        (drop_in_place, "in place"),
        (drop_nothing, "nothing was left out"),
        (drop_words_only, "two things"),
        (drop_fixed_share, "picture's latents|the words|there is no"),
    ],
    "guide_both": [(guide_swapped, "changed places"), (guide_from_nothing, "picture alone"), (guide_one_scale, "off by|changed places")],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@pytest.mark.parametrize("name", ["direction_similarity", "drop_conditions", "guide_both"])
def test_a_wrong_shape_gets_one_sentence(name):
    wrong = (torch.zeros(2, 3),) * 2 if name == "drop_conditions" else torch.zeros(2, 3)
    refuses(getattr(checks, name), lambda *inputs: wrong, WRONG_SHAPE)


def test_nothing_returned():
    refuses(checks.guide_both, lambda *inputs: None, "None")
