"""Generated from notebooks/3_3d_understanding/06_nerf.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def pixel_rays(K: Tensor, R: Tensor, t: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rays through all pixel centres of a pinhole camera, in world axes.

    K (3,3); R (3,3), t (3,): world → camera, x right, y down, z forward. Returns origins o and unit directions d, both (height, width, 3).
    """
    rows, cols = (torch.arange(k, device=K.device, dtype=K.dtype) + 0.5 for k in (height, width))
    v, u = torch.meshgrid(rows, cols, indexing="ij")
    d = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)], -1)
    d = d @ R  # row vectors: d @ R is Rᵀ d
    d = d / d.norm(dim=-1, keepdim=True)
    return (-R.T @ t).expand_as(d), d


def project(X: Tensor, K: Tensor, R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """World points (..., 3) → pixel coordinates (..., 2) and depth z (...)."""
    Xc = X @ R.T + t
    uv = Xc @ K.T
    return uv[..., :2] / uv[..., 2:], Xc[..., 2]


def volume_weights(sigma: Tensor, delta: Tensor) -> Tensor:
    """Weights w_i = T_i (1 − exp(−σ_i δ_i)) of the pieces of a ray (Mildenhall et al. 2020, eq. 3).

    sigma, delta (..., S): density and length of each piece, nearest first. Returns (..., S); the sum is the ray's opacity.
    """
    tau = sigma * delta  # optical thickness of each piece
    T = torch.exp(-F.pad(tau[..., :-1].cumsum(-1), (1, 0)))  # what survives up to the piece: the first sees everything
    return T * (1 - torch.exp(-tau))


def ball_interval(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays (..., 3) with unit d enter and leave the unit ball: near, far (...), and whether they meet it at all.

    A ray that starts inside has near = 0; one that looks away from the ball does not meet it. Where there is no hit, near and far mean nothing.
    """
    b = (o * d).sum(-1)
    disc = b * b - (o * o).sum(-1) + 1
    root = disc.clamp(min=0).sqrt()
    near, far = (-b - root).clamp(min=0), -b + root
    return near, far, (disc > 1e-4) & (far > 0)


def stratified(near: Tensor, far: Tensor, n: int, jitter: bool = True) -> Tensor:
    """One sample in each of n equal bins of [near, far]: (..., n), in order. Without jitter: the middles."""
    shape = (*near.shape, n)
    u = near.new_empty(shape).uniform_() if jitter else near.new_full(shape, 0.5)
    u = (torch.arange(n, device=near.device) + u) / n
    return near[..., None] + (far - near)[..., None] * u


def positional_encoding(x: Tensor, bands: int) -> Tensor:
    """γ(x) of Mildenhall et al. 2020, eq. 4, with x itself kept: (..., D) → (..., D + 2·D·bands), as [x, sines, cosines], coordinate-major."""
    angle = x[..., None] * (math.pi * 2.0 ** torch.arange(bands, device=x.device, dtype=x.dtype))  # (..., D, bands)
    return torch.cat([x, angle.sin().flatten(-2), angle.cos().flatten(-2)], -1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of values in 0..1: −10 log10 of the mean squared error."""
    return (-10 * torch.log10(((a - b) ** 2).mean())).item()


class FrequencyEncoding(nn.Module):
    """Positional encoding of points as a module: (P, 3) → (P, dim)."""

    def __init__(self, bands: int):
        super().__init__()
        self.bands, self.dim = bands, 3 + 6 * bands

    def forward(self, x: Tensor) -> Tensor:
        return positional_encoding(x, self.bands)


class RadianceField(nn.Module):
    """Points (P, 3) in the unit ball and unit directions (P, 3) → density (P,) per unit length, and colour (P, 3) in 0..1."""

    def __init__(self, encoding: nn.Module, width: int, depth: int, view_bands: int = 2, view_dependent: bool = True):
        super().__init__()
        self.encoding, self.view_bands, self.view_dependent = encoding, view_bands, view_dependent
        sizes = [encoding.dim] + [width] * depth
        self.trunk = nn.Sequential(*[layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())])
        self.density_head = nn.Linear(width, 1)
        self.colour_head = nn.Sequential(nn.Linear(width + 3 + 6 * view_bands, 32), nn.ReLU(), nn.Linear(32, 3))

    def _density(self, h: Tensor) -> Tensor:
        return 25 * F.softplus(self.density_head(h)[..., 0] - 2)

    def density(self, x: Tensor) -> Tensor:
        return self._density(self.trunk(self.encoding(x)))

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(self.encoding(x))
        view = positional_encoding(d if self.view_dependent else torch.zeros_like(d), self.view_bands)
        return self._density(h), torch.sigmoid(self.colour_head(torch.cat([h, view], -1)))


def sample_pdf(edges: Tensor, w: Tensor, n: int, jitter: bool = True) -> Tensor:
    """n sorted samples a ray, distributed as the histogram (edges, w): inverse transform sampling (NeRF, section 5.2).

    edges (R, S+1) increasing; w (R, S), not all zero; u_k = (k + rand)/n, or (k + ½)/n without jitter. Returns (R, n).
    """
    cdf = F.pad(w.cumsum(-1), (1, 0))
    cdf = cdf / cdf[:, -1:]  # (R, S+1), from 0 to exactly 1
    shape = (len(edges), n)
    u = edges.new_empty(shape).uniform_() if jitter else edges.new_full(shape, 0.5)
    u = (torch.arange(n, device=edges.device) + u) / n
    i = (torch.searchsorted(cdf, u, right=True) - 1).clamp(0, w.shape[-1] - 1)  # the bin that u falls into
    low, high = cdf.gather(-1, i), cdf.gather(-1, i + 1)
    left, right = edges.gather(-1, i), edges.gather(-1, i + 1)
    return left + (u - low) / (high - low).clamp(min=1e-8) * (right - left)


def march(field, o: Tensor, d: Tensor, s: Tensor, near: Tensor, far: Tensor, occupancy=None, colours: bool = True):
    """Ask a field along rays. o, d (R,3); s (R,S) sorted. Returns weights (R,S), colours (R,S,3) or None, and the edges of the pieces (R,S+1)."""
    edges = torch.cat([near[:, None], (s[:, 1:] + s[:, :-1]) / 2, far[:, None]], -1)
    x = (o[:, None] + s[..., None] * d[:, None]).reshape(-1, 3)
    dirs = d[:, None].expand(-1, s.shape[1], -1).reshape(-1, 3)
    keep = None if occupancy is None else occupancy(x).nonzero()[:, 0]
    ask = (lambda p, v: field(p, v)) if colours else (lambda p, v: (field.density(p), None))
    if keep is None:
        sigma, rgb = ask(x, dirs)
    else:  # ask only where something may be; elsewhere the density is 0
        some, tint = ask(x[keep], dirs[keep])
        sigma = some.new_zeros(len(x)).index_copy(0, keep, some)
        rgb = tint.new_zeros(len(x), 3).index_copy(0, keep, tint) if colours else None
    w = volume_weights(sigma.view(s.shape), edges[:, 1:] - edges[:, :-1])
    return w, rgb.view(*s.shape, 3) if colours else None, edges


def render_rays(field, o: Tensor, d: Tensor, n: int, n_fine: int = 0, occupancy=None, jitter: bool = True):
    """Rays (R,3) that meet the ball → colour on white (R,3), opacity (R,), mean distance of what is seen (R,)."""
    near, far, _ = ball_interval(o, d)
    s = stratified(near, far, n, jitter)
    if n_fine:
        with torch.no_grad():
            w, _, edges = march(field, o, d, s, near, far, occupancy, colours=False)
            fine = sample_pdf(edges, w + 1e-3, n_fine, jitter)
        s = torch.cat([s, fine], -1).sort(-1)[0]
    w, rgb, _ = march(field, o, d, s, near, far, occupancy)
    opacity = w.sum(-1)
    behind = (1 - opacity)[:, None]  # this share of the light comes from the white background
    colour = (w[..., None] * rgb).sum(1) + behind
    distance = (w * s).sum(-1) / opacity.clamp(min=1e-6)
    return colour, opacity, distance


@torch.no_grad()
def render_view(field, K: Tensor, R: Tensor, t: Tensor, size: int, n: int = 48, n_fine: int = 0, occupancy=None):
    """A whole picture: colour (size,size,3), opacity (size,size), depth z (size,size; 0 where nothing is)."""
    o, d = (x.reshape(-1, 3) for x in pixel_rays(K, R, t, size, size))
    hit = ball_interval(o, d)[2]
    chunks = zip(o[hit].split(4096), d[hit].split(4096))
    parts = [
        torch.cat([c, a[:, None], s[:, None]], -1)
        for c, a, s in (render_rays(field, p, q, n, n_fine, occupancy, jitter=False) for p, q in chunks)
    ]
    out = torch.tensor([1.0, 1, 1, 0, 0], device=o.device).repeat(len(o), 1)
    out[hit] = torch.cat(parts)
    depth = torch.where(out[:, 3] > 0.5, out[:, 4] * (d @ R.T)[:, 2], torch.zeros_like(out[:, 4]))
    return out[:, :3].view(size, size, 3), out[:, 3].view(size, size), depth.view(size, size)


class WeightedRows(torch.autograd.Function):
    """out[p] = Σ_k weight[p,k] · table[index[p,k]]; gradient only for the table. table (M,C), index and weight (P,8) → (P,C)."""

    @staticmethod
    def forward(ctx, table, index, weight):
        ctx.save_for_backward(index, weight)
        ctx.rows = len(table)
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")

    @staticmethod
    def backward(ctx, grad):
        index, weight = ctx.saved_tensors
        out = grad.new_zeros(ctx.rows, grad.shape[1])
        out.index_add_(0, index.reshape(-1), (weight[..., None] * grad[:, None]).reshape(-1, grad.shape[1]))
        return out, None, None


class GridEncoding(nn.Module):
    """Multi-resolution feature grid over [−1, 1]³: dense where (n+1)³ rows fit into ``max_rows``, hashed where not (Müller et al. 2022, section 3)."""

    def __init__(self, levels, channels: int = 4, max_rows: int = 2**31):
        super().__init__()
        self.levels, self.dim = tuple(levels), channels * len(levels)
        rows = [min((n + 1) ** 3, max_rows) for n in self.levels]
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(m, channels).uniform_(-0.1, 0.1)) for m in rows)
        self.register_buffer(
            "corners", torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]), persistent=False
        )

    @staticmethod
    def rows(c: Tensor, n: int, size: int) -> Tensor:
        """Row of each lattice corner c (..., 3) in a table of ``size`` rows."""
        if (n + 1) ** 3 <= size:
            return (c[..., 0] * (n + 1) + c[..., 1]) * (n + 1) + c[..., 2]
        return (c[..., 0] ^ (c[..., 1] * 2654435761) ^ (c[..., 2] * 805459861)) % size

    def forward(self, x: Tensor) -> Tensor:  # (P, 3) → (P, dim)
        out = []
        for n, table in zip(self.levels, self.tables):
            p = (x + 1) * (n / 2)
            low = p.floor().clamp(0, n - 1)
            f = torch.stack([1 - (p - low), p - low], -1)  # (P, 3, 2): how near the lower and the upper corner
            weight = (f[:, 0, :, None, None] * f[:, 1, None, :, None] * f[:, 2, None, None, :]).reshape(-1, 8)
            index = self.rows(low.long()[:, None] + self.corners, n, len(table))
            out.append(WeightedRows.apply(table, index, weight))
        return torch.cat(out, -1)


class Occupancy:
    """Which of n³ cells of [−1, 1]³ may hold something. ``occupancy(x)`` (P,3) → bool (P,); everything counts as occupied until the first update."""

    def __init__(self, n: int = 32, threshold: float = 2.0, device="cpu"):
        self.n, self.threshold = n, threshold
        self.density = torch.zeros(n**3, device=device)
        self.mask = torch.ones(n**3, dtype=torch.bool, device=device)
        self.share = 1.0  # of the points asked last time, how many were kept

    def __call__(self, x: Tensor) -> Tensor:
        i = ((x + 1) * (self.n / 2)).long().clamp(0, self.n - 1)
        keep = self.mask[(i[:, 0] * self.n + i[:, 1]) * self.n + i[:, 2]]
        if len(keep):
            self.share = keep.float().mean().item()
        return keep

    @torch.no_grad()
    def update(self, field, decay: float = 0.7) -> None:
        n, k = self.n, torch.arange(self.n**3, device=self.density.device)
        cell = torch.stack([k // (n * n), k // n % n, k % n], -1)
        x = (cell + torch.rand(len(k), 3, device=k.device)) / n * 2 - 1
        now = torch.cat([field.density(p) for p in x.split(16384)])
        self.density = torch.maximum(self.density * decay, now)
        full = (self.density > self.threshold).float().view(1, 1, n, n, n)
        self.mask = F.max_pool3d(full, 3, stride=1, padding=1).view(-1) > 0


def orbit_pose(azimuth: float, elevation: float, distance: float = 3.0) -> tuple[Tensor, Tensor]:
    """World→camera R (3,3), t (3,) of a camera on a sphere that looks at the origin; degrees; azimuth 0 looks from +z, world y is up."""
    a, e = math.radians(azimuth), math.radians(elevation)
    centre = distance * torch.tensor([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
    z = -centre / distance
    x = torch.tensor([math.cos(a), 0.0, -math.sin(a)])  # horizontal, to the right; from straight above, too
    R = torch.stack([x, torch.linalg.cross(z, x), z])
    return R, -R @ centre
