"""The ``stereo`` pack: real stereo photographs with measured depth. None of them is in this repository.

The notices that come with these photographs do not say plainly that they may be passed on, so each is read, when asked for, from a package that the reader has:
"motorcycle" (Middlebury 2014) lies in scikit-image, "aloe" (Middlebury 2006) in the samples of OpenCV (Debian and Ubuntu: ``apt-get install opencv-doc``).

Camera: x right, y down, z forward; the centre of pixel (row i, column j) lies at (u, v) = (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data import sha256
from ..errors import CourseError

# focal length, principal point and offset in pixels of the stored picture, baseline in metres; what the data sets' own calibration files say
_KNOWN = {
    "motorcycle": {
        "files": {
            "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
            "motorcycle_right.png": "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797",
            "motorcycle_disp.npz": "2e49c8cebff3fa20359a0cc6880c82e1c03bbb106da81a177218281bc2f113d7",
        },
        "focal": 994.978,
        "centre": (311.193 + 0.125, 254.877 + 0.125),  # the calibration counts a full-size pixel's centre as a whole number
        "offset": 31.086,
        "baseline": 0.193001,
        "how": "it comes with scikit-image, so run `pip install scikit-image`",
        "source": "Middlebury stereo 2014, scene Motorcycle: Scharstein, Hirschmüller, Kitajima, Krathwohl, Nešić, Wang, Westling, GCPR 2014",
    },
    "aloe": {
        "files": {
            "aloeL.jpg": "cce5736808efe80d9f04b118dbb978c344d4345672b332718c3e039a3eeb8eee",
            "aloeR.jpg": "9b23100df31a846bc6e6a6545563b2b4120b948c9835c7d36cde00af77f4503e",
            "aloeGT.png": "39ce4f3cb48d797d1091c5152f93361d8104298c337f8a1c134d87dda3442c04",
        },
        "focal": 3740.0,
        "centre": None,  # the data set does not say: the middle of the picture stands in
        "offset": 270.0,
        "baseline": 0.160,
        "how": "it is one of OpenCV's samples, so run `apt-get install opencv-doc` (Debian, Ubuntu), or name a folder that holds aloeL.jpg, aloeR.jpg and aloeGT.png",
        "source": "Middlebury stereo 2006, scene Aloe: Scharstein and Pal, CVPR 2007; Hirschmüller and Scharstein, CVPR 2007",
    },
}
NAMES = tuple(_KNOWN)


@dataclass(frozen=True)
class Stereo:
    """One rectified stereo photograph: what the left camera sees at column x, the right one sees at x − disparity."""

    name: str
    left: np.ndarray  # (3, H, W) uint8
    right: np.ndarray  # (3, H, W) uint8
    disparity: np.ndarray  # (H, W) float32, pixels of this size; NaN where nothing was measured
    K: np.ndarray  # (3, 3) float32: intrinsics of the left camera, pixels of this size
    baseline: float  # metres between the two cameras
    offset: float  # pixels: how far the right principal point lies to the right of the left one
    source: str

    @property
    def depth(self) -> np.ndarray:
        """Metres along the optical axis, Z = baseline · focal length / (disparity + offset): (H, W) float32, NaN where unknown."""
        return (self.baseline * self.K[0, 0] / (self.disparity + self.offset)).astype(np.float32)

    @property
    def known(self) -> np.ndarray:
        """Where the depth was measured: (H, W) bool."""
        return np.isfinite(self.disparity)

    def crop(self, top: int, left: int, height: int, width: int) -> Stereo:
        """A part of the left picture, and the same columns of the right one."""
        rows, cols = slice(top, top + height), slice(left, left + width)
        K = self.K - np.array([[0, 0, left], [0, 0, top], [0, 0, 0]], np.float32)
        return replace(self, left=self.left[:, rows, cols], right=self.right[:, rows, cols], disparity=self.disparity[rows, cols], K=K)

    def resize(self, size: int | tuple[int, int]) -> Stereo:
        """Make it smaller: pictures by area averages, disparities by the median of the known ones in each block (unknown where fewer than half are known).

        ``size``: (height, width), or one number for the largest square in the middle brought to size × size.
        """
        if isinstance(size, int):
            h, w = self.disparity.shape
            s = min(h, w)
            return self.crop((h - s) // 2, (w - s) // 2, s, s).resize((size, size))
        from PIL import Image

        (h, w), (H, W) = size, self.disparity.shape
        if not (0 < h <= H and 0 < w <= W):
            raise CourseError(f"The photograph is {H} by {W} pixels: ask for a size of at most that, not {h} by {w}.")
        shrink = lambda x: np.asarray(Image.fromarray(x.transpose(1, 2, 0)).resize((w, h), Image.Resampling.BOX)).transpose(2, 0, 1)  # noqa: E731
        y, x = np.linspace(0, H, h + 1), np.linspace(0, W, w + 1)
        lo = [np.floor(e[:-1] + 1e-6).astype(int) for e in (y, x)]
        hi = [np.maximum(np.ceil(e[1:] - 1e-6).astype(int), a + 1) for e, a in zip((y, x), lo, strict=True)]
        small = np.full((h, w), np.nan, np.float32)
        for i in range(h):
            for j in range(w):
                block = self.disparity[lo[0][i] : hi[0][i], lo[1][j] : hi[1][j]]
                here = block[np.isfinite(block)]
                if 2 * len(here) >= block.size:
                    small[i, j] = np.median(here)
        scale = np.array([[w / W], [h / H], [1]], np.float32)
        return replace(
            self, left=shrink(self.left), right=shrink(self.right), disparity=small * np.float32(w / W), K=self.K * scale, offset=self.offset * w / W
        )

    def tensor(self, device="cpu"):
        """The left picture in −1..1 (1, 3, H, W) and the depth in metres (1, 1, H, W; NaN where unknown), as float tensors."""
        import torch

        picture = torch.tensor(np.ascontiguousarray(self.left), device=device)[None].float() / 127.5 - 1
        return picture, torch.tensor(self.depth, device=device)[None, None]


def _folders(name: str, folder) -> list[Path]:
    """Where the files may lie: the folder that was named, COURSE_STEREO, then the package's own place."""
    places = [Path(p) for p in (folder, os.environ.get("COURSE_STEREO")) if p]
    if name == "motorcycle" and (spec := importlib.util.find_spec("skimage")) and spec.origin:
        places.append(Path(spec.origin).parent / "data")
    if name == "aloe":
        places.append(Path("/usr/share/doc/opencv-doc/examples/data"))
    return places


def available(name: str, folder=None) -> bool:
    """Is this photograph on the machine?"""
    return any(all((p / f).exists() for f in _KNOWN[name]["files"]) for p in _folders(name, folder))


def stereo(name: str = "motorcycle", folder: str | Path | None = None) -> Stereo:
    """A real stereo photograph at the size of its package: "motorcycle" (500 × 741) or "aloe" (1110 × 1282)."""
    from PIL import Image

    if name not in _KNOWN:
        raise CourseError(f"There is no stereo photograph {name!r}: choose one of {', '.join(NAMES)}.")
    k = _KNOWN[name]
    place = next((p for p in _folders(name, folder) if all((p / f).exists() for f in k["files"])), None)
    if place is None:
        raise CourseError(f"The stereo photograph {name!r} may not be passed on with this course: {k['how']}.")
    for file, sha in k["files"].items():
        if sha256(place / file) != sha:
            raise CourseError(f"The file {file} is not the one that this course knows: {k['how']}, and try again.")
    left, right, disparity = (place / f for f in k["files"])
    if disparity.suffix == ".npz":
        with np.load(disparity) as z:
            d = z["arr_0"].astype(np.float32)
        d[~np.isfinite(d)] = np.nan
    else:
        d = np.asarray(Image.open(disparity)).astype(np.float32)
        d[d == 0] = np.nan
    pictures = [np.asarray(Image.open(f).convert("RGB")).transpose(2, 0, 1) for f in (left, right)]
    h, w = d.shape
    cx, cy = k["centre"] or (w / 2, h / 2)
    K = np.array([[k["focal"], 0, cx], [0, k["focal"], cy], [0, 0, 1]], np.float32)
    return Stereo(name, *pictures, d, K, k["baseline"], k["offset"], k["source"])


stereo.names, stereo.available = NAMES, available
