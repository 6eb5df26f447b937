"""Lesson 4.1: right answers pass, plausible wrong ones are refused with one sentence."""

import math

import pytest
import torch

from course_utils.checks import linear_blend_skinning as checks
from course_utils.lessons import linear_blend_skinning as ours

from . import accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, ours, name)


def test_an_equivalent_rodrigues_passes():
    checks.rodrigues(lambda w: torch.linalg.matrix_exp(ours.cross_matrix(w)))


# Rodrigues


def divides_by_zero(omega):
    angle = omega.norm(dim=-1)[..., None, None]
    K = ours.cross_matrix(omega / omega.norm(dim=-1, keepdim=True))
    return torch.eye(3, dtype=omega.dtype) + angle.sin() * K + (1 - angle.cos()) * K @ K


def forgets_to_normalise(omega):
    angle, K = omega.norm(dim=-1)[..., None, None], ours.cross_matrix(omega)
    return torch.eye(3, dtype=omega.dtype) + angle.sin() * K + (1 - angle.cos()) * K @ K


def forgets_the_square(omega):
    angle, K = omega.norm(dim=-1)[..., None, None], ours.cross_matrix(omega)
    return torch.eye(3, dtype=omega.dtype) + torch.sinc(angle / math.pi) * K


def wrong_sinc(omega):  # torch.sinc already holds π
    angle, K = omega.norm(dim=-1)[..., None, None], ours.cross_matrix(omega)
    return torch.eye(3, dtype=omega.dtype) + torch.sinc(angle) * K + 0.5 * torch.sinc(angle / 2) ** 2 * K @ K


def falls_to_float32(omega):
    return ours.rodrigues(omega.float())


# Kinematics


def own_rotation(R, J, parents):
    """The joint's own rotation turns the bone that leads to it."""
    G, p = ours.forward_kinematics(R, J, parents)
    p = list((p * 1).unbind(-2))
    for j, q in enumerate(parents):
        if q >= 0:
            p[j] = p[q] + (G[..., j, :, :] @ (J[..., j, :] - J[..., q, :])[..., None])[..., 0]
    return G, torch.stack(p, -2)


def wrong_order(R, J, parents):
    G = []
    for j, q in enumerate(parents):
        G.append(R[..., j, :, :] if q < 0 else R[..., j, :, :] @ G[q])
    return torch.stack(G, -3), ours.forward_kinematics(R, J, parents)[1]


def positions_not_bones(R, J, parents):
    """Uses J_j where the bone J_j - J_parent belongs."""
    G, _ = ours.forward_kinematics(R, J, parents)
    J, p = J.expand(*R.shape[:-3], *J.shape[-2:]), []
    for j, q in enumerate(parents):
        p.append(J[..., j, :] if q < 0 else p[q] + (G[..., q, :, :] @ J[..., j, :, None])[..., 0])
    return G, torch.stack(p, -2)


def root_at_the_origin(R, J, parents):
    G, p = ours.forward_kinematics(R, J, parents)
    return G, p - p[..., :1, :]


def no_batch(R, J, parents):
    if R.ndim > 3:
        raise IndexError("too many dimensions")
    return ours.forward_kinematics(R, J, parents)


# Skinning


def no_translation(V, W, A):
    return ours.lbs(V, W, torch.cat([A[..., :3], 0 * A[..., 3:]], -1))


def transposed(V, W, A):
    return ours.lbs(V, W, torch.cat([A[..., :3].transpose(-1, -2), A[..., 3:]], -1))


def strongest_only(V, W, A):
    return ours.lbs(V, torch.nn.functional.one_hot(W.argmax(1), W.shape[1]).to(W), A)


def weights_of_the_wrong_axis(V, W, A):
    return ours.lbs(V, torch.softmax(W, 0), A)


# Dual quaternions


def no_signs(W, real, dual):
    r, d = W @ real, W @ dual
    size = r.norm(dim=-1, keepdim=True)
    return r / size, d / size


def signs_of_real_only(W, real, dual):
    w = torch.where(real[..., W.argmax(1), :] @ real.transpose(-1, -2) < 0, -W, W)
    r, d = w @ real, W @ dual
    size = r.norm(dim=-1, keepdim=True)
    return r / size, d / size


def two_lengths(W, real, dual):
    w = torch.where(real[..., W.argmax(1), :] @ real.transpose(-1, -2) < 0, -W, W)
    r, d = w @ real, w @ dual
    return r / r.norm(dim=-1, keepdim=True), d / d.norm(dim=-1, keepdim=True)


def not_normalised(W, real, dual):
    w = torch.where(real[..., W.argmax(1), :] @ real.transpose(-1, -2) < 0, -W, W)
    return w @ real, w @ dual


def signs_of_the_first_bone(W, real, dual):
    w = torch.where(real[..., :1, :] @ real.transpose(-1, -2) < 0, -W, W)
    r, d = w @ real, w @ dual
    size = r.norm(dim=-1, keepdim=True)
    return r / size, d / size


WRONG = {
    "rodrigues": [
        (lambda w: ours.rodrigues(-w), "inverse rotation"),
        (divides_by_zero, "nan"),
        (forgets_to_normalise, "off by"),
        (forgets_the_square, "off by"),
        (wrong_sinc, "off by"),
        (falls_to_float32, "dtype"),
        (lambda w: ours.rodrigues(w)[0], "shape"),
    ],
    "forward_kinematics": [
        (own_rotation, "parent"),
        (wrong_order, "in this order"),
        (positions_not_bones, "J_parent"),
        (root_at_the_origin, "root"),
        (no_batch, "batch"),
        (lambda R, J, p: ours.forward_kinematics(R, J, p)[0], "two tensors"),
    ],
    "lbs": [
        (no_translation, "translations are missing"),
        (transposed, "transposed"),
        (strongest_only, "strongest bone"),
        (weights_of_the_wrong_axis, "off by"),
        (lambda V, W, A: ours.lbs(V, W, A).detach(), "gradient"),
        (lambda V, W, A: ours.lbs(V, W, A)[..., :2], "shape"),
    ],
    "blend_dual_quaternions": [
        (no_signs, "signs are missing"),
        (signs_of_real_only, "same signs"),
        (two_lengths, "its own length"),
        (not_normalised, "length 1"),
        (signs_of_the_first_bone, "off by"),
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)
