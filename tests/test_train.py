"""The training helpers: history, resuming, smoothing, moving average."""

import pytest
import torch

from course_utils import CourseError, show, train


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
