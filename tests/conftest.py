"""What all tests share. They need no network, one thread and no display."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("COURSE_PROFILE", "quick")

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

collect_ignore = ["benchmarks"]
if sys.version_info < (3, 11):  # body-models has no release for Python 3.10
    collect_ignore.append("lessons/test_linear_blend_skinning.py")


@pytest.fixture(autouse=True)
def _figures_closed():
    """No figure of one test is left for the next."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def outside_ci(monkeypatch):
    """As on a learner's machine: checks and scores print and do not raise."""
    monkeypatch.delenv("CI", raising=False)


@pytest.fixture
def under_ci(monkeypatch):
    """As in CI: checks and scores raise."""
    monkeypatch.setenv("CI", "1")


@pytest.fixture
def python():
    """Run a piece of Python in a process of its own, with the network refused: ``python("print(1)", CI="")`` → CompletedProcess."""

    def run(code: str, *args: str, timeout: float = 120, cwd=ROOT, **env: str):
        full = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "offline"), str(ROOT)]), **env}
        return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=timeout, cwd=cwd, env=full)

    return run


def pytest_report_header():
    return f"profile {os.environ['COURSE_PROFILE']}, {os.environ['OMP_NUM_THREADS']} thread, CI={os.environ.get('CI', '')}"
