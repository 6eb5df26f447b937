"""Our U-Net against diffusers' UNet2DModel: forward and backward, equal shapes and weights. Reports, never fails a build.

Run with ``pytest tests/benchmarks/test_bench_ddpm.py``.
"""

import pytest
import torch
from lessons.test_ddpm import pair  # tests/ is on the path: its conftest.py is there

NETS = dict(zip(("ours", "diffusers"), pair((32, 64, 96), 1, (False, True, True), channels=12, head_dim=32)))


@pytest.mark.parametrize("name", NETS)
def test_unet_forward_backward(benchmark, name):
    net = NETS[name]
    x, t = torch.randn(16, 12, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(1, 17) * 60

    def step():
        net.zero_grad()
        out = net(x, t)
        (out if name == "ours" else out.sample).square().mean().backward()

    benchmark.pedantic(step, rounds=15, warmup_rounds=2)
