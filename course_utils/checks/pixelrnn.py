"""Checks of lesson 2.1 (PixelRNN): each computes its own answer with loops, one pixel at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "log_likelihood": [
        "A white pixel contributes log σ(a), a black one log(1 − σ(a)) = log σ(−a). Add them up for each picture.",
        "F.binary_cross_entropy_with_logits(logits, x, reduction='none') is minus that, pixel by pixel, (B, 1, H, W).",
        "return -F.binary_cross_entropy_with_logits(logits, x, reduction='none').flatten(1).sum(1)",
    ],
    "causal_mask": [
        "Start from zeros. Set whole rows first, then a part of the middle row.",
        "The centre is at row kh // 2 and column kw // 2. mask[: kh // 2] = 1 sets all rows above it.",
        "Then mask[kh // 2, : kw // 2] = 1, and for kind B also mask[kh // 2, kw // 2] = 1.",
    ],
    "skew": [
        "With a loop: out = zeros of shape (..., H, H + W - 1), and out[..., r, r : r + W] = x[..., r, :].",
        "Without: after padding each row has W + H numbers; reading the same line with rows of W + H - 1 lets each row start one place later than the one before.",
        "*n, H, W = x.shape; flat = F.pad(x, (0, H)).reshape(*n, H * (W + H)); return flat[..., : H * (W + H - 1)].reshape(*n, H, W + H - 1)",
    ],
    "sample": [
        "Loop over (~known).nonzero().tolist(): it lists (row, column) in reading order.",
        "Inside: logit = net(context(net, x, row))[:, 0, -1, column], which is (B,). The network must see the pixels drawn so far, so write into x at once.",
        "x[:, 0, row, column] = (u[:, 0, row, column] < (logit / temperature).sigmoid()).to(x.dtype)",
    ],
}


def log_likelihood(answer):
    g = torch.Generator().manual_seed(1)
    for shape, dtype in (((3, 1, 4, 5), torch.float32), ((2, 1, 3, 3), torch.float64)):
        a = (3 * torch.randn(shape, generator=g)).to(dtype).requires_grad_()
        x = torch.bernoulli(torch.full(shape, 0.4), generator=g).to(dtype)
        got = answer(a, x)
        want = torch.zeros(shape[0], dtype=dtype)
        for b in range(shape[0]):
            for v, pixel in zip(a[b].flatten().tolist(), x[b].flatten().tolist()):
                p = 1 / (1 + math.exp(-v))
                want[b] += math.log(p if pixel else 1 - p)
        if isinstance(got, torch.Tensor):
            n, flat = math.prod(shape[1:]), got.detach().double()
            right(got.ndim > 0, "one number for the whole batch: return one log-likelihood for each picture, shape (B,).")
            if got.shape == want.shape:
                right(not torch.allclose(flat, -want.double(), atol=1e-4), "the sign: log p(x) is never above 0. Binary cross-entropy is -log p.")
                right(not torch.allclose(flat * n, want.double(), atol=1e-3), "the pixels' terms must be added, not averaged.")
                right(not torch.allclose(flat * math.log(2), want.double(), atol=1e-3), "these are bits: use the natural logarithm.")
        same(got, want, "log p(x)", "Sum the log of σ(a) where x is 1 and of 1 - σ(a) where x is 0, over all pixels of a picture.")
        needs_grad(got, {"the logits": a}, "log p(x)")
    far = torch.full((1, 1, 1, 2), 200.0)
    got = answer(far, torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2))
    right(bool(torch.isfinite(got).all()), "a logit of 200 gives inf or nan: use F.logsigmoid or F.binary_cross_entropy_with_logits instead of log(sigmoid).")
    same(got, torch.tensor([-200.0]), "log p(x) at a logit of 200")


def causal_mask(answer):
    for kh, kw in ((3, 3), (7, 7), (1, 3), (5, 3)):
        for kind in ("A", "B"):
            got = answer(kind, kh, kw)
            want = torch.tensor([[float(r * kw + c < kh // 2 * kw + kw // 2 + (kind == "B")) for c in range(kw)] for r in range(kh)])
            if isinstance(got, torch.Tensor) and got.shape == want.shape and got.dtype == want.dtype:
                centre = got[kh // 2, kw // 2].item()
                right(kind == "B" or centre == 0, "mask A must hide the centre: otherwise each pixel is shown to itself.")
                right(kind == "A" or centre == 1, "mask B must show the centre.")
                right(not got[kh // 2, kw // 2 + 1 :].any(), "pixels to the right of the centre are the future: hide them.")
                right(not got[kh // 2 + 1 :].any(), "rows below the centre are the future: hide them.")
                right(bool(got[: kh // 2].all()), "rows above the centre are the past, all of them, to the right as well: show them.")
                right(bool(got[kh // 2, : kw // 2].all()), "pixels to the left of the centre in its row are the past: show them.")
            same(got, want, f"the mask {kind} of size {kh}×{kw}")


def skew(answer):
    g = torch.Generator().manual_seed(3)
    for shape in ((4, 5), (2, 3, 5, 3), (1, 4)):
        x = torch.rand(shape, generator=g) + 1
        H, W = shape[-2:]
        want = torch.zeros(*shape[:-1], H + W - 1)
        for r in range(H):
            want[..., r, r : r + W] = x[..., r, :]
        got = answer(x)
        if isinstance(got, torch.Tensor) and got.shape == want.shape and H > 1:
            right(
                not torch.equal(got, want.flip(-1)) and not torch.equal(got[..., 0, H - 1 :], x[..., 0, :]),
                "row 0 must not move: row r moves right by r places.",
            )
            right(bool((got == 0).sum() == (want == 0).sum()), "the places left free must hold 0: is something wrapped around?")
        same(got, want, "the skewed picture", "Row r of the result is r zeros, then row r of x, then zeros.")
    x = torch.rand(2, 3, 4, generator=g, requires_grad=True)
    needs_grad(answer(x), {"the input": x}, "the skewed picture")


def sample(answer):
    g = torch.Generator().manual_seed(4)
    H, W = 4, 5
    kernel = torch.randn(H * W, H * W, generator=g).tril(-1)

    def model(rows):
        """A logistic chain that answers for the rows it is shown, and counts what it is asked."""

        def net(x):
            net.calls += 1
            if x.shape[-1] != W or x.shape[-2] > H:
                raise Wrong(f"the network was shown {tuple(x.shape)}: show it context(net, x, row), whole rows.")
            n = x.shape[-2] * W
            return (x.flatten(1) @ kernel[:n, :n].T * 2 + 0.3).reshape(x.shape)

        net.rows, net.calls = rows, 0
        return net

    def chain(u, x, known, temperature):
        x = x.clone()
        for b in range(len(x)):
            flat, uniform = x[b].reshape(-1), u[b].reshape(-1)
            for i in range(H * W):
                if not known.reshape(-1)[i]:
                    a = (2 * float(kernel[i, :i] @ flat[:i]) + 0.3) / temperature
                    flat[i] = float(uniform[i] < 1 / (1 + math.exp(-a)))
        return x

    net = model(None)
    u, start = torch.rand(6, 1, H, W, generator=g), torch.bernoulli(torch.full((6, 1, H, W), 0.5), generator=g)
    nothing, upper = torch.zeros(H, W, dtype=torch.bool), (torch.arange(H * W) < 8).reshape(H, W)
    got, want = answer(net, u), chain(u, torch.zeros_like(u), nothing, 1.0)
    if isinstance(got, torch.Tensor) and got.shape == want.shape:
        right(bool(((got == 0) | (got == 1)).all()), "pixels must be 0 or 1, not probabilities.")
        right(not torch.equal(got, 1 - want) and not torch.equal(got[..., 0, 0], 1 - want[..., 0, 0]), "a pixel is white where u is *below* the probability.")
        once = (u < torch.tensor(0.3).sigmoid()).float()
        right(
            not torch.equal(got, once) or torch.equal(want, once),
            "every pixel was drawn from the empty page: write each pixel into x before the next is asked for.",
        )
    same(got, want, "the sample", "Pixels in reading order; each is asked for after all earlier ones are written.")
    before = start.clone()
    got = answer(net, u, start, upper)
    right(torch.equal(start, before), "the caller's x was changed: keep the line x = x.clone().")
    if isinstance(got, torch.Tensor) and got.shape == start.shape:
        right(torch.equal(got[..., upper], start[..., upper]), "known pixels must keep their values.")
    same(got, chain(u, start, upper, 1.0), "the completed picture", "Only pixels where known is False are drawn.")
    same(
        answer(net, u, start, upper, 0.3),
        chain(u, start, upper, 0.3),
        "the sample at temperature 0.3",
        "Divide the logits by the temperature, before the sigmoid.",
    )
    shown = SimpleNamespace(rows=[])

    class Watched:
        rows = 2

        def __call__(self, x):
            shown.rows.append(x.shape[-2])
            return torch.zeros_like(x)

    answer(Watched(), u)
    right(max(shown.rows) <= 2, "a network with rows = 2 was shown more than two rows: use context(net, x, row).")
