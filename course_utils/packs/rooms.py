"""The ``rooms`` pack: synthetic furnished rooms, seen by a simulated colour and depth camera, with 3D boxes of the furniture.

Camera: x right, y down, z forward; X_c = R X_w + t; the centre of pixel (row i, column j) lies at (u, v) = (j + 0.5, i + 0.5).
World of a room: y up, metres, the floor is y = 0, the shell spans [0, W] × [0, H] × [0, L].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import data
from ..errors import CourseError

SPLITS = ("train", "val", "test")
SIZE, COLUMNS = 64, 40  # pixels on a side; pictures in a row of the stored sheet
DEPTH_UNIT = 2.5e-4  # the file holds inverse depth in steps of 1/4000 per metre: 1 mm off at 3 m, 1 cm at 10 m
SHELL = {"floor": 0, "wall": 1, "ceiling": 2, "clutter": 3}  # labels below 4; label 4 + k is the k-th box of the room
CLASSES = ("chair", "sofa", "table", "cabinet", "other")  # the three beds are all held out, so they count as "other"
_WORDS = {
    "chair": ("chair", "stool", "bench"),
    "sofa": ("couch", "sofa"),
    "table": ("table", "desk"),
    "cabinet": ("cabinet", "wardrobe", "cupboard", "bookcase", "shelves", "fridge", "refrigerator", "island"),
}


def class_of(mesh) -> str:
    """The detection class of a piece of furniture, from its name in the catalogue."""
    name = mesh.name.lower()
    if mesh.id == "bedsideTable2" or "rocking" in name:
        return "cabinet" if mesh.id == "bedsideTable2" else "other"
    for c in ("chair", "cabinet", "sofa", "table"):  # "island extension" is a kitchen cabinet
        if any(w in name for w in _WORDS[c]) and not (c == "table" and name.startswith("table fan")):
            return c
    return "other"


@dataclass(frozen=True)
class Boxes:
    """M boxes of furniture, those of all rooms behind one another. Only pieces that show at least 4 pixels have a box."""

    room: np.ndarray  # (M,) int64: which room, an index into the pictures
    piece: np.ndarray  # (M,) str: id of the mesh in data.objects.meshes()
    label: np.ndarray  # (M,) int64: index into CLASSES
    centre: np.ndarray  # (M, 3) float32: in camera coordinates, metres
    world: np.ndarray  # (M, 3) float32: the same centre in the room's world
    size: np.ndarray  # (M, 3) float32: along the piece's own x (width), y (height), z (depth)
    yaw: np.ndarray  # (M,) float32: about the world's y; the front of the piece, its own +z, points to (sin yaw, 0, cos yaw) in the world
    pixels: np.ndarray  # (M,) int64: how many pixels of the picture it fills
    held_out: np.ndarray  # (M,) bool: a piece that occurs in no training room

    def __len__(self) -> int:
        return len(self.room)

    def of(self, room: int) -> Boxes:
        """The boxes of one room; the k-th of them has the value 4 + k in the label map."""
        return self._take(self.room == room)

    def _take(self, keep) -> Boxes:
        return replace(self, **{k: getattr(self, k)[keep] for k in self.__dataclass_fields__})


@dataclass(frozen=True)
class Rooms:
    """N rooms, one picture each."""

    split: str
    images: np.ndarray  # (N, 3, 64, 64) uint8
    depth: np.ndarray  # (N, 64, 64) float32: metres along the optical axis; every pixel has one
    label: np.ndarray  # (N, 64, 64) uint8: 0 floor, 1 wall, 2 ceiling, 3 clutter, 4 + k the room's k-th box
    K: np.ndarray  # (N, 3, 3) float32: intrinsics in pixels
    R: np.ndarray  # (N, 3, 3) float32: world → camera
    t: np.ndarray  # (N, 3) float32
    size: np.ndarray  # (N, 3) float32: width, height, length of the shell in metres
    boxes: Boxes

    classes = CLASSES

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Rooms:
        """The rooms of a slice, ``rooms[:100]``, with their boxes."""
        if not isinstance(rows, slice):
            raise CourseError(f"Rooms are taken by a slice, such as rooms[:100], not by {rows!r}.")
        index = np.arange(len(self))[rows]
        place = np.full(len(self), -1)
        place[index] = np.arange(len(index))
        boxes = self.boxes._take(place[self.boxes.room] >= 0)
        boxes = replace(boxes, room=place[boxes.room])
        return replace(self, boxes=boxes, **{k: getattr(self, k)[rows] for k in ("images", "depth", "label", "K", "R", "t", "size")})

    def tensor(self, device="cpu"):
        """Pictures in −1..1 (N, 3, 64, 64) and depths in metres (N, 1, 64, 64), as float tensors."""
        import torch

        return torch.tensor(self.images, device=device).float() / 127.5 - 1, torch.tensor(self.depth, device=device)[:, None]

    def points(self, i: int) -> np.ndarray:
        """All pixels of room i, lifted by their depth: (64, 64, 3) float32, camera coordinates in metres."""
        v, u = np.mgrid[:SIZE, :SIZE] + 0.5
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(self.K[i].astype(float)).T
        return (rays * self.depth[i][..., None]).astype(np.float32)


def rooms(split: str = "train") -> Rooms:
    """The rooms of one split: "train", "val" or "test". Val and test show other rooms, each with furniture that no training room has."""
    from PIL import Image

    if split not in SPLITS:
        raise CourseError(f"There is no split {split!r} of the rooms: use 'train', 'val' or 'test'.")
    with np.load(data.path(f"rooms/{split}.npz")) as z:
        f = {k: z[k] for k in z.files}
    n = len(f["K"])
    sheet = np.asarray(Image.open(data.path(f"rooms/{split}.webp")).convert("RGB"))
    tiles = sheet.reshape(-1, SIZE, COLUMNS, SIZE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIZE, SIZE)[:n]
    residual = f["low"].astype(np.uint16) | f["high"].astype(np.uint16) << 8
    inverse = residual.cumsum(1, dtype=np.uint16).cumsum(2, dtype=np.uint16)
    room = f["box_room"].astype(np.int64)
    centre = np.einsum("mij,mj->mi", f["R"][room], f["box_centre"]) + f["t"][room]
    return Rooms(
        split=split,
        images=np.ascontiguousarray(tiles),
        depth=(1 / (inverse * DEPTH_UNIT)).astype(np.float32),
        label=f["label"].cumsum(2, dtype=np.uint8),
        K=f["K"],
        R=f["R"],
        t=f["t"],
        size=f["size"],
        boxes=Boxes(
            room=room,
            piece=f["pieces"][f["box_piece"]],
            label=f["box_class"].astype(np.int64),
            centre=centre.astype(np.float32),
            world=f["box_centre"],
            size=f["box_size"],
            yaw=f["box_yaw"],
            pixels=f["box_pixels"].astype(np.int64),
            held_out=f["box_held_out"],
        ),
    )


rooms.classes, rooms.shell = CLASSES, SHELL
