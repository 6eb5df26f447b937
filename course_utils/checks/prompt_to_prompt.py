"""Checks of lesson 2.7 (Prompt-to-Prompt): loops over rows, heads, positions and tokens, one number at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from ..exercises import Wrong, agree, right, same

HINTS = {
    "inject": [
        "Two steps: carry the source's maps over to the edited caption's tokens, then choose, token by token, between them and the own maps.",
        "`source_maps @ A` would line A's batch axis up with the heads: A needs an axis for the heads. keep needs two new axes.",
        "torch.where on keep[:, None, None] > 0, between source_maps @ A[:, None] and maps.",
    ],
    "reweight": [
        "One multiplication. No normalisation afterwards.",
        "scale (B, T) must meet maps (B, heads, N, T): which axes are missing?",
        "scale[:, None, None] has shape (B, 1, 1, T).",
    ],
    "Controller": [
        "Which rows of `maps` belong to captions, which to the empty caption? Set the second half aside first.",
        "maps[: len(self.source)] are the captions' own maps, and own[self.source] holds, for every row, the maps of its source, as they came in. A row is under control while done < its share.",
        "For words: torch.where(on, inject(own, theirs, self.A, self.keep), own), then reweight in any case. For positions: torch.where(on, theirs, own). "
        "on = (self.done < self.words)[:, None, None, None] or the same with self.itself. At the end torch.cat([own, empty]).",
    ],
    "mapper": [
        "Start from zeros and walk through the pairs.",
        "Equal lengths: A[source, target] = 1 with the two lists sets the pairs one by one. Else every source token's row shares 1 among all its target tokens.",
        "In the second case A[s, target] = 1 / len(target) for each s in source; in both cases keep[target] = 1.",
    ],
    "local_blend": [
        "Three steps: enlarge the heat, compare it with a share of its maximum, choose between two latents.",
        "F.interpolate wants (B, 1, h, w); the maximum is taken over the two last axes, for every row on its own. What happens to a map that is 0 everywhere?",
        'm = F.interpolate(heat[:, None], size=z.shape[-2:], mode="bilinear"); inside is m > threshold * m.amax((2, 3), keepdim=True).',
    ],
    "inversion_step": [
        "First the clean picture that zt and eps imply at level t; then the same eps at level s.",
        "now, then = at(schedule.abar, t, zt), at(schedule.abar, s, zt). Each level has its own two square roots.",
        "clean = (zt - √(1 - now) · eps) / √now; then √then · clean + √(1 - then) · eps.",
    ],
}


def _maps(g, *shape, dtype=torch.float64):
    return (2 * torch.randn(*shape, generator=g, dtype=dtype)).softmax(-1)


def _carry(source, A):
    """source (B, heads, N, T) through A (B, T, T), entry by entry."""
    T = A.shape[-1]
    return torch.stack([sum(source[..., i] * A[:, None, None, i, j] for i in range(T)) for j in range(T)], -1)


def _inject(maps, source, A, keep):
    return keep[:, None, None] * _carry(source, A) + (1 - keep[:, None, None]) * maps


def inject(answer):
    suspects = [
        ("A is used the wrong way round: its rows are source tokens, its columns edited tokens.", lambda m, s, A, k: _inject(m, s, A.transpose(1, 2), k)),
        ("keep = 1 marks the tokens that take the source's map; yours keep their own there.", lambda m, s, A, k: _inject(m, s, A, 1 - k)),
        ("the source's maps are taken as they are: A has to carry them over first.", lambda m, s, A, k: k[:, None, None] * s + (1 - k[:, None, None]) * m),
        ("tokens with keep = 0 must keep their own map.", lambda m, s, A, k: _carry(s, A)),
        ("all rows use the first row's A and keep.", lambda m, s, A, k: _inject(m, s, A[:1], k[:1])),
        ("the own maps are carried over with A, not the source's.", lambda m, s, A, k: _inject(m, m, A, k)),
    ]

    def case(B, heads, N, T, dtype=torch.float64):
        def draw(g):
            keep = (torch.rand(B, T, generator=g) > 0.5).to(dtype)
            keep[:, :2] = torch.tensor([0.0, 1.0])
            A = torch.rand(B, T, T, generator=g, dtype=dtype)
            return {"maps": _maps(g, B, heads, N, T, dtype=dtype), "source_maps": _maps(g, B, heads, N, T, dtype=dtype), "A": A, "keep": keep}

        return draw

    cases = [case(3, 2, 4, 5), case(2, 3, 6, 4), case(1, 1, 2, 3), case(5, 5, 5, 5), case(3, 2, 4, 5, torch.float32)]
    agree(answer, _inject, cases, what="the injected maps", grad=("maps", "source_maps", "A"), tol=1e-6, suspects=suspects)


def reweight(answer):
    def brute(maps, scale):
        return torch.stack([torch.stack([maps[b, :, :, j] * scale[b, j] for j in range(maps.shape[-1])], -1) for b in range(len(maps))])

    suspects = [
        (
            "the rows sum to 1 again: do not normalise, or more of one word becomes less of the others.",
            lambda m, s: brute(m, s) / brute(m, s).sum(-1, keepdim=True),
        ),
        ("a negative factor must stay negative.", lambda m, s: brute(m, s.abs())),
        ("a negative factor counts as 0 here: it should turn the map into its opposite.", lambda m, s: brute(m, s.clamp(min=0))),
        ("all rows use the first row's factors.", lambda m, s: brute(m, s[:1].expand_as(s))),
        ("the factor acts squared.", lambda m, s: brute(m, s**2)),
    ]

    def case(B, heads, N, T):
        return lambda g: {"maps": _maps(g, B, heads, N, T), "scale": torch.randn(B, T, generator=g, dtype=torch.float64) * 2}

    def loud(g):
        given = case(3, 2, 4, 5)(g)
        given["scale"][0] *= 100
        return given

    cases = [case(3, 2, 4, 5), case(5, 5, 5, 5), case(1, 3, 2, 4), loud]
    agree(answer, brute, cases, what="the re-weighted maps", grad=("maps", "scale"), tol=1e-9, suspects=suspects)


def _control(c, maps, to_words, until=lambda done, share: done < share, scaled=True, halves=True, chained=False, always=False):
    """What a controller with the fields of ``c`` does, row by row; the switches build the usual mistakes."""
    B = len(c.source)
    own = [maps[b] for b in range(B)]
    out = list(own)
    for b in range(B):
        s = int(c.source[b])
        theirs = out[s] if chained else own[s]
        if to_words:
            if always or until(c.done, float(c.words[b])):
                out[b] = _inject(own[b][None], theirs[None], c.A[b][None], c.keep[b][None])[0]
            out[b] = out[b] * c.scale[b] if scaled else out[b]
        elif always or until(c.done, float(c.itself[b])):
            out[b] = theirs
    if len(maps) == B:
        return torch.stack(out)
    rest = maps[B:] if halves else _control(c, maps[B:], to_words, until, scaled, halves, chained, always)
    return torch.cat([torch.stack(out), rest])


def Controller(answer):
    suspects = [
        ("the rows of the empty caption were changed, too: only the first half is touched.", dict(halves=False)),
        ("the factors of `reweight` were not applied.", dict(scaled=False)),
        ("the shares are ignored: the maps are injected at every step.", dict(always=True)),
        ("the injection goes on for one step too many: it stops when `done` has reached the share.", dict(until=lambda d, s: d <= s)),
        ("the injection runs at the late steps and not at the early ones.", dict(until=lambda d, s: d >= s)),
        ("a row took maps that had been changed already: every row takes its source's maps as they came in.", dict(chained=True)),
    ]
    g = torch.Generator().manual_seed(5)
    B, T = 4, 5
    A, keep = torch.rand(B, T, T, generator=g, dtype=torch.float64), (torch.rand(B, T, generator=g) > 0.4).double()
    A[0], keep[0], scale = torch.eye(T), 1.0, torch.randn(B, T, generator=g, dtype=torch.float64)
    scale[0] = 1.0
    fields = dict(
        source=torch.tensor([0, 0, 1, 0]), A=A, keep=keep, scale=scale, words=torch.tensor([0.0, 0.5, 0.75, 1.0]), itself=torch.tensor([0.0, 0.25, 0.5, 0.75])
    )
    _control_rows(answer, fields, suspects)
    _control_rows(answer, {k: v[:3] for k, v in fields.items()}, suspects)


def _control_rows(answer, fields, suspects):
    """A controller with these fields, with and without the rows of the empty caption, at four shares of the steps."""
    controller = answer(**fields)
    before, (B, T) = {k: v.clone() for k, v in fields.items()}, fields["keep"].shape

    def work(maps, to_words, done):
        controller.done = done
        out = controller(maps, to_words)
        right(
            controller.done == done and all(torch.equal(getattr(controller, k), v) for k, v in before.items()),
            "the controller changed its own fields while it worked.",
        )
        return out

    def told(maps, to_words, done, **how):
        return _control(SimpleNamespace(**fields, done=done), maps, to_words, **how)

    def case(to_words, rows, done):
        return lambda g: {"maps": _maps(g, rows, 2, 3, T if to_words else 3), "to_words": to_words, "done": done}

    cases = [case(to_words, rows, done) for done in (0.0, 0.25, 0.5, 0.75) for to_words in (True, False) for rows in (2 * B, B)]
    bound = [(m, lambda *args, how=how: told(*args, **how)) for m, how in suspects]
    agree(work, told, cases, what="the maps that the controller gives back", grad=("maps",), tol=1e-9, suspects=bound)


def mapper(answer):
    cases = [
        ([([0], [0]), ([1], [1]), ([2, 3], [2, 3])], 5),
        ([([0], [0]), ([1, 2], [1, 2, 3, 4]), ([3], [5]), ([4, 5, 6, 7], [6, 7])], 8),
        ([([0], [0]), ([1], [3]), ([2], [4]), ([3, 4, 5], [5])], 6),  # two words were added before the second
        ([([0], [0]), ([2, 1], [1, 2])], 7),  # a pair whose tokens stand in another order
        ([], 4),
    ]
    for pairs, T in cases:
        got = answer(pairs, T)
        if not (isinstance(got, (tuple, list)) and len(got) == 2):
            raise Wrong("return two tensors: A, keep.")
        A, keep = torch.zeros(T, T), torch.zeros(T)
        for source, target in pairs:
            for n, i in enumerate(source):
                for m, j in enumerate(target):
                    A[i, j] = float(n == m) if len(source) == len(target) else 1 / len(target)
            for j in target:
                keep[j] = 1
        if isinstance(got[0], torch.Tensor) and got[0].shape == A.shape:
            right(not torch.allclose(got[0], A.T) or torch.allclose(A, A.T), "A is transposed: rows are source tokens, columns edited tokens.")
            given = {i for s, _ in pairs for i in s}
            rows = got[0].sum(1)
            odd = [i for i in sorted(given) if not torch.isclose(rows[i], torch.tensor(1.0, dtype=rows.dtype))]
            if odd:
                raise Wrong(
                    f"for the pairs {pairs} row {odd[0]} of A sums to {rows[odd[0]].item():.2g}: a source token that has a partner gives away exactly 1 in all."
                )
        same(got[0], A, f"A for the pairs {pairs}")
        same(got[1], keep, f"keep for the pairs {pairs}")
    right(answer([([0], [0])])[0].shape == (20, 20), "without a context A should be 20 × 20.")
    again = answer(cases[1][0], 8)[0]
    again += 1
    same(answer(cases[1][0], 8)[0], again - 1, "A of a second call with the same pairs")


def local_blend(answer):
    def blend(z, old, heat, threshold, over=lambda m, k, t: m > t * m.amax((2, 3), keepdim=True), mode="bilinear", soft=False):
        m = torch.nn.functional.interpolate(heat[:, None], size=z.shape[-2:], mode=mode)
        inside = over(m, heat, threshold)
        return torch.where(inside, z, old)

    swapped = lambda z, old, heat, t: blend(old, z, heat, t)
    suspects = [
        ("inside and outside are swapped: the edited latent belongs inside the mask.", swapped),
        (
            "one maximum serves all rows: the threshold is a share of each map's own maximum.",
            lambda z, o, h, t: blend(z, o, h, t, lambda m, k, t: m > t * m.max()),
        ),
        (
            "a map that is 0 everywhere marks nothing: it should not exceed its own maximum.",
            lambda z, o, h, t: blend(z, o, h, t, lambda m, k, t: m >= t * m.amax((2, 3), keepdim=True)),
        ),
        (
            "the threshold is compared with the heat itself: it is a share of the map's own maximum.",
            lambda z, o, h, t: blend(z, o, h, t, lambda m, k, t: m > t),
        ),
        ("the heat was enlarged by repeating pixels: bilinear is asked for.", lambda z, o, h, t: blend(z, o, h, t, mode="nearest")),
        (
            "the maximum was taken before the map was enlarged.",
            lambda z, o, h, t: blend(z, o, h, t, lambda m, k, t: m > t * k.amax((1, 2))[:, None, None, None]),
        ),
    ]

    def case(threshold, B=3, C=2, H=8, W=12, h=4, w=3, dtype=torch.float64):
        def draw(g):
            z, old = torch.randn(2, B, C, H, W, generator=g, dtype=dtype)
            heat = torch.rand(B, h, w, generator=g, dtype=dtype) ** 4
            heat[0] *= 50
            heat[1] *= 0.02  # far cooler than the first: each map has its own maximum
            if B > 2:
                heat[2] = 0
            return {"z": z, "z_source": old, "heat": heat, "threshold": threshold}

        return draw

    cases = [case(0.3), case(0.6), case(0.9), case(0.4, B=2, C=1, H=5, W=7), case(0.5, dtype=torch.float32)]
    agree(answer, blend, cases, what="the blended latent", grad=("z", "z_source"), suspects=suspects)
    each = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64).reshape(3, 1, 1, 1)
    agree(answer, blend, case(each), what="the blended latent with a threshold for each row, (B, 1, 1, 1),", grad=("z", "z_source"))
    default = lambda g: {k: v for k, v in case(0.4)(g).items() if k != "threshold"}
    agree(answer, lambda z, o, h: blend(z, o, h, 0.4), default, what="the blended latent without a threshold (0.4)", suspects=[])


def _schedule(T: int = 30) -> SimpleNamespace:
    beta = [0.0] + [0.01 + 0.1 * (k / (T - 1)) ** 2 for k in range(T)]
    return SimpleNamespace(abar=torch.tensor([math.prod(1 - b for b in beta[: t + 1]) for t in range(T + 1)], dtype=torch.float64), T=T)


def inversion_step(answer):
    def step(zt, eps, t, s, schedule, fresh=False, swap=False, roots=True):
        out = []
        for b in range(len(zt)):
            now, then = schedule.abar[t[b]].item(), schedule.abar[s[b]].item()
            now, then = (then, now) if swap else (now, then)
            root = math.sqrt if roots else float
            if fresh:
                out.append(math.sqrt(then / now) * zt[b] + math.sqrt(max(1 - then / now, 0)) * eps[b])
            else:
                out.append(root(then) * (zt[b] - root(1 - now) * eps[b]) / root(now) + root(1 - then) * eps[b])
        return torch.stack(out)

    suspects = [
        ("this adds eps as fresh noise. The noise is already in zt: remove it first, then put it back at level s.", lambda *a: step(*a, fresh=True)),
        ("the two levels are exchanged.", lambda *a: step(*a, swap=True)),
        ("the square roots are missing.", lambda *a: step(*a, roots=False)),
        ("zt is taken for the clean picture: remove its noise first.", lambda z, e, t, s, c: step(z, e, 0 * t, s, c)),
    ]

    def case(*shape, dtype=torch.float64):
        def draw(g):
            zt, eps = torch.randn(2, *shape, generator=g, dtype=dtype)
            return {"zt": zt, "eps": eps, "t": torch.tensor([0, 3, 11, 20]), "s": torch.tensor([2, 4, 30, 21]), "schedule": _schedule()}

        return draw

    for tol, cases in ((1e-9, [case(4, 3, 2, 5), case(4, 6), case(4)]), (1e-4, [case(4, 3, 2, 5, dtype=torch.float32)])):
        agree(answer, step, cases, what="z_s", grad=("zt", "eps"), tol=tol, suspects=suspects)

    def large(g):
        given = case(4, 6)(g)
        given["zt"][1] *= 100
        return given

    agree(answer, step, large, what="z_s of a latent with large numbers", grad=("zt", "eps"), tol=1e-9)
