"""The training helpers: history, resuming, smoothing, moving average, Muon, bf16, checkpoints."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from course_utils import CourseError, lesson, processor, show, train


def test_log_counts_and_keeps_history():
    log = train.Log()
    for step in log.steps(5, live=False):
        log(loss=torch.tensor(float(step)), accuracy=0.5)
    assert log.step == 5 and log.history["loss"] == [0, 1, 2, 3, 4] and len(log.history["accuracy"]) == 5


def test_a_second_run_does_not_train_twice(capsys):
    log = train.Log()
    for _ in log.steps(3, live=False):
        log(loss=1.0)
    assert list(log.steps(3, live=False)) == []
    assert "already trained" in capsys.readouterr().out
    assert list(log.steps(5, live=False)) == [3, 4]


def test_breaking_out_keeps_what_was_done():
    log = train.Log()
    for step in log.steps(10, live=False):
        log(loss=1.0)
        if step == 4:
            break
    assert log.step == 4 and len(log.history["loss"]) == 5


def test_a_whole_tensor_is_refused_with_its_shape():
    with pytest.raises(CourseError, match=r"shape \(2, 3\)"):
        train.Log()(loss=torch.zeros(2, 3))


def test_smoothed_is_the_running_mean():
    assert show.smoothed([1, 2, 3, 4], 2) == pytest.approx([1, 1.5, 2.5, 3.5])


def test_ema_follows_its_equation():
    model = torch.nn.Linear(2, 1, bias=False)
    first = model.weight.detach().clone()
    ema = train.EMA(model, decay=0.9, warm=False)
    ema.update(model)  # the first update takes the weights as they are
    with torch.no_grad():
        model.weight += 1
    ema.update(model)
    torch.testing.assert_close(ema.model.weight.detach(), first + 0.1)
    assert not ema.model.training


# Muon


def singular_values(G):
    return torch.linalg.svdvals(G.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 64, 576), (1, 288, 96), (2, 32, 40), (1, 1, 7)])
def test_an_orthogonal_update_has_singular_values_near_one(shape, dtype):
    s = singular_values(train.orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dtype))
    assert s.min() > 0.5 and s.max() < 1.25


def test_a_square_update_in_16_bits_stays_bounded_and_nothing_becomes_nan():
    G = torch.randn(4, 96, 96, generator=torch.Generator().manual_seed(1))
    assert singular_values(train.orthogonal(G, torch.bfloat16)).max() < 1.25
    for hard in (torch.zeros(1, 8, 12), 1e-12 * G, 1e12 * G, torch.ones(1, 8, 12)):
        assert torch.isfinite(train.orthogonal(hard, torch.bfloat16)).all()


def test_an_orthogonal_update_keeps_the_singular_vectors():
    U, _, Vh = torch.linalg.svd(torch.randn(1, 12, 20, generator=torch.Generator().manual_seed(2)), full_matrices=False)
    out = U.mT @ train.orthogonal(U @ torch.diag(torch.linspace(1, 3, 12)) @ Vh) @ Vh.mT
    assert (out - torch.diag_embed(out.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4 and out.diagonal(dim1=1, dim2=2).min() > 0.5


def test_muons_first_steps_are_those_of_its_equation_and_adams_are_adamws():
    """Momentum, Nesterov, orthogonal, scaled: written out for one matrix; the bias against torch's own AdamW."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 4)
    W, b = layer.weight.detach().clone(), torch.nn.Parameter(layer.bias.detach().clone())
    ours, adam = train.Muon(layer, 0.01, adam_lr=0.02), torch.optim.AdamW([b], lr=0.02, betas=(0.9, 0.99))
    m = torch.zeros_like(W)
    for _ in range(4):
        layer.weight.grad, layer.bias.grad = torch.randn(4, 6), torch.randn(4)
        g, b.grad = layer.weight.grad.clone(), layer.bias.grad.clone()
        ours.step()
        adam.step()
        assert torch.equal(layer.weight.grad, g), "gradients are left as they were"
        m = 0.95 * m + 0.05 * g
        update = train.orthogonal((0.05 * g + 0.95 * m)[None], torch.bfloat16 if train.fast_bf16() else None)[0]
        W = W * (1 - 0.01 * 0.01) - 0.01 * 0.2 * 6**0.5 * update
        torch.testing.assert_close(layer.weight.detach(), W, atol=2e-4, rtol=0)
        torch.testing.assert_close(layer.bias, b)


def test_which_parameters_muon_takes():
    net = torch.nn.ModuleDict(
        {"words": torch.nn.Embedding(5, 4), "conv_in": torch.nn.Conv2d(3, 4, 3), "conv": torch.nn.Conv2d(4, 4, 3), "norm": torch.nn.GroupNorm(2, 4)}
    )
    net["frozen"] = torch.nn.Linear(4, 4).requires_grad_(False)
    plain, muon = train.Muon(net, plain=("conv_in",)).param_groups
    assert [id(p) for p in muon["params"]] == [id(net["conv"].weight)] and len(plain["params"]) == 6
    assert len(train.Muon(torch.nn.GroupNorm(2, 4)).param_groups) == 1


# bf16


def small_net():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d
    return torch.nn.Sequential(
        conv(3, 16, 3, padding=1), torch.nn.GroupNorm(4, 16), torch.nn.SiLU(), conv(16, 16, 3, padding=1), torch.nn.SiLU(), conv(16, 3, 3, padding=1)
    )


def loss_of(net, x, y, enabled):
    with train.bf16("cpu", enabled):
        return torch.nn.functional.mse_loss(net(x), y)


def test_gradients_in_bf16_are_near_those_in_float32():
    net, (x, y) = small_net(), torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    gradients = []
    for enabled in (False, True):
        net.zero_grad()
        loss = loss_of(net, x, y, enabled)
        assert loss.dtype == torch.float32
        loss.backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    for full, short in zip(*gradients):
        assert short.dtype == torch.float32 and (short - full).norm() < 0.03 * full.norm()


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_200_steps_in_bf16_give_no_nan_and_the_first_follow_float32(kind):
    losses = {}
    for enabled in (False, True):
        net, g = small_net(), torch.Generator().manual_seed(4)
        optimiser = train.Muon(net, 3e-3, plain=("0.", "5.")) if kind == "muon" else torch.optim.AdamW(net.parameters(), 2e-3)
        losses[enabled] = []
        for _ in range(200 if enabled else 10):
            x = torch.randn(8, 3, 8, 8, generator=g)
            loss = loss_of(net, x, x.roll(1, 2), enabled)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[enabled].append(loss.item())
    assert all(torch.isfinite(p).all() for p in net.parameters()) and losses[True][-1] < 0.5 * losses[True][0]
    assert losses[True][:10] == pytest.approx(losses[False], rel=0.01)


def test_bf16_is_off_where_the_machine_is_not_faster_at_it(monkeypatch):
    monkeypatch.setattr(processor, "fast_bf16", lambda: False)
    with train.bf16("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setattr(processor, "fast_bf16", lambda: True)
    with train.bf16(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with train.bf16("mps"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


# Checkpoints


TRAINING = """
import os, random, signal, sys
import numpy as np, torch
torch.set_num_threads(1)
from course_utils import lesson, train
stop, out = int(sys.argv[1]), sys.argv[2]
run = lesson.Run("toy", 0, torch.device("cpu"), "full", config="as it is")
lesson.seed_all(run.seed)
net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.SiLU(), torch.nn.Linear(8, 6))
optimiser = train.Muon(net, plain=("3.",))
scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: 1 - n / 30)
ema, log, draw, rng = train.EMA(net, 0.9), train.Log(), run.generator(1), np.random.default_rng(2)
checkpoint = train.Checkpoint(run, every=0, net=net, optimiser=optimiser, scheduler=scheduler, ema=ema, draw=draw, rng=rng)
for step in log.steps(30, live=False, checkpoint=checkpoint):
    if step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    x = torch.randn(16, 6, generator=draw) * rng.random() + random.random() + np.random.rand()
    loss = (net(x) - x.flip(1)).square().mean()
    optimiser.zero_grad(); loss.backward(); optimiser.step(); scheduler.step(); ema.update(net)
    log(loss=loss)
torch.save({"loss": log.history["loss"], "net": net.state_dict(), "ema": ema.model.state_dict(), "cpu": log.cpu_seconds}, out)
"""


def training(tmp_path, stop, out, folder):
    env = {**os.environ, "COURSE_CHECKPOINTS": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", TRAINING, str(stop), str(tmp_path / out)], env=env, capture_output=True, text=True)


def test_a_killed_training_ends_as_an_unbroken_one_to_the_bit(tmp_path):
    """30 steps whole, against 12, kill -9, and 18."""
    assert training(tmp_path, -1, "whole.pt", tmp_path / "a").returncode == 0
    assert training(tmp_path, 12, "broken.pt", tmp_path / "b").returncode == -9 and not (tmp_path / "broken.pt").exists()
    last = training(tmp_path, -1, "broken.pt", tmp_path / "b")
    assert last.returncode == 0 and "goes on at step 12" in last.stdout, last.stderr
    whole, broken = (torch.load(tmp_path / f"{n}.pt") for n in ("whole", "broken"))
    assert len(whole["loss"]) == 30 and whole["loss"] == broken["loss"] and broken["cpu"] > 0
    for part in ("net", "ema"):
        assert all(torch.equal(whole[part][k], v) for k, v in broken[part].items())


def toy(tmp_path, config="a"):
    run = lesson.Run("toy", 0, torch.device("cpu"), "full", config=config)
    net = torch.nn.Linear(2, 2)
    return net, train.Log(), train.Checkpoint(run, every=0, folder=tmp_path, net=net)


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path, capsys):
    net, log, checkpoint = toy(tmp_path)
    list(log.steps(3, live=False, checkpoint=checkpoint))
    assert [f.name for f in (tmp_path / "toy").iterdir()] == ["model.pt"]  # nothing half written
    net, log, checkpoint = toy(tmp_path, "b")
    assert list(log.steps(2, live=False, checkpoint=checkpoint)) == [0, 1]
    assert "made with other settings" in capsys.readouterr().out
    net, log, checkpoint = toy(tmp_path, "b")
    assert list(log.steps(4, live=False, checkpoint=checkpoint)) == [2, 3]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("COURSE_CHECKPOINTS", raising=False)
    monkeypatch.chdir(tmp_path)
    run = lesson.Run("toy", 0, torch.device("cpu"), "quick")
    list(train.Log().steps(2, live=False, checkpoint=train.Checkpoint(run, every=0, net=torch.nn.Linear(1, 1))))
    assert not list(tmp_path.iterdir())
