"""Checks of lesson 2.5 (ControlNet): pixel by pixel, with plain loops; the layers by what they do and what learns."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..exercises import Wrong, agree, right, same, same_learning

HINTS = {
    "sobel": [
        "One 3×3 kernel and its transpose are all you need; `convolve` does the rest. Which column of the kernel must be positive?",
        "Brightness that rises to the right gives a positive slope along x. A ramp of slope 1 should give exactly 1.",
        "The rows of the kernel are (-1, 0, 1), (-2, 0, 2), (-1, 0, 1), divided by 8; the second one is its transpose.",
    ],
    "thin": [
        "For each pixel you need four neighbours: axis and diagonal ahead, axis and diagonal behind. `shifted(m, dy, dx)` takes a different offset for each pixel.",
        "The diagonal offset is (gy.sign(), gx.sign()). The axis offset is the same with one of the two set to 0: which one, where |gy| > |gx|? What is w where both are 0?",
        "With steep = |gy| > |gx| and, for way in (1, -1), dy, dx = way * gy.sign(), way * gx.sign(): keep where m >= (1 - w) * shifted(m, dy * steep, dx * ~steep) + w * shifted(m, dy, dx); False on the border.",
    ],
    "hysteresis": [
        "Begin with the pixels that are both strong and weak, and let them grow, but only over weak pixels. When may you stop?",
        "One round of growing is a 3×3 maximum, and with weak. A chain may be as long as the picture has pixels: no fixed number of rounds is enough.",
        "Repeat more = weak & (F.max_pool2d(grown[:, None].float(), 3, 1, 1)[:, 0] > 0) until a round changes nothing.",
    ],
    "zero_conv": [
        "nn.Conv2d with kernel size 1; only its start is special.",
        "torch.nn.init has a function that fills a parameter with zeros in place. Which parameters does the layer have?",
        "layer = nn.Conv2d(channels, channels, 1), then nn.init.zeros_ for its weight and its bias.",
    ],
    "ControlNet": [
        "Follow `TextUNet.forward` from the noisy latent to the middle. Where does the drawing come in, and what goes out?",
        "Every result on the way down is kept, the input of the first layer, too; the middle's output is the last. Downsample takes (h, temb), the other layers (h, temb, context).",
        "h = self.conv_in(F.pixel_unshuffle(z, self.patch)) + self.look(condition); stack = [h]; go through self.down (append each) and self.mid; return [zero(f) for zero, f in zip(self.zeros, [*stack, h])].",
    ],
    "steer": [
        "Two calls: first the ControlNet, then the U-Net.",
        "The ControlNet returns a list of tensors. What should the list hold when the scale is 0.5?",
        "unet(z, t, context, style, control=[scale * a for a in added]), where added is what control returned.",
    ],
}


def _noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _slopes(x, factor=8.0, zero=False, smooth=(1, 2, 1)):
    """Both Sobel slopes, neighbour by neighbour; the border pixels are repeated (or, wrongly, zero)."""
    H, W = x.shape[1:]
    rows = [min(max(i, 0), H - 1) for i in range(-1, H + 1)]
    cols = [min(max(j, 0), W - 1) for j in range(-1, W + 1)]
    big = x[:, rows][:, :, cols]
    if zero:
        big = torch.nn.functional.pad(x, (1, 1, 1, 1))
    at = lambda i, j: big[:, 1 + i : 1 + i + H, 1 + j : 1 + j + W]
    along_x = sum(w * (at(k, 1) - at(k, -1)) for k, w in zip((-1, 0, 1), smooth)) / factor
    along_y = sum(w * (at(1, k) - at(-1, k)) for k, w in zip((-1, 0, 1), smooth)) / factor
    return along_x, along_y


def sobel(answer):
    suspects = [
        ("the slopes are 8 times too large: a ramp of slope 1 should give 1.", lambda x: _slopes(x, 1.0)),
        ("x and y are exchanged: the slope along x, to the right, comes first.", lambda x: _slopes(x)[::-1]),
        ("both slopes have the wrong sign: brightness that rises to the right, or downwards, is positive.", lambda x: tuple(-s for s in _slopes(x))),
        ("the slope along y has the wrong sign: y points down.", lambda x: (_slopes(x)[0], -_slopes(x)[1])),
        ("beyond the border there are zeros: `convolve` repeats the border pixels.", lambda x: _slopes(x, zero=True)),
        ("the three rows have equal weights: they should be 1, 2, 1.", lambda x: _slopes(x, 6.0, smooth=(1, 1, 1))),
    ]
    case = lambda B, H, W, dtype=torch.float64: lambda g: {"x": torch.randn(B, H, W, generator=g, dtype=dtype)}
    agree(answer, _slopes, [case(2, 5, 6), case(1, 3, 9)], what="(slope along x, slope along y)", grad=("x",), tol=1e-9, suspects=suspects)
    agree(answer, _slopes, case(2, 5, 6, torch.float32), what="(slope along x, slope along y) in single precision")
    ramp = 0.3 * torch.arange(7.0).expand(1, 5, 7)
    same(answer(ramp)[0][:, :, 1:-1], torch.full((1, 5, 5), 0.3), "the slope of a ramp that rises by 0.3 a pixel")


def _crests(gx, gy, strict=False, corner=True, both=True, mirror=False, length=True):
    """Non-maximum suppression with loops over the pixels of every picture."""
    out = torch.zeros_like(gx)
    for b in range(len(gx)):
        H, W = gx.shape[1:]
        m = [[math.hypot(gx[b, i, j], gy[b, i, j]) for j in range(W)] for i in range(H)]
        for i in range(1, H - 1):
            for j in range(1, W - 1):
                x, y = gx[b, i, j].item(), gy[b, i, j].item() * (-1 if mirror else 1)
                sx, sy = (x > 0) - (x < 0), (y > 0) - (y < 0)
                ay, ax = (sy, 0) if abs(y) > abs(x) else (0, sx)
                w = min(abs(x), abs(y)) / max(abs(x), abs(y), 1e-12) if corner else 0.0
                sides = [(1 - w) * m[i + k * ay][j + k * ax] + w * m[i + k * sy][j + k * sx] for k in ((1, -1) if both else (1,))]
                if all(m[i][j] > s if strict else m[i][j] >= s for s in sides):
                    out[b, i, j] = m[i][j] if length else 1.0
    return out


def thin(answer):
    suspects = [
        ("a pixel that is exactly as steep as a neighbour was dropped: it should stay.", lambda x, y: _crests(x, y, strict=True)),
        ("only the pixel ahead was looked at: the one behind counts as well.", lambda x, y: _crests(x, y, both=False)),
        ("only the axis neighbours were used: the diagonal one has the weight w.", lambda x, y: _crests(x, y, corner=False)),
        ("the crests are marked with 1: the length of the gradient is wanted there.", lambda x, y: _crests(x, y, length=False)),
        ("the step goes across the mirror image of the gradient: y points down, so dy has the sign of gy.", lambda x, y: _crests(x, y, mirror=True)),
    ]

    def case(B, H, W, dtype=torch.float64):
        def draw(g):
            gx, gy = torch.randn(2, B, H, W, generator=g, dtype=dtype)
            if B > 2:
                gx[2], gy[2] = 1.0, 0.0  # a plateau: every pixel is as steep as its neighbours
            gx[0, : H // 2, : W // 2] = gy[0, : H // 2, : W // 2] = 0.0  # a flat corner
            return {"gx": gx, "gy": gy}

        return draw

    agree(answer, _crests, [case(3, 9, 10), case(1, 5, 7)], what="the crests", tol=1e-9, suspects=suspects)
    agree(answer, _crests, case(1, 6, 5, torch.float32), what="the crests in single precision", tol=1e-4)
    faint = lambda g: {k: 1e-3 * v for k, v in case(3, 16, 17)(g).items()}
    agree(answer, _crests, faint, what="the crests of a faint picture (slopes around 0.001)", tol=1e-9)
    got = answer(torch.ones(1, 5, 6), torch.ones(1, 5, 6))
    got[:, 1:-1, 1:-1] = 0
    right(not got.any(), "the outermost rows and columns should be 0: they have no neighbours on one side.")
    zero = torch.zeros(1, 5, 5)
    same(answer(zero, zero), zero, "the crests of a flat picture (0 / 0 in w?)")


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


def _snake(n):
    """A path that fills an n × n picture without touching itself: one chain of some n² / 2 pixels."""
    weak = torch.zeros(n, n, dtype=torch.bool)
    weak[::2] = True
    for k, row in enumerate(range(1, n - 1, 2)):
        weak[row, -1 if k % 2 == 0 else 0] = True
    return weak


def hysteresis(answer):
    spread = lambda eight: lambda weak, strong: torch.stack([_flood(a, b, eight) for a, b in zip(weak, strong)])
    want = spread(True)

    def rounds(n):
        def grow(weak, strong):
            grown = weak & strong
            for _ in range(n):
                grown = weak & (torch.nn.functional.max_pool2d(grown[:, None].float(), 3, 1, 1)[:, 0] > 0)
            return grown

        return grow

    suspects = [
        ("only 4 neighbours count: diagonal ones join, too.", spread(False)),
        ("all weak pixels were kept: only those joined to a strong one may stay.", lambda weak, strong: weak),
        ("only the strong pixels were kept: nothing spread from them.", lambda weak, strong: weak & strong),
        ("strong pixels that are not weak were kept: they don't count.", lambda weak, strong: want(weak | strong, strong)),
        ("one round of spreading is not enough: a chain may be long.", rounds(1)),
    ]

    def case(B, H, W):
        def draw(g):
            weak = torch.rand(B, H, W, generator=g) < torch.linspace(0.45, 0.15, B)[:, None, None]
            strong = torch.rand(B, H, W, generator=g) < 0.04
            strong[-1] = False  # nothing may leak in from the other pictures
            return {"weak": weak, "strong": strong}

        return draw

    agree(answer, want, [case(4, 24, 21), case(1, 3, 30), case(2, 1, 7)], what="the kept pixels", suspects=suspects)
    weak = torch.stack([_snake(41), _snake(41).flip(1)])
    for k, other in ((0, 1), (1, 0)):  # the long chain stands first, then last in the batch
        strong = torch.zeros_like(weak)
        strong[k, 0] = weak[k, 0]
        got = answer(weak, strong)
        right(
            isinstance(got, torch.Tensor) and not got[other].any(),
            "pixels were kept in a picture without a strong one: did it leak from another picture of the batch?",
        )
        right(
            torch.equal(got[k], weak[k]),
            f"of a chain of {int(weak[k].sum())} weak pixels only {int(got[k].sum())} were kept: the spreading stopped too early.",
        )


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
        "no gradient reaches the weights: at the start they should be zero, not the output multiplied by 0.",
    )
    right(h.grad is None or h.grad.abs().max() == 0, "a gradient passes through the layer at the start: its weights are not zero.")
    right(answer(6).weight is not layer.weight, "two calls gave the same layer: make a new one each time.")
    for channels in (1, 10):
        right(
            getattr(answer(channels), "weight", torch.zeros(0)).shape == (channels, channels, 1, 1), f"zero_conv({channels}) should have {channels} channels."
        )
    with torch.no_grad():
        for k, p in enumerate(layer.parameters()):
            p.copy_(_noise(*p.shape, seed=6 + k))
    y = layer(h)
    right(y.abs().max() > 0, "after a change of the weights the output is still 0: it would never learn.")
    same(y, nn.functional.conv2d(h, layer.weight, layer.bias), "the output W h + b after a change of the weights")
    (reached,) = torch.autograd.grad(y.sum(), h, allow_unused=True) if y.requires_grad else (None,)
    right(reached is not None and reached.any(), "no gradient reaches what lies behind the layer, even when its weights are no longer 0.")


def _copy_down(net, z, t, context, style, condition, enter="start", zeros=True, first=True, middle=True, time=True, swap=False):
    """What the copy returns, layer by layer; the switches build the usual mistakes."""
    temb = net.embed(t if time else torch.zeros_like(t), style)
    h = net.conv_in(nn.functional.pixel_unshuffle(z, net.patch))
    drawing = net.look(condition)
    h = h + drawing if enter == "start" else drawing if enter == "alone" else h
    stack = [h]
    for layer in net.down:
        h = layer(h, temb) if type(layer).__name__ == "Downsample" else layer(h, temb, context)
        stack.append(h)
    if middle:
        for layer in net.mid:
            h = layer(h, temb, context)
    features = [*stack, h]
    if swap:
        features = features[::-1]
    return [zero(f) if zeros else f for zero, f in zip(net.zeros, features)]


def ControlNet(answer):
    shape = dict(condition=2, look=(4, 6, 8), channels=3, context_width=5, styles=3, groups=4, head_dim=4)
    _one_controlnet(answer(widths=(8, 16), layers=1, attention=(True, True), **shape), 2, 8, 8)
    _one_controlnet(answer(widths=(8, 8, 12), layers=2, attention=(False, True, True), patch=1, **shape), 1, 4, 8)


def _one_controlnet(net, patch, height, width):
    """One network's list of tensors, and every gradient, on latents (3, height, width)."""
    g = torch.Generator().manual_seed(12)
    right(isinstance(net, nn.Module), "ControlNet should stay an nn.Module.")
    net = net.double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.3 + (1 if "norm" in name and name.endswith("weight") else 0))
    drawn = (4 * height // patch, 4 * width // patch)  # the drawing's encoder makes it four times smaller
    suspects = [
        ("the drawing makes no difference: it is never added.", dict(enter="never")),
        ("the drawing replaces the noisy latent: it should be added to it.", dict(enter="alone")),
        ("the zero convolutions are not applied.", dict(zeros=False)),
        ("the middle blocks were left out.", dict(middle=False)),
    ]

    def case(B):
        def draw(g):
            make = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
            t = torch.randint(1, 1000, (B,), generator=g)
            return {"z": make(B, 3, height, width), "t": t, "context": make(B, 4, 5), "style": torch.arange(B) % 3, "condition": make(B, 2, *drawn)}

        return draw

    bound = [(m, lambda *a, how=how: _copy_down(net, *a, **how)) for m, how in suspects]
    agree(
        net, lambda *a: _copy_down(net, *a), [case(3), case(1)], what="the list of tensors to add", grad=("z", "context", "condition"), tol=1e-9, suspects=bound
    )
    given = case(2)(torch.Generator().manual_seed(1)).values()
    same_learning(net, net(*given), _copy_down(net, *given), "the list of tensors to add", tol=1e-8)


def steer(answer):
    calls, kept = [], []

    def work(z, condition, context, a, b, c, scale, n=3):
        calls.clear()
        t, style = torch.tensor([3, 700]), torch.tensor([1, 2])

        def control(z, t, context, style, condition):
            calls.append("control")
            mix = (condition.mean((1, 2, 3)) + context.mean((1, 2)) + z.mean((1, 2, 3)) + t / 1000 + style)[:, None, None, None]
            kept[:] = [(x, x.detach().clone()) for x in (a * mix, b * mix, c * mix)[:n]]
            return [x for x, _ in kept]

        def unet(z, t, context, style, control=None):
            calls.append("unet")
            if not isinstance(control, (list, tuple)):
                raise Wrong("the U-Net wants control= as a list of tensors.")
            right(len(control) == n, f"the U-Net received {len(control)} tensors: one is wanted for each that the ControlNet returned.")
            right([tuple(x.shape) for x in control] == [tuple(x.shape) for x in (a, b, c)[:n]], "the tensors changed their shapes on the way to the U-Net.")
            return z * (t / 500 + style)[:, None, None, None] + context.mean() + sum((k + 1) * x.sin().sum() for k, x in enumerate(control))

        out = chosen[0](unet, control, z, t, context, style, condition, *([] if scale == "none" else [scale]))
        right(all(torch.equal(x.detach(), was) for x, was in kept), "the ControlNet's tensors were changed in place: make new ones.")
        return out

    def reference(unet, control, z, t, context, style, condition, scale=1.0, how="scaled"):
        added = control(z, t, context, style, condition)
        if how == "twice":
            added = control(z, t, context, style, condition)
        return unet(z, t, context, style, control=[x * (1.0 if how == "ignored" else scale) for x in added])

    def run(fn):
        def go(*args):
            chosen[0] = fn
            return work(*args)

        return go

    def asked(*args):
        out = run(answer)(*args)
        right(calls == ["control", "unet"], f"the ControlNet should be asked once, then the U-Net once; the calls were: {', '.join(calls) or 'none'}.")
        return out

    chosen = [None]
    suspects = [
        ("scale makes no difference.", run(lambda *a: reference(*a[:7], a[7] if len(a) > 7 else 1.0, how="ignored"))),
        (
            "the U-Net's output was scaled: the control is what the scale is for.",
            run(lambda u, n, z, t, x, s, c, scale=1.0: scale * reference(u, n, z, t, x, s, c)),
        ),
    ]

    def case(scale, **more):
        def draw(g):
            make = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
            return {
                "z": make(2, 4, 4, 5),
                "condition": make(2, 2, 8, 9),
                "context": make(2, 5, 8),
                "a": make(2, 3, 2, 4),
                "b": make(2, 6, 2, 2),
                "c": make(2, 6, 1, 2),
                "scale": scale,
                **more,
            }

        return draw

    grad = ("z", "condition", "context", "a", "b", "c")
    agree(asked, run(reference), [case(0.5), case(1.0), case(0.0), case(2.0)], what="the output under control", grad=grad, tol=1e-9, suspects=suspects)
    agree(asked, run(reference), [case(-1.5), case(6.0)], what="the output under control at a scale of -1.5 or 6", grad=grad, tol=1e-9)
    agree(asked, run(reference), case(0.5, n=2), what="the output under control by two tensors", tol=1e-9)
    agree(asked, run(reference), case("none"), what="the output without a scale (it is 1 then)", tol=1e-9)
