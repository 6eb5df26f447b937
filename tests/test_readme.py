"""What is generated for the code-hosting page and the start page: gallery, banner, tables, badges, the way from lesson to lesson."""

import io
import re

import pytest
from conftest import ROOT
from PIL import Image

from course_utils import CourseError, curriculum, scoreboard
from course_utils.authoring import badges, cli, notebooks, readme

STANDING = [x for x in curriculum.ready() if (ROOT / x.path).exists()]
each_lesson = pytest.mark.parametrize("lesson", STANDING, ids=lambda x: x.name)


def texts(nb):
    return [notebooks.source(c) for c in nb["cells"] if c["cell_type"] == "markdown"]


def test_the_gallery_is_in_step():
    assert readme.gallery_drift() == [], "run `python -m course_utils gallery`"


def test_the_banner_has_a_figure_of_every_part():
    assert set(readme.BANNER) == {p.number for p in curriculum.parts()}
    assert {name for name, _ in readme.BANNER.values()} <= set(readme.figures())
    for png in (readme.banner(), (ROOT / "docs" / "banner.png").read_bytes()):
        picture = Image.open(io.BytesIO(png))
        assert picture.width == 2000 and 250 <= picture.height <= 800 and len(png) <= 300_000


@pytest.mark.parametrize("name", readme.WORDS)
def test_the_first_screen_of_a_readme(name):
    """The banner, the two commands and the three ways stand before the table."""
    text = (ROOT / name).read_text(encoding="utf8")
    head = text[: text.index("<!-- lessons -->")]
    assert "](docs/banner.png)" in head and head.index("banner.png") < head.index("make lab")
    assert all(word in head for word in ("git clone --depth 1", "make lab", "](assignments)", "Colab", "](docs/gallery/README.md)"))


@pytest.mark.parametrize("name", readme.WORDS)
def test_a_readme_names_every_lesson_that_loads_weights(name):
    text = (ROOT / name).read_text(encoding="utf8")
    sentence = readme.WORDS[name]["loads"].split("{}")[0]
    named = re.search(re.escape(sentence) + r"([\d., ]+\d)", text)[1]
    own = [x.number for x in STANDING if re.search(r"\bweights\.load\(", (ROOT / x.path).read_text(encoding="utf8"))]
    assert set(own) <= set(named.split(", ")) and "2.7" in named, "2.7 loads by way of 2.4"


def test_the_start_page_offers_both_editions_of_every_lesson():
    text = "\n".join(texts(notebooks.read(notebooks.find("start_here"))))
    where = badges.origin()
    for lesson in STANDING:
        here = lesson.path.removeprefix("notebooks/")
        assert f"[read]({here}) · [practise](../assignments/{here})" in text and badges.both(lesson.path, where) in text


@each_lesson
def test_times_are_the_scoreboards(lesson):
    title = texts(notebooks.read(ROOT / lesson.path))[0]
    seconds = scoreboard.lessons()[lesson.name]["seconds"]
    assert f"{badges.spell(seconds['quick'])} on 2 cores; about {badges.spell(seconds['full'])} on a GPU" in title
    assert re.search(r"\| about \d+0 min \|", title)


@each_lesson
def test_the_way_leads_to_the_neighbours_that_stand(lesson):
    first, *_, last = texts(notebooks.read(ROOT / lesson.path))
    at = STANDING.index(lesson)
    for text in (first, last):
        way = next(line for line in text.splitlines() if "[start page]" in line)
        assert ("← " in way) == (at > 0) and (" →" in way) == (at + 1 < len(STANDING))
        linked = {(ROOT / lesson.path).parent.joinpath(x).resolve() for x in re.findall(r"\]\(([^)]+)\)", way)}
        assert linked == {(ROOT / x.path).resolve() for x in STANDING[max(at - 1, 0) : at + 2] if x != lesson} | {notebooks.find("start_here").resolve()}


@each_lesson
def test_placing_a_lesson_twice_changes_nothing_more(lesson):
    nb = notebooks.read(ROOT / lesson.path)
    for c in nb["cells"]:
        c["source"] = re.sub(r"^(\[!\[|.*\[start page\]).*\n*", "", notebooks.source(c), flags=re.M)
    once = badges.placed(lesson, nb, badges.origin())
    for i, text in once.items():
        nb["cells"][i]["source"] = text
    assert badges.placed(lesson, nb, badges.origin()) == once
    assert once[0].count("[start page]") == 1 and badges.both(lesson.path, badges.origin()) in once[0]


def test_a_title_without_its_table_is_named():
    nb = {"cells": [{"cell_type": "markdown", "source": "# 1.2 CLIP\n\nYou will build …"}]}
    with pytest.raises(CourseError, match="in the lecture"):
        badges.placed(curriculum.lessons()["clip"], nb, badges.origin())


def test_a_fork_is_one_setting(tmp_path):
    """Badges of both editions and the set-up cell follow [project.urls]."""
    where = ("someone/a-course", "v2")
    text = badges.both("notebooks/1_multimodal/02_clip.ipynb", badges.origin())
    moved = badges.rewritten(text, where)
    assert moved == badges.both("notebooks/1_multimodal/02_clip.ipynb", where) and "OWNER" not in moved


def test_what_is_out_of_step_in_the_gallery_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(readme, "_folder", lambda: tmp_path)
    (tmp_path / "gone.png").write_bytes(b"x")
    assert cli.main(["gallery", "--check"]) == 1
    assert {"gone.png", "README.md", "clip.png"} <= set(re.findall(r"[\w.]+\.(?:png|md)", capsys.readouterr().out))
