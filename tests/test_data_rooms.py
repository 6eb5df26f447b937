"""The rooms pack: counts, splits without shared furniture, and depths, labels, boxes and cameras that agree with one another."""

import numpy as np
import pytest

from course_utils import CourseError, data

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def packs():
    return {s: data.rooms(s) for s in SPLITS}


def world(r, i):
    """Every pixel's point in the room's world: (64, 64, 3)."""
    return (r.points(i) - r.t[i]) @ r.R[i]


@pytest.mark.parametrize("split", SPLITS)
def test_counts_types_and_ranges(packs, split):
    r = packs[split]
    n = len(r)
    assert n == {"train": 1200, "val": 60, "test": 100}[split]
    assert r.images.shape == (n, 3, 64, 64) and r.images.dtype == np.uint8 and r.split == split
    assert r.depth.shape == r.label.shape == (n, 64, 64) and r.depth.dtype == np.float32 and r.label.dtype == np.uint8
    assert r.K.shape == r.R.shape == (n, 3, 3) and r.t.shape == r.size.shape == (n, 3)
    assert 0.29 < r.depth.min() and r.depth.max() < 12 and 2 < np.median(r.depth) < 4
    near = np.sort(r.depth.reshape(n, -1), 1)[:, 41]  # the nearest 1 % of the picture
    assert ((near > 0.4) & (near < 4)).all()
    assert (r.images.reshape(n, -1).std(1) > 12).all(), "no blank picture"
    assert 35 < 2 * np.rad2deg(np.arctan(32 / np.median(r.K[:, 0, 0]))) < 60, "the fields of view of ordinary cameras"


@pytest.mark.parametrize("split", SPLITS)
def test_cameras(packs, split):
    r = packs[split]
    np.testing.assert_allclose(r.R @ r.R.swapaxes(1, 2), np.broadcast_to(np.eye(3), r.R.shape), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(r.R), 1, atol=1e-5)
    assert (r.R[:, 1, 1] < -0.7).all(), "the camera's y points down"
    eye = -np.einsum("nij,ni->nj", r.R, r.t)
    assert (eye > 0).all() and (eye < r.size).all(), "the camera stands in the room"


def test_floor_walls_and_ceiling_lie_where_the_shell_is(packs):
    r = packs["test"]
    for i in range(len(r)):
        X = world(r, i)
        if (r.label[i] == 0).any():
            assert np.abs(X[r.label[i] == 0][:, 1]).max() < 0.02
        if (r.label[i] == 2).any():
            assert np.abs(X[r.label[i] == 2][:, 1] - r.size[i, 1]).max() < 0.02
        walls = X[r.label[i] == 1]
        if len(walls):
            gap = np.minimum(np.abs(walls), np.abs(r.size[i] - walls))[:, [0, 2]].min(1)
            assert gap.max() < 0.02
        assert (X > -0.02).all() and (X < r.size[i] + 0.02).all(), "nothing lies outside"


def test_boxes_hold_the_points_of_their_piece(packs):
    r = packs["test"]
    for k in range(len(r.boxes)):
        i = r.boxes.room[k]
        number = 4 + k - np.flatnonzero(r.boxes.room == i)[0]
        mask = r.label[i] == number
        assert mask.sum() == r.boxes.pixels[k] >= 4
        yaw = r.boxes.yaw[k]
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        own = (world(r, i)[mask] - r.boxes.world[k]) @ turn
        assert (np.abs(own) < r.boxes.size[k] / 2 + 0.02).all()
        np.testing.assert_allclose(r.R[i] @ r.boxes.world[k] + r.t[i], r.boxes.centre[k], atol=1e-4)
    assert r.label.max() < 4 + max(np.bincount(r.boxes.room))


def test_furniture_of_val_and_test_is_new(packs):
    seen = {s: set(r.boxes.piece) for s, r in packs.items()}
    assert len(seen["train"]) > 40
    for s in ("val", "test"):
        held = set(packs[s].boxes.piece[packs[s].boxes.held_out])
        assert len(held) >= 3 and not held & seen["train"]
        assert seen[s] - held <= {m.id for m in data.objects.meshes(split="train")}
        assert len(set(packs[s].boxes.room[packs[s].boxes.held_out])) == len(packs[s]), "each room shows a piece that is new"
    new = [set(packs[s].boxes.piece[packs[s].boxes.held_out]) for s in ("val", "test")]
    assert not new[0] & new[1] and not packs["train"].boxes.held_out.any()


def test_no_room_twice(packs):
    assert len({x.tobytes() for r in packs.values() for x in r.images}) == sum(map(len, packs.values()))


def test_the_picture_shows_the_depth(packs):
    """Where the depth jumps, the picture has edges: the mean contrast there is well above that elsewhere."""
    r = packs["test"]
    grey = r.images.mean(1)
    jump = np.abs(np.diff(1 / r.depth, axis=2)) > 0.05
    contrast = np.abs(np.diff(grey, axis=2))
    assert contrast[jump].mean() > 2 * contrast[~jump].mean()


def test_classes(packs):
    b = packs["train"].boxes
    count = np.bincount(b.label, minlength=5)
    assert data.rooms.classes == ("chair", "sofa", "table", "cabinet", "other") and (count > 0.04 * len(packs["train"])).all(), count
    assert 2.5 < len(b) / len(packs["train"]) < 7


def test_slices_and_tensors(packs):
    part = packs["train"][10:30]
    assert len(part) == 20 and part.boxes.room.max() < 20 and len(part.boxes.of(3)) == len(packs["train"].boxes.of(13))
    x, z = part.tensor()
    assert x.shape == (20, 3, 64, 64) and z.shape == (20, 1, 64, 64) and -1 <= x.min() < x.max() <= 1 and z.dtype == x.dtype
    with pytest.raises(CourseError, match="slice"):
        part[3]
    with pytest.raises(CourseError, match="no split 'dev'"):
        data.rooms("dev")


def test_pack_is_small():
    assert sum(f.stat().st_size for f in (data.root() / "rooms").iterdir()) < 5.5e6
