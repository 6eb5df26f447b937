"""The doctor: says what is there, and how to mend in one sentence what is not right. And the console entry."""

import importlib.metadata
import re
import sys

import pytest

from course_utils import data, weights
from course_utils.authoring import cli as command
from course_utils.authoring import doctor

COMMANDS = ["doctor", "list", "export", "execute", "run", "assignments", "scoreboard", "gallery", "badges"]


def bad(found):
    return [f for f in found if not f.good]


def test_all_is_right_here(capsys):
    assert command.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out and "profile" in out and "checksums right" in out and "All is right" in out


def test_a_damaged_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "a.bin").write_bytes(b"hel")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    monkeypatch.setattr(data, "registry", lambda: {"digits/a.bin": "0" * 64})
    assert command.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "❌ digits" in out and "digits/a.bin is damaged" in out and "git checkout -- data/digits/a.bin" in out


def test_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    monkeypatch.setattr(data, "registry", lambda: {"weights/clip.safetensors": "0" * 64})
    (found,) = bad(doctor.files())
    assert found.group == "weights" and "missing" in found.value and "git checkout" in found.mend


def test_without_a_checkout_files_are_fetched_when_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "registry", lambda: {"digits/a.bin": "0" * 64})
    (found,) = doctor.files()
    assert found.good and "fetched" in found.value


def test_python_and_the_build_of_torch_are_named(monkeypatch):
    found = {f.name: f.value for f in doctor.software()}
    assert sys.executable in found["python"] and "build)" in found["torch"]


def test_a_registry_that_lost_its_packs(monkeypatch):
    assert doctor.registered() == []
    monkeypatch.setattr(data, "registry", lambda: {"weights/clip.safetensors": "0" * 64})
    (found,) = bad(doctor.registered())
    assert "lacks emoji, digits" in found.value and "install the package again" in found.mend


def test_what_was_trained_here(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.delenv("COURSE_WEIGHTS", raising=False)
    assert doctor.own_weights() == []
    for name in ("clip", "mine", "cut"):
        weights.save(name, torch.nn.Linear(2, 2), folder=tmp_path / "trained")
    (tmp_path / "trained" / "cut.safetensors").write_bytes(b"cut")
    found = {f.name: f for f in doctor.own_weights()}
    assert "own=True" in found["clip"].value and "by its name" in found["mine"].value
    assert [f.name for f in bad(found.values())] == ["cut"] and "train it again" in found["cut"].mend


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "taken" / "cache"))
    (found,) = bad(doctor.own_weights())
    assert "set COURSE_CACHE to a folder of your own" in found.mend


def test_an_old_or_missing_package(monkeypatch):
    version = importlib.metadata.version

    def changed(name):
        if name == "plotly":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.25.9" if name == "numpy" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", changed)
    found = {f.name: f for f in bad(doctor.software())}
    assert set(found) == {"numpy", "plotly"}
    assert found["numpy"].mend == 'Run `pip install "numpy>=1.26"`.' and "missing" in found["plotly"].value


def test_an_unknown_profile_is_a_finding(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "fast")
    (found,) = bad(doctor.machine())
    assert found.name == "profile" and "quick or full" in found.mend


@pytest.mark.parametrize(
    "version, floor, good", [("2.13.0+cpu", "2.6", True), ("2.5.9", "2.6", False), ("5", "5.0.0", True), ("0.10.1", "0.9", True), ("7.0.0rc1", "7", True)]
)
def test_versions_are_compared_as_numbers(version, floor, good):
    assert doctor.at_least(version, floor) is good


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([name, "--help"])
    assert stop.value.code == 0 and f"course_utils {name}" in capsys.readouterr().out


def test_all_commands_are_listed(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    out = capsys.readouterr().out
    assert [c for c in COMMANDS if not re.search(rf"^ +{c}\b", out, re.M)] == []


def test_help_is_light(python):
    done = python("import sys\nfrom course_utils.authoring.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)")
    assert done.stdout.rstrip().endswith("False"), done.stderr
