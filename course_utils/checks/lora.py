"""Checks of lesson 2.6 (LoRA): sums written out number by number, and matrices built in full."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "low_rank": [
        "Two thin linear layers, one after the other: first A (down to r numbers), then B (up to n).",
        "F.linear(x, A) is x Aᵀ, of shape (..., r). The rank r is the number of rows of A, len(A).",
        "return alpha / len(A) * F.linear(F.linear(x, A), B).",
    ],
    "largest_rank": [
        "What does rank 1 cost? Add n + m over all layers.",
        "Rank r costs r times that, so divide the budget by it and round down. Then mind the smallest side of the smallest layer.",
        "per_rank = sum(n + m for n, m in shapes); return min(budget // per_rank, min(min(s) for s in shapes)).",
    ],
    "merged_weight": [
        "Here you do want the product B A: it has the shape of W.",
        "The same scale as in the side path, alpha / r with r = len(A), times the strength. Return a new tensor.",
        "return W + strength * alpha / len(A) * (B @ A).",
    ],
    "stack": [
        "A product of a wide and a tall matrix is a sum over the r paths: put the paths of all adapters side by side.",
        "A: torch.cat of the A_i along dimension 0; B: torch.cat of the B_i along dimension 1, each with its own factor. The whole will be scaled by alpha / r, an adapter alone by alpha / r_i.",
        "r = sum(len(A) for A, _ in parts); B = torch.cat([w * r / len(A_i) * B_i for (A_i, B_i), w in zip(parts, strengths)], 1); A = torch.cat([A for A, _ in parts]).",
    ],
}


class _Shapes(TorchDispatchMode):
    """Notes the shapes of all tensors that are made while it is on."""

    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        views = ("aten.t.", "aten.transpose.", "aten.view.", "aten.permute.", "aten._unsafe_view.", "aten.expand.")
        if isinstance(out, torch.Tensor) and not str(func).startswith(views):
            self.made.add(tuple(out.shape))
        return out


def _numbers(seed, *shapes, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g, dtype=dtype) for s in shapes]


def _by_hand(x, A, B, alpha):
    """(alpha / r) Σ_k B[:, k] (Σ_j A[k, j] x[j]) for every row of x, path by path."""
    out = torch.zeros(*x.shape[:-1], len(B), dtype=x.dtype)
    for k in range(len(A)):
        out = out + (x * A[k]).sum(-1, keepdim=True) * B[:, k]
    return out * (alpha / len(A))


def low_rank(answer):
    for alpha, dtype in ((8.0, torch.float32), (3.0, torch.float64)):
        x, A, B = _numbers(1, (2, 5, 7), (3, 7), (4, 3), dtype=dtype)
        got, want = answer(x, A, B, alpha), _by_hand(x, A, B, alpha)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            for factor, sentence in {
                1 / alpha * 3: "the scale alpha / r is missing.",
                3.0: "the result is scaled by alpha: divide by the rank, len(A), too.",
                1 / alpha: "the result is divided by r, but not multiplied by alpha.",
                3 / 4: "you divided by n, the rows of B: the rank is the number of rows of A.",
            }.items():
                right(abs(factor - 1) < 1e-9 or not torch.allclose(got, factor * want, rtol=1e-4, atol=1e-6), sentence)
        same(got, want, "the update", "First A, then B: F.linear(F.linear(x, A), B), times alpha / r.", 1e-5 if dtype == torch.float32 else 1e-10)
    x, A, B = (v.requires_grad_() for v in _numbers(2, (6, 7), (2, 7), (5, 2)))
    needs_grad(answer(x, A, B, 8.0), {"A": A, "B": B, "x": x}, "the update")
    x, A, B = _numbers(3, (3, 41), (2, 41), (37, 2))
    with _Shapes() as seen:
        answer(x, A, B, 8.0)
    right(
        not seen.made & {(37, 41), (41, 37)},
        "the values are right, but you built the whole n × m matrix B A: send x through A first, so that only r numbers pass between.",
    )


def largest_rank(answer):
    square, mixed = [(128, 128)] * 4, [(96, 128), (128, 128), (96, 96)]
    cases = [(square, 1024), (square, 8 * 1024 + 1023), (square, 8 * 1024 - 1), (mixed, 672 * 5), (mixed, 672 * 5 - 1), (square, 1023), ([(8, 3)], 22)]
    for shapes, budget in cases:
        got, per_rank = answer(list(shapes), budget), sum(n for n, _ in shapes) + sum(m for _, m in shapes)
        right(got is not None, "the result is None: does your function end in `return ...`?")
        right(isinstance(got, int) and not isinstance(got, bool), f"the rank should be a whole number (int), but it is a {type(got).__name__}: divide with //.")
        want = max(r for r in range(min(min(s) for s in shapes) + 1) if r * per_rank <= budget)
        right(
            got != budget // sum(n * m for n, m in shapes) or got == want, "you counted n · m numbers a layer: that is the full matrix, A and B hold r (n + m)."
        )
        right(
            got * per_rank <= budget,
            f"with a budget of {budget} you chose rank {got}, which costs {got * per_rank} numbers over the {len(shapes)} layers: too many.",
        )
        right(got == want, f"with a budget of {budget} you chose rank {got}, but rank {want} fits into {want * per_rank} numbers.")
    shapes = [(128, 128), (4, 64)]
    right(answer(shapes, 10**6) == 4, "never more than the smallest side of the smallest layer: a matrix of 4 rows has no rank above 4.")


def merged_weight(answer):
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        W, A, B, x = _numbers(4, (5, 7), (2, 7), (5, 2), (6, 7), dtype=dtype)
        before = W.clone()
        for strength in (1.0, 0.3, -0.5):
            got = answer(W, A, B, 8.0, strength)
            right(torch.equal(W, before), "W itself was changed: return a new tensor, W + ..., not W += ....")
            want = torch.stack([torch.stack([W[i, j] + strength * 4.0 * sum(B[i, k] * A[k, j] for k in range(2)) for j in range(7)]) for i in range(5)])
            if isinstance(got, torch.Tensor) and got.shape == want.shape:
                delta = want - W
                right(not torch.allclose(got, delta, atol=1e-5), "this is the update alone: add W.")
                right(strength == 1 or not torch.allclose(got, W + delta / strength, atol=1e-5), "the strength is not used.")
                right(not torch.allclose(got, W + delta / 4, atol=1e-5), "the scale alpha / r is missing: merged and side path must agree.")
            same(got, want, "the merged weight", "W + strength · (alpha / r) B A.", tol)
            side = x @ W.T + strength * _by_hand(x, A, B, 8.0)
            same(x @ got.T, side, "what the merged layer computes", "It must equal W x plus the side path.", tol * 10)
    right(torch.allclose(answer(W, A, B, 8.0), answer(W, A, B, 8.0, 1.0)), "without a strength it should be 1.")


def stack(answer):
    for ranks, strengths in (((2, 2), (1.0, 1.0)), ((3, 1), (0.7, -0.4)), ((1, 2, 4), (0.5, 1.0, 2.0)), ((3,), (0.25,))):
        numbers = [_numbers(5 + i, (r, 6), (5, r), dtype=torch.float64) for i, r in enumerate(ranks)]
        got = answer([tuple(p) for p in numbers], list(strengths))
        if not (isinstance(got, (tuple, list)) and len(got) == 2 and all(isinstance(v, torch.Tensor) for v in got)):
            raise Wrong("return two tensors: A and B.")
        A, B = got
        r = sum(ranks)
        if len(ranks) > 1 and len(set(ranks)) == 1 and A.shape == numbers[0][0].shape:
            raise Wrong(f"A has {len(A)} rows. Adding the A's and the B's gives cross terms such as B_1 A_2: put them side by side instead, {r} rows in all.")
        same(A, A if A.shape == (r, 6) else torch.zeros(r, 6), "A", "Stack the A_i below each other (dimension 0).")
        same(B, B if B.shape == (5, r) else torch.zeros(5, r), "B", "Put the B_i side by side (dimension 1).")
        product = sum(B[:, k, None] * A[None, k] for k in range(r)) * (8.0 / r)
        want = sum(w * 8.0 / len(a) * b @ a for (a, b), w in zip(numbers, strengths))
        unscaled = sum(w * 8.0 / r * b @ a for (a, b), w in zip(numbers, strengths))
        squared = sum(w * w * 8.0 / len(a) * b @ a for (a, b), w in zip(numbers, strengths))
        plain = sum(8.0 / len(a) * b @ a for a, b in numbers)
        for other, sentence in (
            (plain, "the strengths are not used."),
            (squared, "the strength stands in A and in B, so it acts squared: put it into one of the two."),
            (unscaled, "each adapter was scaled by alpha / r_i, the stacked one by alpha / r: give each B_i the factor r / r_i as well."),
        ):
            right(not torch.allclose(product, other) or torch.allclose(other, want), sentence)
        same(product, want, "(alpha / r) B A", "It must equal the sum of the single updates, each with its strength.", 1e-10)
