"""The checks of lesson 2.1 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import pixelrnn as checks
from course_utils.exercises import examine
from course_utils.lessons import pixelrnn
from course_utils.lessons.pixelrnn import context

from . import accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, pixelrnn, name)


def skew_with_a_loop(x):
    *n, H, W = x.shape
    out = x.new_zeros(*n, H, H + W - 1)
    for r in range(H):
        out[..., r, r : r + W] = x[..., r, :]
    return out


def test_another_right_answer_passes():
    checks.skew(skew_with_a_loop)


def bce(logits, x):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1)


def ll_sign(logits, x):
    return bce(logits, x).sum(1)


def ll_mean(logits, x):
    return -bce(logits, x).mean(1)


def ll_of_batch(logits, x):
    return -bce(logits, x).sum()


def ll_unstable(logits, x):
    p = logits.sigmoid()
    return torch.where(x == 1, p.log(), (1 - p).log()).flatten(1).sum(1)


def ll_detached(logits, x):
    return -bce(logits.detach(), x).sum(1)


def mask_shows_itself(kind, kh, kw):
    return pixelrnn.causal_mask("B", kh, kw)


def mask_hides_itself(kind, kh, kw):
    return pixelrnn.causal_mask("A", kh, kw)


def mask_upper_left_only(kind, kh, kw):
    mask = pixelrnn.causal_mask(kind, kh, kw)
    mask[:, kw // 2 + 1 :] = 0
    return mask


def mask_whole_row(kind, kh, kw):
    mask = torch.zeros(kh, kw)
    mask[: kh // 2 + 1] = 1
    mask[kh // 2, kw // 2] = kind == "B"
    return mask


def mask_of_bool(kind, kh, kw):
    return pixelrnn.causal_mask(kind, kh, kw).bool()


def skew_wraps(x):
    *n, H, W = x.shape
    padded = F.pad(x, (0, H - 1))
    return torch.stack([padded[..., r, :].roll(-r, -1) for r in range(H)], -2)


def skew_other_way(x):
    return pixelrnn.skew(x.flip(-2)).flip(-2)


def skew_too_wide(x):
    return F.pad(pixelrnn.skew(x), (0, 1))


def skew_from_one(x):
    return F.pad(pixelrnn.skew(x), (1, 0))[..., :-1]


def _walk(net, u, x, known, temperature, write=True, below=True, rows=None):
    x = torch.zeros_like(u) if x is None else x.clone()
    out = x.clone()
    known = torch.zeros(u.shape[2:], dtype=torch.bool) if known is None else known
    for row, column in (~known).nonzero().tolist():
        shown = context(net, x, row) if rows is None else x[:, :, : row + 1]
        p = (net(shown)[:, 0, -1, column] / temperature).sigmoid()
        new = (u[:, 0, row, column] < p) if below else (u[:, 0, row, column] > p)
        out[:, 0, row, column] = new.to(x.dtype)
        if write:
            x[:, 0, row, column] = out[:, 0, row, column]
    return out


def sample_all_at_once(net, u, x=None, known=None, temperature=1.0):
    return _walk(net, u, x, known, temperature, write=False)


def sample_inverted(net, u, x=None, known=None, temperature=1.0):
    return _walk(net, u, x, known, temperature, below=False)


def sample_overwrites_known(net, u, x=None, known=None, temperature=1.0):
    return _walk(net, u, x, None, temperature)


def sample_without_temperature(net, u, x=None, known=None, temperature=1.0):
    return _walk(net, u, x, known, 1.0)


def sample_without_context(net, u, x=None, known=None, temperature=1.0):
    return _walk(net, u, x, known, temperature, rows="all")


def sample_in_place(net, u, x=None, known=None, temperature=1.0):
    out = _walk(net, u, x, known, temperature)
    return out if x is None else x.copy_(out)


class Rows(pixelrnn.RowLSTM):
    """A right Row LSTM whose parts the wrong ones below replace."""

    def enter(self, x):
        return self.first(2 * x - 1)

    def leave(self, e, states):
        return self.head(e + states)

    def step(self, row, h, c):
        return pixelrnn.lstm(row + self.s2s(h), c, 1)

    def forward(self, x):
        e = self.enter(x)
        h = c = torch.zeros_like(e[:, :, 0])
        out = []
        for row in self.i2s(e).unbind(2):
            h, c = self.step(row, h, c)
            out.append(h[:, :, None])
        return self.leave(e, torch.cat(out, 2))


class NoFeatures(Rows):
    def leave(self, e, states):
        return self.head(states)


class BlackIsZero(Rows):
    def enter(self, x):
        return self.first(x)


class NoMemory(Rows):
    def step(self, row, h, c):
        return super().step(row, h, 0 * c)


class NoStateAbove(Rows):
    def step(self, row, h, c):
        return super().step(row, 0 * h, c)


class Shifted(Rows):
    def leave(self, e, states):
        return self.head(e + F.pad(states, (0, 0, 1, -1)))


class UpsideDown(Rows):
    def leave(self, e, states):
        return self.head(e + states.flip(2))


class WrongAxis(Rows):
    def step(self, row, h, c):
        return pixelrnn.lstm((row + self.s2s(h)).transpose(1, 2), c.transpose(1, 2), 2)[0].transpose(1, 2), c


class Truncated(Rows):
    def step(self, row, h, c):
        return super().step(row, h.detach(), c.detach())


class Remembers(Rows):
    def forward(self, x):
        if not hasattr(self, "kept"):
            self.kept = super().forward(x)
        return self.kept


class ChangesInput(Rows):
    def enter(self, x):
        return self.first(x.mul_(2).sub_(1))


class BoundedMemory(Rows):
    def step(self, row, h, c):
        h, c = super().step(row, h, c)
        return h, c.clamp(-3, 3)


class BoundedLogits(Rows):
    def leave(self, e, states):
        return super().leave(e, states).clamp(-30, 30)


class FeaturesDetached(Rows):
    def leave(self, e, states):
        return super().leave(e.detach(), states)


class TwoDirections(Rows):
    """Right, too: with torch's own cell, one column after the other."""

    def forward(self, x):
        e = self.first(2 * x - 1)
        B, D, H, W = e.shape
        entering, h, c, out = self.i2s(e), e.new_zeros(B, D, W), e.new_zeros(B, D, W), []
        for r in range(H):
            i, f, g, o = torch.tensor_split(entering[:, :, r] + self.s2s(h), 4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            out.append(h)
        return self.head(torch.stack([e[:, :, r] + out[r] for r in range(H)], 2))


def skew_in_place(x):
    out = pixelrnn.skew(x)
    x.zero_()
    return out


def skew_of_floats(x):
    return pixelrnn.skew(x.float()).to(torch.float32)


def sample_at_most(net, u, x=None, known=None, temperature=1.0):
    return _walk(net, u - 1e-7, x, known, temperature)


def sample_from_the_first_gap(net, u, x=None, known=None, temperature=1.0):
    """Draws everything behind the first unknown pixel."""
    if known is not None:
        known = known.flatten().cumprod(0).bool().reshape(known.shape)
    return _walk(net, u, x, known, temperature)


def sample_leading_known_only(net, u, x=None, known=None, temperature=1.0):
    """Takes rows as known or unknown as a whole, but for the first row with a gap."""
    if known is not None:
        row = int((~known.all(1)).int().argmax())
        known = torch.cat([known[: row + 1], known[row + 1 :] & known[row + 1 :].all(1, keepdim=True)])
    return _walk(net, u, x, known, temperature)


WRONG = {
    "log_likelihood": [
        (ll_sign, "sign"),
        (ll_mean, "averaged"),
        (ll_of_batch, "whole batch|shape"),
        (ll_unstable, "200|gradient"),
        (ll_detached, "no gradient"),
        (lambda a, x: -bce(a, 1 - x).sum(1), "exchanged"),
        (lambda a, x: -bce(a, x).sum(1) / math.log(2), "bits"),
        (lambda a, x: -bce(a.clamp(-5, 5), x).sum(1), "off by|gradient"),
        (lambda a, x: -bce(a, x).sum(1).float(), "dtype|gradient"),
    ],
    "causal_mask": [
        (mask_shows_itself, "mask A shows the centre"),
        (mask_hides_itself, "mask B hides the centre"),
        (mask_upper_left_only, "to the right as well"),
        (mask_whole_row, "to the right of the centre"),
        (mask_of_bool, "dtype"),
        (lambda kind, kh, kw: pixelrnn.causal_mask(kind, kw, kh), "shape"),
        (lambda kind, kh, kw: pixelrnn.causal_mask(kind, 3, 3), "shape"),
    ],
    "RowLSTM": [
        (NoFeatures, "not added"),
        (BlackIsZero, "black enters as 0"),
        (NoMemory, "memory c is lost"),
        (NoStateAbove, "row above is not used"),
        (Shifted, "shifted by one row"),
        (UpsideDown, "off by"),
        (WrongAxis, "memory c is lost"),
        (Truncated, "gradient"),
        (Remembers, "first call's result"),
        (ChangesInput, "changes its argument x"),
        (BoundedMemory, "14×3"),
        (BoundedLogits, "14×3"),
        (FeaturesDetached, "gradient"),
    ],
    "skew": [
        skew_wraps,
        (skew_other_way, "other way"),
        (skew_too_wide, "shape"),
        (skew_from_one, "r \\+ 1"),
        (lambda x: pixelrnn.skew(x).detach(), "no gradient"),
        (skew_in_place, "changes its argument x"),
        (skew_of_floats, "dtype"),
        (lambda x: pixelrnn.skew(x.flip(-1)), "off by"),
        (lambda x: pixelrnn.skew(x) if x.ndim < 5 else pixelrnn.skew(x.flatten(0, 1)), "shape"),
        (lambda x: pixelrnn.skew(x) if x.dtype != torch.bool else pixelrnn.skew(x.float()), "True and False"),
    ],
    "sample": [
        (sample_all_at_once, "empty page"),
        (sample_inverted, "first pixel is black"),
        (sample_overwrites_known, "known pixels"),
        (sample_without_temperature, "temperature"),
        (sample_without_context, "context"),
        (sample_in_place, "changes its argument x"),
        (sample_at_most, "equals the probability"),
        (sample_from_the_first_gap, "scattered"),
        (sample_leading_known_only, "scattered"),
        (lambda net, u, x=None, known=None, temperature=1.0: _walk(net, u, x, known, 1.0 if known is None else temperature), "from nothing at temperature"),
        (lambda net, u, x=None, known=None, temperature=1.0: x if x is not None and known is None else _walk(net, u, x, known, temperature), "nothing known"),
        (lambda net, u, x=None, known=None, temperature=1.0: _walk(net, u[:1].expand_as(u), x, known, temperature), "sample"),
        (lambda net, u, x=None, known=None, temperature=1.0: _walk(net, torch.rand_like(u), x, known, temperature), "sample|first pixel"),
    ],
}

RIGHT = {
    "log_likelihood": [lambda a, x: (x * F.logsigmoid(a) + (1 - x) * F.logsigmoid(-a)).sum((1, 2, 3)), lambda a, x: (x * a - F.softplus(a)).flatten(1).sum(1)],
    "causal_mask": [
        lambda kind, kh, kw: (torch.arange(kh * kw) < kh * kw // 2 + (kind == "B")).float().reshape(kh, kw),
    ],
    "RowLSTM": [Rows, TwoDirections],
    "skew": [skew_with_a_loop],
    "sample": [
        lambda net, u, x=None, known=None, temperature=1.0: _walk(net, u, x, known, temperature),
        lambda net, u, x=None, known=None, temperature=1.0: torch.cat(
            [pixelrnn.sample(net, u[b : b + 1], None if x is None else x[b : b + 1], known, temperature) for b in range(len(u))]
        ),
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), torch.no_grad()(answer) if name == "sample" else answer)


@pytest.mark.parametrize("name", [n for n in checks.HINTS if n != "RowLSTM"])
def test_a_missing_return_gets_one_clear_sentence(name):
    refuses(getattr(checks, name), lambda *a, **k: None, "None")
