"""What weights say about their making, which of them are stale, and the command that makes them again."""

import json
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from course_utils import curriculum, data, lesson, train, weights
from course_utils.authoring import doctor, notebooks, run_notebook


@dataclass
class Config:
    widths: tuple = (32, 64)
    steps: int = 3


@pytest.fixture
def session(tmp_path, monkeypatch):
    """An author's session that has loaded nothing yet, with weights of its own folder."""
    monkeypatch.setenv("COURSE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "_loaded", {})
    monkeypatch.setattr(weights, "_saved", {})
    return lesson.Run("second", 7, torch.device("cpu"), "full", config=Config())


def net(value=0.0):
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def test_weights_say_how_they_were_made(session, tmp_path):
    weights.save("first", net(1.0), run=session)
    weights.load("first", net())
    log = train.Log()
    list(log.steps(3, live=False))
    weights.save("second", net(2.0), run=session, log=log, metrics={"psnr": 30.0})
    about = weights.metadata("second")
    assert about["configuration"] == {"widths": [32, 64], "steps": 3} and about["steps"] == 3 and about["cpu_seconds"] >= 0
    assert (about["lesson"], about["seed"], about["profile"], about["device"]) == ("second", 7, "full", "cpu")
    assert about["made_from"] == {"first": data.sha256(tmp_path / "first.safetensors")} and about["metrics"] == {"psnr": 30.0}
    weights.load("second", net())
    weights.save("second", net(), run=session)
    assert set(weights.metadata("second")["made_from"]) == {"first"}, "a file is not made from itself"
    weights.save("second", net(), run=session, started_from=())
    assert weights.metadata("second")["made_from"] == {}


def test_which_weights_are_stale(session):
    weights.save("first", net(1.0), run=session)
    weights.load("first", net())
    weights.save("second", net(2.0), run=session)
    assert weights.stale("second") == weights.stale("second", {"widths": (32, 64), "steps": 3}) == ""
    assert weights.stale("second", {"widths": (32, 64), "steps": 4}) == "second was made with another steps than its notebook has at full"
    assert "another steps and lr" in weights.stale("second", {"widths": (32, 64), "lr": 1.0})
    weights.save("first", net(1.5), run=session)
    assert weights.stale("second", {"steps": 4}) == "second was made from other weights of first than those that are here"
    weights.save("old", net())
    assert weights.stale("old") is None


def test_every_notebooks_full_configuration_can_be_read():
    for name, path in notebooks.lessons().items():
        full, quick = (run_notebook.configuration(path, profile) for profile in ("full", "quick"))
        assert full and set(full) == set(quick) and full != quick, name
        json.dumps(full)


def test_committed_weights_are_those_of_the_notebooks_and_of_each_other():
    """Files from before this was recorded say nothing; all others have the notebook's configuration and start from the files that are here."""
    for name, path in notebooks.lessons().items():
        if f"weights/{name}.safetensors" in data.registry():
            assert not weights.stale(name, run_notebook.configuration(path)), name


def test_lessons_run_in_the_order_of_their_needs(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command[4]) or SimpleNamespace(returncode=0))
    args = SimpleNamespace(names=["marigold", "ddpm", "latent_diffusion", "clip"], with_weights=False, profile="full", set=[], figures=None)
    assert run_notebook.main(args) == 0
    assert sorted(ran) == sorted(args.names)
    for i, name in enumerate(ran):
        assert not curriculum.all_needs(name) & set(ran[i:]), f"{name} came before what it needs"


LESSON = """
from dataclasses import dataclass
import torch
from course_utils import lesson, train, weights
run = lesson.start("clip")
@dataclass
class Config:
    steps: int = 2
cfg = run.pick(quick=Config(), full=Config(steps=12))
net, log = torch.nn.Linear(3, 3), train.Log()
optimiser = train.Muon(net)
checkpoint = train.Checkpoint(run, every=0, net=net, optimiser=optimiser)
for step in log.steps(cfg.steps, live=False, checkpoint=checkpoint):
    if step == STOP:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    loss = net(torch.ones(3)).square().mean()
    optimiser.zero_grad(); loss.backward(); optimiser.step(); log(loss=loss)
weights.save("toy", net, run=run, log=log)
"""


def test_a_lesson_that_was_killed_goes_on_and_leaves_no_checkpoint(tmp_path):
    """As `make weights` does it: kill -9 in the middle, the same command again."""
    command = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from course_utils.authoring import doctor, notebooks, run_notebook
path = Path({str(tmp_path / "toy.ipynb")!r})
notebooks.find = lambda name: path
notebooks.folder = lambda: Path({str(tmp_path / "notebooks")!r})
sys.exit(run_notebook.main(SimpleNamespace(names=["clip"], with_weights=False, profile="full", set=[], figures=None)))
"""
    environment = {"PYTHONPATH": str(ROOT), "COURSE_WEIGHTS": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    checkpoint = tmp_path / "build" / "checkpoints" / "clip" / "model.pt"
    for stop, code in ((7, -9), (-1, 0)):
        cell = {"cell_type": "code", "metadata": {}, "source": LESSON.replace("STOP", str(stop)), "outputs": [], "execution_count": None}
        notebooks.write(tmp_path / "toy.ipynb", {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert checkpoint.exists() == (stop == 7)
    assert "goes on at step 7" in done.stdout
    about = weights.metadata("toy", folder=tmp_path)
    assert about["steps"] == 12 and about["configuration"] == {"steps": 12} and about["profile"] == "full"


def test_doctor_names_stale_weights_and_the_command(monkeypatch):
    (line,) = doctor.stale_weights()
    assert line.good and line.value.startswith("none")
    monkeypatch.setattr(weights, "stale", lambda name, _: f"{name} was made from other weights of clip than those that are here" if name == "lora" else "")
    (line,) = doctor.stale_weights()
    assert not line.good and line.value.startswith("lora was made from other weights") and line.mend == "Run `make weights LESSONS=lora`."
