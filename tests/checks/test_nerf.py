"""The checks of lesson 3.6 accept the course's answer and refuse plausible wrong ones, each with one clear sentence."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import nerf as checks
from course_utils.lessons import nerf

from . import accepts, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, nerf, name)


def refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


def rays(half=0.5, transpose=True, unit=True, swap=False, flip=False, centre=True):
    def answer(K, R, t, height, width):
        v, u = torch.meshgrid(torch.arange(height) + half, torch.arange(width) + half, indexing="ij")
        if swap:
            u, v = v, u
        z = -torch.ones_like(u) if flip else torch.ones_like(u)
        d = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], z], -1).to(K.dtype)
        d = d @ R if transpose else d @ R.T
        if unit:
            d = d / d.norm(dim=-1, keepdim=True)
        return (-R.T @ t if centre else t).expand_as(d), d

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (rays(half=0.0), "corners"),
        (rays(transpose=False), "fall back|behind"),
        (rays(unit=False), "length one"),
        (rays(swap=True), "fall back"),
        (rays(flip=True), "behind"),
        (rays(centre=False), "origin"),
        (lambda K, R, t, h, w: tuple(x.reshape(-1, 3) for x in rays()(K, R, t, h, w)), "shape"),
        (lambda K, R, t, h, w: rays()(K, R, t, h, w)[1], "two tensors"),
    ],
)
def test_pixel_rays_refuses(answer, words):
    refused("pixel_rays", answer, words)


def with_own_piece(sigma, delta):
    tau = sigma * delta
    return torch.exp(-tau.cumsum(-1)) * (1 - torch.exp(-tau))


def wrong_axis(sigma, delta):
    tau = sigma * delta
    return torch.exp(-(tau.cumsum(0) - tau)) * (1 - torch.exp(-tau))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (with_own_piece, "must not contain piece i"),
        (lambda s, d: 1 - torch.exp(-s * d), "opacities of the pieces alone"),
        (lambda s, d: s * d * torch.exp(-((s * d).cumsum(-1) - s * d)), "off by"),
        (wrong_axis, "off by"),
        (lambda s, d: nerf.volume_weights(s.flip(-1), d.flip(-1)).flip(-1), "upside down"),
        (lambda s, d: nerf.volume_weights(s, d).detach(), "gradient"),
        (lambda s, d: nerf.volume_weights(s, d).sum(-1), "shape"),
    ],
)
def test_volume_weights_refuses(answer, words):
    refused("volume_weights", answer, words)


def encoding(pi=math.pi, keep=True, flat=True, double=True):
    def answer(x, bands):
        f = 2.0 ** torch.arange(bands, dtype=x.dtype) if double else torch.arange(1, bands + 1, dtype=x.dtype)
        a = x[..., None] * pi * f
        a = a if flat else a.transpose(-1, -2)
        return torch.cat(([x] if keep else []) + [a.sin().flatten(-2), a.cos().flatten(-2)], -1)

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (encoding(pi=1.0), "π is missing"),
        (encoding(keep=False), "in front"),
        (encoding(flat=False), "order"),
        (encoding(double=False), "off by"),
        (lambda x, bands: encoding()(x, bands).float(), "dtype"),
        (lambda x, bands: encoding()(x, bands)[0], "shape"),
    ],
)
def test_positional_encoding_refuses(answer, words):
    refused("positional_encoding", answer, words)


def pdf(normal=True, zero=True, inside=True, ordered=True):
    def answer(edges, weights, n, jitter=True):
        p = weights / weights.sum(-1, keepdim=True) if normal else weights
        cdf = F.pad(p.cumsum(-1), (1, 0)) if zero else torch.cat([p.cumsum(-1), torch.ones_like(p[:, :1])], -1)
        u = torch.rand(len(edges), n) if jitter else torch.full((len(edges), n), 0.5)
        u = (torch.arange(n) + u) / n if ordered or not jitter else u
        i = (torch.searchsorted(cdf, u, right=True) - 1).clamp(0, weights.shape[-1] - 1)
        left, right = edges.gather(-1, i), edges.gather(-1, i + 1)
        if not inside:
            return left
        low, high = cdf.gather(-1, i), cdf.gather(-1, i + 1)
        return left + (u - low) / (high - low).clamp(min=1e-8) * (right - left)

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (pdf(normal=False), "off by|weight zero"),
        (pdf(zero=False), "weight zero|off by"),
        (pdf(inside=False), "sits on an edge"),
        (pdf(ordered=False), "order"),
        (lambda e, w, n, jitter=True: pdf()(e, w, n, False), "same samples"),
        (lambda e, w, n, jitter=True: nerf.stratified(e[:, 0], e[:, -1], n, jitter), "weight zero|off by"),
        (lambda e, w, n, jitter=True: pdf()(e, w, n, jitter).T, "shape"),
    ],
)
def test_sample_pdf_refuses(answer, words):
    refused("sample_pdf", answer, words)


def test_an_empty_answer_is_not_attempted():
    def empty(*args, **kwargs):
        raise NotImplementedError

    for name in checks.HINTS:
        with pytest.raises(NotImplementedError):
            getattr(checks, name)(empty)
