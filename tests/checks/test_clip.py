"""The checks of 1.2 accept the course's own solutions and refuse plausible wrong ones, each with one clear sentence."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from course_utils.checks import clip as checks
from course_utils.exercises import examine
from course_utils.lessons import clip

from . import accepts, every, refuses

EXERCISES = ["patchify", "attention", "TextTransformer", "info_nce", "recall_at_k", "class_vectors"]


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


class Reader(clip.TextTransformer):
    """A right text Transformer whose parts the wrong ones below replace."""

    def mask(self, T):
        return torch.ones(T, T, dtype=torch.bool, device=self.position.device).tril()

    def start(self, ids):
        return F.embedding(ids, self.token.weight) + self.position[None, : ids.shape[1]]

    def place(self, ids):
        return torch.stack([(row == self.end).nonzero()[0, 0] for row in ids])

    def leave(self, z, rows, at):
        return F.linear(self.norm_out(z[rows, at]), self.project.weight)

    def forward(self, ids):
        z = self.start(ids)
        for block in self.blocks:
            z = block(z, self.mask(ids.shape[1]))
        return self.leave(z, torch.arange(len(ids), device=ids.device), self.place(ids))


class CropsAtTheEnd(Reader):
    """Right, too: caption by caption, without what stands behind <end>."""

    def forward(self, ids):
        return torch.cat([super(CropsAtTheEnd, self).forward(row[None, : row.tolist().index(self.end) + 1]) for row in ids])


class LooksAhead(Reader):
    def mask(self, T):
        return torch.ones(T, T, dtype=torch.bool)


class BlindToItself(Reader):
    def mask(self, T):
        return torch.ones(T, T, dtype=torch.bool).tril(-1) | torch.eye(T, dtype=torch.bool).roll(1, 1).tril()


class NoPlaces(Reader):
    def start(self, ids):
        return self.token(ids)


class PlacesFromTheEnd(Reader):
    def start(self, ids):
        return self.token(ids) + self.position[-ids.shape[1] :]


class LastPosition(Reader):
    def place(self, ids):
        return torch.full((len(ids),), ids.shape[1] - 1)


class LastEnd(Reader):
    def place(self, ids):
        return torch.stack([(row == self.end).nonzero()[-1, 0] for row in ids])


class OnePlaceForAll(Reader):
    def place(self, ids):
        return super().place(ids)[:1].expand(len(ids))


class NoNorm(Reader):
    def leave(self, z, rows, at):
        return self.project(z[rows, at])


class MeanOfTokens(Reader):
    def leave(self, z, rows, at):
        return self.project(self.norm_out(z).mean(1))


class Detached(Reader):
    def start(self, ids):
        return super().start(ids).detach()


class HalfDetached(Reader):
    def leave(self, z, rows, at):
        return super().leave(z, rows, at) + self.project((z - z.detach()).mean(1))


class SpoilsIds(Reader):
    def place(self, ids):
        out = super().place(ids)
        ids.zero_()
        return out


class PlacesDetached(Reader):
    def start(self, ids):
        return self.token(ids) + self.position[: ids.shape[1]].detach()


class ProjectionDetached(Reader):
    def leave(self, z, rows, at):
        return F.linear(self.norm_out(z[rows, at]), self.project.weight.detach())


class ForgetsTheDevice(Reader):
    def place(self, ids):
        return super().place(ids) + torch.zeros(len(ids), dtype=torch.int64)


class OneIsNone(Reader):
    def leave(self, z, rows, at):
        return super().leave(z, rows, at).squeeze()


class EndIsThree(Reader):
    def place(self, ids):
        return (ids == 3).int().argmax(1)


WRONG["TextTransformer"] = {
    "looks ahead": LooksAhead,
    "blind to itself": BlindToItself,
    "no places": NoPlaces,
    "places from the end": PlacesFromTheEnd,
    "last position": LastPosition,
    "last end": LastEnd,
    "one place for all": OnePlaceForAll,
    "no norm": NoNorm,
    "mean of the tokens": MeanOfTokens,
    "detached": Detached,
    "half detached": HalfDetached,
    "places detached": PlacesDetached,
    "projection detached": ProjectionDetached,
    "end is three": EndIsThree,
    "spoils its input": SpoilsIds,
    "forgets the device": (ForgetsTheDevice, "device"),
    "one caption without its axis": (OneIsNone, "of one caption|shape"),
}


def exponentials(logits):
    e = logits.exp()
    return -((e.diagonal() / e.sum(1)).log() + (e.diagonal() / e.sum(0)).log()).mean() / 2


def low_scores(q, k, v, mask=None, low=-100.0):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, low)).softmax(-1) @ v


_kept = {}
WRONG["info_nce"] |= {
    "cached": lambda a, b, s: _kept.setdefault((a.shape, a.dtype), clip.info_nce(a, b, s)),
    "one length for the batch": lambda a, b, s: nce(a / a.norm(), b / b.norm(), s, unit=False),
    "text detached": lambda a, b, s: nce(a, b.detach(), s),
    "in place": lambda a, b, s: nce(a.div_(a.norm(dim=-1, keepdim=True)), b, s, unit=False),
    "scale clamped": (lambda a, b, s: nce(a, b, s.clamp(max=100)), "scale of 150"),
    "plain exponential": (lambda a, b, s: exponentials(s * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T), "is inf"),
    "single precision": lambda a, b, s: nce(a.float(), b.float(), s if isinstance(s, float) else s.float()),
}
WRONG["attention"] |= {
    "only two leading axes": lambda q, k, v, mask=None: torch.einsum("bhij,bhjd->bhid", clip.attention(q, k, torch.eye(k.shape[-2]).to(k), mask), v),
    "unstable": lambda q, k, v, mask=None: (lambda e: e / e.sum(-1, keepdim=True) @ v)((q @ k.mT / q.shape[-1] ** 0.5).exp() * (1 if mask is None else mask)),
    "a low score for a mask": (low_scores, "gets some weight"),
    "scores clamped": (
        lambda q, k, v, mask=None: (q @ k.mT / q.shape[-1] ** 0.5).clamp(-60, 60).softmax(-1) @ v if mask is None else clip.attention(q, k, v, mask),
        "large",
    ),
    "mask transposed": lambda q, k, v, mask=None: clip.attention(q, k, v, None if mask is None else mask.T),
}
WRONG["recall_at_k"] |= {
    "half precision": lambda s, k: clip.recall_at_k(s.half(), k),
    "k plus one": lambda s, k: clip.recall_at_k(s, k + 1),
    "topk with ties": lambda s, k: (s.topk(k).indices == torch.arange(len(s))[:, None]).any(1).float().mean().item(),
}
WRONG["patchify"] |= {
    "rows and columns": lambda x, p: rearrange(x, "b c (h p) (w q) -> b (h w) (c q p)", p=p, q=p),
    "detached": lambda x, p: clip.patchify(x, p).detach(),
    "single precision": (lambda x, p: clip.patchify(x.float(), p), "dtype"),
    "three colours": (lambda x, p: clip.patchify(x[:, :3], p), "shape"),
}
WRONG["class_vectors"] |= {
    "each prompt once": lambda e, p: clip.class_vectors(e, [list(dict.fromkeys(q)) for q in p]),
    "one class without its axis": (lambda e, p: clip.class_vectors(e, p).squeeze(), "shape"),
    "unit before mean only": lambda e, p: torch.stack([F.normalize(e(q), dim=-1).mean(0) for q in p]),
    "one by one": lambda e, p: torch.stack([F.normalize(torch.stack([e(w) for w in q]).mean(0), dim=-1) for q in p]),
    "detached": lambda e, p: clip.class_vectors(e, p).detach(),
}

RIGHT = {
    "patchify": [
        lambda x, p: F.unfold(x, p, stride=p).mT,
        lambda x, p: torch.stack([t.flatten(1) for row in x.split(p, 2) for t in row.split(p, 3)], 1),
    ],
    "attention": [
        lambda q, k, v, mask=None: F.scaled_dot_product_attention(q, k, v, mask),
        lambda q, k, v, mask=None: low_scores(q, k, v, mask, low=-1e9),
        lambda q, k, v, mask=None: torch.einsum(
            "...ij,...jd->...id",
            torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT + (0 if mask is None else torch.zeros(mask.shape).to(q).masked_fill(~mask, float("-inf"))), -1),
            v,
        ),
    ],
    "TextTransformer": [Reader],
    "info_nce": [
        nce,
        lambda a, b, s: (lambda x: (x.logsumexp(0) / 2 + x.logsumexp(1) / 2 - x.diagonal()).mean())(s * F.cosine_similarity(a[:, None], b[None], dim=-1)),
    ],
    "recall_at_k": [lambda s, k: sum(int((row >= row[i]).sum()) - 1 < k for i, row in enumerate(s)) / len(s)],
    "class_vectors": [lambda e, p: F.normalize(torch.stack([e(list(q)).sum(0) for q in p]), dim=1)],
}


RIGHT["TextTransformer"].append(CropsAtTheEnd)
RIGHT["recall_at_k"].append(lambda s, k: ((s >= s.diagonal()[:, None]).sum(1) <= k).float().mean().item())


@every({name: list(kinds.values()) for name, kinds in WRONG.items()})
def test_wrong_answers_are_refused(name, answer, words):
    _kept.clear()
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


@pytest.mark.parametrize("name", EXERCISES)
def test_not_attempted(name):
    def answer(*args, **kwargs):
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        examine(getattr(checks, name), answer)
