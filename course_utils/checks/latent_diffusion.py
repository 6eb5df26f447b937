"""Checks of lesson 2.4 (latent diffusion): pixel by pixel, position by position, and by counting."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..exercises import agree, right, same, same_learning

HINTS = {
    "gradient_loss": [
        "What is the slope between two neighbouring pixels? Which pixels have no right neighbour?",
        "x[..., 1:] - x[..., :-1] is the slope to the right; the slope downwards uses the axis before. Compare slopes of y with slopes of x, sign included.",
        "With e = y - x, the two terms are (e[..., 1:] - e[..., :-1]).abs().mean() and the same along the other axis.",
    ],
    "latent_scale": [
        "If all numbers have standard deviation s, what must they be multiplied by to have 1?",
        "One number for everything: examples, channels and positions together.",
        "z.std() without arguments is the standard deviation of all numbers; return one over it.",
    ],
    "cross_attention": [
        "Who asks, and who answers? Which of the two has N rows, which T?",
        "h.unflatten(-1, (heads, -1)).transpose(1, 2) gives (B, heads, N, d). The softmax runs over the words, the last axis of q @ kᵀ / √d.",
        "Cut x @ w_q, c @ w_k and c @ w_v into heads; share = softmax(q @ k.transpose(-1, -2) / √d, -1); then (share @ v).transpose(1, 2).flatten(2).",
    ],
    "SpatialTransformer": [
        "Three branches, one after the other, each with its own LayerNorm, each added to what went in. What shape do attention and Linear want, and what shape do convolutions?",
        "self.proj_in(self.norm(x)).flatten(2).transpose(1, 2) has shape (B, H·W, C). At the end go back: transpose, reshape to x.shape, proj_out, and add x.",
        "h = h + self.attn1(self.norm1(h)); h = h + self.attn2(self.norm2(h), context); value, gate = self.expand(self.norm3(h)).chunk(2, -1); h = h + self.shrink(value * F.gelu(gate)).",
    ],
    "drop_captions": [
        "How many random numbers do you need: one for a word, one for an example, or one for the batch?",
        "torch.rand(len(c), generator=generator) < p says which examples lose their caption. torch.where takes one thing or the other and leaves both untouched.",
        "torch.where(drop[:, None, None], none, c), with drop on the device of c.",
    ],
    "guide": [
        "Start at the answer without text, and walk towards the answer with text.",
        "w = 0 must give `without`, w = 1 must give `with_text`, and w = 2 goes just as far again.",
        "The step from one to the other is with_text - without; take w of it.",
    ],
}


def _slopes(p, down):
    """All differences to the right (or downwards) neighbour, pair by pair."""
    H, W = p.shape[-2:]
    pairs = [((i, j), (i + down, j + 1 - down)) for i in range(H - down) for j in range(W - 1 + down)]
    return torch.stack([p[..., b[0], b[1]] - p[..., a[0], a[1]] for a, b in pairs])


def _by_slopes(f, axes=(0, 1)):
    """A loss: the sum over the two directions of the mean of f(slopes of y, slopes of x)."""
    return lambda y, x: sum(f(_slopes(y, d), _slopes(x, d)).mean() for d in axes)


def gradient_loss(answer):
    l1 = lambda a, b: (a - b).abs()
    want = _by_slopes(l1)
    suspects = [
        ("only the horizontal slopes were compared.", _by_slopes(l1, (0,))),
        ("only the vertical slopes were compared.", _by_slopes(l1, (1,))),
        ("this is the mean of the two kinds: the exercise asks for their sum.", lambda y, x: want(y, x) / 2),
        ("the slopes lost their sign before they were compared.", _by_slopes(lambda a, b: (a.abs() - b.abs()).abs())),
        ("the errors were squared: absolute values are wanted.", _by_slopes(lambda a, b: (a - b).square())),
        ("the errors were summed: their mean is wanted.", lambda y, x: sum(l1(_slopes(y, d), _slopes(x, d)).sum() for d in (0, 1))),
        ("this is the plain L1 distance of the pictures, not of their slopes.", lambda y, x: (y - x).abs().mean()),
        (
            "the last column and the first are no neighbours: nothing wraps around at the border.",
            lambda y, x: sum(((y - x) - (y - x).roll(1, k)).abs().mean() for k in (-1, -2)),
        ),
        (
            "all slopes were averaged together: each direction has its own mean.",
            lambda y, x: 2 * torch.cat([l1(_slopes(y, d), _slopes(x, d)).flatten() for d in (0, 1)]).mean(),
        ),
    ]

    def case(*shape, dtype=torch.float64):
        return lambda g: {k: torch.randn(shape, generator=g, dtype=dtype) for k in "yx"}

    cases = [case(2, 3, 4, 7), case(1, 1, 2, 3), case(3, 2, 9, 2), case(2, 3, 4, 7, dtype=torch.float32)]
    agree(answer, want, cases, what="the loss", grad=("y", "x"), tol=1e-6, suspects=suspects)


def latent_scale(answer):
    def brute(z, power=0.5, centred=True):
        numbers = z.double().flatten()
        mean = numbers.sum() / len(numbers) if centred else 0.0
        return (1 / ((numbers - mean).square().sum() / (len(numbers) - 1)) ** power).to(z.dtype)

    suspects = [
        ("this is the standard deviation itself: latents are multiplied by the scale.", lambda z: 1 / brute(z)),
        ("the mean was not subtracted: this is one over the root mean square.", lambda z: brute(z, centred=False)),
        ("this is one over the variance.", lambda z: brute(z, 1.0)),
        ("this averages the scales of the channels: all numbers together have one standard deviation.", lambda z: (1 / z.std((0, 2, 3))).mean()),
        ("this averages the scales of the examples: all numbers together have one standard deviation.", lambda z: (1 / z.std((1, 2, 3))).mean()),
        ("this averages the standard deviations of the channels before it inverts.", lambda z: 1 / z.std((0, 2, 3)).mean()),
        ("each channel lost its own mean: all numbers together have one mean.", lambda z: 1 / z.var((0, 2, 3)).mean().sqrt()),
    ]

    def case(*shape, dtype=torch.float32, size=1.0):
        spread = torch.linspace(0.5, 6.0, shape[1], dtype=dtype)[:, None, None]
        share = torch.linspace(0.3, 2.0, shape[0], dtype=dtype)[:, None, None, None]
        middle = torch.linspace(-3.0, 6.0, shape[1], dtype=dtype)[:, None, None]
        return lambda g: {"z": size * (middle + spread * share * torch.randn(shape, generator=g, dtype=dtype))}

    cases = [case(20, 4, 6, 5), case(9, 3, 4, 7, dtype=torch.float64), case(20, 4, 6, 5, size=0.01)]
    agree(answer, brute, cases, what="the scale", tol=1e-3, suspects=suspects)
    right(isinstance(answer(torch.randn(3, 2, 4, 5)), torch.Tensor), "the scale is right, but it is a plain number: leave it a tensor, without .item().")
    z = 3 * torch.randn(50, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    same((z * answer(z)).std(), torch.tensor(1.0), "the standard deviation of z times the scale", tol=1e-3)


def _read(shrink=None, over="words", interleaved=False, one_head=False, swapped=False):
    """Cross-attention one example, one head, one pair of position and word at a time."""

    def attend(x, c, w_q, w_k, w_v, heads):
        heads = 1 if one_head else heads
        D, T = w_q.shape[1], c.shape[1]
        d, out = D // heads, []
        scale = math.sqrt(shrink(D, d)) if shrink else math.sqrt(d)
        for b in range(len(x)):
            parts = []
            for h in range(heads):
                own = slice(h, None, heads) if interleaved else slice(h * d, (h + 1) * d)
                q, k, v = ((a[b] @ w)[:, own] for a, w in ((x, w_q), (c, w_v if swapped else w_k), (c, w_k if swapped else w_v)))
                e = torch.stack([torch.stack([(q[n] * k[t]).sum() / scale for t in range(T)]) for n in range(len(q))]).exp()
                parts.append(e / e.sum(1 if over == "words" else 0, keepdim=True) @ v)
            out.append(torch.stack(parts, -1).flatten(1) if interleaved else torch.cat(parts, -1))
        return torch.stack(out)

    return attend


def _without_padding(x, c, w_q, w_k, w_v, heads):
    """Cross-attention that reads only the words that are not zero."""
    used = [row[row.abs().sum(-1) > 0] for row in c]
    return torch.cat([_read()(x[b : b + 1], words[None], w_q, w_k, w_v, heads) for b, words in enumerate(used)])


def cross_attention(answer):
    suspects = [
        ("the scores were not divided by the root of d.", _read(lambda D, d: 1.0)),
        ("the scores were divided by the root of D: each head has only d = D / heads numbers.", _read(lambda D, d: D)),
        ("the scores were divided by d, not by its root.", _read(lambda D, d: d * d)),
        ("the softmax runs over positions: each position shares itself among the words.", _read(over="positions")),
        ("the heads are interleaved: each takes d neighbouring numbers.", _read(interleaved=True)),
        ("this is one head of width D: q, k and v were not cut into heads.", _read(one_head=True)),
        ("labels and contents are swapped: w_k makes the labels, w_v the contents.", _read(swapped=True)),
    ]

    def case(B, N, T, D, E, heads, dtype=torch.float64, size=1.0, padding=0):
        shapes = {"x": (B, N, D), "c": (B, T, E), "w_q": (D, D), "w_k": (E, D), "w_v": (E, D)}

        def draw(g):
            given = {k: torch.randn(s, generator=g, dtype=dtype) / (1 if len(s) == 3 else 2) for k, s in shapes.items()}
            given["x"] *= size
            given["c"][:, T - padding :] = 0  # rows of zeros, as after <end>
            return given | {"heads": heads}

        return draw

    suspects.append(("rows of zeros were left out: they have score 0 and take their share.", _without_padding))
    grad = ("x", "c", "w_q", "w_k", "w_v")
    cases = [case(2, 5, 3, 12, 7, 3), case(1, 1, 4, 6, 5, 2), case(3, 4, 1, 6, 9, 1), case(2, 3, 6, 10, 4, 2, padding=2), case(1, 4, 3, 6, 5, 2, size=12.0)]
    agree(answer, _read(), cases, what="what the positions read", grad=grad, tol=1e-9, suspects=suspects)
    agree(answer, _read(), case(2, 5, 3, 12, 7, 3, torch.float32), what="what the positions read, in single precision", tol=1e-4)


def _transformer(norms=True, residual=True, order=(0, 1, 2), act=F.gelu, swap=False, outer=True, context=True):
    """The block written with functions alone, from the layers of ``block``; the switches build the usual mistakes."""

    def attention(layer, x, c):
        q, k, v = (w.weight @ a.transpose(1, 2) for w, a in ((layer.to_q, x), (layer.to_k, c), (layer.to_v, c)))  # (B, D, N or T)
        d = q.shape[1] // layer.heads
        heads = [
            ((q[:, s].transpose(1, 2) @ k[:, s]) / math.sqrt(d)).softmax(-1) @ v[:, s].transpose(1, 2)
            for s in (slice(i * d, i * d + d) for i in range(layer.heads))
        ]
        return layer.to_out(torch.cat(heads, -1))

    def run(block, x, words):
        B, C, H, W = x.shape
        h = F.conv2d(block.norm(x), block.proj_in.weight, block.proj_in.bias).reshape(B, C, H * W).permute(0, 2, 1)
        norm = lambda n, y: n(y) if norms else y
        mlp = block.expand, block.shrink

        def gated(y):
            a, b = mlp[0](y).split(4 * C, -1)
            return mlp[1](b * act(a) if swap else a * act(b))

        branches = [
            lambda y: attention(block.attn1, norm(block.norm1, y), norm(block.norm1, y)),
            lambda y: attention(block.attn2, norm(block.norm2, y), words if context else norm(block.norm2, y)),
            lambda y: gated(norm(block.norm3, y)),
        ]
        for i in order:
            h = branches[i](h) + (h if residual else 0)
        h = F.conv2d(h.permute(0, 2, 1).reshape(B, C, H, W), block.proj_out.weight, block.proj_out.bias)
        return x + h if outer else h

    return run


def SpatialTransformer(answer):
    g = torch.Generator().manual_seed(7)
    suspects = [
        ("the input is not added to the block's output: the whole block is a residual branch, too.", _transformer(outer=False)),
        ("the branches replace h instead of being added to it.", _transformer(residual=False)),
        ("a LayerNorm is missing before the branches.", _transformer(norms=False)),
        ("cross-attention comes before self-attention.", _transformer(order=(1, 0, 2))),
        ("the MLP comes first.", _transformer(order=(2, 0, 1))),
        ("the MLP is missing.", _transformer(order=(0, 1))),
        ("the second attention never reads the words.", _transformer(order=(0, 2))),
        ("self-attention is missing.", _transformer(order=(1, 2))),
        ("value and gate are swapped: the second half goes through the GELU.", _transformer(swap=True)),
        ("the gate goes through a SiLU, not a GELU.", _transformer(act=F.silu)),
    ]
    for B, C, H, W, E, T, dtype in ((2, 16, 3, 5, 6, 4, torch.float64), (3, 32, 2, 2, 7, 1, torch.float64), (1, 16, 3, 5, 6, 4, torch.float32)):
        block = answer(C, E, groups=8, head_dim=8).to(dtype)
        right(isinstance(block, nn.Module), "the block should stay an nn.Module.")
        with torch.no_grad():
            for name, p in block.named_parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.4 + (1 if "norm" in name and "weight" in name else 0))
        case = lambda g: {"x": torch.randn(B, C, H, W, generator=g, dtype=dtype), "context": torch.randn(B, T, E, generator=g, dtype=dtype)}
        bound = [(m, lambda x, c, w=w: w(block, x, c)) for m, w in suspects]
        tol = 1e-9 if dtype == torch.float64 else 2e-4
        agree(block, lambda x, c: _transformer()(block, x, c), case, what="the block's output", grad=("x", "context"), tol=tol, suspects=bound)
        given = case(torch.Generator().manual_seed(1)).values()
        same_learning(block, block(*given), _transformer()(block, *given), "the block's output", tol=10 * tol)


def drop_captions(answer):
    c = torch.arange(4000 * 3 * 2, dtype=torch.float32).reshape(4000, 3, 2) + 1
    none = -torch.arange(6, dtype=torch.float32).reshape(3, 2) - 1
    seeded = lambda n: torch.Generator().manual_seed(n)
    got = answer(c, none, 0.3, seeded(4))
    same(got if not isinstance(got, torch.Tensor) or got.shape != c.shape or got.dtype != c.dtype else c, c, "the words")  # type and shape only
    is_none, is_own = (got == none).flatten(1), (got == c).flatten(1)
    right(not (got == 0).all(2).any(), "dropped words became zeros: put `none` there, the states of the empty caption, which has a <start> and an <end>.")
    right(bool((is_none | is_own).all()), "some words are neither the caption's nor the empty caption's.")
    dropped = is_none.all(1)
    share = dropped.float().mean().item()
    right(bool((dropped | is_own.all(1)).all()), "single words were dropped: drop all words of an example, or none of them.")
    right(share not in (0.0, 1.0), "all examples were treated alike: draw one random number for each.")
    right(abs(share - 0.7) > 0.05, "with p = 0.3, about 70 % of the captions were dropped: is the comparison the wrong way round?")
    right(abs(share - 0.3) < 0.05, f"with p = 0.3, {share:.0%} of the captions were dropped.")
    right(abs(share - 0.3) > 1e-9 or not _evenly(dropped), "the dropped examples stand at regular places: each should be decided by chance.")
    again, other = answer(c, none, 0.3, seeded(4)), answer(c, none, 0.3, seeded(5))
    right(torch.equal(got, again), "two calls with the same seed differ: pass generator=generator to torch.rand.")
    right(not torch.equal(got, other), "two calls with different seeds agree: the random numbers do not come from the generator.")
    for p in (0.1, 0.8):
        share = (answer(c, none, p, seeded(6)) == none).flatten(1).all(1).float().mean().item()
        right(abs(share - p) < 0.05, f"with p = {p}, {share:.0%} of the captions were dropped.")
    right(torch.equal(answer(c[:50], none, 0.0, seeded(7)), c[:50]), "with p = 0 no caption may be dropped.")
    right(torch.equal(answer(c[:50], none, 1.0, seeded(7)), none.expand(50, 3, 2)), "with p = 1 every caption is dropped.")
    share = (answer(c, none, generator=seeded(8)) == none).flatten(1).all(1).float().mean().item()
    right(0.07 < share < 0.13, f"without p it should be 0.1; {share:.0%} were dropped.")
    right(torch.equal(answer(c, none, generator=seeded(8)), answer(c, none, 0.1, seeded(8))), "without p the result is not that of p = 0.1.")
    _each_by_chance(answer, c, none, dropped, seeded)
    _at_the_threshold(answer, c[:40], none, seeded)
    c, none = c[:40].double().requires_grad_(), none.double().requires_grad_()
    kept = answer(c, none, 0.3, seeded(9))
    right(kept.requires_grad, "gradients must still reach the captions that were kept.")
    gone = (kept == none).flatten(1).all(1)
    for name, x, want in (("c", c, (~gone).double()[:, None, None].expand(40, 3, 2)), ("none", none, gone.sum().double().expand(3, 2))):
        grad = torch.autograd.grad(kept.sum(), x, retain_graph=True, allow_unused=True)[0]
        right(
            grad is not None and torch.equal(grad, want),
            f"the words are right, but the gradient of {name} is not: each word that is passed on has the gradient 1.",
        )


def _each_by_chance(answer, c, none, dropped, seeded):
    """Every example is decided alone: no place, no neighbour, no fixed number of them, and other ones at the next call."""
    early, late = (half.float().mean().item() for half in dropped.chunk(2))
    right(abs(early - late) < 0.1, f"of the first half {early:.0%} were dropped, of the second {late:.0%}: the place in the batch must not matter.")
    both = (dropped[1:] & dropped[:-1]).float().mean().item()
    right(abs(both - 0.09) < 0.03, f"of neighbours, {both:.0%} were dropped together, where chance makes it 9 %: draw one number for each example.")
    counts = {int((answer(c[:20], none, 0.3, seeded(n)) == none).flatten(1).all(1).sum()) for n in range(20, 32)}
    right(len(counts) > 1, "each call drops the same number of examples: each example should be decided alone, by its own number.")
    one = seeded(3)
    first, second = answer(c[:400], none, 0.3, one), answer(c[:400], none, 0.3, one)
    right(not torch.equal(first, second), "a second call with the same generator drops the same examples again: take the next numbers of the generator.")


def _at_the_threshold(answer, c, none, seeded):
    """An example whose random number equals p keeps its caption; asked only of answers that draw their numbers as the exercise says."""
    u = torch.rand(len(c), generator=seeded(11))
    dropped = lambda p: (answer(c, none, p, seeded(11)) == none).flatten(1).all(1)
    if all(torch.equal(dropped(p), u < p) for p in (0.25, 0.5, 0.75)):
        right(torch.equal(dropped(u[3].item()), u < u[3]), "an example whose number equals p was dropped: only those below it are.")


def _evenly(dropped):
    places = dropped.nonzero().flatten()
    return len(places) > 2 and len(set((places[1:] - places[:-1]).tolist())) == 1


def guide(answer):
    def brute(a, b, w):
        flat = [(1 - w) * q + w * p for p, q in zip(a.flatten(), b.flatten())]
        return torch.stack(flat).reshape(a.shape)

    suspects = [
        ("with and without text are swapped.", lambda a, b, w: a + w * (b - a)),
        ("this is Ho & Salimans' own count, in which 0 means no guidance: here 1 does.", lambda a, b, w: (1 + w) * a - w * b),
        ("this starts at the answer with text: w = 0 should give the answer without.", lambda a, b, w: a + w * (a - b)),
    ]
    for shape, dtype in (((3, 4, 2, 2), torch.float64), ((2, 5), torch.float32)):
        for w in (3.0, 7.5, 1.0, 0.0, -0.5, 2):
            case = lambda g: {k: torch.randn(shape, generator=g, dtype=dtype) for k in ("with_text", "without")} | {"w": w}
            use = suspects if w not in (0.0, 1.0) else []
            agree(
                answer,
                brute,
                case,
                what=f"the guided answer at w = {w:g}",
                grad=("with_text", "without"),
                tol=1e-12 if dtype == torch.float64 else 1e-5,
                suspects=use,
            )
