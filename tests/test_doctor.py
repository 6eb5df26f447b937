"""The doctor: says what is there, and how to mend in one sentence what is not right. And the console entry."""

import importlib.metadata
import re

import pytest

from course_utils import data
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
    monkeypatch.setattr(data, "registry", lambda: {"digits/a.bin": "0" * 64})
    (found,) = doctor.files()
    assert found.good and "fetched" in found.value


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
