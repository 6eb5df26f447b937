"""Generated from notebooks/2_generative/05_controlnet.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import base64
import hashlib
import io
import re
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.errors import as_list
from course_utils.lessons.clip import embed, load_clip
from course_utils.lessons.ddpm import Downsample, ddim_sample, q_sample, velocity
from course_utils.lessons.latent_diffusion import TextUNet, guide, load_latent_diffusion, one_style_each


def grey(x):
    """Brightness of pictures (B, 3, H, W) -> (B, H, W), with the eye's weights (ITU-R BT.601)."""
    if not x.is_floating_point():
        raise ValueError(f"pictures are floats in [0, 1], not {x.dtype}: divide by 255.")
    return torch.tensordot(torch.tensor([0.299, 0.587, 0.114]).to(x), x, ([0], [1]))


def convolve(x, kernel):
    """Slide a small odd-sized kernel over every picture (no flip), the border pixels repeated outwards. (B, H, W) -> (B, H, W)."""
    h, w = kernel.shape
    x = F.pad(x[:, None], (w // 2, w // 2, h // 2, h // 2), mode="replicate")
    return F.conv2d(x, kernel.to(x)[None, None])[:, 0]


def gaussian(x, sigma):
    """Blur (B, H, W) by a Gaussian of standard deviation sigma pixels, cut off at 4 sigma: first along rows, then along columns."""
    if not sigma > 0:
        raise ValueError(f"sigma = {sigma}: a blur has a width above 0.")
    r = int(4 * sigma + 0.5)
    k = torch.exp(-(torch.arange(-r, r + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    k = k / k.sum()
    return convolve(convolve(x, k[None]), k[:, None])


def sobel(x):
    """The slopes of (B, H, W) along x (right) and y (down), in brightness per pixel: two tensors (B, H, W)."""
    k = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    return convolve(x, k), convolve(x, k.T)


def shifted(m, dy, dx):
    """m at the pixel dy below and dx to the right of each pixel; the offsets differ from pixel to pixel. All (B, H, W); past the border: the last pixel."""
    B, H, W = m.shape
    y = (torch.arange(H, device=m.device)[:, None] + dy).long().clamp(0, H - 1)
    x = (torch.arange(W, device=m.device) + dx).long().clamp(0, W - 1)
    return m.flatten(1).gather(1, (y * W + x).flatten(1)).reshape(m.shape)


def thin(gx, gy):
    """Non-maximum suppression: the length of the gradient on the crests, 0 elsewhere (Canny 1986, section VIII). gx, gy, result: (B, H, W)."""
    m, ax, ay = torch.hypot(gx, gy), gx.abs(), gy.abs()
    steep, w = ay > ax, torch.minimum(ax, ay) / torch.maximum(ax, ay).clamp(min=1e-12)
    keep = torch.zeros_like(m, dtype=torch.bool)
    keep[:, 1:-1, 1:-1] = True  # the border has no neighbours on one side
    for way in (1, -1):
        dy, dx = way * gy.sign(), way * gx.sign()
        keep &= m >= (1 - w) * shifted(m, dy * steep, dx * ~steep) + w * shifted(m, dy, dx)
    return m * keep


def hysteresis(weak, strong):
    """The weak pixels that are joined to a strong one by a chain of weak neighbours (8-connected). All bool (B, H, W). Strong pixels that are not weak don't count."""
    kept, grown = None, weak & strong
    while kept is None or not torch.equal(kept, grown):
        kept = grown
        grown = weak & (F.max_pool2d(kept[:, None].float(), 3, 1, 1)[:, 0] > 0)
    return kept


def canny(x, sigma=1.5, low=0.03, high=0.07):
    """Edges of pictures in [0, 1], (B, 3, H, W) or grey (B, H, W) -> bool (B, H, W) (Canny 1986). Thresholds: brightness per pixel."""
    crest = thin(*sobel(gaussian(grey(x) if x.ndim == 4 else x, sigma)))
    return hysteresis(crest >= low, crest >= high)


def conditions(pack, device="cpu"):
    """Both conditions of an emoji pack: edges and silhouette as floats 0/1, (N, 2, H, W)."""
    mask = torch.from_numpy(np.ascontiguousarray(pack.alpha)).to(device) > 127
    return torch.stack([canny(pack.tensor(device)), mask], 1).float()


def silhouette(x, white=0.97):
    """The region that a picture on white covers: everything but the white that hangs together with the border. (B, 3, H, W) -> bool (B, H, W)."""
    empty = x.amin(1) > white
    border = torch.ones_like(empty)
    border[:, 1:-1, 1:-1] = False
    return ~hysteresis(empty, empty & border)


def edge_f1(got, want):
    """F1 of edge maps with one pixel of tolerance, one number a picture. got, want: bool (B, H, W) -> (B,)."""

    def share(a, b):  # of a's edge pixels: how many lie within one pixel of one of b's
        near = F.max_pool2d(b[:, None].float(), 3, 1, 1)[:, 0]
        return (a * near).flatten(1).sum(1) / a.flatten(1).sum(1).clamp(min=1)

    p, r = share(got, want), share(want, got)
    return 2 * p * r / (p + r).clamp(min=1e-9)


def overlap(got, want):
    """Intersection over union of regions, one number a picture. bool (B, H, W) -> (B,)."""
    return (got & want).flatten(1).sum(1) / (got | want).flatten(1).sum(1).clamp(min=1)


def fingerprint(module):
    """SHA-256 over the names and bytes of all weights: two equal ones mean equal models, bit for bit."""
    h = hashlib.sha256()
    for name, value in module.state_dict().items():
        h.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


def zero_conv(channels):
    """A trainable 1×1 convolution from channels to channels that starts at exactly zero (Zhang et al. 2023, section 3.1)."""
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def condition_encoder(channels, widths, out):
    """(B, channels, H, W) -> (B, out, H/f, W/f), f = 2^(len(widths) - 1), by 3×3 convolutions with SiLU, as in the authors' code; the last starts at zero."""
    parts = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
    for a, b in zip(widths, widths[1:]):
        parts += [nn.Conv2d(a, a, 3, padding=1), nn.SiLU(), nn.Conv2d(a, b, 3, stride=2, padding=1), nn.SiLU()]
    net = nn.Sequential(*parts, nn.Conv2d(widths[-1], out, 3, padding=1))
    for part in net[::2]:
        nn.init.kaiming_normal_(part.weight)  # He et al. 2015
        nn.init.zeros_(part.bias)
    nn.init.zeros_(net[-1].weight)
    return net


class ControlNet(TextUNet):
    """A trainable copy of a TextUNet's way down and middle. condition: (B, channels, 64, 64), 0 where nothing is drawn. ``shape``: as for TextUNet."""

    def __init__(self, condition=2, look=(16, 32, 64, 64), **shape):
        super().__init__(**shape)
        del self.up, self.norm_out, self.conv_out
        widths = [self.conv_in.out_channels]  # of each skip, then of the middle
        widths += [
            part.out_channels if isinstance(part, Downsample) else part.res.conv2.out_channels for part in self.down
        ]
        self.look = condition_encoder(condition, look, widths[0])
        self.zeros = nn.ModuleList([zero_conv(w) for w in (*widths, widths[-1])])

    @classmethod
    def from_unet(cls, unet, **shape):
        """A new ControlNet whose copied parts have the weights of ``unet``."""
        net = cls(**shape)
        own = {k: v for k, v in unet.state_dict().items() if k in net.state_dict()}
        fresh = net.load_state_dict(own, strict=False).missing_keys
        if not all(k.startswith(("look.", "zeros.")) for k in fresh):
            raise ValueError(f"the U-Net lacks {fresh[0]}: build the ControlNet with the U-Net's own shape.")
        return net.to(unet.conv_in.weight.device)

    def forward(self, z, t, context, style, condition):
        """What is to be added: one tensor for every skip connection, and a last one for the middle."""
        temb = self.embed(t, style)
        h = self.conv_in(F.pixel_unshuffle(z, self.patch))
        h = h + self.look(condition)  # the drawing comes in
        stack = [h]
        for layer in self.down:
            h = layer(h, temb) if isinstance(layer, Downsample) else layer(h, temb, context)
            stack.append(h)
        for layer in self.mid:
            h = layer(h, temb, context)
        return [zero(f) for zero, f in zip(self.zeros, [*stack, h])]


def steer(unet, control, z, t, context, style, condition, scale=1.0):
    """The locked U-Net's output under control, (B, C, H, W). unet(z, t, context, style, control=list); control(z, t, context, style, condition) -> list."""
    added = control(z, t, context, style, condition)
    return unet(z, t, context, style, control=[scale * a for a in added])


class Controlled(nn.Module):
    """A locked U-Net and its ControlNet as one network: ``ld.sample(captions, unet=Controlled(ld.unet, net), condition=[c])``."""

    def __init__(self, unet, control, scale=1.0):
        super().__init__()
        self.unet, self.control, self.scale = unet, control, scale

    def forward(self, z, t, context, style, condition):
        """condition: a list with one tensor (B, channels, 64, 64), as the sampler of 2.4 doubles lists for guidance."""
        (drawing,) = condition
        return steer(self.unet, self.control, z, t, context, style, drawing, self.scale)


def pack_pictures(x):
    """Pictures (N, 3, H, W) in [0, 1] as text: one WebP strip, side by side."""
    from PIL import Image

    file, strip = io.BytesIO(), x.permute(2, 0, 3, 1).flatten(1, 2).mul(255).round().byte().cpu().numpy()
    Image.fromarray(strip).save(file, "WEBP", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def unpack_pictures(text):
    """The inverse of pack_pictures for square pictures, up to WebP's small losses."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text))) as file:
        strip = torch.from_numpy(np.array(file.convert("RGB")))
    return strip.unflatten(1, (-1, len(strip))).permute(1, 3, 0, 2) / 255


def load_controlnet(device="cpu"):
    """The trained ControlNet of the course (condition: edges and silhouette), in eval mode and frozen, for ``Controlled``."""
    from course_utils import weights

    net = ControlNet(**weights.metadata("controlnet")["model"])
    weights.load("controlnet", net)
    return net.to(device).eval().requires_grad_(False)


@torch.no_grad()
def sample_controlled(ld, control, captions, condition, style=1, w=2.0, scale=1.0, steps=20, seed=0):
    """Captions (B strings) and conditions (B, 2, 64, 64) -> pictures (B, 3, 64, 64). ``ld``: lesson 2.4's model. Guidance leads away from "no words, no drawing"."""
    captions, c = as_list(captions), condition.to(ld.device).float()
    n, words, none = len(captions), ld.words(captions), ld.words([""] * len(captions))
    if not n or steps < 1 or c.shape != (n, 2, 64, 64):
        raise ValueError(
            f"{n} captions in {steps} steps with conditions {tuple(c.shape)}: ({max(n, 1)}, 2, 64, 64) are needed."
        )
    s = one_style_each(style, n, ld.device)

    def model(z, t):
        return guide(steer(ld.unet, control, z, t, words, s, c, scale), ld.unet(z, t, none, s), w)

    noise = torch.Generator().manual_seed(int(seed))
    return ld.decode(
        ddim_sample(model, (n, 4, 16, 16), steps, ld.schedule, clip=False, generator=noise, device=ld.device)
    )


def pen(strokes):
    """A drawing, (1, 2, 64, 64), from text: points A1..I9 joined by lines, "/" lifts the pen, "E5*2" is a circle of radius 2 points. Channel 1 is empty."""
    page, last = torch.zeros(1, 2, 64, 64), None
    for word in strokes.upper().replace("/", " / ").split():
        point, _, radius = word.partition("*")
        if word == "/":
            last = None
            continue
        if not re.fullmatch(r"[A-I][1-9](\*(\d|\d?\.\d+))?", word):
            raise ValueError(
                f"{word!r} is no point: a letter A to I and a digit 1 to 9, as in E5, or E5*2 for a circle."
            )
        here = np.array([4 + 7 * (int(point[1]) - 1), 4 + 7 * (ord(point[0]) - ord("A"))], float)  # row, column
        if radius:
            angle = np.linspace(0, 2 * np.pi, 400)[:, None]
            line, here = here + 7 * float(radius) * np.concatenate([np.sin(angle), np.cos(angle)], 1), None
        else:
            line = np.linspace(here if last is None else last, here, 150)
        rows, columns = line.round().astype(int).clip(0, 63).T
        page[0, 0, rows, columns], last = 1, here
    return page
