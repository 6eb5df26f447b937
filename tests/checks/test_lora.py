"""The checks of lesson 2.6 pass the course's answers and refuse plausible wrong ones with a sentence that helps."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import lora as checks
from course_utils.lessons import lora

from . import accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, lora, name)


def without_scale(x, A, B, alpha):
    return F.linear(F.linear(x, A), B)


def without_rank(x, A, B, alpha):
    return alpha * F.linear(F.linear(x, A), B)


def rank_from_b(x, A, B, alpha):
    return alpha / len(B) * F.linear(F.linear(x, A), B)


def whole_matrix(x, A, B, alpha):
    return alpha / len(A) * x @ (B @ A).T


def detached(x, A, B, alpha):
    return alpha / len(A) * F.linear(F.linear(x, A).detach(), B)


def counts_the_matrix(shapes, budget):
    return budget // sum(n * m for n, m in shapes)


def counts_one_side(shapes, budget):
    return budget // sum(n for n, _ in shapes)


def counts_one_layer(shapes, budget):
    return budget // sum(shapes[0])


def rounds_up(shapes, budget):
    return -(-budget // sum(n + m for n, m in shapes))


def never_capped(shapes, budget):
    return budget // sum(n + m for n, m in shapes)


def a_float(shapes, budget):
    return budget / sum(n + m for n, m in shapes)


def merge_without_scale(W, A, B, alpha, strength=1.0):
    return W + strength * (B @ A)


def merge_without_strength(W, A, B, alpha, strength=1.0):
    return W + alpha / len(A) * (B @ A)


def merge_in_place(W, A, B, alpha, strength=1.0):
    W += strength * alpha / len(A) * (B @ A)
    return W


def only_the_update(W, A, B, alpha, strength=1.0):
    return strength * alpha / len(A) * (B @ A)


def sum_of_parts(parts, strengths):
    return sum(A for A, _ in parts), sum(w * B for (_, B), w in zip(parts, strengths))


def stack_without_ranks(parts, strengths):
    return torch.cat([A for A, _ in parts]), torch.cat([w * B for (_, B), w in zip(parts, strengths)], 1)


def stack_without_strengths(parts, strengths):
    return lora.stack(parts, [1.0] * len(parts))


def stack_squared(parts, strengths):
    A, B = lora.stack(parts, strengths)
    return torch.cat([w * A_i for (A_i, _), w in zip(parts, strengths)]), B


WRONG = {
    "low_rank": [
        (without_scale, "scale alpha / r is missing"),
        (without_rank, "divide by the rank"),
        (rank_from_b, "rows of B"),
        (whole_matrix, "whole n × m matrix"),
        (detached, "gradient"),
    ],
    "largest_rank": [
        (counts_the_matrix, "full matrix"),
        (counts_one_side, "too many"),
        (counts_one_layer, "too many"),
        (rounds_up, "too many"),
        (never_capped, "smallest side|fits into"),
        (a_float, "whole number"),
    ],
    "merged_weight": [
        (merge_without_scale, "scale alpha / r"),
        (merge_without_strength, "strength is not used"),
        (merge_in_place, "W itself"),
        (only_the_update, "update alone"),
    ],
    "stack": [
        (sum_of_parts, "cross terms"),
        (stack_without_ranks, "r / r_i"),
        (stack_without_strengths, "strengths are not used"),
        (stack_squared, "squared"),
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


@pytest.mark.parametrize("name", ["low_rank", "merged_weight", "stack"])
def test_a_wrong_shape_gets_one_sentence(name):
    wrong = (torch.zeros(2, 3), torch.zeros(5, 4)) if name == "stack" else torch.zeros(2, 3)
    refuses(getattr(checks, name), lambda *inputs: wrong, "shape|rows")


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_nothing_returned(name):
    refuses(getattr(checks, name), lambda *inputs: None, "None|two tensors")
