"""Time of the lesson's MLP and of its grid with an occupancy grid to equal quality, and of single steps. Reports only: `make bench`."""

import time

import pytest
import torch
import torch.nn.functional as F

from course_utils import data
from course_utils.lessons import nerf

pytest.importorskip("pytest_benchmark")
GOAL = 20.0  # dB on validation rays: low, so that the benchmark stays short


def heap(views):
    size = views.images.shape[1]
    pairs = [nerf.pixel_rays(torch.as_tensor(views.K), torch.as_tensor(R), torch.as_tensor(t), size, size) for R, t in zip(views.R, views.t, strict=True)]
    o, d = (torch.stack(x).reshape(-1, 3) for x in zip(*pairs, strict=True))
    hit = nerf.ball_interval(o, d)[2]
    return o[hit], d[hit], torch.as_tensor(views.images).reshape(-1, 3)[hit]


@pytest.fixture(scope="module")
def rays():
    torch.manual_seed(0)
    views = data.objects("chicken", size=64)
    val = heap(views.of("val"))
    some = torch.randperm(len(val[0]))[:2000]
    return heap(views.of("train")), [x[some] for x in val]


def make(kind):
    torch.manual_seed(0)
    if kind == "MLP":
        return nerf.RadianceField(nerf.FrequencyEncoding(6), 64, 4), None, {"n": 16, "n_fine": 16}, 5e-3
    rows = 2**14 if kind == "hash grid" else 2**31
    return nerf.RadianceField(nerf.GridEncoding((16, 32, 64), 4, rows), 32, 1), nerf.Occupancy(), {"n": 32}, 4e-2


def stepper(kind, train):
    field, occupancy, how, lr = make(kind)
    optimiser = torch.optim.Adam(field.parameters(), lr=lr, betas=(0.9, 0.99), eps=1e-15)

    def step(i):
        if occupancy is not None and i >= 20 and i % 10 == 0:
            occupancy.update(field)
        share = max(occupancy.share, 0.05) if occupancy else 1.0
        k = torch.randint(len(train[0]), (int(8192 / 32 / share),))
        loss = F.mse_loss(nerf.render_rays(field, train[0][k], train[1][k], occupancy=occupancy, **how)[0], train[2][k])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return field, occupancy, how, step


@pytest.mark.parametrize("kind", ["MLP", "dense grid", "hash grid"])
def test_seconds_to_equal_psnr(benchmark, rays, kind):
    """From nothing to GOAL dB on validation rays, in processor seconds, measuring every ten steps."""
    train, val = rays

    def learn():
        field, occupancy, how, step = stepper(kind, train)
        seconds = 0.0
        for i in range(400):
            tick = time.process_time()
            step(i)
            seconds += time.process_time() - tick
            if i % 10 == 9:
                with torch.no_grad():
                    reached = nerf.psnr(nerf.render_rays(field, *val[:2], occupancy=occupancy, jitter=False, **how)[0], val[2])
                if reached >= GOAL:
                    break
        benchmark.extra_info.update(cpu_seconds=round(seconds, 2), steps=i + 1, psnr=round(reached, 2))
        print(f"\n{kind}: {GOAL} dB after {i + 1} steps, {seconds:.2f} processor seconds")

    benchmark.pedantic(learn, rounds=1, iterations=1)


@pytest.mark.parametrize("kind", ["MLP", "dense grid", "hash grid"])
def test_one_training_step(benchmark, rays, kind):
    """One step of about 8192 points, before the occupancy grid knows anything."""
    step = stepper(kind, rays[0])[3]
    benchmark.pedantic(step, args=(0,), rounds=10, warmup_rounds=2)


def test_lookup_against_grid_sample(benchmark):
    """Our trilinear lookup, forward and backward, against torch's own: the ratio goes to extra_info."""
    torch.manual_seed(0)
    enc = nerf.GridEncoding((32,), 4)
    x = torch.rand(16384, 3) * 2 - 1
    volume = torch.rand(1, 4, 33, 33, 33, requires_grad=True)
    grid = x.view(1, 1, 1, -1, 3)

    def ours():
        enc(x).sum().backward()

    def theirs():
        F.grid_sample(volume, grid, align_corners=True).sum().backward()

    times = []
    for f in (ours, theirs):
        f()
        tick = time.process_time()
        for _ in range(5):
            f()
        times.append(time.process_time() - tick)
    benchmark.extra_info["ours_over_grid_sample"] = round(times[0] / times[1], 2)
    print(f"\nlookup, ours over grid_sample: {times[0] / times[1]:.2f}")
    benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
