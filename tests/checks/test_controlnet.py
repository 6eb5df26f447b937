"""The checks of lesson 2.5 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.checks import controlnet as checks
from course_utils.lessons import controlnet
from course_utils.lessons.controlnet import convolve, shifted

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


WRONG = {
    "sobel": [
        (sobel_unscaled, "divide the kernel by 8"),
        (sobel_swapped, "exchanged"),
        (sobel_flipped, "wrong sign"),
        (sobel_prewitt, "1, 2, 1"),
        (sobel_zero_border, "off by"),
        (sobel_length, "two tensors"),
    ],
    "thin": [
        (thin_variant(strict=True), ">="),
        (thin_variant(ways=(1,)), "behind"),
        (thin_variant(axis_only=True), "diagonal"),
        (thin_variant(mirror=-1), "mirror"),
        (thin_variant(border=False), "outermost"),
        (thin_mask, "length"),
        (thin_ones, "not 1"),
        (thin_divides_by_zero, "nan|Clamp"),
    ],
    "hysteresis": [
        (hysteresis_once, "long chain"),
        (hysteresis_strong_only, "only the strong"),
        (hysteresis_all_weak, "all weak"),
        (hysteresis_four, "diagonal"),
        (hysteresis_leaks, "leak"),
        (hysteresis_wide, "no chain"),
        (hysteresis_spills, "not even weak"),
    ],
    "zero_conv": [
        (zero_conv_random, "exactly 0"),
        (zero_conv_wide, "1×1"),
        (zero_conv_frozen, "trainable"),
        (zero_conv_keeps_bias, "exactly 0"),
        (zero_conv_times_zero, "no gradient"),
        (zero_conv_without_bias, "bias"),
    ],
    "steer": [
        (steer_without_scale, "off by|no difference"),
        (steer_scaled_output, "off by"),
        (steer_in_place, "in place"),
        (steer_list_times_number, "one tensor for each"),
        (steer_scaled_drawing, "and the condition"),
        (steer_summed, "list of tensors"),
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


def test_a_wrong_shape_gets_one_sentence():
    for name, wrong in {"sobel": (torch.zeros(2, 3),) * 2, "thin": torch.zeros(2, 3), "hysteresis": torch.zeros(2, 3)}.items():
        refuses(getattr(checks, name), lambda *inputs, wrong=wrong: wrong, WRONG_SHAPE)


@pytest.mark.parametrize("name", ["thin", "hysteresis"])
def test_nothing_returned(name):
    refuses(getattr(checks, name), lambda *inputs: None, "None")
    refuses(checks.zero_conv, lambda channels: None, "NoneType")
