"""The checks of lesson 3.6 accept right answers, however they are written, and refuse plausible wrong ones, each with one clear sentence."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import nerf as checks
from course_utils.exercises import examine
from course_utils.lessons import nerf

from . import accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, nerf, name)


# Right answers, written another way


def rays_by_inverse(K, R, t, height, width):
    """Back-projection through the inverse camera matrix."""
    i, j = torch.arange(height * width) // width, torch.arange(height * width) % width
    pixel = torch.stack([j + 0.5, i + 0.5, torch.ones(height * width)]).to(K.dtype)
    d = (torch.linalg.inv(R) @ torch.linalg.inv(K) @ pixel).T.reshape(height, width, 3)
    return torch.linalg.solve(R, -t).repeat(height, width, 1), F.normalize(d, dim=-1)


def rays_by_einsum(K, R, t, height, width):
    u, v = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    d = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)], -1).to(K.dtype)
    d = torch.einsum("ji,hwj->hwi", R, d)
    return -torch.einsum("ji,j->i", R, t).expand(height, width, 3), d / d.square().sum(-1, keepdim=True).sqrt()


def weights_by_products(sigma, delta):
    passed = torch.exp(-sigma * delta)
    T = torch.cat([torch.ones_like(passed[..., :1]), passed.cumprod(-1)[..., :-1]], -1)
    return T * (1 - passed)


def weights_by_differences(sigma, delta):
    T = torch.exp(-F.pad((sigma * delta).cumsum(-1), (1, 0)))
    return T[..., :-1] - T[..., 1:]


def weights_by_loop(sigma, delta):
    left, out = torch.ones_like(sigma[..., 0]), []
    for s, d in zip(sigma.unbind(-1), delta.unbind(-1), strict=True):
        a = -torch.expm1(-s * d)
        out.append(left * a)
        left = left * (1 - a)
    return torch.stack(out, -1)


def encoding_by_loop(x, bands):
    sines = [torch.sin(2**k * math.pi * x[..., c]) for c in range(x.shape[-1]) for k in range(bands)]
    cosines = [torch.cos(2**k * math.pi * x[..., c]) for c in range(x.shape[-1]) for k in range(bands)]
    return torch.cat([x, *(a[..., None] for a in sines + cosines)], -1)


def encoding_by_einsum(x, bands):
    angle = torch.einsum("...d,l->...dl", x, math.pi * 2 ** torch.arange(bands).to(x))
    return torch.cat([x, torch.sin(angle).reshape(*x.shape[:-1], -1), torch.sin(angle + math.pi / 2).reshape(*x.shape[:-1], -1)], -1)


def pdf_by_rays(edges, w, n, jitter=True):
    """Ray after ray; the bin by comparing u with every value of the cumulative distribution."""
    out = []
    for e, h in zip(edges, w, strict=True):
        cdf = torch.cat([h.new_zeros(1), torch.cumsum(h / h.sum(), 0)])
        u = (torch.arange(n) + (torch.rand(n, dtype=e.dtype) if jitter else 0.5)).to(e) / n
        i = ((u[:, None] >= cdf[None]).sum(1) - 1).clamp(max=len(h) - 1)
        out.append(e[i] + (u - cdf[i]) / (cdf[i + 1] - cdf[i] + 1e-12) * (e[i + 1] - e[i]))
    return torch.stack(out)


def by_lerp(field, o, d, n, n_fine=0, occupancy=None, jitter=True):
    """White is mixed in by the opacity; the weights are detached where the coarse pass was not run under no_grad."""
    near, far, _ = nerf.ball_interval(o, d)
    s = nerf.stratified(near, far, n, jitter)
    if n_fine > 0:
        w, _, edges = nerf.march(field, o, d, s, near, far, occupancy=occupancy, colours=False)
        s = torch.sort(torch.cat([nerf.sample_pdf(edges.detach(), 0.001 + w.detach(), n_fine, jitter=jitter), s], dim=1), dim=1).values
    w, rgb, _ = nerf.march(field, o, d, s, near, far, occupancy=occupancy)
    opacity = w.sum(-1, keepdim=True)
    return torch.einsum("rs,rsc->rc", w, rgb) + 1 - opacity, opacity[:, 0], torch.einsum("rs,rs->r", w, s) / torch.clamp(opacity[:, 0], 1e-6)


def jittered(place=torch.rand, of_first=False, dtype=None, single=True):
    """sample_pdf whose jitter alone is wrong: ``place`` (R, n) within the strata."""

    def answer(edges, w, n, jitter=True):
        if not jitter or (n == 1 and not single):
            return nerf.sample_pdf(edges, w, n, jitter=False)
        if of_first:
            edges, w = edges[:1].expand_as(edges), w[:1].expand_as(w)
        cdf = F.pad(w.cumsum(-1), (1, 0))
        cdf = cdf / cdf[:, -1:]
        u = ((torch.arange(n) + place(len(edges), n)) / n).to(edges)
        i = (torch.searchsorted(cdf, u, right=True) - 1).clamp(0, w.shape[-1] - 1)
        low, high, left, right = cdf.gather(-1, i), cdf.gather(-1, i + 1), edges.gather(-1, i), edges.gather(-1, i + 1)
        return (left + (u - low) / (high - low) * (right - left)).to(dtype or edges.dtype)

    return answer


def in_pairs(R, n):
    return torch.rand((R + 1) // 2, n).repeat_interleave(2, 0)[:R]


RIGHT = {
    "pixel_rays": [rays_by_inverse, rays_by_einsum],
    "volume_weights": [weights_by_products, weights_by_differences, weights_by_loop],
    "positional_encoding": [encoding_by_loop, encoding_by_einsum],
    "sample_pdf": [jittered(), pdf_by_rays],
    "render_rays": [by_lerp],
}


@pytest.mark.parametrize(("name", "answer"), [(n, f) for n, fs in RIGHT.items() for f in fs])
def test_other_right_answers_pass(name, answer):
    examine(getattr(checks, name), answer)


# Wrong ones


def rays(half=0.5, transpose=True, unit=True, swap=False, flip=False, centre=True, square=False):
    def answer(K, R, t, height, width):
        v, u = torch.meshgrid(torch.arange(height) + half, torch.arange(width) + half, indexing="ij")
        if swap:
            u, v = v, u
        z = -torch.ones_like(u) if flip else torch.ones_like(u)
        fy = K[0, 0] if square else K[1, 1]
        d = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / fy, z], -1).to(K.dtype)
        d = d @ R if transpose else d @ R.T
        if unit:
            d = d / d.norm(dim=-1, keepdim=True)
        return (-R.T @ t if centre else t).expand_as(d), d

    return answer


def in_place(K, R, t, height, width):
    t *= -1
    return (R.T @ t).expand(height, width, 3), rays()(K, R, t, height, width)[1]


def encoding(pi=math.pi, keep=True, by_coordinate=True, base=2.0):
    def answer(x, bands):
        f = base ** torch.arange(bands, dtype=x.dtype) if base else torch.arange(1, bands + 1, dtype=x.dtype)
        a = x[..., None] * pi * f
        a = a if by_coordinate else a.transpose(-1, -2)
        return torch.cat(([x] if keep else []) + [a.sin().flatten(-2), a.cos().flatten(-2)], -1)

    return answer


def interleaved(x, bands):
    a = (x[..., None] * math.pi * 2.0 ** torch.arange(bands, dtype=x.dtype)).flatten(-2)
    return torch.cat([x, torch.stack([a.sin(), a.cos()], -1).flatten(-2)], -1)


def sines_and_cosines_by_coordinate(x, bands):
    a = x[..., None] * math.pi * 2.0 ** torch.arange(bands, dtype=x.dtype)
    return torch.cat([x, torch.cat([a.sin(), a.cos()], -1).flatten(-2)], -1)


def wrong_axis(sigma, delta):
    tau = sigma * delta
    return torch.exp(-(tau.cumsum(0) - tau)) * (1 - torch.exp(-tau))


def cancelling(sigma, delta):
    tau = sigma * delta
    return torch.exp(-(tau.cumsum(-1) - tau)) * (1 - torch.exp(-tau))


def own_piece(sigma, delta):
    tau = sigma * delta
    return torch.exp(-tau.cumsum(-1)) * (1 - torch.exp(-tau))


def detached(sigma, delta):
    tau = sigma * delta
    return torch.exp(-F.pad(tau[..., :-1].cumsum(-1), (1, 0))).detach() * (1 - torch.exp(-tau))


def logarithms(sigma, delta):
    """Fine until the light is gone: log 0."""
    passed = torch.exp(-sigma * delta)
    return torch.exp(F.pad(passed.log().cumsum(-1)[..., :-1], (1, 0))) * (1 - passed)


def delta_forgotten(sigma, delta):
    tau = sigma * delta[..., :1]
    return torch.exp(-F.pad(tau[..., :-1].cumsum(-1), (1, 0))) * (1 - torch.exp(-tau))


def pdf(normal="rows", first=True, inside=True, ordered=True, scale=1.0, one=None, side=True):
    """Wrong in one way; ``one``: which axis of u shares one random number."""

    def answer(edges, w, n, jitter=True):
        p = w / (w.sum(-1, keepdim=True) if normal == "rows" else w.sum() if normal == "all" else 1.0)
        cdf = F.pad(p.cumsum(-1), (1, 0)) if first else torch.cat([p.cumsum(-1), torch.ones_like(p[:, :1])], -1)
        shape = {"rays": (1, n), "strata": (len(edges), 1), None: (len(edges), n)}[one]
        u = torch.rand(shape, dtype=edges.dtype).expand(len(edges), n) * scale if jitter else torch.full((len(edges), n), 0.5, dtype=edges.dtype)
        u = (torch.arange(n) + u) / n if ordered or not jitter else u
        i = (torch.searchsorted(cdf, u.contiguous(), right=side) - 1).clamp(0, w.shape[-1] - 1)
        left, right = edges.gather(-1, i), edges.gather(-1, i + 1)
        if not inside:
            return left
        low, high = cdf.gather(-1, i), cdf.gather(-1, i + 1)
        return left + (u - low) / (high - low).clamp(min=1e-8) * (right - left)

    return answer


def cached(edges, w, n, jitter=True, kept=[]):  # noqa: B006 (the mistake in question)
    if not kept or kept[0].shape != (len(edges), n):
        kept[:] = [nerf.sample_pdf(edges, w, n, jitter)]
    return kept[0]


def renderer(
    background=1.0, normal=True, join=True, ordered=True, floor=1e-3, grad=False, coarse_occ=True, last_occ=True, jitters=(True, True), full=False, cut=0
):
    """The course's own renderer with one thing wrong."""

    def answer(field, o, d, n, n_fine=0, occupancy=None, jitter=True):
        near, far, _ = nerf.ball_interval(o, d)
        s = nerf.stratified(near, far, n, jitter and jitters[0])
        if n_fine:
            with torch.set_grad_enabled(grad):
                w, _, edges = nerf.march(field, o, d, s, near, far, occupancy if coarse_occ else None, colours=full)
                fine = nerf.sample_pdf(edges, w + floor, n_fine, jitter and jitters[1])
            s = torch.cat([s, fine], -1) if join else fine
            s = s.sort(-1)[0] if ordered else s
        w, rgb, _ = nerf.march(field, o, d, s, near, far, occupancy if last_occ else None)
        rgb, w = (rgb.detach(), w) if cut == 1 else (rgb, w.detach()) if cut == 2 else (rgb, w)
        opacity = w.sum(-1)
        colour = (w[..., None] * rgb).sum(1) + background * (1 - opacity)[:, None]
        distance = (w * s).sum(-1)
        return colour, opacity, distance / opacity.clamp(min=1e-6) if normal else distance

    return answer


@torch.no_grad()
def without_gradient(*args, **kwargs):
    return nerf.render_rays(*args, **kwargs)


def unclamped(field, o, d, n, n_fine=0, occupancy=None, jitter=True):
    colour, opacity, distance = nerf.render_rays(field, o, d, n, n_fine, occupancy, jitter)
    return colour, opacity, distance * opacity.clamp(min=1e-6) / opacity


def sloppy(field, o, d, n, n_fine=0, occupancy=None, jitter=True):
    """The fine samples are drawn from equal weights."""
    near, far, _ = nerf.ball_interval(o, d)
    s = nerf.stratified(near, far, n + n_fine, jitter)
    field.density((o[:, None] + s[:, :n, None] * d[:, None]).reshape(-1, 3))
    w, rgb, _ = nerf.march(field, o, d, s, near, far, occupancy)
    return (w[..., None] * rgb).sum(1) + (1 - w.sum(-1))[:, None], w.sum(-1), (w * s).sum(-1) / w.sum(-1).clamp(min=1e-6)


def crumbs(sigma, delta):
    passed = torch.exp(-sigma * delta)
    return (1 - passed) * F.pad(passed[..., :-1] + 1e-10, (1, 0), value=1.0).cumprod(-1)


def inside_one(x, bands):
    return nerf.positional_encoding(x.clamp(-1, 1), bands)


def six_bands_at_most(x, bands):
    return nerf.positional_encoding(x, min(bands, 6))


def cut_without_bands(x, bands):
    return nerf.positional_encoding(x, bands) if bands else x.detach()


def floored(floor):
    def answer(field, o, d, n, n_fine=0, occupancy=None, jitter=True):
        colour, opacity, distance = nerf.render_rays(field, o, d, n, n_fine, occupancy, jitter)
        return colour, opacity, distance * opacity.clamp(min=1e-6) / opacity.clamp(min=floor)

    return answer


def poses_cut(field, o, d, *args, **kwargs):
    return nerf.render_rays(field, o.detach(), d.detach(), *args, **kwargs)


def always_fine(field, o, d, n, n_fine=4, occupancy=None, jitter=True):
    return nerf.render_rays(field, o, d, n, n_fine, occupancy, jitter)


def masked(field, o, d, n, n_fine=0, occupancy=None, jitter=True):
    """Asks everywhere, and forgets what lies in empty cells."""

    class Masked:
        def density(self, x):
            return field.density(x) * (1 if occupancy is None else occupancy(x))

        def __call__(self, x, v):
            sigma, colour = field(x, v)
            return sigma * (1 if occupancy is None else occupancy(x)), colour

    return nerf.render_rays(Masked(), o, d, n, n_fine, None, jitter)


def stiff_with_occupancy(field, o, d, n, n_fine=0, occupancy=None, jitter=True):
    return nerf.render_rays(field, o, d, n, n_fine, occupancy, jitter and occupancy is None)


def stiff_without_fine(field, o, d, n, n_fine=0, occupancy=None, jitter=True):
    return nerf.render_rays(field, o, d, n, n_fine, occupancy, jitter and n_fine > 0)


WRONG = {
    "pixel_rays": [
        (rays(half=0.0), "corners"),
        (rays(transpose=False), "the wrong way round"),
        (rays(unit=False), "length"),
        (rays(swap=True), "exchanged"),
        (rays(flip=True), "behind"),
        (rays(centre=False), "the origins are t"),
        (rays(square=True), "off by"),
        (in_place, "changes its argument t"),
        (lambda K, R, t, h, w: tuple(x.reshape(-1, 3) for x in rays()(K, R, t, h, w)), "shape"),
        (lambda K, R, t, h, w: tuple(x.transpose(0, 1) for x in rays()(K, R, t, h, w)), "shape"),
        (lambda K, R, t, h, w: rays()(K, R, t, h, w)[1], "two tensors"),
        (lambda K, R, t, h, w: rays()(K.detach(), R, t, h, w), "gradient reaches K"),
        (lambda K, R, t, h, w: rays()(K, R, t.detach(), h, w), "gradient reaches t"),
        (lambda K, R, t, h, w: (rays()(K, R.detach(), t, h, w)[0], rays()(K, R, t, h, w)[1]), "gradient with respect to R"),
        (lambda K, R, t, h, w: tuple(x.float() for x in rays()(K, R, t, h, w)), "dtype"),
    ],
    "volume_weights": [
        (crumbs, "crumb"),
        (own_piece, "weakened by piece i itself"),
        (lambda s, d: 1 - torch.exp(-s * d), "opacities of the pieces alone"),
        (lambda s, d: s * d * torch.exp(-F.pad((s * d).cumsum(-1)[..., :-1], (1, 0))), "only where σδ is small"),
        (wrong_axis, "off by"),
        (cancelling, "changes the weights in front of it"),
        (logarithms, "nan"),
        (delta_forgotten, "off by"),
        (detached, "right gradient with respect to"),
        (lambda s, d: nerf.volume_weights(s, d.detach()), "reaches delta"),
        (lambda s, d: nerf.volume_weights(s.flip(-1), d.flip(-1)).flip(-1), "upside down"),
        (lambda s, d: nerf.volume_weights(s, d).detach(), "gradient"),
        (lambda s, d: nerf.volume_weights(s, d).sum(-1), "shape"),
        (lambda s, d: nerf.volume_weights(s, d) / nerf.volume_weights(s, d).sum(-1, keepdim=True), "off by"),
        (lambda s, d: nerf.volume_weights(s.clamp(max=2.5), d), "off by"),
    ],
    "positional_encoding": [
        (inside_one, "beyond 1"),
        (six_bands_at_most, "10 bands"),
        (cut_without_bands, "no gradient"),
        (encoding(pi=1.0), "π is missing"),
        (encoding(pi=2 * math.pi), "lowest frequency"),
        (encoding(keep=False), "in front"),
        (encoding(by_coordinate=False), "order is not"),
        (interleaved, "alternate"),
        (sines_and_cosines_by_coordinate, "before the first cosine"),
        (encoding(base=0.0), "off by"),
        (lambda x, bands: encoding()(x, bands).float(), "dtype"),
        (lambda x, bands: encoding()(x, bands)[0], "shape"),
        (lambda x, bands: torch.cat([x, encoding(keep=False)(x.detach(), bands)], -1), "gradient"),
        (lambda x, bands: encoding()(x, max(1, bands)), "bands = 0"),
    ],
    "sample_pdf": [
        (jittered(dtype=torch.float32), "dtype of edges"),
        (jittered(of_first=True), "strata"),
        (jittered(single=False), "hardly moves"),
        (jittered(lambda R, n: 0.05 + 0.9 * torch.rand(R, n)), "not spread evenly"),
        (jittered(in_pairs), "several rays"),
        (pdf(normal=""), "divided by their sum"),
        (pdf(normal="all"), "off by"),
        (pdf(first=False), "does not begin at 0|off by"),
        (pdf(inside=False), "sits on an edge"),
        (pdf(ordered=False), "in order"),
        (pdf(one="rays"), "all rays get the same u"),
        (pdf(one="strata"), "one random number serves all strata"),
        (pdf(scale=0.1), "not spread evenly"),
        (pdf(side=False), "off by"),
        (lambda e, w, n, jitter=True: pdf()(e, w, n, False), "middle|spread evenly|same u"),
        (lambda e, w, n, jitter=True: pdf()(e[:1].expand_as(e), w, n, jitter), "first ray's edges"),
        (lambda e, w, n, jitter=True: pdf()(e, w[:1].expand_as(w), n, jitter), "first ray's weights"),
        (lambda e, w, n, jitter=True: nerf.stratified(e[:, 0], e[:, -1], n, jitter), "off by"),
        (lambda e, w, n, jitter=True: pdf()(e, w, n, jitter).T, "shape"),
        (lambda e, w, n, jitter=True: pdf()(e, w, n, jitter).float(), "dtype"),
        (lambda e, w, n, jitter=True: pdf()(e, w.add_(1e-5), n, jitter), "changes its argument w"),
        (cached, "second call"),
    ],
    "render_rays": [
        (floored(1e-2), "thin fog"),
        (floored(1e-3), "thin fog"),
        (poses_cut, "poses"),
        (always_fine, "without n_fine"),
        (masked, "calls empty"),
        (stiff_with_occupancy, "lose their jitter"),
        (stiff_without_fine, "lose their jitter"),
        (renderer(background=0.0), "black"),
        (renderer(normal=False), "divided by the opacity"),
        (renderer(join=False), "replace the coarse ones"),
        (renderer(ordered=False), "off by|inf|nan"),
        (renderer(floor=0.0), "without the small share|nan"),
        (renderer(floor=1e-2), "off by"),
        (renderer(coarse_occ=False), "not used in the coarse pass"),
        (renderer(last_occ=False), "not used in the last pass"),
        (renderer(coarse_occ=False, last_occ=False), "occupancy is not used"),
        (renderer(grad=True), "runs through the places"),
        (renderer(cut=1), "part of the way is cut"),
        (renderer(cut=2), "part of the way is cut"),
        (renderer(jitters=(False, True)), "middles of their bins"),
        (renderer(jitters=(True, False)), "middles of their strata"),
        (renderer(full=True), "asks for the density alone|whole field"),
        (without_gradient, "no gradient"),
        (unclamped, "nan"),
        (sloppy, "off by"),
        (lambda f, o, d, n, n_fine=0, occupancy=None, jitter=True: nerf.render_rays(f, o, d, n, 0, occupancy, jitter), "left out"),
        (lambda f, o, d, n, n_fine=0, occupancy=None, jitter=True: nerf.render_rays(f, o, d, n, n_fine, occupancy), "off by"),
        (lambda *a, **k: nerf.render_rays(*a, **k)[0], "three tensors"),
        (lambda *a, **k: tuple(x[:1] for x in nerf.render_rays(*a, **k)), "shape"),
    ],
}


@every(WRONG)
def test_refuses(name, answer, words):
    refuses(getattr(checks, name), answer, words)


def test_an_empty_answer_is_not_attempted():
    def empty(*args, **kwargs):
        raise NotImplementedError

    for name in checks.HINTS:
        with pytest.raises(NotImplementedError):
            examine(getattr(checks, name), empty)
