"""The data packs: small real data, committed under ``data/``, read offline.

In a checkout the files are read where they stand. Installed without one (Colab), they are fetched once into the user's cache. Either way the SHA-256 of the registry decides.
The registry is part of the package: nothing but ``python -m course_utils.data``, which an author runs in a checkout, ever writes it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from functools import lru_cache
from pathlib import Path

from .errors import CourseError, cannot_write

PACKS = ("emoji", "digits", "objects", "bodies", "motion", "rooms", "stereo")
REGISTRY = Path(__file__).with_name("registry.txt")
CHECKOUT = Path(__file__).resolve().parent.parent


def __getattr__(name: str):
    if name in (*PACKS, "picture"):  # data.emoji(...) is course_utils.packs.emoji.emoji(...)
        return getattr(importlib.import_module(f".packs.{name}", __package__), name)
    raise AttributeError(f"There is no data pack {name!r}: the packs are {', '.join(PACKS)}.")


def root() -> Path:
    """The folder ``data/`` of the checkout; COURSE_DATA overrides. It need not exist."""
    return Path(os.environ.get("COURSE_DATA") or CHECKOUT / "data")


def in_checkout() -> bool:
    """Does the package stand in the course's repository, or has it been installed by itself? A folder named by COURSE_DATA counts as the repository's."""
    return bool(os.environ.get("COURSE_DATA")) or (CHECKOUT / "pyproject.toml").exists()


def cache() -> Path:
    """The user's own folder for what is fetched and trained: COURSE_CACHE, or the place that the operating system has for such things."""
    import pooch

    return Path(os.environ.get("COURSE_CACHE") or pooch.os_cache("course-utils"))


@lru_cache(maxsize=1)
def registry() -> dict[str, str]:
    """File name under ``data/`` → SHA-256."""
    lines = REGISTRY.read_text(encoding="utf8").split("\n") if REGISTRY.exists() else []
    return dict(reversed(line.split("  ", 1)) for line in lines if line.strip())


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


_verified: set[tuple[str, int, int]] = set()


def path(name: str) -> Path:
    """The data file ``name`` (relative to ``data/``), verified by checksum; fetched into the cache when there is no checkout.

    Raises CourseError when the file is unknown, missing without a network, or damaged.
    """
    known = registry()
    local = root() / name
    if name not in known:
        if local.exists() and root() != CHECKOUT / "data":
            return local  # a folder of the user's own
        raise CourseError(f"{name!r} is not a file of the course: `python -m course_utils doctor` lists what is there.")
    if local.exists():
        stat = local.stat()
        key = (str(local), stat.st_size, stat.st_mtime_ns)
        if key not in _verified and sha256(local) != known[name]:
            raise CourseError(f"The data file {name} is damaged ({stat.st_size} bytes): restore it with `git checkout -- data/{name}`, or delete it.")
        _verified.add(key)
        return local
    if (root().parent / ".git").exists() and not os.environ.get("COURSE_DATA"):
        raise CourseError(f"The data file {name} is missing from this checkout: restore it with `git checkout -- data/{name}`.")
    return _fetch(name, known[name])


def _fetch(name: str, sha: str) -> Path:
    """Fetch one file of the repository at the installed tag with pooch."""
    import pooch

    base, tag = _origin()
    url = f"{base.replace('https://github.com', 'https://raw.githubusercontent.com')}/{tag}/data/{name}"
    try:
        got = pooch.retrieve(url, known_hash=f"sha256:{sha}", path=cache() / Path(name).parent, fname=Path(name).name)
    except ValueError as e:
        raise CourseError(f"The file {name} arrived damaged: run the cell again; if it stays so, clone the repository instead.") from e
    except Exception as e:  # no network, no such address, no room
        if isinstance(e, OSError) and (unwritable := cannot_write(e, "set COURSE_CACHE to a folder of your own")):
            raise unwritable from e
        raise CourseError(f"The data file {name} is not here and could not be fetched: clone the whole repository, or connect to the network once.") from e
    return Path(got)


def _origin() -> tuple[str, str]:
    """Repository address and tag, as the installed package's metadata (``[project.urls]``) has them."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = dict(u.split(", ", 1) for u in metadata("course-utils").get_all("Project-URL") or [])
    except PackageNotFoundError:
        urls = {}
    return urls.get("repository", "https://github.com/OWNER/vision-models-from-scratch").rstrip("/"), urls.get("tag", "main").rsplit("/", 1)[-1]


def write_registry() -> dict[str, str]:
    """Rewrite ``registry.txt`` from what stands in the checkout's ``data/``: packs and weights. An author's step: `python -m course_utils.data`."""
    folder, skip = CHECKOUT / "data", {"build", "sheets", "licenses", "local"}
    if not (CHECKOUT / "pyproject.toml").exists() or not folder.is_dir():
        raise CourseError("The registry is written in a checkout of the course only: clone the repository and run `python -m course_utils.data` there.")
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.relative_to(folder).parts[0] not in skip and f.suffix not in {".md", ".part"})
    found = {f.relative_to(folder).as_posix(): sha256(f) for f in files}
    part = REGISTRY.with_suffix(".part")
    part.write_text("".join(f"{sha}  {name}\n" for name, sha in found.items()), encoding="utf8")
    part.replace(REGISTRY)
    registry.cache_clear()
    return found


if __name__ == "__main__":
    try:
        print("\n".join(write_registry()))
    except CourseError as e:
        raise SystemExit(str(e)) from e
