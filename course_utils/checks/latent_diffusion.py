"""Checks of lesson 2.4 (latent diffusion): pixel by pixel, position by position, and by counting."""

from __future__ import annotations

import math

import torch

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "gradient_loss": [
        "A slope is a pixel minus its neighbour: x[..., 1:] - x[..., :-1] is the slope to the right.",
        "The slope downwards is x[..., 1:, :] - x[..., :-1, :]. Compare slopes of y with slopes of x, sign included, and average each kind for itself.",
        "e = y - x; return (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean().",
    ],
    "latent_scale": [
        "If all numbers have standard deviation s, what must they be multiplied by to have 1?",
        "One number for everything: the standard deviation over examples, channels and positions together, without arguments.",
        "return 1 / z.std().",
    ],
    "cross_attention": [
        "Questions come from the positions, x @ w_q; labels and contents from the words, c @ w_k and c @ w_v.",
        "h.unflatten(-1, (heads, -1)).transpose(1, 2) gives (B, heads, N, d). The softmax runs over the words, the last axis of q @ kᵀ / √d.",
        "q, k, v = (h.unflatten(-1, (heads, -1)).transpose(1, 2) for h in (x @ w_q, c @ w_k, c @ w_v)); share = torch.softmax(q @ k.transpose(-1, -2) "
        "/ math.sqrt(q.shape[-1]), -1); return (share @ v).transpose(1, 2).flatten(2).",
    ],
    "drop_captions": [
        "One random number per example, not per word: torch.rand(len(c), generator=generator).",
        "torch.where(drop[:, None, None], none, c) takes none where drop is True and leaves c itself untouched.",
        "drop = torch.rand(len(c), generator=generator).to(c.device) < p; return torch.where(drop[:, None, None], none, c).",
    ],
    "guide": [
        "Start at the answer without text, and walk towards the answer with text.",
        "w = 0 must give `without`, w = 1 must give `with_text`, and w = 2 goes just as far again.",
        "return without + w * (with_text - without).",
    ],
}


def gradient_loss(answer):
    g = torch.Generator().manual_seed(1)
    y, x = torch.randn(2, 2, 3, 4, 6, generator=g)
    y.requires_grad_()

    def slopes(p, down):
        """All differences to the right (or downwards) neighbour, one by one."""
        H, W = p.shape[-2:]
        pairs = [((i, j), (i + down, j + 1 - down)) for i in range(H - down) for j in range(W - 1 + down)]
        return torch.stack([p[..., b[0], b[1]] - p[..., a[0], a[1]] for a, b in pairs])

    pairs = [(slopes(y.detach(), d), slopes(x, d)) for d in (0, 1)]
    across, along = ((a - b).abs().mean() for a, b in pairs)
    want = across + along
    got = answer(y, x)
    if isinstance(got, torch.Tensor) and got.ndim == 0:
        mistakes = {
            "only the horizontal slopes were compared: add the vertical ones.": across,
            "only the vertical slopes were compared: add the horizontal ones.": along,
            "this is the mean of the two: return their sum.": want / 2,
            "the slopes lost their sign before they were compared: subtract first, then take the absolute value.": sum(
                (a.abs() - b.abs()).abs().mean() for a, b in pairs
            ),
            "the errors were squared: take absolute values.": sum((a - b).square().mean() for a, b in pairs),
            "the errors were summed: take the mean.": sum((a - b).abs().sum() for a, b in pairs),
            "this is the plain L1 distance of the pictures: compare differences between neighbours.": (y - x).abs().mean(),
        }
        for sentence, value in mistakes.items():
            right(not torch.isclose(got, value.to(got), rtol=1e-5), sentence)
    same(got, want, "the loss", "Neighbours only: nothing wraps around at the border, and each kind of slope is averaged over its own number of pairs.")
    needs_grad(got, {"y": y}, "the loss")
    right(abs(float(answer(x + 0.3, x))) < 1e-5, "a picture that is only lighter has the same slopes: its loss should be 0.")


def latent_scale(answer):
    g = torch.Generator().manual_seed(2)
    spread = torch.tensor([0.5, 2.0, 3.0, 6.0])[:, None, None]
    z = 1.5 + spread * torch.randn(20, 4, 16, 16, generator=g)
    numbers = z.double().flatten()
    mean = sum(numbers.tolist()) / len(numbers)
    std = math.sqrt(sum((v - mean) ** 2 for v in numbers.tolist()) / len(numbers))
    got = answer(z)
    if isinstance(got, torch.Tensor) and got.ndim == 0:
        right(abs(got - std) > 1e-2, "this is the standard deviation itself: latents are multiplied by the scale, so return one over it.")
        rms = numbers.square().mean().sqrt()
        right(abs(got - 1 / rms) > 1e-3, "the mean was not subtracted: use the standard deviation, not the root mean square.")
        right(abs(got - 1 / std**2) > 1e-3, "this is one over the variance: take the root.")
        right(abs(got - (1 / z.std((0, 2, 3))).mean()) > 1e-3, "this averages over channels: take one standard deviation of all numbers together.")
    same(got, torch.tensor(1 / std), "the scale", "One number for all channels: their proportions should stay.", tol=1e-4)


def _read(x, c, weights, heads, shrink, over="words", interleaved=False):
    """Cross-attention one example, one head, one pair of position and word at a time."""
    (N, D), T = x.shape[1:], c.shape[1]
    out, d = torch.zeros_like(x), D // heads
    for b in range(len(x)):
        for h in range(heads):
            own = slice(h, None, heads) if interleaved else slice(h * d, (h + 1) * d)
            q, k, v = ((a[b] @ w)[:, own] for a, w in zip((x, c, c), weights))
            scores = [[math.exp((q[n] * k[t]).sum().item() / shrink) for t in range(T)] for n in range(N)]
            e = torch.tensor(scores, dtype=x.dtype)
            out[b, :, own] = e / e.sum(1 if over == "words" else 0, keepdim=True) @ v
    return out


def cross_attention(answer):
    g = torch.Generator().manual_seed(3)
    D, heads, shapes = 8, 2, ((2, 5, 8), (2, 3, 6), (8, 8), (6, 8), (6, 8))
    exact = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    x, c, *weights = (v.float() for v in exact)
    got, d = answer(x, c, *weights, heads), D // heads
    if isinstance(got, torch.Tensor) and got.shape == x.shape:
        mistakes = {
            "the scores were not divided by the root of d.": _read(x, c, weights, heads, 1.0),
            "the scores were divided by the root of D: each head has only d = D / heads numbers.": _read(x, c, weights, heads, math.sqrt(D)),
            "the softmax runs over positions: each position shares itself among the words.": _read(x, c, weights, heads, math.sqrt(d), over="positions"),
            "the heads are interleaved: each takes d neighbouring numbers, so unflatten to (heads, d).": _read(
                x, c, weights, heads, math.sqrt(d), interleaved=True
            ),
            "this is one head of width D: cut q, k and v into heads first.": _read(x, c, weights, 1, math.sqrt(D)),
        }
        for sentence, value in mistakes.items():
            right(not torch.allclose(got, value.to(got), atol=1e-5), sentence)
    what, help = "what the positions read", "Questions from x, labels and contents from c; softmax over the words."
    same(got, _read(x, c, weights, heads, math.sqrt(d)), what, help, 1e-5)
    x, c, *weights = exact
    same(answer(x, c, *weights, heads), _read(x, c, weights, heads, math.sqrt(d)), what, help, 1e-10)


def drop_captions(answer):
    c = torch.arange(4000 * 3 * 2, dtype=torch.float32).reshape(4000, 3, 2) + 1
    none, before = -torch.arange(6, dtype=torch.float32).reshape(3, 2) - 1, c.clone()
    got = answer(c, none, 0.3, torch.Generator().manual_seed(4))
    same(got if not isinstance(got, torch.Tensor) or got.shape != c.shape else c, c, "the words")  # type and shape only
    right(torch.equal(c, before), "the input was changed in place: the next epoch would find captions missing. Build a new tensor, with torch.where.")
    is_none, is_own = (got == none).flatten(1), (got == c).flatten(1)
    right(not (got == 0).all(2).any(), "dropped words became zeros: put `none` there, the states of the empty caption, which has a <start> and an <end>.")
    right(bool((is_none | is_own).all()), "some words are neither the caption's nor the empty caption's.")
    share = is_none.all(1).float().mean().item()
    right(bool((is_none.all(1) | is_own.all(1)).all()), "single words were dropped: drop all words of an example, or none of them.")
    right(share not in (0.0, 1.0), "all examples were treated alike: draw one random number for each.")
    right(abs(share - 0.7) > 0.05, "captions are dropped with probability 1 - p: is the comparison the wrong way round?")
    right(abs(share - 0.3) < 0.05, f"with p = 0.3, {share:.0%} of the captions were dropped.")
    again = answer(c, none, 0.3, torch.Generator().manual_seed(4))
    right(torch.equal(got, again), "two calls with the same seed differ: pass generator=generator to torch.rand.")
    right(torch.equal(answer(c[:50], none, 0.0), c[:50]), "with p = 0 no caption may be dropped.")


def guide(answer):
    g = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 3, 4, 2, 2, generator=g)
    for w in (3.0, 7.5, 1.0, 0.0):
        got = answer(a, b, w)
        if isinstance(got, torch.Tensor) and got.shape == a.shape and w > 1:
            right(not torch.allclose(got, a + w * (b - a), atol=1e-6), "with and without text are swapped.")
            right(
                not torch.allclose(got, (1 + w) * a - w * b, atol=1e-5),
                "this is Ho & Salimans' own count, in which 0 means no guidance: here 1 does. Start at `without`, not at `with_text`.",
            )
        want = torch.tensor([(1 - w) * q + w * p for p, q in zip(a.flatten().tolist(), b.flatten().tolist())]).reshape(a.shape)
        same(got, want, f"the guided answer at w = {w:g}", "w = 0 is the answer without text, w = 1 the one with it.")
    try:
        answer(a.double(), b.double(), 2)
    except Exception as e:
        raise Wrong(f"it stops in double precision, or when w is a whole number: {type(e).__name__}.") from e
