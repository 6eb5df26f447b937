"""The checks of lesson 2.4 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import latent_diffusion as checks
from course_utils.exercises import examine
from course_utils.lessons import latent_diffusion

from . import WRONG_SHAPE, accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, latent_diffusion, name)


def right_and_down(p):
    return p[..., 1:] - p[..., :-1], p[..., 1:, :] - p[..., :-1, :]


def only_horizontal(y, x):
    return (right_and_down(y)[0] - right_and_down(x)[0]).abs().mean()


def only_vertical(y, x):
    return (right_and_down(y)[1] - right_and_down(x)[1]).abs().mean()


def slopes_without_sign(y, x):
    return sum((a.abs() - b.abs()).abs().mean() for a, b in zip(right_and_down(y), right_and_down(x)))


def slopes_squared(y, x):
    return sum((a - b).square().mean() for a, b in zip(right_and_down(y), right_and_down(x)))


def slopes_around_the_border(y, x):
    e = y - x
    return (e - e.roll(1, -1)).abs().mean() + (e - e.roll(1, -2)).abs().mean()


def slopes_detached(y, x):
    return latent_diffusion.gradient_loss(y.detach(), x)


def plain_l1(y, x):
    return (y - x).abs().mean()


def heads_of(w_q, w_k, w_v, x, c, heads):
    return (h.unflatten(-1, (heads, -1)).transpose(1, 2) for h in (x @ w_q, c @ w_k, c @ w_v))


def attend(x, c, w_q, w_k, w_v, heads, shrink, axis=-1):
    q, k, v = heads_of(w_q, w_k, w_v, x, c, heads)
    return (torch.softmax(q @ k.transpose(-1, -2) / shrink, axis) @ v).transpose(1, 2).flatten(2)


def attention_unscaled(x, c, w_q, w_k, w_v, heads):
    return attend(x, c, w_q, w_k, w_v, heads, 1.0)


def attention_scaled_by_width(x, c, w_q, w_k, w_v, heads):
    return attend(x, c, w_q, w_k, w_v, heads, math.sqrt(x.shape[-1]))


def attention_over_positions(x, c, w_q, w_k, w_v, heads):
    return attend(x, c, w_q, w_k, w_v, heads, math.sqrt(x.shape[-1] // heads), axis=-2)


def attention_interleaved(x, c, w_q, w_k, w_v, heads):
    q, k, v = (h.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2) for h in (x @ w_q, c @ w_k, c @ w_v))
    return (torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v).permute(0, 2, 3, 1).flatten(2)


def attention_with_one_head(x, c, w_q, w_k, w_v, heads):
    return attend(x, c, w_q, w_k, w_v, 1, math.sqrt(x.shape[-1]))


def attention_clamped(x, c, w_q, w_k, w_v, heads):
    q, k, v = heads_of(w_q, w_k, w_v, x, c, heads)
    return ((q @ k.mT / math.sqrt(q.shape[-1])).clamp(-10, 10).softmax(-1) @ v).transpose(1, 2).flatten(2)


def attention_without_padding(x, c, w_q, w_k, w_v, heads):
    mask = (c != 0).any(-1)[:, None, None]
    return F.scaled_dot_product_attention(*heads_of(w_q, w_k, w_v, x, c, heads), attn_mask=mask).transpose(1, 2).flatten(2)


def rows_to_drop(c, p, generator):
    return torch.rand(len(c), generator=generator) < p


def drop_in_place(c, none, p=0.1, generator=None):
    c[rows_to_drop(c, p, generator)] = none
    return c


def drop_to_zero(c, none, p=0.1, generator=None):
    return c * ~rows_to_drop(c, p, generator)[:, None, None]


def drop_words(c, none, p=0.1, generator=None):
    return torch.where(torch.rand(c.shape[:2], generator=generator)[..., None] < p, none, c)


def drop_inverted(c, none, p=0.1, generator=None):
    return torch.where(rows_to_drop(c, p, generator)[:, None, None], c, none)


def drop_whole_batch(c, none, p=0.1, generator=None):
    return none.expand_as(c) if torch.rand(1, generator=generator) < p else c.clone()


def drop_unseeded(c, none, p=0.1, generator=None):
    return torch.where((torch.rand(len(c)) < p)[:, None, None], none, c)


def drop_every_third(c, none, p=0.1, generator=None):
    every = torch.arange(len(c)) % round(1 / p) == 0 if p else torch.zeros(len(c), dtype=torch.bool)
    return torch.where(every[:, None, None], none, c)


def drop_fixed(c, none, p=0.1, generator=None):
    return latent_diffusion.drop_captions(c, none, 0.3 if 0 < p < 1 else p, generator)


def drop_inclusive(c, none, p=0.1, generator=None):
    return torch.where((torch.rand(len(c), generator=generator) < max(p, 0.05))[:, None, None], none, c)


def drop_detached(c, none, p=0.1, generator=None):
    return latent_diffusion.drop_captions(c.detach(), none, p, generator)


def drop_by(u):
    """drop_captions with the random numbers u(n, generator)."""
    return lambda c, none, p=0.1, generator=None: torch.where((u(len(c), generator) < p)[:, None, None], none, c)


def drop_sorted(n, generator):
    return torch.rand(n, generator=generator).sort().values


def drop_in_pairs(n, generator):
    return torch.rand((n + 1) // 2, generator=generator).repeat_interleave(2)[:n]


def drop_a_fixed_number(n, generator):
    return (torch.randperm(n, generator=generator) + 0.5) / n


def drop_the_same_again(n, generator):
    return torch.rand(n, generator=torch.Generator().manual_seed(generator.initial_seed()))


_seen = {}


def remembered(x, c, w_q, w_k, w_v, heads):
    return _seen.setdefault((x.shape, x.dtype), latent_diffusion.cross_attention(x, c, w_q, w_k, w_v, heads))


class Block(latent_diffusion.SpatialTransformer):
    """A right block in parts that the wrong ones replace."""

    def mlp(self, h):
        value, gate = self.expand(self.norm3(h)).chunk(2, -1)
        return self.shrink(value * F.gelu(gate))

    def branches(self, context):
        return [lambda h: self.attn1(self.norm1(h)), lambda h: self.attn2(self.norm2(h), context), self.mlp]

    def forward(self, x, context):
        B, C, H, W = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(B, H * W, C)
        for branch in self.branches(context):
            h = torch.add(branch(h), h)
        return self.proj_out(h.mT.unflatten(-1, (H, W))) + x


class NoSkip(Block):
    def forward(self, x, context):
        return super().forward(x, context) - x


class WordsFirst(Block):
    def branches(self, context):
        a, b, c = super().branches(context)
        return [b, a, c]


class NoWords(Block):
    def branches(self, context):
        a, _, c = super().branches(context)
        return [a, c]


class NoNorm(Block):
    def branches(self, context):
        return [self.attn1, lambda h: self.attn2(h, context), lambda h: self.mlp(h)]


class Swapped(Block):
    def mlp(self, h):
        gate, value = self.expand(self.norm3(h)).chunk(2, -1)
        return self.shrink(value * F.gelu(gate))


class Silu(Block):
    def mlp(self, h):
        value, gate = self.expand(self.norm3(h)).chunk(2, -1)
        return self.shrink(value * F.silu(gate))


class Columns(Block):
    def forward(self, x, context):
        B, C, H, W = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 3, 2, 1).reshape(B, H * W, C)
        for branch in self.branches(context):
            h = branch(h) + h
        return self.proj_out(h.mT.unflatten(-1, (H, W))) + x


class CutOff(Block):
    def branches(self, context):
        a, b, c = super().branches(context)
        return [a, b, lambda h: c(h.detach())]


class NoGrad(Block):
    def forward(self, x, context):
        with torch.no_grad():
            return super().forward(x, context)


class InPlace(Block):
    def forward(self, x, context):
        x += super().forward(x, context) - x
        return x


class OnlyTheFirst(Block):
    def forward(self, x, context):
        return super().forward(x, context[:1].expand_as(context))


class FrozenWords(Block):
    def branches(self, context):
        return super().branches(context.detach())


WRONG = {
    "gradient_loss": [
        (only_horizontal, "only the horizontal"),
        (only_vertical, "only the vertical"),
        (slopes_without_sign, "sign"),
        (slopes_squared, "squared"),
        (slopes_around_the_border, "border"),
        (slopes_detached, "no gradient reaches y"),
        (lambda y, x: latent_diffusion.gradient_loss(y, x.detach()), "no gradient reaches x"),
        (lambda y, x: latent_diffusion.gradient_loss(y, x).item(), "gradient|tensor"),
        (lambda y, x: latent_diffusion.gradient_loss(y.clamp(-2, 2), x), "off by|gradient"),
        (lambda y, x: latent_diffusion.gradient_loss(y, x) / 2, "mean of the two"),
        (plain_l1, "plain L1"),
    ],
    "latent_scale": [
        (lambda z: z.std(), "standard deviation itself"),
        (lambda z: 1 / z.square().mean().sqrt(), "mean was not subtracted"),
        (lambda z: 1 / z.var(), "variance"),
        (lambda z: (1 / z.std((0, 2, 3))).mean(), "scales of the channels"),
        (lambda z: 1 / z.std((0, 2, 3)).mean(), "deviations of the channels"),
        (lambda z: 1 / z.std((0, 2, 3), keepdim=True), "should have shape"),
        (lambda z: 1 / z[:1].std(), "off by"),
        (lambda z: torch.tensor(0.18215, dtype=z.dtype), "off by"),
        (lambda z: (1 / z.std()).item(), "plain number"),
        (lambda z: 1 / z.var((0, 2, 3)).mean().sqrt(), "own mean"),
        (lambda z: 1 / (z - z.mean((0, 2, 3), keepdim=True)).square().mean().sqrt(), "own mean"),
        (lambda z: 1 / (z.std() + 1e-3), "off by"),
    ],
    "cross_attention": [
        (attention_unscaled, "not divided"),
        (attention_scaled_by_width, "root of D"),
        (attention_over_positions, "runs over positions"),
        (attention_interleaved, "interleaved"),
        (attention_with_one_head, "one head"),
        (lambda x, c, q, k, v, heads: latent_diffusion.cross_attention(x, c, q, v, k, heads), "swapped"),
        (lambda x, c, q, k, v, heads: latent_diffusion.cross_attention(x, c, q.detach(), k, v, heads), "no gradient reaches w_q"),
        (lambda x, c, q, k, v, heads: latent_diffusion.cross_attention(x, c, q, k.T, v, heads), "stopped with"),
        (lambda x, c, q, k, v, heads: latent_diffusion.cross_attention(x[:1], c, q, k, v, heads).expand_as(x), "off by|stopped"),
        (remembered, "first call's result"),
        (lambda x, c, q, k, v, heads: attend(x, c, q, k, v, heads, math.isqrt(x.shape[-1] // heads)), "off by"),
        (attention_clamped, "off by"),
        (attention_without_padding, "rows of zeros"),
    ],
    "SpatialTransformer": [
        (NoSkip, "not added to the block's output"),
        (WordsFirst, "before self-attention"),
        (NoWords, "never reads the words"),
        (NoNorm, "LayerNorm is missing|off by"),
        (Swapped, "swapped"),
        (Silu, "SiLU"),
        (Columns, "off by|shape"),
        (CutOff, "gradient"),
        (NoGrad, "no gradient flows"),
        (InPlace, "changes its argument x"),
        (FrozenWords, "no gradient reaches context"),
        (OnlyTheFirst, "off by"),
    ],
    "drop_captions": [
        (drop_in_place, "changes its argument c in place"),
        (drop_to_zero, "zeros"),
        (drop_words, "single words"),
        (drop_inverted, "wrong way round"),
        (drop_whole_batch, "alike"),
        (drop_unseeded, "same seed"),
        (drop_every_third, "by chance|different seeds|were dropped"),
        (drop_fixed, "were dropped"),
        (drop_inclusive, "p = 0"),
        (lambda c, none, p=0.1, generator=None: torch.where((torch.rand(len(c), generator=generator) <= p)[:, None, None], none, c), "equals p"),
        (lambda c, none, p=0.1, generator=None: latent_diffusion.drop_captions(c, none.detach(), p, generator), "gradient of none"),
        (drop_detached, "gradient of c"),
        (drop_by(drop_sorted), "place in the batch"),
        (drop_by(drop_in_pairs), "neighbours"),
        (drop_by(drop_a_fixed_number), "same number of examples"),
        (drop_by(drop_the_same_again), "same generator"),
        (lambda c, none, p=0.12, generator=None: latent_diffusion.drop_captions(c, none, p, generator), "without p"),
    ],
    "guide": [
        (lambda a, b, w: a + w * (b - a), "swapped"),
        (lambda a, b, w: (1 + w) * a - w * b, "own count"),
        (lambda a, b, w: a + w * (a - b), "own count|starts at"),
        (lambda a, b, w: w * a, "off by"),
        (lambda a, b, w: b + max(w, 0) * (a - b), "w = -0.5"),
        (lambda a, b, w: b + w * (a - b).detach(), "gradient"),
        (lambda a, b, w: b.detach() + w * (a - b), "gradient"),
        (lambda a, b, w: b.add_(w * (a - b)), "changes its argument"),
        (lambda a, b, w: (b + w * (a - b)).float(), "dtype"),
        (lambda a, b, w: (b.float() + w * (a - b).float()).to(a.dtype), "off by"),
    ],
}

RIGHT = {
    "gradient_loss": [lambda y, x: F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))],
    "latent_scale": [lambda z: z.flatten().var().rsqrt(), lambda z: 1 / z.std(unbiased=False)],
    "cross_attention": [
        lambda x, c, q, k, v, heads: F.scaled_dot_product_attention(*heads_of(q, k, v, x, c, heads)).transpose(1, 2).flatten(2),
        lambda x, c, q, k, v, heads: attend(x, c, q, k, v, heads, (x.shape[-1] / heads) ** 0.5),
        lambda x, c, q, k, v, heads: torch.cat(
            [torch.softmax(x @ a @ (c @ b).mT / a.shape[1] ** 0.5, -1) @ (c @ u) for a, b, u in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1))],
            -1,
        ),
    ],
    "SpatialTransformer": [Block],
    "drop_captions": [
        lambda c, none, p=0.1, generator=None: torch.stack([none if u < p else w for w, u in zip(c, torch.rand(len(c), generator=generator))]),
        lambda c, none, p=0.1, generator=None: c.lerp(none.expand_as(c), torch.bernoulli(torch.full((len(c), 1, 1), p, dtype=c.dtype), generator=generator)),
    ],
    "guide": [lambda a, b, w: (1 - w) * b + w * a],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    _seen.clear()
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


@pytest.mark.parametrize("name", [n for n in checks.HINTS if n != "SpatialTransformer"])
def test_a_wrong_shape_gets_one_sentence(name):
    refuses(getattr(checks, name), lambda *inputs, **more: torch.zeros(2, 2, 3), WRONG_SHAPE)


@pytest.mark.parametrize("name", [n for n in checks.HINTS if n != "SpatialTransformer"])
def test_nothing_returned(name):
    refuses(getattr(checks, name), lambda *inputs, **more: None, "None")
