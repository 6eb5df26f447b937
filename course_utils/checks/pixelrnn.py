"""Checks of lesson 2.1 (PixelRNN): each computes its own answer with loops, one pixel or one row at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..exercises import Wrong, agree, right, same, same_learning

HINTS = {
    "log_likelihood": [
        "What does a white pixel contribute, and what a black one? Which of the two is safe to compute when the logit is 200?",
        "F.binary_cross_entropy_with_logits(logits, x, reduction='none') is minus the logarithm, pixel by pixel, (B, 1, H, W).",
        "Minus that, flattened behind the batch and summed: .flatten(1).sum(1).",
    ],
    "causal_mask": [
        "Which whole rows are the past? Which part of the middle row?",
        "The centre is at row kh // 2 and column kw // 2. Start from zeros and set the rows above it first.",
        "mask[: kh // 2] = 1; then mask[kh // 2, : kw // 2] = 1; and for kind B the centre, too.",
    ],
    "RowLSTM": [
        "What is computed for the whole picture at once, and what has to wait for the row above? Only the state has to wait.",
        "Before the loop: e = self.first(...) and self.i2s(e), which is (B, 4D, H, W). In the loop, row r: add self.s2s(h), with h of the row above, and take one lstm step over axis 1.",
        "h = c = zeros (B, D, W); for r in range(H): h, c = lstm(entering[:, :, r] + self.s2s(h), c, 1); keep every h; at the end self.head(e + torch.stack(kept, 2)).",
    ],
    "skew": [
        "Where does row r begin in the result, and how many zeros stand before it?",
        "With a loop: out of zeros, (..., H, H + W - 1), and out[..., r, r : r + W] = x[..., r, :].",
        "Without: F.pad(x, (0, H)), reshape to (..., H * (W + H)), keep the first H * (W + H - 1) numbers, reshape to rows of W + H - 1.",
    ],
    "sample": [
        "In which order are pixels asked for, and what must the network see when it is asked?",
        "(~known).nonzero().tolist() lists (row, column) in reading order. The network must see the pixels drawn so far, so write into x at once.",
        "logit = net(context(net, x, row))[:, 0, -1, column] is (B,); the pixel is 1 where u[:, 0, row, column] < (logit / temperature).sigmoid().",
    ],
}


def log_likelihood(answer):
    def brute(a, x, sign=1.0, base=1.0, reduce=lambda e: e.flatten(1).sum(1)):
        white, black = -torch.log1p(torch.exp(-a)), -torch.log1p(torch.exp(a))
        return sign * reduce(torch.where(x > 0.5, white, black)) / base

    suspects = [
        ("the sign is turned: log p(x) is never above 0, cross-entropy is its negative.", lambda a, x: brute(a, x, sign=-1.0)),
        ("the pixels' terms were averaged: they must be added.", lambda a, x: brute(a, x, reduce=lambda e: e.flatten(1).mean(1))),
        ("these are bits: nats need the natural logarithm.", lambda a, x: brute(a, x, base=math.log(2))),
        ("one number came out for the whole batch: each picture has its own.", lambda a, x: brute(a, x, reduce=lambda e: e.sum())),
        ("one number came out for the whole batch: each picture has its own.", lambda a, x: brute(a, x, reduce=lambda e: e.flatten(1).sum(1).mean())),
        ("black and white are exchanged.", lambda a, x: brute(a, 1 - x)),
    ]

    def case(*shape, dtype=torch.float64):
        def draw(g):
            x = torch.bernoulli(torch.full(shape, 0.4), generator=g).to(dtype)
            return {"logits": 3 * torch.randn(shape, generator=g, dtype=dtype), "x": x}

        return draw

    for tol, cases in ((1e-9, [case(3, 1, 4, 5), case(2, 1, 3, 2), case(1, 1, 1, 1)]), (1e-5, [case(3, 1, 4, 5, dtype=torch.float32)])):
        agree(answer, brute, cases, what="log p(x)", grad=("logits",), tol=tol, suspects=suspects)
    for sign in (1, -1):
        far = sign * torch.tensor([200.0, 200.0]).reshape(1, 1, 1, 2)
        same(answer(far, torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)), torch.tensor([-200.0]), f"log p(x) at logits of {200 * sign}")


def causal_mask(answer):
    for kh, kw in ((3, 3), (7, 7), (1, 3), (5, 3), (3, 7), (1, 1)):
        for kind in ("A", "B"):
            got = answer(kind, kh, kw)
            want = torch.tensor([[float(r * kw + c < kh // 2 * kw + kw // 2 + (kind == "B")) for c in range(kw)] for r in range(kh)])
            if isinstance(got, torch.Tensor) and got.shape == want.shape and got.dtype == want.dtype:
                centre = got[kh // 2, kw // 2].item()
                right(kind == "B" or centre == 0, "mask A shows the centre: each pixel would be shown to itself.")
                right(kind == "A" or centre == 1, "mask B hides the centre, which it should show.")
                right(not got[kh // 2, kw // 2 + 1 :].any(), "pixels to the right of the centre are shown: they are the future.")
                right(not got[kh // 2 + 1 :].any(), "rows below the centre are shown: they are the future.")
                right(bool(got[: kh // 2].all()), "part of the rows above the centre is hidden: they are the past, all of them, to the right as well.")
                right(bool(got[kh // 2, : kw // 2].all()), "pixels to the left of the centre in its row are hidden: they are the past.")
            same(got, want, f"the mask {kind} of size {kh}×{kw}")
    first = answer("B", 3, 5)
    first.zero_()
    right(answer("B", 3, 5).any(), "a second call gives the first call's tensor again: make a new one each time.")


def _rows(net, x, plus=True, pairs=True, own=False, keep=True, forget=True, wide=True):
    """The Row LSTM with functions alone, gate by gate; the switches build the usual mistakes."""
    D = net.s2s.weight.shape[0] // 4
    e = F.conv2d(2 * x - 1 if pairs else x, net.first.weight * net.first.mask, net.first.bias, padding=net.first.padding)
    entering = F.conv2d(e, net.i2s.weight * net.i2s.mask, net.i2s.bias, padding=net.i2s.padding)
    h = c = torch.zeros_like(e[:, :, 0])
    out = []
    for r in range(e.shape[2]):
        gates = entering[:, :, r] + (F.conv1d(h, net.s2s.weight, padding=1) if wide else 0)
        i, f, g, o = (gates[:, k * D : (k + 1) * D] for k in range(4))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g) if forget else torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        out.append(h)
    states = torch.stack(out, 2)
    if own:  # the state of the row above instead of the row's own
        states = F.pad(states, (0, 0, 1, -1))
    return net.head(e + states if plus else states)


def RowLSTM(answer):
    suspects = [
        ("the features e are not added to the states before the head.", dict(plus=False)),
        ("black enters as 0: pixels should enter as -1 and 1.", dict(pairs=False)),
        ("the states are shifted by one row: row r of the sum holds the state after row r.", dict(own=True)),
        ("the memory c is lost from row to row.", dict(forget=False)),
        ("the state of the row above is not used.", dict(wide=False)),
    ]
    g = torch.Generator().manual_seed(7)
    for width, B, H, W in ((5, 3, 4, 6), (3, 2, 1, 5), (4, 1, 6, 1), (3, 2, 14, 3)):
        net = answer(width).double()
        right(isinstance(net, nn.Module), "RowLSTM should stay an nn.Module.")
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.5)
            if H > 10:
                net.i2s.bias += 3  # gates wide open: the memory adds up from row to row
                list(net.head.parameters())[-1].add_(40)  # and logits far from 0
        case = lambda g: {"x": torch.bernoulli(torch.full((B, 1, H, W), 0.4), generator=g).double()}
        bound = [(m, lambda x, how=how: _rows(net, x, **how)) for m, how in suspects] if H > 1 and W > 1 else []
        agree(net, lambda x: _rows(net, x), case, what=f"the logits of {H}×{W} pictures", grad=("x",), tol=1e-9, suspects=bound)
        x = case(torch.Generator().manual_seed(1))["x"]
        same_learning(net, net(x), _rows(net, x), "what the network says", tol=1e-8)


def skew(answer):
    def brute(x, step=1, start=0):
        *n, H, W = x.shape
        rows = [F.pad(x[..., r, :], (start + r * step if step > 0 else H - 1 - r, 0))[..., : H + W - 1] for r in range(H)]
        return torch.stack([F.pad(row, (0, H + W - 1 - row.shape[-1])) for row in rows], -2)

    suspects = [
        ("the rows move the other way: row 0 stays, row r moves right by r places.", lambda x: brute(x, step=-1)),
        ("row r moves by r + 1 places: row 0 should stay where it is.", lambda x: brute(x, start=1)),
        ("row r moves by 2 r places.", lambda x: brute(x, step=2)),
    ]
    case = lambda *shape, dtype=torch.float64: lambda g: {"x": torch.rand(shape, generator=g, dtype=dtype) + 1}
    cases = [case(4, 5), case(2, 3, 5, 3), case(3, 1), case(2, 4, 6, dtype=torch.float32), case(2, 1, 3, 4, 3)]
    agree(answer, brute, cases, what="the skewed picture", grad=("x",), tol=1e-9, suspects=suspects)
    agree(answer, brute, case(1, 4), what="the skewed picture of one row", tol=1e-9)
    whole = torch.arange(1, 13).reshape(3, 4)
    got = answer(whole)
    right(isinstance(got, torch.Tensor) and got.dtype == torch.int64, "whole numbers should stay whole numbers.")
    yes = answer(whole > 5)
    right(isinstance(yes, torch.Tensor) and yes.dtype == torch.bool, "a picture of True and False should stay one.")


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
        right(not torch.equal(got[..., 0, 0], 1 - want[..., 0, 0]), "the first pixel is black where it should be white, and white where it should be black.")
        once = (u < torch.tensor(0.3).sigmoid()).float()
        right(
            not torch.equal(got, once) or torch.equal(want, once),
            "every pixel was drawn from the empty page: the network never saw the pixels drawn before.",
        )
    same(got, want, "the sample", "Pixels are asked for in reading order, each after all earlier ones are written.")
    got = answer(net, u, start, upper)
    if isinstance(got, torch.Tensor) and got.shape == start.shape:
        right(torch.equal(got[..., upper], start[..., upper]), "known pixels must keep their values.")
    same(got, chain(u, start, upper, 1.0), "the completed picture", "Only pixels where known is False are drawn.")
    places = torch.tensor([1, 2, 7, 11, 12, 13, 18]), torch.arange(H * W)
    spots = torch.isin(places[1], places[0]).reshape(H, W)  # known pixels behind unknown ones
    same(
        answer(net, u, start, spots),
        chain(u, start, spots, 1.0),
        "the picture completed between scattered pixels",
        "Only pixels where known is False are drawn.",
    )
    same(answer(net, u, start), chain(u, start, nothing, 1.0), "the sample on a page that is given, but with nothing known")
    same(answer(net, u, temperature=0.3), chain(u, torch.zeros_like(u), nothing, 0.3), "the sample from nothing at temperature 0.3")
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

    class Even:
        rows = None

        def __call__(self, x):
            return torch.zeros_like(x)

    half = torch.full((2, 1, 2, 3), 0.5)
    right(not answer(Even(), half).any(), "where u equals the probability the pixel should be 0: it is 1 only where u is smaller.")
    double = answer(Even(), half.double())
    right(double.dtype == torch.float64, "the sample should have the dtype of u.")
    right(not answer(net, u).requires_grad, "the sampler should not collect gradients.")
