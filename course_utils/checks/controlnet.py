"""Checks of lesson 2.5 (ControlNet): pixel by pixel, with plain loops; the layers by what they do and what learns."""

from __future__ import annotations

import math

import torch

from ..exercises import Wrong, right, same

HINTS = {
    "sobel": [
        "One 3×3 kernel and its transpose are all you need; `convolve` does the rest.",
        "The kernel's right column is positive, so that brightness rising to the right gives a positive slope. Divide by 8.",
        "k = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8; return convolve(x, k), convolve(x, k.T).",
    ],
    "thin": [
        "For each pixel you need four neighbours: axis and diagonal ahead, axis and diagonal behind. `shifted(m, dy, dx)` takes a different offset for each pixel.",
        "The diagonal offset is (gy.sign(), gx.sign()). The axis offset is the same with one of the two set to 0: dy * steep and dx * ~steep, where steep = |gy| > |gx|.",
        "m = torch.hypot(gx, gy); w = min / max of the absolute components (clamp the divisor); for way in (1, -1): dy, dx = way * gy.sign(), way * gx.sign(); "
        "keep &= m >= (1 - w) * shifted(m, dy * steep, dx * ~steep) + w * shifted(m, dy, dx). Set keep to False on the border; return m * keep.",
    ],
    "hysteresis": [
        "Begin with the pixels that are both strong and weak, and let them grow, but only over weak pixels.",
        "One round: F.max_pool2d(grown[:, None].float(), 3, 1, 1)[:, 0] > 0, and with weak. A chain may be long: repeat until a round changes nothing.",
        "grown = weak & strong; while True: more = weak & (F.max_pool2d(grown[:, None].float(), 3, 1, 1)[:, 0] > 0); if torch.equal(more, grown): return grown; grown = more.",
    ],
    "zero_conv": [
        "nn.Conv2d with kernel size 1; only its start is special.",
        "torch.nn.init has a function that fills a parameter with zeros in place. Weight and bias, both still trainable.",
        "layer = nn.Conv2d(channels, channels, 1); nn.init.zeros_(layer.weight); nn.init.zeros_(layer.bias); return layer.",
    ],
    "steer": [
        "Two calls: first the ControlNet, then the U-Net.",
        "The ControlNet returns a list of tensors: multiply each by scale and pass the new list as control=.",
        "added = control(z, t, context, style, condition); return unet(z, t, context, style, control=[scale * a for a in added]).",
    ],
}


def _noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _slope(x, b, i, j, along_x):
    """One Sobel slope, pixel by pixel; the border pixels are repeated."""
    H, W = x.shape[1:]
    v = lambda i, j: x[b, min(max(i, 0), H - 1), min(max(j, 0), W - 1)]  # noqa: E731
    if along_x:
        return sum(w * (v(i + k, j + 1) - v(i + k, j - 1)) for k, w in ((-1, 1), (0, 2), (1, 1))) / 8
    return sum(w * (v(i + 1, j + k) - v(i - 1, j + k)) for k, w in ((-1, 1), (0, 2), (1, 1))) / 8


def sobel(answer):
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        x = _noise(2, 5, 6, seed=1, dtype=dtype)
        got = answer(x)
        if not (isinstance(got, (tuple, list)) and len(got) == 2):
            raise Wrong("return two tensors: the slope along x and the slope along y.")
        places = [(b, i, j) for b in range(2) for i in range(5) for j in range(6)]
        want = [torch.stack([_slope(x, *p, along_x) for p in places]).reshape(2, 5, 6) for along_x in (True, False)]
        for g, w, other, name in zip(got, want, want[::-1], ("x", "y")):
            if isinstance(g, torch.Tensor) and g.shape == w.shape and g.dtype == w.dtype:
                right(not torch.allclose(g, 8 * w), "the slopes are 8 times too large: divide the kernel by 8.")
                right(not torch.allclose(g, other), "x and y are exchanged: return the slope along x (to the right) first.")
                right(not torch.allclose(g, -w), f"the slope along {name} has the wrong sign: brightness that rises to the right, or downwards, is positive.")
            same(g, w, f"the slope along {name}", "Weights 1, 2, 1 over three rows (columns) of right minus left (lower minus upper).", tol)


def _crests(gx, gy, strict=False, corner=True, both=True):
    """Non-maximum suppression with loops over the pixels of one picture."""
    H, W = gx.shape
    m = [[math.hypot(gx[i][j], gy[i][j]) for j in range(W)] for i in range(H)]
    out = torch.zeros(H, W, dtype=torch.float64)
    for i in range(1, H - 1):
        for j in range(1, W - 1):
            x, y = gx[i][j].item(), gy[i][j].item()
            sx, sy = (x > 0) - (x < 0), (y > 0) - (y < 0)
            ay, ax = (sy, 0) if abs(y) > abs(x) else (0, sx)
            w = min(abs(x), abs(y)) / max(abs(x), abs(y), 1e-12) if corner else 0.0
            sides = [(1 - w) * m[i + k * ay][j + k * ax] + w * m[i + k * sy][j + k * sx] for k in ((1, -1) if both else (1,))]
            if all(m[i][j] > s if strict else m[i][j] >= s for s in sides):
                out[i, j] = m[i][j]
    return out


def thin(answer):
    gx, gy = _noise(2, 3, 9, 10, seed=2, dtype=torch.float64)
    gx[2], gy[2] = 1.0, 0.0  # a plateau: every pixel is as steep as its neighbours
    got = answer(gx, gy)
    brute = lambda **how: torch.stack([_crests(a, b, **how) for a, b in zip(gx, gy)])  # noqa: E731
    want = brute()
    if isinstance(got, torch.Tensor) and got.shape == want.shape:
        edge = got.clone()
        edge[:, 1:-1, 1:-1] = 0
        right(got.dtype != torch.bool, "return the length of the gradient on the crests, not only where they are.")
        right(edge.abs().max() == 0, "the outermost rows and columns must be 0: they have no neighbours on one side.")
        close = lambda other: torch.allclose(got.double(), other)  # noqa: E731
        right(not close(brute(strict=True)), "a pixel that is exactly as steep as a neighbour should stay: compare with >=.")
        right(not close(brute(both=False)), "compare with the pixel behind as well as with the one ahead.")
        right(not close(brute(corner=False)), "only the axis neighbours were used: mix in the diagonal one with weight w.")
        right(not close((want > 0).double()), "return the length of the gradient on the crests, not 1.")
        mirrored = torch.stack([_crests(a, -b) for a, b in zip(gx, gy)])
        right(not close(mirrored), "the step goes across the mirror image of the gradient: y points down, and dy has the sign of gy.")
    same(got, want, "the crests", "Ahead is (sign gy, sign gx) for the diagonal; the axis neighbour has one of the two set to 0.", 1e-9)
    single = answer(gx.float(), gy.float())
    same(single, want.float(), "the crests in single precision", "", 1e-4)
    zero = torch.zeros(1, 5, 5)
    same(answer(zero, zero), zero, "the crests of a flat picture", "Do you divide by a maximum that can be 0? Clamp it.")


def _flood(weak, strong, eight=True):
    """Flood fill of one picture with a stack."""
    H, W = weak.shape
    out, todo = torch.zeros(H, W, dtype=torch.bool), [(i, j) for i in range(H) for j in range(W) if weak[i, j] and strong[i, j]]
    while todo:
        i, j = todo.pop()
        if out[i, j]:
            continue
        out[i, j] = True
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                if (eight or a == 0 or b == 0) and 0 <= i + a < H and 0 <= j + b < W and weak[i + a, j + b]:
                    todo.append((i + a, j + b))
    return out


def hysteresis(answer):
    g = torch.Generator().manual_seed(3)
    weak = torch.rand(4, 24, 24, generator=g) < torch.tensor([0.42, 0.12, 0.4, 0.4])[:, None, None]
    strong = torch.rand(4, 24, 24, generator=g) < 0.03
    weak[3], strong[3] = False, False
    weak[3, 1:22:4], weak[3, 1:20, 23], weak[3, 3:22:4, 0] = True, True, False  # lines joined at the right end only: a long chain
    weak[2], strong[2], strong[3, 1, 0] = False, True, True
    got = answer(weak.clone(), strong.clone())
    want = torch.stack([_flood(a, b) for a, b in zip(weak, strong)])
    if isinstance(got, torch.Tensor) and got.shape == want.shape and got.dtype == torch.bool:
        near = torch.stack([_flood(a, b, eight=False) for a, b in zip(weak, strong)])
        right(not torch.equal(got, near), "diagonal neighbours count too: 8, not 4.")
        right(not torch.equal(got, weak), "all weak pixels were kept: only those joined to a strong one may stay.")
        right(not (got & ~weak).any(), "a pixel was kept that is not even weak.")
        right(not torch.equal(got, strong & weak), "only the strong pixels were kept: spread from them along weak ones.")
        right(
            not ((got & ~want).any()),
            "pixels were kept that no chain joins to a strong one: did it leak from one picture of the batch into another?",
        )
        right(not ((want & ~got).any()), "the end of a long chain is missing: repeat the spreading until nothing changes.")
    same(got, want, "the kept pixels", "Spread by a 3×3 maximum, keep what is weak, repeat until nothing changes.")


def zero_conv(answer):
    layer = answer(6)
    if not isinstance(layer, torch.nn.Module):
        raise Wrong(f"return a layer (nn.Conv2d), not a {type(layer).__name__}.")
    shapes = {n: tuple(p.shape) for n, p in layer.named_parameters()}
    right(shapes.get("weight", (0,))[2:] == (1, 1), "the convolution should be 1×1: it mixes the channels of one place.")
    right(shapes.get("weight") == (6, 6, 1, 1), "it should have as many channels out as in.")
    right(shapes.get("bias") == (6,), "the paper's zero convolution has a bias too.")
    right(all(p.requires_grad for p in layer.parameters()), "it must be trainable: a frozen zero stays zero for ever.")
    h = _noise(2, 6, 3, 3, seed=4).requires_grad_(True)
    y = layer(h)
    right(y.shape == h.shape and (y == 0).all(), "at the start the output must be exactly 0: set weight and bias to zero.")
    (y * _noise(2, 6, 3, 3, seed=5)).sum().backward()
    right(
        layer.weight.grad is not None and layer.weight.grad.abs().max() > 0,
        "no gradient reaches the weights: set them to zero, don't multiply the output by 0.",
    )
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1)
    right(layer(h).abs().max() > 0, "after a change of the weights the output is still 0: it would never learn.")


def steer(answer):
    z, c = _noise(2, 4, 4, 4, seed=6), _noise(2, 2, 8, 8, seed=7)
    t, context, style = torch.tensor([3, 700]), _noise(2, 5, 8, seed=8), torch.tensor([1, 2])
    parts, calls = [_noise(2, 3, 2, 2, seed=k) for k in (9, 10, 11)], []
    given = [p.clone() for p in parts]

    def control(*inputs):
        calls.append(inputs)
        return parts

    def unet(z, t, context, style, control=None):
        calls.append((z, t, context, style))
        if not isinstance(control, (list, tuple)):
            raise Wrong("the U-Net wants control= as a list of tensors.")
        right(len(control) == 3, "the U-Net should receive one tensor for each that the ControlNet returned.")
        right(all(a.shape == b.shape for a, b in zip(control, given)), "scale each tensor of the list; don't add the list up or repeat it.")
        return z + sum((k + 1) * a.sum() for k, a in enumerate(control))

    for scale in (1.0, 0.0, 0.5):
        calls.clear()
        got = answer(unet, control, z, t, context, style, c, scale)
        right(
            len(calls) == 2 and len(calls[0]) == 5 and len(calls[1]) == 4,
            "call the ControlNet once with (z, t, context, style, condition), then the U-Net once.",
        )
        right(
            all(a is b for a, b in zip(calls[0], (z, t, context, style, c))),
            "the ControlNet sees the same z, t, context and style as the U-Net, and the condition.",
        )
        right(all(a is b for a, b in zip(calls[1], (z, t, context, style))), "the U-Net sees z, t, context and style as they are.")
        total = sum((k + 1) * a.sum() for k, a in enumerate(given))
        right(all(torch.equal(a, b) for a, b in zip(parts, given)), "the ControlNet's tensors were changed in place: make new ones, scale * a.")
        if isinstance(got, torch.Tensor) and scale == 0.5 and got.shape == z.shape:
            right(not torch.allclose(got, z + total, atol=1e-5), "scale makes no difference: multiply every tensor by it.")
        same(got, z + scale * total, f"the result with scale = {scale}", "Return what the U-Net returns.")
