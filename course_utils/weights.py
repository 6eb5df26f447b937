"""Trained weights: small safetensors files in half precision that say how they were made.

What the course ships (``data/weights``, verified by checksum) is never changed by a learner's session. What a learner trains is kept in a folder of theirs, :func:`folder`.
A name stands for, in this order: a file in the folder that COURSE_WEIGHTS names, if it is set; what this very session saved; what the course ships; what an earlier session saved.
So a notebook goes on with what it has just trained, the next session is back at the course's weights, on which later lessons build, and ``own=True`` asks for one's own.
Authors set COURSE_WEIGHTS=data/weights (`make weights` does): then ``save`` writes there.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import os
from pathlib import Path

from . import data
from .errors import CourseError, cannot_write, say

_saved: dict[str, Path] = {}  # what this session saved without naming a folder
_loaded: dict[str, str] = {}  # what this session loaded, with the files' SHA-256: a model trained afterwards may have started from it


def folder() -> Path:
    """Where ``save`` writes: COURSE_WEIGHTS, or ``trained/`` in the user's cache."""
    return Path(os.environ.get("COURSE_WEIGHTS") or data.cache() / "trained")


def trained() -> list[Path]:
    """The weights files of the user's own."""
    return sorted(folder().glob("*.safetensors"))


def file(name: str, *, own: bool = False) -> Path:
    """Where the weights called ``name`` are; see the module's text for which. Those that the course ships are fetched by checksum when this is not a checkout."""
    mine = folder() / f"{name}.safetensors"
    if mine.exists() and (own or os.environ.get("COURSE_WEIGHTS")):
        return mine
    if own:
        there = ", ".join(f.stem for f in trained()) or "none yet"
        raise CourseError(f"There are no weights of your own called {name!r} in {folder()}: {there}.")
    if name in _saved and _saved[name].exists():
        return _saved[name]
    shipped = f"weights/{name}.safetensors"
    return mine if shipped not in data.registry() and mine.exists() else data.path(shipped)


def save(
    name: str, models, *, folder: str | Path | None = None, half: bool = True, run=None, log=None, started_from: tuple[str, ...] | None = None, **metadata
) -> Path:
    """Write one model, or a dictionary of them, to ``<name>.safetensors`` in ``folder`` (by default the user's own, :func:`folder`); returns the file.

    ``run`` (from ``lesson.start``) and ``log`` (a ``train.Log``) say how it was made: lesson, profile, seed, device, the whole configuration, steps, CPU seconds; and the checksums of
    the weights it started from, ``started_from`` or else all that this session loaded. ``metadata`` (metrics ...) is stored as well, and the date.
    A file that cannot be written is a CourseError, and an older one stays as it was.
    """
    import torch

    tensors = {}
    for prefix, model in _named(models).items():
        for key, value in model.state_dict().items():
            value = value.detach().cpu().contiguous()
            if half and value.is_floating_point():
                if value.numel() and value.abs().max() > 65504:
                    raise CourseError(f"{prefix}{key} is too large for half precision: save with half=False.")
                value = value.half()
            tensors[prefix + key] = value.clone()
    meta = {"date": datetime.date.today().isoformat(), "torch": torch.__version__.split("+")[0], **_making(name, run, log, started_from), **metadata}
    out = _own_folder(folder) / f"{name}.safetensors"
    _write(out, tensors, {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()})
    if folder is None:
        _saved[name] = out
        later = "" if os.environ.get("COURSE_WEIGHTS") else " This session goes on with these weights; a later one finds them with own=True."
        say(f"Saved {out}.{later}")
    return out


def _making(name: str, run, log, started_from: tuple[str, ...] | None) -> dict:
    """How a file was made, as metadata."""
    out: dict = {}
    if run is not None:
        out = {"lesson": run.name, "profile": run.profile, "seed": run.seed, "device": str(run.device)}
        out["configuration"] = dataclasses.asdict(run.config) if dataclasses.is_dataclass(run.config) else {}
        out["made_from"] = {n: digest for n, digest in _loaded.items() if n != name and (started_from is None or n in started_from)}
    if log is not None:
        out |= {"steps": log.step, "cpu_seconds": round(log.cpu_seconds)}
    return out


def stale(name: str, configuration: dict | None = None) -> str | None:
    """Why the weights that the course has of this name should be made again: other weights that they started from, or another ``configuration`` of the notebook at ``full``.

    "" when they are as they would be made today; None when they were made before this was recorded.
    """
    about = metadata(name)
    if "made_from" not in about:
        return None
    for other, digest in about["made_from"].items():
        if data.sha256(file(other)) != digest:
            return f"{name} was made from other weights of {other} than those that are here"
    had, wants = about["configuration"], configuration if configuration is None else json.loads(json.dumps(configuration))
    differs = [k for k in {**had, **wants} if had.get(k, had) != wants.get(k, wants)] if wants is not None else []
    return f"{name} was made with another {' and '.join(differs)} than its notebook has at full" if differs else ""


def _own_folder(named: str | Path | None) -> Path:
    return Path(named) if named else folder()


def _write(out: Path, tensors: dict, meta: dict) -> None:
    """Write a file whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = out.with_suffix(".part")
    advice = "the model is still in memory, so save it again with folder=..., or set COURSE_CACHE to a folder of your own"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata=meta)
        part.chmod(0o644)  # safetensors writes for the owner alone
        part.replace(out)
    except OSError as e:
        raise cannot_write(e, advice) or CourseError(f"Cannot write {out} ({e}): {advice}.") from e
    except SafetensorError as e:
        raise CourseError(f"Cannot write in {out.parent} ({e}): {advice}.") from e


def load(name: str, models, *, folder: str | Path | None = None, own: bool = False) -> dict:
    """Fill one model, or a dictionary of them, from the file; returns its metadata. Every parameter must be there, in the right shape.

    Meant for a model that was made for this. Where another is still in training, use :func:`stored`.
    """
    from safetensors.torch import load_file

    meta, source = metadata(name, folder=folder, own=own), _source(name, folder, own)
    tensors = load_file(source)
    for prefix, model in _named(models).items():
        mine = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            model.load_state_dict({k: v.to(model.state_dict()[k].dtype) if k in model.state_dict() else v for k, v in mine.items()})
        except RuntimeError as e:
            detail = str(e).splitlines()[:2][-1].strip()
            raise CourseError(
                f"The weights {name!r} do not fit this model ({detail}): build it with the configuration that the weights' metadata names."
            ) from e
        model.eval()
    _loaded[name] = data.sha256(source)
    return meta


def stored(name: str, like, *, folder: str | Path | None = None, own: bool = False):
    """Copies of ``like`` (a model, or a dictionary of them) with the stored weights, in eval mode. ``like`` itself, which may still be in training, is left as it is::

    trained = weights.stored("ddpm", like=net)     # net and its optimiser can go on
    """
    models = copy.deepcopy(like)
    load(name, models, folder=folder, own=own)
    return models


def metadata(name: str, *, folder: str | Path | None = None, own: bool = False) -> dict:
    """What the file says about itself, without loading the weights."""
    from safetensors import SafetensorError, safe_open

    source = _source(name, folder, own)
    try:
        with safe_open(source, framework="np") as f:
            raw = f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise CourseError(f"The weights file {source.name} cannot be read: delete it and fetch it again with `git checkout` or `make weights`.") from e
    return {k: _parse(v) for k, v in raw.items()}


def _source(name: str, named: str | Path | None, own: bool) -> Path:
    return Path(named) / f"{name}.safetensors" if named else file(name, own=own)


def _parse(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _named(models) -> dict:
    return {f"{k}.": m for k, m in models.items()} if isinstance(models, dict) else {"": models}
