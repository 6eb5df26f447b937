"""Checks of lesson 2.8 (InstructPix2Pix): each computes its own answer with plain numbers, one example at a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "direction_similarity": [
        "Two differences, after minus before: one of the pictures, one of the captions.",
        "Then the cosine of the angle between them, for every row: the dot product divided by both lengths.",
        "return F.cosine_similarity(image_after - image_before, text_after - text_before, dim=-1).",
    ],
    "widen": [
        "Make a new nn.Conv2d with conv.in_channels + extra input channels and everything else as in conv; then fill it without gradients.",
        "Weights have shape (out, in, k, k): zero all of them, then copy the old ones into wide.weight[:, : conv.in_channels]. Don't forget the bias.",
        "wide = nn.Conv2d(conv.in_channels + extra, conv.out_channels, conv.kernel_size, conv.stride, conv.padding).to(conv.weight); with torch.no_grad(): "
        "wide.weight.zero_(); wide.weight[:, : conv.in_channels] = conv.weight; wide.bias.copy_(conv.bias); return wide.",
    ],
    "drop_conditions": [
        "Two masks of shape (B,): in which examples does the instruction go, in which the picture?",
        "The instruction goes for u < 2p, the picture for p <= u < 3p: between p and 2p both go.",
        "Give the masks the shape of what they choose from: no_picture[:, None, None, None] and no_words[:, None, None], "
        "then torch.where(mask, torch.zeros_like(picture), picture) and torch.where(mask, nothing, words).",
    ],
    "guide_both": [
        "Start at what is said without any condition, and add two differences.",
        "The first difference is what the picture adds to nothing; the second, what the instruction adds to the picture.",
        "return none + s_I * (picture - none) + s_T * (both - picture).",
    ],
}


def direction_similarity(answer):
    g = torch.Generator().manual_seed(1)
    for shape in ((5, 7), (3, 2)):
        a, b, s, t = torch.randn(4, *shape, generator=g)

        def cosine(u, v):
            return sum(x * y for x, y in zip(u, v)) / math.sqrt(sum(x * x for x in u) * sum(y * y for y in v))

        want = torch.tensor([cosine((b[i] - a[i]).tolist(), (t[i] - s[i]).tolist()) for i in range(len(a))])
        got = answer(a, b, s, t)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            right(not torch.allclose(got, -want, atol=1e-5), "one of the two directions points from after to before: both are after minus before.")
            ends = torch.tensor([cosine(b[i].tolist(), t[i].tolist()) for i in range(len(a))])
            right(
                not torch.allclose(got, ends, atol=1e-5), "this compares the edited picture with the edited caption: take the differences after - before first."
            )
            dots = ((b - a) * (t - s)).sum(1)
            right(not torch.allclose(got, dots, atol=1e-5), "this is the dot product: divide by the lengths of both differences.")
        same(got, want, "the direction similarity", "One number per row: the cosine between two differences.")


def widen(answer):
    g = torch.Generator().manual_seed(2)
    for extra, kernel, padding, stride, dtype in ((16, 3, 1, 1, torch.float32), (3, 1, 0, 1, torch.float64), (4, 3, 1, 2, torch.float32)):
        conv = nn.Conv2d(6, 5, kernel, stride, padding, dtype=dtype)
        with torch.no_grad():
            for p in conv.parameters():
                p.copy_(torch.randn(p.shape, generator=g))
        before = {k: v.clone() for k, v in conv.state_dict().items()}
        wide = answer(conv, extra)
        if not isinstance(wide, nn.Conv2d):
            raise Wrong(f"return an nn.Conv2d, not a {type(wide).__name__}.")
        if wide.weight.shape != (5, 6 + extra, kernel, kernel):
            raise Wrong(f"the weights should have shape {(5, 6 + extra, kernel, kernel)}, but they have {tuple(wide.weight.shape)}.")
        right(wide.padding == conv.padding and wide.stride == conv.stride, "stride and padding should be those of the old convolution.")
        right(wide.weight.dtype == dtype, "the new layer should have the dtype and the device of the old one: move it with .to(conv.weight).")
        x, more = torch.randn(2, 6, 8, 8, generator=g).to(dtype), torch.randn(2, extra, 8, 8, generator=g).to(dtype)
        want = F.conv2d(x, before["weight"], before["bias"], stride, padding)
        if torch.allclose(wide(torch.cat([more, x], 1)), want, atol=1e-4):
            raise Wrong("the new channels come first: the old ones are the first of the wide layer, the new ones follow.")
        right(wide.bias is not None and torch.equal(wide.bias, before["bias"]), "the bias is not the old one: copy it.")
        right(not wide.weight[:, 6:].any(), "the new weights are not zero: an arbitrary picture would disturb the base model.")
        same(wide(torch.cat([x, more], 1)), want, "what the wide layer gives", "With zero weights for the new channels it should equal the old layer.")
        out = wide(torch.cat([x, more], 1))
        right(wide.weight.requires_grad, "the new weights do not require a gradient: they could never learn.")
        grad = torch.autograd.grad(out.square().sum(), wide.weight)[0]
        right(grad[:, 6:].abs().max() > 0, "no gradient reaches the new weights.")
        with torch.no_grad():
            wide.weight.add_(1.0)
            wide.bias.add_(1.0)
        right(
            all(torch.equal(v, before[k]) for k, v in conv.state_dict().items()),
            "training the new layer changes the old one: copy the values, don't share them.",
        )


def drop_conditions(answer):
    g = torch.Generator().manual_seed(3)
    for p in (0.05, 0.2):
        u = torch.tensor([0.0, 0.5 * p, 0.999 * p, 1.001 * p, 1.5 * p, 2.001 * p, 2.9 * p, 3.001 * p, 0.7, 0.999])
        picture, words = torch.randn(len(u), 2, 3, 3, generator=g), torch.randn(len(u), 4, 5, generator=g, requires_grad=True)
        nothing = torch.randn(1, 4, 5, generator=g)
        kept = picture.clone(), words.detach().clone()
        got = answer(picture, words, nothing, u, p)
        if not (isinstance(got, (tuple, list)) and len(got) == 2):
            raise Wrong("return two things: the picture's latents and the words.")
        right(
            torch.equal(picture, kept[0]) and torch.equal(words.detach(), kept[1]), "the inputs were changed in place: the next epoch would find holes in them."
        )
        v = (u / p).tolist()
        want_picture = torch.stack([torch.zeros_like(x) if 1 <= r < 3 else x for x, r in zip(picture, v)])
        want_words = torch.stack([nothing[0] if r < 2 else x for x, r in zip(words, v)])
        if isinstance(got[0], torch.Tensor) and got[0].shape == want_picture.shape and isinstance(got[1], torch.Tensor) and got[1].shape == want_words.shape:
            gone = [bool((x == 0).all()) for x in got[0]]
            silent = [bool(torch.equal(x, nothing[0])) for x in got[1]]
            zero = [bool((x == 0).all()) for x in got[1]]
            right(not any(zero), "an instruction left out is the empty caption `nothing`, not zeros.")
            right(any(gone) or any(silent), "nothing was left out.")
            right(any(a and b for a, b in zip(gone, silent)), "there is no example without both: between p and 2p picture and instruction go together.")
            right(any(a and not b for a, b in zip(gone, silent)), "there is no example that loses the picture alone.")
            right(any(b and not a for a, b in zip(gone, silent)), "there is no example that loses the instruction alone.")
        same(got[0], want_picture, "the picture's latents", "They are zeros for p <= u < 3p.")
        same(got[1], want_words, "the words", "They are `nothing` for u < 2p.")
        needs_grad(got[1], {"the words": words}, "the words")


def guide_both(answer):
    g = torch.Generator().manual_seed(4)
    none, picture, both = torch.randn(3, 2, 4, 3, 3, generator=g, dtype=torch.float64)
    for s_I, s_T in ((1.5, 7.5), (1.0, 1.0), (0.0, 0.0), (1.2, 0.0), (0.0, 2.0)):
        got = answer(none, picture, both, s_I, s_T)
        want = (1 - s_I) * none + (s_I - s_T) * picture + s_T * both
        if isinstance(got, torch.Tensor) and got.shape == want.shape and s_I != s_T:
            swapped = (1 - s_T) * none + (s_T - s_I) * picture + s_I * both
            right(
                not torch.allclose(got, swapped), "the two scales have changed places: s_I goes with what the picture adds, s_T with what the instruction adds."
            )
            wide = none + s_I * (picture - none) + s_T * (both - none)
            right(s_T == 0 or not torch.allclose(got, wide), "the second difference starts from the picture alone, not from nothing: both - picture.")
        same(got, want, f"the guided output with s_I = {s_I:g}, s_T = {s_T:g}", "none + s_I (picture - none) + s_T (both - picture).", 1e-10)
