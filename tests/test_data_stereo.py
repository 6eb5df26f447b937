"""The stereo photographs: read from the package that holds them, with a sentence when it is not there; disparities that carry one picture onto the other."""

import numpy as np
import pytest

from course_utils import CourseError, data

here = pytest.mark.skipif(not data.stereo.available("motorcycle"), reason="scikit-image is not installed")


@pytest.fixture(scope="module")
def photo():
    return data.stereo("motorcycle")


def warped(s):
    """The right picture brought onto the left one (nearest column), and where that is known."""
    h, w = s.disparity.shape
    x = np.arange(w) - s.disparity
    ok = s.known & (np.nan_to_num(x, nan=-1) > 0) & (np.nan_to_num(x, nan=-1) < w - 1)
    cols = np.where(ok, np.round(np.where(ok, x, 0)), 0).astype(int)
    return s.right[:, np.arange(h)[:, None], cols].astype(float), ok


@here
def test_motorcycle(photo):
    assert photo.left.shape == photo.right.shape == (3, 500, 741) and photo.left.dtype == np.uint8
    assert photo.disparity.shape == photo.depth.shape == (500, 741) and photo.depth.dtype == np.float32
    assert 0.9 < photo.known.mean() < 0.95 and (np.isnan(photo.depth) == ~photo.known).all()
    assert 2.0 < np.nanmin(photo.depth) and np.nanmax(photo.depth) < 5.2


@here
@pytest.mark.parametrize("size", [None, 256, 64])
def test_the_disparity_carries_the_right_picture_onto_the_left(photo, size):
    """Also at a reduced size, with the disparity scaled along. The other sign, or none, fits far worse."""
    s = photo if size is None else photo.resize((round(size * 500 / 741), size))
    got, ok = warped(s)
    error = np.abs(got - s.left).mean(0)[ok].mean()
    assert error < 16
    assert error < 0.6 * np.abs(s.right.astype(float) - s.left).mean()


@here
def test_resize_keeps_the_geometry(photo):
    small = photo.resize(64)
    assert small.left.shape == (3, 64, 64) and small.depth.shape == (64, 64)
    assert small.K[0, 0] == pytest.approx(994.978 * 64 / 500, rel=1e-5) == small.K[1, 1]
    square = photo.depth[:, 120:620]
    blocks = np.array([[np.nanmedian(square[a * 500 // 16 : (a + 1) * 500 // 16, b * 500 // 16 : (b + 1) * 500 // 16]) for b in range(16)] for a in range(16)])
    coarse = photo.resize(16).depth
    ok = np.isfinite(coarse)
    assert np.median(np.abs(coarse[ok] / blocks[ok] - 1)) < 0.005
    assert small.known.mean() > 0.9
    x, z = small.tensor()
    assert x.shape == (1, 3, 64, 64) and z.shape == (1, 1, 64, 64)


@here
def test_depth_formula(photo):
    i, j = 400, 300
    assert photo.depth[i, j] == pytest.approx(0.193001 * 994.978 / (photo.disparity[i, j] + 31.086), rel=1e-5)


@here
def test_the_garage_floor_is_flat(photo):
    """Points on the floor in front of the motorcycle, lifted with K and the depth, lie on one plane within 2 cm."""
    v, u = np.mgrid[460:495, 40:240] + 0.5
    z = photo.depth[460:495, 40:240]
    X = np.stack([(u - photo.K[0, 2]) / photo.K[0, 0] * z, (v - photo.K[1, 2]) / photo.K[1, 1] * z, z], -1)[np.isfinite(z)]
    X = X - X.mean(0)
    normal = np.linalg.svd(X, full_matrices=False)[2][-1]
    assert np.sqrt(((X @ normal) ** 2).mean()) < 0.02 and abs(normal[1]) > 0.9


def test_clear_sentences(tmp_path, monkeypatch):
    from course_utils.packs import stereo

    with pytest.raises(CourseError, match="no stereo photograph 'bicycle'"):
        data.stereo("bicycle")
    monkeypatch.setattr(stereo, "_folders", lambda name, folder: [tmp_path])
    with pytest.raises(CourseError, match="pip install scikit-image"):
        data.stereo("motorcycle")
    with pytest.raises(CourseError, match="apt-get install opencv-doc"):
        data.stereo("aloe")
    for f in ("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz"):
        (tmp_path / f).write_bytes(b"other")
    with pytest.raises(CourseError, match=r"motorcycle_left\.png is not the one"):
        data.stereo("motorcycle")


def test_no_photograph_is_in_the_repository():
    assert not [f for f in data.registry() if "motorcycle" in f or "aloe" in f.lower()]
