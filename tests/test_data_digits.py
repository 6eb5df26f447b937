"""The digits pack: complete, split without overlap, and readable."""

import numpy as np
import pytest

from course_utils import data


def test_counts_and_splits():
    d = data.digits()
    assert d.images.shape == (10000, 28, 28) and d.images.dtype == np.uint8 and d.labels.dtype == np.int64
    assert {s: len(d.subset(s)) for s in ("train", "val", "test")} == {"train": 8000, "val": 1000, "test": 1000}
    for s in ("train", "val", "test"):
        assert np.bincount(d.subset(s).labels, minlength=10).min() > 0.07 * len(d.subset(s))


def test_no_picture_twice():
    d = data.digits()
    assert len({x.tobytes() for x in d.images}) == len(d) and d.images.reshape(len(d), -1).any(1).all()


def test_labels_belong_to_the_pictures():
    """The nearest of ten mean digits names four of five test digits; shuffled labels would give one in ten."""
    d = data.digits()
    train, test = d.subset("train"), d.subset("test")
    means = np.stack([train.images[train.labels == k].mean(0) for k in range(10)]).reshape(10, -1)
    distance = ((test.images.reshape(len(test), 1, -1) - means) ** 2).sum(-1)
    assert (distance.argmin(1) == test.labels).mean() > 0.78


def test_tensor_and_rows():
    d = data.digits("val")
    assert d.tensor().shape == (1000, 1, 28, 28) and d.tensor().max() == 1 and len(d[:7]) == 7
    with pytest.raises(ValueError, match="must be"):
        d.subset("dev")
