"""What makes training on a processor faster: bf16 where the machine has instructions for it, and the optimiser Muon. Lessons reach it as ``train.bf16`` and ``train.Muon``."""

from __future__ import annotations

import math
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def fast_bf16() -> bool:
    """Has this processor instructions for products of 16-bit brain floats (AVX512_BF16, AMX)? Without them bf16 is slower than float32."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private names of torch: absent ones count as no
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def bf16(device="cpu", enabled: bool | None = None) -> torch.autocast:
    """Within this, convolutions and matrix products are computed in bf16 where the machine is faster at it; weights, gradients and losses stay in float32.

    bf16 has float32's range and 8 bits of precision, so nothing overflows and no loss scaling is needed. Measured on one AMD Zen 4 core, the U-Net of lesson 2.3
    at batch 64: a step in .60 s, in float32 1.06 s. Write attention as products and a softmax: the fused one has a slow backward in bf16 on a CPU (.79 s).
    """
    device = torch.device(device)
    able = device.type == "cuda" or (device.type == "cpu" and fast_bf16())
    return torch.autocast(device.type if device.type in ("cpu", "cuda") else "cpu", torch.bfloat16, enabled=able if enabled is None else enabled)


def orthogonal(G: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The nearest orthogonal matrices to (N, rows, columns), roughly: singular vectors kept, singular values moved towards 1 (.7 to 1.2) by Newton–Schulz steps.

    A step is x ← a·x + b·x³ + c·x⁵ on every singular value, with Jordan's coefficients: steep at 0, and bounded in 16 bits too.
    """
    X = G.to(dtype or G.dtype)
    wide = X.shape[-2] <= X.shape[-1]
    X = X if wide else X.mT  # the smaller side first: X Xᵀ is small
    X = X / (X.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).to(X.dtype)  # all singular values below 1
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return (X if wide else X.mT).to(G.dtype)


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for weight matrices and convolutions, seen as one row per output channel; AdamW for all else: biases, norms, embeddings.

    A step for a matrix: momentum (Nesterov), made orthogonal, so that no direction is learned slowly because its gradients are small; scaled by .2·√(longest side),
    the size of AdamW's steps (Liu et al. 2025). ``plain``: names, or parts of them, that go to AdamW too: the layers at either end, and what reads a condition.
    It costs a fifth of a step at batch 64. In a short run (200 steps of 32, one seed) the loss was .272, AdamW's .299; at equal time the two were level.
    """

    def __init__(self, model, lr: float = 3e-3, *, adam_lr: float = 2e-3, momentum: float = 0.95, weight_decay: float = 0.01, plain: tuple = ()):
        embeddings = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        free = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        muon = [p for n, p in free if p.ndim >= 2 and p not in embeddings and not any(part in n for part in plain)]
        rest = [p for _, p in free if not any(p is m for m in muon)]
        groups = [{"params": rest, "lr": adam_lr, "momentum": None}, {"params": muon, "lr": lr, "momentum": momentum}]
        super().__init__([g for g in groups if g["params"]], betas=(0.9, 0.99), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        done = {}
        for group in self.param_groups:
            if group["momentum"] is not None:
                for shape, same in _by_shape(group["params"]).items():
                    for p, update in zip(same, self._updates(same, shape, group["momentum"])):
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                        p.add_(update.reshape(p.shape), alpha=-0.2 * group["lr"] * math.sqrt(max(shape)))
                        done[p], p.grad = p.grad, None  # AdamW passes over what has no gradient
        super().step()
        for p, gradient in done.items():
            p.grad = gradient
        return loss

    def _updates(self, parameters, shape, momentum):
        """Orthogonal matrices (N, rows, columns) for N parameters of one shape, at once: many small products would be slow."""
        ahead = []
        for p in parameters:
            state = self.state[p]
            if not state:
                state.update(momentum=torch.zeros_like(p), step=torch.zeros(()))  # AdamW looks for every state's step when it is loaded
            state["momentum"].lerp_(p.grad, 1 - momentum)
            ahead.append(p.grad.lerp(state["momentum"], momentum).reshape(shape))
        G = torch.stack(ahead)
        return orthogonal(G, torch.bfloat16 if G.is_cuda or fast_bf16() else None)


def _by_shape(parameters) -> dict:
    """(rows, columns) → the parameters with a gradient that have this shape as matrices."""
    groups: dict = {}
    for p in parameters:
        if p.grad is not None:
            groups.setdefault((len(p), p[0].numel()), []).append(p)
    return groups
