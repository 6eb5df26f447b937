"""The emoji pack: 3,786 emoji in two styles (a third for most), with English and Korean names, at 64x64 or below.

Made by data/build/emoji.py; sources and licences in data/README.md. Torch is imported only by :meth:`Emoji.tensor`.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

STYLES = ("google", "twitter", "fluent")
SPLITS = ("train", "compositions", "concepts")
# Korean words for Unicode's subcategories (translated for this course; Unicode names them in English only).
GROUPS_KO = {
    "face-smiling": "웃는 얼굴", "face-affection": "애정 얼굴", "face-tongue": "혀 내민 얼굴", "face-hand": "손과 얼굴",
    "face-neutral-skeptical": "무표정 얼굴", "face-sleepy": "졸린 얼굴", "face-unwell": "아픈 얼굴", "face-hat": "모자 쓴 얼굴",
    "face-glasses": "안경 쓴 얼굴", "face-concerned": "걱정하는 얼굴", "face-negative": "화난 얼굴", "face-costume": "분장한 얼굴",
    "cat-face": "고양이 얼굴", "monkey-face": "원숭이 얼굴", "heart": "하트", "emotion": "감정", "hand-fingers-open": "편 손",
    "hand-fingers-partial": "손가락 일부", "hand-single-finger": "한 손가락", "hand-fingers-closed": "쥔 손", "hands": "두 손",
    "hand-prop": "물건 쥔 손", "body-parts": "신체 부위", "person": "사람", "person-gesture": "사람 몸짓", "person-role": "사람 직업",
    "person-fantasy": "상상의 사람", "person-activity": "사람 활동", "person-sport": "사람 운동", "person-resting": "쉬는 사람", "family": "가족",
    "person-symbol": "사람 기호", "animal-mammal": "동물 포유류", "animal-bird": "동물 새", "animal-amphibian": "동물 양서류",
    "animal-reptile": "동물 파충류", "animal-marine": "동물 바다", "animal-bug": "동물 벌레", "plant-flower": "식물 꽃", "plant-other": "식물",
    "food-fruit": "음식 과일", "food-vegetable": "음식 채소", "food-prepared": "음식 요리", "food-asian": "음식 아시아", "food-sweet": "음식 단것",
    "drink": "음료", "dishware": "식기", "place-map": "장소 지도", "place-geographic": "장소 지형", "place-building": "장소 건물",
    "place-religious": "장소 종교", "place-other": "장소", "transport-ground": "탈것 육상", "transport-water": "탈것 수상",
    "transport-air": "탈것 항공", "hotel": "호텔", "time": "시간", "sky & weather": "하늘 날씨", "event": "행사", "award-medal": "상 메달",
    "sport": "스포츠", "game": "놀이", "arts & crafts": "예술 공예", "clothing": "옷", "sound": "소리", "music": "음악",
    "musical-instrument": "악기", "phone": "전화", "computer": "컴퓨터", "light & video": "빛 영상", "book-paper": "책 종이", "money": "돈",
    "mail": "우편", "writing": "필기", "office": "사무", "lock": "자물쇠", "tool": "도구", "science": "과학", "medical": "의료",
    "household": "생활용품", "other-object": "물건", "transport-sign": "교통 표지", "warning": "경고", "arrow": "화살표", "religion": "종교",
    "zodiac": "별자리", "av-symbol": "재생 기호", "gender": "성별", "math": "수학", "punctuation": "문장 부호", "currency": "통화",
    "other-symbol": "기호", "keycap": "키", "alphanum": "문자 숫자", "geometric": "도형", "flag": "깃발", "country-flag": "나라 깃발",
    "subdivision-flag": "지역 깃발", "skin-tone": "피부색",
}  # fmt: skip


@dataclass
class Emoji:
    """N emoji of one style; every field has length N and the same order.

    images: uint8 (N, 3, S, S), on white.           alpha: uint8 (N, S, S), 255 where the emoji is opaque.
    ids: code points, as "1f468-1f3fb" (unique).    chars: the character itself.
    names_en, names_ko: the caption (unique in each language).   keywords_en, keywords_ko: lists of further words.
    categories, subcategories: "Food & Drink", "food-fruit" ...   (groups_en, groups_ko: the subcategory in plain words)
    concept: id shared by all skin-tone, gender and direction variants of one thing.
    tone: "" or "light" ... "dark" (couples: "light, dark").   gender: "", "man", "woman", "two men" ...   facing: "" or "right".
    split: "train", "compositions" or "concepts".   index: row in the whole pack, the same in every style.
    base: row in the whole pack of the concept's plain emoji.
    """

    style: str
    images: np.ndarray
    alpha: np.ndarray
    ids: np.ndarray
    chars: np.ndarray
    names_en: np.ndarray
    names_ko: np.ndarray
    keywords_en: np.ndarray
    keywords_ko: np.ndarray
    categories: np.ndarray
    subcategories: np.ndarray
    concept: np.ndarray
    tone: np.ndarray
    gender: np.ndarray
    facing: np.ndarray
    split: np.ndarray
    index: np.ndarray
    base: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows) -> Emoji:
        """Pick rows by a slice, a mask, or a list of positions."""
        rows = np.atleast_1d(np.arange(len(self))[rows])
        return Emoji(self.style, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "style"})

    @property
    def groups_en(self) -> np.ndarray:
        """The subcategory in plain words: "animal bird", "sky weather" ..."""
        return _column([s.replace("-", " ").replace(" & ", " ") for s in self.subcategories])

    @property
    def groups_ko(self) -> np.ndarray:
        """The subcategory in Korean: "동물 새" ..."""
        return _column([GROUPS_KO[s] for s in self.subcategories])

    def subset(self, split: str) -> Emoji:
        """The rows of one split: "train", "compositions" or "concepts"."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
        return self[self.split == split]

    def tensor(self, device="cpu"):
        """The pictures as float32 torch tensor (N, 3, S, S) in [0, 1]."""
        import torch

        return torch.from_numpy(self.images).to(device).float().div_(255)

    def find(self, text: str) -> np.ndarray:
        """Positions whose English or Korean name contains ``text``, shortest names first."""
        text = text.lower()
        hits = [i for i in range(len(self)) if text in self.names_en[i].lower() or text in self.names_ko[i]]
        return np.array(sorted(hits, key=lambda i: len(self.names_en[i])), dtype=int)

    def pairs(self, what: str = "tone") -> np.ndarray:
        """Before/after pairs, (P, 2) positions: same concept, all attributes equal but ``what`` ("tone", "gender" or "facing").

        The first of a pair is the plain one (``what`` empty), the second has the attribute.
        """
        names = ("tone", "gender", "facing")
        if what not in names:
            raise ValueError(f"what must be one of {', '.join(names)}, not {what!r}.")
        keep = [n for n in names if n != what]
        key = [(self.concept[i], *(getattr(self, n)[i] for n in keep)) for i in range(len(self))]
        plain = {key[i]: i for i in range(len(self)) if not getattr(self, what)[i]}
        found = [(plain[key[i]], i) for i in range(len(self)) if getattr(self, what)[i] and key[i] in plain]
        return np.array(found, dtype=int).reshape(-1, 2)


@functools.lru_cache(maxsize=1)
def _table() -> dict:
    from course_utils import data

    pack = json.loads(data.path("emoji/table.json").read_text("utf-8"))
    columns = pack["table"]
    ids = columns["id"]
    columns["concept"] = [ids[b] for b in columns["base"]]
    return pack


def _column(values: list) -> np.ndarray:
    """A list as an object array: strings stay strings, lists stay lists."""
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def _pictures(style: str, size: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read a sheet, put it on white, shrink it by area averaging: (N, 3, S, S) and alpha (N, S, S), uint8."""
    from course_utils import data

    pack = _table()
    full, columns = pack["size"], pack["columns_in_sheet"]
    with Image.open(data.path(f"emoji/{style}.webp")) as file:
        sheet = file.convert("RGBA")
    alpha = sheet.getchannel("A")
    white = Image.new("RGB", sheet.size, "white")
    white.paste(sheet, mask=alpha)
    if size != full:
        white, alpha = white.reduce(full // size), alpha.reduce(full // size)

    def cut(image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image).reshape(-1, size, columns, size, len(image.getbands()))
        return pixels.transpose(0, 2, 4, 1, 3).reshape(-1, len(image.getbands()), size, size)[rows]

    return cut(white), cut(alpha)[:, 0]


def emoji(style: str = "google", size: int = 32, split: str | None = None) -> Emoji:
    """Load the emoji of one style.

    style: "google" (Noto), "twitter" (Twemoji), or "fluent" (flat; has no flags and few families, so fewer rows).
    size: 64, or 32, 16, 8 by area averaging.   split: one of "train", "compositions", "concepts"; None for all.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, not {style!r}.")
    pack = _table()
    if size not in (64, 32, 16, 8):
        raise ValueError(f"size must be 64, 32, 16 or 8, not {size!r}.")
    table = pack["table"]
    rows = np.arange(pack["count"])
    if style == "fluent":
        rows = rows[np.array(table["fluent"], bool)]
    images, alpha = _pictures(style, size, rows)
    col = {k: _column(table[k])[rows] for k in table if k not in ("fluent", "twins", "base")}
    out = Emoji(
        style=style, images=images, alpha=alpha, ids=col["id"], chars=col["char"], names_en=col["en"], names_ko=col["ko"],
        keywords_en=col["keywords_en"], keywords_ko=col["keywords_ko"], categories=col["category"],
        subcategories=col["subcategory"], concept=col["concept"], tone=col["tone"], gender=col["gender"],
        facing=col["facing"], split=col["split"].astype(str), index=rows, base=np.array(table["base"])[rows],
    )  # fmt: skip
    return out if split is None else out.subset(split)


def twins() -> dict[int, list[int]]:
    """Rows whose picture looks the same as another row's in the google or twitter style: {row: [rows]}.

    Their captions differ, so no model can tell them apart by sight (as the flags of Norway and of Bouvet Island).
    """
    return {int(k): v for k, v in _table()["table"]["twins"].items()}
