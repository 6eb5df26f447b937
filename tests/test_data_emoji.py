"""The emoji pack: complete, no leaks between the splits, and the loader does what it says."""

import time

import numpy as np
import pytest

from course_utils import data
from course_utils.packs.emoji import twins


@pytest.fixture(scope="module")
def noto():
    return data.emoji()


def test_sizes(noto):
    assert len(noto) == 3786 and noto.images.shape == (3786, 3, 32, 32) and noto.images.dtype == np.uint8
    assert noto.alpha.shape == (3786, 32, 32)
    counts = {s: int((noto.split == s).sum()) for s in ("train", "compositions", "concepts")}
    assert counts == {"train": 3124, "compositions": 300, "concepts": 362}
    assert len(set(noto.concept[noto.split == "concepts"])) == 200


def test_captions_are_unique_and_in_both_languages(noto):
    for names in (noto.names_en, noto.names_ko, noto.ids, noto.chars):
        assert len(set(names)) == len(noto) and all(names)
    assert sum(any("가" <= c <= "힣" for c in n) for n in noto.names_ko) > 0.98 * len(noto)  # but "ON! 화살표", "H2O" ...
    assert all(len(k) for k in noto.keywords_en) and all(len(k) for k in noto.keywords_ko)


def test_no_leak(noto):
    part = {s: noto.subset(s) for s in ("train", "compositions", "concepts")}
    ids = [set(p.ids) for p in part.values()]
    assert sum(map(len, ids)) == len(set.union(*ids)) == len(noto)
    assert not set(part["concepts"].concept) & (set(part["train"].concept) | set(part["compositions"].concept))
    assert set(part["compositions"].concept) <= set(part["train"].concept)


def test_compositions_are_new_combinations_of_known_parts(noto):
    train, held = noto.subset("train"), noto.subset("compositions")
    parts = set(zip(train.concept, train.gender, train.tone, train.facing, strict=True))
    assert not parts & set(zip(held.concept, held.gender, held.tone, held.facing, strict=True))
    assert set(zip(held.concept, held.gender, strict=True)) <= set(zip(train.concept, train.gender, strict=True))
    assert set(held.tone) <= set(train.tone) and "" not in held.tone
    for a, b in ((train.names_en, held.names_en), (train.names_ko, held.names_ko)):
        assert {w for n in b for w in n.split()} <= {w for n in a for w in n.split()}


def test_held_out_pictures_have_no_twin_in_train(noto):
    split = noto.split
    for row, others in twins().items():
        assert {split[row], *split[others]} == {"train"} or len({split[i] for i in [row, *others]}) == 1, row
    for style in ("google", "twitter"):
        images = data.emoji(style).images.reshape(len(noto), -1)
        codes = [x.tobytes() for x in images]
        train = {c for c, s in zip(codes, split, strict=True) if s == "train"}
        assert not [i for i, c in enumerate(codes) if split[i] != "train" and c in train]


@pytest.mark.parametrize("style", ["google", "twitter", "fluent"])
def test_styles_agree_row_by_row(noto, style):
    other = data.emoji(style)
    assert (other.ids == noto.ids[other.index]).all() and (other.split == noto.split[other.index]).all()
    assert other.images.reshape(len(other), -1).std(1).min() > 0  # no empty picture


def test_area_average_and_alpha(noto):
    big = data.emoji(size=64, split="compositions")
    mean = big.images.reshape(300, 3, 32, 2, 32, 2).mean((3, 5))
    assert np.abs(mean - noto.subset("compositions").images).max() <= 0.76
    assert (big.images.transpose(0, 2, 3, 1)[big.alpha == 0] == 255).all()


def test_pairs_and_find(noto):
    tone, gender, facing = (noto.pairs(w) for w in ("tone", "gender", "facing"))
    assert len(tone) > 1500 and len(gender) > 900 and len(facing) == 108
    assert (noto.concept[tone[:, 0]] == noto.concept[tone[:, 1]]).all() and (noto.tone[tone[:, 0]] == "").all()
    assert noto.names_en[noto.find("mechanic")[0]] == "mechanic" and "강아지" in noto.names_ko[noto.find("강아지")[0]]
    assert (noto.ids[noto.base] == noto.concept).all()


def test_picking_rows(noto):
    assert len(noto[5:9]) == 4 and len(noto[7]) == 1 and list(noto[[3, 1]].ids) == [noto.ids[3], noto.ids[1]]
    assert noto[:2].tensor().shape == (2, 3, 32, 32) and 0 <= noto[:2].tensor().min() and noto[:2].tensor().max() <= 1


def test_clear_errors(noto):
    for call in (lambda: data.emoji("apple"), lambda: data.emoji(size=48), lambda: noto.subset("test"), lambda: noto.pairs("hair")):
        with pytest.raises(ValueError, match="must be"):
            call()


def test_loads_quickly(noto):
    start = time.process_time()
    data.emoji("twitter")
    assert time.process_time() - start < 1.5


def test_groups_in_both_languages(noto):
    assert all(isinstance(g, str) and "-" not in g for g in noto.groups_en)
    assert all(any("가" <= c <= "힣" for c in g) for g in noto.groups_ko)
    assert noto.groups_en[noto.find("flamingo")[0]] == "animal bird" and noto.groups_ko[noto.find("flamingo")[0]] == "동물 새"
