"""Saving and loading weights: half precision, metadata, and one clear sentence when they do not fit."""

import os
import shutil

import pytest
import torch
from conftest import ROOT

from course_utils import CourseError, data, weights


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


# Whose weights


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A cache of our own, and a session that has saved nothing yet."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COURSE_WEIGHTS", raising=False)
    monkeypatch.setattr(weights, "_saved", {})
    return tmp_path / "cache" / "trained"


def filled(value):
    net = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(net.weight, value)
    return net


def test_what_a_learner_trains_goes_to_a_folder_of_theirs(own, capsys):
    before = data.sha256(data.REGISTRY), sorted((data.root() / "weights").iterdir())
    assert weights.save("clip", filled(2.0)) == own / "clip.safetensors" == weights.trained()[0]
    assert "own=True" in capsys.readouterr().out
    assert before == (data.sha256(data.REGISTRY), sorted((data.root() / "weights").iterdir()))


def test_the_session_goes_on_with_what_it_trained_and_the_next_one_is_back_at_the_courses(own, monkeypatch):
    weights.save("clip", filled(2.0))
    assert weights.file("clip") == own / "clip.safetensors"
    monkeypatch.setattr(weights, "_saved", {})  # a new kernel
    assert weights.file("clip") == data.root() / "weights" / "clip.safetensors"
    net = filled(0.0)
    weights.load("clip", net, own=True)
    assert net.weight.eq(2).all() and weights.metadata("clip", own=True)["date"]


def test_a_name_that_the_course_does_not_have_is_found_again(own, monkeypatch):
    weights.save("my_net", filled(3.0))
    monkeypatch.setattr(weights, "_saved", {})
    net = filled(0.0)
    weights.load("my_net", net)
    assert net.weight.eq(3).all()


def test_own_weights_that_are_not_there(own):
    with pytest.raises(CourseError, match="no weights of your own called 'clip'.*none yet"):
        weights.file("clip", own=True)


def test_authors_name_the_folder(own, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_WEIGHTS", str(tmp_path / "made"))
    assert weights.save("clip", filled(4.0)) == tmp_path / "made" / "clip.safetensors"
    monkeypatch.setattr(weights, "_saved", {})
    assert weights.file("clip") == tmp_path / "made" / "clip.safetensors"
    assert weights.file("vae") == data.root() / "weights" / "vae.safetensors" and not own.exists()


def test_stored_weights_leave_the_model_in_training_alone(own):
    weights.save("my_net", filled(5.0))
    net = filled(1.0).train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    ready = weights.stored("my_net", like=net)
    assert ready.weight.eq(5).all() and not ready.training
    assert net.weight.eq(1).all() and net.training and optimiser.param_groups[0]["params"][0] is net.weight


def test_a_folder_that_cannot_be_written(own, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CourseError) as e:
        weights.save("net", filled(1.0), folder=tmp_path / "taken" / "here")
    assert "Cannot write" in str(e.value) and "still in memory" in str(e.value) and "\n" not in str(e.value)

    def refused(*args, **kwargs):
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)")

    weights.save("net", filled(1.0))
    monkeypatch.setattr("safetensors.torch.save_file", refused)
    with pytest.raises(CourseError, match="still in memory"):
        weights.save("net", filled(2.0))
    monkeypatch.undo()
    net = filled(0.0)
    weights.load("net", net, folder=own)
    assert net.weight.eq(1).all(), "the older file stays as it was"


INSTALLED = """
import torch
from course_utils import data, weights
from course_utils.authoring import doctor
from course_utils.lessons.clip import load_clip
before = data.REGISTRY.read_bytes()
model = load_clip()
weights.save("clip", model)
print("ENTRIES", len(data.registry()), data.REGISTRY.read_bytes() == before)
found = doctor.registered() + doctor.files() + doctor.own_weights()
print("BAD", [f.value for f in found if not f.good])
print("OWN", [f.name for f in found if f.group == "trained here"])
print("HERE", sum("checksums right" in f.value for f in found))
"""


def test_installed_without_a_checkout(python, tmp_path):
    """The case of a wheel: the package alone, the cache filled. Saving changes nothing of the package, and the doctor sees the cache and what was trained."""
    site, cache = tmp_path / "site", tmp_path / "cache"
    shutil.copytree(ROOT / "course_utils", site / "course_utils", ignore=shutil.ignore_patterns("__pycache__"))
    for name in data.registry():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.root() / name, cache / name)
    env = dict(cwd=tmp_path, PYTHONPATH=f"{ROOT / 'tests' / 'offline'}{os.pathsep}{site}", COURSE_CACHE=str(cache))
    done = python(INSTALLED, **env)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.split(" ")[0].isupper())
    assert said["ENTRIES"] == f"{len(data.registry())} True" and said["BAD"] == "[]" and said["OWN"] == "['clip']"
    packs = {n.split("/")[0] if not n.startswith("weights/") else n for n in data.registry()}
    assert said["HERE"] == str(len(packs))
    assert not list(site.rglob("*.part")) and not (site / "data").exists()
    pack = next(n for n in data.registry() if n.startswith("digits/"))
    (cache / pack).write_bytes(b"cut")
    (cache / "trained" / "clip.safetensors").write_bytes(b"cut")
    done = python("from course_utils.authoring import doctor; [print(f.name, '|', f.mend) for f in doctor.files() + doctor.own_weights() if not f.good]", **env)
    assert "digits | Delete" in done.stdout and "clip | Delete" in done.stdout and len(done.stdout.splitlines()) == 2, done.stdout + done.stderr
    done = python("from course_utils import data; data.write_registry()", **env)
    assert "in a checkout of the course only" in done.stderr
