"""The files that say what to install agree with each other and with the README."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from course_utils.authoring import badges, doctor, readme

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
CONDA = {"pytorch": "torch", "matplotlib-base": "matplotlib"}  # conda-forge's name → PyPI's


def requirement(line):
    """("numpy", ">=", "1.26") of a requirement; extras and markers are left out."""
    found = re.match(r"([\w.-]+)(?:\[[\w,]+\])?\s*(>=|==)?\s*([\d.]+)?", line)
    return found[1].lower(), found[2], found[3]


def required(*groups):
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for g in groups for line in extras[g]]
    return {n: (sign, v) for n, sign, v in map(requirement, lines) if n != PROJECT["name"]}


def pins(file):
    """Package → the versions that a constraints file names (one for each marker)."""
    out = {}
    for line in (ROOT / file).read_text(encoding="utf8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, sign, version = requirement(line)
            assert sign == "==", f"{file} pins, it does not bound: {line}"
            out.setdefault(name, []).append(version)
    return out


def test_environment_yml_has_the_floors_of_pyproject():
    lines = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))["dependencies"]
    found = {CONDA.get(n, n): v for n, _, v in (requirement(x) for x in lines if isinstance(x, str))}
    assert found.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    found.pop("pip")
    wanted = {n: v for n, (_, v) in required("lab").items() if n != "tomli"}
    assert found == wanted
    assert [x for x in lines if isinstance(x, dict)] == [{"pip": ["-e ."]}]


def test_every_direct_dependency_is_pinned_at_or_above_its_floor():
    fixed = pins("constraints.txt")
    wanted = required("lab", "dev", "oracles")
    assert set(wanted) - set(fixed) - {"tomli"} == set(), "add a pin to constraints.txt"
    low = [(n, v) for n, versions in fixed.items() for v in versions if n in wanted and not doctor.at_least(v, wanted[n][1])]
    assert low == []


def test_colab_satisfies_the_floors():
    fixed = pins("constraints-colab.txt")
    wanted = required("lab")
    assert [(n, v[0]) for n, v in fixed.items() if not doctor.at_least(v[0], wanted[n][1])] == []
    assert {"numpy", "matplotlib", "plotly", "ipywidgets", "ipython"} <= set(fixed)


def test_the_package_needs_no_oracle_and_no_jupyter_server():
    assert not {"transformers", "diffusers", "scikit-image", "jupyterlab", "torchvision"} & set(required())


def test_doctor_knows_the_same_floors():
    assert doctor.floors() == {n: v for n, (_, v) in required().items() if n != "tomli"}


def test_addresses_come_from_pyproject():
    assert badges.drift() == [], "run `python -m course_utils badges`"


@pytest.mark.parametrize("name", readme.WORDS)
def test_generated_parts_of_the_readmes(name):
    file = ROOT / name
    assert readme.rendered(file) == file.read_text(encoding="utf8"), "run `python -m course_utils scoreboard --write`"


@pytest.mark.parametrize("name", readme.WORDS)
def test_commands_in_the_readmes_exist(name):
    text = (ROOT / name).read_text(encoding="utf8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    assert {"lab", "test"} <= set(re.findall(r"make ([a-z-]+)", text))


def test_make_help_lists_every_public_target():
    text = (ROOT / "Makefile").read_text(encoding="utf8")
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())
    listed = set(re.findall(r"^([a-z-]+):.*## ", text, re.M))
    assert phony - listed <= {"setup", "setup-test"} and listed <= phony
    assert not re.search(r"\bsed -i|\breadlink -f|\bgrep -P|\bxargs -r|--no-run-if-empty", text), "GNU only: macOS has no such flag"


def test_badges_are_rewritten():
    here = ("someone/some-course", "v1.2")
    text = (
        "[![Open in Colab](x.svg)](https://colab.research.google.com/github/OWNER/vision-models-from-scratch/blob/main/notebooks/1_multimodal/02_clip.ipynb)\n"
        '    %pip install -q "course-utils @ git+https://github.com/OWNER/vision-models-from-scratch@main"\n'
        "see https://github.com/OWNER/vision-models-from-scratch and https://github.com/openai/CLIP"
    )
    once = badges.rewritten(text, here)
    assert "colab.research.google.com/github/someone/some-course/blob/v1.2/notebooks/1_multimodal/02_clip.ipynb" in once
    assert '"course-utils @ git+https://github.com/someone/some-course@v1.2"' in once
    assert "see https://github.com/someone/some-course and https://github.com/openai/CLIP" in once
    assert badges.rewritten(once, here) == once


# What `make lab` is about to fetch

FAKE_PIP = """#!/bin/sh
case "$*" in *--no-index*) exit 1;; esac
echo "PIP $*"
"""


@pytest.fixture
def make_setup(tmp_path):
    """Run `make setup` with a pip that only prints, where the machine has an NVIDIA driver or has none."""
    if sys.platform != "linux" or not shutil.which("make"):
        pytest.skip("only Linux has the choice")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    tools = {".venv/bin/python": FAKE_PIP, "driver/nvidia-smi": "#!/bin/sh\nexit 0\n", "none/nvidia-smi": "#!/bin/sh\nexit 9\n", "pc/uname": "#!/bin/sh\n"}
    tools["pc/uname"] += "[ $1 = -s ] && echo Linux || echo x86_64\n"
    for name, text in tools.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*args, driver=False):
        (tmp_path / ".venv" / ".lab").unlink(missing_ok=True)
        path = os.pathsep.join([str(tmp_path / ("driver" if driver else "none")), str(tmp_path / "pc"), os.environ["PATH"]])
        command = ["make", "-s", "setup", f"PYTHON={sys.executable}", *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path, "MAKEFLAGS": ""})

    return run


@pytest.fixture
def cpu_index(tmp_path):
    """A server that stands for PyTorch's index of CPU builds."""
    import functools
    import http.server
    import threading

    (tmp_path / "index" / "torch").mkdir(parents=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "index")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def torch_line(done):
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("PIP") and x.endswith(" torch")]
    return line


@pytest.mark.parametrize("asked", ["", "cpu"])
def test_without_a_driver_the_cpu_build_is_taken_and_said(make_setup, cpu_index, asked):
    done = make_setup(f"TORCH_CPU_INDEX={cpu_index}", f"TORCH={asked}")
    assert f"--index-url {cpu_index} -c constraints.txt torch" in torch_line(done)
    assert "1.5 GB" in done.stdout and ("No NVIDIA driver" in done.stdout) == (asked == "")


def test_where_the_cpu_index_cannot_be_reached_the_ordinary_one_is_taken_and_said(make_setup):
    done = make_setup("TORCH_CPU_INDEX=http://127.0.0.1:9", "TORCH=cpu")
    assert "--index-url" not in torch_line(done)
    assert "can't be reached" in done.stdout and "5.7 GB" in done.stdout


@pytest.mark.parametrize("driver, asked", [(True, ""), (False, "cuda"), (True, "cuda")])
def test_the_cuda_build(make_setup, cpu_index, driver, asked):
    done = make_setup(f"TORCH_CPU_INDEX={cpu_index}", f"TORCH={asked}", driver=driver)
    assert "--index-url" not in torch_line(done) and "5.7 GB" in done.stdout and "TORCH=cpu" in done.stdout


def test_a_build_that_does_not_exist(make_setup):
    done = make_setup("TORCH=rocm")
    assert done.returncode and "TORCH=cpu or TORCH=cuda" in done.stdout and "PIP" not in done.stdout


@pytest.mark.parametrize("name", readme.WORDS)
def test_the_readmes_say_what_make_says(name):
    text, make = (ROOT / name).read_text(encoding="utf8"), (ROOT / "Makefile").read_text(encoding="utf8")
    for said in ("https://download.pytorch.org/whl/cpu", "1.5 GB", "2.5 GB", "5.7 GB"):
        assert said in text and said in make
    assert "git clone --depth 1" in text and "TORCH=cpu" in text
