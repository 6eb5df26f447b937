"""The pack `bodies`: one adult body that can change shape and be posed (mesh, skeleton, skin weights, keypoints)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .. import data


def _hat(value: float, anchors: int) -> np.ndarray:
    """Piecewise-linear weights of `anchors` points spread evenly over [0, 1]."""
    x = np.clip(value, 0.0, 1.0) * (anchors - 1)
    return np.clip(1 - np.abs(x - np.arange(anchors)), 0, 1)


def phenotype_weights(
    gender: float = 0.5, age: float = 0.5, muscle: float = 0.5, weight: float = 0.5, height: float = 0.4, proportions: float = 0.5
) -> np.ndarray:
    """(184,) weights of the macro targets for one adult; each argument runs from 0 to 1.

    gender 0 male … 1 female; age 0 young adult … 1 old; height 0.4 average (about 1.7 m), 0.1 more is about 0.11 m; proportions 0 ideal … 1 uncommon.
    Out-of-range values are clipped.
    """
    g, a, m, w, h, p = _hat(gender, 2), _hat(age, 2), _hat(muscle, 3), _hat(weight, 3), _hat(height, 2), _hat(proportions, 2)
    four = np.einsum("g,a,m,w->gamw", g, a, m, w).ravel()
    return np.concatenate([four, np.outer(g, a).ravel(), np.outer(four, h).ravel(), np.outer(four, p).ravel()])


def random_phenotypes(n: int, seed: int) -> np.ndarray:
    """(n, 184) target weights of random adults: every phenotype uniform in 0..1, but height in 0.25..0.55 (beyond that nobody is so small or tall)."""
    values = np.random.default_rng(seed).uniform(0, 1, (n, 6))
    values[:, 4] = 0.25 + 0.3 * values[:, 4]
    return np.stack([phenotype_weights(*row) for row in values])


@dataclass(frozen=True)
class Body:
    """A body in its rest pose: metres, y up, soles near y = 0, facing +z, the body's own left on +x. N vertices, M faces, J joints, S shape directions."""

    V: np.ndarray  # (N, 3) float32: the average adult
    F: np.ndarray  # (M, 3) int64: a closed surface, normals outwards
    W: np.ndarray  # (N, J) float32: skin weights, at most 8 a vertex, rows sum to 1
    J: np.ndarray  # (J, 3) float32: joint positions
    tails: np.ndarray  # (J, 3) float32: where each joint's bone ends
    parents: np.ndarray  # (J,) int64: parent of each joint, -1 for the root, parents first
    joints: tuple[str, ...]  # the J names
    shape_dirs: np.ndarray  # (S, N, 3) float32: metres for one standard deviation, strongest first
    joint_dirs: np.ndarray  # (S, J, 3) float32: how the joints follow
    tail_dirs: np.ndarray  # (S, J, 3) float32
    table: np.ndarray  # (184, S): phenotype weights → shape coefficients β
    keypoint_names: tuple[str, ...]
    keypoints: np.ndarray  # (23, N) float32: each row averages vertices into a keypoint
    mirror: np.ndarray  # (N,) int64: each vertex's partner on the other side

    def joint(self, name: str) -> int:
        """Index of a joint by name."""
        if name not in self.joints:
            raise ValueError(f"No joint {name!r}: the joints are {', '.join(self.joints)}.")
        return self.joints.index(name)

    def beta(self, **phenotype: float) -> np.ndarray:
        """β (S,) of an adult described by gender, age, muscle, weight, height, proportions, each in 0..1 (average when left out)."""
        return ((phenotype_weights(**phenotype) - phenotype_weights()) @ self.table).astype(np.float32)

    def shaped(self, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (N, 3) and joints (J, 3) of the rest pose for coefficients β; fewer than S coefficients are allowed."""
        beta = np.asarray(beta, np.float32)
        k = len(beta)
        return self.V + np.tensordot(beta, self.shape_dirs[:k], 1), self.J + np.tensordot(beta, self.joint_dirs[:k], 1)

    def population(self, n: int, seed: int = 0) -> np.ndarray:
        """β (n, S) of n random adults (`random_phenotypes`). One seed is one population: use different seeds for training and test."""
        return ((random_phenotypes(n, seed) - phenotype_weights()) @ self.table).astype(np.float32)


@lru_cache(maxsize=1)
def bodies() -> Body:
    """The body of the pack, as read-only arrays."""
    with np.load(data.path("bodies/body.npz")) as z:
        W = z["W"].astype(np.float32)
        keypoints = np.zeros((len(z["keypoint_names"]), len(z["V"])), np.float32)
        keypoints[z["kp_rows"], z["kp_cols"]] = z["kp_values"]
        body = Body(
            V=z["V"], F=z["F"].astype(np.int64), W=W / W.sum(1, keepdims=True), J=z["J"], tails=z["tails"], parents=z["parents"].astype(np.int64),
            joints=tuple(z["joints"].tolist()), shape_dirs=z["shape_dirs"] * z["shape_scale"][:, None, None], joint_dirs=z["joint_dirs"], tail_dirs=z["tail_dirs"],
            table=z["table"], keypoint_names=tuple(z["keypoint_names"].tolist()), keypoints=keypoints, mirror=z["mirror"].astype(np.int64),
        )  # fmt: skip
    for value in vars(body).values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return body
