"""Builds the ``rooms`` pack: synthetic rooms with the CC0 furniture of the pack ``objects``, seen by a simulated colour and depth camera.

    python data/build/rooms.py            (JOBS=2 uses two processes)

Every room is drawn from its own random generator: size, surfaces and their patterns, windows, posters, shelves with clutter, furniture, lights and camera.
The shell is met by rays, furniture and clutter by a z-buffer; shadows and ambient occlusion come from splatted depth maps of the same scene.
World: y up, metres, floor at y = 0, the shell spans [0,W] × [0,H] × [0,L]. Camera: x right, y down, z forward, X_c = R X_w + t.
The depth of a pixel is that of the ray through its centre, (u, v) = (j + 0.5, i + 0.5); its colour is the mean of SUPER × SUPER samples.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(OUT.parent))
from course_utils.packs.objects import Mesh, meshes  # noqa: E402
from course_utils.packs.rooms import CLASSES, DEPTH_UNIT, SHELL, class_of  # noqa: E402

SIZE, SUPER = 64, 3
COUNTS = {"train": 1200, "val": 60, "test": 100}
COLUMNS = 40  # pictures in a row of a sheet
NEAR = 0.3  # nothing may come closer to the camera's plane, metres
# too large for a room, too thin to be seen, or standing on nothing
LEFT_OUT = {
    "childHut",
    "spiralStaircase",
    "numberLock",
    "comb",
    "ruler",
    "cissors_swap",
    "housePuzzle",
    "cardGame",
    "ceilingFan",
    "shower",
    "showerDoor",
    "knifeStandSwap",
}
ON_WALL = {"emergencySign": 2.1, "led_tv": 1.1, "rangeHood": 1.6, "smallUpperCabinet": 1.4, "toiletPaperDispenser": 0.8, "towel2": 0.9, "towel3": 1.2, "upperCabinet": 1.4,
           "upperCornerCabinet": 1.4, "upperShelves": 1.4, "urinal": 0.5, "wallLight": 1.6}  # fmt: skip
SCALE = {"motorbike": (1.4, 2.3), "deckChair": (0.9, 1.1)}  # the catalogue's motorbike is a toy's size


# ---------------------------------------------------------------- colours and patterns


def hsv(h, s, v) -> np.ndarray:
    """Hue, saturation, value in 0..1 → sRGB (..., 3)."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * np.asarray(h)[..., None]) % 6
    v, s = np.asarray(v)[..., None], np.asarray(s)[..., None]
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)


def paint(rng: np.random.Generator, muted: bool = False) -> np.ndarray:
    """A random colour: greys, woods, pastels, and (unless muted) strong ones."""
    kind = rng.choice(["grey", "wood", "pastel", "strong"], p=[0.35, 0.25, 0.4, 0] if muted else [0.3, 0.2, 0.25, 0.25])
    h = rng.random()
    if kind == "grey":
        return hsv(h, rng.uniform(0, 0.08), rng.uniform(0.12, 0.95))
    if kind == "wood":
        return hsv(rng.uniform(0.05, 0.11), rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.8))
    if kind == "pastel":
        return hsv(h, rng.uniform(0.08, 0.35), rng.uniform(0.5, 0.95))
    return hsv(h, rng.uniform(0.5, 0.95), rng.uniform(0.3, 0.9))


@cache
def _lattice() -> np.ndarray:
    return np.random.default_rng(7).random((64, 64))


def noise(p: np.ndarray, scale: float, octaves: int = 3) -> np.ndarray:
    """Smooth value noise in −1..1 at points p (n,2), with features of ``scale`` metres and finer."""
    out, total = 0.0, 0.0
    for k in range(octaves):
        q = p * (2**k / scale) + 17.3 * k
        i = np.floor(q).astype(int)
        f = q - i
        f = f * f * (3 - 2 * f)
        g = lambda a, b, i=i: _lattice()[(i[:, 0] + a) % 64, (i[:, 1] + b) % 64]  # noqa: E731
        row = [g(0, b) * (1 - f[:, 0]) + g(1, b) * f[:, 0] for b in (0, 1)]
        out += (row[0] * (1 - f[:, 1]) + row[1] * f[:, 1] - 0.5) / 2**k
        total += 0.5 / 2**k
    return out / total


PATTERNS = ("plain", "speckle", "planks", "tiles", "checker", "stripes", "brick", "panels")


def pattern(rng: np.random.Generator, kinds=PATTERNS, muted: bool = True):
    """A random surface: a function from points (n,2) in metres to colours (n,3)."""
    kind = str(rng.choice(kinds))
    a = paint(rng, muted)
    b = np.clip(a * rng.uniform(0.6, 1.3) + rng.uniform(-0.08, 0.08, 3), 0.02, 1) if rng.random() < 0.7 else paint(rng, muted)
    shift, stain, amount = rng.uniform(0, 50, 2), rng.uniform(0.3, 2.0), rng.uniform(0, 0.14)
    w, h = {"planks": (rng.uniform(0.6, 1.8), rng.uniform(0.08, 0.2)), "brick": (rng.uniform(0.2, 0.4), rng.uniform(0.07, 0.2))}.get(
        kind, (rng.uniform(0.15, 0.7),) * 2
    )
    joint, vary, turn = rng.uniform(0.03, 0.07), rng.uniform(0.05, 0.25), rng.random() < 0.5
    grain = rng.uniform(0.02, 0.08)

    def colour(p: np.ndarray) -> np.ndarray:
        p = p + shift
        if turn and kind in ("planks", "stripes"):
            p = p[:, ::-1]
        base = np.broadcast_to(a, (len(p), 3))
        if kind == "speckle":
            base = base * (1 + vary * noise(p, grain, 2)[:, None])
        elif kind in ("planks", "brick", "tiles", "panels"):
            row = np.floor(p[:, 1] / h)
            x = p[:, 0] / w + (0.5 * (row % 2) if kind == "brick" else 0.37 * row if kind == "planks" else 0)
            cell = (np.floor(x) * 7 + row * 13).astype(int)
            base = base * (1 + vary * (_lattice()[cell % 64, (cell // 64 + row.astype(int)) % 64] - 0.5) * (0.3 if kind == "panels" else 2))[:, None]
            if kind == "planks":
                base = base * (1 + 0.12 * noise(p * [0.15, 1], 0.03, 2)[:, None])
            fx, fy = x % 1, (p[:, 1] / h) % 1
            gap = (np.minimum(fx, 1 - fx) * w < joint * h) | (np.minimum(fy, 1 - fy) < joint)
            base = np.where(gap[:, None], b, base)
        elif kind == "checker":
            base = np.where(((np.floor(p[:, 0] / w) + np.floor(p[:, 1] / w)) % 2 == 0)[:, None], a, b)
        elif kind == "stripes":
            base = np.where((p[:, 0] / w % 1 < 0.5)[:, None], a, b)
        return np.clip(base * (1 + amount * noise(p, stain)[:, None]), 0.01, 1)

    return colour


def picture(rng: np.random.Generator):
    """A poster: a function from points (n,2) in 0..1 to colours: a ground with a few discs, bars and lines of text-like marks."""
    ground, shapes = paint(rng), []
    for _ in range(rng.integers(2, 9)):
        shapes.append((rng.choice(["disc", "bar", "ramp", "text"]), rng.random(2), rng.uniform(0.05, 0.45, 2), paint(rng)))
    frame, border = rng.uniform(0, 0.06), paint(rng)

    def colour(p: np.ndarray) -> np.ndarray:
        out = np.broadcast_to(ground, (len(p), 3)).copy()
        for kind, c, r, col in shapes:
            d = np.abs(p - c) / r
            inside = (d**2).sum(1) < 1 if kind == "disc" else (d < 1).all(1)
            if kind == "text":
                inside &= (p[:, 1] * 24 % 1 < 0.5) & (noise(p * 9 + c * 30, 0.5, 1) > -0.3)
            if kind == "ramp":
                out = out * (1 - 0.6 * np.clip(1 - d[:, 1:], 0, 1)) + col * 0.6 * np.clip(1 - d[:, 1:], 0, 1)
            else:
                out[inside] = col
        edge = np.minimum(p, 1 - p).min(1) < frame
        out[edge] = border
        return out

    return colour


def daylight(rng: np.random.Generator):
    """What a window shows, 0..1 coordinates: a bright sky above something darker, and the bars."""
    sky, land, split = hsv(0.58, rng.uniform(0, 0.35), 1.0), paint(rng), rng.uniform(-0.3, 0.6)
    bars, wide, frame = rng.integers(1, 4, 2), rng.uniform(0.02, 0.05), paint(rng, True)

    def colour(p: np.ndarray) -> np.ndarray:
        up = np.clip((1 - p[:, 1] - split + 0.1 * noise(p, 0.2)) * 8, 0, 1)[:, None]
        out = 1.6 * (sky * up + 0.6 * land * (1 - up))
        f = p * bars
        bar = (np.minimum(f % 1, 1 - f % 1) / bars < wide).any(1)
        out[bar] = frame
        return out

    return colour


# ---------------------------------------------------------------- solids


def box(size, centre=(0, 0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """A box as 8 vertices and 12 triangles."""
    V = (np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(8, 3) - 0.5) * size + centre
    q = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return V, np.array([t for a, b, c, d in q for t in ((a, b, c), (a, c, d))])


def lathe(radii, heights, n: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """A solid of revolution around y: cylinders, cones, balls, bottles."""
    a = np.arange(n) * 2 * np.pi / n
    V = np.concatenate([np.stack([r * np.cos(a), np.full(n, y), r * np.sin(a)], 1) for r, y in zip(radii, heights, strict=True)])
    k, j = np.arange(len(radii) - 1)[:, None] * n, np.arange(n)
    p, q = k + j, k + (j + 1) % n
    F = np.concatenate([np.stack([p, q, p + n], -1).reshape(-1, 3), np.stack([q, q + n, p + n], -1).reshape(-1, 3)])
    caps = [np.stack([np.full(n - 2, s), s + j[1:-1], s + j[2:]], 1) for s in (0, (len(radii) - 1) * n)]
    return V, np.concatenate([F, *caps])


def turn(yaw: float) -> np.ndarray:
    """Rotation about y by yaw: the front of a piece (+z) then points to (sin yaw, 0, cos yaw)."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def clutter(rng: np.random.Generator, size: float) -> tuple[np.ndarray, np.ndarray]:
    """A random small thing of about ``size`` metres, standing on y = 0."""
    kind = rng.choice(["box", "can", "ball", "bottle", "bucket", "pole"], p=[0.5, 0.15, 0.08, 0.12, 0.1, 0.05])
    s = size * rng.uniform(0.5, 1.0, 3)
    if kind == "box":
        return box(s, (0, s[1] / 2, 0))
    r, h = s[0] / 2, s[1]
    if kind == "ball":
        a = np.linspace(-np.pi / 2, np.pi / 2, 7)
        return lathe(r * np.cos(a) + 1e-4, r + r * np.sin(a), 12)
    if kind == "bottle":
        return lathe([0.5 * r, 0.5 * r, 0.2 * r, 0.2 * r], [0, 0.65 * h, 0.8 * h, h], 10)
    if kind == "bucket":
        return lathe([0.7 * r, r], [0, h])
    return lathe([r, r], [0, h]) if kind == "can" else lathe([0.03, 0.03], [0, rng.uniform(0.8, 1.8)], 8)


class Scene:
    """Triangles with a colour each, a texture strength and a label; pieces of furniture with their boxes."""

    def __init__(self):
        self.V, self.F, self.C, self.rough, self.label = [], [], [], [], []
        self.n, self.boxes = 0, []

    def add(self, V, F, colour, label: int = SHELL["clutter"], texture=(0.0, 0.1)) -> None:
        self.V.append(np.asarray(V, float))
        self.F.append(F + self.n)
        self.C.append(np.broadcast_to(colour, (len(F), 3)))
        self.rough.append(np.broadcast_to(np.array(texture, float), (len(F), 2)))
        self.label.append(np.full(len(F), label))
        self.n += len(V)

    def pack(self) -> dict:
        cat = lambda x, shape: np.concatenate(x) if x else np.zeros(shape)  # noqa: E731
        return {
            "V": cat(self.V, (0, 3)), "F": cat(self.F, (0, 3)).astype(int), "C": cat(self.C, (0, 3)), "texture": cat(self.rough, (0, 2)), "label": cat(self.label, 0).astype(int),
        }  # fmt: skip


# ---------------------------------------------------------------- furnishing


@cache
def pieces() -> dict[str, list[Mesh]]:
    return {s: [m for m in meshes(split=s) if m.id not in LEFT_OUT] for s in COUNTS}


@cache
def weights(split: str) -> np.ndarray:
    """How often each piece of a split is drawn: furniture rather than trinkets."""
    w = np.array([{"other": 0.5, "sofa": 1.8, "table": 1.8}.get(class_of(m), 1.3) * (1.0 if max(m.size) > 0.5 else 0.45) for m in pieces()[split]])
    return w / w.sum()


def overlap(a, b) -> bool:
    """Do two oriented rectangles (centre (2,), half sizes (2,), yaw) on the floor overlap? Separating axes."""
    corners = []
    for c, h, yaw in (a, b):
        R = turn(yaw)[np.ix_([0, 2], [0, 2])]
        corners.append(c + (np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * h) @ R.T)
    for *_, yaw in (a, b):
        for axis in turn(yaw)[np.ix_([0, 2], [0, 2])].T:
            p, q = (k @ axis for k in corners)
            if p.max() < q.min() or q.max() < p.min():
                return False
    return True


def tint(rng: np.random.Generator, C: np.ndarray) -> np.ndarray:
    """Other colours for the same piece: brightness, tint, sometimes a new paint over the greys."""
    C = C.astype(float)
    if rng.random() < 0.65:
        return np.clip(C * rng.uniform(0.7, 1.2) * (1 + rng.uniform(-0.12, 0.12, 3)), 0.02, 1)
    value = C.mean(1, keepdims=True)
    new = value / max(value.mean(), 0.1) * paint(rng)
    keep = rng.uniform(0, 0.6)
    return np.clip(keep * C + (1 - keep) * new, 0.02, 1)


def furnish(rng: np.random.Generator, split: str) -> dict:
    """One random room: shell, camera, triangles, boxes."""
    garage = rng.random() < 0.35  # bare walls, shelves, clutter
    W, L, H = rng.uniform(3, 7), rng.uniform(3.5, 8.5), rng.uniform(2.3, 3.4)
    # the camera stands near the front wall and looks into the room
    focal = np.exp(rng.uniform(np.log(0.75), np.log(1.8)))  # in picture widths: field of view 67° … 31°
    eye = np.array([rng.uniform(0.25, 0.75) * W, rng.uniform(0.5, 1.8), rng.uniform(0.15, 0.3) * L])
    goal = np.array([rng.uniform(0.15, 0.85) * W, 0, rng.uniform(0.75, 1.1) * L])
    yaw = np.arctan2(goal[0] - eye[0], goal[2] - eye[2])
    ahead = np.array([np.sin(yaw), 0, np.cos(yaw)])
    scene, floor = Scene(), [(eye[[0, 2]], np.array([0.3, 0.3]), 0.0)]

    def put(m: Mesh, scale: float, x: float, z: float, y: float, a: float) -> None:
        V = (m.vertices * scale) @ turn(a).T + [x, y, z]
        low, high = m.vertices.min(0) * scale, m.vertices.max(0) * scale
        centre = turn(a) @ ((low + high) / 2) + [x, y, z]
        texture = (rng.choice([0, rng.uniform(0.05, 0.3)]), rng.choice([0.02, rng.uniform(0.03, 0.15)]))
        scene.add(V, m.faces, tint(rng, m.colours), len(SHELL) + len(scene.boxes), texture)
        scene.boxes.append(
            {"piece": m.id, "name": m.name, "class": class_of(m), "centre": centre, "size": high - low, "yaw": float(a), "held_out": m.split != "train"}
        )

    for k in range(int(rng.integers(3, 11))):
        pool = split if k < 2 or rng.random() < 0.4 else "train"
        m = pieces()[pool][rng.choice(len(pieces()[pool]), p=weights(pool))]
        scale = rng.uniform(*SCALE.get(m.id, (0.85, 1.15)))
        half = np.array([m.size[0], m.size[2]]) * scale / 2
        for _ in range(40 if max(m.size) > 1.5 else 14):
            if m.id in ON_WALL or (class_of(m) in ("cabinet", "sofa") and rng.random() < 0.6):
                wall = rng.integers(0, 3)  # left, back, right: the piece turns its back to it
                a = [np.pi / 2, np.pi, -np.pi / 2][wall]
                x, z = [(half[1] + 0.02, rng.uniform(0.3, 1) * L), (rng.uniform(0, 1) * W, L - half[1] - 0.02), (W - half[1] - 0.02, rng.uniform(0.3, 1) * L)][
                    wall
                ]
            else:
                a = rng.uniform(-np.pi, np.pi) if rng.random() < 0.6 else rng.integers(0, 4) * np.pi / 2
                far = rng.uniform(1.3, 3.2) if k < 2 else rng.uniform(1.3, 6.5)  # the first two fill much of the frame
                side = rng.uniform(-0.5, 0.5) / focal * (0.7 if k < 2 else 1.2) * far
                x, z = eye[[0, 2]] + far * ahead[[0, 2]] + side * np.array([ahead[2], -ahead[0]])
            R = np.abs(turn(a)[np.ix_([0, 2], [0, 2])])
            hx, hz = R @ half
            y = 0.0
            if m.id in ON_WALL:
                y = min(ON_WALL[m.id] * rng.uniform(0.85, 1.1), H - m.size[1] * scale - 0.05)
            elif max(m.size) < 0.45 and scene.boxes and rng.random() < 0.75:  # small things stand on tables and cabinets
                which = int(rng.integers(len(scene.boxes)))
                on = scene.boxes[which]
                x, z = (on["centre"] + turn(on["yaw"]) @ (on["size"] * [rng.uniform(-0.3, 0.3), 0, rng.uniform(-0.3, 0.3)]))[[0, 2]]
                V = scene.V[which]
                near = V[np.hypot(V[:, 0] - x, V[:, 2] - z) < max(0.1, hx)]
                top = on["centre"][1] + on["size"][1] / 2
                if on["class"] not in ("table", "cabinet") or len(near) < 2 or abs(near[:, 1].max() - top) > 0.02 or top > 1.5:
                    continue
                y = top
            here = (np.array([x, z]), half * 0.97, a)
            inside = hx < x < W - hx and hz < z < L - hz and y + m.size[1] * scale < H
            if inside and (y > 0 or not any(overlap(here, o) for o in floor)):
                if y == 0:
                    floor.append(here)
                put(m, scale, x, z, y, a)
                break

    # shelves with things on them, against the back or a side wall
    for _ in range(int(rng.integers(0, 4) if garage else rng.random() < 0.35)):
        wall = rng.integers(0, 3)
        a = [np.pi / 2, np.pi, -np.pi / 2][wall]
        w, d, h = rng.uniform(0.6, 2.2), rng.uniform(0.2, 0.5), rng.uniform(0.9, 2.2)
        low = rng.choice([0.0, rng.uniform(0.8, 1.5)])
        h = min(h, H - low - 0.1)
        x, z = [(d / 2, rng.uniform(0.4, 0.95) * L), (rng.uniform(0.1, 0.9) * W, L - d / 2), (W - d / 2, rng.uniform(0.4, 0.95) * L)][wall]
        here = (np.array([x, z]), np.array([w, d]) / 2, a)
        if low == 0 and any(overlap(here, o) for o in floor):
            continue
        if low == 0:
            floor.append(here)
        R, at, colour = turn(a), np.array([x, low, z]), paint(rng, True)
        place = lambda V, R=R, at=at: V @ R.T + at  # noqa: E731
        rows = int(max(1, round(h / rng.uniform(0.3, 0.5)))) if low == 0 else 2
        for r in range(rows + (low == 0)):
            V, F = box((w, 0.03, d), (0, r * h / rows + 0.015, 0))
            scene.add(place(V), F, colour)
            u = -w / 2
            while u < w / 2 - 0.08 and r * h / rows < h - 0.15:
                s = rng.uniform(0.06, min(0.3, h / rows * 0.8))
                if rng.random() < 0.8:
                    V, F = clutter(rng, s) if rng.random() < 0.6 else box((0.04, s, d * 0.7), (0, s / 2, 0))
                    V = V + [u + s / 2, r * h / rows + 0.03, rng.uniform(-0.2, 0.2) * d]
                    scene.add(place(V), F, paint(rng))
                u += s * rng.uniform(0.6, 1.3)
        for u in (-w / 2, w / 2):
            V, F = box((0.03, h, d if rng.random() < 0.5 else 0.03), (u, h / 2, 0))
            scene.add(place(V), F, colour)
    # tools and such hung on the walls, things left on the floor
    for _ in range(int(rng.integers(5, 30) if garage else rng.integers(0, 5))):
        wall = rng.integers(0, 3)
        s = rng.uniform(0.05, 0.5, 3) * [1, 1, 0.15]
        V, F = box(s) if rng.random() < 0.6 else lathe(np.array([1, 1]) * s[0] / 2, [-s[2] / 2, s[2] / 2])
        if len(V) > 8:
            V = V[:, [0, 2, 1]]
        a = rng.uniform(0, np.pi) if rng.random() < 0.3 else 0.0
        V = V @ np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])
        p = [(0.02, 0, rng.uniform(0.3, 1) * L), (rng.uniform(0, 1) * W, 0, L - 0.02), (W - 0.02, 0, rng.uniform(0.3, 1) * L)][wall]
        scene.add(V @ turn([np.pi / 2, np.pi, -np.pi / 2][wall]).T + p + [0, rng.uniform(0.3, 0.9) * H, 0], F, paint(rng))
    for _ in range(int(rng.integers(2, 14) if garage else rng.integers(0, 5))):
        V, F = clutter(rng, rng.choice([rng.uniform(0.1, 0.35), rng.uniform(0.3, 0.8)]))
        far = rng.uniform(1.2, 6)
        x, z = eye[[0, 2]] + far * ahead[[0, 2]] + rng.uniform(-0.6, 0.6) / focal * far * np.array([ahead[2], -ahead[0]])
        r = np.abs(V[:, [0, 2]]).max()
        if r < x < W - r and r < z < L - r and not any(overlap((np.array([x, z]), np.array([r, r]), 0.0), o) for o in floor):
            floor.append((np.array([x, z]), np.array([r, r]), 0.0))
            scene.add(V @ turn(rng.uniform(0, 6)).T + [x, 0, z], F, paint(rng), texture=(rng.uniform(0, 0.3), 0.05))
    # the first pieces hold the camera's gaze
    tall = np.mean([b["centre"][1] for b in scene.boxes[:3]]) if scene.boxes else 0.6
    pitch = np.arctan2(eye[1] - rng.uniform(0.6, 1.4) * max(tall, 0.3), rng.uniform(2.0, 3.5)) + rng.normal(0, 0.05)
    roll = rng.normal(0, 0.025)
    zc = np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    xc = np.cross(zc, [0.0, 1.0, 0.0])
    xc /= np.linalg.norm(xc)
    yc = np.cross(zc, xc)
    R = np.stack([np.cos(roll) * xc + np.sin(roll) * yc, -np.sin(roll) * xc + np.cos(roll) * yc, zc])
    K = np.array([[focal * SIZE, 0, SIZE / 2], [0, focal * SIZE, SIZE / 2], [0, 0, 1]])
    return {"room": np.array([W, H, L]), "K": K, "R": R, "t": -R @ eye, "eye": eye, "scene": scene, "garage": garage}


# ---------------------------------------------------------------- light and pictures


def zbuffer(P: np.ndarray, F: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest triangle of each of n × n samples (−1: none) and its barycentric weights there, perspective-correct. P (·,3): sample x, sample y, depth.

    As in ``objects.py``, but leaner: a screen triangle's weights are linear in x and y, so three numbers a corner serve all its samples.
    """
    x, y, z = (P[:, k][F.T] for k in range(3))  # (3, m)
    lo = [np.clip(np.ceil(c.min(0) - 0.5), 0, n).astype(int) for c in (x, y)]
    w, h = (np.maximum(np.clip(np.floor(c.max(0) - 0.5) + 1, 0, n).astype(int) - l, 0) for c, l in zip((x, y), lo, strict=True))
    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])
    f = np.nonzero((w > 0) & (h > 0) & (np.abs(area) > 1e-9))[0]
    x, y, z, w, h, lo, area = x[:, f], y[:, f], z[:, f], w[f], h[f], np.stack(lo)[:, f], area[f]
    # weight k over the depth at the first sample of the bounding box, and its steps along x and y
    after, last = [1, 2, 0], [2, 0, 1]
    dx, dy = (y[after] - y[last]) / area, (x[last] - x[after]) / area
    at = (x[after] - lo[0] - 0.5) * (y[last] - lo[1] - 0.5) - (y[after] - lo[1] - 0.5) * (x[last] - lo[0] - 0.5)
    at = at / area
    at, dx, dy = (c.astype(np.float32) for c in (at, dx, dy))
    best, face = np.zeros(n * n, np.float32), np.full(n * n, -1)
    count = w * h
    k = np.repeat(np.arange(len(f)), count)
    i = np.arange(len(k)) - np.repeat(np.cumsum(count) - count, count)
    j, i = np.divmod(i, w[k])
    pix = (lo[1] * n + lo[0])[k] + j * n + i
    i, j = i.astype(np.float32), j.astype(np.float32)
    a = at[0][k] + i * dx[0][k] + j * dy[0][k]
    b = at[1][k] + i * dx[1][k] + j * dy[1][k]
    inside = np.nonzero((a >= 0) & (b >= 0) & (a + b <= 1))[0]
    k, a, b, pix = k[inside], a[inside], b[inside], pix[inside]
    inv = (1 / z).astype(np.float32)
    nearness = a * inv[0][k] + b * inv[1][k] + (1 - a - b) * inv[2][k]
    np.maximum.at(best, pix, nearness)
    win = np.nonzero(nearness == best[pix])[0]
    bary = np.zeros((n * n, 3))
    face[pix[win]] = f[k[win]]
    part = np.stack([a[win] * inv[0][k[win]], b[win] * inv[1][k[win]], (1 - a[win] - b[win]) * inv[2][k[win]]], 1)
    bary[pix[win]] = part / part.sum(1, keepdims=True)
    return face, bary


def points_on(V: np.ndarray, F: np.ndarray, rng: np.random.Generator, spacing: float = 0.03) -> np.ndarray:
    """Points spread over triangles, about one every ``spacing`` metres."""
    a, b, c = V[F[:, 0]], V[F[:, 1]], V[F[:, 2]]
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    f = np.repeat(np.arange(len(F)), rng.poisson(np.minimum(area / spacing**2, 400)))
    r = np.sqrt(rng.random((len(f), 1)))
    s = rng.random((len(f), 1))
    return np.concatenate([V, (1 - r) * a[f] + r * (1 - s) * b[f] + r * s * c[f]])


def visibility(rng, cloud: np.ndarray, P: np.ndarray, N: np.ndarray, light: np.ndarray, texel: float, taps: int, blur: float, bias: float) -> np.ndarray:
    """Share of ``light`` (a direction) that reaches points P (n,3) with normals N past the cloud's points: a splatted shadow map, looked up with jitter."""
    x = np.cross(light, [0.3, 0.1, 0.9])
    x /= np.linalg.norm(x)
    B = np.stack([x, np.cross(light, x), light])  # last row: height towards the light
    Q = B @ cloud.T
    low = Q[:2].min(1) - texel
    w, h = ((Q[:2].max(1) - low) / texel).astype(int) + 2
    top = np.full(w * h + 1, -np.inf)  # the last cell stands for all that lies outside
    i, j = ((Q[:2] - low[:, None]) / texel).astype(int)
    np.maximum.at(top, i * h + j, Q[2])
    q = B @ (P + 0.03 * N).T
    x, y, height = (q[0] - low[0]) / texel, (q[1] - low[1]) / texel, q[2] + bias
    lit = np.zeros(len(P))
    for _ in range(taps):
        i = np.floor(x + rng.uniform(-blur, blur, len(P))).astype(int)
        j = np.floor(y + rng.uniform(-blur, blur, len(P))).astype(int)
        cell = np.where((i >= 0) & (i < w) & (j >= 0) & (j < h), i * h + j, w * h)
        lit += top[cell] < height
    return lit / taps


def shell(rng: np.random.Generator, room: dict):
    """Surfaces of the shell: floor, ceiling, four walls, with what hangs or lies on them. Returns colour(side, points) and glow(side, points)."""
    W, H, L = room["room"]
    walls = (
        ("plain", "speckle", "brick", "panels", "tiles") if room["garage"] else ("plain", "plain", "speckle", "stripes", "panels", "tiles", "brick", "checker")
    )
    one = pattern(rng, walls)
    sides = {
        "floor": pattern(rng, ("plain", "speckle", "speckle", "tiles") if room["garage"] else ("planks", "planks", "tiles", "speckle", "checker", "brick")),
        "ceiling": pattern(rng, ("plain", "plain", "panels", "planks")),
    }
    for k in ("left", "right", "front", "back"):
        sides[k] = one if rng.random() < 0.7 else pattern(rng, walls)
    hung: dict[str, list] = {k: [] for k in sides}
    for k, length in (("left", L), ("right", L), ("back", W)):
        for _ in range(rng.integers(0, 6)):
            kind = rng.choice(["window", "poster", "door", "board"], p=[0.25, 0.5, 0.1, 0.15])
            w, h = {
                "window": rng.uniform(0.6, 1.8, 2),
                "poster": rng.uniform(0.25, 1.1, 2),
                "door": (rng.uniform(0.8, 1.0), rng.uniform(1.95, 2.15)),
                "board": rng.uniform(0.6, 2.0, 2),
            }[kind]
            u = rng.uniform(0, max(length - w, 0.1))
            v = 0.0 if kind == "door" else rng.uniform(0.6, max(H - h, 0.7)) if kind != "board" else rng.uniform(0.2, 1.2)
            hung[k].append((kind, u, v, w, h, daylight(rng) if kind == "window" else picture(rng) if kind == "poster" else pattern(rng)))
    skirting, skirt = rng.choice([0, rng.uniform(0.05, 0.15)]), paint(rng, True)
    if rng.random() < 0.45:  # a rug
        w, h = rng.uniform(1, 3, 2)
        hung["floor"].append(
            ("rug", rng.uniform(0, 1) * (W - w), rng.uniform(0.1, 1) * (L - h), w, h, pattern(rng, ("plain", "stripes", "checker", "speckle"), False))
        )

    def colour(side: str, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p (n,2) metres on the surface → colour (n,3), glow (n,)."""
        out, glow = sides[side](p).copy(), np.zeros(len(p))
        if side in ("left", "right", "front", "back"):
            out[p[:, 1] < skirting] = skirt
        for kind, u, v, w, h, fill in hung[side]:
            q = (p - [u, v]) / [w, h]
            i = ((q > 0) & (q < 1)).all(1)
            out[i] = fill(q[i] * [1, -1] + [0, 1]) if kind in ("window", "poster") else fill(q[i] * [w, h])
            if kind in ("door", "board"):
                out[i & (np.minimum(q, 1 - q) * [w, h] < 0.04).any(1)] *= 0.6
            glow[i] = kind == "window"
        return out, glow

    return colour


def render(rng: np.random.Generator, room: dict) -> dict:
    """The pictures of one room: rgb (64,64,3) uint8, inverse depth (64,64) uint16, label (64,64) uint8; pieces that end up unseen lose their box."""
    n = SIZE * SUPER
    R, t, eye = room["R"], room["t"], room["eye"]
    size = room["room"]
    tri = room["scene"].pack()
    # rays of all samples
    K = room["K"] * np.array([[SUPER], [SUPER], [1]])
    u, v = np.meshgrid(np.arange(n) + 0.5, np.arange(n) + 0.5)
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1).reshape(-1, 3)  # camera axes, z = 1
    d = rays @ R
    # the shell, from inside
    with np.errstate(divide="ignore"):
        s = np.where(d > 0, (size - eye) / d, np.where(d < 0, -eye / d, np.inf))
    axis = s.argmin(1)
    depth = s[np.arange(len(s)), axis]
    P = eye + depth[:, None] * d
    up = d[np.arange(len(s)), axis] > 0
    normal = np.zeros_like(P)
    normal[np.arange(len(s)), axis] = np.where(up, -1, 1)
    side = axis * 2 + up
    paint_of = shell(rng, room)
    albedo, glow, label = np.zeros_like(P), np.zeros(len(P)), np.zeros(len(P), int)
    for k, (name, uv) in enumerate((("left", (2, 1)), ("right", (2, 1)), ("floor", (0, 2)), ("ceiling", (0, 2)), ("front", (0, 1)), ("back", (0, 1)))):
        i = side == k
        if i.any():
            albedo[i], glow[i] = paint_of(name, P[i][:, uv])
            label[i] = SHELL["floor"] if name == "floor" else SHELL["ceiling"] if name == "ceiling" else SHELL["wall"]
    shine, local = np.where(label == SHELL["floor"], rng.choice([0, rng.uniform(0, 0.25)]), 0.0), np.full(len(P), -1)
    # furniture and clutter: whole pieces that come too near are taken away
    X = tri["V"] @ R.T + t
    if len(tri["F"]):
        close = (X[:, 2] < NEAR)[tri["F"].T].sum(0) > 0
        part = np.unique(tri["label"][close])
        gone = (np.isin(tri["label"], part[part >= len(SHELL)])) | (close & (tri["label"] == SHELL["clutter"]))
        F, keep = tri["F"][~gone], np.nonzero(~gone)[0]
        p = X @ K.T
        p[:, :2] /= np.maximum(p[:, 2:], 1e-6)
        face, bary = zbuffer(np.column_stack([p[:, :2], X[:, 2]]), F, n)
        hit = face >= 0
        corner = tri["V"][F[face[hit]]]
        Q = (corner * bary[hit][..., None]).sum(1)
        z = (Q @ R.T + t)[:, 2]
        front = z < depth[hit]
        i = np.nonzero(hit)[0][front]
        f = keep[face[i]]
        P[i], depth[i] = Q[front], z[front]
        N = np.cross(corner[front, 1] - corner[front, 0], corner[front, 2] - corner[front, 0])
        N /= np.linalg.norm(N, axis=1, keepdims=True) + 1e-12
        normal[i] = N * np.where((N * d[i]).sum(1, keepdims=True) > 0, -1, 1)
        strength, grain = tri["texture"][f].T
        rough = noise(np.stack([P[i] @ [1, 0.3, 0.7], P[i] @ [0.2, 1, -0.5]], 1) / np.maximum(grain[:, None], 0.02), 1.0, 2)
        albedo[i] = tri["C"][f] * (1 + strength * rough)[:, None]
        glow[i], label[i], local[i] = 0, tri["label"][f], f
        shine[i] = (tri["label"][f] * 37 % 11 < 3) * 0.3
        cloud = points_on(tri["V"], F, rng)
    else:
        cloud = np.zeros((1, 3))
    # light: a lamp or window (point, shadow by its direction to the middle of the room), and the dome of the ambient light with occlusion
    lamp = size * [rng.uniform(0.1, 0.9), rng.uniform(0.75, 0.98), rng.uniform(0.0, 0.8)]
    middle = eye + 2.5 * R[2] * [1, 0, 1]
    to = lamp - [middle[0], 0.5, middle[2]]
    key = visibility(rng, cloud, P, normal, to / np.linalg.norm(to), 0.05, 3, rng.uniform(0.8, 3.0), 0.05)
    toward = lamp - P
    far = np.linalg.norm(toward, axis=1)
    toward /= far[:, None]
    key *= np.maximum((normal * toward).sum(1), 0) * (1 + (far / 3.0) ** 2) ** -rng.uniform(0.3, 1.0)
    ambient, total = np.zeros(len(P)), 1e-9
    for a in range(9):
        elevation, azimuth = np.deg2rad([80, 50, 50, 50, 50, 18, 18, 18, 18][a]), a * np.pi / 2 + (0.6 if a > 4 else 0) + 0.4
        w = np.array([np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)])
        cosine = np.maximum(normal @ w, 0.05)
        ambient += visibility(rng, cloud, P, normal, w, 0.06, 1, 1.5, 0.04) * cosine
        total = total + cosine
    ambient = ambient / total * (0.75 + 0.25 * normal[:, 1])
    for a in range(3):  # corners of the shell
        for plane in (P[:, a], size[a] - P[:, a]):
            ambient *= np.where(np.abs(normal[:, a]) > 0.9, 1, 1 - 0.35 * np.exp(-np.maximum(plane, 0) / 0.25))
    half = toward - d / np.linalg.norm(d, axis=1, keepdims=True)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    gloss = shine * np.maximum((normal * half).sum(1), 0) ** 24 * (key > 0)
    share = rng.uniform(0.25, 0.75)
    warm, cool = 1 + rng.uniform(-0.15, 0.15) * np.array([1, 0, -1]), 1 + rng.uniform(-0.12, 0.12) * np.array([1, 0, -1])
    linear = np.maximum(albedo, 0) ** 2.2
    light = share * warm * key[:, None] * 1.6 + (1 - share) * cool * ambient[:, None]
    colour = linear * light + gloss[:, None] * warm
    colour[glow > 0] = np.minimum(linear[glow > 0], 2) * rng.uniform(0.4, 1.2)
    # the camera: exposure, falling off to the corners, tone curve, averaging
    colour = colour.reshape(SIZE, SUPER, SIZE, SUPER, 3).mean((1, 3))
    middle = np.median(colour.mean(-1))
    colour = colour * rng.uniform(0.1, 0.28) / max(middle, 1e-3)
    off = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    colour *= (1 - rng.uniform(0, 0.7) * (off[:, None] ** 2 + off**2))[..., None]
    colour = np.where(colour > 0.7, 1 - 0.3 * np.exp(-(colour - 0.7) / 0.3), colour)
    rgb = np.clip(colour, 0, 1) ** (1 / 2.2)
    centre = np.s_[SUPER // 2 :: SUPER, SUPER // 2 :: SUPER]
    label = label.reshape(n, n)[centre]
    return {"rgb": np.round(rgb * 255).astype(np.uint8), "inverse": np.round(1 / (depth.reshape(n, n)[centre] * DEPTH_UNIT)).astype(np.uint16), "label": label}


def one(job: tuple[str, int]) -> dict:
    """Room number i of a split. Drawn again, with the next seed, while it shows too little: a wall at the nose, nothing but shell, everything dark."""
    split, i = job
    for attempt in range(20):
        rng = np.random.default_rng([{"train": 1, "val": 2, "test": 3}[split], i, attempt])
        room = furnish(rng, split)
        shot = render(rng, room)
        seen = np.bincount(shot["label"].ravel(), minlength=len(SHELL) + len(room["scene"].boxes))
        z = 1 / (shot["inverse"] * DEPTH_UNIT)
        things = seen[len(SHELL) :].sum() / SIZE**2
        held = sum(seen[len(SHELL) + k] for k, b in enumerate(room["scene"].boxes) if b["held_out"])
        largest = seen[len(SHELL) :].max(initial=0) / SIZE**2
        grey = shot["rgb"].mean(-1)
        exposed = (grey < 8).mean() < 0.15 and (grey > 248).mean() < 0.25
        if exposed and 0.12 < things < 0.8 and largest < 0.45 and z.max() > 1.6 * z.min() and shot["rgb"].std() > 18 and (split == "train" or held > 80):
            break
    # pieces that are seen get the numbers 4, 5, … in order; the others go
    visible = [k for k in range(len(room["scene"].boxes)) if seen[len(SHELL) + k] >= 4]
    new = np.concatenate([np.arange(len(SHELL)), np.full(len(room["scene"].boxes), SHELL["clutter"])])
    for j, k in enumerate(visible):
        new[len(SHELL) + k] = len(SHELL) + j
    shot["label"] = new[shot["label"]].astype(np.uint8)
    boxes = [room["scene"].boxes[k] | {"pixels": int(seen[len(SHELL) + k])} for k in visible]
    return shot | {k: room[k] for k in ("K", "R", "t", "room")} | {"boxes": boxes}


# ---------------------------------------------------------------- writing


def sheet(images: np.ndarray) -> np.ndarray:
    """(N,64,64,...) → one picture with COLUMNS tiles a row."""
    rows = -(-len(images) // COLUMNS)
    full = np.zeros((rows * COLUMNS, *images.shape[1:]), images.dtype)
    full[: len(images)] = images
    return full.reshape(rows, COLUMNS, SIZE, SIZE, *images.shape[3:]).swapaxes(1, 2).reshape(rows * SIZE, COLUMNS * SIZE, *images.shape[3:])


def write(split: str, shots: list[dict]) -> None:
    """data/rooms/<split>.webp (pictures) and <split>.npz (everything else)."""
    Image.fromarray(sheet(np.stack([s["rgb"] for s in shots]))).save(OUT / f"rooms/{split}.webp", quality=82, method=6)
    inverse = np.stack([s["inverse"] for s in shots])
    residual = np.diff(np.diff(inverse.astype(np.int64), axis=1, prepend=0), axis=2, prepend=0).astype(np.uint16)  # nearly all zero on planes
    ids = sorted({b["piece"] for s in shots for b in s["boxes"]})
    boxes = [(i, b) for i, s in enumerate(shots) for b in s["boxes"]]
    np.savez_compressed(
        OUT / f"rooms/{split}.npz",
        low=(residual & 255).astype(np.uint8),
        high=(residual >> 8).astype(np.uint8),
        label=np.diff(np.stack([s["label"] for s in shots]), axis=2, prepend=np.uint8(0)),
        K=np.stack([s["K"] for s in shots]).astype(np.float32),
        R=np.stack([s["R"] for s in shots]).astype(np.float32),
        t=np.stack([s["t"] for s in shots]).astype(np.float32),
        size=np.stack([s["room"] for s in shots]).astype(np.float32),
        box_room=np.array([i for i, _ in boxes], np.int16),
        box_piece=np.array([ids.index(b["piece"]) for _, b in boxes], np.int16),
        box_class=np.array([CLASSES.index(b["class"]) for _, b in boxes], np.int8),
        box_centre=np.array([b["centre"] for _, b in boxes], np.float32),
        box_size=np.array([b["size"] for _, b in boxes], np.float32),
        box_yaw=np.array([b["yaw"] for _, b in boxes], np.float32),
        box_pixels=np.array([b["pixels"] for _, b in boxes], np.int16),
        box_held_out=np.array([b["held_out"] for _, b in boxes], bool),
        pieces=np.array(ids),
    )
    size = sum((OUT / f"rooms/{split}.{e}").stat().st_size for e in ("webp", "npz"))
    print(split, len(shots), "rooms", len(boxes), "boxes", f"{size / 1e6:.2f} MB")


def contact_sheet() -> None:
    """data/sheets/rooms.png: pictures, then their depths (near is bright), then their labels; training rooms above, held-out rooms below."""
    from course_utils.packs.rooms import rooms

    rows = []
    for split, n in (("train", 48), ("test", 16)):
        r = rooms(split)
        pick = np.linspace(0, len(r) - 1, n).astype(int)
        rgb = r.images[pick].transpose(0, 2, 3, 1)
        near, far = (r.depth[pick].reshape(n, -1).min(1), r.depth[pick].reshape(n, -1).max(1))
        grey = (1 / r.depth[pick] - 1 / far[:, None, None]) / (1 / near - 1 / far)[:, None, None]
        grey = np.repeat((grey * 255).astype(np.uint8)[..., None], 3, 3)
        colours = (hsv(np.arange(40) * 0.381 % 1, np.full(40, 0.55), np.full(40, 0.95)) * 255).astype(np.uint8)
        colours[:4] = [[90, 80, 70], [205, 200, 195], [240, 240, 240], [140, 140, 140]]
        lab = colours[r.label[pick]]
        for i in range(0, n, 16):
            rows += [np.concatenate(list(x[i : i + 16]), 1) for x in ((rgb, grey) if split == "train" and i else (rgb, grey, lab))]
    Image.fromarray(np.concatenate(rows)).quantize(192, dither=Image.Dither.NONE).save(OUT / "sheets/rooms.png", optimize=True)


def main() -> None:
    (OUT / "rooms").mkdir(exist_ok=True)
    jobs = [(s, i) for s, n in COUNTS.items() for i in range(n)]
    with Pool(int(os.environ.get("JOBS", "1"))) as pool:
        shots = dict(zip(jobs, pool.imap(one, jobs, chunksize=8), strict=True))
    for s in COUNTS:
        write(s, [shots[j] for j in jobs if j[0] == s])
    from course_utils.data import write_registry

    write_registry()
    contact_sheet()


if __name__ == "__main__":
    main()
