"""The part of training that a lesson need not show: the progress bar, the live curve, a clean stop, checkpoints, the moving average; and what makes a processor faster.

The loop itself stands in the notebook::

    optimiser, log = train.Muon(model), train.Log()     # with the model
    for step in log.steps(cfg.steps, "training CLIP"):  # a cell of its own
        with train.bf16(run.device):
            loss = ...
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        log(loss=loss)
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import threading
import time
from pathlib import Path

from .errors import CourseError, cannot_write


class Log:
    """The history of one training: how far it came, and every value that was logged.

    ``steps`` goes on where the last call stopped, so a training cell can be interrupted and run again without starting over or training twice.
    """

    def __init__(self):
        self.step = 0  # steps finished so far
        self.seconds = 0.0  # time spent in the loop so far
        self.cpu_seconds = 0.0  # the same, summed over the processor's cores
        self.history: dict[str, list[float]] = {}

    def __call__(self, **values) -> None:
        """Keep one value per name; numbers or tensors with one element."""
        for name, value in values.items():
            if getattr(value, "numel", lambda: 1)() != 1:
                raise CourseError(f"log({name}=...) takes one number a step, not a tensor of shape {tuple(value.shape)}: take its mean first.")
            self.history.setdefault(name, []).append(float(value.detach() if hasattr(value, "detach") else value))

    def steps(self, total: int, label: str = "training", live: bool = True, plot: str | None = None, checkpoint: Checkpoint | None = None):
        """Yield the step numbers up to ``total`` with a progress bar; draw the curve of ``plot`` (the first name logged) while running and at the end.

        An interrupt (the stop button, Ctrl-C) ends the loop after the step in progress; model, optimiser and history stay as they are.
        With a :class:`Checkpoint` a run that was killed goes on where its last checkpoint was made.
        """
        if checkpoint:
            checkpoint.resume(self)
        if self.step >= total:
            print(f"{label}: already trained for {self.step} steps. Run the cell that makes the model and the log again to start afresh.")
            return
        from tqdm.auto import tqdm

        from . import show

        stopped = threading.Event()
        restore = _on_interrupt(stopped)
        began = shown = time.time()
        panel = show.live_panel() if live else None
        bar = tqdm(total=total, initial=self.step, desc=label, leave=False)
        before, cpu_before, cpu_began = self.seconds, self.cpu_seconds, time.process_time()
        try:
            while self.step < total and not stopped.is_set():
                yield self.step
                self.step += 1
                self.seconds = before + time.time() - began
                self.cpu_seconds = cpu_before + time.process_time() - cpu_began
                if checkpoint:
                    checkpoint.keep(self, last=self.step == total)
                bar.update()
                name = plot or next(iter(self.history), None)
                if name and time.time() - shown > 3:
                    shown = time.time()
                    bar.set_postfix({name: f"{self.history[name][-1]:.3g}"})
                    if panel:
                        panel.draw(self, name, label, total)
        finally:
            restore()
            bar.close()
        name = plot or next(iter(self.history), None)
        if panel and name:
            panel.draw(self, name, label, total, last=True)
        if stopped.is_set() and self.step < total:
            print(f"{label}: stopped after step {self.step} of {total}. Model and history are kept; run this cell again to go on.")
        else:
            print(f"{label}: {self.step} steps in {self.seconds:.0f} s")

    def state_dict(self) -> dict:
        return {k: getattr(self, k) for k in ("step", "seconds", "cpu_seconds", "history")}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)

    def plot(self, *names: str, smooth: int = 1, title: str | None = None, logy: bool = False, ylabel: str = "loss"):
        """Draw the logged curves (all of them, or those named)."""
        from . import show

        chosen = {n: show.smoothed(self.history[n], smooth) for n in (names or self.history)}
        return show.curves(chosen, xlabel="step", ylabel=ylabel, title=title, logy=logy)


def _on_interrupt(stopped: threading.Event):
    """Turn the first SIGINT into a flag; a second one interrupts as usual. Returns what puts the old handler back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    old = signal.getsignal(signal.SIGINT)

    def handler(number, frame):
        stopped.set()
        signal.signal(signal.SIGINT, old if callable(old) else signal.default_int_handler)

    signal.signal(signal.SIGINT, handler)
    return lambda: signal.signal(signal.SIGINT, old if old is not None else signal.default_int_handler)


class EMA:
    """Exponential moving average of a model's weights (``torch.optim.swa_utils``): θ̄ ← decay·θ̄ + (1 − decay)·θ.

    ``warm=True`` lowers the decay in the first steps to (1 + n)/(10 + n), so that a short run is not dominated by its start.
    """

    def __init__(self, model, decay: float = 0.999, warm: bool = True):
        from torch.optim.swa_utils import AveragedModel

        def average(mean, new, n):
            d = min(decay, (1 + int(n)) / (10 + int(n))) if warm else decay
            return mean * d + new * (1 - d) if not mean.is_floating_point() else mean.lerp(new, 1 - d)

        self._averaged = AveragedModel(model, avg_fn=average, use_buffers=False)

    def update(self, model) -> None:
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict:
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._averaged.load_state_dict(state)

    @property
    def model(self):
        """The averaged model, in eval mode."""
        return self._averaged.module.eval()


class Checkpoint:
    """All that a training needs to go on after its process was killed: the parts that are named, every random generator, and the log.

    ``parts``: whatever has ``state_dict`` and ``load_state_dict`` (model, optimiser, scheduler, EMA), ``torch.Generator`` or ``numpy.random.Generator``::

        checkpoint = train.Checkpoint(run, model=model, optimiser=optimiser, ema=ema, draw=draw)
        for step in log.steps(cfg.steps, checkpoint=checkpoint): ...

    Nothing is written unless a folder is named, here or by COURSE_CHECKPOINTS; ``python -m course_utils run`` names one at the full profile. A checkpoint that was made
    with another configuration, seed or device is not used. ``label`` tells several trainings of one lesson apart; ``every``: seconds between two checkpoints.
    """

    def __init__(self, run, label: str = "model", *, every: float = 120, folder: str | Path | None = None, **parts):
        place = folder or os.environ.get("COURSE_CHECKPOINTS")
        self.file = Path(place) / run.name / f"{label}.pt" if place else None
        self.every, self.parts, self.saved = every, parts, time.time()
        self.made_by = f"{run.config}, seed {run.seed}, {run.device}"

    def keep(self, log: Log, last: bool = False) -> None:
        """Write the state after this step if it is time to, whole or not at all."""
        import torch

        if self.file and (last or time.time() - self.saved > self.every):
            self.saved = time.time()
            part = self.file.with_suffix(".part")
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(self._state(log), part)
                part.replace(self.file)
            except OSError as e:
                raise cannot_write(e, "name another folder with COURSE_CHECKPOINTS, or unset it") or e from e

    def resume(self, log: Log) -> None:
        """Go on from the file, if there is one of this very training that is further than ``log``."""
        import torch

        if not (self.file and self.file.exists()):
            return
        state = torch.load(self.file, weights_only=False)  # the generators' states are plain Python
        if state["made_by"] != self.made_by:
            print(f"{self.file.name}: the checkpoint was made with other settings, so training starts afresh.")
        elif state["log"]["step"] > log.step:
            for name, part in self.parts.items():
                _restore(part, state["parts"][name])
            _set_global_generators(state["generators"])
            log.load_state_dict(state["log"])
            print(f"goes on at step {log.step}, where its checkpoint was made")

    def _state(self, log: Log) -> dict:
        parts = {name: _state_of(part) for name, part in self.parts.items()}
        return {"made_by": self.made_by, "parts": parts, "generators": _global_generators(), "log": log.state_dict()}


def _state_of(part):
    import torch

    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.bit_generator.state if hasattr(part, "bit_generator") else part.state_dict()


def _restore(part, state) -> None:
    import torch

    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif hasattr(part, "bit_generator"):
        part.bit_generator.state = state
    else:
        part.load_state_dict(state)


def _global_generators() -> dict:
    import numpy as np
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def _set_global_generators(states: dict) -> None:
    import numpy as np
    import torch

    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def __getattr__(name: str):
    """What needs torch as soon as it is defined stands in ``processor``."""
    if name in ("Muon", "bf16", "fast_bf16", "orthogonal"):
        return getattr(importlib.import_module(".processor", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
