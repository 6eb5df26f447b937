"""The checks of 1.2 accept the course's own solutions and refuse plausible wrong ones, each with one clear sentence."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from course_utils.checks import clip as checks
from course_utils.lessons import clip

from . import accepts, every, refuses

EXERCISES = ["patchify", "attention", "info_nce", "recall_at_k", "class_vectors"]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_courses_own_answer_passes(name):
    accepts(checks, clip, name)


def masked_after(q, k, v, mask=None):
    w = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    return (w if mask is None else w * mask) @ v


def nce(a, b, s, unit=True, rows=True, columns=True, reduction="mean"):
    if unit:
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    x, own = s * a @ b.T, torch.arange(len(a))
    losses = [F.cross_entropy(y, own, reduction=reduction) for y, use in ((x, rows), (x.T, columns)) if use]
    return sum(losses) / len(losses)


WRONG = {
    "patchify": {
        "reshape only": lambda x, p: x.reshape(len(x), -1, x.shape[1] * p * p),
        "column by column": lambda x, p: rearrange(x, "b c (h p) (w q) -> b (w h) (c p q)", p=p, q=p),
        "colour last": lambda x, p: rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p),
        "wrong shape": lambda x, p: x.flatten(1),
        "nothing": lambda x, p: None,
    },
    "attention": {
        "no root": lambda q, k, v, mask=None: clip.attention(q * q.shape[-1] ** 0.5, k, v, mask),
        "no mask": lambda q, k, v, mask=None: clip.attention(q, k, v),
        "mask after softmax": masked_after,
        "mask upside down": lambda q, k, v, mask=None: clip.attention(q, k, v, None if mask is None else ~mask | torch.eye(5, dtype=torch.bool)),
        "softmax over queries": lambda q, k, v, mask=None: (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-2) @ v,
        "detached": lambda q, k, v, mask=None: clip.attention(q.detach(), k, v, mask),
        "wrong shape": lambda q, k, v, mask=None: clip.attention(q, k, v, mask).flatten(2),
    },
    "info_nce": {
        "rows only": lambda a, b, s: nce(a, b, s, columns=False),
        "columns only": lambda a, b, s: nce(a, b, s, rows=False),
        "sum of directions": lambda a, b, s: 2 * nce(a, b, s),
        "sum over batch": lambda a, b, s: nce(a, b, s, reduction="sum"),
        "not unit": lambda a, b, s: nce(a, b, s, unit=False),
        "divides by scale": lambda a, b, s: nce(a, b, 1 / s),
        "no scale": lambda a, b, s: nce(a, b, 1.0),
        "scale detached": lambda a, b, s: nce(a, b, s.detach()),
        "a number": lambda a, b, s: nce(a, b, s).item(),
        "wrong shape": lambda a, b, s: nce(a, b, s, reduction="none"),
    },
    "recall_at_k": {
        "own counts": lambda s, k: (((s >= s.diagonal()[:, None]).sum(1)) < k).float().mean().item(),
        "ties win": lambda s, k: (((s > s.diagonal()[:, None]).sum(1)) < k).float().mean().item(),
        "columns": lambda s, k: clip.recall_at_k(s.T, k),
        "count": lambda s, k: clip.recall_at_k(s, k) * len(s),
        "always first": lambda s, k: clip.recall_at_k(s, 1),
        "tensor": lambda s, k: torch.tensor(clip.recall_at_k(s, k)),
    },
    "class_vectors": {
        "mean only": lambda e, p: torch.stack([e(q).mean(0) for q in p]),
        "first prompt": lambda e, p: torch.stack([e(q)[0] for q in p]),
        "norm over classes": lambda e, p: F.normalize(torch.stack([e(q).mean(0) for q in p]), dim=0),
        "one string": lambda e, p: torch.stack([e(q[0]) for q in p]),
        "wrong shape": lambda e, p: torch.cat([e(q) for q in p]),
    },
}


@every({name: list(kinds.values()) for name, kinds in WRONG.items()})
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@pytest.mark.parametrize("name", EXERCISES)
def test_not_attempted(name):
    def answer(*args, **kwargs):
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        getattr(checks, name)(answer)
