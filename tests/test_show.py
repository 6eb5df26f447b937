"""Pictures: shapes that are accepted, views, animations, and that every figure draws."""

import matplotlib
import numpy as np
import pytest
import torch

from course_utils import CourseError, show

matplotlib.use("Agg")


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 1, 8, 8), (4, 8, 8), (4, 8, 8, 3), (3, 8, 8), (8, 8, 3), (8, 8)])
def test_pictures_take_every_usual_shape(shape):
    x = show.pictures(torch.rand(shape))
    assert x.shape == (4 if shape[0] == 4 else 1, 8, 8, 3)


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
