"""The part of training that a lesson need not show: the progress bar, the live curve, a clean stop, the moving average.

The loop itself stands in the notebook::

    log = train.Log()                                  # with the model and its optimiser
    for step in log.steps(cfg.steps, "training CLIP"): # a cell of its own
        loss = ...
        log(loss=loss)
"""

from __future__ import annotations

import signal
import threading
import time

from .errors import CourseError


class Log:
    """The history of one training: how far it came, and every value that was logged.

    ``steps`` goes on where the last call stopped, so a training cell can be interrupted and run again without starting over or training twice.
    """

    def __init__(self):
        self.step = 0  # steps finished so far
        self.seconds = 0.0  # time spent in the loop so far
        self.history: dict[str, list[float]] = {}

    def __call__(self, **values) -> None:
        """Keep one value per name; numbers or tensors with one element."""
        for name, value in values.items():
            if getattr(value, "numel", lambda: 1)() != 1:
                raise CourseError(f"log({name}=...) takes one number a step, not a tensor of shape {tuple(value.shape)}: take its mean first.")
            self.history.setdefault(name, []).append(float(value.detach() if hasattr(value, "detach") else value))

    def steps(self, total: int, label: str = "training", live: bool = True, plot: str | None = None):
        """Yield the step numbers up to ``total`` with a progress bar; draw the curve of ``plot`` (the first name logged) while running and at the end.

        An interrupt (the stop button, Ctrl-C) ends the loop after the step in progress; model, optimiser and history stay as they are.
        """
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
        before = self.seconds
        try:
            while self.step < total and not stopped.is_set():
                yield self.step
                self.step += 1
                self.seconds = before + time.time() - began
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

    @property
    def model(self):
        """The averaged model, in eval mode."""
        return self._averaged.module.eval()
