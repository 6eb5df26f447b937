"""Generated from notebooks/2_generative/01_pixelrnn.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from course_utils.errors import CourseError


def binarise(grey, seed):
    """Black and white pictures from grey ones in [0, 1]: each pixel is 1 with probability equal to its grey value. Any shape; returns floats 0 or 1."""
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return torch.bernoulli(grey, generator=generator)


def log_likelihood(logits, x):
    """log p(x) of each picture in nats, (B,). logits: (B, 1, H, W), the chain rule's factors; x: (B, 1, H, W) of 0 and 1."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


class LogisticChain(nn.Module):
    """Fully visible belief network: logit_i = b_i + sum over j < i of W_ij x_j. (B, 1, H, W) -> logits of the same shape."""

    def __init__(self, height=28, width=28):
        super().__init__()
        n = height * width
        self.weight, self.bias = nn.Parameter(torch.zeros(n, n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("mask", torch.ones(n, n).tril(-1), persistent=False)

    def forward(self, x):
        return F.linear(x.flatten(1), self.weight * self.mask, self.bias).reshape(x.shape)


@torch.no_grad()
def nats(net, x, batch=10):
    """Negative log-likelihood of each picture, in nats, (B,) on the CPU. x: (B, 1, H, W). Small batches stay in a processor's cache."""
    if not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():
        raise CourseError(
            f"{x.dtype} that are not all between 0 and 1: nats takes pictures of 0. and 1. (see binarise)."
        )
    device = next(net.parameters()).device
    return torch.cat([-log_likelihood(net(part.to(device)), part.to(device)).cpu() for part in x.split(batch)])


def causal_mask(kind, kh, kw):
    """Mask of a convolution kernel, (kh, kw) of 0. and 1. (PixelRNN, section 3.4). kind: "A" hides the centre, "B" shows it."""
    mask = torch.zeros(kh, kw)
    mask[: kh // 2] = 1
    mask[kh // 2, : kw // 2 + (kind == "B")] = 1
    return mask


class MaskedConv2d(nn.Conv2d):
    """A convolution whose kernel is multiplied by causal_mask(kind, kh, kw); the size is kept. (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, kind, c_in, c_out, kh, kw):
        if kind not in ("A", "B") or not kh % 2 or not kw % 2:
            raise CourseError(f'Mask {kind!r} of {kh} x {kw}: the kinds are "A" and "B", and both sides are odd.')
        super().__init__(c_in, c_out, (kh, kw), padding=(kh // 2, kw // 2))
        self.register_buffer("mask", causal_mask(kind, kh, kw), persistent=False)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def head(width):
    """What ends every network here: (B, width, H, W) -> logits (B, 1, H, W), each pixel by itself."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.Conv2d(2 * width, 1, 1))


def residual_block(width):
    """PixelCNN's block, without the skip: (B, 2 width, H, W) -> the same (PixelRNN, fig. 5, left)."""
    squeeze, spread = nn.Conv2d(2 * width, width, 1), nn.Conv2d(width, 2 * width, 1)
    return nn.Sequential(nn.ReLU(), squeeze, nn.ReLU(), MaskedConv2d("B", width, width, 3, 3), nn.ReLU(), spread)


class PixelCNN(nn.Module):
    """Masked convolutions only (PixelRNN, section 3.5). Pictures of 0 and 1 (B, 1, H, W) -> logits of the same shape."""

    def __init__(self, width=16, layers=5):
        super().__init__()
        self.rows = layers + 4  # a logit depends on its own row and on layers + 3 rows above it
        self.first = MaskedConv2d("A", 1, 2 * width, 7, 7)
        self.blocks = nn.ModuleList(residual_block(width) for _ in range(layers))
        self.head = head(2 * width)

    def forward(self, x):
        h = self.first(2 * x - 1)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def reach(net, row, column, size=15, pictures=8):
    """Mean |gradient| of the logit at (row, column) with respect to each pixel of a size × size picture, (size, size); 0 where it sees nothing."""
    x = (
        torch.rand(pictures, 1, size, size, generator=torch.Generator().manual_seed(0))
        .to(next(net.parameters()))
        .requires_grad_()
    )
    grad = torch.autograd.grad(net(x)[:, 0, row, column].sum(), x)[0]
    return grad.abs().mean(0)[0].cpu()


def earlier(row, column, size=15):
    """Which pixels come before (row, column) in reading order: (size, size) of bool."""
    return torch.arange(size * size).reshape(size, size) < row * size + column


def randomise(net, seed=0, std=0.3):
    """Every parameter drawn from a normal distribution; returns the network. For proofs, which must hold for any weights."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = std * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    return net


def gate(x):
    """tanh of the first half of the channels times sigmoid of the second (gated PixelCNN, eq. 2). (B, 2C, H, W) -> (B, C, H, W)."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks (gated PixelCNN, fig. 2). v: rows up to and including this one; h: pixels to the left. first: h excludes the pixel itself."""

    def __init__(self, c_in, width, k=3, first=False):
        super().__init__()
        self.k, self.first = k, first
        self.vertical = nn.Conv2d(c_in, 2 * width, (k // 2 + 1, k))
        self.horizontal = nn.Conv2d(c_in, 2 * width, (1, k // 2 + (not first)))
        self.link, self.out = nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, v, h):
        p = self.k // 2
        a = self.vertical(F.pad(v, (p, p, p, 0)))  # rows r - p .. r
        above = F.pad(a, (0, 0, 1, -1))  # shifted down: row r now holds what row r - 1 knew
        b = self.horizontal(F.pad(h, (p, -1 if self.first else 0, 0, 0))) + self.link(above)
        o = self.out(gate(b))
        return gate(a), o if self.first else h + o


class GatedPixelCNN(nn.Module):
    """Two stacks, no blind spot (van den Oord et al. 2016b). Pictures of 0 and 1 (B, 1, H, W) -> logits of the same shape."""

    def __init__(self, width=16, layers=5):
        super().__init__()
        self.rows = layers + 4
        self.layers = nn.ModuleList(
            [GatedLayer(1, width, 7, True)] + [GatedLayer(width, width) for _ in range(layers - 1)]
        )
        self.head = head(width)

    def forward(self, x):
        v = h = 2 * x - 1
        for layer in self.layers:
            v, h = layer(v, h)
        return self.head(h)


def lstm(gates, c, dim):
    """One LSTM step. gates: input, forget, candidate, output (torch's order) side by side along dim; c: memory. Returns the new h and c, shaped like c."""
    i, f, g, o = gates.chunk(4, dim)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


class RowLSTM(nn.Module):
    """An LSTM whose steps are rows (PixelRNN, section 3.1). Pictures of 0 and 1 (B, 1, H, W) -> logits of the same shape."""

    def __init__(self, width=24):
        super().__init__()
        self.rows = None  # sees all rows above
        self.first = MaskedConv2d("A", 1, width, 7, 7)
        self.i2s = MaskedConv2d("B", width, 4 * width, 1, 3)  # input to state
        self.s2s = nn.Conv1d(width, 4 * width, 3, padding=1, bias=False)  # state to state
        self.head = head(width)
        nn.init.ones_(self.i2s.bias[width : 2 * width])  # begin by remembering

    def forward(self, x):
        e = self.first(2 * x - 1)  # (B, D, H, W)
        B, D, H, W = e.shape
        entering = self.i2s(e)  # (B, 4D, H, W)
        h = c = e.new_zeros(B, D, W)
        states = []
        for r in range(H):
            gates = entering[:, :, r] + self.s2s(h)  # (B, 4D, W); h is the row above
            h, c = lstm(gates, c, 1)
            states.append(h)
        return self.head(e + torch.stack(states, 2))


def skew(x):
    """Row r moves right by r: (..., H, W) -> (..., H, H + W - 1), zeros elsewhere (PixelRNN, fig. 3)."""
    *n, H, W = x.shape
    padded = F.pad(x, (0, H)).reshape(*n, H * (W + H))  # rows of W + H, read as one line
    return padded[..., : H * (W + H - 1)].reshape(*n, H, W + H - 1)  # each row starts one place later than the last


def unskew(x):
    """The inverse of skew: (..., H, H + W - 1) -> (..., H, W)."""
    *n, H, S = x.shape
    return F.pad(x.reshape(*n, H * S), (0, H)).reshape(*n, H, S + 1)[..., : S + 1 - H]


class DiagonalBiLSTM(nn.Module):
    """An LSTM along the diagonals, in two directions (PixelRNN, section 3.2). Pictures of 0 and 1 (B, 1, H, W) -> logits of the same shape."""

    def __init__(self, width=16):
        super().__init__()
        self.rows = None
        self.first = MaskedConv2d("A", 1, width, 7, 7)
        self.weight = nn.Parameter(
            torch.empty(2, 3 * width, 4 * width).uniform_(-1, 1) / width**0.5
        )  # from input, h left, h above
        self.bias = nn.Parameter(torch.zeros(2, 1, 4 * width))
        self.head = head(width)
        nn.init.ones_(self.bias[..., width : 2 * width])

    def forward(self, x):
        e = self.first(2 * x - 1)  # (B, D, H, W)
        B, D, H, W = e.shape
        columns = skew(torch.stack([e, e.flip(3)])).permute(4, 0, 3, 1, 2).contiguous()  # (H+W-1, 2, H, B, D)
        h = c = e.new_zeros(2, 0, B, D)  # states of the rows top .. bottom - 1
        top, bottom, out = 0, 0, []
        for s, column in enumerate(columns.unbind(0)):
            lo, hi = max(0, s - W + 1), min(H, s + 1)  # the rows of this diagonal that lie inside the picture

            def rows(v, a, b, top=top, bottom=bottom):  # rows a .. b - 1 of a state, with 0 beyond the border
                return F.pad(v, (0, 0, 0, 0, top - a, b - bottom))

            z = torch.cat([column[:, lo:hi], rows(h, lo, hi), rows(h, lo - 1, hi - 1)], 3)  # input, left, above
            gates = torch.baddbmm(self.bias, z.reshape(2, -1, 3 * D), self.weight).reshape(2, hi - lo, B, 4 * D)
            h, c = lstm(gates, rows(c, lo, hi), 3)
            top, bottom = lo, hi
            out.append(F.pad(h, (0, 0, 0, 0, lo, H - hi)))
        left, right = unskew(torch.stack(out).permute(1, 3, 4, 2, 0))  # each (B, D, H, W)
        return self.head(e + left + F.pad(right.flip(3), (0, 0, 1, -1)))


def all_pictures(height=3, width=3):
    """Every binary picture of a size, (2^(height width), 1, height, width), in double precision."""
    n = height * width
    return ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double().reshape(-1, 1, height, width)


def jacobian(net, height=4, width=5, seed=0):
    """d logit_i / d x_j at a random picture, (n, n) with n = height · width in reading order. Strictly causal: zero unless j < i."""
    x = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    n = height * width
    return torch.autograd.functional.jacobian(lambda v: net(v).flatten(), x).reshape(n, n)


def context(net, x, row):
    """The rows of x (B, 1, H, W) that logits of ``row`` can depend upon; ``row`` is the last of them."""
    return x[:, :, max(0, row + 1 - net.rows) if net.rows else 0 : row + 1]


@torch.no_grad()
def sample(net, u, x=None, known=None, temperature=1.0):
    """Draw pictures pixel by pixel. u: (B, 1, H, W) uniform in [0, 1). x: (B, 1, H, W) with the pixels that are known: (H, W) of bool. Returns (B, 1, H, W)."""
    x = torch.zeros_like(u) if x is None else x.clone()
    known = torch.zeros(u.shape[2:], dtype=torch.bool) if known is None else known
    if x.shape != u.shape or known.shape != u.shape[2:] or known.dtype != torch.bool or not temperature >= 0:
        raise CourseError(
            "sample takes u and x of one shape (B, 1, H, W), known (H, W) of bool, and a temperature >= 0."
        )
    for row, column in (~known).nonzero().tolist():  # reading order
        logit = net(context(net, x, row))[:, 0, -1, column]
        x[:, 0, row, column] = (u[:, 0, row, column] < (logit / temperature).sigmoid()).to(x.dtype)
    return x


def bent(grey, generator, turn=0.15, scale=0.08, slant=0.12):
    """Pictures slightly turned (up to ``turn`` radians), scaled and slanted, each in its own way. (B, 1, H, W) -> the same shape, still in [0, 1]."""
    u = 2 * torch.rand(len(grey), 4, generator=generator) - 1
    (c, s), (sx, sy) = ((turn * u[:, 0]).cos(), (turn * u[:, 0]).sin()), (1 + scale * u[:, 1:3]).T
    affine = torch.zeros(len(grey), 2, 3)
    affine[:, 0, 0], affine[:, 0, 1] = c * sx, (slant * u[:, 3] - s) * sx
    affine[:, 1, 0], affine[:, 1, 1] = s * sy, c * sy
    where = F.affine_grid(affine, grey.shape, align_corners=False)
    return F.grid_sample(grey, where, align_corners=False).clamp(0, 1)


KINDS = {"PixelCNN": PixelCNN, "Gated PixelCNN": GatedPixelCNN, "Row LSTM": RowLSTM, "Diagonal BiLSTM": DiagonalBiLSTM}


def build(widths, layers):
    """The four networks by name, of the given widths (by name) and number of convolutional layers."""
    return {name: kind(widths[name], *([layers] if "CNN" in name else [])) for name, kind in KINDS.items()}
