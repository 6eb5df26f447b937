"""Saving and loading weights: half precision, metadata, and one clear sentence when they do not fit."""

import pytest
import torch

from course_utils import CourseError, weights


def test_round_trip_in_half_precision(tmp_path):
    a, b = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    file = weights.save("net", a, folder=tmp_path, lesson="clip", profile="full", seed=0, steps=10, metrics={"r1": 0.9})
    meta = weights.load("net", b, folder=tmp_path)
    torch.testing.assert_close(b.weight, a.weight.half().float())
    assert b.weight.dtype == torch.float32 and not b.training
    assert meta["metrics"] == {"r1": 0.9} and meta["steps"] == 10 and meta["lesson"] == "clip" and meta["date"].startswith("20")
    assert file.stat().st_size < 1000


def test_several_networks_in_one_file(tmp_path):
    nets = {"image": torch.nn.Linear(2, 2), "text": torch.nn.Linear(3, 2)}
    weights.save("two", nets, folder=tmp_path)
    fresh = {"image": torch.nn.Linear(2, 2), "text": torch.nn.Linear(3, 2)}
    weights.load("two", fresh, folder=tmp_path)
    torch.testing.assert_close(fresh["text"].weight, nets["text"].weight.half().float())


@pytest.mark.parametrize("other", [torch.nn.Linear(4, 5), torch.nn.Sequential(torch.nn.Linear(4, 3))])
def test_weights_that_do_not_fit(tmp_path, other):
    weights.save("net", torch.nn.Linear(4, 3), folder=tmp_path)
    with pytest.raises(CourseError, match="do not fit this model"):
        weights.load("net", other, folder=tmp_path)


def test_damaged_and_missing_files(tmp_path):
    file = weights.save("net", torch.nn.Linear(4, 3), folder=tmp_path)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CourseError, match="cannot be read"):
        weights.metadata("net", folder=tmp_path)
    with pytest.raises(CourseError, match="not a file of the course"):
        weights.file("no_such_lesson")


def test_too_large_for_half_precision(tmp_path):
    net = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(net.weight, 1e6)
    with pytest.raises(CourseError, match="half=False"):
        weights.save("net", net, folder=tmp_path)
