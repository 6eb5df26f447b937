"""The pack `motion`: clips, ranges, splits, and a body that stands on the floor when driven by it."""

import numpy as np
import pytest

from course_utils import data
from course_utils.errors import CourseError
from course_utils.packs.motion import clips


def test_clips_and_split():
    train, test = clips("train"), clips("test")
    assert len(clips()) >= 3 and train and test and not set(train) & set(test) and set(train) | set(test) == set(clips())
    assert len({data.motion(c).source for c in clips()}) == len(clips()), "no recording serves twice"
    assert data.path("motion/motion.npz").stat().st_size < 2e6


@pytest.mark.parametrize("name", clips())
def test_ranges(name):
    m, joints = data.motion(name), data.bodies().joints
    assert m.name == name and m.theta.shape[1:] == (len(joints), 3) and m.trans.shape == (len(m.theta), 3) and len(m.theta) > 300
    assert m.theta.dtype == m.trans.dtype == np.float32 and np.isfinite(m.theta).all() and np.isfinite(m.trans).all()
    assert np.linalg.norm(m.theta, axis=-1).max() <= np.pi + 1e-3 and 25 < m.fps < 35
    assert np.abs(m.trans).max() < 6 and m.trans[0, [0, 2]] == pytest.approx([0, 0], abs=0.05), "starts at the origin"
    leg = np.linalg.norm(m.offsets[[joints.index("LeftLeg"), joints.index("LeftFoot")]], axis=1).sum()
    assert 0.7 < leg < 1.0, "the actor's leg in metres"


def rotations(theta):
    angle = np.linalg.norm(theta, axis=-1)[..., None, None] + 1e-12
    x, y, z = np.moveaxis(theta / angle[..., 0], -1, 0)
    o = np.zeros_like(x)
    K = np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*theta.shape[:-1], 3, 3)
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def joints_of(m, body):
    R = rotations(m.theta)
    G, p = R.copy(), np.zeros((*R.shape[:2], 3))
    for j, q in enumerate(body.parents):
        p[:, j] = body.J[0] + m.trans if q < 0 else p[:, q] + np.einsum("tab,b->ta", G[:, q], body.J[j] - body.J[q])
        if q >= 0:
            G[:, j] = G[:, q] @ R[:, j]
    return G, p


@pytest.mark.parametrize("name", clips())
def test_the_body_moves_like_a_person(name):
    m, body = data.motion(name), data.bodies()
    G, p = joints_of(m, body)
    feet = p[:, [body.joint("LeftToeBase"), body.joint("RightToeBase")], 1].min(1)
    assert np.quantile(feet, 0.05) > -0.1 and np.quantile(feet, 0.3) < 0.4, "somebody who stands on the floor now and then"
    jumps = np.linalg.norm(np.diff(p, axis=0), axis=-1).max()
    assert jumps < 0.6, "no teleporting between frames"
    knee = m.theta[:, body.joint("LeftLeg")]
    assert np.quantile(knee[:, 0], 0.9) > 0.3, "knees bend backwards (about +x)"


def test_first_frames_stand_upright():
    body, m = data.bodies(), data.motion("boxing")
    _, p = joints_of(m, body)
    assert (p[:20, body.joint("Head"), 1] > 1.35).all()
    hands = p[:20, [body.joint("LeftHand"), body.joint("RightHand")], 1]
    assert (hands < 1.25).all(), "arms hang: the rest poses were reconciled"


def test_unknown_clip():
    with pytest.raises(CourseError, match="no motion clip 'waltz'"):
        data.motion("waltz")
