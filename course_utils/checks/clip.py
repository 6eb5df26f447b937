"""Checks of 1.2 CLIP. Each compares with a computation of its own on random input."""

from __future__ import annotations

import math

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "patchify": [
        "Where does pixel (row, column) go? Patch number (row // P, column // P), place inside it (row % P, column % P).",
        'einops can split an axis in its pattern: "b c (h p) (w q) -> ..." with p=patch and q=patch.',
        'rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)',
    ],
    "attention": [
        "Three steps: scores of every query with every key, softmax over the keys, weighted sum of the values.",
        "The scores are q @ k.transpose(-2, -1) divided by the square root of q.shape[-1]. The mask goes in before the softmax, as minus infinity where it is False.",
        "scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v",
    ],
    "info_nce": [
        "Make both embeddings unit vectors first. Then one matrix holds all similarities: which index is the picture, which the caption?",
        "Row i is a classification problem with B classes whose right answer is i, so cross-entropy with the targets 0 … B−1 does it. The columns are the same problem for the captions.",
        "(F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2 with logits = scale * z_image @ z_text.T",
    ],
    "recall_at_k": [
        "For each row, count how many other entries are at least as large as the one on the diagonal.",
        "similarity.diagonal()[:, None] can be compared with the whole matrix; the comparison with itself counts one too many.",
        "((similarity >= similarity.diagonal()[:, None]).sum(1) - 1 < k).float().mean().item()",
    ],
    "class_vectors": [
        "For each class: embed all its prompts in one call, average over the prompts.",
        "The mean of unit vectors is shorter than one. Scale it back, or classes with varied prompts are at a disadvantage.",
        "torch.stack([F.normalize(encode_text(p).mean(0), dim=-1) for p in prompts])",
    ],
}


def patchify(answer):
    import torch

    g = torch.Generator().manual_seed(0)
    for B, C, H, W, P in ((2, 3, 8, 8, 4), (1, 3, 4, 12, 2), (3, 2, 6, 9, 3)):
        x = torch.rand(B, C, H, W, generator=g)
        got = answer(x, P)
        tokens = [x[:, :, r : r + P, c : c + P].reshape(B, -1) for r in range(0, H, P) for c in range(0, W, P)]
        want = torch.stack(tokens, 1)
        if isinstance(got, torch.Tensor) and got.shape == want.shape and not torch.equal(got, want):
            wrong = torch.stack([x[:, :, r : r + P, c : c + P].reshape(B, -1) for c in range(0, W, P) for r in range(0, H, P)], 1)
            right(not torch.equal(got, wrong), "The patches come column by column; they should come row by row from the top left.")
            right(
                not torch.equal(got.sort(-1).values, want.sort(-1).values),
                "Each token has the right pixels in the wrong order: colour first, then row, then column of the patch.",
            )
            raise Wrong("The pixels of one token do not come from one square patch: did you reshape without moving axes? The axes must be permuted as well.")
        same(got, want, "the tokens")


def attention(answer):
    import torch

    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    for m in (None, mask):
        want, unscaled = torch.zeros(2, 3, 5, 4, dtype=torch.float64), torch.zeros(2, 3, 5, 4, dtype=torch.float64)
        for b in range(2):
            for h in range(3):
                for i in range(5):
                    seen = [j for j in range(5) if m is None or m[i, j]]
                    dots = [(q[b, h, i] @ k[b, h, j]).item() for j in seen]
                    for out, d in ((want, 4**0.5), (unscaled, 1.0)):
                        e = [math.exp(s / d) for s in dots]
                        out[b, h, i] = sum(w / sum(e) * v[b, h, j].detach() for w, j in zip(e, seen))
        got = answer(q, k, v, m)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            right(not torch.allclose(got.detach(), unscaled), "The scores are not divided by √d: with wide tokens the softmax would become a hard maximum.")
            if m is not None and torch.allclose(got.detach(), answer(q, k, v, None).detach()):
                raise Wrong("The mask changes nothing: set the scores of pairs where it is False to minus infinity before the softmax.")
        what = "attention" if m is None else "attention with a mask"
        same(got, want, what, "Is the softmax over the keys (the last axis)? True in the mask means: may look.", tol=1e-9)
        needs_grad(got, {"q": q, "k": k, "v": v}, "attention")


def info_nce(answer):
    import torch

    g = torch.Generator().manual_seed(2)
    a, b = (torch.randn(6, 5, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)

    def brute(unit=True, s=7.0):
        rows = columns = 0.0
        x = [[(a[i] @ b[j] / (a[i].norm() * b[j].norm() if unit else 1)).item() * s for j in range(6)] for i in range(6)]
        for i in range(6):
            rows -= x[i][i] - math.log(sum(math.exp(x[i][j]) for j in range(6)))
            columns -= x[i][i] - math.log(sum(math.exp(x[j][i]) for j in range(6)))
        return rows / 6, columns / 6

    rows, columns = brute()
    got = answer(a, b, scale)
    if isinstance(got, torch.Tensor) and got.ndim == 0:
        value = got.item()
        near = lambda v: abs(value - v) < 1e-6  # noqa: E731
        right(not near(rows), "Only the rows are counted: each picture picks a caption. Add the columns, where each caption picks a picture, and halve.")
        right(not near(columns), "Only the columns are counted: each caption picks a picture. Add the rows, and halve.")
        right(not near(rows + columns), "That is the sum of the two directions; the loss is their mean.")
        right(not near((rows + columns) / 2 * 6), "Average over the batch instead of summing.")
        right(not near(sum(brute(unit=False)) / 2), "The embeddings are not scaled to length one, so the loss could fall by making vectors longer.")
        right(not near(sum(brute(s=1 / 7)) / 2), "`scale` is 1/τ: multiply by it.")
        right(not near(sum(brute(s=1.0)) / 2), "`scale` is not used.")
    same(got, torch.tensor((rows + columns) / 2, dtype=torch.float64), "the loss", "Compare with the formula above, term by term.", tol=1e-9)
    needs_grad(got, {"z_image": a, "z_text": b, "scale": scale}, "the loss")


def recall_at_k(answer):
    import torch

    s = torch.randn(40, 40, generator=torch.Generator().manual_seed(3)) + 1.5 * torch.eye(40)
    for k in (1, 3, 10):
        hits = [i in sorted(range(40), key=lambda j: -s[i, j])[:k] for i in range(40)]
        columns = [i in sorted(range(40), key=lambda j: -s[j, i])[:k] for i in range(40)]
        got = answer(s, k)
        right(isinstance(got, float), f"recall_at_k should return a float, but it returns a {type(got).__name__}: use .item().")
        if abs(got - sum(hits) / 40) > 1e-6:
            right(abs(got - sum(columns) / 40) > 1e-6, "That is the recall of the columns; each row is a query.")
            right(abs(got * 40 - sum(hits)) > 1e-6 and got <= 1, "Return a share between 0 and 1, not a count.")
            raise Wrong(
                f"R@{k} of a random matrix should be {sum(hits) / 40:.3f}, but it is {got:.3f}. Is the own entry counted among its rivals, or one rank forgotten?"
            )
    right(answer(torch.zeros(8, 8), 1) == 0.0, "A matrix of zeros says nothing, yet scores above 0: a tie must count as a loss (>= instead of >).")


def class_vectors(answer):
    import torch

    g = torch.Generator().manual_seed(4)
    table = {w: torch.nn.functional.normalize(torch.randn(6, generator=g), dim=0) for w in "abcdef"}

    def encode_text(captions):
        if isinstance(captions, str):
            raise Wrong("encode_text takes a list of strings; it was given one string.")
        return torch.stack([table[c] for c in captions])

    prompts = [["a", "b", "c"], ["d"], ["e", "f"]]
    means = [sum(table[w] for w in p) / len(p) for p in prompts]
    want = torch.stack([m / m.norm() for m in means])
    got = answer(encode_text, prompts)
    if isinstance(got, torch.Tensor) and got.shape == want.shape:
        right(
            not torch.allclose(got, torch.stack(means)), "The means are not scaled back to length one: classes with varied prompts would be at a disadvantage."
        )
    same(got, want, "the class vectors", "One row per class: mean over its prompts, then length one.")
