"""A reader's own picture: every usual kind comes out right, everything else gets one sentence."""

import numpy as np
import pytest
import torch
from PIL import Image

from course_utils import CourseError, data

RED = np.tile(np.array([[[255, 0, 0]]], np.uint8), (10, 20, 1))


def near(x, *colour):
    assert x.shape == (3, 8, 8) and x.dtype == torch.float32
    torch.testing.assert_close(x.mean((1, 2)), torch.tensor(colour, dtype=torch.float32), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "CMYK"])
def test_colour_pictures_of_every_mode(tmp_path, kind):
    image = Image.fromarray(RED).convert(kind)
    near(data.picture(image, 8), 1, 0, 0)
    if kind != "CMYK":
        image.save(tmp_path / "red.png")
        near(data.picture(tmp_path / "red.png", 8), 1, 0, 0)
        near(data.picture(str(tmp_path / "red.png"), 8), 1, 0, 0)


@pytest.mark.parametrize(
    "x",
    [
        RED,
        RED / 255.0,
        torch.from_numpy(RED),
        torch.from_numpy(RED).permute(2, 0, 1) / 255,
        (torch.from_numpy(RED).permute(2, 0, 1) / 255)[None],
        np.concatenate([RED, np.full((10, 20, 1), 255, np.uint8)], 2),
        RED.astype(int),
        RED.astype(np.uint16) * 257,
    ],
)
def test_arrays_of_every_kind(x):
    near(data.picture(x, 8), 1, 0, 0)


def test_grey_and_masks_and_sixteen_bits():
    near(data.picture(np.full((5, 9), 0.5), 8), 0.5, 0.5, 0.5)
    near(data.picture(np.ones((5, 9), bool), 8), 1, 1, 1)
    near(data.picture(Image.new("L", (9, 5), 128), 8), 0.5, 0.5, 0.5)
    near(data.picture(Image.new("1", (9, 5), 1), 8), 1, 1, 1)
    near(data.picture(Image.fromarray(np.full((5, 9), 32768, np.uint16)), 8), 0.5, 0.5, 0.5)


def test_transparency_lies_on_white():
    near(data.picture(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), 8), 1, 1, 1)
    near(data.picture(Image.new("LA", (9, 9), (0, 128)), 8), 0.5, 0.5, 0.5)
    see_through = Image.new("P", (9, 9), 0)
    see_through.info["transparency"] = 0
    near(data.picture(see_through, 8), 1, 1, 1)


def test_a_square_is_cut_out_or_padded():
    x = np.zeros((10, 30))
    x[:, 10:20] = 1
    near(data.picture(x, 8), 1, 1, 1)
    assert data.picture(x, 30, fit="pad")[:, 0].min() == 1  # white above
    for H, W, size in ((1, 1, 8), (3, 500, 8), (64, 64, 64), (129, 77, 32)):
        assert data.picture(np.random.default_rng(0).random((H, W, 3)), size).shape == (3, size, size)


def test_shrinking_averages():
    board = np.indices((64, 64)).sum(0) % 2 * 1.0
    torch.testing.assert_close(data.picture(board, 8), torch.full((3, 8, 8), 0.5))


def test_the_camera_was_turned(tmp_path):
    x = np.zeros((8, 8, 3), np.uint8)
    x[:4] = 255  # white above
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(x).save(tmp_path / "turned.png", exif=exif)
    assert data.picture(tmp_path / "turned.png", 8)[:, :4].max() == 0


@pytest.mark.parametrize(
    "bad, words",
    [
        ("no_such_file.png", "no file"),
        (np.zeros((0, 5, 3)), "empty"),
        (np.full((5, 5), np.nan), "nan"),
        (np.full((5, 5), 128.0), "divide by 255"),
        (np.full((5, 5), -3), "0..255"),
        (np.zeros((5, 5, 7)), "One picture"),
        (np.zeros((2, 3, 5, 5)), "One picture"),
        (np.zeros(5), "One picture"),
    ],
)
def test_what_is_no_picture_gets_one_sentence(bad, words):
    with pytest.raises(CourseError, match=words):
        data.picture(bad, 8)


def test_damaged_and_foreign_files(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(RED).save(tmp_path / "cut.png")
    raw = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(raw[: len(raw) // 2])
    for name in ("text.png", "cut.png"):
        with pytest.raises(CourseError, match="cannot be read"):
            data.picture(tmp_path / name, 8)


@pytest.mark.parametrize("more, words", [({"size": 0}, "whole number"), ({"size": 8, "fit": "stretch"}, "crop")])
def test_wrong_settings(more, words):
    with pytest.raises(CourseError, match=words):
        data.picture(RED, **more)
