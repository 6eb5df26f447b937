"""Checks of lesson 2.9 (Marigold): each computes its own answer with plain numbers, one map at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "normalise_depth": [
        "Two numbers for each map: its 2 % and its 98 % quantile. Everything else is a straight line through them.",
        "torch.quantile(depth.flatten(1), low, dim=1) is (B,); give it the shape (B, 1, 1, 1) before you subtract. Clip at the end.",
        "near, far = (torch.quantile(depth.flatten(1), q, dim=1)[:, None, None, None] for q in (low, high)); return ((depth - near) / (far - near) * 2 - 1).clamp(-1, 1).",
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
}


def _depths(seed: int, dtype=torch.float32):
    """Four unlike maps (4, 1, 12, 10): one with a far outlier, one upside down, one tiny, one with two planes."""
    g = torch.Generator().manual_seed(seed)
    d = 1 + 4 * torch.rand(4, 1, 12, 10, generator=g, dtype=torch.float64)
    d[0, 0, 3, 3] = 60.0
    d[1] += torch.linspace(3, 0, 12, dtype=torch.float64)[:, None]
    d[2] *= 0.01
    d[3, :, :, :5] = d[3, :, :, :5] * 0.1 + 7
    return d.to(dtype)


def _known(seed: int, shape=(4, 1, 12, 10)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.3


def normalise_depth(answer):
    for dtype, (low, high) in ((torch.float32, (0.02, 0.98)), (torch.float64, (0.1, 0.8))):
        d = _depths(1, dtype)
        before = d.clone()
        got = answer(d) if low == 0.02 else answer(d, low, high)
        right(torch.equal(d, before), "your function changes its input: work on a new tensor.")
        ends = np.quantile(d.double().flatten(1).numpy(), [low, high], axis=1)
        near, far = (torch.tensor(e)[:, None, None, None] for e in ends)
        line = (d.double() - near) / (far - near)
        want = (2 * line - 1).clamp(-1, 1).to(dtype)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            close = lambda x: torch.allclose(got.double(), x, atol=1e-4)  # noqa: B023, E731
            right(not close(2 * line - 1), "values beyond the quantiles lie outside of [-1, 1]: clip them.")
            right(not close(line.clamp(0, 1)), "this runs from 0 to 1: stretch it to [-1, 1].")
            right(not close((1 - 2 * line).clamp(-1, 1)), "near and far are exchanged: the near quantile should become -1.")
            flat = d.double().flatten(1)
            lo, hi = (v[:, None, None, None] for v in (flat.amin(1), flat.amax(1)))
            right(not close(2 * (d.double() - lo) / (hi - lo) - 1), "this uses minimum and maximum: use the quantiles, or one outlier squeezes all the rest.")
            a, b = np.quantile(d.double().numpy(), [low, high])
            right(not close(((d.double() - a) / (b - a) * 2 - 1).clamp(-1, 1)), "all maps share one ruler: take the quantiles of each map, with dim=1.")
        same(got, want, "the normalised depth", "Each map has its own quantiles; low goes to -1, high to 1.", 1e-4 if dtype == torch.float32 else 1e-10)


def scale_shift(answer):
    for dtype, tol in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        truth, known = _depths(2, dtype), _known(3)
        pred = torch.randn(truth.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)
        pred = 0.3 * pred + torch.tensor([0.5, -0.2, 30.0, 0.1], dtype=dtype)[:, None, None, None] * truth
        pred[0] *= 1e-3  # a map of small contrast must be stretched, not taken for a constant one
        holes = torch.where(known, truth, torch.nan)
        fits = lambda p, d, keep: [  # noqa: E731
            np.linalg.lstsq(np.stack([p[i][k].double().numpy(), np.ones(int(k.sum()))], 1), d[i][k].double().numpy(), rcond=None)[0] for i, k in enumerate(keep)
        ]
        want = torch.tensor(np.stack(fits(pred, truth, known)))  # (B, 2)
        got = answer(pred, holes, known)
        if not (isinstance(got, (tuple, list)) and len(got) == 2):
            raise Wrong("return two things: the scales and the shifts.")
        s, b = got
        if isinstance(s, torch.Tensor) and s.shape == (4,) and isinstance(b, torch.Tensor) and b.shape == (4,):
            right(
                bool(torch.isfinite(s).all() and torch.isfinite(b).all()),
                "the result is NaN: unknown depths are NaN; replace them with torch.where(known, depth, 0).",
            )
            close = lambda w: torch.allclose(s.double(), torch.tensor(w, dtype=torch.float64), rtol=1e-3, atol=1e-6)  # noqa: B023, E731
            right(not close([f[0] for f in fits(truth, pred, known)]), "this fits the depth to the prediction: it is the prediction that is scaled.")
            everywhere = torch.ones_like(known)
            right(
                not close([f[0] for f in fits(pred, torch.where(known, truth, 0), everywhere)]),
                "unknown pixels are counted as depth 0: give them weight 0 in every sum, and divide by the number of known ones.",
            )
            through = [float((pred[i][k] * truth[i][k]).sum() / (pred[i][k] ** 2).sum()) for i, k in enumerate(known)]
            right(not close(through), "this is the best scale without a shift: centre both maps first.")
        same(s, want[:, 0].to(dtype), "the scale", "It is the covariance of prediction and depth over the variance of the prediction.", tol)
        same(b, want[:, 1].to(dtype), "the shift", "It is mean(depth) - s · mean(prediction), over the known pixels.", tol)
    pred = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(5), requires_grad=True)
    s, b = answer(pred, _depths(6)[:2, :, :4, :4], torch.ones(2, 1, 4, 4, dtype=torch.bool))
    needs_grad(s.sum() + b.sum(), {"the prediction": pred}, "scale and shift")
    flat, depth = torch.tensor([0.0, 3.0])[:, None, None, None].expand(2, 1, 4, 4), _depths(6)[:2, :, :4, :4].float()
    s, b = answer(flat, depth, torch.ones(2, 1, 4, 4, dtype=torch.bool))
    right(
        bool(torch.isfinite(s).all() and torch.isfinite(b).all()),
        "a map that is the same everywhere has variance 0, and 0 / 0 is NaN: keep the divisor above 0, with .clamp(min=1e-12).",
    )
    same(s * flat[:, 0, 0, 0] + b, depth.mean((1, 2, 3)), "a constant map after alignment", "It can only be moved, to the mean depth.", 1e-3)


def depth_errors(answer):
    truth, known = _depths(7), _known(8)
    g = torch.Generator().manual_seed(9)
    pred = truth * (0.2 * torch.randn(truth.shape, generator=g)).exp()
    pred[0, 0, :2], pred[1, 0, 5] = -1.1 * truth[0, 0, :2], 0.0
    pred[3] = truth[3] / 1.3
    holes = torch.where(known, truth, torch.nan)
    got = answer(pred, holes)
    if not (isinstance(got, (tuple, list)) and len(got) == 2):
        raise Wrong("return two things: AbsRel and δ1.")
    rel, good, by_pred, below = [], [], [], []
    for p, d, k in zip(pred, truth, known):
        pairs = list(zip(p[k].tolist(), d[k].tolist()))
        rel.append(sum(abs(a - b) / b for a, b in pairs) / len(pairs))
        by_pred.append(sum(abs(a - b) / abs(a) if a else math.inf for a, b in pairs) / len(pairs))
        good.append(sum(a > 0 and max(a / b, b / a) < 1.25 for a, b in pairs) / len(pairs))
        below.append(sum(a / b < 1.25 for a, b in pairs) / len(pairs))
    size, n = truth[0].numel(), known.flatten(1).sum(1)
    a, b = got
    for x, what in ((a, "AbsRel"), (b, "δ1")):
        if isinstance(x, torch.Tensor) and x.shape == (4,):
            right(bool(torch.isfinite(x).all()), f"{what} is NaN or inf: unknown depths are NaN; put 1 there, and leave those pixels out of the sum.")
    if isinstance(a, torch.Tensor) and a.shape == (4,) and isinstance(b, torch.Tensor) and b.shape == (4,):
        close = lambda x, w: torch.allclose(x.double(), torch.as_tensor(w, dtype=torch.float64), rtol=1e-4)  # noqa: E731
        right(not close(a, torch.tensor(rel).double() * n / size), "you divide by all pixels: divide by the number of known ones in each map.")
        right(not close(a, by_pred), "the error is divided by the prediction: divide by the true depth.")
        right(not close(b, below), "only p/d is tested: a prediction that is far too small must count as wrong too, by d/p.")
        right(not close(b, 1 - torch.tensor(good).double()), "this is the share of wrong pixels: δ1 counts those within 25 %.")
    same(a, torch.tensor(rel), "AbsRel", "The mean of |p - d| / d over the known pixels of each map.", 1e-4)
    same(b, torch.tensor(good), "δ1", "The share of known pixels with max(p/d, d/p) < 1.25; a prediction of zero or less is wrong.", 1e-4)


def widen(answer):
    g = torch.Generator().manual_seed(10)
    weight = torch.randn(5, 6, 3, 3, generator=g)
    got = answer(weight)
    x, y = torch.randn(2, 3, 6, 8, 8, generator=g)
    if isinstance(got, torch.Tensor) and got.shape == (5, 12, 3, 3):
        out, old = F.conv2d(torch.cat([x, x], 1), got, padding=1), F.conv2d(x, weight, padding=1)
        right(not torch.allclose(out, 2 * old, atol=1e-4), "with the same latent twice the answer is twice the old one: halve the weights.")
        zero = got.reshape(5, 2, 6, 3, 3).abs().amax((0, 2, 3, 4)) == 0
        right(not zero.any(), "one half is zero: this keeps the old answer too, but then the network starts blind to one of its inputs. Copy both, and halve.")
        right(
            torch.allclose(out, old, atol=1e-4),
            "with the same latent in both halves the answer should be as before: the first six input channels belong to the first latent, the last six to the second.",
        )
        pair = F.conv2d(torch.cat([x, y], 1), got, padding=1)
        right(torch.allclose(pair, F.conv2d((x + y) / 2, weight, padding=1), atol=1e-4), "the two halves should be treated alike.")
    same(got, torch.cat([weight * 0.5, weight * 0.5], 1), "the wider weight", "Axis 1 holds the input channels.")


def multi_resolution_noise(answer):
    g = torch.Generator().manual_seed(11)
    levels = [torch.randn(4, 2, s, s, generator=g) for s in (8, 4, 2, 1)]
    for t, T, strength in ((torch.tensor([0, 30, 70, 100]), 100, 0.9), (torch.tensor([1, 400, 600, 1000]), 1000, 0.5)):
        got = answer(levels, t, T, strength)

        def by_hand(power=lambda s, i: s**i, annealed=True, mode="bilinear", size=8, t=t, T=T, strength=strength):
            out = []
            for k in range(4):
                s = strength * (t[k].item() / T if annealed else 1.0)
                total = torch.zeros(2, size, size)
                for i, n in enumerate(levels):
                    total = total + power(s, i) * F.interpolate(n[k : k + 1], size=(size, size), mode=mode)[0]
                out.append(total)
            return torch.stack(out)

        unit = lambda x: torch.stack([v / math.sqrt(((v - v.mean()) ** 2).sum() / (v.numel() - 1)) for v in x])  # noqa: E731
        want = unit(by_hand())
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            close = lambda x: torch.allclose(got, x, atol=1e-4)  # noqa: B023, E731
            right(not close(by_hand()), "the sum is not scaled back: divide each example by its own standard deviation.")
            right(not close(unit(by_hand(annealed=False))), "every t gets the same noise: the weight of level i is (strength · t/T)^i.")
            right(not close(unit(by_hand(mode="nearest"))), 'the levels are enlarged in blocks: use mode="bilinear".')
            right(not close(unit(by_hand(power=lambda s, i: s if i else 1.0))), "all coarse levels get the same weight: raise it to the power i.")
            whole = by_hand()
            right(not close(whole / whole.std()), "the whole batch is divided by one number: each example has its own standard deviation.")
        same(got, want, "the noise", "Weights (strength · t/T)^i, levels enlarged by bilinear interpolation, spread 1 for each example.", 1e-4)
