"""Where the notebooks are, and how they are stored: executed at quick, with outputs, without widget state, timestamps or random ids."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path

from ..errors import CourseError

STILL = "image/png"


def folder() -> Path:
    """The folder ``notebooks/`` of the checkout."""
    path = Path(__file__).resolve().parents[2] / "notebooks"
    if not path.is_dir():
        raise CourseError("The notebooks are not here: clone the repository, this is an installed package without them.")
    return path


def lessons() -> dict[str, Path]:
    """Lesson name → notebook, in the order of the course (``02_clip.ipynb`` is the lesson ``clip``)."""
    files = sorted(folder().glob("[1-9]_*/*.ipynb"))
    return {re.sub(r"^\d+_", "", f.stem): f for f in files}


def find(name: str) -> Path:
    """The notebook of a lesson, or of the start page (``start_here``)."""
    known = {**lessons(), "start_here": folder() / "00_start_here.ipynb"}
    if name not in known:
        raise CourseError(f"There is no notebook for {name!r}: choose one of {', '.join(known)}.")
    return known[name]


def read(path: Path) -> dict:
    return json.loads(Path(path).read_text(encoding="utf8"))


def source(cell: dict) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def normalise(nb: dict) -> dict:
    """Stable ids, no execution metadata, no widget state; a widget's output keeps its still picture only."""
    seen: dict[str, int] = {}
    nb["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nb["nbformat"], nb["nbformat_minor"] = 4, 5
    for cell in nb["cells"]:
        key = hashlib.sha1((cell["cell_type"] + source(cell)).encode()).hexdigest()[:8]
        seen[key] = seen.get(key, 0) + 1
        cell["id"] = key if seen[key] == 1 else f"{key}-{seen[key]}"
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in map(_tidy, _joined(cell.get("outputs", []))) if o]
    return nb


def _joined(outputs: list[dict]) -> list[dict]:
    """Consecutive pieces of one stream as one output."""
    out: list[dict] = []
    for o in outputs:
        if o["output_type"] == "stream" and out and out[-1].get("name") == o["name"] and out[-1]["output_type"] == "stream":
            out[-1] = {**out[-1], "text": "".join(out[-1]["text"]) + "".join(o["text"])}
        else:
            out.append(o)
    return out


def _tidy(output: dict) -> dict | None:
    if output["output_type"] == "stream":
        text = output["text"] = _no_paths("".join(output["text"]))
        if output["name"] == "stderr" and re.search(r"\d+%\|", text):  # a progress bar
            return None
        return output if text.strip() else None
    output.get("metadata", {}).pop("execution", None)
    output.pop("transient", None)
    if output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None) and STILL not in output["data"]:
        return None  # a widget without a still picture: the progress bars
    if STILL in output.get("data", {}):
        output["data"][STILL] = _small_png(output["data"][STILL])
    return output


def _small_png(text) -> str:
    """A base64 PNG with a palette where that is much smaller; else as it is."""
    from ..show.style import with_palette

    text = "".join(text)
    if not text.startswith("iVBORw0KGgo"):  # the first bytes of every PNG
        return text
    return base64.b64encode(with_palette(base64.b64decode(text))).decode()


def _no_paths(text: str) -> str:
    """Warnings and errors name files; keep the part that is the same on every machine."""
    root = str(folder().parent)
    return re.sub(r"(/[\w.+-]+)*/site-packages/", "", text.replace(root + "/", "")).replace(root, ".")


def execute(path: Path, profile: str = "quick", timeout: int = 1800) -> dict:
    """Run a notebook from top to bottom and store its outputs, normalised. Raises at the first error."""
    import nbformat
    from nbclient import NotebookClient

    nb = nbformat.reads(json.dumps(normalise(read(path))), as_version=4)
    os.environ["COURSE_PROFILE"] = profile
    NotebookClient(nb, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}, store_widget_state=False).execute()
    done = normalise(json.loads(nbformat.writes(nb)))
    write(path, done)
    return done


def text(nb: dict) -> str:
    """A notebook as it stands in its file: each line of a cell on a line of its own, so that a change reads as one."""
    cells = [{**cell, "source": source(cell).splitlines(keepends=True)} for cell in nb["cells"]]
    nb = {**nb, "cells": cells}
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def write(path: Path, nb: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(text(nb), encoding="utf8")
    part.replace(path)
