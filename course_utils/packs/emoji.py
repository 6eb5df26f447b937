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


@dataclass
class Emoji:
    """N emoji of one style; every field has length N and the same order.

    images: uint8 (N, 3, S, S), on white.           alpha: uint8 (N, S, S), 255 where the emoji is opaque.
    ids: code points, as "1f468-1f3fb" (unique).    chars: the character itself.
    names_en, names_ko: the caption (unique in each language).   keywords_en, keywords_ko: lists of further words.
    categories, subcategories: "Food & Drink", "food-fruit" ...
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
