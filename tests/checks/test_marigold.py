"""The checks of lesson 2.9 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import marigold as checks
from course_utils.lessons import marigold

from . import accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, marigold, name)


def ends(depth, low, high, dim=1):
    return (torch.quantile(depth.flatten(1), q, dim=dim)[:, None, None, None] for q in (low, high))


def unclipped(depth, low=0.02, high=0.98):
    near, far = ends(depth, low, high)
    return (depth - near) / (far - near) * 2 - 1


def zero_to_one(depth, low=0.02, high=0.98):
    return (unclipped(depth, low, high) / 2 + 0.5).clamp(0, 1)


def far_is_minus_one(depth, low=0.02, high=0.98):
    return -marigold.normalise_depth(depth, low, high)


def by_extremes(depth, low=0.02, high=0.98):
    return marigold.normalise_depth(depth, 0.0, 1.0)


def one_ruler(depth, low=0.02, high=0.98):
    near, far = torch.quantile(depth, low), torch.quantile(depth, high)
    return ((depth - near) / (far - near) * 2 - 1).clamp(-1, 1)


def in_place(depth, low=0.02, high=0.98):
    near, far = ends(depth, low, high)
    return depth.sub_(near).div_(far - near).mul_(2).sub_(1).clamp_(-1, 1)


def no_shift(pred, depth, known):
    p, d = torch.where(known, pred, 0).flatten(1), torch.where(known, depth, 0).flatten(1)
    return (p * d).sum(1) / (p * p).sum(1), torch.zeros(len(p), dtype=pred.dtype)


def with_nan(pred, depth, known):
    w, p, d = known.to(pred).flatten(1), pred.flatten(1), depth.flatten(1)
    n = w.sum(1, keepdim=True)
    dp, dd = p - (w * p).sum(1, keepdim=True) / n, d - (w * d).sum(1, keepdim=True) / n
    s = (w * dp * dd).sum(1) / (w * dp**2).sum(1)
    return s, ((w * d).sum(1) - s * (w * p).sum(1)) / n[:, 0]


def no_clamp(pred, depth, known):
    return with_nan(pred, torch.where(known, depth, 0), known)


def divisor_at_least_one(pred, depth, known):
    w, p, d = known.to(pred).flatten(1), pred.flatten(1), torch.where(known, depth, 0).flatten(1)
    n = w.sum(1, keepdim=True)
    dp, dd = p - (w * p).sum(1, keepdim=True) / n, d - (w * d).sum(1, keepdim=True) / n
    s = (w * dp * dd).sum(1) / (w * dp**2).sum(1).clamp(min=1.0)
    return s, ((w * d).sum(1) - s * (w * p).sum(1)) / n[:, 0]


def no_shift_for_a_constant(pred, depth, known):
    s, b = marigold.scale_shift(pred, depth, known)
    flat = pred.flatten(1).std(1) == 0
    return s, torch.where(flat, 0, b)


def holes_are_zero(pred, depth, known):
    return marigold.scale_shift(pred, torch.where(known, depth, 0), torch.ones_like(known))


def the_other_way(pred, depth, known):
    s, b = marigold.scale_shift(torch.where(known, depth, 0), torch.where(known, pred, torch.nan), known)
    return s, b


def detached(pred, depth, known):
    return marigold.scale_shift(pred.detach(), depth, known)


def only_scale(pred, depth, known):
    return marigold.scale_shift(pred, depth, known)[0]


def over_all_pixels(pred, depth):
    rel, good = marigold.depth_errors(pred, depth)
    return rel * depth.isfinite().flatten(1).float().mean(1), good


def by_prediction(pred, depth):
    known = depth.isfinite()
    rel = torch.where(known, (pred - depth).abs() / pred.abs(), 0).flatten(1).sum(1) / known.flatten(1).sum(1)
    return rel, marigold.depth_errors(pred, depth)[1]


def nan_errors(pred, depth):
    return ((pred - depth).abs() / depth).flatten(1).mean(1), marigold.depth_errors(pred, depth)[1]


def one_sided(pred, depth):
    known = depth.isfinite()
    good = known & (pred / torch.where(known, depth, 1) < 1.25)
    return marigold.depth_errors(pred, depth)[0], good.flatten(1).sum(1) / known.flatten(1).sum(1)


def absolute_ratio(pred, depth):
    return marigold.depth_errors(pred, depth)[0], marigold.depth_errors(pred.abs(), depth)[1]


def share_of_wrong(pred, depth):
    rel, good = marigold.depth_errors(pred, depth)
    return rel, 1 - good


def not_halved(weight):
    return torch.cat([weight, weight], 1)


def half_zero(weight):
    return torch.cat([weight, torch.zeros_like(weight)], 1)


def interleaved(weight):
    return weight.repeat_interleave(2, 1) / 2


def wrong_axis(weight):
    return torch.cat([weight, weight], 0) / 2


def pile(levels, t, T, strength, power, mode="bilinear"):
    s = (strength * t / T).reshape(-1, 1, 1, 1)
    return sum(power(s, i) * F.interpolate(n, levels[0].shape[-2:], mode=mode) for i, n in enumerate(levels))


def unit(x):
    return x / x.flatten(1).std(1)[:, None, None, None]


def not_scaled_back(levels, t, T=1000, strength=0.9):
    return pile(levels, t, T, strength, lambda s, i: s**i)


def not_annealed(levels, t, T=1000, strength=0.9):
    return marigold.multi_resolution_noise(levels, torch.full_like(t, T), T, strength)


def in_blocks(levels, t, T=1000, strength=0.9):
    return unit(pile(levels, t, T, strength, lambda s, i: s**i, "nearest"))


def no_power(levels, t, T=1000, strength=0.9):
    return unit(pile(levels, t, T, strength, lambda s, i: s if i else torch.ones_like(s)))


def one_spread(levels, t, T=1000, strength=0.9):
    x = pile(levels, t, T, strength, lambda s, i: s**i)
    return x / x.std()


def white_only(levels, t, T=1000, strength=0.9):
    return unit(levels[0])


WRONG = {
    "normalise_depth": [
        (unclipped, "clip"),
        (zero_to_one, "0 to 1"),
        (far_is_minus_one, "exchanged"),
        (by_extremes, "quantiles"),
        (one_ruler, "one ruler"),
        (in_place, "changes its input"),
    ],
    "scale_shift": [
        (no_shift, "without a shift"),
        (with_nan, "NaN"),
        (holes_are_zero, "counted as depth 0"),
        (the_other_way, "prediction that is scaled"),
        (detached, "gradient"),
        (only_scale, "two things"),
        (no_clamp, "same everywhere"),
        (no_shift_for_a_constant, "constant map"),
        (divisor_at_least_one, "scale"),
    ],
    "depth_errors": [
        (over_all_pixels, "number of known"),
        (by_prediction, "true depth|NaN or inf"),
        (nan_errors, "NaN"),
        (one_sided, "d/p"),
        (absolute_ratio, "zero or less"),
        (share_of_wrong, "within 25"),
    ],
    "widen": [
        (not_halved, "halve"),
        (half_zero, "blind"),
        (interleaved, "first six"),
        (wrong_axis, "shape"),
    ],
    "multi_resolution_noise": [
        (not_scaled_back, "scaled back"),
        (not_annealed, "same noise"),
        (in_blocks, "blocks"),
        (no_power, "power"),
        (one_spread, "whole batch"),
        (white_only, "off by"),
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_nothing_and_wrong_shapes_get_one_sentence(name):
    for answer in (lambda *a: None, lambda *a: torch.zeros(7), lambda *a: (torch.zeros(7), torch.zeros(7))):
        refuses(getattr(checks, name), answer)
