"""What a learner runs into: a damaged file, a mistyped profile or lesson, an interrupt, a missing package, no network. Each time one clear sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT

from course_utils import CourseError, curriculum, data, errors, lesson
from course_utils.authoring import cli as command
from course_utils.authoring import notebooks, run_notebook


def one_sentence(error):
    """The text of an error, held to what a learner can read at a glance."""
    text = str(error)
    assert "\n" not in text and len(text) < 300 and text.rstrip().endswith((".", "?"))
    return text


# Data


@pytest.mark.parametrize("name", sorted(n for n in data.registry() if not n.startswith("weights/"))[::4])
def test_a_truncated_data_file(name, tmp_path, monkeypatch):
    """Cut a real file in half, and load it the way the packs do."""
    copy = tmp_path / name
    copy.parent.mkdir(parents=True)
    content = data.path(name).read_bytes()
    copy.write_bytes(content[: len(content) // 2])
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    with pytest.raises(CourseError) as e:
        data.path(name)
    assert f"{name} is damaged" in one_sentence(e.value) and "git checkout" in str(e.value)


def test_a_truncated_weights_file(tmp_path):
    torch = pytest.importorskip("torch")
    from course_utils import weights

    model = torch.nn.Linear(3, 2)
    file = weights.save("made_up", model, folder=tmp_path, lesson="made_up")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CourseError) as e:
        weights.load("made_up", model, folder=tmp_path)
    assert "cannot be read" in one_sentence(e.value)


def test_a_notebook_shows_the_sentence_without_a_traceback():
    assert CourseError("Do this.")._render_traceback_() == ["CourseError: Do this."]


# Settings and names


@pytest.mark.parametrize("value", ["fast", "Quick!", "1"])
def test_an_unknown_profile(value, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", value)
    with pytest.raises(CourseError) as e:
        lesson.start("clip")
    assert "quick or full" in one_sentence(e.value)


def test_profiles_are_forgiving_about_case(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", " QUICK ")
    assert lesson.profile("cuda") == "quick"
    monkeypatch.setenv("COURSE_PROFILE", "")
    assert (lesson.profile("cpu"), lesson.profile("cuda")) == ("quick", "full")


def test_an_unknown_lesson():
    with pytest.raises(CourseError) as e:
        lesson.start("clop")
    assert "'clop'" in one_sentence(e.value) and "clip" in str(e.value)


def test_an_unknown_lesson_on_the_command_line(capsys):
    assert command.main(["run", "clop"]) == 1
    assert "'clop'" in one_sentence(capsys.readouterr().err.strip())


@pytest.mark.parametrize("value", ["seven", "-1", "--5", "4294967296", "²", "1.5", "1_000", "٣", "9" * 400])
def test_a_bad_seed(value, monkeypatch):
    monkeypatch.setenv("COURSE_SEED", value)
    with pytest.raises(CourseError) as e:
        lesson.start("clip")
    assert "COURSE_SEED=" in one_sentence(e.value) and "from 0 to 4294967295" in str(e.value)


@pytest.mark.parametrize("value, seed", [("0", 0), (" 7 ", 7), ("007", 7), ("4294967295", 2**32 - 1), ("", 3), ("  ", 3)])
def test_a_good_seed(value, seed, monkeypatch):
    monkeypatch.setenv("COURSE_SEED", value)
    run = lesson.start("clip", seed=3)
    assert run.seed == seed and run.generator(1).initial_seed() == seed + 1


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "7", None])
def test_a_bad_seed_in_the_call(value, monkeypatch):
    monkeypatch.delenv("COURSE_SEED", raising=False)
    with pytest.raises(CourseError) as e:
        lesson.start("clip", seed=value)
    assert f"seed={value!r} is not a seed" in one_sentence(e.value)


def test_a_bad_device(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "warp")
    with pytest.raises(CourseError) as e:
        lesson.best_device()
    assert "'warp'" in one_sentence(e.value)


@pytest.mark.parametrize(
    "given, variable, used", [([], "quick", "quick"), ([], " Full ", "full"), ([], None, "full"), (["--profile", "full"], "quick", "full")]
)
def test_the_variable_decides_where_run_is_told_nothing(given, variable, used, monkeypatch):
    seen = []
    monkeypatch.setattr(run_notebook, "run", lambda path, profile, *rest: seen.append(profile))
    monkeypatch.setenv("COURSE_PROFILE", variable) if variable else monkeypatch.delenv("COURSE_PROFILE")
    assert command.main(["run", "clip", *given]) == 0 and seen == [used]


@pytest.mark.parametrize("variable, used", [("full", "full"), ("quick", "quick"), (None, "quick")])
def test_the_variable_decides_where_execute_is_told_nothing(variable, used, monkeypatch):
    seen = []
    monkeypatch.setattr(notebooks, "execute", lambda path, profile: seen.append(profile))
    monkeypatch.setenv("COURSE_PROFILE", variable) if variable else monkeypatch.delenv("COURSE_PROFILE")
    assert command.main(["execute", "clip"]) == 0 and seen == [used]


def test_a_wrong_variable_stops_the_commands_too(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "fast")
    for name in ("run", "execute"):
        assert command.main([name, "clip"]) == 1
        assert "quick or full" in one_sentence(capsys.readouterr().err.strip())


def test_a_string_is_not_a_list_of_captions():
    assert errors.as_list(("a", "b")) == ["a", "b"] and errors.as_list(x for x in "ab") == ["a", "b"]
    with pytest.raises(CourseError) as e:
        errors.as_list("a red heart", "captions")
    assert "captions is a list" in one_sentence(e.value) and "['a red heart']" in str(e.value)


# A device that is not the CPU


def test_tf32_is_off_after_start_and_can_be_turned_on(python):
    code = """
    import warnings
    warnings.simplefilter("error")
    import torch
    from course_utils import lesson
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    flags = lambda: (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    lesson.start("clip")
    print(flags())
    lesson.allow_tf32()
    print(flags())
    """
    done = python(textwrap.dedent(code))
    assert done.stdout.splitlines()[-2:] == ["(False, False)", "(True, True)"], done.stderr
    assert "TF32" not in done.stdout, "said on a GPU only"


def test_tf32_is_spoken_of_on_a_gpu(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(lesson, "best_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert lesson.start("clip").device.type == "cuda"
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "TF32" in x]
    assert "lesson.allow_tf32() turns it on" in line


# Every place that asks for the kind of device, with how many times: such a branch cannot be tried without the device, so there are few, and each has a reason.
BRANCHES = {
    "course_utils/lesson.py": 3,  # two sentences of lesson.start, the device's name
    "course_utils/processor.py": 3,  # bf16 is faster on every GPU, on a processor only with instructions for it
    "course_utils/train.py": 1,  # the GPU's generators belong to a checkpoint
    "notebooks/2_generative/04_latent_diffusion.ipynb": 2,  # which clock measures a step; wait for the GPU before reading it
    "notebooks/3_3d_understanding/06_nerf.ipynb": 1,  # wait for the GPU before reading the clock
}


def test_branches_on_the_kind_of_device_are_few_and_named():
    import re

    asked = re.compile(r"""\.type\s*[!=]=|\.type\s+(?:not\s+)?in\b|\.is_cuda\b|cuda\.is_available\(\)|==\s*['"](?:cuda|cpu|mps)['"]""")
    found = {}
    for file in sorted([*(ROOT / "course_utils").rglob("*.py"), *(ROOT / "notebooks").rglob("*.ipynb")]):
        if file.suffix == ".ipynb":
            code = "\n".join(notebooks.source(c) for c in notebooks.read(file)["cells"] if c["cell_type"] == "code")
        else:
            code = file.read_text(encoding="utf8")
        if "lessons" in file.parts or "authoring" in file.parts:
            continue  # generated from the notebooks; no part of a lesson
        lines = [x for x in code.splitlines() if asked.search(x) and "cuda.is_available() else" not in x]
        if lines:
            found[file.relative_to(ROOT).as_posix()] = len(lines)
    assert {k: n for k, n in found.items() if n > BRANCHES.get(k, 0)} == {}, "a new branch on the device: is there a way without it? If not, name it here"


def test_the_setting_to_halve_is_named():
    from dataclasses import dataclass

    @dataclass
    class Config:
        steps: int = 10
        batch: int = 64
        ae_batch: int = 8

    assert lesson.memory_setting(Config()) == "cfg.batch (now 64) or cfg.ae_batch (now 8)"
    assert lesson.memory_setting(None) == "the sizes in cfg"


FULL = "import torch\nraise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')"


def test_out_of_memory_in_a_notebook_and_in_run(tmp_path):
    """The lesson's line has asked IPython to show it as one sentence; `run` says it too."""
    setup = "from course_utils import lesson\nfrom types import SimpleNamespace as Config\nrun = lesson.start('clip')\n"
    setup += "cfg = run.pick(quick=Config(batch=64), full=Config(batch=640))"
    code = f"from IPython.testing.globalipapp import start_ipython\nshell = start_ipython()\nshell.run_cell({setup!r})\nr = shell.run_cell({FULL!r})\nprint(r.success)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert "halve cfg.batch (now 64)" in done.stdout and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("False")
    with pytest.raises(CourseError) as e:
        run_notebook.run(notebook(tmp_path, setup, FULL), "quick")
    assert "cfg.batch (now 64)" in one_sentence(e.value)


# Consoles and folders


@pytest.mark.parametrize("encoding", ["cp949", "cp1252", "ascii", "utf-8"])
def test_every_command_prints_on_any_console(encoding):
    """✅ · → are not in every encoding: no command stops for want of a character."""
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0"}
    code = """
    import sys
    from course_utils.authoring import cli
    for args in (["doctor"], ["list"], ["scoreboard"], ["scoreboard", "--check"], ["badges", "--check"], ["export", "--check"]):
        cli.main(args)
    print("DONE")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, env=env, cwd=ROOT, timeout=240)
    out = done.stdout.decode(encoding)
    assert done.returncode == 0 and out.rstrip().endswith("DONE"), done.stderr.decode(encoding, "replace")
    assert ("✅ torch" in out) == (encoding == "utf-8") and ("[ok] torch" in out) == (encoding != "utf-8")


@pytest.mark.parametrize("encoding", ["cp949", "cp1252", "ascii"])
def test_a_lesson_prints_on_any_console(encoding):
    code = """
    from course_utils import check, hint, lesson
    run = lesson.start("clip")
    check("clip.info_nce", lambda *a: None)
    hint("clip.info_nce")
    print("✅ · → 한국어")
    run.score()
    print("DONE")
    """
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "CI": "", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, env=env, cwd=ROOT, timeout=120)
    out = done.stdout.decode(encoding)
    assert out.rstrip().endswith("DONE"), done.stderr.decode(encoding, "replace")
    assert "[x] clip.info_nce: " in out


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    """A file in the way of the folder stands for a read-only place: root may write anywhere else."""
    (tmp_path / "taken").write_text("")
    assert command.main(["assignments", "--out", str(tmp_path / "taken" / "out")]) == 1
    assert "Cannot write" in one_sentence(capsys.readouterr().err.strip())
    assert command.main(["run", "clip", "--figures", str(tmp_path / "taken" / "out")]) == 1
    assert "--figures" in one_sentence(capsys.readouterr().err.strip())


@pytest.mark.parametrize("name", ["gallery", "execute", "assignments"])
def test_a_read_only_checkout(name, monkeypatch, capsys):
    from pathlib import Path

    def refused(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    for method in ("mkdir", "write_bytes", "write_text"):
        monkeypatch.setattr(Path, method, refused)
    monkeypatch.setattr(errors.os, "access", lambda *a, **k: False)
    monkeypatch.setattr(notebooks, "execute", lambda *a: pytest.fail("a run that cannot be stored must not begin"))
    assert command.main([name]) == 1
    assert "Cannot write" in one_sentence(capsys.readouterr().err.strip())


# Checks


def standing():
    return [x.name for x in curriculum.ready() if (ROOT / f"course_utils/checks/{x.name}.py").exists()]


@pytest.mark.parametrize("name", standing())
def test_nonsense_into_every_check_gets_one_line(name, outside_ci, capsys):
    """A wrong shape, a wrong type, None, a crash: whatever a learner's function gives back, the check answers in one line and goes on."""
    import importlib

    import torch

    from course_utils import check

    def crash(*args, **kwargs):
        raise ValueError("first line\nsecond line")

    answers = [
        lambda *a, **k: torch.zeros(7, 3, 11, 2),
        lambda *a, **k: None,
        lambda *a, **k: "a word",
        lambda *a, **k: (torch.zeros(1),) * 9,
        crash,
        lambda: 0,
    ]
    for exercise in importlib.import_module(f"course_utils.checks.{name}").HINTS:
        for answer in answers:
            assert check(f"{name}.{exercise}", answer) is False
            out = capsys.readouterr().out
            assert out.startswith(f"❌ {name}.{exercise}: ") and out.count("\n") == 1


# Training


INTERRUPTED = """
import torch
from course_utils import train
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
log = train.Log()

def cell(total):
    for step in log.steps(total, "training"):
        loss = model(torch.randn(8, 4)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        log(loss=loss)
        if step == 20 and total > 100:
            print("READY", flush=True)
        if total > 100:
            torch.randn(200, 200) @ torch.randn(200, 200)

cell(10_000_000)
stopped = log.step
print("LENGTHS", stopped, len(log.history["loss"]))
print("FINITE", bool(torch.isfinite(model(torch.ones(1, 4))).all()), log.history["loss"][-1] < log.history["loss"][0])
cell(stopped + 5)
print("RESUMED", log.step - stopped, len(log.history["loss"]) - stopped)
cell(stopped + 5)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent another way on Windows")
def test_an_interrupt_in_the_middle_of_training():
    """Ctrl-C ends the loop after the step in progress; the model and the history are usable, and the same cell goes on from there."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT)
    try:
        line = child.stdout.readline()
        assert line.strip() == "READY", line + child.stderr.read()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0 and "Traceback" not in err, err
    said = [x for x in out.splitlines() if "stopped after step" in x]
    assert len(said) == 1 and "run this cell again to go on" in said[0]
    words = {x.split()[0]: x.split()[1:] for x in out.splitlines() if x.split()[0].isupper()}
    assert words["LENGTHS"][0] == words["LENGTHS"][1] and int(words["LENGTHS"][0]) >= 20
    assert words["FINITE"] == ["True", "True"] and words["RESUMED"] == ["5", "5"]
    assert "already trained" in out.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent another way on Windows")
def test_the_stop_button_of_a_notebook():
    """The same in a real kernel: interrupt the training cell, look at the history in the next one, run the training cell again."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT))
    out = []

    def collect(message):
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            out.append(message["content"]["text"])
            if "READY" in message["content"]["text"]:
                manager.interrupt_kernel()

    def run(code):
        reply = client.execute_interactive(code, timeout=60, output_hook=collect)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(out)

    try:
        run("from course_utils import train\nlog = train.Log()")
        loop = textwrap.dedent("""
            import time
            for step in log.steps(TOTAL, "training"):
                log(loss=1 / (1 + step))
                time.sleep(0.01)
                if step == 5:
                    print("READY", flush=True)
            """)
        text = run(loop.replace("TOTAL", "100_000"))
        assert "stopped after step" in text
        assert "LENGTHS True" in run("print('LENGTHS', len(log.history['loss']) == log.step >= 5)\nlast = log.step")
        assert "RESUMED 3" in run(loop.replace("TOTAL", "last + 3") + "\nprint('RESUMED', log.step - last)")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_gpu_out_of_memory_is_one_sentence():
    import torch

    with pytest.raises(CourseError) as e, errors.gpu_memory("cfg.batch"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB ...\nmore")
    assert "halve cfg.batch" in one_sentence(e.value)
    with pytest.raises(ValueError), errors.gpu_memory():
        raise ValueError("anything else passes through")


def test_a_missing_optional_package():
    with pytest.raises(CourseError) as e:
        errors.need("no_such_package_here", "Reading the official file", install="no-such")
    assert "pip install no-such" in one_sentence(e.value)


# Import and network


def test_import_is_light_and_offline(python):
    code = """
    import sys
    import course_utils
    from course_utils import check, data, hint, lesson, reveal, show, train, weights
    print(sorted({"torch", "matplotlib", "plotly", "ipywidgets", "pooch", "safetensors", "requests"} & set(sys.modules)))
    """
    done = python(textwrap.dedent(code))
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_network_is_really_off_in_these_tests(python):
    done = python("import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=5)")
    assert done.returncode == 1 and "The network is off in the tests" in done.stderr
    done = python("import urllib.request\nurllib.request.urlopen('https://example.org', timeout=5)")
    assert done.returncode == 1 and "The network is off in the tests" in done.stderr


def test_all_packs_load_without_the_network(python, tmp_path):
    packs = sorted({n.split("/")[0] for n in data.registry()} & set(data.PACKS))
    done = python(
        f"from course_utils import data\nfor n in {packs!r}: data.path(next(f for f in data.registry() if f.startswith(n)))", COURSE_CACHE=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr


def test_installed_without_a_checkout_and_without_the_network(python, tmp_path):
    """The package alone, as pip puts it on a machine: a data file is one sentence away, and nothing is written but to the cache."""
    shutil.copytree(ROOT / "course_utils", tmp_path / "site" / "course_utils", ignore=shutil.ignore_patterns("__pycache__"))
    name = next(iter(data.registry()))
    code = f"from course_utils import data\ntry: data.path({name!r})\nexcept data.CourseError as e: print(e)"
    done = python(code, cwd=tmp_path, PYTHONPATH=f"{ROOT / 'tests' / 'offline'}{os.pathsep}{tmp_path / 'site'}", COURSE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "could not be fetched" in one_sentence(done.stdout.strip())
    assert {p.name for p in tmp_path.iterdir()} <= {"site", "cache"}


# A lesson as plain Python


def notebook(tmp_path, *cells):
    made = [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": c, "outputs": [], "execution_count": None} for i, c in enumerate(cells)]
    file = tmp_path / "01_made_up.ipynb"
    file.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return file


def test_run_comments_magics_out_and_prints_values(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "full")  # run_notebook sets it; monkeypatch puts the old value back
    file = notebook(tmp_path, "import importlib\nif 1 > 2:\n    %pip install -q x\n!ls\nx = 3", "%%time\nx = 4", "display(x)\nx + 1", "x;")
    space = run_notebook.run(file, "quick")
    assert space["x"] == 3 and capsys.readouterr().out.splitlines()[:2] == ["3", "4"]


def test_run_overrides_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "full")
    code = """
    from dataclasses import dataclass
    from course_utils import lesson
    @dataclass
    class Config:
        steps: int = 100
        name: str = "a"
    run = lesson.start("clip")
    cfg = run.pick(quick=Config(), full=Config(steps=1000))
    """
    file = notebook(tmp_path, textwrap.dedent(code))
    space = run_notebook.run(file, "full", run_notebook.parsed(["steps=5", "name=b"]))
    assert (space["cfg"].steps, space["cfg"].name, space["run"].profile) == (5, "b", "full")
    with pytest.raises(CourseError, match="no 'stepz'.*steps, name"):
        run_notebook.run(file, "quick", {"stepz": 1})
    with pytest.raises(CourseError, match="name=value"):
        run_notebook.parsed(["steps"])


BARE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"IPython", "ipywidgets", "plotly", "tqdm", "nbformat", "nbclient", "jupyter_client"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import importlib.util
find = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return find(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
from pathlib import Path
from course_utils.authoring import run_notebook
run_notebook.run(Path(sys.argv[1]), "quick", figures=Path(sys.argv[2]))
"""


def test_run_works_without_jupyter(tmp_path, python):
    """On a bare machine: no IPython, no ipywidgets, no plotly, no tqdm. Bars, controls and 3D views are harmless there, figures can be saved."""
    code = """
    import numpy as np
    from course_utils import lesson, show, train
    from IPython.display import display
    import ipywidgets as widgets
    import plotly.graph_objects as go
    run = lesson.start("clip")
    log = train.Log()
    for step in log.steps(5, "training"):
        log(loss=1.0)
    show.grid(np.zeros((2, 8, 8)))
    show.points(np.zeros((4, 3)))
    show.play(lambda angle=10: log.plot(), angle=(0, 90, 5))
    widgets.interact(lambda x: x, x=(0, 1))
    go.Figure().show()
    display(step)
    """
    file = notebook(tmp_path, textwrap.dedent(code))
    done = python(BARE, str(file), str(tmp_path / "figures"))
    assert done.returncode == 0, done.stderr
    assert "Not installed and not needed here: IPython, ipywidgets, plotly, tqdm." in done.stdout and "training: 5 steps" in done.stdout
    assert list((tmp_path / "figures").glob("*.png"))


def test_an_error_names_its_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "quick")
    file = notebook(tmp_path, "x = 1", "def f():\n    return 1 / 0\n\nf()")
    with pytest.raises(ZeroDivisionError) as e:
        run_notebook.run(file, "quick")
    assert "01_made_up[cell 1]" in "".join(str(t) for t in e.traceback)


def test_every_notebook_can_be_taken_apart():
    for path in notebooks.lessons().values():
        for i, code in run_notebook.cells(path):
            compile(code, f"{path.stem}[cell {i}]", "exec")
