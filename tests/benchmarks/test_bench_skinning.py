"""Our skinning against body-models' on equal shapes and numbers: 6,890 vertices, 24 joints, 16 poses. Reports, never fails.

Both start from axis–angle vectors and shaped rest vertices, add 207 pose-blend shapes and skin.
"""

import numpy as np
import pytest
import torch

from course_utils.lessons import linear_blend_skinning as ours

CHAIN = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]
B = 16


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    weights = np.zeros((6890, 24))  # four bones a vertex, as in real files
    np.put_along_axis(weights, rng.integers(0, 24, (6890, 4)), rng.random((6890, 4)) + 0.1, 1)
    regressor = rng.random((24, 6890))
    return {
        "v_template": rng.normal(0, 0.4, (6890, 3)),
        "f": rng.integers(0, 6890, (13776, 3)),
        "weights": weights / weights.sum(1, keepdims=True),
        "shapedirs": rng.normal(0, 0.02, (6890, 3, 10)),
        "posedirs": rng.normal(0, 0.01, (6890, 3, 207)),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "kintree_table": np.array([CHAIN, range(24)]),
    }


@pytest.fixture(scope="module")
def theta():
    return 0.5 * torch.randn(B, 24, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.benchmark(group="skinning 16 × 6890")
def test_ours(benchmark, arrays, theta):
    a = {k: torch.tensor(v).float() for k, v in arrays.items() if k not in ("f", "kintree_table")}
    V, W, P = a["v_template"], a["weights"], a["posedirs"]
    J = a["J_regressor"] @ V

    @torch.no_grad()
    def forward():
        R = ours.rodrigues(theta)
        return ours.lbs(V + ours.pose_offsets(P, ours.pose_features(R[:, 1:])), W, ours.skinning_transforms(R, J, CHAIN))

    assert benchmark(forward).shape == (B, 6890, 3)


@pytest.mark.benchmark(group="skinning 16 × 6890")
def test_body_models(benchmark, arrays, theta, tmp_path):
    from body_models.smpl.torch import SMPL

    np.savez(tmp_path / "made-up.npz", **arrays)
    model = SMPL(model_path=tmp_path / "made-up.npz")
    identity = model.prepare_identity(torch.zeros(1, 10))  # shape is not part of the race

    @torch.no_grad()
    def forward():
        return model.forward_vertices(theta[:, 1:], pelvis_rotation=theta[:, 0], identity=identity)

    assert benchmark(forward).shape == (B, 6890, 3)
