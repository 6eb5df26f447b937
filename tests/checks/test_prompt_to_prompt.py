"""The checks of lesson 2.7 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import prompt_to_prompt as checks
from course_utils.exercises import examine
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


def inversion_clamped(zt, eps, t, s, schedule):
    now, then = at(schedule.abar, t, zt), at(schedule.abar, s, zt)
    return then.sqrt() * ((zt - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-5, 5) + (1 - then).sqrt() * eps


class Rowwise(p2p.Controller):
    """A right controller that goes row by row; the wrong ones below replace its parts."""

    def on(self, share):
        return self.done < share

    def words_of(self, b, mine, theirs):
        one = slice(b, b + 1)
        if self.on(self.words[b]):
            mine = p2p.inject(mine[None], theirs[None], self.A[one], self.keep[one])[0]
        return p2p.reweight(mine[None], self.scale[one])[0]

    def itself_of(self, b, mine, theirs):
        return theirs if self.on(self.itself[b]) else mine

    def __call__(self, maps, to_words):
        own = maps.unbind(0)
        rule = self.words_of if to_words else self.itself_of
        rows = [rule(b, own[b], own[s]) for b, s in enumerate(self.source.tolist())]
        return torch.stack([*rows, *own[len(rows) :]])


class OneStepTooMany(Rowwise):
    def on(self, share):
        return self.done <= share


class LateSteps(Rowwise):
    def on(self, share):
        return self.done >= share


class NoScale(Rowwise):
    def words_of(self, b, mine, theirs):
        self.scale = torch.ones_like(self.scale)
        return super().words_of(b, mine, theirs)


class ScaleOnlyWhileOn(Rowwise):
    def words_of(self, b, mine, theirs):
        return super().words_of(b, mine, theirs) if self.on(self.words[b]) else mine


class WordSharesForBoth(Rowwise):
    def itself_of(self, b, mine, theirs):
        return theirs if self.on(self.words[b]) else mine


class TouchesTheEmptyCaption(Rowwise):
    def __call__(self, maps, to_words):
        n = len(self.source)
        return torch.cat([super(TouchesTheEmptyCaption, self).__call__(half, to_words) for half in maps.split(n)])


class Chained(Rowwise):
    def __call__(self, maps, to_words):
        rows = list(maps.unbind(0))
        for b, s in enumerate(self.source.tolist()):
            rows[b] = (self.words_of if to_words else self.itself_of)(b, rows[b], rows[s])
        return torch.stack(rows)


class InPlaceRows(Rowwise):
    def __call__(self, maps, to_words):
        maps[: len(self.source)] = super().__call__(maps, to_words)[: len(self.source)]
        return maps


class CountsSteps(Rowwise):
    def __call__(self, maps, to_words):
        self.done += 0.25
        return super().__call__(maps, to_words)


class FourRows(p2p.Controller):
    def __call__(self, maps, to_words):
        return torch.cat([super().__call__(maps[:4], to_words), maps[4:]]) if len(self.source) == 4 else super().__call__(maps[:2], to_words)


class WearsOut(Rowwise):
    def __call__(self, maps, to_words):
        out = super().__call__(maps, to_words)
        self.words = self.words - 1e-6
        return out


class CutsGradients(Rowwise):
    def __call__(self, maps, to_words):
        return super().__call__(maps, to_words).detach()


WRONG = {
    "inject": [
        (inject_transposed, "wrong way round"),
        (inject_everywhere, "keep their own map"),
        (inject_without_mapper, "as they are"),
        (inject_swapped, "off by|keep their own"),
        (inject_first_row_only, "first row"),
        (lambda m, s, A, k: p2p.inject(m, s.detach(), A, k), "no gradient reaches source_maps"),
        (lambda m, s, A, k: p2p.inject(m, s, A.detach(), k), "no gradient reaches A"),
        (lambda m, s, A, k: p2p.inject(m, s, A, k).round(decimals=1), "off by"),
        (lambda m, s, A, k: p2p.inject(m, s, A, k).float(), "dtype|gradient"),
        (lambda m, s, A, k: m.copy_(p2p.inject(m, s, A, k)), "changes its argument m"),
    ],
    "reweight": [
        (reweight_normalised, "do not normalise"),
        (reweight_positions, ""),
        (reweight_heads, ""),
        (reweight_squared, "squared"),
        (reweight_without_sign, "negative"),
        (lambda m, s: m * s[:, None, None].detach(), "no gradient reaches scale"),
        (lambda m, s: m.mul_(s[:, None, None]), "changes its argument m"),
        (lambda m, s: m * s[:1, None, None], "first row"),
        (lambda m, s: m * s[:, None, None].clamp(-8, 8), "off by"),
    ],
    "Controller": [
        (OneStepTooMany, "one step too many"),
        (LateSteps, "late steps"),
        (NoScale, "factors of|own fields"),
        (ScaleOnlyWhileOn, "off by"),
        (WordSharesForBoth, "off by"),
        (TouchesTheEmptyCaption, "empty caption"),
        (Chained, "as they came in"),
        (InPlaceRows, "changes its argument maps"),
        (CountsSteps, "off by|own fields|one step"),
        (CutsGradients, "no gradient flows"),
        (WearsOut, "own fields"),
        (FourRows, "stopped with|shape"),
    ],
    "mapper": [
        mapper_by_position,
        (mapper_transposed, "transposed"),
        (mapper_full_copies, "exactly 1"),
        (mapper_divides_by_source, "exactly 1"),
        (mapper_keeps_all, "keep"),
        mapper_without_keep,
        (lambda pairs, context=20: p2p.mapper([(sorted(a), sorted(b)) for a, b in pairs], context), "A for the pairs"),
        (lambda pairs, context=30: p2p.mapper(pairs, context), "20 × 20"),
    ],
    "local_blend": [
        (blend_swapped, "swapped"),
        (blend_one_maximum_for_all_rows, "one maximum"),
        (blend_at_least, "0 everywhere"),
        (blend_absolute_threshold, "heat itself"),
        (blend_softly, "off by"),
        (blend_nearest, "repeating pixels"),
        (lambda z, o, h, threshold=0.4: p2p.local_blend(z, o, h, float(threshold)), "stopped with"),
        (lambda z, o, h, threshold=0.4: p2p.local_blend(z, o, h, threshold[:1] if torch.is_tensor(threshold) else threshold), "each row"),
        (lambda z, o, h, threshold=0.4: torch.where(enlarged(h, z) > threshold * enlarged(h, z).amax(3, keepdim=True), z, o), "off by"),
        (lambda z, o, h, threshold=0.5: p2p.local_blend(z, o, h, threshold), "without a threshold"),
        (lambda z, o, h, threshold=0.4: p2p.local_blend(z.detach(), o, h, threshold), "no gradient reaches z"),
    ],
    "inversion_step": [
        (inversion_as_fresh_noise, "fresh noise"),
        (inversion_levels_exchanged, "exchanged|nan|off by"),
        (inversion_without_roots, "roots are missing"),
        (inversion_divides_by_noise, "nan"),
        (inversion_from_clean, "clean picture"),
        (inversion_clamped, "large numbers"),
        (lambda z, e, t, s, c: p2p.inversion_step(z, e.detach(), t, s, c), "no gradient reaches eps"),
        (lambda z, e, t, s, c: p2p.inversion_step(z, e, t[:1].expand_as(t), s, c), "clean picture"),
    ],
}

RIGHT = {
    "inject": [
        lambda m, s, A, k: torch.einsum("bhni,bij->bhnj", s, A) * k[:, None, None] + m * (1 - k[:, None, None]),
        lambda m, s, A, k: torch.where(k.bool().unsqueeze(1).unsqueeze(1), torch.matmul(s, A.unsqueeze(1)), m),
    ],
    "reweight": [lambda m, s: torch.einsum("bhnt,bt->bhnt", m, s), lambda m, s: m @ torch.diag_embed(s)[:, None]],
    "Controller": [Rowwise],
    "mapper": [
        lambda pairs, context=20: (
            sum(
                (
                    torch.zeros(context, context).index_put((torch.tensor([i]), torch.tensor([j])), torch.tensor(1 / n))
                    for a, b in pairs
                    for i, j, n in ([(i, j, 1) for i, j in zip(a, b)] if len(a) == len(b) else [(i, j, len(b)) for i in a for j in b])
                ),
                torch.zeros(context, context),
            ),
            torch.tensor([float(any(j in b for _, b in pairs)) for j in range(context)]),
        )
    ],
    "local_blend": [
        lambda z, o, h, threshold=0.4: o + (z - o) * (enlarged(h, z) > threshold * enlarged(h, z).flatten(1).max(1).values[:, None, None, None]),
    ],
    "inversion_step": [
        lambda z, e, t, s, c: (
            (at(c.abar, s, z) / at(c.abar, t, z)).sqrt() * z
            + ((1 - at(c.abar, s, z)).sqrt() - (at(c.abar, s, z) * (1 - at(c.abar, t, z)) / at(c.abar, t, z)).sqrt()) * e
        )
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


@pytest.mark.parametrize("name", [n for n in checks.HINTS if n != "Controller"])
def test_a_wrong_shape_gets_one_clear_sentence(name):
    def answer(*args):
        out = getattr(p2p, name)(*args)
        return (out[0][:1], out[1]) if isinstance(out, tuple) else out[:1]

    refuses(getattr(checks, name), answer, "shape")


def test_nothing_returned_is_named():
    for name in checks.HINTS:
        refuses(getattr(checks, name), lambda *args: None)
