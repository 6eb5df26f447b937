"""The scoreboard: a true table, ranges that hold their seeds, and a score that stops the build when a lesson breaks."""

import datetime
import math

import pytest

from course_utils import CourseError, curriculum, scoreboard
from course_utils.authoring import cli as command

BOARD = scoreboard.lessons()
METRICS = [(name, key, spec) for name, entry in BOARD.items() for key, spec in entry.get("metrics", {}).items()]
each_metric = pytest.mark.parametrize("name, key, spec", METRICS, ids=lambda v: v if isinstance(v, str) else "")


def test_the_same_lessons_as_in_the_curriculum():
    ready = {x.name: x.number for x in curriculum.ready()}
    assert {n: e["number"] for n, e in BOARD.items()} == ready


@pytest.mark.parametrize("name", BOARD)
def test_an_entry_is_whole(name):
    entry = BOARD[name]
    assert entry["title"] and entry["headline"] in entry["metrics"]
    assert 0 < entry["seconds"]["quick"] <= 60, "the budget of a notebook at quick"
    assert 0 < entry["seconds"]["full"] <= 600, "the budget of a notebook at full"
    assert "quick" in entry["metrics"][entry["headline"]]


@each_metric
def test_a_metric_is_whole(name, key, spec):
    assert spec["label"] and spec["better"] in {"higher", "lower", "equal"}
    assert ("baseline" in spec) == ("baseline_is" in spec)
    for profile in ("quick", "full"):
        if profile not in spec:
            continue
        (low, high), seeds = spec[profile]["range"], spec[profile]["seeds"]
        assert low <= high and all(low <= s <= high for s in seeds)
        assert profile == "full" or len(seeds) >= 3, "a range is set from three seeds or more"
        datetime.date.fromisoformat(str(spec[profile]["date"]))


@pytest.mark.parametrize("name", BOARD)
def test_the_headline_beats_its_baseline_in_the_whole_range(name):
    spec = BOARD[name]["metrics"][BOARD[name]["headline"]]
    if "baseline" not in spec or spec["better"] == "equal":
        pytest.skip("the headline has no baseline")
    low, high = spec["quick"]["range"]
    assert low > spec["baseline"] if spec["better"] == "higher" else high < spec["baseline"]


# How it works, on a made-up lesson


class FakeRun:
    name, profile = "made_up", "quick"


@pytest.fixture
def made_up(monkeypatch):
    accuracy = {"label": "accuracy", "better": "higher", "baseline": 0.1, "baseline_is": "chance", "quick": {"range": [0.8, 0.9], "seeds": [0.85]}}
    speed = {"label": "pictures a second", "better": "higher"}
    board = {"made_up": {"number": "9.9", "title": "Made up", "headline": "accuracy", "metrics": {"accuracy": accuracy, "speed": speed}}}
    monkeypatch.setattr(scoreboard, "lessons", lambda: board)


def test_inside_the_range(made_up, under_ci, capsys):
    scoreboard.score(FakeRun, {"accuracy": 0.85, "speed": 10})
    out = capsys.readouterr().out
    assert "✅" in out and "0.1 (chance)" in out and "0.8 … 0.9" in out


@pytest.mark.parametrize("value", [0.7, 0.95, math.nan, math.inf])
def test_outside_the_range_stops_ci_and_only_ci(made_up, monkeypatch, capsys, value):
    monkeypatch.delenv("CI", raising=False)
    scoreboard.score(FakeRun, {"accuracy": value})
    assert "❌" in capsys.readouterr().out
    monkeypatch.setenv("CI", "true")
    with pytest.raises(CourseError, match="Outside the expected range"):
        scoreboard.score(FakeRun, {"accuracy": value})


def test_a_metric_that_was_not_measured_stops_ci(made_up, under_ci):
    with pytest.raises(CourseError, match="accuracy was not measured"):
        scoreboard.score(FakeRun, {"speed": 1.0})


def test_an_unknown_metric(made_up, outside_ci):
    with pytest.raises(CourseError, match="no metric 'acuracy'"):
        scoreboard.score(FakeRun, {"acuracy": 0.8})


def test_no_range_at_this_profile(made_up, under_ci, capsys):
    class Full(FakeRun):
        profile = "full"

    scoreboard.score(Full, {"accuracy": 0.2, "speed": 1})
    assert "not set for this profile" in capsys.readouterr().out


def test_headline(made_up):
    assert scoreboard.headline("made_up") == "accuracy: **0.85** (chance: 0.1)"


def test_the_commands_print(capsys):
    assert command.main(["scoreboard"]) == 0 and command.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "linear_blend_skinning" in out and "4.5" in out
