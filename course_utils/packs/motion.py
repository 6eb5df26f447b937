"""The pack `motion`: real motion capture, already retargeted to the skeleton of the pack `bodies`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import data
from ..errors import CourseError


@dataclass(frozen=True)
class Motion:
    """One clip: T frames, J = 31 joints in the body's order."""

    name: str
    theta: np.ndarray  # (T, J, 3) float32: local axis–angle rotations in radians, relative to the body's rest pose
    trans: np.ndarray  # (T, 3) float32: metres, added to the posed body; the floor is y = 0
    fps: float
    offsets: np.ndarray  # (J, 3) float32: the actor's own rest skeleton, metres from parent; NaN where the actor's skeleton lacks the joint
    split: str  # "train" or "test": clips are never shared between them
    source: str  # the file that it came from


def clips(split: str | None = None) -> tuple[str, ...]:
    """Names of the clips, of one split or of both."""
    with np.load(data.path("motion/motion.npz")) as z:
        return tuple(n for n, s in zip(z["names"].tolist(), z["splits"].tolist()) if split in (None, s))


def motion(clip: str = "jump") -> Motion:
    """Read one clip: "jump" (steps and jumps), "climb" (climbing, hanging, swinging), "boxing"."""
    with np.load(data.path("motion/motion.npz")) as z:
        names = z["names"].tolist()
        if clip not in names:
            raise CourseError(f"There is no motion clip {clip!r}: the clips are {', '.join(names)}.")
        k = names.index(clip)
        return Motion(
            name=clip, theta=(z[f"{clip}_theta"] / 32767 * np.pi).astype(np.float32), trans=z[f"{clip}_trans"], fps=float(z[f"{clip}_fps"]),
            offsets=z[f"{clip}_offsets"], split=z["splits"].tolist()[k], source=z["files"].tolist()[k],
        )  # fmt: skip
