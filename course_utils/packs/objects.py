"""The ``objects`` pack: CC0 furniture as small meshes, and posed renders of four textured pieces.

Cameras: x right, y down, z forward; X_c = R X_w + t; the centre of pixel (row i, column j) lies at (u, v) = (j + 0.5, i + 0.5).
World of the views: y up, the object inside the unit ball around the origin. World of the meshes: y up, metres.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np

from .. import data
from ..errors import CourseError

NAMES = ("chicken", "childHut", "teddyBear", "fireExtinguisher")
STORED = 128  # pixels on a side


@dataclass(frozen=True)
class Views:
    """N posed pictures of one object on white, split by view: the task is to predict pictures from new viewpoints of the same thing."""

    name: str
    images: np.ndarray  # (N, H, W, 3) float32, 0..1
    masks: np.ndarray  # (N, H, W) float32, share of the pixel that the object covers
    depth: np.ndarray  # (N, H, W) float32, z of the nearest surface seen, in ball radii; 0 where there is none
    K: np.ndarray  # (3, 3) float32, intrinsics in pixels
    R: np.ndarray  # (N, 3, 3) float32, world → camera
    t: np.ndarray  # (N, 3) float32
    split: np.ndarray  # (N,) "train", "val" or "test"
    radius: float  # metres that one unit of this world stands for

    def __len__(self) -> int:
        return len(self.images)

    @property
    def centres(self) -> np.ndarray:
        """Where the cameras stand, −Rᵀt: (N, 3)."""
        return -np.einsum("nij,ni->nj", self.R, self.t)

    def of(self, split: str) -> Views:
        """Only the views of one split: ``views.of("train")``."""
        if split not in ("train", "val", "test"):
            raise CourseError(f"There is no split {split!r}: use 'train', 'val' or 'test'.")
        keep = self.split == split
        return replace(self, **{k: getattr(self, k)[keep] for k in ("images", "masks", "depth", "R", "t", "split")})


@dataclass(frozen=True)
class Mesh:
    """One piece of furniture, decimated (most to 3000 triangles, none above 10,000), one colour a face."""

    id: str
    name: str
    category: str
    size: tuple[float, float, float]  # metres along x, y, z
    split: str
    vertices: np.ndarray  # (V, 3) float32, metres, y up, standing on y = 0
    faces: np.ndarray  # (F, 3) int64
    colours: np.ndarray  # (F, 3) float32, 0..1


def views(name: str = "chicken", size: int = 64) -> Views:
    """All 110 views (80 train, 10 val, 20 test) of ``name`` at size × size pixels; 64 and 32 are area averages of the stored 128."""
    from PIL import Image

    if name not in NAMES:
        raise CourseError(f"There are no views of {name!r}: choose one of {', '.join(NAMES)}.")
    if size not in (32, 64, 128):
        raise CourseError(f"Views come at 32, 64 or 128 pixels, not {size}.")
    sheet = np.asarray(Image.open(data.path(f"objects/{name}.webp")).convert("RGB"))
    with np.load(data.path(f"objects/{name}.npz")) as z:
        f = {k: z[k] for k in z.files}
    n, k = len(f["R"]), STORED // size
    rows, cols = sheet.shape[0] // STORED, sheet.shape[1] // STORED
    images = sheet.reshape(rows, STORED, cols, STORED, 3).swapaxes(1, 2).reshape(rows * cols, STORED, STORED, 3)[:n]
    blocks = lambda x: x.reshape(n, size, k, size, k, *x.shape[3:])  # noqa: E731
    depth = np.where(f["depth"] == 0, 65535, f["depth"])
    depth = blocks(depth).min((2, 4)).astype(np.float32) * 1e-3
    return Views(
        name=name,
        images=blocks(images).mean((2, 4), dtype=np.float32) / 255,
        masks=blocks(f["mask"]).mean((2, 4), dtype=np.float32) / 16,
        depth=np.where(depth > 60, 0, depth).astype(np.float32),
        K=f["K"] / np.array([[k], [k], [1]], np.float32),
        R=f["R"],
        t=f["t"],
        split=f["split"],
        radius=float(f["scale"]),
    )


def meshes(category: str | None = None, split: str | None = None) -> list[Mesh]:
    """The small meshes, all or of one category ("Kitchen", "Living room", …) or split. Split by object; look-alikes share a split."""
    table = json.loads(data.path("objects/meshes.json").read_text(encoding="utf8"))
    with np.load(data.path("objects/meshes.npz")) as z:
        V, F, C, box = z["vertices"], z["faces"], z["colours"], z["box"]
    if category is not None and category not in {e["category"] for e in table}:
        raise CourseError(f"There is no category {category!r}: choose one of {', '.join(sorted({e['category'] for e in table}))}.")
    if split not in (None, "train", "val", "test"):
        raise CourseError(f"There is no split {split!r}: use 'train', 'val' or 'test'.")
    v_end = np.cumsum([e["vertices"] for e in table])
    f_end = np.cumsum([e["faces"] for e in table])
    out = []
    for e, ve, fe, (low, high) in zip(table, v_end, f_end, box, strict=True):
        if (category and e["category"] != category) or (split and e["split"] != split):
            continue
        out.append(
            Mesh(
                id=e["id"],
                name=e["name"],
                category=e["category"],
                size=tuple(e["size"]),
                split=e["split"],
                vertices=(low + V[ve - e["vertices"] : ve] / np.float32(65535) * (high - low)).astype(np.float32),
                faces=F[fe - e["faces"] : fe].astype(np.int64),
                colours=C[fe - e["faces"] : fe].astype(np.float32) / 255,
            )
        )
    return out


def objects(name: str = "chicken", size: int = 64) -> Views:
    """``data.objects("chicken")``: the posed views. ``data.objects.meshes()``: the small meshes."""
    return views(name, size)


objects.views, objects.meshes, objects.names = views, meshes, NAMES
