"""Generated from notebooks/2_generative/09_marigold.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from course_utils.lessons.ddpm import Downsample, Upsample, ddim_sample, denoising_loss
from course_utils.lessons.latent_diffusion import LatentDiffusion, PlainAttention, PlainResBlock, TextUNet, load_latent_diffusion, start_shallow


def normalise_depth(depth, low=0.02, high=0.98):
    """Depths (B, 1, H, W) -> [-1, 1]: each map's ``low`` quantile goes to -1, its ``high`` quantile to 1, what lies beyond is clipped (Ke et al. 2024).

    Unknown pixels (NaN) stay NaN and don't count, so a map without a known one is NaN; a map that is the same everywhere becomes -1.
    """
    near, far = (torch.nanquantile(depth.flatten(1), q, dim=1) for q in (low, high))  # (B,)
    near, far = near[:, None, None, None], far[:, None, None, None]
    return ((depth - near) / (far - near).clamp(min=1e-6) * 2 - 1).clamp(-1, 1)


def depth_to_latent(ld, depth):
    """Normalised depths (B, 1, 64, 64) -> latents (B, 4, 16, 16), as a grey picture."""
    return ld.encode(depth.repeat(1, 3, 1, 1) / 2 + 0.5)


def latent_to_depth(ld, z):
    """Latents (B, 4, 16, 16) -> normalised depths (B, 1, 64, 64), the mean of the three decoded channels."""
    return ld.decode(z).mean(1, keepdim=True) * 2 - 1


def scale_shift(pred, depth, known):
    """Least-squares scale and shift, each (B,), that bring ``pred`` onto ``depth`` where ``known``; NaN for a map where nothing is.

    All (B, 1, H, W); both maps may be NaN elsewhere.
    """
    w = known.to(pred).flatten(1)  # (B, HW)
    p, d = (torch.where(known, v, 0).flatten(1) for v in (pred, depth))
    n = w.sum(1, keepdim=True)
    dp, dd = p - (w * p).sum(1, keepdim=True) / n, d - (w * d).sum(1, keepdim=True) / n  # centred
    s = (w * dp * dd).sum(1) / (w * dp**2).sum(1).clamp(min=1e-12)  # a constant map gets s = 0
    return s, ((w * d).sum(1) - s * (w * p).sum(1)) / n[:, 0]


def align(pred, depth, known=None):
    """Predictions (B, 1, H, W) with the scale and shift that fit ``depth`` best, where it is known (finite, unless ``known`` says otherwise)."""
    s, b = scale_shift(pred, depth, depth.isfinite() if known is None else known)
    return s[:, None, None, None] * pred + b[:, None, None, None]


def depth_errors(pred, depth):
    """AbsRel and δ1 of each map, each (B,). pred: aligned depths (B, 1, H, W); depth: the truth, NaN where unknown. NaN for a map of which nothing is known."""
    known, n = depth.isfinite(), depth.isfinite().flatten(1).sum(1)
    d, p = torch.where(known, depth, 1.0), pred.clamp(min=1e-6)
    rel = torch.where(known, (pred - d).abs() / d, 0.0).flatten(1).sum(1) / n
    good = known & (torch.maximum(p / d, d / p) < 1.25)
    return rel, good.flatten(1).sum(1) / n


def widen(weight):
    """Weight of a convolution (W, C, k, k) -> (W, 2C, k, k): duplicated for a second input of C channels, and halved (Ke et al. 2024)."""
    return torch.cat([weight, weight], 1) / 2


def from_base(base):
    """2.4's U-Net (4 channels in) -> one that reads two latents and returns one. Everything but conv_in is copied as it is."""
    net = TextUNet(channels=8, out_channels=4)
    state = {k: v.clone() for k, v in base.state_dict().items()}
    state["conv_in.weight"] = widen(state["conv_in.weight"])
    net.load_state_dict(state)
    return net.to(base.conv_in.weight.device)


@dataclass
class Marigold:
    """2.4's autoencoder and text encoder, and a U-Net that reads the picture's latent beside the noisy depth's. Pictures (B, 3, 64, 64) in [0, 1]."""

    ld: LatentDiffusion
    unet: TextUNet

    def denoiser(self, z_x):
        """model(z_t, t) for pictures with latents z_x (B, 4, 16, 16), with the empty caption and no style."""
        words = self.ld.words([""]).expand(len(z_x), -1, -1)
        style = torch.zeros(len(z_x), dtype=torch.long, device=z_x.device)
        return lambda z_t, t: self.unet(torch.cat([z_x, z_t], 1), t, words, style)

    @torch.no_grad()
    def predict(self, x, members=1, steps=4, seed=0):
        """``members`` independent answers for each picture, in [-1, 1]: (members, B, 1, 64, 64)."""
        if members < 1 or steps < 1:
            raise ValueError(f"{members} answers in {steps} steps: at least one answer and one step, please.")
        if x.shape[-2] % 16 or x.shape[-1] % 16:
            raise ValueError(f"Pictures of {tuple(x.shape[-2:])} pixels: both sides must be multiples of 16.")
        z_x = self.ld.encode(x).repeat(members, 1, 1, 1)
        noise = torch.Generator().manual_seed(int(seed))
        z = ddim_sample(
            self.denoiser(z_x), z_x.shape, steps, self.ld.schedule, clip=False, generator=noise, device=self.ld.device
        )
        return latent_to_depth(self.ld, z).unflatten(0, (members, -1))


def noise_levels(shape, generator=None):
    """White noise (B, C, h, w) of each size from ``shape`` down to one pixel, each half of the last: a list."""
    B, C, h, w = shape
    sizes = [(h >> i, w >> i) for i in range(min(h, w).bit_length())]
    return [torch.randn(B, C, *size, generator=generator) for size in sizes]


def multi_resolution_noise(levels, t, T=1000, strength=0.9):
    """Sum of (strength · t/T)^i · levels[i], enlarged to the first one's size, at standard deviation 1 per example. t: (B,). Returns (B, C, h, w)."""
    s = (strength * t.to(levels[0]) / T).reshape(-1, 1, 1, 1)
    total = sum(s**i * F.interpolate(n, levels[0].shape[-2:], mode="bilinear") for i, n in enumerate(levels))
    return total / total.flatten(1).std(1)[:, None, None, None]


def stretch(d):
    """Each map (..., H, W) brought to [0, 1] by its own minimum and maximum."""
    low, high = d.amin((-1, -2), keepdim=True), d.amax((-1, -2), keepdim=True)
    return (d - low) / (high - low).clamp(min=1e-6)


def ensemble(maps, rounds=5):
    """N answers (N, B, 1, H, W) -> their median after alignment, in [0, 1], and the median distance from it, each (B, 1, H, W)."""
    known = torch.ones_like(maps[0], dtype=torch.bool)
    aligned = stretch(maps)
    for _ in range(rounds):
        goal = stretch(aligned.median(0).values)  # (B, 1, H, W)
        aligned = torch.stack([align(d, goal, known) for d in maps])
    middle = aligned.median(0).values
    spread = (aligned - middle).abs().median(0).values
    size = middle.amax((-1, -2), keepdim=True) - middle.amin((-1, -2), keepdim=True)
    return stretch(middle), spread / size.clamp(min=1e-6)


def disagreement(aligned, weight=0.02):
    """The paper's objective for maps (N, B, 1, H, W) that are already scaled and shifted: (B,)."""
    N, middle = len(aligned), aligned.median(0).values
    pairs = [(aligned[i] - aligned[j]).square().flatten(1).mean(1) for i in range(N) for j in range(i)]
    apart = torch.stack(pairs).mean(0).sqrt() if pairs else 0.0  # a single map has nobody to disagree with
    off = middle.flatten(1).amin(1).abs() + (1 - middle.flatten(1).amax(1)).abs()
    return apart + weight * off


class DepthNet(nn.Module):
    """A plain regression U-Net: pictures (B, 3, H, W) in [-1, 1] -> normalised depth (B, 1, H, W). H, W divisible by patch · 2^(len(widths) - 1)."""

    def __init__(self, widths=(64, 96, 112), patch=4):
        super().__init__()
        self.patch, c, stack = patch, widths[0], [widths[0]]
        self.conv_in = nn.Conv2d(3 * patch**2, c, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, w in enumerate(widths):
            if i:
                self.down.append(Downsample(c))
                stack.append(c)
            self.down.append(PlainResBlock(c, w))
            stack.append(c := w)
        self.mid = nn.Sequential(PlainResBlock(c, c), PlainAttention(c), PlainResBlock(c, c))
        for i, w in reversed(list(enumerate(widths))):
            for _ in range(2):
                self.up.append(PlainResBlock(c + stack.pop(), w))
                c = w
            self.up.extend([Upsample(w)] if i else [])
        self.norm_out, self.conv_out = nn.GroupNorm(8, c), nn.Conv2d(c, patch**2, 3, padding=1)

    def forward(self, x):
        stack = [h := self.conv_in(F.pixel_unshuffle(x, self.patch))]
        for layer in self.down:
            stack.append(h := layer(h))
        h = self.mid(h)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, stack.pop()], 1))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


def trained(name):
    """Which parameters of the U-Net are fine-tuned: convolutions and normalisations. Attention, its MLPs and the time vector stay as 2.4 left them."""
    resample = name.startswith(("down", "up")) and name.count(".") == 2
    return resample or any(part in name for part in ("norm", "conv", ".skip"))


def vary_room(x, depth, generator=None):
    """Mirror half, crop most to 65–100 %, change colours, saturation and contrast. On the CPU: x (B, 3, H, W) in [0, 1], depth (B, 1, H, W)."""
    rand = lambda *s: torch.rand(len(x), *s, generator=generator)
    mirror = torch.where(rand(1, 1, 1) < 0.5, -1.0, 1.0)[:, 0, 0]
    side = 1 - 0.35 * rand(1) * (rand(1) < 0.7)  # the share that is kept
    frame = torch.zeros(len(x), 2, 3)
    frame[:, 0, :1], frame[:, 1, 1:2], frame[:, :, 2] = mirror * side, side, (1 - side) * (2 * rand(2) - 1)
    where = F.affine_grid(frame, list(x.shape), align_corners=False)
    x = F.grid_sample(x, where, padding_mode="border", align_corners=False)
    depth = F.grid_sample(depth, where, mode="nearest", padding_mode="border", align_corners=False)
    grey = x.mean(1, keepdim=True)
    x = grey + 1.3 * rand(1, 1, 1) * (x - grey)  # saturation
    x = x * (1 + 0.25 * (2 * rand(3, 1, 1) - 1))  # a tint
    return x.clamp(0, 1) ** (0.4 * (2 * rand(1, 1, 1) - 1)).exp(), depth


class Rounded(nn.Module):
    """Tensors by name, rounded to 8 bits with one scale for each row of the first axis. Tensors with one axis stay as they are."""

    def __init__(self, tensors):
        super().__init__()
        for name, w in tensors.items():
            key, w = name.replace(".", "/"), w.detach()
            if w.ndim > 1:
                top = w.flatten(1).abs().amax(1).clamp(min=1e-4).half().float()
                self.register_buffer(key + "/top", top)
                w = (w / top.reshape(-1, *[1] * (w.ndim - 1)) * 127).round().clamp(-127, 127).to(torch.int8)
            self.register_buffer(key, w.clone())

    def tensors(self):
        """The tensors back, in single precision: name -> tensor."""
        own, out = dict(self.named_buffers()), {}
        for key, w in own.items():
            if not key.endswith("/top"):
                top = own.get(key + "/top")
                out[key.replace("/", ".")] = (
                    w.float() if top is None else w.float() * (top.float() / 127).reshape(-1, *[1] * (w.ndim - 1))
                )
        return out


def load_marigold(device="cpu"):
    """The course's depth estimator and the regression net with their trained weights, in eval mode and frozen: (Marigold, DepthNet)."""
    from course_utils import weights

    ld = load_latent_diffusion(device)
    net, plain = from_base(ld.unet), DepthNet()
    changed = {n: p for n, p in net.named_parameters() if trained(n)}
    stored = {"difference": Rounded(changed), "plain": Rounded(plain.state_dict())}
    weights.load("marigold", stored)
    for name, change in stored["difference"].tensors().items():
        changed[name].data.add_(change.to(device))
    plain.load_state_dict(stored["plain"].tensors())
    return Marigold(ld, net.eval().requires_grad_(False)), plain.to(device).eval().requires_grad_(False)
