"""Generated from notebooks/2_generative/04_latent_diffusion.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from course_utils.errors import as_list
from course_utils.lessons.clip import CLIP, embed, load_clip
from course_utils.lessons.ddpm import Downsample, ResBlock, Schedule, Upsample, ddim_sample, make_schedule, time_embedding


def psnr(x, y):
    """Peak signal-to-noise ratio of pictures (B, 3, H, W) in [0, 1], in decibels, (B,)."""
    return -10 * torch.log10((x - y).square().flatten(1).mean(1))


def block_pca(x, keep=4, block=4):
    """The best linear code of blocks of pixels: pictures (N, 3, H, W) -> a function that takes pictures through ``keep`` numbers a block and back."""
    blocks = F.pixel_unshuffle(x, block).transpose(0, 1).flatten(1)  # (48, N·H·W/16)
    mean, basis = (blocks.mean(1)[:, None, None], torch.linalg.eigh(torch.cov(blocks))[1][:, -keep:])  # (48, keep)

    def there_and_back(x):
        z = torch.einsum("bchw,ck->bkhw", F.pixel_unshuffle(x, block) - mean, basis)
        return F.pixel_shuffle(torch.einsum("bkhw,ck->bchw", z, basis) + mean, block)

    return there_and_back


class PlainResBlock(nn.Module):
    """The residual block of 2.3 without a time vector: (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in, c_out, groups=8):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in, eps=1e-6), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out, eps=1e-6), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class PlainAttention(nn.Module):
    """One-head self-attention over the H·W positions, with a residual connection. (B, C, H, W) -> the same."""

    def __init__(self, channels, groups=8):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, -1)  # (B, HW, C)
        h = self.out(F.scaled_dot_product_attention(q, k, v))
        return x + h.transpose(1, 2).reshape(x.shape)


class Halve(nn.Conv2d):
    """A 3×3 convolution of stride 2, padded on the right and below only, as in Stable Diffusion's autoencoder. (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def encoder(channels, latent, widths, layers, patch, groups=8):
    """Pictures (B, channels, H, W) -> mean and log-variance of the latent, (B, 2·latent, H/f, W/f) with f = patch · 2^(len(widths) - 1)."""
    c, parts = widths[0], [nn.PixelUnshuffle(patch), nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)]
    for i, w in enumerate(widths):
        parts += [Halve(c)] if i else []
        for _ in range(layers):
            parts.append(PlainResBlock(c, w, groups))
            c = w
    parts += [PlainResBlock(c, c, groups), PlainAttention(c, groups), PlainResBlock(c, c, groups)]
    parts += [
        nn.GroupNorm(groups, c, eps=1e-6),
        nn.SiLU(),
        nn.Conv2d(c, 2 * latent, 3, padding=1),
        nn.Conv2d(2 * latent, 2 * latent, 1),
    ]
    return nn.Sequential(*parts)


def decoder(channels, latent, widths, layers, patch, groups=8):
    """Latents (B, latent, H/f, W/f) -> pictures (B, channels, H, W): the encoder's mirror image, with one block more a level."""
    c = widths[-1]
    parts = [nn.Conv2d(latent, latent, 1), nn.Conv2d(latent, c, 3, padding=1)]
    parts += [PlainResBlock(c, c, groups), PlainAttention(c, groups), PlainResBlock(c, c, groups)]
    for i, w in reversed(list(enumerate(widths))):
        for _ in range(layers + 1):
            parts.append(PlainResBlock(c, w, groups))
            c = w
        parts += [Upsample(c)] if i else []
    parts += [
        nn.GroupNorm(groups, c, eps=1e-6),
        nn.SiLU(),
        nn.Conv2d(c, channels * patch**2, 3, padding=1),
        nn.PixelShuffle(patch),
    ]
    return nn.Sequential(*parts)


class KLAutoencoder(nn.Module):
    """Autoencoder with a Gaussian latent (Rombach et al. 2022, section 3.1). Pictures (B, channels, H, W) in [-1, 1]; latents (B, latent, H/f, W/f)."""

    def __init__(self, channels=3, latent=4, widths=(40, 80), layers=1, patch=2, groups=8):
        super().__init__()
        self.encoder = encoder(channels, latent, widths, layers, patch, groups)
        self.decoder = decoder(channels, latent, widths, layers, patch, groups)
        self.factor = patch * 2 ** (len(widths) - 1)  # f: so many pixels a latent, each way
        self.register_buffer("scale", torch.ones(()))  # set after training: 1 / std of the latents

    def moments(self, x):
        """Mean and log-variance of q(z | x), unscaled, each (B, latent, H/f, W/f)."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            H, W = x.shape[-2:]
            raise ValueError(f"Pictures of {H}×{W} pixels do not fit: both sides must be multiples of {self.factor}.")
        mean, logvar = self.encoder(x).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def encode(self, x):
        """The scaled mean latent, about unit variance: (B, latent, H/f, W/f)."""
        return self.moments(x)[0] * self.scale

    def decode(self, z):
        """Scaled latents -> pictures (B, channels, H, W)."""
        return self.decoder(z / self.scale)


def gradient_loss(y, x):
    """Mean |horizontal slope of y - that of x|, plus the same for vertical slopes; a scalar. x, y: (B, C, H, W)."""
    e = y - x  # taking differences is linear: the slopes' error is the error's slope
    return (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()


def rate(mean, logvar):
    """KL divergence of N(mean, exp(logvar)) from N(0, 1), averaged over all latent numbers; a scalar (in nats per number)."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


def autoencoder_loss(y, x, mean, logvar, weight=1e-4):
    """L1 + slopes + a little KL, a scalar. x: pictures, y: their reconstructions (B, C, H, W); mean, logvar: of q(z | x)."""
    return (y - x).abs().mean() + gradient_loss(y, x) + weight * rate(mean, logvar)


def dead_leaves(n, size=64, shapes=16, generator=None):
    """n synthetic pictures (n, 3, size, size) in [0, 1]: shaded five-sided shapes, back to front (after Lee, Mumford & Huang 2001)."""
    rand = lambda *s: torch.rand(n, *s, generator=generator)
    axis = torch.linspace(-1, 1, size)
    p, x = torch.stack(torch.meshgrid(axis, axis, indexing="xy")), rand(3, 1, 1).expand(n, 3, size, size)
    for _ in range(shapes):
        angle = 2 * math.pi * rand(5)
        normal, centre = torch.stack([angle.cos(), angle.sin()], -1), 2.2 * rand(2) - 1.1  # (n, 5, 2), (n, 2)
        away = torch.einsum(
            "nec,nchw->nehw", normal, p - centre[..., None, None]
        )  # distance along each of five normals
        inside = (away < ((0.1 + 0.9 * rand(1) ** 2) * (0.4 + 0.6 * rand(5)))[..., None, None]).all(1, keepdim=True)
        colour = rand(3)[..., None, None] + (rand(3) - 0.5)[..., None, None] * away[:, :1]
        x = torch.where(inside, colour, x)
    return x.clamp(0, 1)


def vary(x, generator=None):
    """Mirror half of the pictures, and mix the colour channels of a third. x: (B, 3, H, W) in [0, 1], on the CPU."""
    mirror, mix = torch.rand(2, len(x), 1, 1, 1, generator=generator)
    x = torch.where(mirror < 0.5, x.flip(-1), x)
    channels = torch.eye(3) + 0.35 * torch.randn(len(x), 3, 3, generator=generator)
    return torch.where(mix < 1 / 3, torch.einsum("bij,bjhw->bihw", channels, x).clamp(0, 1), x)


@torch.no_grad()
def start_shallow(model):
    """Set the last layer of every residual branch to zero, and the output of a U-Net, so that training starts from a shallow network."""
    for m in model.modules():
        last = {
            "PlainResBlock": "conv2",
            "PlainAttention": "out",
            "ResBlock": "conv2",
            "SpatialTransformer": "proj_out",
            "TextUNet": "conv_out",
        }
        if name := last.get(type(m).__name__):
            getattr(m, name).weight.zero_()
            getattr(m, name).bias.zero_()
    return model


def latent_scale(z):
    """What to multiply latents z (N, C, h, w) by, so that the standard deviation over all their numbers is 1: a scalar tensor."""
    return 1 / z.std()


def text_states(clip, captions, context=20):
    """One vector for every token of every caption from lesson 1.2's frozen text encoder: B strings -> (B, context, D), zero after <end>."""
    text = clip.text
    ids = clip.tokenizer(as_list(captions)).to(text.position.device)
    ids = F.pad(ids, (0, context - ids.shape[1]))
    causal = torch.ones(context, context, dtype=torch.bool, device=ids.device).tril()
    z = text.token(ids) + text.position[:context]
    for block in text.blocks:
        z = block(z, causal)
    return text.norm_out(z) * (ids != 0)[..., None]


def cross_attention(x, c, w_q, w_k, w_v, heads):
    """Positions x (B, N, D) read words c (B, T, E). Weights: w_q (D, D), w_k and w_v (E, D). Returns (B, N, D), before any output layer."""
    q, k, v = (
        h.unflatten(-1, (heads, -1)).transpose(1, 2) for h in (x @ w_q, c @ w_k, c @ w_v)
    )  # (B, heads, N or T, d)
    share = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)  # (B, heads, N, T)
    return (share @ v).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Positions (B, N, D) look at words (B, T, E) (Rombach et al. 2022, section 3.3); without words they look at each other."""

    def __init__(self, width, context_width=None, head_dim=32):
        super().__init__()
        self.heads, e = width // head_dim, context_width or width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = nn.Linear(e, width, bias=False), nn.Linear(e, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def split(self, x):
        """(B, N, D) -> (B, heads, N, D/heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q, k, v):
        """softmax(q kᵀ / √d) v: (B, heads, N, d), (B, heads, T, d) twice -> (B, heads, N, d). Lesson 2.7 puts its own in place of this."""
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x, context=None):
        context = x if context is None else context
        h = self.attend(self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context)))
        return self.to_out(h.transpose(1, 2).flatten(2))


class SpatialTransformer(nn.Module):
    """Self-attention over positions, cross-attention to the words, a gated MLP; each with a residual connection. (B, C, H, W) -> the same."""

    def __init__(self, channels, context_width, groups=8, head_dim=32):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1, self.attn2 = (
            CrossAttention(channels, None, head_dim),
            CrossAttention(channels, context_width, head_dim),
        )
        self.expand, self.shrink = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x, context):
        """Features (B, C, H, W) read words (B, T, E)."""
        B, C, H, W = x.shape
        h = self.proj_in(self.norm(x))
        h = h.flatten(2).transpose(1, 2)  # (B, HW, C)
        h = h + self.attn1(self.norm1(h))  # positions look at each other
        h = h + self.attn2(self.norm2(h), context)  # positions read the words
        value, gate = self.expand(self.norm3(h)).chunk(2, -1)  # (B, HW, 4C) each
        h = h + self.shrink(value * F.gelu(gate))
        h = h.transpose(1, 2).reshape(B, C, H, W)
        return x + self.proj_out(h)


class TextLayer(nn.Module):
    """A residual block that knows t, followed where wanted by a transformer that reads the words. (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in, c_out, time_dim, context_width, attention, groups=8, head_dim=32):
        super().__init__()
        self.res = ResBlock(c_in, c_out, time_dim, groups)
        self.attention = SpatialTransformer(c_out, context_width, groups, head_dim) if attention else None

    def forward(self, h, temb, context):
        h = self.res(h, temb)
        return h if self.attention is None else self.attention(h, context)


def way_down(widths, layers, attention, **block):
    """The U-Net's layers from high to low resolution, and the channels of everything they push on the stack."""
    down, c, stack = nn.ModuleList(), widths[0], [widths[0]]
    for i, (w, att) in enumerate(zip(widths, attention)):
        if i:
            down.append(Downsample(c))
            stack.append(c)
        for _ in range(layers):
            down.append(TextLayer(c, w, attention=att, **block))
            stack.append(c := w)
    return down, stack


def way_up(widths, layers, attention, stack, **block):
    """The layers back to high resolution; each also receives what the way down pushed."""
    up, c = nn.ModuleList(), widths[-1]
    for i, (w, att) in reversed(list(enumerate(zip(widths, attention)))):
        for _ in range(layers + 1):
            up.append(TextLayer(c + stack.pop(), w, attention=att, **block))
            c = w
        up.extend([Upsample(w)] if i else [])
    return up


class TextUNet(nn.Module):
    """Noisy latents (B, channels, H, W), t (B,), words (B, T, E), style (B,) -> (B, out_channels, H, W): lesson 2.3's U-Net with cross-attention.

    H and W must be divisible by patch · 2^(len(widths) - 1). widths, attention: one a resolution, from high to low. style: 0 = any, 1 = Noto, 2 = Twemoji.
    """

    def __init__(
        self, channels=4, widths=(96, 128), layers=1, attention=(True, True), context_width=128, styles=3, patch=2,
        out_channels=None, groups=8, head_dim=32,
    ):  # fmt: skip
        super().__init__()
        self.patch, self.width, E, c = patch, widths[0], 4 * widths[0], widths[-1]  # E: of the time vector
        block = dict(time_dim=E, context_width=context_width, groups=groups, head_dim=head_dim)
        self.time_mlp = nn.Sequential(nn.Linear(self.width, E), nn.SiLU(), nn.Linear(E, E))
        self.style = nn.Embedding(styles, E)
        self.conv_in = nn.Conv2d(channels * patch**2, self.width, 3, padding=1)
        self.down, stack = way_down(widths, layers, attention, **block)
        self.mid = nn.ModuleList([TextLayer(c, c, attention=att, **block) for att in (True, False)])
        self.up = way_up(widths, layers, attention, stack, **block)
        self.norm_out = nn.GroupNorm(groups, self.width)
        self.conv_out = nn.Conv2d(self.width, (out_channels or channels) * patch**2, 3, padding=1)

    def embed(self, t, style):
        """The vector that every residual block receives: (B,), (B,) -> (B, 4·widths[0])."""
        return self.time_mlp(time_embedding(t, self.width).to(self.conv_in.weight.dtype)) + self.style(style)

    def encode(self, h, temb, context):
        """The way down and the middle: (B, widths[0], H/patch, W/patch) -> the stack of skip connections, and the innermost features."""
        stack = [h]
        for layer in self.down:
            stack.append(h := layer(h, temb) if isinstance(layer, Downsample) else layer(h, temb, context))
        for layer in self.mid:
            h = layer(h, temb, context)
        return stack, h

    def forward(self, z, t, context, style, control=None):
        """control: None, or what lesson 2.5 adds to the skip connections and to the innermost features, a list of len(stack) + 1 tensors."""
        temb = self.embed(t, style)
        stack, h = self.encode(self.conv_in(F.pixel_unshuffle(z, self.patch)), temb, context)
        if control is not None:
            stack, h = [s + r for s, r in zip(stack, control)], h + control[-1]
        for layer in self.up:
            up = isinstance(layer, Upsample)
            h = layer(h) if up else layer(torch.cat([h, stack.pop()], 1), temb, context)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


def drop_captions(c, none, p=0.1, generator=None):
    """Words c (B, T, E) with each example's replaced, with probability p, by those of the empty caption, none (T, E). Returns (B, T, E)."""
    drop = torch.rand(len(c), generator=generator).to(c.device) < p
    return torch.where(drop[:, None, None], none, c)


def guide(with_text, without, w):
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, with w counted as in Stable Diffusion: 1 = no guidance). All (B, ...)."""
    return without + w * (with_text - without)


def one_style_each(style, n, device):
    """One style for all, or one for each of n captions, as a tensor (n,): 0 = any, 1 = Noto, 2 = Twemoji."""
    s = torch.as_tensor(style).expand(n).to(device)
    if s.is_floating_point() or not bool(((s >= 0) & (s <= 2)).all()):
        raise ValueError(f"style {style}: 0 is any, 1 Noto, 2 Twemoji.")
    return s


def guided(unet, c, none, style, w, **more):
    """model(z_t, t) for the sampler, guided with weight w. c, none: words with and without caption (B, T, E); style: (B,); ``more`` goes to the U-Net."""

    def model(z, t):
        if w == 1:
            return unet(z, t, c, style, **more)
        twice = {k: [torch.cat([r, r]) for r in v] for k, v in more.items()}
        both = unet(torch.cat([z, z]), torch.cat([t, t]), torch.cat([c, none]), torch.cat([style, style]), **twice)
        return guide(*both.chunk(2), w)

    return model


@dataclass
class LatentDiffusion:
    """All the parts of the course's text-to-image model. Pictures are (B, 3, 64, 64) in [0, 1], latents (B, 4, 16, 16)."""

    autoencoder: KLAutoencoder
    unet: TextUNet
    clip: CLIP
    schedule: Schedule
    device: str = "cpu"

    @torch.no_grad()
    def encode(self, x):
        """Pictures (B, 3, 64, 64) in [0, 1] -> scaled latents; other sizes work where both sides are multiples of 4."""
        if x.ndim != 4 or x.shape[1] != 3 or not len(x) or not x.is_floating_point():
            raise ValueError(f"{x.dtype} of shape {tuple(x.shape)}: pictures are floats in [0, 1], (B, 3, H, W).")
        return self.autoencoder.encode(x.to(self.device) * 2 - 1)

    @torch.no_grad()
    def decode(self, z):
        """Scaled latents -> pictures in [0, 1]."""
        return self.autoencoder.decode(z).clamp(-1, 1) / 2 + 0.5

    @torch.no_grad()
    def words(self, captions):
        """Captions -> (B, 20, 128), what the cross-attention reads. The empty caption means "anything"."""
        return text_states(self.clip, captions)

    def denoiser(self, captions, style=1, w=3.0, unet=None, **more):
        """model(z_t, t) for the sampler, guided with weight w. ``more`` goes to the U-Net; so does ``unet``, if another one shall be used."""
        captions = as_list(captions)
        c, none = self.words(captions), self.words([""] * len(captions))
        s = one_style_each(style, len(captions), self.device)
        return guided(unet or self.unet, c, none, s, w, **more)

    @torch.no_grad()
    def sample(self, captions, style=1, w=3.0, steps=20, seed=0, start=None, unet=None, **more):
        """Captions (a list of B strings) -> pictures (B, 3, 64, 64). style: 1 = Noto, 2 = Twemoji; start: noise z_T (B, 4, 16, 16) instead of the seed's."""
        captions = as_list(captions)
        shape, noise = (len(captions), 4, 16, 16), torch.Generator().manual_seed(int(seed))
        if not captions or steps < 1 or (start is not None and start.shape != shape):
            raise ValueError(
                f"{len(captions)} captions in {steps} steps: at least one of each, and start, if given, of shape {shape}."
            )
        model = self.denoiser(captions, style, w, unet, **more)
        told = dict(clip=False, generator=noise, device=self.device, start=start)
        return self.decode(ddim_sample(model, shape, steps, self.schedule, **told))


def load_latent_diffusion(device="cpu"):
    """The course's text-to-image model with its trained weights, in eval mode and frozen, for later lessons."""
    from course_utils import weights

    told = weights.metadata("latent_diffusion")
    parts = {"autoencoder": KLAutoencoder(**told["autoencoder"]), "unet": TextUNet(**told["unet"])}
    weights.load("latent_diffusion", parts)
    for part in parts.values():
        part.to(device).eval().requires_grad_(False)
    return LatentDiffusion(**parts, clip=load_clip(device), schedule=make_schedule(told["schedule"]), device=device)


@torch.no_grad()
def judge(clip, painted, real, captions):
    """n pictures (n, 3, 64, 64) painted from the first n of N captions, held against the N real ones (N, 3, 64, 64). Three shares:

    "r5": the right caption is among the five best of N; "features", "pixels": the nearest real picture is the right one, in CLIP's image features and in
    pixels averaged down to 16×16.
    """

    def hit(s, k):  # (n, N): row i should prefer column i
        return ((~(s < s.diagonal()[:, None])).sum(1) <= k).float().mean().item()  # nan is never a hit

    a, b = (embed(clip, F.avg_pool2d(x, 2)) for x in (painted, real))
    away = torch.cdist(F.avg_pool2d(painted, 4).flatten(1), F.avg_pool2d(real, 4).flatten(1))
    return {"r5": hit(a @ embed(clip, captions=captions).T, 5), "features": hit(a @ b.T, 1), "pixels": hit(-away, 1)}
