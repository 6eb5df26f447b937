"""The checks of lesson 2.6 pass right answers, however they are written, and refuse plausible wrong ones with a sentence that is true of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.checks import lora as checks
from course_utils.exercises import examine
from course_utils.lessons import lora

from . import accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, lora, name)


def side(x, A, B, alpha):
    return F.linear(F.linear(x, A), B)


_first = {}


def remembered(x, A, B, alpha):
    return _first.setdefault((x.shape, x.dtype, alpha), lora.low_rank(x, A, B, alpha))


def merge_in_place(W, A, B, alpha, strength=1.0):
    W += strength * alpha / len(A) * (B @ A)
    return W


def no_default(W, A, B, alpha, strength=0.5):
    return lora.merged_weight(W, A, B, alpha, strength)


class Variant(nn.Module):
    """A right layer whose parts the wrong ones below replace."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.active, self.kept = linear.requires_grad_(False), [], None

    def forward(self, x):
        return self.linear(x) + sum(w * u(x) for u, w in self.active)

    def keep(self):
        self.kept = self.linear.weight.clone()

    def restore(self):
        if self.kept is not None:
            self.linear.weight.copy_(self.kept)
        self.kept = None

    def add(self, pairs):
        for u, w in pairs:
            self.linear.weight += w * u.alpha / len(u.A) * u.B @ u.A

    @torch.no_grad()
    def switch(self, pairs, merged=False):
        self.restore()
        self.active = [] if merged else pairs
        if merged:
            self.keep()
            self.add(pairs)


class NeverRestores(Variant):
    def restore(self):
        pass


class Subtracts(Variant):
    def restore(self):
        for u, w in self.kept or []:
            self.linear.weight -= w * u.alpha / len(u.A) * u.B @ u.A
        self.kept = None

    @torch.no_grad()
    def switch(self, pairs, merged=False):
        super().switch(pairs, merged)
        self.kept = pairs if merged else None


class KeepsAView(Variant):
    def keep(self):
        self.kept = self.linear.weight.detach()


class StaysActive(Variant):
    @torch.no_grad()
    def switch(self, pairs, merged=False):
        super().switch(pairs, merged)
        self.active = pairs


class OnlyTheLast(Variant):
    def add(self, pairs):
        for u, w in pairs:
            self.linear.weight.copy_(self.kept + w * u.alpha / len(u.A) * u.B @ u.A)


class NoStrength(Variant):
    def forward(self, x):
        return self.linear(x) + sum(u(x) for u, _ in self.active)


class SavesTheCopy(Variant):
    def keep(self):
        self.register_buffer("copy", self.linear.weight.clone())
        self.kept = self.copy


class Detaches(Variant):
    def forward(self, x):
        return self.linear(x) + sum(w * u(x).detach() for u, w in self.active)


class InPlace(Variant):
    def forward(self, x):
        x *= 1.5
        return self.linear(x / 1.5) + sum(w * u(x / 1.5) for u, w in self.active)


class Tracked(Variant):
    def switch(self, pairs, merged=False):
        super().switch(pairs, merged)
        self.linear.weight.requires_grad_(True)


class SharedState(Variant):
    shared = {}

    def keep(self):
        SharedState.shared["w"] = self.linear.weight.clone()
        self.kept = True

    def restore(self):
        if "w" in SharedState.shared:
            self.linear.weight.copy_(SharedState.shared["w"])


class NewWeight(Variant):
    """A new parameter instead of new numbers in the old one: whoever holds the old one is left behind."""

    def restore(self):
        if self.kept is not None:
            self.linear.weight = nn.Parameter(self.kept, requires_grad=False)
        self.kept = None


class KeepsForever(Variant):
    """The copy is made at the first merge and never given up."""

    def keep(self):
        if self.kept is None:
            self.kept = self.linear.weight.clone()

    def restore(self):
        if self.kept is not None:
            self.linear.weight.copy_(self.kept)


class OriginalWeight(Variant):
    """Undoes a merge with a copy from the beginning, not from before the merge."""

    def __init__(self, linear):
        super().__init__(linear)
        self.first = linear.weight.detach().clone()

    def restore(self):
        if self.kept is not None:
            self.linear.weight.copy_(self.first)
        self.kept = None


class FirstAlpha(Variant):
    def add(self, pairs):
        for u, w in pairs:
            self.linear.weight += w * pairs[0][0].alpha / len(u.A) * u.B @ u.A


class Counted(Variant):
    """Right, too: a loop, and the updates summed before they are added."""

    def forward(self, x):
        y = self.linear(x)
        for update, strength in self.active:
            y = torch.add(y, update(x), alpha=strength)
        return y

    def add(self, pairs):
        if pairs:
            self.linear.weight.copy_(self.kept + torch.stack([w * u.alpha / len(u.A) * u.B @ u.A for u, w in pairs]).sum(0))


WRONG = {
    "low_rank": [
        (side, "scale is missing"),
        (lambda x, A, B, alpha: alpha * side(x, A, B, alpha), "not divided by the rank"),
        (lambda x, A, B, alpha: side(x, A, B, alpha) / len(A), "not multiplied by alpha"),
        (lambda x, A, B, alpha: alpha / len(B) * side(x, A, B, alpha), "rows of B"),
        (lambda x, A, B, alpha: len(A) / alpha * side(x, A, B, alpha), "upside down"),
        (lambda x, A, B, alpha: alpha / len(A) * x @ (B @ A).T, "whole n × m matrix"),
        (lambda x, A, B, alpha: alpha / len(A) * F.linear(F.linear(x, A).detach(), B), "no gradient reaches x"),
        (lambda x, A, B, alpha: alpha / len(A) * F.linear(F.linear(x, A), B.detach()), "no gradient reaches B"),
        (lambda x, A, B, alpha: alpha // len(A) * side(x, A, B, alpha), "off by"),
        (lambda x, A, B, alpha: lora.low_rank(x.flatten(0, -2) if x.ndim > 2 else x, A, B, alpha), "shape"),
        (lambda x, A, B, alpha: lora.low_rank(x, A, B, alpha).float(), "dtype"),
        (lambda x, A, B, alpha: lora.low_rank(x.mul_(1.0).add_(1), A, B, alpha), "changes its argument x"),
        (remembered, "first call's result"),
    ],
    "merged_weight": [
        (lambda W, A, B, alpha, strength=1.0: W + strength * (B @ A), "scale of the side path"),
        (lambda W, A, B, alpha, strength=1.0: W + alpha / len(A) * (B @ A), "strength makes no difference"),
        (merge_in_place, "changes its argument W in place"),
        (lambda W, A, B, alpha, strength=1.0: strength * alpha / len(A) * (B @ A), "update alone"),
        (lambda W, A, B, alpha, strength=1.0: W - strength * alpha / len(A) * (B @ A), "subtracted"),
        (lambda W, A, B, alpha, strength=1.0: W + strength * alpha / len(A) * (B @ A).detach(), "no gradient reaches A"),
        (lambda W, A, B, alpha, strength=1.0: W + strength * alpha / len(A) * (B @ A).abs(), "off by"),
        (no_default, "without a strength"),
        (lambda W, A, B, alpha, strength=1.0: W + strength * alpha / 2 * (B @ A), "off by"),
        (lambda W, A, B, alpha, strength=1.0: W + min(strength, 1.0) * alpha / len(A) * (B @ A), "off by|makes no difference"),
        (lambda W, A, B, alpha, strength=1.0: W + max(strength, -1.0) * alpha / len(A) * (B @ A), "off by"),
    ],
    "LoRALinear": [
        (NeverRestores, "after those two|bit for bit"),
        (Subtracts, "bit for bit"),
        (KeepsAView, "after those two|bit for bit"),
        (StaysActive, "merged"),
        (OnlyTheLast, "two merged updates"),
        (NoStrength, "two updates beside"),
        (SavesTheCopy, "would save"),
        (Detaches, "gradient"),
        (InPlace, "changes its argument x"),
        (Tracked, "frozen|leaf"),
        (SharedState, "another one|bit for bit|not None"),
        (NewWeight, "new parameter"),
        (KeepsForever, "not None"),
        (OriginalWeight, "older weight"),
        (FirstAlpha, "two merged updates"),
    ],
    "largest_rank": [
        (lambda shapes, budget: budget // sum(n * m for n, m in shapes), "full matrix"),
        (lambda shapes, budget: budget // sum(n for n, _ in shapes), "too many"),
        (lambda shapes, budget: budget // sum(shapes[0]), "too many"),
        (lambda shapes, budget: -(-budget // sum(n + m for n, m in shapes)), "too many"),
        (lambda shapes, budget: budget // sum(n + m for n, m in shapes), "no rank above"),
        (lambda shapes, budget: max(1, lora.largest_rank(shapes, budget)), "too many"),
        (lambda shapes, budget: min(budget // sum(n + m for n, m in shapes), min(n for n, _ in shapes)), "no rank above"),
        (lambda shapes, budget: budget / sum(n + m for n, m in shapes), "whole number"),
    ],
    "stack": [
        (lambda parts, w: (sum(A for A, _ in parts), sum(v * B for (_, B), v in zip(parts, w))), "cross terms"),
        (lambda parts, w: (torch.cat([A for A, _ in parts]), torch.cat([v * B for (_, B), v in zip(parts, w)], 1)), "makes up for the difference"),
        (lambda parts, w: lora.stack(parts, [1.0] * len(parts)), "strengths are not used"),
        (lambda parts, w: (torch.cat([v * A for (A, _), v in zip(parts, w)]), lora.stack(parts, w)[1]), "squared"),
        (lambda parts, w: tuple(t.detach() for t in lora.stack(parts, w)), "no gradient flows"),
        (lambda parts, w: lora.stack(parts[::-1], w), "off by|shape|differ"),
        (lambda parts, w: (lora.stack(parts, w)[0].flip(0), lora.stack(parts, w)[1]), "off by"),
        (lambda parts, w: lora.stack(parts, w)[::-1], "shape"),
    ],
}

RIGHT = {
    "low_rank": [
        lambda x, A, B, alpha: (alpha / A.shape[0]) * (x @ A.T) @ B.T,
        lambda x, A, B, alpha: torch.einsum("...m,rm,nr->...n", x, A, B) * alpha / B.shape[1] if x.shape[-1] < 20 else lora.low_rank(x, A, B, alpha),
    ],
    "merged_weight": [
        lambda W, A, B, alpha, strength=1.0: torch.addmm(W, B, A, alpha=strength * alpha / A.shape[0]),
        lambda W, A, B, alpha, strength=1.0: W + sum(torch.outer(B[:, k], A[k]) for k in range(len(A))) * (strength * alpha / len(A)),
    ],
    "LoRALinear": [Variant, Counted],
    "largest_rank": [lambda shapes, budget: max(r for r in range(min(map(min, shapes)) + 1) if r * sum(map(sum, shapes)) <= budget)],
    "stack": [
        lambda parts, w: (
            torch.cat([v * sum(len(a) for a, _ in parts) / len(A) * A for (A, _), v in zip(parts, w)]),
            torch.cat([B for _, B in parts], 1),
        )
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    _first.clear()
    refuses(getattr(checks, name), answer, words)


@every(RIGHT)
def test_right_answers_written_otherwise_pass(name, answer, words):
    examine(getattr(checks, name), answer)


@pytest.mark.parametrize("name", ["low_rank", "merged_weight", "stack", "largest_rank"])
def test_nothing_returned(name):
    refuses(getattr(checks, name), lambda *inputs: None, "None|two tensors")
