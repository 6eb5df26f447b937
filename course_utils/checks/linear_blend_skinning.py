"""Checks of lesson 4.1: brute force and closed forms, independent of the lesson's own code."""

import math

import torch

from ..exercises import Wrong, needs_grad, right, same

HINTS = {
    "rodrigues": [
        "Three terms: I, the cross matrix K = [ω]×, and K @ K. Their factors depend on the angle θ = |ω| alone.",
        "Give the angle two extra axes, `torch.linalg.vector_norm(omega, dim=-1)[..., None, None]`, so that it multiplies matrices. Never divide by it.",
        "a = torch.sinc(angle / π) and b = 0.5 · torch.sinc(angle / 2π)²; R = I + a K + b K @ K, with I in omega's dtype and device.",
    ],
    "forward_kinematics": [
        "Walk through the joints in order and keep two lists, G and p. The root: G = R_0, p = J_0.",
        "A child's position uses its *parent's* world rotation: p_j = p_parent + G_parent (J_j − J_parent). Its own rotation only enters G_j = G_parent R_j.",
        "`G[parent] @ R[..., j, :, :]` and `(G[parent] @ bone[..., None])[..., 0]`; at the end `torch.stack(G, -3), torch.stack(p, -2)`. For a J without batch dimensions: `J.expand(*R.shape[:-3], *J.shape[-2:])`.",
    ],
    "lbs": [
        "Blend the 3×4 matrices with the weights first: one matrix for each vertex. Then apply it to the vertex.",
        "`W @ A.flatten(-2)` is (..., N, 12): twelve numbers for each vertex. Reshape to (..., N, 3, 4).",
        "`(M[..., :3] * V[..., None, :]).sum(-1) + M[..., 3]`: the left 3×3 times the vertex, plus the last column.",
    ],
    "blend_dual_quaternions": [
        "Only the real parts decide the signs, but a sign flips the real *and* the dual part of its bone.",
        "Reference: `real[..., W.argmax(1), :]` (..., N, 4). Inner products with all bones: `reference @ real.transpose(-1, -2)` (..., N, J). Where they are negative, use −W instead of W.",
        "r, d = w @ real, w @ dual; size = length of r; return r / size, d / size: one length for both.",
    ],
}


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _cross(w):
    return torch.tensor([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]], dtype=w.dtype)


def _rotations(*shape, seed=0):
    """Random rotation matrices by the matrix exponential."""
    omega = 1.2 * torch.randn(math.prod(shape), 3, generator=_generator(seed), dtype=torch.float64)
    return torch.stack([torch.linalg.matrix_exp(_cross(w)) for w in omega]).reshape(*shape, 3, 3)


def _alike(got, want) -> bool:
    """A tensor of the wanted shape and values, whatever its dtype."""
    return isinstance(got, torch.Tensor) and got.shape == want.shape and torch.allclose(got.detach().double(), want.double())


def rodrigues(answer):
    omega = torch.randn(4, 5, 3, generator=_generator(0), dtype=torch.float64)
    want = torch.stack([torch.linalg.matrix_exp(_cross(w)) for w in omega.reshape(-1, 3)]).reshape(4, 5, 3, 3)
    got = answer(omega)
    if _alike(got, want.transpose(-1, -2)):
        raise Wrong("this is the inverse rotation (the transpose): check the signs in the cross matrix, or whether ω points the right way.")
    same(got, want, "R", "Compare with I + sin θ/θ K + (1 − cos θ)/θ² K K, where K is made of ω itself, not of the unit axis.", tol=1e-9)
    tiny = torch.zeros(2, 3, dtype=torch.float64)
    tiny[1, 0] = 1e-9
    R = answer(tiny)
    right(bool(torch.isfinite(R).all()), "the result is nan at θ = 0, the rest pose: do not divide by the angle, use torch.sinc.")
    same(R, torch.eye(3, dtype=torch.float64).expand(2, 3, 3) + torch.stack([_cross(w) for w in tiny]), "R at the rest pose", tol=1e-12)
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(answer(zero)[2, 1], zero)
    right(bool(torch.isfinite(grad).all()), "the gradient is nan at θ = 0, where every optimisation starts: use torch.sinc instead of a division.")
    same(grad, torch.tensor([1.0, 0, 0], dtype=torch.float64), "the gradient at θ = 0", "Near zero R is I + [ω]×.", tol=1e-6)
    same(answer(omega.float()[0]), want[0].float(), "R in float32", tol=1e-5)


_PARENTS = [-1, 0, 1, 1, 0, 4]


def _chain(R, J):
    """World transforms by multiplying 4×4 matrices from the root to each joint, one pose."""
    G, p = [], []
    for j in range(len(_PARENTS)):
        path, T = [j], torch.eye(4, dtype=R.dtype)
        while _PARENTS[path[0]] >= 0:
            path.insert(0, _PARENTS[path[0]])
        at = torch.zeros(3, dtype=R.dtype)
        for k in path:
            step = torch.eye(4, dtype=R.dtype)
            step[:3, :3], step[:3, 3] = R[k], J[k] - at
            T, at = T @ step, J[k]
        G.append(T[:3, :3])
        p.append(T[:3, 3])
    return torch.stack(G), torch.stack(p)


def forward_kinematics(answer):
    R = _rotations(3, 6, seed=1)
    J = torch.randn(6, 3, generator=_generator(2), dtype=torch.float64)
    want_G, want_p = (torch.stack(x) for x in zip(*(_chain(r, J) for r in R)))
    got = answer(R[0], J, _PARENTS)
    right(isinstance(got, tuple) and len(got) == 2, "return two tensors: the world rotations G and the joint positions p.")
    G, p = got
    same(
        p[0] if isinstance(p, torch.Tensor) and p.ndim == 2 else p,
        J[0],
        "the root's position",
        "The root stays at J_0; it does not move to the origin.",
        tol=1e-9,
    )
    same(G, want_G[0], "G", "World rotations are G_parent @ R_j, in this order.", tol=1e-9)
    same(p, want_p[0], "p", "A bone is turned by its *parent's* world rotation, and its length is J_j − J_parent.", tol=1e-9)
    try:
        G, p = answer(R, J, _PARENTS)
    except (RuntimeError, IndexError) as e:
        raise Wrong(f"one pose works, but a batch of poses (3, 6, 3, 3) with joints (6, 3) stops with: {str(e).splitlines()[0]}") from e
    same(G, want_G, "G of a batch", tol=1e-9)
    same(p, want_p, "p of a batch", tol=1e-9)
    batch_J = torch.stack([J, 2 * J, -J])
    want = torch.stack([_chain(r, j)[1] for r, j in zip(R, batch_J)])
    same(answer(R, batch_J, _PARENTS)[1], want, "p when every body has its own joints (3, 6, 3)", "Index the joints as J[..., j, :].", tol=1e-9)
    leaf = R.clone().requires_grad_()
    needs_grad(answer(leaf, J, _PARENTS)[1], {"R": leaf}, "p")


def _skin(V, W, A):
    """Point by point, bone by bone."""
    out = torch.zeros(*A.shape[:-3], *W.shape[:1], 3, dtype=V.dtype)
    for n in range(len(W)):
        for j in range(W.shape[1]):
            point = V[..., n, :]
            out[..., n, :] += W[n, j] * ((A[..., j, :, :3] * point[..., None, :]).sum(-1) + A[..., j, :, 3])
    return out


def _skinning_problem(seed):
    g = _generator(seed)
    W = torch.rand(7, 4, generator=g, dtype=torch.float64) ** 2
    V = torch.randn(7, 3, generator=g, dtype=torch.float64)
    A = torch.cat([_rotations(2, 4, seed=seed), torch.randn(2, 4, 3, 1, generator=g, dtype=torch.float64)], -1)
    return V, W / W.sum(1, keepdim=True), A


def lbs(answer):
    V, W, A = _skinning_problem(3)
    want = _skin(V, W, A)
    got = answer(V, W, A[0])
    no_shift = _skin(V, W, torch.cat([A[0, ..., :3], 0 * A[0, ..., 3:]], -1))
    right(not _alike(got, no_shift), "the translations are missing: add the last column of the blended matrix.")
    turned = _skin(V, W, torch.cat([A[0, ..., :3].transpose(-1, -2), A[0, ..., 3:]], -1))
    right(not _alike(got, turned), "the rotations are applied transposed: row a of the matrix times the vertex gives coordinate a.")
    strongest = _skin(V, torch.nn.functional.one_hot(W.argmax(1), 4).double(), A[0])
    right(not _alike(got, strongest), "only the strongest bone is used: every bone votes with its weight.")
    same(got, want[0], "the posed vertices", "For each vertex: Σ_j w_nj (A_j[:, :3] x + A_j[:, 3]).", tol=1e-9)
    same(answer(V, W, A), want, "the posed vertices of a batch of poses", "A is (..., J, 3, 4): keep the leading dimensions.", tol=1e-9)
    batch = torch.stack([V, V.flip(0)])
    same(answer(batch, W, A), _skin(batch, W, A), "the posed vertices when every pose has its own rest vertices", tol=1e-9)
    leaf = A.clone().requires_grad_()
    needs_grad(answer(V, W, leaf), {"A": leaf}, "the posed vertices")


def blend_dual_quaternions(answer):
    g = _generator(5)
    W = torch.rand(9, 4, generator=g, dtype=torch.float64) ** 2
    W = W / W.sum(1, keepdim=True)
    real, dual = torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64)
    real = real / real.norm(dim=-1, keepdim=True)
    want_r, want_d, plain = torch.zeros(3, 9, 4).double(), torch.zeros(3, 9, 4).double(), torch.zeros(3, 9, 4).double()
    for b in range(3):
        for n in range(9):
            top = max(range(4), key=lambda j: W[n, j].item())
            r, d = torch.zeros(4).double(), torch.zeros(4).double()
            for j in range(4):
                s = -1.0 if (real[b, j] * real[b, top]).sum() < 0 else 1.0
                r, d = r + s * W[n, j] * real[b, j], d + s * W[n, j] * dual[b, j]
                plain[b, n] += W[n, j] * real[b, j]
            want_r[b, n], want_d[b, n] = r / r.norm(), d / r.norm()
    got = answer(W, real, dual)
    right(isinstance(got, tuple) and len(got) == 2, "return two tensors: the real part and the dual part.")
    r, d = got
    right(
        not _alike(r, plain / plain.norm(dim=-1, keepdim=True)), "the signs are missing: q and −q are the same rotation, and opposite ones cancel in the sum."
    )
    if isinstance(r, torch.Tensor) and r.shape == want_r.shape:
        right(_alike(r.norm(dim=-1), torch.ones(3, 9)), "the real part must have length 1: divide by the length of the blended real part.")
    same(r, want_r, "the real part", "Signs follow the bone with the largest weight of *each vertex*.", tol=1e-9)
    alone = want_d / want_d.norm(dim=-1, keepdim=True)
    right(not _alike(d, alone), "the dual part is divided by its own length: both parts are divided by the length of the real part.")
    same(d, want_d, "the dual part", "Its bones carry the same signs as the real part, and it is divided by the length of the real part.", tol=1e-9)
    one = answer(W, real[0], dual[0])[0]
    same(one, want_r[0], "the real part of a single pose", tol=1e-9)
