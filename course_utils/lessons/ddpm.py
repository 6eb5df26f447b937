"""Generated from notebooks/2_generative/03_ddpm.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.errors import CourseError


@dataclass(frozen=True)
class Schedule:
    """Noise schedule. beta, abar: (T+1,) float64 on the CPU, indexed by t = 0..T; abar[0] = 1 is clean data."""

    beta: torch.Tensor
    abar: torch.Tensor

    @property
    def T(self):
        return len(self.beta) - 1


def make_schedule(kind="cosine", T=1000):
    """kind "linear": DDPM, section 4, for T = 1000. "cosine": Nichol & Dhariwal 2021, eq. 17. beta is at most 0.999."""
    if T < 1:
        raise ValueError(f"a schedule needs at least one step, not T = {T}")
    u = torch.arange(T + 1, dtype=torch.float64) / T
    if kind == "linear":
        beta = (torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T)).clamp(
            max=0.999
        )  # few steps: large ones
    elif kind == "cosine":
        f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"kind must be linear or cosine, not {kind!r}")
    beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta])
    return Schedule(beta, torch.cumprod(1 - beta, 0))


def at(table, t, x):
    """table[t] with the dtype and device of x, shaped (B, 1, 1, ...) to multiply with x (B, ...). t: (B,) integers."""
    t = t.cpu()
    if t.is_floating_point() or (t.numel() and not 0 <= t.min() <= t.max() < len(table)):
        raise CourseError(f"levels are integers from 0 to {len(table) - 1}, not {t.flatten()[:4].tolist()}: look at t.")
    if t.numel() not in (1, len(x)):
        raise CourseError(f"{t.numel()} levels for {len(x)} pictures: t holds one level a picture.")
    return table[t].to(x).reshape(-1, *[1] * (x.ndim - 1))


def q_sample(x0, t, eps, schedule):
    """Noise x0 to level t in one jump (DDPM, eq. 4). x0, eps: (B, ...); t: (B,) integers in 0..T. Returns x_t, (B, ...)."""
    abar = at(schedule.abar, t, x0)
    return abar.sqrt() * x0 + (1 - abar).sqrt() * eps


def posterior(x0, xt, t, schedule):
    """Mean (B, ...) and variance (B, 1, ...) of q(x_{t-1} | x_t, x_0) (DDPM, eq. 7). x0, xt: (B, ...); t: (B,) in 1..T."""
    beta, abar, before = schedule.beta, schedule.abar, schedule.abar.roll(1)  # before[t] = abar[t - 1]
    of_x0 = before.sqrt() * beta / (1 - abar)
    of_xt = (1 - beta).sqrt() * (1 - before) / (1 - abar)
    var = beta * (1 - before) / (1 - abar)
    return at(of_x0, t, xt) * x0 + at(of_xt, t, xt) * xt, at(var, t, xt)


def vlb_terms(x0, x0_hat, t, schedule):
    """Terms of the bound per picture, bits per dimension. x0, x0_hat: (B, ...); t: (B,) in 1..T. Returns (B,): L_{t-1}, or L_0 where t = 1.

    L_0 is the discretised Gaussian of DDPM, eq. 13, for x0 made of 8-bit values in [-1, 1], with variance beta_1.
    """
    snr = schedule.abar / (1 - schedule.abar)
    kl = 0.5 * at(snr[:-1] - snr[1:], t - 1, x0) * (x0 - x0_hat) ** 2
    std = schedule.beta[1].sqrt().to(x0)
    upper = torch.where(x0 > 0.999, torch.inf, (x0 + 1 / 255 - x0_hat) / std)
    lower = torch.where(x0 < -0.999, -torch.inf, (x0 - 1 / 255 - x0_hat) / std)
    L0 = -(torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=1e-12).log()
    return torch.where(at(torch.arange(schedule.T + 1), t, x0) == 1, L0, kl).flatten(1).mean(1) / math.log(2)


def prior_term(x0, schedule):
    """L_T: KL from q(x_T | x_0) to a standard Gaussian, bits per dimension, (B,)."""
    abar = schedule.abar[-1].to(x0)
    return 0.5 * (abar * x0**2 - abar - torch.log1p(-abar)).flatten(1).mean(1) / math.log(2)


def velocity(x0, t, eps, schedule):
    """v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022, section 4). All (B, ...)."""
    abar = at(schedule.abar, t, x0)
    return abar.sqrt() * eps - (1 - abar).sqrt() * x0


def split(output, xt, t, schedule, target="v", clip=False):
    """(x0_hat, eps_hat) from what the network says about x_t; target: "eps", "x0" or "v". With clip, x0_hat is kept in [-1, 1]."""
    a, s = at(schedule.abar.sqrt(), t, xt), at((1 - schedule.abar).sqrt(), t, xt)
    if target == "eps":
        x0 = (xt - s * output) / a
    elif target == "v":
        x0 = a * xt - s * output
    elif target == "x0":
        x0 = output
    else:
        raise ValueError(f"target must be eps, x0 or v, not {target!r}")
    x0 = x0.clamp(-1, 1) if clip else x0
    return x0, output if target == "eps" and not clip else (xt - a * x0) / s


def denoising_loss(model, x0, t, eps, schedule, target="v"):
    """Simple loss (DDPM, eq. 14), a scalar. model(x_t, t) -> (B, ...); x0, eps: (B, ...); t: (B,) in 1..T; target: "eps" or "v"."""
    if target not in ("eps", "v"):
        raise CourseError(f"target must be eps or v, not {target!r}")
    xt = q_sample(x0, t, eps, schedule)
    wanted = eps if target == "eps" else velocity(x0, t, eps, schedule)
    return F.mse_loss(model(xt, t), wanted)


def time_embedding(t, dim, max_period=10_000.0):
    """t: (B,) -> (B, dim): cosines, then sines, of t at dim/2 frequencies from 1 down to 1/max_period (Vaswani et al. 2017)."""
    half = dim // 2
    freq = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * freq  # (B, dim/2)
    return torch.cat([angle.cos(), angle.sin()], 1)


class ResBlock(nn.Module):
    """(B, c_in, H, W), time vector (B, time_dim) -> (B, c_out, H, W)."""

    def __init__(self, c_in, c_out, time_dim, groups=8):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_dim, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over the H·W positions, with a residual connection. (B, C, H, W) -> the same."""

    def __init__(self, channels, head_dim=32, groups=8):
        super().__init__()
        self.heads = channels // head_dim
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        B, C, H, W = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(h).reshape(B, H * W, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, HW, head_dim)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        return x + self.out(h).transpose(1, 2).reshape(B, C, H, W)


class Layer(nn.Module):
    """A residual block, followed by attention where wanted."""

    def __init__(self, c_in, c_out, time_dim, attention=False, groups=8, head_dim=32):
        super().__init__()
        self.res = ResBlock(c_in, c_out, time_dim, groups)
        self.attention = AttentionBlock(c_out, head_dim, groups) if attention else nn.Identity()

    def forward(self, h, temb):
        return self.attention(self.res(h, temb))


class Downsample(nn.Conv2d):
    """A 3×3 convolution of stride 2: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, stride=2, padding=1)

    def forward(self, h, temb=None):
        return super().forward(h)


class Upsample(nn.Conv2d):
    """Every pixel doubled, then a 3×3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h, temb=None):
        return super().forward(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """Noisy pictures (B, channels, H, W), t (B,) -> (B, channels, H, W), after DDPM, appendix B. ``block``: groups, head_dim.

    H and W must be divisible by patch · 2^(len(widths) - 1). widths, attention: one a resolution, from high to low.
    """

    def __init__(self, channels=3, widths=(32, 64, 96), layers=1, attention=(False, True, True), patch=2, **block):
        super().__init__()
        if len(widths) != len(attention):
            raise CourseError(f"{len(widths)} widths and {len(attention)} attention: one of each a resolution.")
        self.patch, self.factor, c, time_dim = patch, patch * 2 ** (len(widths) - 1), widths[0], 4 * widths[0]
        self.time_mlp = nn.Sequential(nn.Linear(c, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.conv_in = nn.Conv2d(channels * patch**2, c, 3, padding=1)
        self.down, self.up, stack = nn.ModuleList(), nn.ModuleList(), [c]  # stack: channels of what is pushed
        for i, (w, att) in enumerate(zip(widths, attention)):
            if i:
                self.down.append(Downsample(c))
                stack.append(c)
            for _ in range(layers):
                self.down.append(Layer(c, w, time_dim, att, **block))
                stack.append(c := w)
        self.mid = nn.ModuleList([Layer(c, c, time_dim, att, **block) for att in (True, False)])
        for i, (w, att) in reversed(list(enumerate(zip(widths, attention)))):
            for _ in range(layers + 1):
                self.up.append(Layer(c + stack.pop(), w, time_dim, att, **block))
                c = w
            self.up.extend([Upsample(w)] if i else [])
        self.norm_out = nn.GroupNorm(block.get("groups", 8), c)
        self.conv_out = nn.Conv2d(c, channels * patch**2, 3, padding=1)

    def forward(self, x, t):
        if any(n % self.factor for n in x.shape[-2:]):
            raise CourseError(f"both sides of a picture must be multiples of {self.factor}, not {(*x.shape[-2:],)}.")
        temb = self.time_mlp(time_embedding(t, self.time_mlp[0].in_features).to(x.dtype))
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))
        stack = [h]
        for layer in self.down:
            stack.append(h := layer(h, temb))
        for layer in self.mid:
            h = layer(h, temb)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, stack.pop()], 1), temb)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


@torch.no_grad()
def ddpm_sample(model, shape, schedule=None, target="v", clip=True, generator=None, device="cpu", keep=()):
    """All T random steps from noise to data. Returns x_0 (B, ...), and the list of x_t at the t in ``keep`` if any are named."""
    schedule = schedule or make_schedule()
    x, kept = torch.randn(shape, generator=generator).to(device), []
    for step in range(schedule.T, 0, -1):
        t = torch.full((shape[0],), step, device=device)
        x0, _ = split(model(x, t), x, t, schedule, target, clip)
        mean, var = posterior(x0, x, t, schedule)
        x = mean + var.sqrt() * torch.randn(shape, generator=generator).to(device)
        if step - 1 in keep:
            kept.append(x)
    return (x, kept) if keep else x


def ddim_step(xt, x0_hat, eps_hat, t, s, schedule, eta=0.0, z=None):
    """From level t to level s < t (DDIM, eq. 12). xt, x0_hat, eps_hat, z: (B, ...); t, s: (B,); z is unused when eta = 0. Returns x_s."""
    now, then = at(schedule.abar, t, xt), at(schedule.abar, s, xt)
    var = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    x = then.sqrt() * x0_hat + (1 - then - var).clamp(min=0).sqrt() * eps_hat
    return x + var.sqrt() * z if eta else x


@torch.no_grad()
def ddim_sample(
    model, shape, steps=50, schedule=None, target="v", eta=0.0, clip=True, generator=None, device="cpu", start=None, keep=False
):  # fmt: skip
    """From noise to data in ``steps`` jumps, evenly spaced in t. ``start``: x_T to begin with. Returns x_0; with keep also the list of all x_0 guesses.

    ``model(x, t)`` may be any callable, so that guidance (lesson 2.4) is a wrapper around the network. More steps than levels: each level once.
    """
    if steps < 1:
        raise CourseError(f"the way from noise to data takes at least one step, not {steps}")
    schedule = schedule or make_schedule()
    x = (torch.randn(shape, generator=generator) if start is None else start).to(device)
    times = torch.linspace(schedule.T, 0, steps + 1).round().long().unique().flip(0)  # T ... 0, none twice
    guesses = []
    for now, then in zip(times[:-1], times[1:]):
        t, s = now.expand(len(x)).to(device), then.expand(len(x)).to(device)
        x0, eps = split(model(x, t), x, t, schedule, target, clip)
        z = torch.randn(shape, generator=generator).to(device) if eta else None
        x = ddim_step(x, x0, eps, t, s, schedule, eta, z)
        guesses.append(x0)
    return (x, guesses) if keep else x


def mixture_denoiser(means, std, schedule):
    """The exact E[eps | x_t] for data from an equal mixture of N(mean_k, std² I). means: (K, D). Returns model(x_t (B, D), t (B,)) -> (B, D)."""

    def model(x, t):
        abar = at(schedule.abar, t, x)  # (B, 1)
        var = abar * std**2 + 1 - abar
        away = x[:, None] - abar[:, None].sqrt() * means.to(x)  # (B, K, D)
        share = torch.softmax(-(away**2).sum(-1) / (2 * var), 1)  # (B, K)
        return (1 - abar).sqrt() / var * (share[..., None] * away).sum(1)

    return model


def frechet_distance(a, b):
    """Squared Fréchet distance of two sets of features, (N, D) and (M, D), each seen as a Gaussian (Heusel et al. 2017, eq. 6). A float."""
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise CourseError(f"two sets of at least 2 features of one length, not {(*a.shape,)} and {(*b.shape,)}.")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise CourseError("the features hold NaN or infinity: look at the pictures they were made of.")
    a, b = a.double(), b.double()
    A, B = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))  # covariance = Aᵀ A
    cross = torch.linalg.svdvals(A @ B.T).sum()  # tr (Σ₁ Σ₂)^½
    return ((a.mean(0) - b.mean(0)).square().sum() + A.square().sum() + B.square().sum() - 2 * cross).item()


def pca_gaussian(x, n, components=100, generator=None):
    """n samples (n, ...) of a Gaussian with the mean and the leading principal components of x (N, ...)."""
    flat = x.flatten(1)
    if len(flat) < 2:
        raise CourseError(f"a Gaussian is fitted to at least 2 pictures, not {len(flat)}.")
    components = min(components, *flat.shape)
    _, scale, basis = torch.pca_lowrank(flat - flat.mean(0), components, niter=4)
    z = torch.randn(n, components, generator=generator) * scale / math.sqrt(len(x) - 1)
    return (flat.mean(0) + z @ basis.T).reshape(n, *x.shape[1:])
