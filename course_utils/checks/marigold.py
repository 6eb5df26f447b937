"""Checks of lesson 2.9 (Marigold): each computes its own answer with plain numbers, one map at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..exercises import agree, right, same

HINTS = {
    "normalise_depth": [
        "Two numbers for each map: its 2 % and its 98 % quantile. Everything else is a straight line through them.",
        "torch.nanquantile(depth.flatten(1), low, dim=1) is (B,) and leaves NaN out; give it the shape (B, 1, 1, 1) before you subtract. Clip at the end.",
        "near, far = (torch.nanquantile(depth.flatten(1), q, dim=1)[:, None, None, None] for q in (low, high)); return ((depth - near) / (far - near).clamp(min=1e-6) * 2 - 1).clamp(-1, 1).",
    ],
    "scale_shift": [
        "Centre both maps on the mean of their known pixels. The scale is a covariance divided by a variance; the shift follows from the means.",
        "w = known.to(pred).flatten(1); d = torch.where(known, depth, 0).flatten(1). Every mean is (w * ...).sum(1) / w.sum(1).",
        "With p = pred.flatten(1), mp = (w * p).sum(1, keepdim=True) / n, md likewise: s = (w * (p - mp) * (d - md)).sum(1) / (w * (p - mp) ** 2).sum(1).clamp(min=1e-12); return s, (md - s[:, None] * mp)[:, 0].",
    ],
    "depth_errors": [
        "known = depth.isfinite(). Sum over the known pixels of each map and divide by how many there are, not by 64 · 64.",
        "Put 1 where the depth is unknown, so that nothing becomes NaN: d = torch.where(known, depth, 1.0). For δ1 clamp pred from below by 1e-6.",
        "rel = torch.where(known, (pred - d).abs() / d, 0.0).flatten(1).sum(1) / n; good = known & (torch.maximum(p / d, d / p) < 1.25); δ1 = good.flatten(1).sum(1) / n.",
    ],
    "widen": [
        "Convolution is linear: the answers to the two halves are added. What must each half give, so that the sum is what it was?",
        "The new weight holds the old one twice, along the axis of the input channels, which is axis 1.",
        "return torch.cat([weight, weight], 1) / 2.",
    ],
    "multi_resolution_noise": [
        "One number for each example: s = strength · t / T. Level i is multiplied by s to the power i; level 0 always has weight 1.",
        'Shape s as (B, 1, 1, 1). F.interpolate(n, levels[0].shape[-2:], mode="bilinear") enlarges; the division uses .flatten(1).std(1), one number an example.',
        'total = sum(s**i * F.interpolate(n, levels[0].shape[-2:], mode="bilinear") for i, n in enumerate(levels)); return total / total.flatten(1).std(1)[:, None, None, None].',
    ],
    "ensemble": [
        "The median needs aligned maps, and the alignment needs a median: begin with `stretch(maps)`, and repeat both in turn, `rounds` times.",
        "One round: middle = stretch(the median over the first axis of the aligned maps); then every map of `maps` is fitted to it with `align(d, middle, known)`, where all pixels are known.",
        "After the rounds: middle = aligned.median(0).values, spread = (aligned - middle).abs().median(0).values, divided by middle's maximum minus minimum, .clamp(min=1e-6); return stretch(middle), spread.",
    ],
}


def _noise(g, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def _depths(g, B=4, H=12, W=10, dtype=torch.float32):
    """Unlike maps (B, 1, H, W): one with a far outlier, one upside down, one tiny, one with two planes."""
    d = 1 + 4 * torch.rand(B, 1, H, W, generator=g, dtype=torch.float64)
    d[0, 0, 3, 3] = 60.0
    if B > 3:
        d[1] += torch.linspace(3, 0, H, dtype=torch.float64)[:, None]
        d[2] *= 0.01
        d[3, :, :, : W // 2] = d[3, :, :, : W // 2] * 0.1 + 7
    return d.to(dtype)


def _known(g, *shape):
    return torch.rand(shape, generator=g) > 0.3


def _ruler(depth, low=0.02, high=0.98, ends=(-1.0, 1.0), clip=True, shared=False):
    """Each map's straight line through two quantiles of its known pixels, one map at a time; NaN where it was."""
    out = torch.empty_like(depth)
    for i, d in enumerate(depth):
        finite = (depth if shared else d).double().numpy()
        if not np.isfinite(finite).any():
            out[i] = torch.nan
            continue
        near, far = np.quantile(finite[np.isfinite(finite)], [low, high])
        line = ends[0] + (ends[1] - ends[0]) * (d.double() - near) / max(far - near, 1e-6)
        out[i] = line.clamp(min(ends), max(ends)) if clip else line
    return out


def normalise_depth(answer):
    case = lambda B, dtype, *q: lambda g: {"depth": _depths(g, B, dtype=dtype), **dict(zip(("low", "high"), q))}
    suspects = [
        ("values beyond the quantiles lie outside of [-1, 1]: clip them.", lambda *a: _ruler(*a, clip=False)),
        ("this runs from 0 to 1: stretch it to [-1, 1].", lambda *a: _ruler(*a, ends=(0.0, 1.0))),
        ("near and far are exchanged: the near quantile should become -1.", lambda *a: _ruler(*a, ends=(1.0, -1.0))),
        ("this uses minimum and maximum: use the quantiles, or one outlier squeezes all the rest.", lambda d, *_: _ruler(d, 0.0, 1.0)),
        ("all maps share one ruler: take the quantiles of each map, with dim=1.", lambda *a: _ruler(*a, shared=True)),
        ("`low` and `high` are not used: 2 % and 98 % are only their defaults.", lambda d, *_: _ruler(d)),
    ]
    agree(answer, _ruler, [case(4, torch.float32), case(3, torch.float32, 0.1, 0.8)], what="the normalised depth", tol=1e-4, suspects=suspects)
    agree(answer, _ruler, case(1, torch.float64, 0.25, 0.9), what="the normalised depth in double precision", tol=1e-9)
    flat = torch.full((1, 1, 4, 5), 3.0)
    same(
        answer(flat),
        -torch.ones(1, 1, 4, 5),
        "a map that is the same everywhere",
        "near = far, and 0 / 0 is NaN: keep the divisor above 0, with .clamp(min=1e-6); then all is near.",
    )

    def holes(g):
        d = _depths(g)
        d[1, 0, 2, 3] = d[2, 0, :5] = torch.nan
        return {"depth": d}

    spoilt = ("one unknown pixel (NaN) makes its whole map unknown: torch.nanquantile leaves it out.", lambda d: _ruler(d) + 0 * d.sum((1, 2, 3), keepdim=True))
    agree(answer, _ruler, holes, what="the normalised depth of maps with unknown pixels", tol=1e-4, suspects=[spoilt])
    odd = _depths(torch.Generator().manual_seed(7), 5, 7, 9, torch.float64)
    odd[0], odd[1, 0, 2:], odd[3] = torch.nan, 3.0, 1e-4 * odd[3]
    odd[1, 0, :2], odd[4] = torch.nan, 2.0
    got, want = answer(odd), _ruler(odd)
    right(got.shape == want.shape and got[0].isnan().all(), "a map without a single known pixel should stay NaN.")
    right(got[1, 0, :2].isnan().all(), "in a map that is the same everywhere the unknown pixels should stay NaN.")
    for k, kind in (
        (1, "that is the same everywhere but for unknown pixels"),
        (2, "among odd ones"),
        (3, "of tiny range (the divisor is kept above 1e-6, no more)"),
    ):
        same(got[k], want[k], f"the normalised depth of a map {kind}", tol=1e-6)


def _fits(pred, depth, known):
    """Least squares by the pseudo-inverse of [p, 1], one map at a time: (B, 2)."""
    rows = []
    for p, d, k in zip(pred, depth, known):
        p, d = p[k].double(), d[k].double()
        rows.append(torch.linalg.pinv(torch.stack([p, torch.ones_like(p)], 1)) @ d)
    return torch.stack(rows)


def _line(pred, depth, known):
    s, b = _fits(pred, depth, known).to(pred.dtype).T
    return s, b


def _through_zero(pred, depth, known):
    s = torch.stack([(p[k] * d[k]).sum() / p[k].square().sum() for p, d, k in zip(pred, depth, known)])
    return s, torch.zeros_like(s)


def scale_shift(answer):
    def case(B, H, W, dtype, partly=False):
        def draw(g):
            truth, known = _depths(g, B, H, W, dtype), _known(g, B, 1, H, W)
            slope = torch.tensor([0.5, -0.2, 30.0, 0.1], dtype=dtype)[:B, None, None, None]
            pred = 0.3 * _noise(g, B, 1, H, W, dtype=dtype) + slope * truth
            pred[0] *= 1e-3  # a map of small contrast must be stretched, not taken for a constant one
            some = known & _known(g, B, 1, H, W)  # not every finite depth counts
            return {"pred": pred, "depth": torch.where(known, truth, torch.nan), "known": some if partly else known}

        return draw

    zeros = lambda p, d, k: _line(p, torch.where(k, d, 0), torch.ones_like(k))
    suspects = [
        ("this fits the depth to the prediction: it is the prediction that is scaled.", lambda p, d, k: _line(torch.where(k, d, 0), p, k)),
        ("unknown pixels are counted as depth 0: give them weight 0 in every sum, and divide by the number of known ones.", zeros),
        ("`known` is not used: it decides which pixels count, and may leave out some whose depth is finite.", lambda p, d, k: _line(p, d, d.isfinite())),
        ("this is the best scale without a shift: centre both maps first.", _through_zero),
        ("the two are exchanged: the scale comes first.", lambda *a: _line(*a)[::-1]),
        (
            "the result is NaN: unknown depths are NaN; replace them with torch.where(known, depth, 0).",
            lambda p, d, k: (torch.full((len(p),), torch.nan, dtype=p.dtype),) * 2,
        ),
    ]
    double = [case(4, 12, 10, torch.float64), case(2, 5, 7, torch.float64, partly=True), case(1, 4, 9, torch.float64)]
    agree(answer, _line, double, what="(scale, shift)", grad=("pred", "depth"), tol=1e-8, suspects=suspects)
    agree(answer, _line, case(4, 12, 10, torch.float32), what="(scale, shift) in single precision", tol=1e-3, suspects=suspects)
    g = torch.Generator().manual_seed(6)
    flat, depth = torch.tensor([0.0, 3.0])[:, None, None, None].expand(2, 1, 4, 4), _depths(g, 2, 4, 4)
    s, b = answer(flat, depth, torch.ones(2, 1, 4, 4, dtype=torch.bool))
    right(
        bool(torch.isfinite(s).all() and torch.isfinite(b).all()),
        "a map that is the same everywhere has variance 0, and 0 / 0 is NaN: keep the divisor above 0, with .clamp(min=1e-12).",
    )
    same(s * flat[:, 0, 0, 0] + b, depth.mean((1, 2, 3)), "a constant map after alignment", "It can only be moved, to the mean depth.", 1e-3)
    right(s.abs().max() < 1e-3, "the scale of a map that is the same everywhere should be 0: only the shift remains.")

    def holes(g):
        given = case(3, 6, 7, torch.float64, partly=True)(g)
        return {**given, "pred": torch.where(given["known"], given["pred"], torch.nan)}

    lost = ("the result is NaN: the prediction, too, may be NaN where it is not known; replace it like the depth.", suspects[-1][1])
    agree(answer, _line, holes, what="(scale, shift) of predictions with unknown pixels", grad=("pred", "depth"), tol=1e-8, suspects=[lost])
    given = case(2, 6, 7, torch.float64)(g)
    given["known"][1] = False
    s, b = answer(*given.values())
    right(bool((s[1] + b[1]).isnan()), "for a map of which nothing is known scale and shift should be NaN: there is nothing to fit.")
    right(bool(s[0].isfinite() and b[0].isfinite()), "a map of which nothing is known spoils the others of the batch.")


def _errors(pred, depth, over=None, both=True, by_pred=False, within=True, limit=1.25):
    """AbsRel and δ1, pixel by pixel."""
    rel, good = [], []
    for p, d in zip(pred.flatten(1).tolist(), depth.flatten(1).tolist()):
        pairs = [(a, b) for a, b in zip(p, d) if math.isfinite(b)]
        n = over or len(pairs)
        rel.append(sum(abs(a - b) / (abs(a) or math.inf if by_pred else b) for a, b in pairs) / n)
        close = [(a > 0 and max(a / b, b / a) < limit) if both else a / b < limit for a, b in pairs]
        good.append(sum(c == within for c in close) / n)
    return torch.tensor(rel), torch.tensor(good)


def depth_errors(answer):
    def case(H, W):
        def draw(g):
            truth, known = _depths(g, 4, H, W), _known(g, 4, 1, H, W)
            pred = truth * (0.2 * _noise(g, 4, 1, H, W)).exp()
            pred[0, 0, :2], pred[1, 0, 4] = -1.1 * truth[0, 0, :2], 0.0
            pred[3] = truth[3] / 1.3
            return {"pred": pred, "depth": torch.where(known, truth, torch.nan)}

        return draw

    rel = lambda **k: lambda p, d: (_errors(p, d, **k)[0], _errors(p, d)[1])
    good = lambda **k: lambda p, d: (_errors(p, d)[0], _errors(p, d, **k)[1])
    hole = lambda p, d: ((p - d).abs().div(d).flatten(1).mean(1), _errors(p, d)[1])
    suspects = [
        ("AbsRel is NaN: unknown depths are NaN; put 1 there, and leave those pixels out of the sum.", hole),
        ("you divide by all pixels: divide by the number of known ones in each map.", lambda p, d: _errors(p, d, over=p[0].numel())),
        (
            "AbsRel is divided by all pixels: divide by the number of known ones in each map.",
            lambda p, d: (_errors(p, d, over=p[0].numel())[0], _errors(p, d)[1]),
        ),
        ("the error is divided by the prediction: divide by the true depth.", rel(by_pred=True)),
        ("only p/d is tested: a prediction that is far too small must count as wrong too, by d/p.", good(both=False)),
        ("this is the share of wrong pixels: δ1 counts those within 25 %.", good(within=False)),
        (
            "a prediction of zero or less counts as right: its ratio says nothing, clamp it from below first.",
            lambda p, d: (_errors(p, d)[0], _errors(p.abs(), d)[1]),
        ),
        ("the two are exchanged: AbsRel comes first.", lambda p, d: _errors(p, d)[::-1]),
    ]
    agree(answer, _errors, [case(12, 10), case(5, 8)], what="(AbsRel, δ1)", tol=1e-5, suspects=suspects)
    at_the_limit = lambda g: {"pred": torch.tensor([1.25, 1.0, 2.5, 3.0]).view(1, 1, 2, 2), "depth": torch.tensor([1.0, 1.25, 2.0, 3.0]).view(1, 1, 2, 2)}
    closed = ("a ratio of exactly 1.25 is not within 25 %: the comparison is <, not <=.", good(limit=1.25 + 1e-9))
    agree(answer, _errors, at_the_limit, what="(AbsRel, δ1) of ratios at the limit", suspects=[closed])
    pred, depth = case(5, 6)(torch.Generator().manual_seed(9)).values()
    depth[1] = torch.nan
    rel, good = answer(pred, depth)
    right(bool(rel[1].isnan() and good[1].isnan()), "a map of which nothing is known should give NaN twice: 0 of 0 pixels is no error, and no success.")
    others = torch.tensor([0, 2, 3])
    for got, want, name in zip((rel, good), _errors(pred[others], depth[others]), ("AbsRel", "δ1")):
        same(got[others], want, f"{name} of the maps beside one of which nothing is known")


def _twice(weight, factor=0.5):
    """Channel by channel: input c and input c + C of the wider one both hold half of input c."""
    W, C = weight.shape[:2]
    columns = [weight[:, c % C] * factor for c in range(2 * C)]
    return torch.stack(columns, 1)


def widen(answer):
    suspects = [
        ("with the same latent twice the answer is twice the old one: halve the weights.", lambda w: _twice(w, 1.0)),
        (
            "one half is zero: this keeps the old answer too, but then the network starts blind to one of its inputs. Copy both, and halve.",
            lambda w: torch.cat([w, 0 * w], 1),
        ),
        (
            "one half is zero: this keeps the old answer too, but then the network starts blind to one of its inputs. Copy both, and halve.",
            lambda w: torch.cat([0 * w, w], 1),
        ),
        ("the halves are mixed: the first C input channels belong to the first latent, the last C to the second.", lambda w: w.repeat_interleave(2, 1) / 2),
        ("this makes twice the output channels: the input channels are axis 1.", lambda w: torch.cat([w, w], 0) / 2),
    ]
    case = lambda W, C, k, dtype=torch.float32: lambda g: {"weight": _noise(g, W, C, k, k, dtype=dtype)}
    agree(answer, _twice, [case(5, 6, 3), case(2, 4, 1), case(3, 1, 3, torch.float64)], what="the wider weight", grad=("weight",), suspects=suspects)


def _pile(levels, t, T=1000, strength=0.9, power=lambda s, i: s**i, annealed=True, unit=True, one_spread=False, T_used=None, **how):
    """The noise of one example after the other."""
    how = how or {"mode": "bilinear"}
    out = []
    for k in range(len(t)):
        s = strength * (t[k].item() / (T_used or T) if annealed else 1.0)
        parts = [power(s, i) * F.interpolate(n[k : k + 1], size=levels[0].shape[-2:], **how)[0] for i, n in enumerate(levels)]
        out.append(sum(parts))
    out = torch.stack(out)
    spread = lambda v: ((v - v.mean()) ** 2).sum().div(v.numel() - 1).sqrt()
    if one_spread:
        return out / spread(out)
    return torch.stack([v / spread(v) for v in out]) if unit else out


def multi_resolution_noise(answer):
    def case(sizes, t, dtype=torch.float32, **more):
        return lambda g: {"levels": [_noise(g, len(t), 2, *s, dtype=dtype) for s in sizes], "t": torch.tensor(t), **more}

    square = ((8, 8), (4, 4), (2, 2), (1, 1))
    wrong = lambda **k: lambda *a: _pile(*a, **k)
    suspects = [
        ("the sum is not scaled back: divide each example by its own standard deviation.", wrong(unit=False)),
        ("every t gets the same noise: the weight of level i is (strength · t/T)^i.", wrong(annealed=False)),
        ('the levels are enlarged in blocks: use mode="bilinear".', wrong(mode="nearest")),
        ("the levels are enlarged with align_corners=True: leave it at its default.", wrong(mode="bilinear", align_corners=True)),
        ("all coarse levels get the same weight: raise it to the power i.", wrong(power=lambda s, i: s if i else 1.0)),
        ("the finest level is weighed too: its weight is s to the power 0, which is 1.", wrong(power=lambda s, i: s ** (i + 1))),
        ("the whole batch is divided by one number: each example has its own standard deviation.", wrong(one_spread=True)),
        ("t is divided by 1000, whatever T is.", wrong(T_used=1000)),
        ("the coarse levels are missing: add every level, not only the first.", lambda levels, t, *a: _pile(levels[:1], t, *a)),
    ]
    cases = [
        case(square, [30, 0, 70, 100], T=100, strength=0.9),
        case(((7, 5), (3, 2), (1, 1)), [1, 400, 1000], T=1000, strength=0.5),
        case(square[1:], [250, 990]),
        case(((6, 4), (3, 2)), [600]),
    ]
    agree(answer, _pile, cases, what="the noise", tol=1e-4, suspects=suspects)
    agree(answer, _pile, case(square, [999, 10], torch.float64), what="the noise in double precision", tol=1e-6)  # t in single precision will do


def _onto(p, d):
    """One map fitted to another by least squares with numpy."""
    A = np.stack([p.ravel(), np.ones(p.size)], 1)
    return (A @ np.linalg.lstsq(A, d.ravel(), rcond=None)[0]).reshape(p.shape)


def _vote(maps, rounds=5, middle_of=np.median, spread_of="median", ruled=True, stretched=True, fitted=True, backwards=False):
    """Median and spread of N answers, one picture at a time."""
    unit = lambda d: (d - d.min()) / max(d.max() - d.min(), 1e-6)
    middles, spreads = [], []
    for answers in maps.double().numpy().swapaxes(0, 1):  # (N, 1, H, W)
        own = np.stack([unit(d) for d in answers])
        for _ in range(rounds if fitted else 0):
            goal = unit(middle_of(own, axis=0))
            own = np.stack([_onto(goal, d) if backwards else _onto(d, goal) for d in answers])
        middle = middle_of(own, axis=0)
        away = np.abs(own - middle)
        spread = np.median(away, 0) if spread_of == "median" else away.mean(0) if spread_of == "mean" else own.std(0)
        spreads.append(spread / max(middle.max() - middle.min(), 1e-6) if ruled else spread)
        middles.append(unit(middle) if stretched else middle)
    return tuple(torch.tensor(np.stack(v)).to(maps.dtype) for v in (middles, spreads))


def ensemble(answer):
    def case(N, B, H, W, dtype=torch.float64, **more):
        def draw(g):
            truth = _depths(g, B, H, W, torch.float64)
            scale, shift = 0.3 + torch.rand(N, B, 1, 1, 1, generator=g, dtype=torch.float64), 5 * torch.randn(N, B, 1, 1, 1, generator=g, dtype=torch.float64)
            maps = scale * (truth + 1.5 * torch.randn(N, B, 1, H, W, generator=g, dtype=torch.float64)) + shift
            return {"maps": maps.to(dtype), **more}

        return draw

    wrong = lambda **k: lambda *a: _vote(*a, **k)
    suspects = [
        ("the maps are only stretched: fit each of them to the median, `rounds` times.", wrong(fitted=False)),
        ("`rounds` is not used: 5 is only its default.", lambda maps, rounds=5: _vote(maps)),
        ("only one round is made: the median of the aligned maps is a new goal; repeat.", lambda maps, rounds=5: _vote(maps, 1)),
        ("this is the mean: take the median over the first axis, which one wild answer cannot move.", wrong(middle_of=np.mean)),
        ("the map that is returned is not stretched: bring it to [0, 1] at the end.", wrong(stretched=False)),
        ("the spread is not divided by the range of the median: it has another unit than the map.", wrong(ruled=False)),
        ("the spread is the standard deviation: take the median distance from the median, pixel by pixel.", wrong(spread_of="std")),
        ("the spread is the mean distance: take the median.", wrong(spread_of="mean")),
        ("one round too few is made.", lambda maps, rounds=5: _vote(maps, max(rounds - 1, 0))),
        ("one round too many is made.", lambda maps, rounds=5: _vote(maps, rounds + 1)),
        ("the goal is fitted to each map: it is the map that is scaled and shifted.", wrong(backwards=True)),
        ("the two are exchanged: the map comes first.", lambda *a: _vote(*a)[::-1]),
    ]
    agree(
        answer,
        _vote,
        [case(5, 2, 8, 7), case(3, 4, 6, 9, rounds=2), case(7, 1, 5, 5, rounds=0), case(5, 3, 4, 6, rounds=9)],
        what="(median, spread)",
        tol=1e-6,
        suspects=suspects,
    )
    agree(answer, _vote, case(3, 2, 8, 8, torch.float32), what="(median, spread) in single precision", tol=1e-3)
    one = torch.rand(1, 2, 1, 6, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    middle, spread = answer(one)
    same(middle, _vote(one)[0], "the median of a single answer")
    same(spread, torch.zeros_like(spread), "the spread of a single answer")
    same(
        answer(torch.zeros(3, 1, 1, 4, 4))[1],
        torch.zeros(1, 1, 4, 4),
        "the spread of answers that are the same everywhere",
        "Keep the divisor above 0: .clamp(min=1e-6).",
    )
