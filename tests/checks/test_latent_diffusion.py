"""The checks of lesson 2.4 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import math

import pytest
import torch

from course_utils.checks import latent_diffusion as checks
from course_utils.lessons import latent_diffusion

from . import WRONG_SHAPE, accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, latent_diffusion, name)


def right_and_down(p):
    return p[..., 1:] - p[..., :-1], p[..., 1:, :] - p[..., :-1, :]


def only_horizontal(y, x):
    return (right_and_down(y)[0] - right_and_down(x)[0]).abs().mean()


def only_vertical(y, x):
    return (right_and_down(y)[1] - right_and_down(x)[1]).abs().mean()


def slopes_without_sign(y, x):
    return sum((a.abs() - b.abs()).abs().mean() for a, b in zip(right_and_down(y), right_and_down(x)))


def slopes_squared(y, x):
    return sum((a - b).square().mean() for a, b in zip(right_and_down(y), right_and_down(x)))


def slopes_around_the_border(y, x):
    e = y - x
    return (e - e.roll(1, -1)).abs().mean() + (e - e.roll(1, -2)).abs().mean()


def slopes_detached(y, x):
    return latent_diffusion.gradient_loss(y.detach(), x)


def plain_l1(y, x):
    return (y - x).abs().mean()


def heads_of(w_q, w_k, w_v, x, c, heads):
    return (h.unflatten(-1, (heads, -1)).transpose(1, 2) for h in (x @ w_q, c @ w_k, c @ w_v))


def attend(x, c, w_q, w_k, w_v, heads, shrink, axis=-1):
    q, k, v = heads_of(w_q, w_k, w_v, x, c, heads)
    return (torch.softmax(q @ k.transpose(-1, -2) / shrink, axis) @ v).transpose(1, 2).flatten(2)


def attention_unscaled(x, c, w_q, w_k, w_v, heads):
    return attend(x, c, w_q, w_k, w_v, heads, 1.0)


def attention_scaled_by_width(x, c, w_q, w_k, w_v, heads):
    return attend(x, c, w_q, w_k, w_v, heads, math.sqrt(x.shape[-1]))


def attention_over_positions(x, c, w_q, w_k, w_v, heads):
    return attend(x, c, w_q, w_k, w_v, heads, math.sqrt(x.shape[-1] // heads), axis=-2)


def attention_interleaved(x, c, w_q, w_k, w_v, heads):
    q, k, v = (h.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2) for h in (x @ w_q, c @ w_k, c @ w_v))
    return (torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v).permute(0, 2, 3, 1).flatten(2)


def attention_with_one_head(x, c, w_q, w_k, w_v, heads):
    return attend(x, c, w_q, w_k, w_v, 1, math.sqrt(x.shape[-1]))


def rows_to_drop(c, p, generator):
    return torch.rand(len(c), generator=generator) < p


def drop_in_place(c, none, p=0.1, generator=None):
    c[rows_to_drop(c, p, generator)] = none
    return c


def drop_to_zero(c, none, p=0.1, generator=None):
    return c * ~rows_to_drop(c, p, generator)[:, None, None]


def drop_words(c, none, p=0.1, generator=None):
    return torch.where(torch.rand(c.shape[:2], generator=generator)[..., None] < p, none, c)


def drop_inverted(c, none, p=0.1, generator=None):
    return torch.where(rows_to_drop(c, p, generator)[:, None, None], c, none)


def drop_whole_batch(c, none, p=0.1, generator=None):
    return none.expand_as(c) if torch.rand(1, generator=generator) < p else c.clone()


def drop_unseeded(c, none, p=0.1, generator=None):
    return torch.where((torch.rand(len(c)) < p)[:, None, None], none, c)


WRONG = {
    "gradient_loss": [
        (only_horizontal, "vertical"),
        (only_vertical, "horizontal"),
        (slopes_without_sign, "sign"),
        (slopes_squared, "squared"),
        (slopes_around_the_border, "border"),
        (slopes_detached, "gradient"),
        (plain_l1, "plain L1"),
    ],
    "latent_scale": [
        (lambda z: z.std(), "standard deviation itself"),
        (lambda z: 1 / z.square().mean().sqrt(), "mean was not subtracted"),
        (lambda z: 1 / z.var(), "variance"),
        (lambda z: (1 / z.std((0, 2, 3))).mean(), "averages over channels"),
        (lambda z: 1 / z.std((0, 2, 3), keepdim=True), "should have shape"),
    ],
    "cross_attention": [
        (attention_unscaled, "not divided"),
        (attention_scaled_by_width, "root of D"),
        (attention_over_positions, "runs over positions"),
        (attention_interleaved, "interleaved"),
        (attention_with_one_head, "one head"),
    ],
    "drop_captions": [
        (drop_in_place, "in place"),
        (drop_to_zero, "zeros"),
        (drop_words, "single words"),
        (drop_inverted, "wrong way round"),
        (drop_whole_batch, "alike"),
        (drop_unseeded, "same seed"),
    ],
    "guide": [
        (lambda a, b, w: a + w * (b - a), "swapped"),
        (lambda a, b, w: (1 + w) * a - w * b, "own count"),
        (lambda a, b, w: w * a, "w = 0"),
        (lambda a, b, w: b + (w + 1) * (a - b), "own count"),
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_a_wrong_shape_gets_one_sentence(name):
    refuses(getattr(checks, name), lambda *inputs: torch.zeros(2, 7), WRONG_SHAPE)


def test_nothing_returned():
    for name in checks.HINTS:
        refuses(getattr(checks, name), lambda *inputs: None, "None")
