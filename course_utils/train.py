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

import math
import os
import random
import signal
import threading
import time
from functools import lru_cache
from pathlib import Path

import torch

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
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.bit_generator.state if hasattr(part, "bit_generator") else part.state_dict()


def _restore(part, state) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif hasattr(part, "bit_generator"):
        part.bit_generator.state = state
    else:
        part.load_state_dict(state)


def _global_generators() -> dict:
    import numpy as np

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def _set_global_generators(states: dict) -> None:
    import numpy as np

    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


@lru_cache(maxsize=1)
def fast_bf16() -> bool:
    """Has this processor instructions for products of 16-bit brain floats (AVX512_BF16, AMX)? Without them bf16 is slower than float32."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private names of torch: absent ones count as no
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def bf16(device="cpu", enabled: bool | None = None) -> torch.autocast:
    """Within this, convolutions and matrix products are computed in bf16 where the machine is faster at it; weights, gradients and losses stay in float32.

    bf16 has float32's range and 8 bits of precision, so nothing overflows and no loss scaling is needed. Measured on one AMD Zen 4 core, the U-Net of lesson 2.3
    at batch 64: a step in .60 s, in float32 1.06 s. Write attention as products and a softmax: the fused one has a slow backward in bf16 on a CPU (.79 s).
    """
    device = torch.device(device)
    able = device.type == "cuda" or (device.type == "cpu" and fast_bf16())
    return torch.autocast(device.type if device.type in ("cpu", "cuda") else "cpu", torch.bfloat16, enabled=able if enabled is None else enabled)


def orthogonal(G: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The nearest orthogonal matrices to (N, rows, columns), roughly: singular vectors kept, singular values moved towards 1 (.7 to 1.2) by Newton–Schulz steps.

    A step is x ← a·x + b·x³ + c·x⁵ on every singular value, with Jordan's coefficients: steep at 0, and bounded in 16 bits too.
    """
    X = G.to(dtype or G.dtype)
    wide = X.shape[-2] <= X.shape[-1]
    X = X if wide else X.mT  # the smaller side first: X Xᵀ is small
    X = X / (X.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).to(X.dtype)  # all singular values below 1
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return (X if wide else X.mT).to(G.dtype)


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for weight matrices and convolutions, seen as one row per output channel; AdamW for all else: biases, norms, embeddings.

    A step for a matrix: momentum (Nesterov), made orthogonal, so that no direction is learned slowly because its gradients are small; scaled by .2·√(longest side),
    the size of AdamW's steps (Liu et al. 2025). ``plain``: names, or parts of them, that go to AdamW too: the layers at either end, and what reads a condition.
    It costs a fifth of a step at batch 64, and learned about twice as much from an example as AdamW did.
    """

    def __init__(self, model, lr: float = 3e-3, *, adam_lr: float = 2e-3, momentum: float = 0.95, weight_decay: float = 0.01, plain: tuple = ()):
        embeddings = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        free = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        muon = [p for n, p in free if p.ndim >= 2 and p not in embeddings and not any(part in n for part in plain)]
        rest = [p for _, p in free if not any(p is m for m in muon)]
        groups = [{"params": rest, "lr": adam_lr, "momentum": None}, {"params": muon, "lr": lr, "momentum": momentum}]
        super().__init__([g for g in groups if g["params"]], betas=(0.9, 0.99), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        done = {}
        for group in self.param_groups:
            if group["momentum"] is not None:
                for shape, same in _by_shape(group["params"]).items():
                    for p, update in zip(same, self._updates(same, shape, group["momentum"])):
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                        p.add_(update.reshape(p.shape), alpha=-0.2 * group["lr"] * math.sqrt(max(shape)))
                        done[p], p.grad = p.grad, None  # AdamW passes over what has no gradient
        super().step()
        for p, gradient in done.items():
            p.grad = gradient
        return loss

    def _updates(self, parameters, shape, momentum):
        """Orthogonal matrices (N, rows, columns) for N parameters of one shape, at once: many small products would be slow."""
        ahead = []
        for p in parameters:
            state = self.state[p]
            if not state:
                state.update(momentum=torch.zeros_like(p), step=torch.zeros(()))  # AdamW looks for every state's step when it is loaded
            state["momentum"].lerp_(p.grad, 1 - momentum)
            ahead.append(p.grad.lerp(state["momentum"], momentum).reshape(shape))
        G = torch.stack(ahead)
        return orthogonal(G, torch.bfloat16 if G.is_cuda or fast_bf16() else None)


def _by_shape(parameters) -> dict:
    """(rows, columns) → the parameters with a gradient that have this shape as matrices."""
    groups: dict = {}
    for p in parameters:
        if p.grad is not None:
            groups.setdefault((len(p), p[0].numel()), []).append(p)
    return groups
