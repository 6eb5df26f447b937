"""The first line of every lesson: ``run = lesson.start("clip")`` seeds, chooses profile and device, and says how long it takes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from . import scoreboard
from .errors import CourseError, memory_full, plain_console, say

PROFILES = ("quick", "full")
SEEDS = 2**32  # numpy takes no seed from here on


def profile(device: str | None = None) -> str:
    """``quick`` or ``full``: COURSE_PROFILE when it is set, else ``full`` where there is a GPU and ``quick`` where there is none."""
    return chosen_profile() or ("full" if (device or best_device()) != "cpu" else "quick")


def chosen_profile(default: str | None = None) -> str | None:
    """The profile that COURSE_PROFILE names, or ``default`` when it is not set. Raises CourseError for another word."""
    chosen = os.environ.get("COURSE_PROFILE", "").strip().lower()
    if chosen and chosen not in PROFILES:
        raise CourseError(f"COURSE_PROFILE={chosen!r} is not a profile: set it to quick or full, or unset it to let the machine decide.")
    return chosen or default


def best_device() -> str:
    """``cuda``, else ``cpu``; COURSE_DEVICE overrides (for instance ``mps``)."""
    import torch

    chosen = os.environ.get("COURSE_DEVICE", "").strip().lower()
    if not chosen:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as e:
        raise CourseError(f"COURSE_DEVICE={chosen!r} cannot be used on this machine: unset it, or set it to cpu.") from e
    return chosen


def chosen_seed(default: int = 0) -> int:
    """The seed that COURSE_SEED names, or ``default``: a whole number from 0 to 2³² − 1. Raises CourseError for anything else."""
    import operator
    import re

    text = os.environ.get("COURSE_SEED", "").strip()
    if text:
        good, shown = re.fullmatch("[0-9]+", text) and int(text) < SEEDS, f"COURSE_SEED={text!r}"
    else:
        good, shown = hasattr(default, "__index__") and 0 <= operator.index(default) < SEEDS, f"seed={default!r}"
    if not good:
        raise CourseError(f"{shown[:60]} is not a seed: it is a whole number from 0 to {SEEDS - 1}.")
    return int(text or default)


def allow_tf32(allow: bool = True) -> None:
    """Let a GPU shorten the float32 numbers of convolutions and matrix products to 10 bits after the point (TF32), or not. ``lesson.start`` turns it off.

    TF32 is faster on NVIDIA GPUs since 2020, and moves a result by about 1e-3 of its size: training does not mind, the lessons' equalities to 1e-4 do.
    """
    import warnings

    import torch

    with warnings.catch_warnings():  # some versions of torch recommend another name here; these two hold from 2.6 on
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = allow
        torch.backends.cudnn.allow_tf32 = allow


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass
class Run:
    """One execution of a lesson: its name, seed, device and profile, and the clock."""

    name: str
    seed: int
    device: object  # torch.device
    profile: str
    started: float = field(default_factory=time.time)
    config: object = None  # what pick gave

    def pick(self, *, quick, full):
        """The value for this run's profile. Used once per lesson, for its configuration."""
        self.config = {"quick": quick, "full": full}[self.profile]
        return self.config

    def generator(self, offset: int = 0):
        """A ``torch.Generator`` on the CPU seeded with ``seed + offset``: the same numbers wherever the lesson runs."""
        import torch

        return torch.Generator().manual_seed(self.seed + offset)

    def elapsed(self) -> float:
        """Seconds since ``lesson.start``."""
        return time.time() - self.started

    def score(self, **metrics: float):
        """Show the scoreboard of this lesson; under CI, raise when a metric lies outside its expected range."""
        return scoreboard.score(self, metrics)


def start(name: str, seed: int = 0) -> Run:
    """Begin a lesson. ``name`` is the lesson's short name, as in ``python -m course_utils list``; COURSE_SEED overrides ``seed`` (0 to 2³² − 1)."""
    known = scoreboard.lessons()
    if name not in known:
        raise CourseError(f"There is no lesson {name!r}: choose one of {', '.join(sorted(known))}.")
    import torch

    from . import show

    plain_console()
    run = Run(name, chosen_seed(seed), torch.device(best_device()), profile())
    seed_all(run.seed)
    allow_tf32(False)
    show.use_style()
    _say_memory_full_in_one_sentence(run)
    entry = known[name]
    seconds = entry.get("seconds", {}).get(run.profile)
    takes = f"about {_spell(seconds)}" if seconds else "not measured yet"
    say(f"{entry['number']} {entry['title']} · profile {run.profile} on {_device_name(run.device)} · expected time: {takes}")
    if run.device.type == "cuda":
        print("TF32 is off, so that equalities hold to 1e-4. It would make large products and convolutions faster: lesson.allow_tf32() turns it on.")
    if run.profile == "full" and run.device.type == "cpu":
        print("The full profile is meant for a GPU. On this processor it takes far longer; COURSE_PROFILE=quick is the setting for it.")
    return run


def memory_setting(config) -> str:
    """The settings of a lesson's configuration on which its memory depends, in words: ``cfg.batch (now 128)``. To be halved when a GPU's memory is full."""
    fields = vars(config) if hasattr(config, "__dict__") else {}
    names = [n for n in fields if "batch" in n] or [n for n in fields if any(w in n for w in ("rays", "points", "pictures", "size"))]
    return " or ".join(f"cfg.{n} (now {fields[n]})" for n in names[:2]) or "the sizes in cfg"


def _say_memory_full_in_one_sentence(run: Run) -> None:
    """In a notebook: a GPU out of memory shows as one sentence that names the setting to halve."""
    import sys

    import torch

    notebook = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if notebook is None:
        return

    def show_sentence(shell, kind, error, trace, tb_offset=None):
        shell.showtraceback((CourseError, CourseError(memory_full(memory_setting(run.config))), None))

    notebook.set_custom_exc((torch.OutOfMemoryError,), show_sentence)


def _device_name(device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def _spell(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
