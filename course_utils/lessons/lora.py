"""Generated from notebooks/2_generative/06_lora.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.errors import CourseError
from course_utils.lessons.clip import embed, load_clip
from course_utils.lessons.ddpm import denoising_loss
from course_utils.lessons.latent_diffusion import drop_captions, load_latent_diffusion


def pencil(x):
    """A made-up style: pale grey shading with dark lines where the colour changes. Pictures (B, 3, H, W) in [0, 1] -> the same."""
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():
        raise CourseError(f"pictures are (B, 3, H, W) from 0 to 1, and this is {(*x.shape,)} of {x.dtype}.")
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = p[:, :, 1:-1, 2:] - p[:, :, 1:-1, :-2], p[:, :, 2:, 1:-1] - p[:, :, :-2, 1:-1]
    edge = (across**2 + down**2).sum(1, keepdim=True).sqrt()
    shade = 0.25 * (1 - x.mean(1, keepdim=True))
    return (1 - shade - 0.9 * edge).clamp(0.1, 1).expand_as(x)


def low_rank(x, A, B, alpha):
    """The update (alpha / r) B A x (Hu et al. 2022, eq. 3). x: (..., m); A: (r, m); B: (n, r). Returns (..., n)."""
    return alpha / len(A) * F.linear(F.linear(x, A), B)


class LowRank(nn.Module):
    """The trainable update of one layer: (..., m) -> (..., n)."""

    def __init__(self, m, n, rank, alpha=8.0):
        super().__init__()
        if rank < 1:
            raise ValueError(f"an update needs at least rank 1, not {rank}")
        self.alpha, self.A, self.B = (alpha, nn.Parameter(torch.empty(rank, m)), nn.Parameter(torch.zeros(n, rank)))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # uniform in ±1/√m, as the authors' code does

    def forward(self, x):
        return low_rank(x, self.A, self.B, self.alpha)


def merged_weight(W, A, B, alpha, strength=1.0):
    """W + strength · (alpha / r) B A as a new tensor. W: (n, m); A: (r, m); B: (n, r)."""
    return W + strength * alpha / len(A) * (B @ A)


class LoRALinear(nn.Module):
    """A frozen linear layer with updates beside it or merged into it. (..., m) -> (..., n)."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.active, self.kept = linear.requires_grad_(False), [], None

    def forward(self, x):
        y = self.linear(x)
        for update, strength in self.active:
            y = y + strength * update(x)
        return y

    @torch.no_grad()
    def switch(self, pairs, merged=False):
        """Use these (update, strength) pairs and no others; without pairs the layer is the base again."""
        if self.kept is not None:  # undo an earlier merge
            self.linear.weight.copy_(self.kept)
            self.kept = None
        self.active = [] if merged else list(pairs)
        if merged and pairs:
            self.kept = self.linear.weight.clone()
            for update, strength in pairs:
                W = self.linear.weight
                W.copy_(merged_weight(W, update.A, update.B, update.alpha, strength))


TARGETS = ("to_q", "to_k", "to_v", "to_out", "expand", "shrink")


def wrap(model, targets=TARGETS):
    """Put a LoRALinear around every linear layer whose name is among ``targets``, in place; wrapping twice changes nothing. Returns the model."""
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                setattr(parent, name, LoRALinear(child))
    if not wrapped(model):
        raise CourseError(f"this model has no linear layer with a name among {targets}: nothing was wrapped.")
    return model


def wrapped(model):
    """The wrapped layers of a model by name, as {"down/0/attention/attn1/to_q": LoRALinear ...}."""
    return {k.replace(".", "/"): m for k, m in model.named_modules() if isinstance(m, LoRALinear)}


def new_adapter(model, rank, alpha=8.0):
    """A fresh adapter for a wrapped model: one LowRank for each wrapped layer, on the layer's device. An nn.ModuleDict."""
    if not wrapped(model):
        raise CourseError("this model has no wrapped layers: call wrap(model) first")
    sizes = {k: layer.linear.weight for k, layer in wrapped(model).items()}
    return nn.ModuleDict({k: LowRank(w.shape[1], w.shape[0], rank, alpha).to(w) for k, w in sizes.items()})


def use(model, *pairs, merged=False):
    """Switch on these adapters and no others: use(unet, (fluent, 1.0), (pencil, 0.5)); use(unet) is the base. Returns the model."""
    if pairs and not wrapped(model):
        raise ValueError("this model has no wrapped layers: call wrap(model) first")
    if any(set(adapter) != set(wrapped(model)) for adapter, _ in pairs):
        raise CourseError("an adapter was made for a model with other layers: make it with new_adapter(model, rank).")
    for name, layer in wrapped(model).items():
        layer.switch([(adapter[name], strength) for adapter, strength in pairs], merged)
    return model


def largest_rank(shapes, budget):
    """The largest useful rank of an adapter with at most ``budget`` numbers. shapes: pairs (n, m), one a layer. Returns an int."""
    per_rank = sum(n + m for n, m in shapes)
    return min(budget // per_rank, min(min(s) for s in shapes))


def stack(parts, strengths):
    """Several updates of one layer as one, with the same alpha. parts: pairs (A_i (r_i, m), B_i (n, r_i)). Returns A (r, m), B (n, r), r = Σ r_i."""
    if not parts or len(parts) != len(strengths):
        raise CourseError(f"{len(parts)} updates and {len(strengths)} strengths: one strength an update.")
    r = sum(len(A) for A, _ in parts)
    A = torch.cat([A for A, _ in parts])
    B = torch.cat([w * r / len(A_i) * B_i for (A_i, B_i), w in zip(parts, strengths)], 1)
    return A, B


def style_net(styles=4, width=24):
    """A small CNN that names the style of a picture. (B, 3, 32, 32) in [0, 1] -> (B, styles) logits."""
    parts, c = [], 3
    for w in (width, 2 * width, 4 * width):
        parts += [nn.Conv2d(c, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU()]
        c = w
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, styles))


def soften(x, generator=None):
    """Each picture blurred by a random amount, and a little noise. (B, 3, H, W) -> the same."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = torch.rand(len(x), 1, 1, 1, generator=generator).to(x)
    return x.lerp(blurred, amount) + 0.03 * torch.randn(x.shape, generator=generator).to(x)
