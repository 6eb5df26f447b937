"""The pack `bodies`: counts, ranges, a closed surface, a proper tree, weights that sum to one."""

import numpy as np
import pytest

from course_utils import data


@pytest.fixture(scope="module")
def body():
    return data.bodies()


def volume(V, F):
    a, b, c = V[F].astype(float).transpose(1, 0, 2)
    return (a * np.cross(b, c)).sum() / 6


def test_counts_and_types(body):
    n, j, s = len(body.V), len(body.joints), len(body.shape_dirs)
    assert 3000 <= n <= 7000 and j == 31 and s == 48 and len(body.keypoint_names) == 23
    assert body.V.dtype == body.W.dtype == body.shape_dirs.dtype == np.float32 and body.F.dtype == np.int64
    assert body.W.shape == (n, j) and body.J.shape == body.tails.shape == (j, 3) and body.joint_dirs.shape == (s, j, 3)
    assert body.keypoints.shape == (23, n) and body.table.shape == (184, s)
    assert data.path("bodies/body.npz").stat().st_size < 4e6


def test_standing_upright_in_metres(body):
    assert abs(body.V[:, 1].min()) < 0.01 and 1.6 < body.V[:, 1].max() < 1.85
    assert body.J[body.joint("LeftArm"), 0] > 0 > body.J[body.joint("RightArm"), 0]
    assert body.tails[body.joint("LeftFoot"), 2] > body.J[body.joint("LeftFoot"), 2], "toes point to +z"


def test_the_surface_is_closed_and_faces_outwards(body):
    edges = np.concatenate([body.F[:, [0, 1]], body.F[:, [1, 2]], body.F[:, [2, 0]]])
    directed = {tuple(e) for e in edges.tolist()}
    assert len(directed) == len(edges), "no directed edge twice"
    assert all((b, a) in directed for a, b in directed), "every edge has its opposite: watertight and consistently wound"
    assert len(body.V) - len(edges) // 2 + len(body.F) == 2, "one sphere"
    assert len(np.unique(body.F)) == len(body.V)
    assert 0.045 < volume(body.V, body.F) < 0.085, "the volume of an adult, in cubic metres, and positive"


def test_weights_and_tree(body):
    assert body.W.min() >= 0 and np.allclose(body.W.sum(1), 1, atol=1e-6)
    assert ((body.W > 0).sum(1) <= 8).all() and (body.W > 0).any(0).all()
    assert body.parents[0] == -1 and (body.parents[1:] >= 0).all() and (body.parents < np.arange(31)).all()
    assert len(set(body.joints)) == 31 and body.joints[0] == "Hips"


def test_left_and_right_mirror(body):
    assert (body.mirror[body.mirror] == np.arange(len(body.V))).mean() > 0.99
    gap = np.linalg.norm(body.V[body.mirror] * [-1, 1, 1] - body.V, axis=1)
    assert np.quantile(gap, 0.98) < 1e-3 and gap.max() < 0.03


def test_shapes(body):
    height = lambda **k: np.ptp(body.shaped(body.beta(**k))[0][:, 1])  # noqa: E731
    heavy, light = (volume(body.shaped(body.beta(weight=w))[0], body.F) for w in (1.0, 0.0))
    assert height(gender=0.0) > height(gender=1.0) and height(height=0.55) > height(height=0.25) + 0.2 and heavy > 1.1 * light
    assert np.abs(body.beta()).max() < 1e-6
    V, J = body.shaped(np.zeros(3))
    assert np.array_equal(V, body.V) and np.array_equal(J, body.J)


def test_population(body):
    a, b = body.population(400, seed=0), body.population(400, seed=1)
    assert a.shape == (400, 48) and np.array_equal(a, body.population(400, seed=0)) and not np.array_equal(a, b)
    assert 0.7 < a.std(0)[:5].mean() < 1.3, "one unit is about one standard deviation"
    sizes = np.linalg.norm(body.shape_dirs, axis=(1, 2))
    assert (np.diff(sizes) <= 1e-3).all(), "strongest direction first"
    heights = [np.ptp(body.shaped(x)[0][:, 1]) for x in a[:60]]
    assert 1.3 < min(heights) and max(heights) < 2.1
    assert min(volume(body.shaped(x)[0], body.F) for x in a[:60]) > 0.02


def test_keypoints(body):
    assert np.allclose(body.keypoints.sum(1), 1, atol=1e-4)
    at = dict(zip(body.keypoint_names, body.keypoints @ body.V))
    assert at["nose"][1] > 1.4 and at["left_knee"][0] > 0 > at["right_knee"][0]
    assert np.linalg.norm(at["left_elbow"] - body.J[body.joint("LeftForeArm")]) < 0.06


def test_read_only_and_clear_errors(body):
    with pytest.raises(ValueError, match="read-only"):
        body.V[0] = 0
    with pytest.raises(ValueError, match="No joint 'Elbow'"):
        body.joint("Elbow")
