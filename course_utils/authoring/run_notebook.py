"""``python -m course_utils run clip --profile full``: a lesson's code cells as plain Python, without Jupyter.

Made for a bare machine with a GPU: it needs torch, numpy, matplotlib and the course's small packages, but no Jupyter, ipywidgets or plotly (where those are missing,
stand-ins take their calls and do nothing).
"""

from __future__ import annotations

import ast
import dataclasses
import linecache
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path

from .. import curriculum, lesson
from ..errors import CourseError, memory_full, writable
from . import notebooks

_OPTIONAL = ("IPython.display", "ipywidgets", "plotly", "plotly.express", "plotly.graph_objects", "plotly.io", "plotly.subplots", "tqdm", "tqdm.auto")
_SKIP = {"raises-exception", "nbval-skip"}


def plain(code: str) -> str:
    """A cell's code with its magics and shell lines commented out: ``    %pip install x`` becomes ``    pass  # %pip install x``."""
    if code.lstrip().startswith("%%"):
        return "pass\n" + "".join(f"# {line}\n" for line in code.splitlines())
    return "".join(re.sub(r"^(\s*)([%!].*)$", r"\1pass  # \2", line) + "\n" for line in code.splitlines())


def cells(path: Path) -> list[tuple[int, str]]:
    """(position, code) of every code cell that is to run."""
    found = []
    for i, cell in enumerate(notebooks.read(path)["cells"]):
        if cell["cell_type"] == "code" and not _SKIP & set(cell["metadata"].get("tags", [])):
            found.append((i, plain(notebooks.source(cell))))
    return found


def parsed(settings: list[str]) -> dict:
    """``["steps=100", "name='x'"]`` → ``{"steps": 100, "name": "x"}``; what is no Python literal stays a string."""
    out = {}
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier():
            raise CourseError(f"--set takes name=value, as in --set steps=100, not {text!r}.")
        try:
            out[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[key] = value
    return out


def override(config, settings: dict):
    """A copy of a lesson's configuration (a dataclass) with some fields changed."""
    if not settings:
        return config
    known = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    unknown = [k for k in settings if k not in known]
    if unknown:
        raise CourseError(f"This lesson's configuration has no {unknown[0]!r}: --set takes {', '.join(known)}.")
    return dataclasses.replace(config, **settings)


def _stand_ins() -> list[str]:
    """Put something harmless where an optional package is missing; returns their names."""
    import importlib.util
    from unittest.mock import MagicMock

    missing = {name for name in ("IPython", "ipywidgets", "plotly", "tqdm") if importlib.util.find_spec(name) is None}
    for name in _OPTIONAL:
        if name.partition(".")[0] in missing:
            sys.modules[name] = MagicMock()
    if "IPython" in missing:  # itself it stays missing: matplotlib and the course ask for it to see whether there is a notebook
        sys.modules["IPython.display"].display = _display
    if "tqdm" in missing:
        sys.modules["tqdm.auto"].tqdm = sys.modules["tqdm"].tqdm = _Bar
    return sorted(missing)


class _Bar:
    """What the course uses of tqdm: an iterable that counts, and prints a line now and then."""

    def __init__(self, iterable=None, total=None, initial=0, desc="", **_):
        self.iterable, self.total, self.n, self.desc, self.shown = iterable, total, initial, desc, time.time()

    def __iter__(self):
        for x in self.iterable:
            yield x
            self.update()

    def update(self, n=1):
        self.n += n
        if time.time() - self.shown > 20:
            self.shown = time.time()
            print(f"  {self.desc} {self.n}/{self.total or '?'}", flush=True)

    def __getattr__(self, name):
        return lambda *a, **k: None


def _display(*things, raw: bool = False, **_):
    """Print the text of what a notebook would show; pictures are left out."""
    for thing in things:
        text = thing.get("text/plain", "") if raw and isinstance(thing, dict) else repr(thing)
        if text and not text.startswith("<"):
            print(text if len(text) < 2000 else text[:2000] + " …")


def run(path: Path, profile: str, settings: dict | None = None, figures: Path | None = None) -> dict:
    """Execute a notebook's code cells in order; returns their global names. The first error stops it and is raised with the cell's number."""
    os.environ["COURSE_PROFILE"] = profile
    os.environ["MPLBACKEND"] = "Agg"
    missing = _stand_ins()
    if missing:
        print(f"Not installed and not needed here: {', '.join(missing)}.")
    import matplotlib.pyplot as plt

    shown = _figure_saver(plt, figures)
    pick = lesson.Run.pick
    space = {"__name__": "__main__", "display": _display}
    plt_show, plt.show = plt.show, shown
    chosen = {}

    def overridden(self, *, quick, full):
        self.config = chosen["config"] = override(pick(self, quick=quick, full=full), settings or {})
        return self.config

    lesson.Run.pick = overridden
    began = time.time()
    todo = cells(path)
    try:
        for n, (position, code) in enumerate(todo, 1):
            start = time.time()
            name = f"{path.stem}[cell {position}]"
            linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)  # so that a traceback shows the line
            _execute(code, name, space)
            plt.close("all")
            if time.time() - start > 1:
                print(f"  [cell {position}, {n} of {len(todo)}: {time.time() - start:.1f} s]", flush=True)
    except Exception as e:
        if type(e).__name__ == "OutOfMemoryError":
            raise CourseError(memory_full(lesson.memory_setting(chosen.get("config"))).replace("restart the kernel and halve", "halve, with --set,")) from e
        raise
    finally:
        lesson.Run.pick = pick
        plt.show = plt_show
    print(f"{path.stem}: {len(todo)} cells in {time.time() - began:.0f} s at {profile}{_peak()}")
    return space


def _execute(code: str, name: str, space: dict) -> None:
    """Run a cell; print the value of its last line as a notebook would."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";") else None
    exec(compile(tree, name, "exec", dont_inherit=True), space)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), space)
        if value is not None:
            _display(value)


def _figure_saver(plt, folder: Path | None):
    count = 0

    def show(*_, **__):
        nonlocal count
        for number in plt.get_fignums():
            count += 1
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                plt.figure(number).savefig(folder / f"{count:02}.png")
        plt.close("all")

    return show


def _peak() -> str:
    import torch

    if torch.cuda.is_available():
        return f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory at most"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", {peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GiB of memory at most"


def with_weights() -> list[str]:
    """Lessons whose notebook writes weights."""
    found = notebooks.lessons().items()
    return [name for name, path in found if any("weights.save(" in code for _, code in cells(path))]


def configuration(path: Path, profile: str = "full") -> dict:
    """The configuration that a lesson's notebook has for a profile, without running the lesson: its ``Config`` and its ``run.pick`` alone."""

    class Picker:
        pick = staticmethod(lambda *, quick, full: {"quick": quick, "full": full}[profile])

    space = {"dataclass": dataclasses.dataclass, "field": dataclasses.field, "run": Picker, "__name__": "configuration"}
    for _, code in cells(path):
        if "run.pick(" not in code:
            continue
        for part in ast.parse(code).body:  # up to the line that picks
            exec(compile(ast.Module([part], []), f"{path.stem}[configuration]", "exec", dont_inherit=True), space)
            if "run.pick(" in ast.unparse(part):
                return dataclasses.asdict(space[part.targets[0].id])
    return {}


def _checkpoints(name: str, profile: str) -> Path | None:
    """Where this run keeps its checkpoints: COURSE_CHECKPOINTS, or build/checkpoints at full."""
    if profile == "full":
        os.environ.setdefault("COURSE_CHECKPOINTS", str(notebooks.folder().parent / "build" / "checkpoints"))
    return Path(os.environ["COURSE_CHECKPOINTS"]) / name if os.environ.get("COURSE_CHECKPOINTS") else None


def main(args) -> int:
    """Run one lesson here, or several one after another, each in a process of its own, those first that others start from.

    At full a run that was killed goes on from its last checkpoint; what is left of the checkpoints goes when it has ended.
    """
    names = list(args.names) + (with_weights() if args.with_weights else [])
    if not names:
        raise CourseError("Name a lesson, as in `python -m course_utils run clip`; `python -m course_utils list` names them.")
    paths = [notebooks.find(name) for name in names]
    profile = args.profile or lesson.chosen_profile("full")
    if len(names) > 1:
        import subprocess

        more = ["--profile", profile, *(x for s in args.set for x in ("--set", s))]
        more += ["--figures", args.figures] if args.figures else []
        status = 0
        for name in [n for n in curriculum.order({n: tuple(curriculum.all_needs(n)) for n in names if n in curriculum.lessons()}) if n in names]:
            print(f"== {name}", flush=True)
            status |= subprocess.run([sys.executable, "-m", "course_utils", "run", name, *more]).returncode
        return status
    figures = Path(args.figures) / names[0] if args.figures else None
    if figures:
        writable(figures, "name another folder with --figures")
    checkpoints = _checkpoints(names[0], profile)
    try:
        run(paths[0], profile, parsed(args.set), figures)
        if checkpoints:
            shutil.rmtree(checkpoints, ignore_errors=True)
    except CourseError:
        raise
    except ModuleNotFoundError as e:
        raise CourseError(f"{names[0]} needs the package {e.name!r}: run `pip install {e.name}` and try again.") from e
    except Exception:
        traceback.print_exc()
        return 1
    return 0
