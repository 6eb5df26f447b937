"""Lesson 4.1 against roma (rotations), body-models (skinning with correctives) and closed forms."""

import math

import numpy as np
import pytest
import roma
import torch
from body_models.smpl.torch import SMPL

from course_utils.lessons import linear_blend_skinning as ours

CHAIN = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(got, want, tol):
    torch.testing.assert_close(got, want, atol=tol, rtol=tol)


# Rotations


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_rotations_equal_roma(dtype, tol):
    omega = randn(50, 4, 3, seed=1, dtype=dtype) * torch.tensor([0.1, 1.0, 2.0, 4.0], dtype=dtype)[:, None]
    want = roma.rotvec_to_rotmat(omega)
    close(ours.rodrigues(omega), want, tol)
    xyzw = roma.rotvec_to_unitquat(omega)
    q = ours.quaternion(omega)
    close(q[..., [1, 2, 3, 0]] * torch.sign((q[..., [1, 2, 3, 0]] * xyzw).sum(-1, keepdim=True)), xyzw, tol)
    close(ours.quaternion_to_matrix(2.5 * q), want, tol)
    d = randn(50, 6, seed=2, dtype=dtype)
    close(ours.rot6d(d), roma.special_gramschmidt(torch.stack([d[:, :3], d[:, 3:]], -1)), tol)
    close(ours.rot6d(ours.matrix_to_6d(want)), want, tol)


def test_quaternion_algebra_equals_roma():
    p, q = (torch.nn.functional.normalize(randn(40, 4, seed=s), dim=-1) for s in (30, 31))
    scalar_first = lambda x: x[..., [3, 0, 1, 2]]  # noqa: E731
    close(ours.quaternion_product(scalar_first(p), scalar_first(q)), scalar_first(roma.quat_product(p, q)), 1e-10)
    x = randn(40, 3, seed=3)
    close(ours.rotate_by_quaternion(scalar_first(p), x), roma.quat_action(p, x), 1e-10)


def test_matrix_to_quaternion_everywhere():
    halfturns = math.pi * torch.cat([torch.eye(3), -torch.eye(3), torch.nn.functional.normalize(randn(50, 3, seed=4).float(), dim=-1)]).double()
    for omega in (randn(200, 3, seed=5) * 2, halfturns, halfturns * (1 - 1e-7), torch.zeros(1, 3).double()):
        R = roma.rotvec_to_rotmat(omega)
        q = ours.matrix_to_quaternion(R)
        close(q.norm(dim=-1), torch.ones(len(q)).double(), 1e-12)
        close(ours.quaternion_to_matrix(q), R, 1e-10)


def test_rest_pose_has_exact_values_and_gradients():
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    for f in (ours.rodrigues, ours.quaternion):
        assert torch.isfinite(torch.autograd.functional.jacobian(f, zero)).all()
    close(ours.rodrigues(zero.detach()), torch.eye(3).double().expand(2, 3, 3), 0)
    omega = randn(4, 3, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(ours.rodrigues, omega) and torch.autograd.gradcheck(ours.quaternion, omega)
    assert torch.autograd.gradcheck(ours.rot6d, randn(4, 6, seed=7).requires_grad_())


# Kinematics and skinning


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A file of SMPL's format with every array random: 6,890 vertices, 24 joints, 10 shapes, 207 pose directions."""
    rng = np.random.default_rng(0)
    N = 6890
    weights = rng.random((N, 24)) * (rng.random((N, 24)) < 0.15) + 1e-3
    regressor = rng.random((24, N)) * (rng.random((24, N)) < 0.01) + 1e-5
    arrays = {
        "v_template": rng.normal(0, 0.4, (N, 3)),
        "f": rng.integers(0, N, (13776, 3)),
        "weights": weights / weights.sum(1, keepdims=True),
        "shapedirs": rng.normal(0, 0.02, (N, 3, 10)),
        "posedirs": rng.normal(0, 0.01, (N, 3, 207)),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "kintree_table": np.array([CHAIN, range(24)]),
    }
    one_vertex = np.eye(N)[rng.choice(N, 24, replace=False)]  # a joint on a vertex: no rounding when that package regresses in float32
    made = {}
    for dtype, rows in ((torch.float32, arrays["J_regressor"]), (torch.float64, one_vertex)):
        arrays["J_regressor"] = rows
        file = tmp_path_factory.mktemp("smpl") / "made-up.npz"
        np.savez(file, **arrays)
        made[dtype] = SMPL(model_path=file), {k: torch.tensor(v) for k, v in arrays.items()}
    return made


def our_smpl(a, theta, beta):
    """SMPL's whole forward pass out of the lesson's functions."""
    V = a["v_template"] + torch.einsum("nck,bk->bnc", a["shapedirs"], beta)
    J = a["J_regressor"] @ V
    R = ours.rodrigues(theta)
    V = V + ours.pose_offsets(a["posedirs"], ours.pose_features(R[:, 1:]))
    return ours.lbs(V, a["weights"], ours.skinning_transforms(R, J, CHAIN)), ours.forward_kinematics(R, J, CHAIN)


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_skinning_with_correctives_equals_body_models(made_up, dtype, tol):
    model, arrays = made_up[dtype]
    # the reader of that package keeps float32 numbers: round ours in the same way, then compute in either precision
    arrays = {k: v.float().to(dtype) if v.is_floating_point() else v for k, v in arrays.items()}
    reference = model.to(dtype)
    theta, beta = 0.7 * randn(3, 24, 3, seed=8, dtype=dtype), randn(3, 10, seed=9, dtype=dtype)
    want = reference.forward_vertices(theta[:, 1:], pelvis_rotation=theta[:, 0], shape=beta)
    got, (G, p) = our_smpl(arrays, theta, beta)
    close(got, want.to(dtype), tol)
    skeleton = reference.forward_skeleton(theta[:, 1:], pelvis_rotation=theta[:, 0], shape=beta)
    close(G, skeleton[..., :3, :3].to(dtype), tol)
    close(p, skeleton[..., :3, 3].to(dtype), tol)


def test_batch_dimensions_and_gradients():
    R, J, V = ours.rodrigues(randn(2, 3, 24, 3, seed=10)), randn(24, 3, seed=11), randn(30, 3, seed=12)
    W = torch.softmax(randn(30, 24, seed=13), 1)
    for skin in (ours.lbs, ours.dqs):
        batched = skin(V, W, ours.skinning_transforms(R, J, CHAIN))
        assert batched.shape == (2, 3, 30, 3)
        close(batched[1, 2], skin(V, W, ours.skinning_transforms(R[1, 2], J, CHAIN)), 1e-12)
        own = skin(V.expand(2, 3, 30, 3), W, ours.skinning_transforms(R, J.expand(2, 3, 24, 3), CHAIN))
        close(own, batched, 1e-12)
    theta = (0.3 * randn(1, 4, 3, seed=14)).requires_grad_()
    small = lambda skin: lambda t: skin(V[:5], torch.softmax(W[:5, :4], 1), ours.skinning_transforms(ours.rodrigues(t), J[:4], CHAIN[:4]))  # noqa: E731
    assert torch.autograd.gradcheck(small(ours.lbs), theta) and torch.autograd.gradcheck(small(ours.dqs), theta)


def test_one_pose_of_many_skeletons_and_a_single_joint():
    R, J = ours.rodrigues(randn(24, 3, seed=32)), randn(5, 24, 3, seed=33)
    G, p = ours.forward_kinematics(R, J, CHAIN)
    assert G.shape == (5, 24, 3, 3) and p.shape == (5, 24, 3)
    for k in range(5):
        one_G, one_p = ours.forward_kinematics(R, J[k], CHAIN)
        close(G[k], one_G, 1e-12)
        close(p[k], one_p, 1e-12)
    V, W = randn(30, 3, seed=34), torch.softmax(randn(30, 24, seed=35), 1)
    assert ours.lbs(V, W, ours.skinning_transforms(R, J, CHAIN)).shape == (5, 30, 3)
    G, p = ours.forward_kinematics(R[:1], J[0, :1], [-1])
    close(G, R[:1], 0)
    close(p, J[0, :1], 0)


def test_dual_quaternions_are_rigid_and_blind_to_signs():
    A = torch.cat([ours.rodrigues(randn(5, 3, seed=15)), randn(5, 3, 1, seed=16)], -1)
    V, W = randn(40, 3, seed=17), torch.softmax(2 * randn(40, 5, seed=18), 1)
    one_bone = torch.nn.functional.one_hot(torch.arange(40) % 5, 5).double()
    close(ours.dqs(V, one_bone, A), ours.lbs(V, one_bone, A), 1e-10)
    real, dual = ours.dual_quaternions(A)
    flips = torch.tensor([1, -1, -1, 1, -1]).double()[:, None]
    r, d = ours.blend_dual_quaternions(W, real, dual)
    r2, d2 = ours.blend_dual_quaternions(W, flips * real, flips * dual)
    same = torch.sign((r * r2).sum(-1, keepdim=True))
    close(same * r2, r, 1e-10)
    close(same * d2, d, 1e-10)
    close((r * d).sum(-1), torch.zeros(40).double(), 0.5)  # not exactly zero after blending; skinning uses its rigid part
    shift = randn(3, seed=19)
    moved = torch.cat([A[..., :3], A[..., 3:] + shift[:, None]], -1)
    close(ours.dqs(V, W, moved), ours.dqs(V, W, A) + shift, 1e-9)


# Volume


def test_volume_of_known_solids():
    V = torch.tensor([[x, y, z] for x in (0, 2) for y in (0, 3) for z in (0, 5)], dtype=torch.float64)
    F = torch.tensor([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])
    close(ours.mesh_volume(V, F), torch.tensor(30.0).double(), 1e-12)
    R, shift = ours.rodrigues(randn(4, 3, seed=20)), randn(4, 1, 3, seed=21)
    close(ours.mesh_volume(V @ R.transpose(-1, -2) + shift, F), torch.full((4,), 30.0).double(), 1e-10)
    close(ours.mesh_volume(V, F.flip(1)), torch.tensor(-30.0).double(), 1e-12)


@pytest.mark.parametrize("sides, rings", [(6, 5), (48, 61)])
def test_the_cylinder_is_closed_and_has_the_prism_volume(sides, rings):
    V, F, W, J = ours.cylinder(rings, sides, radius=0.05, length=0.4)
    edges = [tuple(e) for f in F.tolist() for e in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))]
    directed = set(edges)
    assert len(directed) == len(edges) and all((b, a) in directed for a, b in edges)
    close(ours.mesh_volume(V, F), torch.tensor(0.5 * sides * math.sin(2 * math.pi / sides) * 0.05**2 * 0.4).double(), 1e-6)
    close(W.sum(1), torch.ones(len(V)).double(), 1e-12)


def twisted(skin, degrees, axis=0):
    V, F, W, J = ours.cylinder(201, 96)
    theta = torch.zeros(2, 3).double()
    theta[1, axis] = math.radians(degrees)
    X = skin(V, W, ours.skinning_transforms(ours.rodrigues(theta), J, [-1, 0]))
    return (1 - ours.mesh_volume(X, F) / ours.mesh_volume(V, F)).item()


@pytest.mark.parametrize("degrees", [0, 30, 90, 150, 180])
def test_volume_lost_in_twist_and_bend_has_a_closed_form(degrees):
    lost = (1 - math.cos(math.radians(degrees))) / 3
    assert twisted(ours.lbs, degrees) == pytest.approx(lost, abs=2e-4)
    assert twisted(ours.lbs, degrees, axis=2) == pytest.approx(lost / 2, abs=2e-4)
    assert twisted(ours.dqs, degrees) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("shift", [-0.02, 0.0, 0.01])
def test_a_joint_off_the_axis_gains_what_pappus_says(shift):
    """Bent by 90° about a joint that lies off the limb's axis, the slices of DQS sweep area · distance · angle more or less."""
    V, faces, W, J = ours.cylinder(201, 96)
    theta = torch.zeros(2, 3).double()
    theta[1, 2] = math.pi / 2
    J = J + torch.tensor([0.0, shift, 0.0]).double()
    X = ours.dqs(V, W, ours.skinning_transforms(ours.rodrigues(theta), J, [-1, 0]))
    want = math.pi * 0.05**2 * shift * math.pi / 2
    assert (ours.mesh_volume(X, faces) - ours.mesh_volume(V, faces)).item() == pytest.approx(want, abs=2e-6)


# Correctives


def example_poses(T, N, J, K, seed):
    A = torch.cat([ours.rodrigues(randn(T, J, 3, seed=seed)), randn(T, J, 3, 1, seed=seed + 1)], -1)
    return randn(N, 3, seed=seed + 2), torch.softmax(randn(N, J, seed=seed + 3), 1), A, randn(T, K, seed=seed + 4)


def test_fit_recovers_known_correctives():
    V, W, A, f = example_poses(40, 7, 4, 9, seed=22)
    C = randn(7, 3, 9, seed=27)
    target = ours.lbs(V + ours.pose_offsets(C, f), W, A)
    close(ours.fit_correctives(V, W, A, f, target, ridge=1e-12), C, 1e-8)
    # against numpy's least squares, vertex by vertex, with noise
    noisy = target + 0.1 * randn(*target.shape, seed=28)
    got = ours.fit_correctives(V, W, A, f, noisy, ridge=1e-12)
    M = torch.einsum("nj,tjab->tnab", W, A[..., :3])
    for n in range(7):
        X = torch.einsum("tab,tk->tabk", M[:, n], f).reshape(-1, 27).numpy()
        want = np.linalg.lstsq(X, (noisy - ours.lbs(V, W, A))[:, n].reshape(-1).numpy(), rcond=None)[0].reshape(3, 9)
        np.testing.assert_allclose(got[n].numpy(), want, atol=1e-7)


@pytest.mark.parametrize("T, N, K", [(0, 3, 2), (1, 4, 9), (5, 0, 2)])
def test_fit_at_the_ends_of_its_range(T, N, K):
    """No example: no correction. One example: it is met as well as the ridge allows. No vertex: nothing."""
    V, W, A, f = example_poses(T, N, 3, K, seed=40)
    target = ours.lbs(V, W, A) + 0.1
    C = ours.fit_correctives(V, W, A, f, target, ridge=1e-9)
    assert C.shape == (N, 3, K) and torch.isfinite(C).all()
    assert T > 0 or not C.any()
    if T == 1:
        close(ours.lbs(V + ours.pose_offsets(C, f), W, A), target, 1e-6)


def test_features_are_silent_at_rest():
    R = ours.rodrigues(torch.zeros(2, 5, 3))
    assert ours.pose_features(R).shape == (2, 45) and ours.pose_features(R).abs().max() == 0
    assert ours.pose_offsets(torch.ones(8, 3, 45), ours.pose_features(R)).abs().max() == 0
