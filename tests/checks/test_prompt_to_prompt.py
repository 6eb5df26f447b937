"""The checks of lesson 2.7 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import prompt_to_prompt as checks
from course_utils.lessons import prompt_to_prompt as p2p
from course_utils.lessons.ddpm import at

from . import accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, p2p, name)


def inject_transposed(maps, source_maps, A, keep):
    return p2p.inject(maps, source_maps, A.transpose(1, 2), keep)


def inject_everywhere(maps, source_maps, A, keep):
    return source_maps @ A[:, None]


def inject_without_mapper(maps, source_maps, A, keep):
    return torch.where(keep[:, None, None] > 0, source_maps, maps)


def inject_swapped(maps, source_maps, A, keep):
    return torch.where(keep[:, None, None] > 0, maps, source_maps @ A[:, None])


def inject_first_row_only(maps, source_maps, A, keep):
    return torch.where(keep[0] > 0, source_maps @ A[0], maps)


def reweight_normalised(maps, scale):
    m = maps * scale[:, None, None]
    return m / m.sum(-1, keepdim=True)


def reweight_positions(maps, scale):
    return maps * scale[:, None, :1, None]


def reweight_heads(maps, scale):
    return maps * scale[0]


def reweight_squared(maps, scale):
    return maps * scale[:, None, None] ** 2


def reweight_without_sign(maps, scale):
    return maps * scale[:, None, None].abs()


def mapper_by_position(pairs, context=20):
    keep = torch.zeros(context)
    for _, target in pairs:
        keep[target] = 1
    return torch.eye(context), keep


def mapper_transposed(pairs, context=20):
    A, keep = p2p.mapper(pairs, context)
    return A.T, keep


def mapper_full_copies(pairs, context=20):
    A, keep = p2p.mapper(pairs, context)
    return (A > 0).float(), keep


def mapper_divides_by_source(pairs, context=20):
    A, keep = torch.zeros(context, context), torch.zeros(context)
    for source, target in pairs:
        for n, s in enumerate(source):
            A[s, target[n] if len(source) == len(target) else target] = 1 if len(source) == len(target) else 1 / len(source)
        keep[target] = 1
    return A, keep


def mapper_keeps_all(pairs, context=20):
    return p2p.mapper(pairs, context)[0], torch.ones(context)


def mapper_without_keep(pairs, context=20):
    return p2p.mapper(pairs, context)[0]


def enlarged(heat, z):
    return F.interpolate(heat[:, None], size=z.shape[-2:], mode="bilinear")


def blend_swapped(z, z_source, heat, threshold=0.4):
    return p2p.local_blend(z_source, z, heat, threshold)


def blend_one_maximum_for_all_rows(z, z_source, heat, threshold=0.4):
    m = enlarged(heat, z)
    return torch.where(m > threshold * m.max(), z, z_source)


def blend_at_least(z, z_source, heat, threshold=0.4):
    m = enlarged(heat, z)
    return torch.where(m >= threshold * m.amax((2, 3), keepdim=True), z, z_source)


def blend_absolute_threshold(z, z_source, heat, threshold=0.4):
    return torch.where(enlarged(heat, z) > threshold, z, z_source)


def blend_softly(z, z_source, heat, threshold=0.4):
    m = enlarged(heat, z)
    m = m / m.amax((2, 3), keepdim=True).clamp(min=1e-9)
    return m * z + (1 - m) * z_source


def blend_nearest(z, z_source, heat, threshold=0.4):
    m = F.interpolate(heat[:, None], size=z.shape[-2:])
    return torch.where(m > threshold * m.amax((2, 3), keepdim=True), z, z_source)


def inversion_as_fresh_noise(zt, eps, t, s, schedule):
    ratio = at(schedule.abar, s, zt) / at(schedule.abar, t, zt)
    return ratio.sqrt() * zt + (1 - ratio).sqrt() * eps


def inversion_levels_exchanged(zt, eps, t, s, schedule):
    return p2p.inversion_step(zt, eps, s, t, schedule)


def inversion_without_roots(zt, eps, t, s, schedule):
    now, then = at(schedule.abar, t, zt), at(schedule.abar, s, zt)
    return then * (zt - (1 - now) * eps) / now + (1 - then) * eps


def inversion_divides_by_noise(zt, eps, t, s, schedule):
    now, then = at(schedule.abar, t, zt), at(schedule.abar, s, zt)
    return p2p.inversion_step(zt, eps, t, s, schedule) + 0 * (1 - then) / (1 - now)


def inversion_from_clean(zt, eps, t, s, schedule):
    return at(schedule.abar, s, zt).sqrt() * zt + (1 - at(schedule.abar, s, zt)).sqrt() * eps


WRONG = {
    "inject": [inject_transposed, inject_everywhere, inject_without_mapper, inject_swapped, inject_first_row_only],
    "reweight": [reweight_normalised, reweight_positions, reweight_heads, reweight_squared, reweight_without_sign],
    "mapper": [mapper_by_position, mapper_transposed, mapper_full_copies, mapper_divides_by_source, mapper_keeps_all, mapper_without_keep],
    "local_blend": [blend_swapped, blend_one_maximum_for_all_rows, blend_at_least, blend_absolute_threshold, blend_softly, blend_nearest],
    "inversion_step": [inversion_as_fresh_noise, inversion_levels_exchanged, inversion_without_roots, inversion_divides_by_noise, inversion_from_clean],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_a_wrong_shape_gets_one_clear_sentence(name):
    def answer(*args):
        out = getattr(p2p, name)(*args)
        return (out[0][:1], out[1]) if isinstance(out, tuple) else out[:1]

    refuses(getattr(checks, name), answer, "shape")


def test_nothing_returned_is_named():
    for name in checks.HINTS:
        refuses(getattr(checks, name), lambda *args: None)
