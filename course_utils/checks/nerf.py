"""Checks of lesson 3.6 (NeRF): each follows one ray, or one pixel, at a time."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..exercises import Wrong, agree, alike, right, same

HINTS = {
    "pixel_rays": [
        "Which (u, v) is the centre of pixel (row 0, column 0)? Which of u and v grows along a row of the picture? `torch.meshgrid(..., indexing='ij')` of two ranges gives both as pictures.",
        "In camera axes the direction is ((u − cx)/fx, (v − cy)/fy, 1). It still has to be turned into world axes: which of R and Rᵀ does that, and how is it written when the vectors are rows?",
        "For rows it is `d @ R`; then d / d.norm(dim=-1, keepdim=True). The origin is −Rᵀ t, expanded to (H, W, 3).",
    ],
    "volume_weights": [
        "Let tau = sigma * delta. What share of the light that reaches a piece does it absorb? How much reaches it?",
        "What reaches piece i has passed the pieces before it: exp of minus the sum of the earlier tau. A running sum over all but the last piece, with a zero put in front, has these sums in the right places.",
        "before = F.pad(tau[..., :-1].cumsum(-1), (1, 0)); the weight is exp(−before) · (1 − exp(−tau)).",
    ],
    "positional_encoding": [
        "How many angles are there for one coordinate, and by which factor does each differ from the one before?",
        "x[..., None] * frequencies has shape (..., D, bands); `.flatten(-2)` makes it (..., D·bands), coordinate by coordinate.",
        "The frequencies are π·2⁰, π·2¹, …, π·2^(bands−1); torch.cat([x, angle.sin().flatten(-2), angle.cos().flatten(-2)], -1).",
    ],
    "sample_pdf": [
        "The cumulative distribution has one value for each edge. What is it at the first edge, and at the last?",
        "u (R, n) = (arange(n) + rand)/n. The bin is i = searchsorted(cdf, u, right=True) − 1, kept within 0 … S−1.",
        "With gather take cdf and edges at i and at i+1; s = left + (u − low)/(high − low) · (right − left), with the denominator clamped from below.",
    ],
    "render_rays": [
        "Four parts: where the ray is inside the ball, the coarse samples, the fine ones if there are any, and the sum over all samples. Which function of the lesson does each?",
        "The coarse pass is `march(..., colours=False)` under `torch.no_grad()`; its weights and edges go into `sample_pdf`. The new samples join the old ones and have to be put in order.",
        "s = torch.cat([s, sample_pdf(edges, w + 1e-3, n_fine, jitter)], -1).sort(-1)[0]; w, rgb, _ = march(field, o, d, s, near, far, occupancy); "
        "colour = (w[..., None] * rgb).sum(1) + (1 − w.sum(-1))[:, None]; depth = (w * s).sum(-1) / opacity.clamp(min=1e-6).",
    ],
}


def _cases(draw, *sizes):
    """The same case in double and in single precision, for each of some sizes."""
    return {dtype: [draw(size, dtype) for size in sizes] for dtype in (torch.float64, torch.float32)}


TOL = {torch.float64: 1e-9, torch.float32: 1e-4}


# Rays


def _rotation(turn):
    """The rotation with the rotation vector ``turn``: the exponential of its cross-product matrix."""
    x, y, z = turn
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3))


def _calibration(lens):
    fx, fy, cx, cy = lens
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one]).view(3, 3)


def _one_ray(lens, turn, t, i, j, half=0.5, inverse=True, unit=True, z=1.0):
    fx, fy, cx, cy = lens
    R = _rotation(turn)
    d = torch.stack([(j + half - cx) / fx, (i + half - cy) / fy, torch.full_like(fx, z)])
    d = (R.T if inverse else R) @ d
    return d / d.square().sum().sqrt() if unit else d


def _rays(lens, turn, t, height, width, swap=False, centre=True, **how):
    ray = lambda i, j: _one_ray(lens, turn, t, *((j, i) if swap else (i, j)), **how)
    d = torch.stack([torch.stack([ray(i, j) for j in range(width)]) for i in range(height)])
    o = -_rotation(turn).T @ t if centre else t
    return o.expand(height, width, 3), d


def pixel_rays(answer):
    suspects = [
        ("the rays go through the pixels' corners: the centre of a pixel is half a pixel further.", lambda *a: _rays(*a, half=0.0)),
        ("the directions are right but for their length: it should be one.", lambda *a: _rays(*a, unit=False)),
        ("rows and columns are exchanged: u runs along a row, v down a column.", lambda *a: _rays(*a, swap=True)),
        ("the rays run behind the camera: in camera axes z points forward.", lambda *a: _rays(*a, z=-1.0)),
        (
            "the directions are turned the wrong way round: R takes world axes to camera axes, and here it is the other way.",
            lambda *a: _rays(*a, inverse=False),
        ),
        ("the origins are t, but t is where the world's origin lies seen from the camera. Which point X has R X + t = 0?", lambda *a: _rays(*a, centre=False)),
    ]

    def draw(size, dtype):
        def case(g):
            lens = torch.tensor([50.0, 70.0, 11.0, 9.5], dtype=dtype) + torch.rand(4, generator=g, dtype=dtype)
            turn, t = torch.randn(3, generator=g, dtype=dtype), torch.randn(3, generator=g, dtype=dtype)
            return {"K": lens, "R": turn, "t": t, "height": size[0], "width": size[1]}

        return case

    def work(lens, turn, t, height, width):
        out = answer(_calibration(lens), _rotation(turn), t, height, width)
        right(isinstance(out, (tuple, list)) and len(out) == 2, "pixel_rays should return two tensors, (o, d).")
        return tuple(out)

    for dtype, cases in _cases(draw, (6, 9), (3, 1), (1, 1)).items():
        agree(work, _rays, cases, what="(o, d)", grad=("K", "R", "t"), tol=max(TOL[dtype], 1e-6), suspects=suspects)


# Volume rendering


def _weights(sigma, delta, own=False, alone=False, linear=False):
    """Light that goes along one ray after the other, piece by piece."""
    rows = []
    for s, d in zip(sigma.reshape(-1, sigma.shape[-1]), delta.reshape(-1, sigma.shape[-1])):
        left, row = torch.ones_like(s[0]), []
        for i in range(len(s)):
            passed = torch.exp(-s[i] * d[i])
            share = s[i] * d[i] if linear else 1 - passed
            row.append(share * (passed * left if own else torch.ones_like(left) if alone else left))
            left = left * passed
        rows.append(torch.stack(row))
    return torch.stack(rows).view(sigma.shape)


def _cancelling(sigma, delta):
    tau = sigma * delta
    return torch.exp(-(tau.cumsum(-1) - tau)) * (1 - torch.exp(-tau))


def volume_weights(answer):
    suspects = [
        ("the light that reaches piece i is weakened by piece i itself: the first piece should be seen unweakened.", lambda *a: _weights(*a, own=True)),
        ("these are the opacities of the pieces alone: what the pieces in front let through is missing.", lambda *a: _weights(*a, alone=True)),
        ("a piece absorbs σδ only where σδ is small: what does a thick piece absorb?", lambda *a: _weights(*a, linear=True)),
        ("the ray is upside down: the first piece is the nearest.", lambda s, d: _weights(s.flip(-1), d.flip(-1)).flip(-1)),
    ]

    crumb = "a crumb like 1e-10 is added to what a piece lets through: nothing is divided by it, so leave it out."

    def crumbs(sigma, delta):
        passed = torch.exp(-sigma * delta)
        return (1 - passed) * torch.cat([torch.ones_like(passed[..., :1]), passed[..., :-1] + 1e-10], -1).cumprod(-1)

    suspects.append((crumb, crumbs))

    def draw(size, dtype):
        return lambda g: {"sigma": torch.rand(size, generator=g, dtype=dtype) * 3, "delta": torch.rand(size, generator=g, dtype=dtype) * 0.5 + 0.01}

    for dtype, cases in _cases(draw, (4, 7), (5,), (2, 3, 6), (3, 1)).items():
        agree(answer, _weights, cases, what="the weights", grad=("sigma", "delta"), tol=TOL[dtype] / 10, suspects=suspects)

    def wall(at):
        def case(g):
            sigma = torch.rand(3, 5, generator=g) * 2 + 0.1
            sigma[1, at] = 1e8
            sigma[2] = 0.0
            return {"sigma": sigma, "delta": torch.rand(3, 5, generator=g) + 0.1}

        return case

    lost = "a wall (σδ = 1e8) changes the weights in front of it: a small sum is computed as the difference of two huge ones, and its digits are lost."
    agree(answer, _weights, [wall(k) for k in (0, 2, 4)], what="the weights of rays with a wall", grad=("sigma", "delta"), suspects=[(lost, _cancelling)])


# Encoding


def _encoded(x, bands, pi=math.pi, keep=True, order="x sin cos", base=2.0):
    """One point after the other, as plain lists; ``order`` also "by frequency" or "pairs"."""
    rows = []
    for point in x.reshape(-1, x.shape[-1]):
        angle = [[base**k * pi * v for k in range(bands)] for v in point]  # [coordinate][frequency]
        if order == "by frequency":
            angle = [[a[k] for a in angle] for k in range(bands)]
        flat = [a for row in angle for a in row]
        sines, cosines = [torch.sin(a) for a in flat], [torch.cos(a) for a in flat]
        lifted = [v for pair in zip(sines, cosines) for v in pair] if order == "pairs" else sines + cosines
        if order == "by coordinate":
            lifted = [f(a) for row in angle for f in (torch.sin, torch.cos) for a in row]
        rows.append(torch.stack([*(point if keep else []), *lifted]) if keep or lifted else point[:0])
    return torch.stack(rows).view(*x.shape[:-1], -1)


def positional_encoding(answer):
    order = "the values are right, their order is not: "
    suspects = [
        ("π is missing from the angles.", lambda *a: _encoded(*a, pi=1.0)),
        ("the lowest frequency should be π, not 2π.", lambda *a: _encoded(*a, pi=2 * math.pi)),
        ("x itself should stand in front of the sines and cosines.", lambda *a: _encoded(*a, keep=False)),
        (order + "all frequencies of the first coordinate come before those of the second.", lambda *a: _encoded(*a, order="by frequency")),
        (order + "sines and cosines alternate.", lambda *a: _encoded(*a, order="pairs")),
        (order + "the sines of all coordinates come before the first cosine.", lambda *a: _encoded(*a, order="by coordinate")),
    ]

    def draw(size, dtype, reach=1.0):
        *shape, bands = size
        return lambda g: {"x": reach * (torch.rand(shape, generator=g, dtype=dtype) * 2 - 1), "bands": bands}

    for dtype, cases in _cases(draw, (5, 2, 3, 4), (4, 2, 6), (3, 2), (2, 1, 1)).items():
        agree(answer, _encoded, cases, what="the encoding", grad=("x",), tol=TOL[dtype], suspects=suspects)
    for dtype in (torch.float64, torch.float32):
        agree(answer, lambda x, bands: x, draw((4, 3, 0), dtype), what="the encoding with bands = 0, which is x alone,", grad=("x",), tol=0)
    agree(answer, _encoded, draw((3, 2, 10), torch.float64), what="the encoding with 10 bands", grad=("x",), tol=1e-8, suspects=suspects)
    agree(answer, _encoded, draw((5, 3, 4), torch.float64, 3.0), what="the encoding of points beyond 1", grad=("x",), tol=1e-9, suspects=suspects)


# Sampling


def _inverted(edges, w, n, jitter=False, normal=True, inside=True, first=True, shared=None):
    """The middles of n strata, pulled through each ray's cumulative distribution: walk along the bins until the share u is reached."""
    out = []
    for r in range(len(edges)):
        e, h = edges[r if shared != "edges" else 0].tolist(), w[r if shared != "weights" else 0].tolist()
        total = sum(h) if normal else 1.0
        row = []
        for k in range(n):
            u, i, low = (k + 0.5) / n * total, 0, 0.0 if first else h[0]
            while i < len(h) - 1 and u >= low + h[i]:
                low, i = low + h[i], i + 1
            row.append(e[i] + ((u - low) / h[i] if inside and h[i] else 0.0) * (e[i + 1] - e[i]))
        out.append(row)
    return torch.tensor(out, dtype=edges.dtype).view(len(edges), n)


def _histogram(R, S, dtype=torch.float64, zeros=True):
    """Uneven bins and weights, other ones for every ray; on every second ray some bins are empty."""

    def case(g):
        edges = (torch.rand(R, S + 1, generator=g, dtype=dtype) + 0.1).cumsum(-1) + torch.arange(R, dtype=dtype)[:, None]
        w = (torch.rand(R, S, generator=g, dtype=dtype) + 0.05) * 10.0 ** torch.arange(R, dtype=dtype)[:, None]
        if zeros and S > 2:
            w[::2, 1], w[::2, -1] = 0.0, 0.0
        return edges, w

    return case


def _strata(s, edges, w):
    """The value of the cumulative distribution at each sample, in float64."""
    cdf = np.concatenate([np.zeros((len(w), 1)), np.cumsum(w.double().numpy(), -1)], -1)
    cdf /= cdf[:, -1:]
    return torch.tensor(np.stack([np.interp(a, e, c) for a, e, c in zip(s.double().numpy(), edges.double().numpy(), cdf)]))


def sample_pdf(answer):
    quiet = lambda edges, w, n: answer(edges, w, n, jitter=False)
    suspects = [
        ("all rays use the first ray's edges.", lambda *a: _inverted(*a, shared="edges")),
        ("all rays use the first ray's weights.", lambda *a: _inverted(*a, shared="weights")),
        ("the weights are used as they are: they should be divided by their sum, ray by ray.", lambda *a: _inverted(*a, normal=False)),
        ("every sample sits on an edge: place it inside its bin, in proportion to how far u has come there.", lambda *a: _inverted(*a, inside=False)),
        ("the cumulative distribution does not begin at 0.", lambda *a: _inverted(*a, first=False)),
    ]

    def draw(R, S, n, dtype, zeros=True):
        return lambda g: dict(zip(("edges", "w", "n"), (*_histogram(R, S, dtype, zeros)(g), n)))

    for dtype in (torch.float64, torch.float32):
        cases = [draw(3, 6, 11, dtype), draw(4, 5, 7, dtype, False), draw(1, 4, 1, dtype), draw(2, 1, 5, dtype)]
        agree(quiet, _inverted, cases, what="the samples without jitter", tol=TOL[dtype], suspects=suspects)
    edges, w = torch.tensor([[0.0, 1.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 3.0]])
    same(
        quiet(edges, w, 2),
        torch.tensor([[2.0, 10 / 3]]),
        "the samples where a u equals a value of the cumulative distribution (it belongs to the bin that begins there)",
    )
    _random_samples(answer)


def _random_samples(answer):
    """With jitter: one sample in every stratum of every ray, spread over the whole stratum, rays and calls independent."""
    R, n = 60, 16
    edges, w = _histogram(R, 6, zeros=False)(torch.Generator().manual_seed(5))
    s = answer(edges, w, n)
    alike(s.shape if isinstance(s, torch.Tensor) else s, (R, n), "the shape of the samples with jitter")
    right(s.dtype == edges.dtype, f"with jitter the samples should have the dtype of edges, {edges.dtype}, too; they are {s.dtype}.")
    u = _strata(s.detach(), edges, w) * n  # (R, n)
    if not torch.equal(u.sort(-1)[0], u):
        raise Wrong("with jitter the samples of a ray are not in order.")
    if not torch.equal(u.floor().clamp(0, n - 1), torch.arange(n).expand(R, n).double()):
        raise Wrong("with jitter not every one of the n equal strata of u holds exactly one sample of every ray.")
    right(not torch.allclose(u, u[:1].expand(R, n)), "with jitter all rays get the same u: every ray should draw its own.")
    place = u - torch.arange(n)
    right(
        not torch.allclose(place, place[:, :1].expand(R, n), atol=1e-6),
        "with jitter one random number serves all strata of a ray: every stratum should draw its own.",
    )
    apart = (u[:, None] - u[None]).abs().amax(-1)  # (R, R)
    right(int((apart < 1e-4).sum()) == R, "with jitter several rays get the same u: every ray should draw its own.")
    if abs(place.mean() - 0.5) > 0.05 or abs(place.std() - 12**-0.5) > 0.04 or place.min() > 0.025 or place.max() < 0.975:
        raise Wrong(
            f"with jitter u is not spread evenly over its stratum: mean {place.mean():.2f} and deviation {place.std():.2f} of its width, not 0.50 and 0.29."
        )
    right(not torch.equal(s, answer(edges, w, n)), "two calls with jitter gave the same samples.")
    single = _strata(answer(edges, w, 1), edges, w)
    right(bool(single.max() - single.min() > 0.5), "with jitter and n = 1 the sample should lie anywhere on the ray, but it hardly moves.")


# A whole ray


class _Fog:
    """A field whose density and colour are smooth functions of the place, the direction and six numbers theta; it remembers where it was asked."""

    def __init__(self, theta):
        self.theta, self.thin, self.full = theta, [], []

    def _sigma(self, x):
        return 6 * torch.exp(-6 * (x - self.theta[:3]).square().sum(-1)) + 0.3 * self.theta[3]

    def density(self, x):
        self.thin.append(x.detach())
        return self._sigma(x)

    def __call__(self, x, d):
        self.full.append(x.detach())
        return self._sigma(x), torch.sigmoid(3 * x * self.theta[4] + d * self.theta[5])


class _Half:
    """An occupancy that calls half of space empty."""

    share = 0.5

    def __init__(self, normal):
        self.normal = normal

    def __call__(self, x):
        return x @ self.normal.to(x.dtype) > 0


def _one(field, o, d, n, n_fine, occupancy, background=1.0, normal=True, join=True, floor=1e-3, stop=True, seen=(True, True), edge=True):
    """One ray, step by step: colour, opacity, mean distance."""
    b = (o * d).sum().item()
    root = math.sqrt(max(0.0, b * b - (o * o).sum().item() + 1))
    near, far = max(-b - root, 0.0), -b + root

    def along(s):
        at = torch.tensor(s, dtype=o.dtype) if not torch.is_tensor(s) else s
        mids = [(p + q) / 2 for p, q in zip(at[:-1], at[1:])]
        ends = torch.stack([at.new_tensor(near), *mids, at.new_tensor(far)])
        return at, ends

    def weights(at, ends, known):
        x = o + at[:, None] * d
        sigma, colour = field._sigma(x), torch.sigmoid(3 * x * field.theta[4] + d * field.theta[5])
        if occupancy is not None and known:
            sigma = torch.where(occupancy(x.detach()), sigma, torch.zeros_like(sigma))
        return _weights(sigma, ends.diff()), colour

    at, ends = along([near + (far - near) * (k + 0.5) / n for k in range(n)])
    if n_fine:
        w = weights(at, ends, seen[0])[0]
        if stop:
            w = w.detach()
            fine = _inverted(ends.detach()[None], w[None] + floor, n_fine)[0]
        else:
            fine = _differentiable(ends, w + floor, n_fine)
        at, ends = along(torch.cat([at, fine]).sort()[0] if join else fine)
    w, colour = weights(at, ends, seen[1])
    opacity = w.sum()
    depth = (w * at).sum()
    return (w[:, None] * colour).sum(0) + background * (1 - opacity), opacity, depth / opacity.clamp(min=1e-6) if normal else depth


def _differentiable(edges, w, n):
    """Samples whose places carry the gradient of the weights."""
    cdf = torch.cat([w.new_zeros(1), w.cumsum(0) / w.sum()])
    out = []
    for k in range(n):
        u = (k + 0.5) / n
        i = min(max(sum(1 for c in cdf.tolist() if c <= u) - 1, 0), len(w) - 1)
        out.append(edges[i] + (u - cdf[i]) / (cdf[i + 1] - cdf[i]) * (edges[i + 1] - edges[i]))
    return torch.stack(out)


def _rendered(theta, o, d, n, n_fine, occupancy, **how):
    return tuple(torch.stack(x) for x in zip(*(_one(_Fog(theta), p, q, n, n_fine, occupancy, **how) for p, q in zip(o, d))))


def _looking(R, dtype):
    """R rays towards the ball, and the six numbers of a field."""

    def case(g):
        o = torch.nn.functional.normalize(torch.randn(R, 3, generator=g, dtype=dtype), dim=-1) * 3
        d = torch.nn.functional.normalize(0.5 * torch.nn.functional.normalize(torch.randn(R, 3, generator=g, dtype=dtype), dim=-1) - o, dim=-1)
        theta = torch.rand(6, generator=g, dtype=dtype) * torch.tensor([0.5, 0.5, 0.5, 1, 1, 1], dtype=dtype) + torch.tensor(
            [0.0, 0, 0, 0.2, 0.5, 0.5], dtype=dtype
        )
        return theta, o, d

    return case


def render_rays(answer):
    suspects = [
        ("what is not absorbed should show the white background; here it is black.", lambda *a: _rendered(*a, background=0.0)),
        ("the mean distance should be divided by the opacity.", lambda *a: _rendered(*a, normal=False)),
        ("the fine samples replace the coarse ones: the field should be asked at both.", lambda *a: _rendered(*a, join=False)),
        ("the coarse weights go into sample_pdf without the small share of 0.001 for every bin.", lambda *a: _rendered(*a, floor=1e-9)),
        ("the occupancy is not used.", lambda *a: _rendered(*a, seen=(False, False))),
        ("the occupancy is not used in the coarse pass.", lambda *a: _rendered(*a, seen=(False, True))),
        ("the occupancy is not used in the last pass.", lambda *a: _rendered(*a, seen=(True, False))),
        ("the fine samples are left out.", lambda theta, o, d, n, n_fine, occ: _rendered(theta, o, d, n, 0, occ)),
    ]
    half = _Half(torch.tensor([0.3, -0.8, 0.5]))

    def work(theta, o, d, n, n_fine, occupancy):
        out = answer(_Fog(theta), o, d, n, n_fine, occupancy, jitter=False)
        right(isinstance(out, (tuple, list)) and len(out) == 3, "render_rays should return three tensors: colour, opacity, mean distance.")
        return tuple(out)

    def draw(R, n, n_fine, occupancy, dtype):
        return lambda g: dict(zip(("theta", "o", "d", "n", "n_fine", "occupancy"), (*_looking(R, dtype)(g), n, n_fine, occupancy)))

    for dtype in (torch.float64, torch.float32):
        cases = [draw(4, 6, 5, half, dtype), draw(3, 5, 7, None, dtype), draw(5, 7, 0, half, dtype), draw(1, 1, 2, None, dtype), draw(2, 3, 1, half, dtype)]
        agree(work, _rendered, cases, what="(colour, opacity, mean distance) without jitter", tol=TOL[dtype], suspects=suspects)
    _gradient_of_a_ray(work, draw(4, 6, 5, half, torch.float64))
    nothing = answer(_Fog(torch.ones(6)), *_looking(3, torch.float32)(torch.Generator().manual_seed(1))[1:], 4, 2, lambda x: x[:, 0] > 9)
    alike(nothing, (torch.ones(3, 3), torch.zeros(3), torch.zeros(3)), "(colour, opacity, mean distance) of rays through empty cells only")
    _thin_fog(answer)
    _calls_of_the_field(answer)
    _empty_half(answer)


def _gradient_of_a_ray(work, case):
    """The field's parameters get the gradient of densities and colours at the samples, not of the places where samples are taken."""
    given = list(case(torch.Generator().manual_seed(77)).values())
    scale = torch.tensor([1.0, -0.7, 0.4], dtype=torch.float64)

    def gradient(render, **how):
        theta = given[0].clone().requires_grad_()
        colour, opacity, distance = render(theta, *given[1:], **how)
        value = (colour * scale).sum() + opacity.sum() - 0.3 * distance.sum()
        if not value.requires_grad:
            return None
        return torch.autograd.grad(value, theta)[0]

    got, want, through = gradient(work), gradient(_rendered), gradient(_rendered, stop=False)
    right(got is not None, "no gradient reaches the field: only the coarse pass belongs under no_grad.")
    close = lambda a, b: (a - b).abs().max() < 1e-6 * max(1.0, b.abs().max().item())
    if close(got, through) and not close(got, want):
        raise Wrong("the gradient also runs through the places of the fine samples: the coarse pass should only say where to look.")
    right(close(got, want), "the values are right, but not the gradient that reaches the field's parameters: part of the way is cut.")
    theta, o, d, *rest = given
    ray = [o.clone().requires_grad_(), d.clone().requires_grad_()]
    value = (work(theta, *ray, *rest)[0] * scale).sum()
    for name, g in zip("od", torch.autograd.grad(value, ray, allow_unused=True) if value.requires_grad else (None, None)):
        right(g is not None and bool(g.isfinite().all() and g.any()), f"no gradient reaches {name}: poses could not be learned through the renderer.")


class _Haze(_Fog):
    """A fog ten thousand times thinner."""

    def _sigma(self, x):
        return 1e-4 * super()._sigma(x)


def _thin_fog(answer):
    """Where next to nothing is seen, the mean distance is still a mean."""
    theta, o, d = _looking(4, torch.float64)(torch.Generator().manual_seed(6))
    want = torch.stack([_one(_Haze(theta), p, q, 5, 0, None)[2] for p, q in zip(o, d)])
    same(
        answer(_Haze(theta), o, d, 5, 0, None, jitter=False)[2], want, "the mean distance in thin fog (its denominator is clamped at 1e-6, no higher)", tol=1e-9
    )


def _empty_half(answer):
    """One ray whose first half is empty: nobody asks there, and jitter and the defaults stay as they are."""
    theta, o, d = _looking(1, torch.float64)(torch.Generator().manual_seed(8))
    b = (o * d).sum(-1)
    root = (b * b - (o * o).sum(-1) + 1).sqrt()
    beyond = lambda x: (x - o[0]) @ d[0] > -b[0]
    n, n_fine = 12, 6
    fog = _Fog(theta)
    answer(fog, o, d, n, n_fine, beyond)
    asked = torch.cat([*fog.thin, *fog.full])
    right(bool(beyond(asked).all()), "the field is asked in cells that the occupancy calls empty: hand it to both passes, so that these points are left out.")
    place = ((torch.cat(fog.thin) - o) @ d[0] + b + root) / (2 * root) * n
    right(bool((place.frac() - 0.5).abs().max() > 1e-3), "with an occupancy the coarse samples lose their jitter.")
    fog = _Fog(theta)
    answer(fog, o, d, n)
    asked = torch.cat(fog.full)
    right(len(asked) == n and not fog.thin, f"without n_fine there are no fine samples: {n} points of the field are enough, but {len(asked)} were asked for.")
    place = ((asked - o) @ d[0] + b + root) / (2 * root) * n
    right(bool((place.frac() - 0.5).abs().max() > 1e-3), "without fine samples the coarse ones lose their jitter.")


def _calls_of_the_field(answer):
    """How often the field is asked, and with jitter: one coarse sample in each of n bins, fine ones in each stratum of the coarse histogram."""
    R, n, n_fine = 7, 6, 8
    theta, o, d = _looking(R, torch.float64)(torch.Generator().manual_seed(3))
    fog = _Fog(theta)
    answer(fog, o, d, n, n_fine)
    thin, full = (sum(len(x) for x in calls) for calls in (fog.thin, fog.full))
    right(
        full == R * (n + n_fine),
        f"the whole field (density and colour) should be asked at n + n_fine points of a ray, {n + n_fine} here; it was asked at {full / R:.3g} of them.",
    )
    right(thin == R * n, f"the coarse pass asks for the density alone, at n points of a ray, {n} here; it was asked for {thin / R:.3g}.")
    coarse, every = (((torch.cat(calls).view(R, -1, 3) - o[:, None]) * d[:, None]).sum(-1) for calls in (fog.thin, fog.full))
    b = (o * d).sum(-1)
    root = (b * b - (o * o).sum(-1) + 1).sqrt()
    place = (coarse - (-b - root)[:, None]) / (2 * root)[:, None] * n
    right(
        torch.equal(place.floor(), torch.arange(n).expand(R, n).double()), "with jitter the coarse samples should be stratified: one in each of n equal bins."
    )
    right((place.frac() - 0.5).abs().max() > 1e-3, "with jitter=True, which is the default, the coarse samples still sit in the middles of their bins.")
    near, far = (-b - root)[:, None], (-b + root)[:, None]
    edges = torch.cat([near, (coarse[:, 1:] + coarse[:, :-1]) / 2, far], -1)
    x = o[:, None] + coarse[..., None] * d[:, None]
    w = _weights(fog._sigma(x), edges.diff()) + 1e-3
    gap = (every[:, :, None] - coarse[:, None]).abs().min(-1)[0]
    fine = every.gather(1, gap.argsort(-1)[:, n:]).sort(-1)[0]  # those that are no coarse sample
    u = _strata(fine, edges, w) * n_fine
    right(
        torch.equal(u.floor().clamp(0, n_fine - 1), torch.arange(n_fine).expand(R, n_fine).double()),
        "with jitter the fine samples do not follow the coarse histogram: one should lie in each of n_fine equal strata of its distribution.",
    )
    right((u.frac() - 0.5).abs().max() > 1e-3, "with jitter=True the fine samples still sit in the middles of their strata: jitter is not passed on.")
