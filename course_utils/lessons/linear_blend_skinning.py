"""Generated from notebooks/4_3d_human/01_linear_blend_skinning.ipynb by `python -m course_utils export`. Do not edit: change the notebook."""

import math

import torch
import torch.nn.functional as F


def cross_matrix(omega):
    """The matrix [ω]× (..., 3, 3) of vectors (..., 3): [ω]× x = ω × x."""
    x, y, z = omega.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def rodrigues(omega):
    """Rotation matrices (..., 3, 3) of axis–angle vectors (..., 3) in radians (Rodrigues 1840)."""
    angle = torch.linalg.vector_norm(omega, dim=-1)[..., None, None]  # (..., 1, 1)
    K = cross_matrix(omega)  # (..., 3, 3)
    a = torch.sinc(angle / math.pi)  # sin θ / θ
    b = 0.5 * torch.sinc(angle / (2 * math.pi)) ** 2  # (1 - cos θ) / θ²
    return torch.eye(3, dtype=omega.dtype, device=omega.device) + a * K + b * (K @ K)


def quaternion(omega):
    """Unit quaternions (..., 4), scalar first, of axis–angle vectors (..., 3)."""
    half = 0.5 * torch.linalg.vector_norm(omega, dim=-1, keepdim=True)
    return torch.cat([half.cos(), 0.5 * torch.sinc(half / math.pi) * omega], -1)


def quaternion_product(p, q):
    """Hamilton product p q (..., 4): the rotation q first, then p."""
    a, u, b, v = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    return torch.cat([a * b - (u * v).sum(-1, keepdim=True), a * v + b * u + torch.linalg.cross(u, v)], -1)


def quaternion_to_matrix(q):
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) of any length but zero."""
    q = q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    K = cross_matrix(q[..., 1:])
    return torch.eye(3, dtype=q.dtype, device=q.device) + 2 * q[..., :1, None] * K + 2 * K @ K


def matrix_to_quaternion(R):
    """Unit quaternions (..., 4), scalar first, of rotation matrices (..., 3, 3); the sign is arbitrary."""
    xx, yy, zz = R.diagonal(dim1=-2, dim2=-1).unbind(-1)
    a, b, c = R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]
    d, e, f = R[..., 1, 0] + R[..., 0, 1], R[..., 0, 2] + R[..., 2, 0], R[..., 2, 1] + R[..., 1, 2]
    rows = [
        [1 + xx + yy + zz, a, b, c],
        [a, 1 + xx - yy - zz, d, e],
        [b, d, 1 - xx + yy - zz, f],
        [c, e, f, 1 - xx - yy + zz],
    ]
    candidates = torch.stack([torch.stack(row, -1) for row in rows], -2)  # (..., 4, 4): 4wq, 4xq, 4yq, 4zq
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    q = candidates.gather(-2, best.expand(*best.shape[:-1], 4))[..., 0, :]
    return q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)


def rot6d(d):
    """Rotation matrices (..., 3, 3) of 6D vectors (..., 6): two columns, made orthonormal (Zhou et al. 2019, eq. 15)."""
    a1, a2 = d[..., :3], d[..., 3:]
    b1 = F.normalize(a1, dim=-1)
    b2 = F.normalize(a2 - (b1 * a2).sum(-1, keepdim=True) * b1, dim=-1)
    return torch.stack([b1, b2, torch.linalg.cross(b1, b2)], -1)  # as columns


def matrix_to_6d(R):
    """The first two columns (..., 6) of rotation matrices (..., 3, 3)."""
    return torch.cat([R[..., :, 0], R[..., :, 1]], -1)


def forward_kinematics(R, J, parents):
    """World rotations (..., J, 3, 3) and joint positions (..., J, 3).

    R (..., J, 3, 3) local rotations, J (..., J, 3) rest joints, parents: a list, -1 for the root, parents first.
    The root turns in place: p_0 = J_0. Batch axes of R and J broadcast.
    """
    batch = torch.broadcast_shapes(R.shape[:-3], J.shape[:-2])
    R, J = R.expand(*batch, *R.shape[-3:]), J.expand(*batch, *J.shape[-2:])
    G, p = [], []
    for j, parent in enumerate(parents):
        if parent < 0:
            G.append(R[..., j, :, :])
            p.append(J[..., j, :])
        else:
            bone = J[..., j, :] - J[..., parent, :]  # (..., 3)
            G.append(G[parent] @ R[..., j, :, :])
            p.append(p[parent] + (G[parent] @ bone[..., None])[..., 0])
    return torch.stack(G, -3), torch.stack(p, -2)


def skinning_transforms(R, J, parents):
    """A (..., J, 3, 4): where each bone carries a point of the rest pose, x ↦ A [x; 1]."""
    G, p = forward_kinematics(R, J, parents)
    t = p - (G @ J.expand(p.shape)[..., None])[..., 0]
    return torch.cat([G, t[..., None]], -1)


def lbs(V, W, A):
    """Linear blend skinning: posed vertices (..., N, 3) (Magnenat-Thalmann et al. 1988).

    V (..., N, 3) rest vertices, W (N, J) weights with rows that sum to 1, A (..., J, 3, 4) skinning transforms.
    """
    M = (W @ A.flatten(-2)).unflatten(-1, (3, 4))  # (..., N, 3, 4): one blended matrix a vertex
    return (M[..., :3] * V[..., None, :]).sum(-1) + M[..., 3]


def mesh_volume(V, faces):
    """Signed volume (...) of closed meshes, V (..., N, 3), faces (M, 3) with normals outwards."""
    a, b, c = (V[..., faces[:, k], :] for k in range(3))
    return (a * torch.linalg.cross(b, c)).sum((-1, -2)) / 6


def cylinder(rings=61, sides=48, radius=0.05, length=0.4):
    """A closed limb along x with two bones: V (N, 3), faces (M, 3), weights W (N, 2) linear in x, joints J (2, 3)."""
    x = torch.linspace(0, length, rings, dtype=torch.float64)
    a = torch.arange(sides, dtype=torch.float64) * (2 * math.pi / sides)
    x, a = torch.meshgrid(x, a, indexing="ij")
    ends = torch.tensor([[0.0, 0, 0], [length, 0, 0]], dtype=torch.float64)
    V = torch.cat([torch.stack([x, radius * a.cos(), radius * a.sin()], -1).reshape(-1, 3), ends])
    i = torch.arange((rings - 1) * sides)
    right, k = torch.where(i % sides == sides - 1, i + 1 - sides, i + 1), torch.arange(sides)
    last, n = (rings - 1) * sides, rings * sides
    walls = [torch.stack([i, right, right + sides], 1), torch.stack([i, right + sides, i + sides], 1)]
    caps = [
        torch.stack([torch.full_like(k, n), (k + 1) % sides, k], 1),
        torch.stack([torch.full_like(k, n + 1), last + k, last + (k + 1) % sides], 1),
    ]
    w = V[:, 0] / length
    return (
        V,
        torch.cat(walls + caps),
        torch.stack([1 - w, w], 1),
        torch.tensor([[0.0, 0, 0], [length / 2, 0, 0]], dtype=torch.float64),
    )


def dual_quaternions(A):
    """Real and dual parts, each (..., J, 4), of rigid transforms A (..., J, 3, 4)."""
    real = matrix_to_quaternion(A[..., :3])
    t = F.pad(A[..., 3], (1, 0))  # (0, t)
    return real, 0.5 * quaternion_product(t, real)


def blend_dual_quaternions(W, real, dual):
    """Blended unit dual quaternions: real and dual part, each (..., N, 4).

    W (N, J) weights, real and dual (..., J, 4). Signs follow each vertex's strongest bone (Kavan et al. 2008, section 4.1).
    """
    reference = real[..., W.argmax(1), :]  # (..., N, 4)
    agree = reference @ real.transpose(-1, -2)  # (..., N, J) inner products
    w = torch.where(agree < 0, -W, W)  # (..., N, J)
    r, d = w @ real, w @ dual  # (..., N, 4)
    size = torch.linalg.vector_norm(r, dim=-1, keepdim=True)
    return r / size, d / size


def rotate_by_quaternion(q, x):
    """Rotate points x (..., 3) by unit quaternions q (..., 4)."""
    u = 2 * torch.linalg.cross(q[..., 1:], x)
    return x + q[..., :1] * u + torch.linalg.cross(q[..., 1:], u)


def dqs(V, W, A):
    """Dual-quaternion skinning: posed vertices (..., N, 3); arguments as for lbs (Kavan et al. 2008)."""
    real, dual = blend_dual_quaternions(W, *dual_quaternions(A))
    conjugate = real * torch.tensor([1, -1, -1, -1], dtype=real.dtype, device=real.device)
    t = 2 * quaternion_product(dual, conjugate)[..., 1:]  # (..., N, 3)
    return rotate_by_quaternion(real, V.expand(t.shape)) + t


def pose_features(R):
    """vec(R - I) (..., 9 K) of the driving joints' local rotations R (..., K, 3, 3); zero at rest."""
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    return (R - eye).flatten(-3)


def pose_offsets(C, f):
    """Rest-pose offsets (..., N, 3) for correctives C (N, 3, K) and features f (..., K)."""
    return torch.einsum("nck,...k->...nc", C, f)


def fit_correctives(V, W, A, f, target, ridge=1e-3):
    """C (N, 3, K) minimising Σ_t |LBS_t(V + C f_t) - target_t|² + ridge |C|², for each vertex on its own.

    V (N, 3) rest vertices, W (N, J), A (T, J, 3, 4) transforms and f (T, K) features of T example poses, target (T, N, 3).
    """
    M = (W @ A.flatten(-2)).unflatten(-1, (3, 4))[..., :3]  # (T, N, 3, 3)
    residual = target - lbs(V, W, A)  # (T, N, 3)
    T, N, K = *residual.shape[:2], f.shape[-1]
    X = M[..., None] * f[:, None, None, None, :]  # (T, N, 3, 3, K)
    X = X.transpose(0, 1).reshape(N, 3 * T, 3 * K)
    y = residual.transpose(0, 1).reshape(N, 3 * T, 1)
    eye = torch.eye(3 * K, dtype=V.dtype, device=V.device)
    c = torch.linalg.solve(X.mT @ X + ridge * eye, X.mT @ y)  # (N, 3K, 1)
    return c.reshape(N, 3, K)
