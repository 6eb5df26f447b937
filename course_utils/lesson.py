"""The first line of every lesson: ``run = lesson.start("clip")`` seeds, chooses profile and device, and says how long it takes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from . import scoreboard
from .errors import CourseError

PROFILES = ("quick", "full")


def profile(device: str | None = None) -> str:
    """``quick`` or ``full``: COURSE_PROFILE when it is set, else ``full`` where there is a GPU and ``quick`` where there is none."""
    chosen = os.environ.get("COURSE_PROFILE", "").strip().lower()
    if not chosen:
        return "full" if (device or best_device()) != "cpu" else "quick"
    if chosen not in PROFILES:
        raise CourseError(f"COURSE_PROFILE={chosen!r} is not a profile: set it to quick or full, or unset it to let the machine decide.")
    return chosen


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

    def pick(self, *, quick, full):
        """The value for this run's profile. Used once per lesson, for its configuration."""
        return {"quick": quick, "full": full}[self.profile]

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
    """Begin a lesson. ``name`` is the lesson's short name, as in ``python -m course_utils list``; COURSE_SEED overrides ``seed``."""
    known = scoreboard.lessons()
    if name not in known:
        raise CourseError(f"There is no lesson {name!r}: choose one of {', '.join(sorted(known))}.")
    import torch

    from . import show

    text = os.environ.get("COURSE_SEED", "").strip()
    if text and not text.lstrip("-").isdigit():
        raise CourseError(f"COURSE_SEED={text!r} is not a whole number: set it to one, or unset it.")
    run = Run(name, int(text or seed), torch.device(best_device()), profile())
    seed_all(run.seed)
    show.use_style()
    entry = known[name]
    seconds = entry.get("seconds", {}).get(run.profile)
    takes = f"about {_spell(seconds)}" if seconds else "not measured yet"
    print(f"{entry['number']} {entry['title']} · profile {run.profile} on {_device_name(run.device)} · expected time: {takes}")
    if run.profile == "full" and run.device.type == "cpu":
        print("The full profile is meant for a GPU. On this processor it takes far longer; COURSE_PROFILE=quick is the setting for it.")
    return run


def _device_name(device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def _spell(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
