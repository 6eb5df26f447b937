"""Pictures: shapes that are accepted, views, animations, and that every figure draws."""

import matplotlib
import numpy as np
import pytest
import torch

from course_utils import CourseError, show

matplotlib.use("Agg")


@pytest.mark.parametrize(
    "shape, n",
    [((4, 3, 8, 8), 4), ((4, 1, 8, 8), 4), ((4, 8, 8), 4), ((4, 8, 8, 3), 4), ((4, 8, 8, 4), 4), ((3, 8, 8), 3), ((8, 8, 3), 1), ((8, 8, 4), 1), ((8, 8), 1)],
)
def test_pictures_take_every_usual_shape(shape, n):
    for x in (torch.rand(shape), np.random.default_rng(0).random(shape)):
        assert show.pictures(x).shape == (n, 8, 8, 3)


def test_pictures_scale_bytes_and_clip():
    assert show.pictures(np.full((8, 8), 255, np.uint8)).max() == 1.0
    assert show.pictures(torch.full((8, 8), 7.0)).max() == 1.0
    with pytest.raises(CourseError, match="Pictures should be"):
        show.pictures(torch.zeros(2, 5, 4, 4, 4))


def test_view_matrix_is_a_rotation_that_looks_at_the_front():
    for up, front in (("y", [0, 0, 1]), ("z", [0, -1, 0])):
        R = show.view_matrix(0, 0, up)
        np.testing.assert_allclose(R @ front, [0, 0, 1], atol=1e-12)
        R = show.view_matrix(33, 21, up)
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
        assert np.isclose(np.linalg.det(R), 1)


def test_gif_has_all_frames():
    import io

    from PIL import Image

    frames = torch.rand(5, 3, 8, 8)
    with Image.open(io.BytesIO(show.gif(frames, scale=2))) as im:
        assert im.n_frames == 5 and im.size == (16, 16)


def test_every_figure_draws(monkeypatch, capsys):
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf().canvas.draw()))
    show.grid(torch.rand(5, 3, 8, 8), titles=list("abcde"), cols=3, suptitle="five")
    show.curves({"a": [1, 2, 3], "b": ([0, 1], [3, 1])}, logy=True)
    show.bars({"a": 1.0, "b": 2.0}, baseline=1.5)
    show.heat(torch.randn(3, 4), xlabels=list("abcd"), ylabels=list("abc"), annotate=True, diverging=True)
    show.overlay(torch.rand(3, 8, 8), torch.rand(2, 2))
    show.diagram({"a": ("a", 0, 0), "b": ("b", 1, 0, "green"), "c": ("c", 1, 1, "red")}, [("a", "b", "f"), ("b", "c", "~g")])
    V, F = torch.eye(3), torch.tensor([[0, 1, 2]])
    show.mesh(V, F, still=True)
    show.points(torch.rand(9, 3), torch.rand(9), still=True)
    show.cameras(torch.eye(3), torch.eye(3)[None], torch.zeros(1, 3), points=torch.rand(4, 3), still=True)
    assert len(drawn) == 9
    show.mesh(V, F)  # the interactive path builds its plotly figure too
    show.points(torch.rand(9, 3), torch.rand(9, 3))
    show.cameras(torch.eye(3), torch.eye(3)[None], torch.zeros(1, 3), points=torch.rand(4, 3))
    show.table([["a", 0.12345]], ["name", "value"])
    assert "0.123" in capsys.readouterr().out


def test_play_surfaces_errors_and_needs_starting_values():
    def broken(x=1.0):
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        show.play(broken, x=(0.0, 2.0, 0.1))
    with pytest.raises(CourseError, match="starting value for 'x'"):
        show.play(lambda x: None, x={"not": "a control"}.keys())


def test_play_draws_once_without_a_kernel(capsys):
    import matplotlib.pyplot as plt

    calls = []

    def draw(angle=30, kind="sin"):
        calls.append((angle, kind))
        plt.plot([0, angle])
        print("angle", angle)

    show.play(draw, angle=(0, 90, 5), kind=["sin", "cos"])
    assert calls == [(30, "sin")] and "angle 30" in capsys.readouterr().out


# Kinds of pictures: what is meant, or one sentence


def test_transparency_lies_on_white_and_three_grey_pictures_stay_three():
    assert show.pictures(np.zeros((64, 48, 4))).shape == (1, 64, 48, 3) and show.pictures(np.zeros((64, 48, 4))).min() == 1
    assert show.pictures(np.zeros((3, 28, 28))).shape == (3, 28, 28, 3)


def test_truth_values_and_whole_numbers():
    assert show.pictures(np.ones((1, 8, 8), bool)).min() == 1
    assert show.pictures(np.full((1, 8, 8), 255, np.uint8)).max() == 1 and show.pictures(np.full((1, 8, 8), 255)).max() == 1
    assert show.pictures(np.ones((1, 8, 8), int)).max() == 1  # a mask
    assert show.pictures(np.full((1, 8, 8), 1, np.uint8)).max() == 1 / 255


@pytest.mark.parametrize(
    "bad, words",
    [
        (np.zeros((0, 3, 8, 8)), "no pictures"),
        (np.full((1, 8, 8), 200.0), "divide by 255"),
        (np.full((1, 8, 8), np.nan), "nan"),
        (np.full((1, 8, 8), 300), "0..255"),
        (np.zeros((2, 5, 8, 8)), "should be"),
    ],
)
def test_what_is_no_picture_gets_one_sentence(bad, words):
    with pytest.raises(CourseError, match=words):
        show.grid(bad)


def drawn(monkeypatch, **more):
    """The figure that show.grid makes."""
    import matplotlib.pyplot as plt

    show.use_style()
    kept = []
    monkeypatch.setattr(plt, "show", lambda: kept.append(plt.gcf()))
    show.grid(**more)
    return kept[0]


@pytest.mark.parametrize("side, n, cols, tile", [(28, 10, 10, 112), (32, 12, 12, 96), (64, 8, 8, 128), (64, 24, 12, 128), (16, 4, 2, 96), (100, 3, 3, 100)])
def test_small_pictures_are_enlarged_by_whole_numbers(monkeypatch, side, n, cols, tile):
    fig = drawn(monkeypatch, images=torch.rand(n, 3, side, side), cols=cols)
    sizes = {tuple((ax.get_position().size * fig.get_size_inches() * fig.dpi).round(3)) for ax in fig.axes}
    assert sizes == {(tile, tile)} and tile % side == 0 and tile >= 96
    assert fig.get_size_inches()[0] * fig.dpi <= 1180


def test_rows_and_columns_have_names_and_stay_together(monkeypatch):
    fig = drawn(monkeypatch, images=torch.rand(24, 3, 64, 64), cols=12, rows=["real", "made"], titles=[str(i) for i in range(24)])
    words = [t.get_text() for t in fig.texts]
    assert words.count("real") == 2 and words.count("made") == 2  # two bands
    place = {t.get_text(): t.get_position() for t in fig.texts}
    for i in range(12):  # what belongs together stands in one column
        assert place[str(i)][0] == pytest.approx(place[str(i + 12)][0])
    fig = drawn(monkeypatch, images=torch.rand(4, 3, 64, 64), cols=["a", "b"], titles=["a very long title that could never fit above a tile"] * 4)
    assert {"a", "b"} <= {t.get_text() for t in fig.texts}
    assert all(len(t.get_text()) < 60 for t in fig.texts)


def test_smoothed_recovers_after_nan():
    nan = float("nan")
    assert show.smoothed([1, nan, 1, 1, 1], 2) == pytest.approx([1, nan, nan, 1, 1], nan_ok=True)
    assert show.smoothed([1, float("inf"), 1, 1], 2)[-1] == 1 and show.smoothed([], 3) == []


def test_titles_of_any_kind(monkeypatch):
    from course_utils.show import style

    assert style.label("$x_t$") == "$x_t$" and style.label("$$") == r"\$\$" and style.label("5 $") == r"5 \$"
    monkeypatch.setattr(style, "korean_fonts", list)
    assert style.label("곰 bear") == "gom bear" and show.romanised("빨간사과") == "ppalgansagwa"
    show.curves({"a": [1, 2]}, title="$$ 곰")


def test_baselines_do_not_lie_on_each_other():
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    show.bars({"a": 0.2, "b": 0.5}, baseline={"chance": 0.5, "majority": 0.49, "best": 0.505}, ax=ax)
    heights = sorted(t.get_position()[1] for t in ax.texts if ":" in t.get_text())
    assert len(heights) == 3 and all(b - a > 0.05 for a, b in zip(heights, heights[1:]))
    assert {tuple(p.get_facecolor()) for p in ax.patches} == {tuple(plt.matplotlib.colors.to_rgba(show.COLORS["blue"]))}


def test_a_mesh_snapshot_is_a_picture_of_fixed_size():
    V = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    x = show.mesh_snapshot(V, torch.tensor([[0, 1, 2]]), azimuth=0, elevation=0, size=96, centre=(0.5, 0.5, 0), half=1)
    y = show.mesh_snapshot(V + torch.tensor([0.3, 0, 0]), torch.tensor([[0, 1, 2]]), azimuth=0, elevation=0, size=96, centre=(0.5, 0.5, 0), half=1)
    assert x.shape == (96, 96, 3) and x.min() < 0.9 and not (x == y).all()


def test_runs_shows_both_lengths(monkeypatch):
    import matplotlib.pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "show", lambda: kept.append(plt.gcf()))
    show.runs([3.0, 2.0], ([100, 200, 300], [2.0, 1.0, 0.5]))
    assert [ax.get_title() for ax in kept[0].axes] == ["this run: 2 steps", "the stored run: 300 steps"]
