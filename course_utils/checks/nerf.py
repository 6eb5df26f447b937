"""Checks of lesson 3.6: rays, volume rendering weights, positional encoding, inverse transform sampling."""

import math

import torch

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "pixel_rays": [
        "Pixel (row i, column j) has its centre at v = i + 0.5, u = j + 0.5. `torch.meshgrid(..., indexing='ij')` of the two ranges gives v and u as (height, width) pictures.",
        "In camera axes the direction is ((u − cx)/fx, (v − cy)/fy, 1). To turn directions (H, W, 3) into the world multiply by Rᵀ: for rows, that is `d @ R`.",
        "o = −Rᵀ t, expanded to (H, W, 3); and d / d.norm(dim=-1, keepdim=True).",
    ],
    "volume_weights": [
        "Let tau = sigma * delta. A piece absorbs 1 − exp(−tau) of what reaches it.",
        "What reaches piece i has passed the pieces before it: exp of minus the sum of the earlier tau, without tau_i itself.",
        "torch.cumsum(tau, -1) includes piece i: subtract tau. Then w = exp(−(cumsum − tau)) · (1 − exp(−tau)).",
    ],
    "positional_encoding": [
        "The frequencies are π·2⁰, π·2¹, …, π·2^(bands−1).",
        "x[..., None] * frequencies has shape (..., D, bands); `.flatten(-2)` makes it (..., D·bands), coordinate by coordinate.",
        "torch.cat([x, angle.sin().flatten(-2), angle.cos().flatten(-2)], -1)",
    ],
    "sample_pdf": [
        "Divide the weights by their sum in each row, then cumsum; put a zero in front, so that the cumulative distribution has S+1 entries, one for each edge.",
        "u (R, n) = (arange(n) + rand)/n. The bin is i = searchsorted(cdf, u, right=True) − 1, kept within 0 … S−1.",
        "With gather take cdf and edges at i and at i+1; s = left + (u − low)/(high − low) · (right − left), with the denominator clamped from below.",
    ],
}


def pixel_rays(answer):
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    R = q * torch.sign(torch.det(q))
    t = torch.tensor([0.3, -0.4, 2.9], dtype=torch.float64)
    K = torch.tensor([[50.0, 0, 11.0], [0, 70.0, 9.5], [0, 0, 1]], dtype=torch.float64)
    H, W = 6, 9
    got = answer(K, R, t, H, W)
    right(isinstance(got, (tuple, list)) and len(got) == 2, "pixel_rays should return two tensors, (o, d).")
    o, d = got
    for x, name in ((o, "the origins"), (d, "the directions")):
        right(
            isinstance(x, torch.Tensor) and x.shape == (H, W, 3),
            f"{name} should be a tensor of shape (height, width, 3) = {(H, W, 3)}, but they are {tuple(getattr(x, 'shape', ()))}.",
        )
    same(o[2, 3], -R.T @ t, "the origin", "The camera's centre is the point that maps to 0: R o + t = 0.")
    right(torch.allclose(d.norm(dim=-1), torch.ones(H, W, dtype=d.dtype), atol=1e-6), "d should have length one: divide by d.norm(dim=-1, keepdim=True).")
    X = (o + 1.7 * d) @ R.T + t
    right((X[..., 2] > 0).all(), "the rays run behind the camera: z points forward, so in camera axes a direction is (…, …, +1).")
    p = X @ K.T
    uv = p[..., :2] / p[..., 2:]
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    want = torch.stack([u, v], -1).double()
    shift = (uv - want).mean((0, 1))
    if torch.allclose(uv - want, torch.full_like(uv, -0.5), atol=1e-4):
        raise Wrong("the rays go through the pixels' corners: the centre of a pixel is half a pixel further, at j + 0.5 and i + 0.5.")
    if not torch.allclose(uv, want, atol=1e-4):
        raise Wrong(
            f"a point on the ray of a pixel does not fall back on that pixel (off by {shift[0]:.2f}, {shift[1]:.2f} on average): is it Rᵀ that turns camera axes into world axes (d @ R for rows), and is u the column, v the row?"
        )


def volume_weights(answer):
    torch.manual_seed(0)
    sigma = torch.rand(4, 7, dtype=torch.float64) * 3
    delta = torch.rand(4, 7, dtype=torch.float64) * 0.5
    want = torch.zeros_like(sigma)
    for r in range(4):
        left = 1.0
        for i in range(7):
            passed = math.exp(-sigma[r, i].item() * delta[r, i].item())
            want[r, i] = left * (1 - passed)
            left *= passed
    got = answer(sigma, delta)
    if isinstance(got, torch.Tensor) and got.shape == want.shape:
        tau = sigma * delta
        if torch.allclose(got, torch.exp(-tau.cumsum(-1)) * (1 - torch.exp(-tau)), atol=1e-8):
            raise Wrong("T_i must not contain piece i itself: the first piece is seen through nothing, T_1 = 1.")
        if torch.allclose(got, 1 - torch.exp(-tau), atol=1e-8):
            raise Wrong("these are the opacities of the pieces alone: multiply by T_i, the light that survives the pieces before.")
        behind = tau.flip(-1).cumsum(-1).flip(-1) - tau
        if torch.allclose(got, torch.exp(-behind) * (1 - torch.exp(-tau)), atol=1e-8):
            raise Wrong("the ray is upside down: the first piece is the nearest.")
    same(got, want, "volume_weights", "w_i = T_i (1 − exp(−σ_i δ_i)), with T_i over the pieces before i.", tol=1e-9)
    fog = answer(torch.full((2, 3, 50), 0.8), torch.full((2, 3, 50), 0.05))
    same(
        fog.sum(-1),
        torch.full((2, 3), 1 - math.exp(-0.8 * 2.5)),
        "the opacity of a constant fog, with two leading dimensions,",
        "Sum along the last dimension, whatever stands before it.",
    )
    thick = answer(torch.tensor([[0.0, 1e6, 5.0]]), torch.ones(1, 3))
    same(thick, torch.tensor([[0.0, 1.0, 0.0]]), "the weights at a solid wall", "Work with exp(−Σ τ), not with logarithms or quotients of transmittances.")
    s = sigma.clone().requires_grad_()
    needs_grad(answer(s, delta)[:, :3], {"sigma": s}, "the weights")


def positional_encoding(answer):
    torch.manual_seed(0)
    x = torch.rand(5, 2, 3) * 2 - 1
    L = 4
    want = torch.zeros(5, 2, 3 + 6 * L)
    for a in range(5):
        for b in range(2):
            row = x[a, b].tolist()
            row += [math.sin(2**k * math.pi * v) for v in x[a, b].tolist() for k in range(L)]
            row += [math.cos(2**k * math.pi * v) for v in x[a, b].tolist() for k in range(L)]
            want[a, b] = torch.tensor(row)
    got = answer(x, L)
    if isinstance(got, torch.Tensor):
        right(got.shape[-1] != 6 * L, "x itself should stand in front of the sines and cosines.")
        if got.shape == want.shape and not torch.allclose(got, want, atol=1e-4):
            freq = 2.0 ** torch.arange(L)
            if torch.allclose(got[..., 3 : 3 + 3 * L], (x[..., None] * freq).sin().flatten(-2), atol=1e-4):
                raise Wrong("π is missing: the angles are 2^k · π · x.")
            if torch.allclose(got.sort(-1)[0], want.sort(-1)[0], atol=1e-4):
                raise Wrong("the values are right, their order is not: x, then all sines (coordinate by coordinate), then all cosines.")
    same(got, want, "positional_encoding", "The frequencies double: 2⁰π, 2¹π, …", tol=1e-4)
    same(answer(x.double(), 0), x.double(), "the encoding with 0 bands", "Keep the dtype of x, and let bands = 0 return x alone.")


def sample_pdf(answer):
    torch.manual_seed(0)
    edges = torch.tensor([[0.0, 1.0, 2.0, 4.0]]).repeat(2, 1)
    weights = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0]])
    got = answer(edges, weights, 8, jitter=False)
    u = (torch.arange(8) + 0.5) / 8
    first = torch.where(u < 0.25, u / 0.25, 2 + (u - 0.25) / 0.75 * 2)
    second = u / 0.5
    want = torch.stack([first, second])
    if isinstance(got, torch.Tensor) and got.shape == want.shape and not torch.allclose(got, want, atol=1e-4):
        if ((got[0] > 1.001) & (got[0] < 1.999)).any():
            raise Wrong(
                "samples fall into a bin of weight zero: is there a 0 in front of the cumulative sum, and is the bin searchsorted(cdf, u, right=True) − 1?"
            )
        if torch.isin(got, edges).all():
            raise Wrong("every sample sits on an edge: place it inside the bin, in proportion to how far u is between the two values of the cdf.")
    same(got, want, "the samples without jitter", "s = left + (u − low)/(high − low) · (right − left).", tol=1e-4)
    many = answer(edges[:1], weights[:1] * 7, 4000)
    right(isinstance(many, torch.Tensor) and many.shape == (1, 4000), "4000 samples for one ray should have shape (1, 4000).")
    right((many[:, 1:] >= many[:, :-1]).all(), "with stratified u the samples come out in order: use (arange(n) + rand)/n.")
    share = (many < 1).double().mean().item()
    right(abs(share - 0.25) < 0.01, f"a bin with a quarter of the weight received {share:.0%} of the samples: divide the weights by their sum in each row.")
    again = answer(edges[:1], weights[:1] * 7, 4000)
    right(not torch.equal(many, again), "two calls with jitter gave the same samples: draw u at random inside each of the n strata.")
