"""Checks of lesson 2.7 (Prompt-to-Prompt): loops over rows, heads, positions and tokens, one number at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from ..exercises import Wrong, right, same

HINTS = {
    "inject": [
        "Two steps: carry the source's maps over to the edited caption's tokens, then choose, token by token, between them and the own maps.",
        "`source_maps @ A` would line A's batch axis up with the heads: give A an axis for the heads, A[:, None]. keep needs two new axes: keep[:, None, None].",
        "return torch.where(keep[:, None, None] > 0, source_maps @ A[:, None], maps).",
    ],
    "reweight": [
        "One multiplication. No normalisation afterwards.",
        "scale (B, T) must meet maps (B, heads, N, T): add two axes in the middle.",
        "return maps * scale[:, None, None].",
    ],
    "mapper": [
        "Start from zeros and walk through the pairs.",
        "Equal lengths: A[source, target] = 1 with the two lists sets the pairs one by one. Else: every source token's row gets 1/len(target) at all target tokens.",
        "for source, target in pairs: if len(source) == len(target): A[source, target] = 1; else: for s in source: A[s, target] = 1 / len(target); "
        "in both cases keep[target] = 1.",
    ],
    "local_blend": [
        "Three steps: enlarge the heat, compare it with threshold times its maximum, choose with torch.where.",
        "F.interpolate wants (B, 1, h, w); the maximum is taken over the two last axes with keepdim=True, for every row on its own.",
        'm = F.interpolate(heat[:, None], size=z.shape[-2:], mode="bilinear"); return torch.where(m > threshold * m.amax((2, 3), keepdim=True), z, z_source).',
    ],
    "inversion_step": [
        "First the clean picture that zt and eps imply at level t; then the same eps at level s.",
        "now, then = at(schedule.abar, t, zt), at(schedule.abar, s, zt). Each level has its own two square roots.",
        "clean = (zt - (1 - now).sqrt() * eps) / now.sqrt(); return then.sqrt() * clean + (1 - then).sqrt() * eps.",
    ],
}


def _maps(g, *shape):
    return torch.rand(*shape, generator=g).softmax(-1)


def inject(answer):
    g = torch.Generator().manual_seed(1)
    for B, heads, N, T in ((3, 2, 4, 5), (2, 3, 6, 4)):
        maps, source = _maps(g, B, heads, N, T), _maps(g, B, heads, N, T)
        A, keep = torch.rand(B, T, T, generator=g), (torch.rand(B, T, generator=g) > 0.5).float()
        keep[0, :2] = torch.tensor([0.0, 1.0])
        want = maps.clone()
        for b in range(B):
            for j in range(T):
                if keep[b, j]:
                    want[b, :, :, j] = sum(source[b, :, :, i] * A[b, i, j] for i in range(T))
        got = answer(maps.clone(), source.clone(), A, keep)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            turned = torch.where(keep[:, None, None] > 0, source @ A[:, None].transpose(-2, -1), maps)
            right(not torch.allclose(got, turned, atol=1e-6), "A is used the wrong way round: its rows are source tokens, its columns edited tokens.")
            swapped = torch.where(keep[:, None, None] > 0, maps, source @ A[:, None])
            right(not torch.allclose(got, swapped, atol=1e-6), "keep = 1 marks the tokens that take the source's map; yours keep their own there.")
            plain = torch.where(keep[:, None, None] > 0, source, maps)
            right(not torch.allclose(got, plain, atol=1e-6), "the source's maps are taken as they are: carry them over with A first.")
            right(not torch.allclose(got, source @ A[:, None], atol=1e-6), "tokens with keep = 0 must keep their own map.")
        same(got, want, "the injected maps", "Row b uses A[b] and keep[b]; all heads and positions alike.")


def reweight(answer):
    g = torch.Generator().manual_seed(2)
    for B, heads, N, T in ((3, 2, 4, 5), (5, 5, 5, 5)):
        maps, scale = _maps(g, B, heads, N, T), torch.randn(B, T, generator=g) * 2
        want = torch.stack([torch.stack([maps[b, :, :, j] * scale[b, j] for j in range(T)], -1) for b in range(B)])
        got = answer(maps.clone(), scale)
        if isinstance(got, torch.Tensor) and got.shape == want.shape and torch.isfinite(got).all():
            ones = torch.allclose(got.sum(-1), torch.ones(B, heads, N), atol=1e-4)
            right(not ones, "the rows sum to 1 again: do not normalise, or more of one word becomes less of the others.")
            right(not torch.allclose(got, maps * scale[:, None, None].abs(), atol=1e-6), "a negative factor must stay negative.")
        same(got, want, "the re-weighted maps", "Column j of row b is multiplied by scale[b, j].")


def mapper(answer):
    cases = [
        ([([0], [0]), ([1], [1]), ([2, 3], [2, 3])], 5),
        ([([0], [0]), ([1, 2], [1, 2, 3, 4]), ([3], [5]), ([4, 5, 6, 7], [6, 7])], 8),
        ([([0], [0]), ([1], [3]), ([2], [4]), ([3, 4, 5], [5])], 6),  # two words were added before the second
    ]
    for pairs, T in cases:
        got = answer(pairs, T)
        if not (isinstance(got, tuple) and len(got) == 2):
            raise Wrong("return two tensors: A, keep.")
        A, keep = torch.zeros(T, T), torch.zeros(T)
        for source, target in pairs:
            for n, i in enumerate(source):
                for m, j in enumerate(target):
                    A[i, j] = float(n == m) if len(source) == len(target) else 1 / len(target)
            for j in target:
                keep[j] = 1
        if isinstance(got[0], torch.Tensor) and got[0].shape == A.shape:
            right(not torch.allclose(got[0], A.T) or torch.allclose(A, A.T), "A is transposed: rows are source tokens, columns edited tokens.")
            total = sum(len(s) for s, _ in pairs)
            if not torch.isclose(got[0].sum(), torch.tensor(float(total))):
                raise Wrong("attention is lost or made up: every source token that has a partner gives away exactly 1 in all, so its row of A sums to 1.")
        same(got[0], A, "A", "Equal numbers of tokens pair up one by one; otherwise each source token spreads evenly over the edited tokens.")
        same(got[1], keep, "keep", "1 for every edited token of a pair, 0 for added ones.")


def local_blend(answer):
    g = torch.Generator().manual_seed(3)
    B, C, H, h = 3, 2, 8, 4
    z, old = torch.randn(2, B, C, H, H, generator=g)
    heat = torch.zeros(B, h, h)
    heat[0, 0, 0], heat[0, 3, 3] = 5.0, 2.5
    heat[1] = 0.02 * torch.rand(h, h, generator=g)  # far cooler than the first: each map has its own maximum
    for threshold in (0.3, 0.6):
        want = torch.empty_like(z)
        for b in range(B):
            fine = torch.nn.functional.interpolate(heat[b][None, None], size=(H, H), mode="bilinear")[0, 0]
            want[b] = torch.where(fine > threshold * fine.max(), z[b], old[b])
        got = answer(z.clone(), old.clone(), heat.clone(), threshold)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            right(not torch.equal(got[:2], (z + old - want)[:2]), "the edited latent belongs inside the mask, the source's outside: they look swapped.")
            right(not torch.equal(got[1], old[1]), "a cool map marks nothing: the threshold is a share of that map's own maximum, for every row.")
            right(not torch.equal(got[2], z[2]), "a map that is 0 everywhere marks nothing: use >, not >=.")
        same(got, want, "the blended latent", "Enlarge bilinearly, compare with threshold times that map's own maximum (for every row), torch.where.")


def _schedule(T: int = 30) -> SimpleNamespace:
    beta = [0.0] + [0.01 + 0.1 * (k / (T - 1)) ** 2 for k in range(T)]
    return SimpleNamespace(abar=torch.tensor([math.prod(1 - b for b in beta[: t + 1]) for t in range(T + 1)], dtype=torch.float64), T=T)


def inversion_step(answer):
    s, g = _schedule(), torch.Generator().manual_seed(4)
    for shape in ((4, 3, 2, 2), (4, 5)):
        zt, eps = torch.randn(2, *shape, generator=g)
        t, u = torch.tensor([0, 3, 11, 20]), torch.tensor([2, 4, 30, 21])
        want = torch.empty_like(zt)
        for b in range(4):
            now, then = s.abar[t[b]].item(), s.abar[u[b]].item()
            clean = (zt[b] - math.sqrt(1 - now) * eps[b]) / math.sqrt(now)
            want[b] = math.sqrt(then) * clean + math.sqrt(1 - then) * eps[b]
        got = answer(zt.clone(), eps.clone(), t, u, s)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            right(bool(torch.isfinite(got[0]).all()), "at t = 0 the result is not a number: is something divided by 1 - abar_t, which is 0 there?")
            ratio = (s.abar[u] / s.abar[t]).to(zt).reshape(-1, *[1] * (zt.ndim - 1))
            forward = ratio.sqrt() * zt + (1 - ratio).sqrt() * eps
            right(
                not torch.allclose(got, forward, atol=1e-4),
                "this adds eps as *fresh* noise. The noise is already in zt: remove it first, then put it back at level s.",
            )
        same(got, want, "z_s", "The clean picture that zt and eps imply at level t, brought to level s with the same eps.", tol=1e-4)
