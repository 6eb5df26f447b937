"""``python -m course_utils doctor``: what is installed, what the machine offers, which data and weights are here, and how to mend what is not right."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata

from .. import data, lesson
from ..errors import CourseError


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``good`` is False where something must be mended, and ``mend`` then says how, in one sentence."""

    group: str
    name: str
    value: str
    good: bool = True
    mend: str = ""


def floors() -> dict[str, str]:
    """Package → lowest version that the course works with, from the installed metadata of course-utils (pyproject.toml)."""
    try:
        required = metadata.requires("course-utils") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([A-Za-z0-9_.-]+)\s*>=\s*([\d.]+)\s*(;.*)?$", r) for r in required)
    return {m[1].lower(): m[2] for m in found if m and not m[3]}


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" → (2, 13, 0)."""
    return tuple(int(n) for n in re.match(r"\d+(\.\d+)*", version)[0].split("."))


def at_least(version: str, floor: str) -> bool:
    """Is a version the floor or newer? 5 equals 5.0."""
    a, b = numbers(version), numbers(floor)
    width = max(len(a), len(b))
    return a + (0,) * (width - len(a)) >= b + (0,) * (width - len(b))


def software() -> list[Finding]:
    """Python and every package of the course against its floor."""
    found = [Finding("software", "python", platform.python_version(), sys.version_info >= (3, 10), "Install Python 3.10 or newer.")]
    wanted = floors()
    if not wanted:
        mend = "Run `pip install -e .` in the repository (or `make lab`)."
        found.append(Finding("software", "course-utils", "not installed", False, mend))
    for package, floor in wanted.items():
        mend = f'Run `pip install "{package}>={floor}"`.'
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            found.append(Finding("software", package, f"missing (≥ {floor} needed)", False, mend))
            continue
        good = at_least(version, floor)
        found.append(Finding("software", package, version if good else f"{version} (≥ {floor} needed)", good, mend))
    return found


def machine() -> list[Finding]:
    """Device, threads and profile, as ``lesson.start`` will choose them."""
    found = []
    try:
        device = lesson.best_device()
        import torch

        detail = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
        found.append(Finding("machine", "device", f"{device} ({detail})"))
    except ImportError:
        found.append(Finding("machine", "device", "unknown without torch", False, "Run `pip install torch`, or `make lab` in the repository."))
        return found
    except CourseError as e:
        found.append(Finding("machine", "device", "not usable", False, str(e)))
        device = "cpu"
    try:
        found.append(Finding("machine", "profile", lesson.profile(device)))
    except CourseError as e:
        found.append(Finding("machine", "profile", "unknown", False, str(e)))
    return found


def files() -> list[Finding]:
    """Every data pack and every weights file, by checksum."""
    known = data.registry()
    if not known:
        return [Finding("data", "registry", "missing", False, "Restore course_utils/registry.txt from the repository, or install the package again.")]
    packs: dict[tuple[str, str], list[str]] = {}
    for name in known:
        top, _, rest = name.partition("/")
        packs.setdefault(("weights", rest) if top == "weights" else ("data", top), []).append(name)
    checkout = data.root().is_dir()
    found = []
    for (group, name), members in sorted(packs.items()):
        missing = [m for m in members if not (data.root() / m).exists()]
        damaged = [m for m in members if m not in missing and data.sha256(data.root() / m) != known[m]]
        if damaged:
            mend = f"Restore it with `git checkout -- data/{damaged[0]}`."
            found.append(Finding(group, name, f"{damaged[0]} is damaged (its checksum differs)", False, mend))
        elif missing and checkout:
            mend = f"Restore it with `git checkout -- data/{missing[0]}`."
            found.append(Finding(group, name, f"{missing[0]} is missing", False, mend))
        elif missing:
            found.append(Finding(group, name, "not here; fetched once, by checksum, when a lesson asks for it"))
        else:
            size = sum((data.root() / m).stat().st_size for m in members)
            count = f"{len(members)} file{'s' if len(members) > 1 else ''}"
            found.append(Finding(group, name, f"{count}, {size / 1e6:.1f} MB, checksums right"))
    return found


def examine() -> list[Finding]:
    """The whole report."""
    return software() + machine() + files()


def main() -> int:
    """Print the report; 0 when all is right, 1 when something is to be mended."""
    found = examine()
    width = max(len(f.name) for f in found)
    group = None
    for f in found:
        if f.group != group:
            group = f.group
            print(f"{group}:")
        print(f"  {'✅' if f.good else '❌'} {f.name.ljust(width)}  {f.value}")
    bad = [f for f in found if not f.good]
    if bad:
        print("\nTo mend:")
        for f in bad:
            print(f"  {f.name}: {f.mend}")
    else:
        print("\nAll is right: choose a lesson.")
    return 1 if bad else 0
