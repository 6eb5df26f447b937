"""Lesson 4.1: right answers pass, however they are written, and plausible wrong ones are refused with one sentence."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils import exercises
from course_utils.checks import linear_blend_skinning as checks
from course_utils.lessons import linear_blend_skinning as ours

from . import accepts, every, refuses


@pytest.mark.parametrize("name", list(checks.HINTS))
def test_the_courses_own_answer_passes(name):
    accepts(checks, ours, name)


# Right answers, written another way


def by_exponential(omega):
    return torch.linalg.matrix_exp(ours.cross_matrix(omega))


def by_quaternion(omega):
    return ours.quaternion_to_matrix(ours.quaternion(omega))


def chain_with_matrices(R, J, parents):
    """4 × 4 matrices, each parent's times the child's."""
    batch = torch.broadcast_shapes(R.shape[:-3], J.shape[:-2])
    R, J = R.expand(*batch, -1, 3, 3), J.expand(*batch, -1, 3)
    T = []
    for j, q in enumerate(parents):
        bone = J[..., j, :] - (J[..., q, :] if q >= 0 else 0)
        step = F.pad(torch.cat([R[..., j, :, :], bone[..., None]], -1), (0, 0, 0, 1))
        step = step + torch.tensor([[0.0] * 4] * 3 + [[0.0, 0, 0, 1]]).to(R)
        T.append(step if q < 0 else T[q] @ step)
    T = torch.stack(T, -3)
    return T[..., :3, :3], T[..., :3, 3]


def chain_by_recursion(R, J, parents):
    J, R = J + 0 * R[..., 0], R + 0 * J[..., None]

    def joint(j):
        if parents[j] < 0:
            return R[..., j, :, :], J[..., j, :]
        G, p = joint(parents[j])
        return G @ R[..., j, :, :], p + torch.einsum("...ab,...b->...a", G, J[..., j, :] - J[..., parents[j], :])

    G, p = zip(*(joint(j) for j in range(len(parents))), strict=True)
    return [torch.stack(G, -3), torch.stack(p, -2)]


def skin_by_votes(V, W, A):
    """Every bone moves every vertex; the results are averaged."""
    votes = torch.einsum("...jab,...nb->...jna", A[..., :3], V) + A[..., None, :, 3]
    return torch.einsum("nj,...jna->...na", W, votes)


def skin_homogeneous(V, W, A):
    return torch.einsum("nj,...jab,...nb->...na", W, A, F.pad(V, (0, 1), value=1.0))


def blend_by_loop(W, real, dual):
    r, d = [], []
    for w in W:
        top = real[..., int(w.argmax()), :]
        s = 1.0 - 2.0 * ((real * top[..., None, :]).sum(-1) < 0)  # (..., J)
        r.append((s[..., None] * w[:, None] * real).sum(-2))
        d.append((s[..., None] * w[:, None] * dual).sum(-2))
    r, d = torch.stack(r, -2), torch.stack(d, -2)
    return F.normalize(r, dim=-1), d / r.norm(dim=-1, keepdim=True)


def fit_by_einsum(V, W, A, f, target, ridge=1e-3):
    M = torch.einsum("nj,tjab->tnab", W, A[..., :3])
    residual = target - ours.lbs(V, W, A)
    H = torch.einsum("tnac,tnad,tk,tl->nckdl", M, M, f, f).flatten(3, 4).flatten(1, 2)
    g = torch.einsum("tnac,tna,tk->nck", M, residual, f).flatten(1)
    return torch.linalg.solve(H + ridge * torch.eye(H.shape[-1]).to(H), g).unflatten(1, (3, -1))


def fit_by_vertex(V, W, A, f, target, ridge=1e-3):
    """Each vertex by itself, features first in the list of unknowns, Cholesky for the solution."""
    out = []
    for n in range(len(V)):
        M = (W[n] @ A.flatten(-2)).view(-1, 3, 4)
        X = torch.stack([torch.kron(k[None], m) for m, k in zip(M[..., :3], f, strict=True)]).flatten(0, 1)  # columns (k, c)
        y = (target[:, n] - M[..., :3] @ V[n] - M[..., 3]).reshape(-1, 1)
        L = torch.linalg.cholesky(X.T @ X + ridge * torch.eye(X.shape[1]).to(X))
        out.append(torch.cholesky_solve(X.T @ y, L).reshape(-1, 3).T)
    return torch.stack(out)


def skin_from_rest(V, W, A):
    """How far each bone moves the vertex, weighed and added to the vertex: the same, since weights sum to 1."""
    moved = torch.einsum("...jab,...nb->...nja", A[..., :3], V) + A[..., None, :, :, 3]
    return V + torch.einsum("nj,...nja->...na", W, moved - V[..., None, :])


def blend_normalised(W, real, dual):
    return ours.blend_dual_quaternions(W, torch.nn.functional.normalize(real, dim=-1), dual)


def fit_in_the_space_of_examples(V, W, A, f, target, ridge=1e-3):
    """C = X^T (X X^T + ridge)^-1 y."""
    M = torch.einsum("nj,tjac->tnac", W, A[..., :3])
    X = torch.einsum("tnac,tk->ntack", M, f).flatten(3).flatten(1, 2)
    y = (target - ours.lbs(V, W, A)).transpose(0, 1).flatten(1)[..., None]
    return (X.mT @ torch.linalg.solve(X @ X.mT + ridge * torch.eye(X.shape[1], dtype=V.dtype), y)).reshape(len(V), 3, -1)


RIGHT = {
    "rodrigues": [by_exponential, by_quaternion],
    "forward_kinematics": [chain_with_matrices, chain_by_recursion],
    "lbs": [skin_from_rest, skin_by_votes, skin_homogeneous],
    "blend_dual_quaternions": [blend_normalised, blend_by_loop],
    "fit_correctives": [fit_in_the_space_of_examples, fit_by_einsum, fit_by_vertex],
}


@pytest.mark.parametrize(("name", "answer"), [(n, f) for n, fs in RIGHT.items() for f in fs])
def test_other_right_answers_pass(name, answer):
    exercises.examine(getattr(checks, name), answer)


# Rodrigues


def divides_by_zero(omega):
    angle = omega.norm(dim=-1)[..., None, None]
    K = ours.cross_matrix(omega / omega.norm(dim=-1, keepdim=True))
    return torch.eye(3, dtype=omega.dtype) + angle.sin() * K + (1 - angle.cos()) * K @ K


def patched(omega):
    """The division repaired where it is nan, but not in its gradient."""
    R = divides_by_zero(omega)
    return torch.where(R.isnan(), torch.eye(3, dtype=omega.dtype), R)


def with_a_crumb(omega):
    angle = (omega.norm(dim=-1) + 1e-8)[..., None, None]
    K = ours.cross_matrix(omega) / angle
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


def root_of_squares(omega):
    """Right values; its gradient at 0 is nan."""
    angle = (omega * omega).sum(-1).sqrt()[..., None, None]
    K = ours.cross_matrix(omega)
    return torch.eye(3, dtype=omega.dtype) + torch.sinc(angle / math.pi) * K + 0.5 * torch.sinc(angle / 2 / math.pi) ** 2 * K @ K


def angle_detached(omega):
    angle, K = omega.norm(dim=-1)[..., None, None].detach(), ours.cross_matrix(omega)
    return torch.eye(3, dtype=omega.dtype) + torch.sinc(angle / math.pi) * K + 0.5 * torch.sinc(angle / 2 / math.pi) ** 2 * K @ K


def small_angles(omega):
    """The series up to the second order."""
    K = ours.cross_matrix(omega)
    return torch.eye(3, dtype=omega.dtype) + K + 0.5 * K @ K


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
    J, p = J.expand(*G.shape[:-3], *J.shape[-2:]), []
    for j, q in enumerate(parents):
        p.append(J[..., j, :] if q < 0 else p[q] + (G[..., q, :, :] @ J[..., j, :, None])[..., 0])
    return G, torch.stack(p, -2)


def root_at_the_origin(R, J, parents):
    G, p = ours.forward_kinematics(R, J, parents)
    return G, p - p[..., :1, :]


def two_generations(R, J, parents):
    """Only the parent and its parent are followed."""
    G = [R[..., j, :, :] if q < 0 else R[..., q, :, :] @ R[..., j, :, :] for j, q in enumerate(parents)]
    return torch.stack(G, -3), ours.forward_kinematics(R, J, parents)[1]


def no_batch(R, J, parents):
    if R.ndim > 3:
        raise IndexError("too many dimensions")
    return ours.forward_kinematics(R, J, parents)


def one_skeleton_only(R, J, parents):
    return ours.forward_kinematics(R, J if J.ndim == 2 else J[(0,) * (J.ndim - 2)], parents)


def into_a_tensor(R, J, parents):
    with torch.no_grad():
        G, p = ours.forward_kinematics(R, J, parents)
    return G, p


def joints_detached(R, J, parents):
    return ours.forward_kinematics(R, J.detach(), parents)


def changes_the_rotations(R, J, parents):
    for j, q in enumerate(parents):
        if q >= 0:
            R[..., j, :, :] = R[..., q, :, :] @ R[..., j, :, :]
    return R, ours.forward_kinematics(R, J, parents)[1]


# Skinning


def no_translation(V, W, A):
    return ours.lbs(V, W, torch.cat([A[..., :3], 0 * A[..., 3:]], -1))


def transposed(V, W, A):
    return ours.lbs(V, W, torch.cat([A[..., :3].transpose(-1, -2), A[..., 3:]], -1))


def strongest_only(V, W, A):
    return ours.lbs(V, F.one_hot(W.argmax(1), W.shape[1]).to(W), A)


def weights_of_the_wrong_axis(V, W, A):
    return ours.lbs(V, torch.softmax(W, 0), A)


def even_votes(V, W, A):
    return ours.lbs(V, torch.full_like(W, 1 / W.shape[1]), A)


def first_pose_of_the_batch(V, W, A):
    out = ours.lbs(V, W, A)
    return out if out.ndim == 2 else out[(0,) * (out.ndim - 2)].expand_as(out)


# Dual quaternions


def signed(W, real, dual, reference=None, real_sign=True, dual_sign=True, sign=None, lengths=(True, True)):
    reference = real[..., W.argmax(1), :] if reference is None else reference
    agree = reference @ real.transpose(-1, -2)
    w = torch.where(agree < 0, -W, W) if sign is None else sign(agree) * W
    r, d = (w if real_sign else W) @ real, (w if dual_sign else W) @ dual
    size = r.norm(dim=-1, keepdim=True)
    return r / size if lengths[0] else r, {True: d / size, False: d, "own": d / d.norm(dim=-1, keepdim=True)}[lengths[1]]


# Correctives


def fit(V, W, A, f, target, ridge=1e-3, squash=True, residual="lbs", power=1, scaled=False, once=False, order="ck"):
    M = (W @ A.flatten(-2)).unflatten(-1, (3, 4))
    M, shift = M[..., :3], M[..., 3]
    skinned = {"lbs": (M * V[:, None]).sum(-1) + shift, "rest": V, "none": 0 * V}[residual]
    y = (target - skinned).transpose(0, 1).flatten(1)[..., None]
    M = M if squash else torch.eye(3).to(M).expand_as(M)
    X = (M[..., None] * f[:, None, None, None, :]).transpose(0, 1)
    X = X if order == "ck" else X.transpose(-1, -2)
    X = X.reshape(len(V), 3 * len(f), -1)
    H, g = X.mT @ X, X.mT @ y
    H, g = (H.mean(0, keepdim=True).expand_as(H), g) if once else (H, g)
    ridge = ridge**power * (len(f) if scaled else 1)
    return torch.linalg.solve(H + ridge * torch.eye(H.shape[-1]).to(H), g).reshape(len(V), 3, -1)


def bent(**how):
    def answer(V, W, A, f, target, ridge=1e-3):
        return fit(V, W, A, f, target, ridge, **how)

    return answer


def four_bones(V, W, A):
    return sum(W[:, j : j + 1] * (V @ A[..., j, :, :3].mT + A[..., j, None, :, 3]) for j in range(min(4, W.shape[1])))


def pose_by_pose(V, W, A):
    """Pairs up the batches of V and A, and doesn't broadcast them."""
    return torch.stack([ours.lbs(v, W, a) for v, a in zip(V, A)]) if V.ndim > 2 and A.ndim > 3 else ours.lbs(V, W, A)


WRONG = {
    "rodrigues": [
        (lambda w: ours.rodrigues(-w), "inverse rotation"),
        (divides_by_zero, "nan"),
        (patched, "nan|gradient"),
        (with_a_crumb, "off by|gradient"),
        (forgets_to_normalise, "unit axis"),
        (forgets_the_square, "last of the three terms"),
        (wrong_sinc, "π of its own"),
        (root_of_squares, "gradient with respect to omega holds nan"),
        (angle_detached, "right gradient with respect to omega"),
        (small_angles, "off by"),
        (lambda w: ours.rodrigues(w.float()), "dtype"),
        (lambda w: ours.rodrigues(w)[0], "shape"),
        (lambda w: ours.rodrigues(w * (180 / math.pi)), "off by"),
        (lambda w: ours.rodrigues(w.reshape(-1, 3)[0]).expand(*w.shape, 3), "off by"),
    ],
    "forward_kinematics": [
        (own_rotation, "joint at its end"),
        (wrong_order, "off by"),
        (lambda R, J, p: wrong_order(R, J, p)[:1] + own_rotation(R, J, p)[1:], "off by"),
        (positions_not_bones, "should add the bone"),
        (root_at_the_origin, "moved to the origin"),
        (two_generations, "off by"),
        (no_batch, "too many dimensions"),
        (one_skeleton_only, "shape|off by|stopped"),
        (into_a_tensor, "no gradient"),
        (joints_detached, "reaches J"),
        (changes_the_rotations, "changes its argument R|in.?place"),
        (lambda R, J, p: ours.forward_kinematics(R, J, p)[0], "two tensors"),
    ],
    "lbs": [
        (four_bones, "off by"),
        (pose_by_pose, "shape"),
        (no_translation, "translations are missing"),
        (transposed, "transposed"),
        (strongest_only, "strongest bone"),
        (even_votes, "same say"),
        (weights_of_the_wrong_axis, "off by"),
        (first_pose_of_the_batch, "off by"),
        (lambda V, W, A: ours.lbs(V, W, A).detach(), "gradient"),
        (lambda V, W, A: ours.lbs(V, W.detach(), A), "reaches W"),
        (lambda V, W, A: ours.lbs(V.detach(), W, A), "reaches V"),
        (lambda V, W, A: ours.lbs(V, W, torch.cat([A[..., :3], A[..., 3:].detach()], -1)), "gradient with respect to A"),
        (lambda V, W, A: ours.lbs(V, W, A)[..., :2], "shape"),
        (lambda V, W, A: ours.lbs(V.float(), W.float(), A.float()), "dtype"),
    ],
    "blend_dual_quaternions": [
        (lambda W, r, d: signed(W, r, d, real_sign=False, dual_sign=False), "signs are missing"),
        (lambda W, r, d: signed(W, r, d, dual_sign=False), "a sign belongs to a bone"),
        (lambda W, r, d: signed(W, r, d, lengths=(True, "own")), "its own length"),
        (lambda W, r, d: signed(W, r, d, lengths=(False, False)), "length 1"),
        (lambda W, r, d: signed(W, r, d, lengths=(True, False)), "value 2 of 2"),
        (lambda W, r, d: signed(W, r, d, reference=r[..., :1, :]), "first bone"),
        (lambda W, r, d: signed(W, r, d, reference=r[..., W.mean(0).argmax()[None], :]), "off by"),
        (lambda W, r, d: signed(W, r, d, sign=torch.sign), "exactly 0"),
        (lambda W, r, d: signed(W, r, d, sign=lambda a: 1.0 - 2.0 * (a <= 0)), "exactly 0"),
        (lambda W, r, d: signed(W, r, d, sign=torch.tanh), "off by"),
        (lambda W, r, d: signed(W, r, d)[0], "two tensors"),
        (lambda W, r, d: (signed(W, r, d)[0], signed(W, r.detach(), d)[1]), "gradient with respect to real"),
        (lambda W, r, d: signed(W.detach(), r, d), "reaches W"),
    ],
    "fit_correctives": [
        (bent(squash=False), "added after skinning"),
        (bent(residual="rest"), "compared with the rest vertices"),
        (bent(residual="none"), "off by"),
        (bent(power=2), "squared"),
        (bent(scaled=True), "number of examples"),
        (bent(once=True), "off by"),
        (bent(order="kc"), "off by"),
        (lambda V, W, A, f, target, ridge=1e-3: fit(V, W, A, f, target, 1e-12), "off by"),
        (lambda V, W, A, f, target, ridge=1e-3: fit(V, W, A, f, target, 1e-3), "off by"),
        (lambda V, W, A, f, target, ridge=1e-2: fit(V, W, A, f, target, ridge), "given by default"),
        (lambda V, W, A, f, target, ridge=1e-3: fit(V, W, A, f, target, ridge).mT, "shape"),
        (lambda V, W, A, f, target, ridge=1e-3: fit(V, W, A, f, target, ridge).detach(), "gradient"),
        (lambda V, W, A, f, target, ridge=1e-3: fit(V.detach(), W, A, f, target, ridge), "reaches V"),
        (lambda V, W, A, f, target, ridge=1e-3: fit(V, W, A, f, target.sub_(V), ridge), "changes its argument target|in.?place"),
        (lambda V, W, A, f, target, ridge=1e-3: torch.einsum("tna,tk->nak", target, f), "off by"),
    ],
}


@every(WRONG)
def test_wrong_answers_are_refused(name, answer, words):
    refuses(getattr(checks, name), answer, words)


def test_a_chain_that_never_ends_is_stopped(monkeypatch):
    """Walking up until the root's parent is 0, which never happens: its parent is -1."""

    def endless(R, J, parents):
        for j in range(len(parents)):
            while j != 0:
                j = parents[j] if parents[j] >= 0 else j
                j = max(j, 1)
        return ours.forward_kinematics(R, J, parents)

    monkeypatch.setattr(exercises, "PATIENCE", 1.0)
    refuses(checks.forward_kinematics, endless, "never ends")
