"""Checks of lesson 4.1: brute force and closed forms, bone by bone and vertex by vertex."""

from __future__ import annotations

import math

import torch

from ..exercises import agree, right, same

HINTS = {
    "rodrigues": [
        "Three terms: I, the cross matrix K = [ω]×, and K @ K. Which function of the angle θ = |ω| stands before each, and what is it at θ = 0?",
        "Give the angle two extra axes, `torch.linalg.vector_norm(omega, dim=-1)[..., None, None]`, so that it multiplies matrices. Never divide by it.",
        "a = torch.sinc(angle / π) and b = 0.5 · torch.sinc(angle / 2π)²; R = I + a K + b K @ K, with I in omega's dtype and device.",
    ],
    "forward_kinematics": [
        "Walk through the joints in order and keep two lists, G and p. What are they for the root? Which of the two needs the joint's own rotation?",
        "A child's position uses its *parent's* world rotation: p_j = p_parent + G_parent (J_j − J_parent). Its own rotation only enters G_j = G_parent R_j. "
        "New entries go into lists: writing into a tensor that is used again would break the gradient.",
        "`G[parent] @ R[..., j, :, :]` and `(G[parent] @ bone[..., None])[..., 0]`; at the end `torch.stack(G, -3), torch.stack(p, -2)`. "
        "For the batch axes: batch = torch.broadcast_shapes(R.shape[:-3], J.shape[:-2]); R = R.expand(*batch, *R.shape[-3:]); J = J.expand(*batch, *J.shape[-2:]).",
    ],
    "lbs": [
        "Which comes first: moving the vertex with every bone, or blending the bones' 3×4 matrices? Both are right; which one is a single matrix product for the whole mesh?",
        "`W @ A.flatten(-2)` is (..., N, 12): twelve numbers for each vertex. Reshape to (..., N, 3, 4).",
        "`(M[..., :3] * V[..., None, :]).sum(-1) + M[..., 3]`: the left 3×3 times the vertex, plus the last column.",
    ],
    "blend_dual_quaternions": [
        "Only the real parts decide the signs. What does a sign flip: the real part of its bone, or both parts?",
        "Reference: `real[..., W.argmax(1), :]` (..., N, 4). Inner products with all bones: `reference @ real.transpose(-1, -2)` (..., N, J). Where they are negative, use −W instead of W.",
        "r, d = w @ real, w @ dual; size = length of r; return r / size, d / size: one length for both.",
    ],
    "fit_correctives": [
        "For one vertex the unknown is a list of 3·K numbers c. Which matrix X_t turns it into the offset that is seen in pose t, and what should that offset be?",
        "X (N, 3·T, 3·K) holds M_t[a, c] · f_t[k] in row (t, a) and column (c, k); y (N, 3·T, 1) holds target − LBS. The solution solves (XᵀX + ridge·I) c = Xᵀy for all vertices at once.",
        "M = (W @ A.flatten(-2)).unflatten(-1, (3, 4))[..., :3]; X = M[..., None] * f[:, None, None, None, :] is (T, N, 3, 3, K): X.transpose(0, 1).reshape(N, 3 * T, 3 * K); "
        "torch.linalg.solve(X.mT @ X + ridge * torch.eye(3 * K), X.mT @ y).reshape(N, 3, K).",
    ],
}

DTYPES = {torch.float64: 1e-9, torch.float32: 1e-4}


def _stacked(fn, shape, *tensors):
    """fn for every entry of the leading axes ``shape``, each tensor's own leading axes broadcast to it: tensors come with the number of axes that belong to an entry."""
    flat = [t.expand(*shape, *t.shape[t.ndim - n :]).reshape(-1, *t.shape[t.ndim - n :]) for t, n in tensors]
    outs = [fn(*entry) for entry in zip(*flat)]
    if isinstance(outs[0], tuple):
        return tuple(torch.stack(o).reshape(*shape, *o[0].shape) for o in zip(*outs))
    return torch.stack(outs).reshape(*shape, *outs[0].shape)


# Rotations


def _cross(w):
    o = torch.zeros_like(w[0])
    return torch.stack([o, -w[2], w[1], w[2], o, -w[0], -w[1], w[0], o]).view(3, 3)


def _exponential(omega):
    return _stacked(lambda w: torch.linalg.matrix_exp(_cross(w)), omega.shape[:-1], (omega, 1))


def _random_rotations(shape, g, dtype=torch.float64):
    return _exponential(1.2 * torch.randn(*shape, 3, generator=g, dtype=torch.float64)).to(dtype)


def rodrigues(answer):
    def pieces(omega, first=1.0, second=1.0, of=lambda w: w):
        def one(w):
            w, angle = of(w), torch.linalg.vector_norm(w)
            K = _cross(w)
            return torch.eye(3, dtype=w.dtype) + first * torch.sinc(angle / math.pi) * K + second * 0.5 * torch.sinc(angle / 2 / math.pi) ** 2 * K @ K

        return _stacked(one, omega.shape[:-1], (omega, 1))

    def unscaled(omega, unit):
        def one(w):
            angle = torch.linalg.vector_norm(w)
            K = _cross(w / angle if unit else w)
            return torch.eye(3, dtype=w.dtype) + angle.sin() * K + (1 - angle.cos()) * K @ K

        return _stacked(one, omega.shape[:-1], (omega, 1))

    suspects = [
        ("this is the inverse rotation, the transpose: check the signs in the cross matrix.", lambda w: _exponential(-w)),
        ("the last of the three terms is missing.", lambda w: pieces(w, second=0.0)),
        ("the factors are those of a unit axis, but K is made of ω itself, whose length is θ.", lambda w: unscaled(w, False)),
        ("torch.sinc holds a π of its own: what goes in is to be divided by π first.", lambda w: _own_pi(w)),
    ]

    def draw(*shape, dtype=torch.float64, scale=1.5):
        return lambda g: {"omega": scale * torch.randn(*shape, 3, generator=g, dtype=dtype)}

    def near_rest(dtype):
        def case(g):
            omega = torch.randn(5, 3, generator=g, dtype=dtype) * torch.tensor([1.0, 0.0, 1e-3, 1e-6, 1e-12], dtype=dtype)[:, None]
            return {"omega": omega}

        return case

    for dtype, tol in DTYPES.items():
        cases = [draw(4, 5, dtype=dtype), draw(dtype=dtype), draw(2, 3, 2, dtype=dtype, scale=0.3), draw(3, dtype=dtype, scale=3.0)]
        agree(answer, _exponential, cases, what="R", grad=("omega",), tol=tol, suspects=suspects)
        agree(answer, _exponential, near_rest(dtype), what="R at and near the rest pose θ = 0", grad=("omega",), tol=tol)


def _own_pi(omega):
    def one(w):
        angle, K = torch.linalg.vector_norm(w), _cross(w)
        return torch.eye(3, dtype=w.dtype) + torch.sinc(angle) * K + 0.5 * torch.sinc(angle / 2) ** 2 * K @ K

    return _stacked(one, omega.shape[:-1], (omega, 1))


# Kinematics

_PARENTS = [-1, 0, 1, 1, 0, 4, 5, 6, 2]


def _chain(R, J, parents, own=False, reverse=False, whole=False, root=True):
    """World transforms of one pose: every joint by itself, along its path from the root."""
    G, p = [], []
    for j in range(len(parents)):
        path = [j]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        turn, at = R[path[0]], J[path[0]] if root else torch.zeros_like(J[0])
        for a, b in zip(path, path[1:]):
            bone = J[b] if whole else J[b] - J[a]
            after = R[b] @ turn if reverse else turn @ R[b]
            at = at + (after if own else turn) @ bone
            turn = after
        G.append(turn)
        p.append(at)
    return torch.stack(G), torch.stack(p)


def forward_kinematics(answer):
    def reference(R, J, parents, **how):
        shape = torch.broadcast_shapes(R.shape[:-3], J.shape[:-2])
        return _stacked(lambda r, j: _chain(r, j, parents, **how), shape, (R, 3), (J, 2))

    suspects = [
        ("a bone is turned by the joint at its end. A joint's own rotation should move its children, not itself.", lambda *a: reference(*a, own=True)),
        ("world rotations are multiplied in the wrong order.", lambda *a: reference(*a, reverse=True)),
        ("each step adds the joint's rest position; it should add the bone, from the parent to the joint.", lambda *a: reference(*a, whole=True)),
        ("the root should stay at its rest position, but it moved to the origin.", lambda *a: reference(*a, root=False)),
    ]

    def draw(of_R, of_J, dtype=torch.float64, parents=_PARENTS):
        n = len(parents)
        return lambda g: {
            "R": _random_rotations((*of_R, n), g, dtype),
            "J": torch.randn(*of_J, n, 3, generator=g, dtype=dtype),
            "parents": parents,
        }

    def work(R, J, parents):
        out = answer(R, J, parents)
        right(isinstance(out, (tuple, list)) and len(out) == 2, "return two tensors: the world rotations G and the joint positions p.")
        return tuple(out)

    plain = [draw((), ()), draw((), (), parents=[-1]), draw((), (), parents=[-1, 0, 1, 2, 3, 4])]
    agree(work, reference, plain, what="(G, p)", grad=("R", "J"), tol=1e-9, suspects=suspects)
    batches = [draw((4,), ()), draw((2, 3), ()), draw((4,), (4,)), draw((), (4,)), draw((2, 1), (3,))]
    agree(work, reference, batches, what="(G, p) of a batch", grad=("R", "J"), tol=1e-9, suspects=suspects)
    agree(work, reference, draw((4,), (), torch.float32), what="(G, p) in single precision", grad=("R", "J"), tol=1e-4)


# Skinning


def _posed(V, W, A, shift=True, transpose=False, strongest=False, even=False):
    """Point by point, bone by bone, one pose."""
    out = []
    for n in range(len(W)):
        w = W[n] if not strongest else torch.nn.functional.one_hot(W[n].argmax(), len(W[n])).to(W)
        w = torch.full_like(w, 1 / len(w)) if even else w
        point = torch.zeros_like(V[n])
        for j in range(len(w)):
            turn = A[j, :, :3].T if transpose else A[j, :, :3]
            point = point + w[j] * (turn @ V[n] + (A[j, :, 3] if shift else 0))
        out.append(point)
    return torch.stack(out)


def _weights(N, J, g, dtype):
    W = torch.rand(N, J, generator=g, dtype=dtype) ** 2
    return W / W.sum(1, keepdim=True)


def _transforms(shape, g, dtype):
    return torch.cat([_random_rotations(shape, g, dtype), torch.randn(*shape, 3, 1, generator=g, dtype=dtype)], -1)


def lbs(answer):
    def reference(V, W, A, **how):
        shape = torch.broadcast_shapes(V.shape[:-2], A.shape[:-3])
        return _stacked(lambda v, a: _posed(v, W, a, **how), shape, (V, 2), (A, 3))

    suspects = [
        ("the translations are missing.", lambda *a: reference(*a, shift=False)),
        ("the rotations are applied transposed: row a of the matrix times the vertex gives coordinate a.", lambda *a: reference(*a, transpose=True)),
        ("only the strongest bone is used: every bone votes with its weight.", lambda *a: reference(*a, strongest=True)),
        ("every bone has the same say: it should vote with its weight.", lambda *a: reference(*a, even=True)),
    ]

    def draw(of_V, of_A, dtype=torch.float64, bones=4):
        return lambda g: {
            "V": torch.randn(*of_V, 7, 3, generator=g, dtype=dtype),
            "W": _weights(7, bones, g, dtype).log(),
            "A": _transforms((*of_A, bones), g, dtype),
        }

    of_logits = lambda fn: lambda V, W, A: fn(V, W.softmax(1), A)  # rows of W sum to 1: only such changes of W count in the gradient
    own, truth = of_logits(answer), of_logits(reference)
    suspects = [(message, of_logits(wrong)) for message, wrong in suspects]

    agree(own, truth, draw((), ()), what="the array of posed vertices", grad=("V", "W", "A"), tol=1e-9, suspects=suspects)
    batches = [draw((), (2,)), draw((), (2, 3)), draw((5,), (5,)), draw((5,), ()), draw((2, 1), (3,), bones=6), draw((3,), (2, 1), bones=2)]
    agree(own, truth, batches, what="the batch of posed vertices", grad=("V", "W", "A"), tol=1e-9, suspects=suspects)
    agree(own, truth, draw((), (2,), torch.float32), what="the array of posed vertices in single precision", grad=("V", "W", "A"), tol=1e-4)


def _blended(W, real, dual, sign=True, sign_dual=True, one_length=True, divide=True, first=False):
    """Vertex by vertex, bone by bone, one pose."""
    out = []
    for w in W:
        top = real[0 if first else max(range(len(w)), key=lambda j: w[j].item())]
        r, d = torch.zeros_like(real[0]), torch.zeros_like(dual[0])
        for j in range(len(w)):
            s = -1.0 if sign and (real[j] * top).sum() < 0 else 1.0
            r, d = r + s * w[j] * real[j], d + (s if sign_dual else 1.0) * w[j] * dual[j]
        size = r.square().sum().sqrt() if divide else 1.0
        out.append(torch.stack([r / size, d / (size if one_length else d.square().sum().sqrt())]))
    return tuple(torch.stack(out).unbind(1))


def blend_dual_quaternions(answer):
    def reference(W, real, dual, **how):
        return _stacked(lambda r, d: _blended(W, r, d, **how), real.shape[:-2], (real, 2), (dual, 2))

    suspects = [
        ("the signs are missing: q and −q are the same rotation, and opposite ones cancel in the sum.", lambda *a: reference(*a, sign=False, sign_dual=False)),
        ("the dual parts keep their signs while the real parts change theirs: a sign belongs to a bone.", lambda *a: reference(*a, sign_dual=False)),
        ("the dual part is divided by its own length: one length serves both.", lambda *a: reference(*a, one_length=False)),
        ("the sums are not divided by anything: the real part should have length 1.", lambda *a: reference(*a, divide=False)),
        ("the signs follow the first bone: they should follow each vertex's strongest one.", lambda *a: reference(*a, first=True)),
    ]

    def draw(*shape, dtype=torch.float64):
        def case(g):
            return {
                "W": _weights(9, 4, g, dtype),
                "real": torch.randn(*shape, 4, 4, generator=g, dtype=dtype),
                "dual": torch.randn(*shape, 4, 4, generator=g, dtype=dtype),
            }

        return case

    unit = lambda fn: (
        lambda W, real, dual: fn(W, torch.nn.functional.normalize(real, dim=-1), dual)
    )  # only changes that keep the length 1 count in the gradient

    @unit
    def work(W, real, dual):
        out = answer(W, real, dual)
        right(isinstance(out, (tuple, list)) and len(out) == 2, "return two tensors: the real part and the dual part.")
        return tuple(out)

    suspects = [(message, unit(wrong)) for message, wrong in suspects]
    cases = [draw(), draw(3), draw(2, 3)]
    agree(work, unit(reference), cases, what="(real, dual)", grad=("W", "real", "dual"), tol=1e-9, suspects=suspects)
    agree(work, unit(reference), draw(3, dtype=torch.float32), what="(real, dual) in single precision", grad=("W", "real", "dual"), tol=1e-4)
    half_turn = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, -1.0, 0]])
    W, dual = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]), torch.arange(12.0).view(3, 4)
    for got, want, part in zip(work(W, half_turn, dual), reference(W, half_turn, dual), ("real", "dual")):
        same(got, want, f"the {part} part where the inner products are exactly 0, which is not negative,")


# Correctives


def _least_squares(V, W, A, f, target, ridge=1e-3, apart=True, squash=True):
    """Vertex by vertex: an ordinary least-squares problem with √ridge · I below X and zeros below y, by orthogonal triangles instead of normal equations."""
    K, out = f.shape[-1], []
    for n in range(len(V)):
        rows, wanted = [], []
        for t in range(len(f)):
            M = sum(W[n, j] * A[t, j, :, :3] for j in range(W.shape[1]))
            skinned = sum(W[n, j] * (A[t, j, :, :3] @ V[n] + A[t, j, :, 3]) for j in range(W.shape[1]))
            rows.append(torch.cat([(M if squash else torch.eye(3).to(M))[:, c : c + 1] * f[t] for c in range(3)], 1))
            wanted.append(target[t, n] - (skinned if apart else V[n]))
        X = torch.cat([*rows, math.sqrt(ridge) * torch.eye(3 * K, dtype=V.dtype)])
        y = torch.cat([*wanted, torch.zeros(3 * K, dtype=V.dtype)])
        Q, upper = torch.linalg.qr(X)
        out.append(torch.linalg.solve_triangular(upper, (Q.T @ y)[:, None], upper=True).reshape(3, K))
    return torch.stack(out)


def fit_correctives(answer):
    suspects = [
        ("the target is compared with the rest vertices: the correctives make up for what LBS misses.", lambda *a: _least_squares(*a, apart=False)),
        (
            "the offsets are fitted as if they were added after skinning: they are added before it, and the blended rotation M turns and squashes them.",
            lambda *a: _least_squares(*a, squash=False),
        ),
        ("the ridge is squared.", lambda *a: _least_squares(*a[:5], (a[5] if len(a) > 5 else 1e-3) ** 2)),
        ("the ridge grows with the number of examples.", lambda *a: _least_squares(*a[:5], (a[5] if len(a) > 5 else 1e-3) * len(a[3]))),
    ]

    def draw(T, N, J, K, *ridge, dtype=torch.float64):
        def case(g):
            V, f = torch.randn(N, 3, generator=g, dtype=dtype), torch.randn(T, K, generator=g, dtype=dtype)
            W, A = _weights(N, J, g, dtype), _transforms((T, J), g, dtype)
            target = torch.randn(T, N, 3, generator=g, dtype=dtype)
            return dict(zip(("V", "W", "A", "f", "target", "ridge"), (V, W, A, f, target, *ridge)))

        return case

    inputs = ("V", "W", "A", "f", "target")
    cases = [draw(8, 4, 3, 2, 0.5), draw(5, 2, 4, 3, 2.0), draw(1, 3, 2, 2, 0.7), draw(9, 1, 2, 1, 0.3)]
    agree(answer, _least_squares, cases, what="C", grad=inputs, tol=1e-7, suspects=suspects)
    agree(answer, _least_squares, draw(12, 3, 2, 2), what="C with the ridge that is given by default", grad=inputs, tol=1e-6, suspects=suspects)
    agree(answer, _least_squares, draw(8, 4, 3, 2, 0.5, dtype=torch.float32), what="C in single precision", tol=1e-3)
