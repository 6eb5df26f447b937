"""Trained weights: small safetensors files in half precision that say how they were made."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from . import data
from .errors import CourseError


def file(name: str) -> Path:
    """Where the weights called ``name`` are, fetched by checksum when this is not a checkout."""
    return data.path(f"weights/{name}.safetensors")


def save(name: str, models, *, folder: str | Path | None = None, half: bool = True, **metadata) -> Path:
    """Write one model, or a dictionary of them, to ``data/weights/<name>.safetensors``.

    ``metadata`` (lesson, profile, seed, steps, metrics ...) is stored with the weights; the date is added.
    """
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for prefix, model in _named(models).items():
        for key, value in model.state_dict().items():
            value = value.detach().cpu().contiguous()
            if half and value.is_floating_point():
                if value.numel() and value.abs().max() > 65504:
                    raise CourseError(f"{prefix}{key} is too large for half precision: save with half=False.")
                value = value.half()
            tensors[prefix + key] = value.clone()
    target = Path(folder) if folder else data.root() / "weights"
    target.mkdir(parents=True, exist_ok=True)
    meta = {"date": datetime.date.today().isoformat(), "torch": torch.__version__.split("+")[0], **metadata}
    out = target / f"{name}.safetensors"
    part = out.with_suffix(".part")
    save_file(tensors, part, metadata={k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()})
    part.chmod(0o644)  # safetensors writes for the owner alone
    part.replace(out)
    if target == data.root() / "weights":
        data.write_registry()
    return out


def load(name: str, models, *, folder: str | Path | None = None) -> dict:
    """Fill one model, or a dictionary of them, from the file; returns its metadata. Every parameter must be there, in the right shape."""
    from safetensors.torch import load_file

    source = Path(folder) / f"{name}.safetensors" if folder else file(name)
    meta = metadata(name, folder=folder)
    tensors = load_file(source)
    for prefix, model in _named(models).items():
        own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            model.load_state_dict({k: v.to(model.state_dict()[k].dtype) if k in model.state_dict() else v for k, v in own.items()})
        except RuntimeError as e:
            raise CourseError(
                f"The weights {name!r} do not fit this model ({str(e).splitlines()[1].strip()}): "
                "build it with the configuration that the weights' metadata names."
            ) from e
        model.eval()
    return meta


def metadata(name: str, *, folder: str | Path | None = None) -> dict:
    """What the file says about itself, without loading the weights."""
    from safetensors import SafetensorError, safe_open

    source = Path(folder) / f"{name}.safetensors" if folder else file(name)
    try:
        with safe_open(source, framework="np") as f:
            raw = f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise CourseError(f"The weights file {source.name} cannot be read: delete it and fetch it again with `git checkout` or `make weights`.") from e
    return {k: _parse(v) for k, v in raw.items()}


def _parse(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _named(models) -> dict:
    return {f"{k}.": m for k, m in models.items()} if isinstance(models, dict) else {"": models}
