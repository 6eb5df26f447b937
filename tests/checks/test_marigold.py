"""The checks of lesson 2.9 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import marigold as checks
from course_utils.exercises import examine
from course_utils.lessons import marigold
from course_utils.lessons.marigold import align, stretch

from . import WRONG_SHAPE, accepts, every, refuses


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
    return depth.copy_(marigold.normalise_depth(depth, low, high))


def no_guard(depth, low=0.02, high=0.98):
    near, far = ends(depth, low, high)
    return torch.where(depth.isfinite(), ((depth - near) / (far - near) * 2 - 1).clamp(-1, 1), torch.nan)


def spoilt_by_nan(depth, low=0.02, high=0.98):
    near, far = ends(depth, low, high)
    return ((depth - near) / (far - near).clamp(min=1e-6) * 2 - 1).clamp(-1, 1)


def holes_filled(depth, low=0.02, high=0.98):
    return marigold.normalise_depth(depth, low, high).nan_to_num(0.0)


def quantile(known, q):
    """Straight between the two neighbours of a sorted list."""
    at = q * (len(known) - 1)
    low, high = known[int(at)], known[min(int(at) + 1, len(known) - 1)]
    return low + (at - int(at)) * (high - low)


def by_sorting(depth, low=0.02, high=0.98):
    maps = []
    for d in depth:
        known = d[d.isfinite()].double().sort().values
        if not len(known):
            maps.append(d)
            continue
        near, far = quantile(known, low), quantile(known, high)
        maps.append((2 * (d - near) / torch.clamp(far - near, min=1e-6) - 1).clamp(-1, 1).to(d.dtype))
    return torch.stack(maps)


def defaults_only(depth, low=0.02, high=0.98):
    return marigold.normalise_depth(depth)


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


def by_normal_equations(pred, depth, known):
    s, b = [], []
    for p, d, k in zip(pred, depth, known):
        A = torch.stack([p[k], torch.ones_like(p[k])], 1)
        flat = p[k].numel() == 0 or p[k].max() == p[k].min()
        x = torch.stack([0 * d[k].mean(), d[k].mean()]) if flat else torch.linalg.solve(A.T @ A, A.T @ d[k])
        s.append(x[0]), b.append(x[1])
    return torch.stack(s), torch.stack(b)


def without_holes(pred, depth, known):
    """By the correlation of what is known, the unknown pixels put on the mean."""
    n = known.flatten(1).sum(1)
    mean = lambda m: torch.where(known, m, 0).flatten(1).sum(1) / n
    centred = lambda m: torch.where(known, m - mean(m)[:, None, None, None], 0).flatten(1)
    p, d = centred(pred), centred(depth)
    s = (p * d).sum(1) / p.square().sum(1).clamp(min=1e-12)
    return s, mean(depth) - s * mean(pred)


def by_two_comparisons(pred, depth):
    """δ1 by two comparisons without a division."""
    known, n = ~depth.isnan(), (~depth.isnan()).flatten(1).sum(1)
    good = (pred > 0) & (pred < 1.25 * depth) & (1.25 * pred > depth)
    rel = torch.stack([((p - d)[k] / d[k]).abs().mean() for p, d, k in zip(pred, depth, known)])
    return rel, (good & known).flatten(1).sum(1) / n


def time_in_single_precision(levels, t, T=1000, strength=0.9):
    s = strength * t.float()[:, None, None, None] / T
    return unit(sum(s**i * F.interpolate(n, size=levels[0].shape[2:], mode="bilinear") for i, n in enumerate(levels)))


def by_nanmean(pred, depth):
    ratio = torch.maximum(pred / depth, depth / pred)
    good = torch.where(depth.isfinite(), ((ratio < 1.25) & (pred > 0)).float(), torch.nan)
    return ((pred - depth).abs() / depth).flatten(1).nanmean(1), good.flatten(1).nanmean(1)


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


def aligned_corners(levels, t, T=1000, strength=0.9):
    s = (strength * t / T).reshape(-1, 1, 1, 1)
    return unit(sum(s**i * F.interpolate(n, levels[0].shape[-2:], mode="bilinear", align_corners=True) for i, n in enumerate(levels)))


def finest_weighed(levels, t, T=1000, strength=0.9):
    return unit(pile(levels, t, T, strength, lambda s, i: s ** (i + 1)))


def thousand(levels, t, T=1000, strength=0.9):
    return marigold.multi_resolution_noise(levels, t, 1000, strength)


def by_doubling(levels, t, T=1000, strength=0.9):
    s, total = (strength * t.to(levels[0].dtype) / T).view(-1, 1, 1, 1), 0
    for n in reversed(levels):  # Horner
        total = s * total + F.interpolate(n, size=tuple(levels[0].shape[-2:]), mode="bilinear", align_corners=False)
    return total / total.std((1, 2, 3), keepdim=True)


def vote(
    middle_of=lambda a: a.median(0).values,
    rounds_of=lambda r: r,
    end=stretch,
    spread_of=lambda a, m: (a - m).abs().median(0).values,
    ruled=True,
    original=True,
    goal_of=stretch,
):
    def answer(maps, rounds=5):
        known, aligned = torch.ones_like(maps[0], dtype=torch.bool), stretch(maps)
        for _ in range(rounds_of(rounds)):
            goal = goal_of(middle_of(aligned))
            aligned = torch.stack([align(d, goal, known) for d in (maps if original else aligned)])
        middle = middle_of(aligned)
        spread = spread_of(aligned, middle)
        if ruled:
            spread = spread / (middle.amax((-1, -2), keepdim=True) - middle.amin((-1, -2), keepdim=True)).clamp(min=1e-6)
        return end(middle), spread

    return answer


def one_at_a_time(maps, rounds=5):
    """Picture by picture, with sorting for the median and the fit written out."""
    out = []
    for b in range(maps.shape[1]):
        own = stretch(maps[:, b])
        for _ in range(rounds):
            goal = stretch(own.sort(0).values[(len(own) - 1) // 2])
            own = torch.cat([align(d[None], goal[None], torch.ones_like(goal[None], dtype=torch.bool)) for d in own])
        middle = own.sort(0).values[(len(own) - 1) // 2]
        spread = (own - middle).abs().sort(0).values[(len(own) - 1) // 2]
        out.append((stretch(middle), spread / (middle.max() - middle.min()).clamp(min=1e-6)))
    return torch.stack([m for m, _ in out]), torch.stack([s for _, s in out])


def stacked_over_pictures(maps, rounds=5):
    middle, spread = vote()(maps, rounds)
    return middle.median(0, keepdim=True).values.expand_as(middle), spread


def no_floor(maps, rounds=5):
    middle, spread = vote(ruled=False)(maps, rounds)
    size = vote(ruled=False, end=lambda m: m)(maps, rounds)[0]
    return middle, spread / (size.amax((-1, -2), keepdim=True) - size.amin((-1, -2), keepdim=True))


def up_to_the_limit(pred, depth):
    known = depth.isfinite()
    p, d = pred.clamp(min=1e-6), torch.where(known, depth, 1.0)
    good = known & (torch.maximum(p / d, d / p) <= 1.25)
    return marigold.depth_errors(pred, depth)[0], good.flatten(1).sum(1) / known.flatten(1).sum(1)


def fits_the_goal(maps, rounds=5):
    known, aligned = torch.ones_like(maps[0], dtype=torch.bool), stretch(maps)
    for _ in range(rounds):
        goal = stretch(aligned.median(0).values)
        aligned = torch.stack([align(goal, d, known) for d in maps])
    return _summary(aligned)


def _summary(aligned):
    middle = aligned.median(0).values
    size = middle.amax((-1, -2), keepdim=True) - middle.amin((-1, -2), keepdim=True)
    return stretch(middle), (aligned - middle).abs().median(0).values / size.clamp(min=1e-6)


def one_range_for_all(maps, rounds=5):
    middle, spread = vote(ruled=False)(maps, rounds)
    plain = vote(end=lambda m: m)(maps, rounds)[0]
    return middle, spread / (plain.max() - plain.min()).clamp(min=1e-6)


_errors, _noise, _votes = {}, {}, {}  # what cached answers keep


def clamped_too_high(depth, low=0.02, high=0.98):
    near, far = (torch.nanquantile(depth.flatten(1), q, dim=1)[:, None, None, None] for q in (low, high))
    return ((depth - near) / (far - near).clamp(min=1e-2) * 2 - 1).clamp(-1, 1)


def nothing_is_near(depth, low=0.02, high=0.98):
    return torch.where(depth.isnan().flatten(1).all(1)[:, None, None, None], -1, marigold.normalise_depth(depth, low, high))


def flat_without_holes(depth, low=0.02, high=0.98):
    near, far = (torch.nanquantile(depth.flatten(1), q, dim=1)[:, None, None, None] for q in (low, high))
    return torch.where(far - near < 1e-6, -1, marigold.normalise_depth(depth, low, high))


def one_flat_spoils_all(depth, low=0.02, high=0.98):
    near, far = (torch.nanquantile(depth.flatten(1), q, dim=1)[:, None, None, None] for q in (low, high))
    return -torch.ones_like(depth) if (far - near).min() < 1e-6 else ((depth - near) / (far - near) * 2 - 1).clamp(-1, 1)


def line(pred, depth, known, fill=True, least=0, constant=0.0):
    w, p, d = known.to(pred).flatten(1), (torch.where(known, pred, 0) if fill else pred).flatten(1), torch.where(known, depth, 0).flatten(1)
    n = w.sum(1, keepdim=True).clamp(min=least)
    dp, dd = p - (w * p).sum(1, keepdim=True) / n, d - (w * d).sum(1, keepdim=True) / n
    variance = (w * dp**2).sum(1)
    s = (w * dp * dd).sum(1) / variance.clamp(min=1e-12) + constant * (variance < 1e-12)
    return s, ((w * d).sum(1) - s * (w * p).sum(1)) / n[:, 0]


def prediction_with_nan(pred, depth, known):
    return line(pred, depth, known, fill=False)


def zero_where_nothing_is_known(pred, depth, known):
    return line(pred, depth, known, least=1)


def a_constant_keeps_its_scale(pred, depth, known):
    return line(pred, depth, known, constant=1.0)


def shift_detached(pred, depth, known):
    s, b = line(pred, depth, known)
    return s, b.detach() + 0 * b


def no_error_where_nothing_is_known(pred, depth):
    return tuple(e.nan_to_num(0.0) for e in marigold.depth_errors(pred, depth))


def squeezed(levels, t, T=1000, strength=0.9):
    x = marigold.multi_resolution_noise(levels, t, T, strength)
    return x / x.flatten(1).std(1).squeeze()[:, None, None, None]


def five_rounds_at_most(maps, rounds=5):
    return marigold.ensemble(maps, min(rounds, 5))


WRONG = {
    "normalise_depth": [
        (unclipped, "clip"),
        (zero_to_one, "0 to 1"),
        (far_is_minus_one, "exchanged"),
        (by_extremes, "quantiles"),
        (one_ruler, "one ruler"),
        (in_place, "in place|input"),
        (no_guard, "same everywhere"),
        (spoilt_by_nan, "whole map unknown"),
        (holes_filled, "off by|unknown pixels"),
        (defaults_only, "only their defaults"),
        (clamped_too_high, "tiny range"),
        (nothing_is_near, "single known"),
        (flat_without_holes, "unknown pixels should stay NaN"),
        (one_flat_spoils_all, "off by|nan"),
    ],
    "scale_shift": [
        (prediction_with_nan, "the prediction, too"),
        (zero_where_nothing_is_known, "nothing is known"),
        (a_constant_keeps_its_scale, "should be 0"),
        (shift_detached, "gradient"),
        (no_shift, "without a shift"),
        (with_nan, "nan|NaN"),
        (holes_are_zero, "counted as depth 0"),
        (the_other_way, "prediction that is scaled"),
        (detached, "gradient"),
        (only_scale, "2 values"),
        (lambda *a: marigold.scale_shift(*a)[::-1], "exchanged"),
        (no_clamp, "same everywhere"),
        (no_shift_for_a_constant, "constant map"),
        (divisor_at_least_one, "scale"),
        (lambda p, d, known: marigold.scale_shift(p, d, d.isfinite()), "`known` is not used"),
        (lambda p, d, known: marigold.scale_shift(p, d.detach(), known), "no gradient reaches depth"),
        (lambda p, d, known: tuple(v.mean().expand(len(p)) for v in marigold.scale_shift(p, d, known)), "off by"),
        (lambda p, d, known: (p.nan_to_num_(), marigold.scale_shift(p, d.nan_to_num_(0.0), known))[1], "changes its argument d "),
        (lambda p, d, known: tuple(v.float() for v in marigold.scale_shift(p, d, known)), "dtype"),
    ],
    "depth_errors": [
        (no_error_where_nothing_is_known, "NaN twice"),
        (over_all_pixels, "number of known"),
        (by_prediction, "true depth|inf"),
        (nan_errors, "NaN|nan"),
        (one_sided, "d/p"),
        (absolute_ratio, "zero or less"),
        (lambda *a: marigold.depth_errors(*a)[::-1], "exchanged"),
        (share_of_wrong, "within 25"),
        (up_to_the_limit, "exactly 1.25"),
        (lambda p, d: (marigold.depth_errors(p.clamp(min=0), d)[0], marigold.depth_errors(p, d)[1]), "off by"),
        (lambda p, d: tuple(v.mean() for v in marigold.depth_errors(p, d)), "shape"),
        (lambda p, d: tuple(_errors.setdefault((p.shape, i), v) for i, v in enumerate(marigold.depth_errors(p, d))), "first call"),
    ],
    "widen": [
        (not_halved, "halve"),
        (half_zero, "blind"),
        (interleaved, "mixed"),
        (wrong_axis, "axis 1"),
        (lambda w: torch.cat([w, w], 1).detach() / 2, "gradient"),
        (lambda w: torch.cat([w, w.detach()], 1) / 2, "gradient"),
        (lambda w: torch.cat([w.div_(2), w], 1), "changes its argument w "),
        (lambda w: (torch.cat([w, w], 1) / 2).float(), "dtype"),
        (lambda w: torch.cat([w, w], 1) / w.shape[1], "off by"),
    ],
    "multi_resolution_noise": [
        (squeezed, "stopped"),
        (not_scaled_back, "scaled back"),
        (not_annealed, "same noise"),
        (in_blocks, "blocks"),
        (no_power, "power"),
        (one_spread, "whole batch"),
        (white_only, "coarse levels are missing"),
        (aligned_corners, "align_corners"),
        (finest_weighed, "finest"),
        (thousand, "whatever T"),
        (lambda levels, t, T=1000, strength=0.9: marigold.multi_resolution_noise(levels, t, T), "off by"),
        (lambda levels, t, T=1000, strength=0.9: marigold.multi_resolution_noise(levels[::-1], t, T, strength), "shape"),
        (lambda levels, t, T=1000, strength=0.9: unit(pile(levels, t.clamp(min=20), T, strength, lambda s, i: s**i)), "off by"),
        (lambda levels, t, *a: _noise.setdefault(t.shape, marigold.multi_resolution_noise(levels, t, *a)), "first call|shape|dtype|off by"),
    ],
    "ensemble": [
        (vote(rounds_of=lambda r: 0), "only stretched"),
        (vote(rounds_of=lambda r: 5), "only its default"),
        (vote(rounds_of=lambda r: 1), "one round"),
        (vote(middle_of=lambda a: a.mean(0)), "mean"),
        (vote(end=lambda m: m), "not stretched"),
        (vote(ruled=False), "not divided"),
        (vote(spread_of=lambda a, m: a.std(0, correction=0)), "standard deviation"),
        (vote(spread_of=lambda a, m: (a - m).abs().mean(0)), "mean distance"),
        (lambda maps, rounds=5: vote()(maps, rounds)[::-1], "exchanged"),
        (lambda maps, rounds=5: vote()(maps, rounds)[0], "2 values"),
        (stacked_over_pictures, "off by"),
        (five_rounds_at_most, "off by"),
        (no_floor, "same everywhere"),
        (vote(rounds_of=lambda r: max(r - 1, 0)), "too few"),
        (vote(rounds_of=lambda r: r + 1), "too many"),
        (fits_the_goal, "goal is fitted"),
        (vote(spread_of=lambda a, m: (a - stretch(m)).abs().median(0).values), "off by"),
        (one_range_for_all, "off by"),
        (lambda maps, rounds=5: vote()(maps.copy_(stretch(maps)), rounds), "changes its argument maps"),
        (lambda maps, rounds=5: _votes.setdefault((maps.shape, rounds), vote()(maps, rounds)), "first call"),
        (lambda maps, rounds=5: tuple(v.float() for v in vote()(maps, rounds)), "dtype"),
    ],
}


RIGHT = {
    "normalise_depth": [by_sorting],
    "scale_shift": [by_normal_equations, without_holes],
    "depth_errors": [by_nanmean, by_two_comparisons],
    "widen": [lambda w: w.repeat(1, 2, 1, 1) * 0.5, lambda w: torch.einsum("ocij,k->okcij", w, torch.full((2,), 0.5, dtype=w.dtype)).flatten(1, 2)],
    "multi_resolution_noise": [by_doubling, time_in_single_precision],
    "ensemble": [one_at_a_time, vote(original=False), vote(goal_of=lambda m: m)],  # a fit forgets scale and shift
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    for kept in (_errors, _noise, _votes):
        kept.clear()
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


@pytest.mark.parametrize("name", ["normalise_depth", "widen", "multi_resolution_noise"])
def test_a_wrong_shape_gets_one_sentence(name):
    refuses(getattr(checks, name), lambda *inputs: torch.zeros(2, 3), WRONG_SHAPE)


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_nothing_and_wrong_shapes_get_one_sentence(name):
    for answer in (lambda *a: None, lambda *a: torch.zeros(7), lambda *a: (torch.zeros(7), torch.zeros(7))):
        refuses(getattr(checks, name), answer)
