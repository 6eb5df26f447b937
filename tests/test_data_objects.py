"""The objects pack: counts, ranges, splits, and cameras that really took the pictures."""

import numpy as np
import pytest

from course_utils import data
from course_utils.errors import CourseError

NAMES = ("chicken", "childHut", "teddyBear", "fireExtinguisher")


@pytest.fixture(scope="module")
def meshes():
    return data.objects.meshes()


@pytest.mark.parametrize("name", NAMES)
def test_views_have_the_promised_counts_and_ranges(name):
    v = data.objects(name, size=64)
    assert len(v) == 110 and v.images.shape == (110, 64, 64, 3) and v.masks.shape == v.depth.shape == (110, 64, 64)
    assert {s: int((v.split == s).sum()) for s in ("train", "val", "test")} == {"train": 80, "val": 10, "test": 20}
    assert sum(len(v.of(s)) for s in ("train", "val", "test")) == len(v)
    for x in (v.images, v.masks):
        assert x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1
    assert ((v.depth == 0) == (v.masks == 0)).mean() > 0.999
    seen = v.depth[v.depth > 0]
    assert 1.9 < seen.min() and seen.max() < 4.1  # the unit ball, three radii away
    assert (v.images[v.masks == 0] == 1).all()  # white where there is nothing
    assert v.K[0, 0] / np.sqrt(3**2 - 1) < 32  # the unit ball, and so the object, fits into the picture


@pytest.mark.parametrize("name", NAMES)
def test_cameras_are_rigid_and_look_at_the_object(name):
    v = data.objects(name)
    np.testing.assert_allclose(v.R @ v.R.swapaxes(1, 2), np.broadcast_to(np.eye(3), v.R.shape), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(v.R), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(v.centres, axis=1), 3, atol=1e-4)
    np.testing.assert_allclose(v.t, np.tile([0, 0, 3.0], (110, 1)), atol=1e-4)  # the origin lies straight ahead
    assert (v.R[:, 1, 1] < 0).all()  # the camera's y points down
    train, test = v.of("train").centres, v.of("test").centres
    assert np.linalg.norm(train[:, None] - test[None], axis=-1).min() > 0.1  # no test view repeats a training view


def test_depth_and_cameras_agree_across_views():
    """A surface point seen in one view, lifted with its depth, must fall on the object in every other view, and never in front of what that view sees."""
    v = data.objects("chicken", size=128)
    rng = np.random.default_rng(0)
    i = 7
    rows, cols = np.nonzero(v.masks[i] == 1)
    pick = rng.choice(len(rows), 400, replace=False)
    rows, cols = rows[pick], cols[pick]
    z = v.depth[i, rows, cols]
    pixel = np.stack([cols + 0.5, rows + 0.5, np.ones_like(z)], 1) * z[:, None]
    world = (pixel @ np.linalg.inv(v.K).T - v.t[i]) @ v.R[i]
    for j in range(0, 110, 5):
        X = world @ v.R[j].T + v.t[j]
        p = X @ v.K.T
        c, r = (p[:, :2] / p[:, 2:]).T.astype(int)
        near = np.stack([v.masks[j, np.clip(r + a, 0, 127), np.clip(c + b, 0, 127)] for a in (-1, 0, 1) for b in (-1, 0, 1)]).max(0)
        assert (near > 0).mean() > 0.99
        assert (v.depth[j, r, c] < X[:, 2] + 0.08)[v.masks[j, r, c] == 1].mean() > 0.95


def test_mesh_projects_into_the_masks(meshes):
    """The small mesh of the same object, brought into the views' world, must fill the silhouette and nothing else."""
    v = data.objects("teddyBear", size=128)
    m = next(m for m in meshes if m.id == "teddyBear")
    centre = (m.vertices.min(0) + m.vertices.max(0)) / 2
    world = (m.vertices - centre) / v.radius
    assert np.linalg.norm(world, axis=1).max() == pytest.approx(1, abs=0.02)
    for j in range(0, 110, 9):
        p = (world @ v.R[j].T + v.t[j]) @ v.K.T
        c, r = (p[:, :2] / p[:, 2:]).T.astype(int)
        near = np.stack([v.masks[j, r + a, c + b] for a in (-1, 0, 1) for b in (-1, 0, 1)]).max(0)
        assert (near > 0).mean() > 0.98
        rows, cols = np.nonzero(v.masks[j])
        assert abs(r.min() - rows.min()) <= 2 and abs(c.max() - cols.max()) <= 2


def test_sizes_are_area_averages():
    big, small = data.objects("childHut", size=128), data.objects("childHut", size=32)
    np.testing.assert_allclose(big.images.reshape(110, 32, 4, 32, 4, 3).mean((2, 4)), small.images, atol=1e-5)
    np.testing.assert_allclose(big.K[:2], small.K[:2] * 4)


def test_meshes_are_whole(meshes):
    assert len(meshes) >= 150 and len({m.id for m in meshes}) == len(meshes)
    assert not {"winchesterSofa", "winchesterArmchair"} & {m.id for m in meshes}  # not CC0
    assert sum(m.name == "Chicken" for m in meshes) == 1
    for m in meshes:
        assert len(m.faces) <= 10_500 and m.faces.min() == 0 and m.faces.max() == len(m.vertices) - 1
        assert m.colours.shape == m.faces.shape and 0 <= m.colours.min() and m.colours.max() <= 1
        np.testing.assert_allclose(np.ptp(m.vertices, axis=0), m.size, rtol=0.06, atol=0.005)
        assert m.vertices[:, 1].min() > -0.01
    assert len({m.category for m in meshes}) >= 10


def test_mesh_splits_are_by_object_and_keep_look_alikes_together(meshes):
    parts = {s: {m.name for m in meshes if m.split == s} for s in ("train", "val", "test")}
    assert not (parts["train"] & parts["test"] or parts["train"] & parts["val"] or parts["val"] & parts["test"])
    n = {s: sum(m.split == s for m in meshes) for s in parts}
    assert n["train"] > 100 and n["val"] >= 10 and n["test"] >= 15
    assert len(data.objects.meshes(split="test")) == n["test"] and all(m.category == "Kitchen" for m in data.objects.meshes("Kitchen"))


def test_pack_is_small():
    assert sum(f.stat().st_size for f in (data.root() / "objects").iterdir()) < 12e6


@pytest.mark.parametrize(
    "call",
    [lambda: data.objects("unicorn"), lambda: data.objects("chicken", size=50), lambda: data.objects().of("training"), lambda: data.objects.meshes("Garage")],
)
def test_wrong_names_get_one_sentence(call):
    with pytest.raises(CourseError, match=r"(?s)^[^\n]+\.$"):
        call()
