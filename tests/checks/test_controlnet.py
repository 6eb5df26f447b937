"""The checks of lesson 2.5 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.checks import controlnet as checks
from course_utils.exercises import examine
from course_utils.lessons import controlnet
from course_utils.lessons.controlnet import convolve, shifted
from course_utils.lessons.latent_diffusion import TextLayer

from . import WRONG_SHAPE, accepts, every, refuses

K = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, controlnet, name)


def sobel_unscaled(x):
    return convolve(x, 8 * K), convolve(x, 8 * K.T)


def sobel_swapped(x):
    return convolve(x, K.T), convolve(x, K)


def sobel_flipped(x):
    return convolve(x, K.flip(1)), convolve(x, K.T.flip(0))


def sobel_prewitt(x):
    k = torch.tensor([[-1.0, 0, 1]] * 3) / 6
    return convolve(x, k), convolve(x, k.T)


def sobel_zero_border(x):
    return tuple(F.conv2d(x[:, None], k.to(x)[None, None], padding=1)[:, 0] for k in (K, K.T))


def sobel_length(x):
    return torch.hypot(*controlnet.sobel(x))


def crests(gx, gy, ways=(1, -1), strict=False, axis_only=False, mirror=1, border=True):
    m, steep = torch.hypot(gx, gy), gy.abs() > gx.abs()
    w = torch.minimum(gx.abs(), gy.abs()) / torch.maximum(gx.abs(), gy.abs()).clamp(min=1e-12) * (not axis_only)
    keep = F.pad(torch.ones_like(m[:, 1:-1, 1:-1]), (1, 1, 1, 1)) > 0 if border else torch.ones_like(m) > 0
    for way in ways:
        dy, dx = mirror * way * gy.sign(), way * gx.sign()
        other = (1 - w) * shifted(m, dy * steep, dx * ~steep) + w * shifted(m, dy, dx)
        keep &= m > other if strict else m >= other
    return m, keep


def thin_variant(**how):
    def answer(gx, gy):
        m, keep = crests(gx, gy, **how)
        return m * keep

    return answer


def thin_mask(gx, gy):
    return crests(gx, gy)[1]


def thin_ones(gx, gy):
    return crests(gx, gy)[1].to(gx)


def thin_divides_by_zero(gx, gy):
    m, ax, ay = torch.hypot(gx, gy), gx.abs(), gy.abs()
    steep, w = ay > ax, torch.minimum(ax, ay) / torch.maximum(ax, ay)
    out = controlnet.thin(gx, gy)
    return out + 0 * (w * steep * m)


def grow(weak, grown, kernel=3):
    return weak & (F.max_pool2d(grown[:, None].float(), kernel, 1, kernel // 2)[:, 0] > 0)


def hysteresis_once(weak, strong):
    return grow(weak, weak & strong)


def hysteresis_strong_only(weak, strong):
    return weak & strong


def hysteresis_all_weak(weak, strong):
    return weak


def hysteresis_four(weak, strong):
    grown = weak & strong
    for _ in range(600):
        up = F.pad(grown, (1, 1, 1, 1))
        grown = weak & (grown | up[:, 2:, 1:-1] | up[:, :-2, 1:-1] | up[:, 1:-1, 2:] | up[:, 1:-1, :-2])
    return grown


def hysteresis_leaks(weak, strong):
    grown = weak & strong
    for _ in range(600):
        grown = weak & (F.max_pool3d(grown[None, None].float(), 3, 1, 1)[0, 0] > 0)
    return grown


def hysteresis_wide(weak, strong):
    grown = weak & strong
    for _ in range(600):
        grown = grow(weak, grown, 5)
    return grown


def hysteresis_spills(weak, strong):
    return F.max_pool2d(controlnet.hysteresis(weak, strong)[:, None].float(), 3, 1, 1)[:, 0] > 0


def zero_conv_random(channels):
    return nn.Conv2d(channels, channels, 1)


def zero_conv_wide(channels):
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_conv_frozen(channels):
    return controlnet.zero_conv(channels).requires_grad_(False)


def zero_conv_keeps_bias(channels):
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.zeros_(layer.weight)
    return layer


class TimesZero(nn.Conv2d):
    def forward(self, h):
        return super().forward(h) * 0


def zero_conv_times_zero(channels):
    return TimesZero(channels, channels, 1)


def zero_conv_without_bias(channels):
    layer = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def steer_without_scale(unet, control, z, t, context, style, condition, scale=1.0):
    return unet(z, t, context, style, control=control(z, t, context, style, condition))


def steer_scaled_output(unet, control, z, t, context, style, condition, scale=1.0):
    return scale * unet(z, t, context, style, control=control(z, t, context, style, condition))


def steer_in_place(unet, control, z, t, context, style, condition, scale=1.0):
    return unet(z, t, context, style, control=[a.mul_(scale) for a in control(z, t, context, style, condition)])


def steer_list_times_number(unet, control, z, t, context, style, condition, scale=1.0):
    return unet(z, t, context, style, control=control(z, t, context, style, condition) * 2)


def steer_scaled_drawing(unet, control, z, t, context, style, condition, scale=1.0):
    return unet(z, t, context, style, control=control(z, t, context, style, scale * condition))


def steer_summed(unet, control, z, t, context, style, condition, scale=1.0):
    return unet(z, t, context, style, control=scale * torch.stack(control(z, t, context, style, condition)).sum(0))


def hysteresis_rounds(n):
    def grown(weak, strong):
        out = weak & strong
        for _ in range(n):
            out = weak & (F.max_pool2d(out[:, None].float(), 3, 1, 1)[:, 0] > 0)
        return out

    return grown


def hysteresis_of_floats(weak, strong):
    return controlnet.hysteresis(weak, strong).float()


def hysteresis_counts_strong(weak, strong):
    return controlnet.hysteresis(weak | strong, strong)


def hysteresis_in_place(weak, strong):
    strong &= weak
    return controlnet.hysteresis(weak, strong)


class Copy(controlnet.ControlNet):
    """A right ControlNet whose parts the wrong ones below replace."""

    def enter(self, z, condition):
        return self.look(condition) + self.conv_in(F.pixel_unshuffle(z, self.patch))

    def leave(self, features):
        return list(map(lambda pair: pair[0](pair[1]), zip(self.zeros, features)))

    def walk(self, h, temb, context):
        features = [h]
        for layer in self.down:
            h = layer(h, temb, context) if isinstance(layer, TextLayer) else layer(h, temb)
            features += [h]
        return features, h

    def through(self, h, temb, context):
        for layer in self.mid:
            h = layer(h, temb, context)
        return h

    def forward(self, z, t, context, style, condition):
        temb = self.embed(t, style)
        features, h = self.walk(self.enter(z, condition), temb, context)
        return self.leave([*features, self.through(h, temb, context)])


class NoDrawing(Copy):
    def enter(self, z, condition):
        return self.conv_in(F.pixel_unshuffle(z, self.patch))


class OnlyDrawing(Copy):
    def enter(self, z, condition):
        return self.look(condition)


class NoZeros(Copy):
    def leave(self, features):
        return features


class NoMiddle(Copy):
    def through(self, h, temb, context):
        return h


class NoFirst(Copy):
    def walk(self, h, temb, context):
        features, h = super().walk(h, temb, context)
        return features[1:], h


class WrongOrder(Copy):
    def leave(self, features):
        return super().leave([features[-1], *features[:-1]]) if features[0].shape == features[-1].shape else super().leave(features)[::-1]


class LateDrawing(Copy):
    def forward(self, z, t, context, style, condition):
        temb = self.embed(t, style)
        features, h = self.walk(self.conv_in(F.pixel_unshuffle(z, self.patch)), temb, context)
        features[0] = features[0] + self.look(condition)
        return self.leave([*features, self.through(h, temb, context)])


class CutDrawing(Copy):
    def enter(self, z, condition):
        return self.look(condition).detach() + self.conv_in(F.pixel_unshuffle(z, self.patch))


class NoGradient(Copy):
    @torch.no_grad()
    def forward(self, *inputs):
        return super().forward(*inputs)


def steer_twice(unet, control, z, t, context, style, condition, scale=1.0):
    control(z, t, context, style, condition)
    return controlnet.steer(unet, control, z, t, context, style, condition, scale)


def steer_detached(unet, control, z, t, context, style, condition, scale=1.0):
    with torch.no_grad():
        added = control(z, t, context, style, condition)
    return unet(z, t, context, style, control=[scale * a for a in added])


def steer_half(unet, control, z, t, context, style, condition, scale=0.5):
    return controlnet.steer(unet, control, z, t, context, style, condition, scale)


def faint(gx, gy, eps=1e-12, slack=0.0, least=0.0):
    """Crests whose w, comparison or result leaves faint slopes out."""
    m, ax, ay = torch.hypot(gx, gy), gx.abs(), gy.abs()
    steep, w = ay > ax, torch.minimum(ax, ay) / (torch.maximum(ax, ay) + eps)
    keep = torch.zeros_like(steep)
    keep[:, 1:-1, 1:-1] = True
    for way in (1, -1):
        dy, dx = way * gy.sign(), way * gx.sign()
        keep &= m + slack >= (1 - w) * controlnet.shifted(m, dy * steep, dx * ~steep) + w * controlnet.shifted(m, dy, dx)
    return m * keep * (m > least)


def hysteresis_until_the_first_stops(weak, strong):
    kept, grown = None, weak & strong
    while kept is None or not torch.equal(kept[0], grown[0]):
        kept, grown = grown, weak & (F.max_pool2d(grown[:, None].float(), 3, 1, 1)[:, 0] > 0)
    return grown


def zeroed(forward):
    """A zero convolution that does something else than W h + b."""

    def zero_conv(channels):
        layer = type("Layer", (nn.Conv2d,), {"forward": forward})(channels, channels, 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    return zero_conv


def zero_conv_of_six(channels):
    return controlnet.zero_conv(6)


def copied(patch=lambda z, n: F.pixel_unshuffle(z, n), is_down=lambda k, layer: isinstance(layer, controlnet.Downsample)):
    class Copied(controlnet.ControlNet):
        def forward(self, z, t, context, style, condition):
            temb, h = self.embed(t, style), self.conv_in(patch(z, self.patch)) + self.look(condition)
            stack = [h]
            for k, layer in enumerate(self.down):
                h = layer(h, temb) if is_down(k, layer) else layer(h, temb, context)
                stack.append(h)
            for layer in self.mid:
                h = layer(h, temb, context)
            return [zero(f) for zero, f in zip(self.zeros, [*stack, h])]

    return Copied


def square_patches(z, n):
    B, C, S = z.shape[:3]
    return z.reshape(B, C, S // n, n, S // n, n).permute(0, 1, 3, 5, 2, 4).reshape(B, -1, S // n, S // n)


def steer_clamped(low, high):
    return lambda u, n, z, t, x, s, c, scale=1.0: controlnet.steer(u, n, z, t, x, s, c, min(max(scale, low), high))


def steer_three(unet, control, z, t, context, style, condition, scale=1.0):
    a, b, c = control(z, t, context, style, condition)
    return unet(z, t, context, style, control=[scale * a, scale * b, scale * c])


WRONG = {
    "sobel": [
        (sobel_unscaled, "8 times too large"),
        (sobel_swapped, "exchanged"),
        (sobel_flipped, "wrong sign"),
        (sobel_prewitt, "equal weights|off by"),
        (sobel_zero_border, "border"),
        (sobel_length, "2 values"),
        (lambda x: tuple(s.detach() for s in controlnet.sobel(x)), "no gradient"),
        (lambda x: controlnet.sobel(x.float()), "dtype|off by"),
    ],
    "thin": [
        (thin_variant(strict=True), "exactly as steep"),
        (thin_variant(ways=(1,)), "behind"),
        (thin_variant(axis_only=True), "diagonal"),
        (thin_variant(mirror=-1), "mirror"),
        (thin_variant(border=False), "off by|outermost"),
        (thin_mask, "dtype"),
        (thin_ones, "marked with 1"),
        (thin_divides_by_zero, "nan|flat|off by"),
        (lambda gx, gy: controlnet.thin(gy, gx), "off by"),
        (lambda gx, gy: faint(gx, gy, eps=1e-3), "faint"),
        (lambda gx, gy: faint(gx, gy, slack=1e-3), "faint"),
        (lambda gx, gy: faint(gx, gy, least=1e-2), "faint"),
        (lambda gx, gy: controlnet.thin(gx[:1], gy[:1]).expand_as(gx), "off by"),
    ],
    "hysteresis": [
        (hysteresis_once, "one round"),
        (hysteresis_rounds(8), "off by|too early"),
        (hysteresis_rounds(64), "too early"),
        (hysteresis_rounds(82), "too early"),
        (hysteresis_strong_only, "only the strong"),
        (hysteresis_all_weak, "all weak"),
        (hysteresis_four, "diagonal"),
        (hysteresis_leaks, "off by|leak"),
        (hysteresis_wide, "off by"),
        (hysteresis_spills, "off by"),
        (hysteresis_counts_strong, "they don't count"),
        (hysteresis_of_floats, "dtype"),
        (hysteresis_until_the_first_stops, "too early"),
        (hysteresis_in_place, "changes its argument strong"),
    ],
    "zero_conv": [
        (zero_conv_random, "exactly 0"),
        (zero_conv_wide, "1×1"),
        (zero_conv_frozen, "trainable"),
        (zero_conv_keeps_bias, "exactly 0"),
        (zero_conv_times_zero, "no gradient"),
        (zero_conv_without_bias, "bias"),
        (lambda channels, made={}: made.setdefault(channels, controlnet.zero_conv(channels)), "same layer"),
        (zero_conv_of_six, "should have 1 channels"),
        (zeroed(lambda self, h: nn.Conv2d.forward(self, h.detach())), "what lies behind"),
        (zeroed(lambda self, h: nn.Conv2d.forward(self, h.relu())), "W h"),
        (zeroed(lambda self, h: F.conv2d(h, self.weight)), "W h"),
    ],
    "ControlNet": [
        (NoDrawing, "makes no difference"),
        (OnlyDrawing, "replaces the noisy latent"),
        (NoZeros, "zero convolutions are not applied|shape"),
        (NoMiddle, "middle blocks"),
        (NoFirst, "values|cannot work with"),
        (WrongOrder, "shape|off by|stopped"),
        (LateDrawing, "off by"),
        (CutDrawing, "no gradient reaches condition"),
        (NoGradient, "no gradient flows"),
        (copied(patch=lambda z, n: F.pixel_unshuffle(z, 2)), "stopped"),
        (copied(patch=square_patches), "stopped|off by"),
        (copied(is_down=lambda k, layer: k == 1), "stopped"),
    ],
    "steer": [
        (steer_without_scale, "no difference"),
        (steer_scaled_output, "output was scaled"),
        (steer_in_place, "in place"),
        (steer_list_times_number, "one is wanted for each|stopped"),
        (steer_scaled_drawing, "off by"),
        (steer_summed, "stopped|list of tensors"),
        (steer_twice, "asked once"),
        (steer_detached, "gradient"),
        (steer_half, "without a scale"),
        (steer_clamped(0.0, 10.0), "-1.5"),
        (steer_clamped(-10.0, 2.0), "or 6"),
        (steer_three, "stopped"),
    ],
}

RIGHT = {
    "sobel": [
        lambda x: (
            convolve(convolve(x, torch.tensor([[-0.5, 0, 0.5]])), torch.tensor([[0.25], [0.5], [0.25]])),
            convolve(convolve(x, torch.tensor([[0.25, 0.5, 0.25]])), torch.tensor([[-0.5], [0], [0.5]])),
        ),
    ],
    "thin": [thin_variant(), faint],
    "hysteresis": [hysteresis_rounds(2000)],
    "zero_conv": [lambda channels: nn.Conv2d(channels, channels, (1, 1)).apply(lambda m: [p.data.zero_() for p in m.parameters()])],
    "ControlNet": [Copy, copied()],
    "steer": [lambda u, n, z, t, x, s, c, scale=1.0: u(z, t, x, s, control=tuple(torch.mul(a, scale) for a in n(z, t, x, s, c)))],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


def test_a_wrong_shape_gets_one_sentence():
    for name, wrong in {"sobel": (torch.zeros(2, 3),) * 2, "thin": torch.zeros(2, 3), "hysteresis": torch.zeros(2, 3)}.items():
        refuses(getattr(checks, name), lambda *inputs, wrong=wrong: wrong, WRONG_SHAPE)


@pytest.mark.parametrize("name", ["thin", "hysteresis"])
def test_nothing_returned(name):
    refuses(getattr(checks, name), lambda *inputs: None, "None")
    refuses(checks.zero_conv, lambda channels: None, "NoneType")
