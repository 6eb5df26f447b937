"""``python -m course_utils doctor``: what is installed, what the machine offers, which data and weights are here, and how to mend what is not right."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata

from .. import data, lesson, weights
from ..errors import CourseError, say, writable

FROM_ELSEWHERE = {"stereo"}  # its photograph comes with scikit-image


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
    which = f"{platform.python_version()} ({sys.executable})"
    found = [Finding("software", "python", which, sys.version_info >= (3, 10), "Install Python 3.10 or newer.")]
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
        version = _build_of_torch(version) if package == "torch" else version
        found.append(Finding("software", package, version if good else f"{version} (≥ {floor} needed)", good, mend))
    return found


def _build_of_torch(version: str) -> str:
    """The version of torch with the kind of its build: CUDA or CPU only."""
    try:
        from torch.version import cuda
    except ImportError:
        return version
    return f"{version.split('+')[0]} ({f'CUDA {cuda} build' if cuda else 'CPU build'})"


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
    """Every data pack and every weights file that the course ships, by checksum."""
    known = data.registry()
    again = "Restore course_utils/registry.txt from the repository, or install the package again."
    if not known:
        return [Finding("data", "registry", "missing", False, again)]
    packs: dict[tuple[str, str], list[str]] = {}
    for name in known:
        top, _, rest = name.partition("/")
        packs.setdefault(("weights", rest) if top == "weights" else ("data", top), []).append(name)
    return [_pack(group, name, members) for (group, name), members in sorted(packs.items())]


def _pack(group: str, name: str, members: list[str]) -> Finding:
    """One pack or one weights file: where it is, and whether every checksum is right."""
    here = data.in_checkout() and data.root().is_dir()
    place = data.root() if here else data.cache()
    files = {m: place / m for m in members}
    missing = [m for m, file in files.items() if not file.exists()]
    damaged = [m for m, file in files.items() if m not in missing and data.sha256(file) != data.registry()[m]]
    if damaged:
        mend = (
            f"Restore it with `git checkout -- data/{damaged[0]}`." if here else f"Delete {files[damaged[0]]}: it is fetched again when a lesson asks for it."
        )
        return Finding(group, name, f"{damaged[0]} is damaged (its checksum differs)", False, mend)
    if missing and here:
        return Finding(group, name, f"{missing[0]} is missing", False, f"Restore it with `git checkout -- data/{missing[0]}`.")
    if len(missing) == len(members):
        return Finding(group, name, "not here; fetched once, by checksum, when a lesson asks for it")
    size = sum(file.stat().st_size for file in files.values() if file.exists())
    count = f"{len(members)} file{'s' if len(members) > 1 else ''}" if not missing else f"{len(members) - len(missing)} of {len(members)} files so far"
    return Finding(group, name, f"{count}, {size / 1e6:.1f} MB, checksums right")


def registered() -> list[Finding]:
    """Does the registry name every pack? (It is short of them when something has overwritten it.)"""
    tops = {name.partition("/")[0] for name in data.registry()}
    lost = [pack for pack in data.PACKS if pack not in tops | FROM_ELSEWHERE]
    mend = "Restore course_utils/registry.txt from the repository, or install the package again."
    return [Finding("data", "registry", f"lacks {', '.join(lost)}", False, mend)] if lost and data.registry() else []


def stale_weights() -> list[Finding]:
    """Which shipped weights would come out differently today: made from other weights than are here, or by another configuration than their notebook's at full."""
    from . import notebooks, run_notebook

    if not data.in_checkout():
        return []
    reasons, unknown = {}, []
    for name, path in notebooks.lessons().items():
        if f"weights/{name}.safetensors" in data.registry():
            try:
                reasons[name] = weights.stale(name, run_notebook.configuration(path))
            except CourseError:  # damaged or missing: said above
                continue
            unknown += [name] if reasons[name] is None else []
    found = [Finding("weights", "stale", reason, False, f"Run `make weights LESSONS={name}`.") for name, reason in reasons.items() if reason]
    if not found:
        old = f"; made before this was recorded: {', '.join(unknown)}" if unknown else ""
        found = [Finding("weights", "stale", f"none{old}")]
    return found


def own_weights() -> list[Finding]:
    """What was trained on this machine, and whether it can be read; and whether there is room to save more."""
    if weights.folder().resolve() == (data.root() / "weights").resolve():
        return []  # an author's session
    found = []
    for file in weights.trained():
        name = file.stem
        try:
            about = weights.metadata(name, folder=file.parent)
        except CourseError:
            found.append(Finding("trained here", name, f"{file} cannot be read", False, f"Delete {file} and train it again."))
            continue
        shipped = f"weights/{file.name}" in data.registry()
        use = f'used with weights.load("{name}", ..., own=True)' if shipped else "used by its name"
        found.append(Finding("trained here", name, f"{about.get('date', 'no date')}, {file.stat().st_size / 1e6:.1f} MB, {use}"))
    try:
        writable(weights.folder(), "set COURSE_CACHE to a folder of your own")
    except CourseError as e:
        found.append(Finding("trained here", "folder", f"{weights.folder()} cannot be written", False, str(e)))
    return found


def examine() -> list[Finding]:
    """The whole report."""
    return software() + machine() + registered() + files() + stale_weights() + own_weights()


def main() -> int:
    """Print the report; 0 when all is right, 1 when something is to be mended."""
    found = examine()
    width = max(len(f.name) for f in found)
    group = None
    for f in found:
        if f.group != group:
            group = f.group
            say(f"{group}:")
        say(f"  {'✅' if f.good else '❌'} {f.name.ljust(width)}  {f.value}")
    bad = [f for f in found if not f.good]
    if bad:
        say("\nTo mend:")
        for f in bad:
            say(f"  {f.name}: {f.mend}")
    else:
        say("\nAll is right: choose a lesson.")
    return 1 if bad else 0
