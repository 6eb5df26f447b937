"""The digits pack: 10,000 handwritten digits, 28x28, white on black, with a fixed split.

Made by data/build/digits.py; source and licence in data/README.md. Torch is imported only by :meth:`Digits.tensor`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")


@dataclass
class Digits:
    """images: uint8 (N, 28, 28), 0 is background.   labels: int64 (N,).   split: "train", "val" or "test" (N,)."""

    images: np.ndarray
    labels: np.ndarray
    split: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows) -> Digits:
        """Pick rows by a slice, a mask, or a list of positions."""
        rows = np.atleast_1d(np.arange(len(self))[rows])
        return Digits(self.images[rows], self.labels[rows], self.split[rows])

    def subset(self, split: str) -> Digits:
        """The rows of one split: "train", "val" or "test"."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
        return self[self.split == split]

    def tensor(self, device="cpu"):
        """The pictures as float32 torch tensor (N, 1, 28, 28) in [0, 1]."""
        import torch

        return torch.from_numpy(self.images).to(device).float().div_(255)[:, None]


def digits(split: str | None = None) -> Digits:
    """Load the handwritten digits (about 8,000 train, 1,000 val, 1,000 test, in one fixed shuffled order)."""
    from course_utils import data

    table = json.loads(data.path("digits/table.json").read_text())
    n, columns = table["count"], table["columns_in_sheet"]
    with Image.open(data.path("digits/digits.webp")) as file:
        sheet = np.asarray(file.convert("L"))
    images = sheet.reshape(-1, 28, columns, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)[:n].copy()
    names = np.full(n, "train", dtype="<U5")
    names[: table["test"]] = "test"
    names[table["test"] : table["test"] + table["val"]] = "val"
    out = Digits(images, np.array(list(table["labels"]), dtype=np.int64), names)
    return out if split is None else out.subset(split)
