"""The checks of lesson 2.1 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import pixelrnn as checks
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


WRONG = {
    "log_likelihood": [(ll_sign, "sign"), ll_mean, ll_of_batch, (ll_unstable, "200"), ll_detached],
    "causal_mask": [(mask_shows_itself, "centre"), mask_hides_itself, (mask_upper_left_only, "right as well"), mask_whole_row, mask_of_bool],
    "skew": [skew_wraps, skew_other_way, (skew_too_wide, "shape"), skew_from_one],
    "sample": [
        (sample_all_at_once, "empty page"),
        (sample_inverted, "below"),
        sample_overwrites_known,
        sample_without_temperature,
        (sample_without_context, "context"),
        sample_in_place,
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_a_missing_return_gets_one_clear_sentence(name):
    refuses(getattr(checks, name), lambda *a, **k: None, "None")
