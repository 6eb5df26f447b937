"""Builds the ``objects`` pack: CC0 furniture as small meshes, and posed renders of a few textured pieces.

    apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_1.8-1_all.deb deb
    pip install fast-simplification scipy
    python data/build/objects.py deb

Reads only the catalogue ``BlendSwap-CC-0.sh3f`` (a zip of OBJ, MTL and textures). Writes data/objects/ and data/sheets/objects.png.
World axes: x right, y up, z towards the front; metres in ``meshes.npz``; in the renders the object is scaled into the unit ball around the origin.
Cameras: x right, y down, z forward, X_c = R X_w + t; the centre of pixel (row i, column j) lies at (u, v) = (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections import defaultdict
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parents[1]
# Left out: their own licence file says CC BY 3.0 (the two Winchester pieces); a branded product (the telephone).
LEFT_OUT = {"winchesterSofa", "winchesterArmchair", "iphone"}
# Rendered objects and how shiny each is: (strength, exponent) of a Blinn-Phong highlight. None but the extinguisher shines.
RENDERED = {"chicken": (0.0, 1.0), "childHut": (0.0, 1.0), "teddyBear": (0.0, 1.0), "fireExtinguisher": (0.8, 12.0)}
SIZE, SUPER = 128, 4  # stored pixels on a side, samples per pixel on a side
N_TRAIN, N_VAL, N_TEST = 80, 10, 20
DISTANCE, FOCAL = 3.0, 1.40  # camera to origin in ball radii; focal length in image widths
MAX_FACES, HARD_LIMIT = 3000, 10_000  # faces that most meshes are decimated to, and the most that any may have


# ---------------------------------------------------------------- reading


def catalogue(zf: zipfile.ZipFile) -> list[dict]:
    """Every piece of the catalogue: id, name, category, size in metres (width x, height y, depth z), path of its OBJ, rotation."""
    entries: dict[int, dict] = defaultdict(dict)
    for line in zf.read("PluginFurnitureCatalog.properties").decode("latin1").splitlines():
        if m := re.match(r"(\w+)#(\d+)=(.*)", line.strip()):
            entries[int(m[2])][m[1]] = m[3]
    return [
        {
            "id": e["id"].split("#")[-1],
            "name": e["name"],
            "category": e["category"],
            "creator": e["creator"],
            "size": [float(e[k]) / 100 for k in ("width", "height", "depth")],
            "model": e["model"].lstrip("/"),
            "rotation": np.array(e.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), float).reshape(3, 3),
        }
        for e in entries.values()
    ]


def read_mtl(zf: zipfile.ZipFile, path: PurePosixPath) -> dict[str, dict]:
    """Material name → {"Kd": colour, "map": (h, w, 3) float texture or absent}."""
    materials: dict[str, dict] = {}
    here: dict = {}
    for line in zf.read(str(path)).decode("utf8", "replace").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "newmtl":
            here = materials.setdefault(rest.strip(), {"Kd": np.full(3, 0.8)})
        elif word == "Kd":
            here["Kd"] = np.array(rest.split()[:3], float)
        elif word == "map_Kd":
            file = path.parent / rest.split("\\")[-1].strip()
            try:
                here["map"] = np.asarray(Image.open(BytesIO(zf.read(str(file)))).convert("RGB"), float) / 255
            except KeyError:
                print("  no texture", file)
    return materials


def read_obj(zf: zipfile.ZipFile, path: str) -> dict:
    """Triangles of an OBJ: V (n,3), F (m,3), per-corner UV (m,3,2), normals (m,3,3) or None rows as zeros, material index (m,)."""
    v, vt, vn, tri, materials = [], [], [], [], {}
    names: list[str] = []
    mat = -1
    for line in zf.read(path).decode("utf8", "replace").replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "v":
            v.append(rest.split()[:3])
        elif word == "vt":
            vt.append(rest.split()[:2])
        elif word == "vn":
            vn.append(rest.split()[:3])
        elif word == "mtllib":
            materials |= read_mtl(zf, PurePosixPath(path).parent / rest.strip())
        elif word == "usemtl":
            if rest.strip() not in names:
                names.append(rest.strip())
            mat = names.index(rest.strip())
        elif word == "f":
            corners = []
            for c in rest.split():
                i = [int(x) if x else 0 for x in c.split("/")] + [0, 0]
                corners.append([k if k >= 0 else n + 1 + k for k, n in zip(i[:3], (len(v), len(vt), len(vn)), strict=True)])
            tri += [[corners[0], corners[k], corners[k + 1], mat] for k in range(1, len(corners) - 1)]
    idx = np.array([t[:3] for t in tri]) - 1  # (m, 3 corners, v|vt|vn), −1 where absent
    uv = np.array([*vt, [0, 0]], float)[idx[..., 1]]
    normal = np.array([*vn, [0, 0, 0]], float)[idx[..., 2]]
    return {
        "V": np.array(v, float),
        "F": idx[..., 0],
        "uv": uv,
        "normal": normal,
        "material": np.array([t[3] for t in tri]),
        "materials": [materials.get(n, {"Kd": np.full(3, 0.8)}) for n in names],
    }


def place(obj: dict, entry: dict) -> None:
    """Rotate as the catalogue says, scale to its size in metres, stand on y = 0 with x and z centred."""
    obj["V"] = obj["V"] @ entry["rotation"].T
    obj["normal"] = obj["normal"] @ entry["rotation"].T
    used = obj["V"][np.unique(obj["F"])]
    low, high = used.min(0), used.max(0)
    scale = np.array(entry["size"]) / np.maximum(high - low, 1e-9)
    obj["V"] = (obj["V"] - (low + high) / 2) * scale
    obj["V"][:, 1] += entry["size"][1] / 2
    obj["normal"] = obj["normal"] / scale


def albedo(obj: dict, face: np.ndarray, bary: np.ndarray) -> np.ndarray:
    """Surface colour (k,3) at barycentric points of faces: texture (bilinear, repeating) where the material has one, else Kd."""
    uv = (obj["uv"][face] * bary[..., None]).sum(1)
    colour = np.full((len(face), 3), 0.8)
    for i, m in enumerate(obj["materials"]):
        here = obj["material"][face] == i
        if "map" not in m:
            colour[here] = m["Kd"]
            continue
        h, w, _ = m["map"].shape
        x = uv[here, 0] * w - 0.5
        y = (1 - uv[here, 1]) * h - 0.5
        x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        take = lambda a, b, t=m["map"], h=h, w=w: t[b % h, a % w]  # noqa: E731
        colour[here] = (take(x0, y0) * (1 - fx) + take(x0 + 1, y0) * fx) * (1 - fy) + (take(x0, y0 + 1) * (1 - fx) + take(x0 + 1, y0 + 1) * fx) * fy
    return colour


# ---------------------------------------------------------------- rendering


def look_at(centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World→camera R, t of a camera at ``centre`` that looks at the origin, y (down) opposite to the world's up."""
    z = -centre / np.linalg.norm(centre)
    x = np.cross(z, [0.0, 1.0, 0.0])
    x /= np.linalg.norm(x)
    R = np.stack([x, np.cross(z, x), z])
    return R, -R @ centre


def rasterise(P: np.ndarray, F: np.ndarray, size: int, chunk: int = 3_000_000):
    """Z-buffer. P (n,3): pixel x, pixel y, depth z of the vertices. Returns face (size²,) with −1 for nothing, and perspective-correct barycentrics (size²,3)."""
    tri = P[F]  # (m, 3, 3)
    lo = np.clip(np.ceil(tri[..., :2].min(1) - 0.5), 0, size).astype(int)
    hi = np.clip(np.floor(tri[..., :2].max(1) - 0.5) + 1, 0, size).astype(int)
    w, h = np.maximum(hi - lo, 0).T
    area = (tri[:, 1, 0] - tri[:, 0, 0]) * (tri[:, 2, 1] - tri[:, 0, 1]) - (tri[:, 1, 1] - tri[:, 0, 1]) * (tri[:, 2, 0] - tri[:, 0, 0])
    count = np.where(np.abs(area) > 1e-12, w * h, 0)
    best = np.zeros(size * size)  # 1/z: larger is nearer
    face = np.full(size * size, -1)
    bary = np.zeros((size * size, 3))
    start = 0
    ends = np.cumsum(count)
    while start < len(F):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + chunk, "right")))
        f = np.repeat(np.arange(start, stop), count[start:stop])
        k = np.arange(len(f)) - np.repeat(ends[start:stop] - count[start:stop] - done, count[start:stop])
        px, py = lo[f, 0] + k % np.maximum(w[f], 1), lo[f, 1] + k // np.maximum(w[f], 1)
        a, b, c = tri[f, 0], tri[f, 1], tri[f, 2]
        x, y = px + 0.5, py + 0.5
        w0 = ((b[:, 0] - x) * (c[:, 1] - y) - (b[:, 1] - y) * (c[:, 0] - x)) / area[f]
        w1 = ((c[:, 0] - x) * (a[:, 1] - y) - (c[:, 1] - y) * (a[:, 0] - x)) / area[f]
        w2 = 1 - w0 - w1
        inside = (w0 >= 0) & (w1 >= 0) & (w2 >= 0)
        f, pix = f[inside], (py * size + px)[inside]
        weights = np.stack([w0[inside] / a[inside, 2], w1[inside] / b[inside, 2], w2[inside] / c[inside, 2]], 1)
        inv = weights.sum(1)
        np.maximum.at(best, pix, inv)
        win = inv == best[pix]
        face[pix[win]] = f[win]
        bary[pix[win]] = weights[win] / inv[win, None]
        start = stop
    return face, bary


LIGHT = np.array([0.45, 0.75, 0.48]) / np.linalg.norm([0.45, 0.75, 0.48])  # towards the light, world axes


def render(obj: dict, K: np.ndarray, R: np.ndarray, t: np.ndarray, size: int, shine=(0.0, 1.0)):
    """RGB on white (size,size,3), coverage (size,size), z depth (size,size; 0 = nothing), from SUPER² samples a pixel."""
    n = size * SUPER
    X = obj["V"] @ R.T + t
    p = X @ (K * np.array([[SUPER], [SUPER], [1]])).T
    face, bary = rasterise(np.column_stack([p[:, :2] / p[:, 2:], X[:, 2]]), obj["F"], n)
    hit = face >= 0
    f, b = face[hit], bary[hit]
    corner = obj["V"][obj["F"][f]]
    point = (corner * b[..., None]).sum(1)
    normal = (obj["normal"][f] * b[..., None]).sum(1)
    flat = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal = np.where(np.linalg.norm(normal, axis=1, keepdims=True) > 1e-9, normal, flat)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    view = -R.T @ t - point
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    normal *= np.where((normal * view).sum(1, keepdims=True) < 0, -1, 1)  # both sides are lit
    half = view + LIGHT
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    diffuse = 0.62 + 0.38 * np.maximum(normal @ LIGHT, 0) + 0.12 * normal[:, 1]
    colour = albedo(obj, f, b) * diffuse[:, None] + shine[0] * np.maximum((normal * half).sum(1), 0)[:, None] ** shine[1]
    rgb = np.ones((n * n, 3))
    rgb[hit] = np.clip(colour, 0, 1)
    depth = np.full(n * n, np.inf)
    depth[hit] = (point @ R.T + t)[:, 2]
    blocks = lambda x: x.reshape(size, SUPER, size, SUPER, -1).swapaxes(1, 2).reshape(size, size, SUPER * SUPER, -1)  # noqa: E731
    z = blocks(depth)[..., 0].min(2)  # the nearest surface that the pixel sees
    return blocks(rgb).mean(2), blocks(hit.astype(float))[..., 0].mean(2), np.where(np.isfinite(z), z, 0)


def camera_centres(n: int) -> np.ndarray:
    """n points spread evenly over the band of the sphere between 15° below and 70° above the horizon (golden-angle spiral)."""
    low, high = np.sin(np.deg2rad([-15, 70]))
    y = low + (high - low) * (np.arange(n) + 0.5) / n
    a = np.arange(n) * np.pi * (3 - np.sqrt(5))
    r = np.sqrt(1 - y**2)
    return DISTANCE * np.stack([r * np.sin(a), y, r * np.cos(a)], 1)


def build_views(name: str, obj: dict) -> None:
    """All views of one object, written as a lossless sheet of pictures and a file of cameras, masks and depths."""
    used = np.unique(obj["F"])
    centre = (obj["V"][used].min(0) + obj["V"][used].max(0)) / 2
    radius = np.linalg.norm(obj["V"][used] - centre, axis=1).max()
    obj = obj | {"V": (obj["V"] - centre) / radius}
    n = N_TRAIN + N_VAL + N_TEST
    rng = np.random.default_rng(sum(map(ord, name)))
    split = rng.permutation(np.repeat(np.array(["train", "val", "test"]), [N_TRAIN, N_VAL, N_TEST]))
    K = np.array([[FOCAL * SIZE, 0, SIZE / 2], [0, FOCAL * SIZE, SIZE / 2], [0, 0, 1]])
    Rt = [look_at(c) for c in camera_centres(n)]
    shots = [render(obj, K, R, t, SIZE, RENDERED[name]) for R, t in Rt]
    cols = 11
    sheet = np.full((-(-n // cols) * SIZE, cols * SIZE, 3), 255, np.uint8)
    for i, (rgb, _, _) in enumerate(shots):
        r, c = divmod(i, cols)
        sheet[r * SIZE : (r + 1) * SIZE, c * SIZE : (c + 1) * SIZE] = np.round(rgb * 255)
    Image.fromarray(sheet).save(OUT / f"objects/{name}.webp", lossless=True, method=6)
    np.savez_compressed(
        OUT / f"objects/{name}.npz",
        K=K.astype(np.float32),
        R=np.stack([R for R, _ in Rt]).astype(np.float32),
        t=np.stack([t for _, t in Rt]).astype(np.float32),
        split=split.astype("U5"),
        mask=np.stack([np.round(m * (SUPER * SUPER)) for _, m, _ in shots]).astype(np.uint8),  # 0 … 16 covered samples
        depth=np.stack([np.round(z * 1e3) for _, _, z in shots]).astype(np.uint16),  # 1e-3 ball radii
        scale=np.float32(radius),
        centre=centre.astype(np.float32),
    )


# ---------------------------------------------------------------- small meshes


def surface(V: np.ndarray, F: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """n points spread over the surface by area, and the area."""
    area = np.linalg.norm(np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]]), axis=1) / 2
    return (V[F[rng.choice(len(F), n, p=area / area.sum())]] * rng.dirichlet([1, 1, 1], n)[..., None]).sum(1), area.sum()


def decimate(V: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest of a few budgets of faces that keeps the area within 4 % and 98 % of the surface within 1.5 % of the size. ValueError where none does."""
    import fast_simplification
    from scipy.spatial import cKDTree

    if len(F) <= MAX_FACES:
        return V, F
    rng = np.random.default_rng(0)
    P, area = surface(V, F, 4000, rng)
    size = np.ptp(P, axis=0).max()
    for target in (MAX_FACES, 2 * MAX_FACES, HARD_LIMIT):
        if target >= len(F):
            return V, F
        for aggression in (2, 4):
            v, f = fast_simplification.simplify(V.astype(np.float32), F.astype(np.int32), target_count=target, agg=aggression)
            if len(f) > 1.05 * target:
                continue
            Q, area_now = surface(v.astype(float), f, 40_000, rng)
            far = np.quantile(cKDTree(Q).query(P)[0], 0.98) / size
            if abs(area_now / area - 1) < 0.04 and far < 0.015:
                return v.astype(float), f
    raise ValueError("too fine to be decimated")


def shrink(obj: dict, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weld, decimate by quadric error, colour each face by the nearest points of the original surface."""
    from scipy.spatial import cKDTree

    V, F = obj["V"], obj["F"]
    a, b, c = V[F[:, 0]], V[F[:, 1]], V[F[:, 2]]
    cross = np.cross(b - a, c - a)
    area = np.linalg.norm(cross, axis=1) / 2
    # coloured points on the original surface, by area
    face = rng.choice(len(F), 40_000, p=area / area.sum())
    bary = rng.dirichlet([1, 1, 1], len(face))
    points, colours = (V[F[face]] * bary[..., None]).sum(1), albedo(obj, face, bary)
    normals = cross[face] / (2 * area[face, None])
    # weld at 1e-4 of the size
    size = np.ptp(V[np.unique(F)], axis=0).max()
    _, first, inverse = np.unique(np.round(V / (1e-4 * size)).astype(int), axis=0, return_index=True, return_inverse=True)
    F = inverse.reshape(-1)[F]
    V = V[first]
    F = F[(F[:, 0] != F[:, 1]) & (F[:, 1] != F[:, 2]) & (F[:, 0] != F[:, 2])]
    V, F = decimate(V, F)
    keep, F = np.unique(F, return_inverse=True)
    V, F = V[keep], F.reshape(-1, 3)
    # colour: four points on each face, three neighbours each, normals weigh in so that thin boards keep their two sides
    where = rng.dirichlet([2, 2, 2], (len(F), 4))
    p = np.einsum("fkc,fcx->fkx", where, V[F])
    n = np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]])
    n /= np.linalg.norm(n, axis=1, keepdims=True) + 1e-12
    w = 0.02 * size
    _, near = cKDTree(np.hstack([points, w * normals])).query(np.concatenate([p, np.repeat(w * n[:, None], 4, 1)], -1), k=3)
    return V, F, colours[near].mean((1, 2))


def splits(entries: list[dict], seed: int = 0) -> dict[str, str]:
    """id → train/val/test, by object; look-alikes (same name in the catalogue, as the radiators) always share a split."""
    rng = np.random.default_rng(seed)
    names = sorted({e["name"] for e in entries})
    order = rng.permutation(len(names))
    total, seen, out = len(entries), 0, {}
    for i in order:
        part = "test" if seen < 0.15 * total else "val" if seen < 0.25 * total else "train"
        for e in entries:
            if e["name"] == names[i]:
                out[e["id"]] = part
                seen += 1
    return out


def build_meshes(objects: list[tuple[dict, dict]]) -> None:
    """data/objects/meshes.npz: all meshes behind one another, with offsets, and a table as JSON."""
    rng = np.random.default_rng(0)
    part = splits([e for e, _ in objects])
    vs, fs, cs, box, table = [], [], [], [], []
    for entry, obj in objects:
        try:
            V, F, C = shrink(obj, rng)
        except ValueError as e:
            print("  left out", entry["id"], len(obj["F"]), e)
            continue
        low, high = V.min(0), V.max(0)
        vs.append(np.round((V - low) / np.maximum(high - low, 1e-9) * 65535).astype(np.uint16))
        fs.append(F.astype(np.uint16))
        cs.append(np.round(C * 255).astype(np.uint8))
        box.append([low, high])
        table.append(
            {k: entry[k] for k in ("id", "name", "category", "creator")}
            | {"size": [round(s, 4) for s in entry["size"]], "split": part[entry["id"]], "vertices": len(V), "faces": len(F), "original_faces": len(obj["F"])}
        )
    np.savez_compressed(
        OUT / "objects/meshes.npz", vertices=np.concatenate(vs), faces=np.concatenate(fs), colours=np.concatenate(cs), box=np.array(box, np.float32)
    )
    (OUT / "objects/meshes.json").write_text(json.dumps(table, ensure_ascii=False, indent=0) + "\n", encoding="utf8")


# ---------------------------------------------------------------- looking at it


def contact_sheet() -> None:
    """data/sheets/objects.png: ten views, a mask and a depth map of each rendered object, then 48 of the small meshes, rendered."""
    sys.path.insert(0, str(OUT.parent))
    from course_utils.packs.objects import meshes, views

    rows = []
    for name in RENDERED:
        v = views(name, 128)
        pick = np.linspace(0, len(v) - 1, 10).astype(int)
        i = pick[5]
        depth = np.where(v.depth[i] > 0, (4 - v.depth[i]) / 2, 1)
        rows.append(np.concatenate([*v.images[pick], *(np.repeat(x[..., None], 3, 2) for x in (v.masks[i], depth))], 1))
    tiles = []
    K = np.array([[FOCAL * 128, 0, 64], [0, FOCAL * 128, 64], [0, 0, 1]])
    R, t = look_at(3.0 * np.array([0.55, 0.45, 0.72]))
    for m in meshes()[::3][:48]:
        V = m.vertices - (m.vertices.min(0) + m.vertices.max(0)) / 2
        V /= np.linalg.norm(V, axis=1).max()
        obj = {"V": V.astype(float), "F": m.faces, "uv": np.zeros((len(m.faces), 3, 2)), "normal": np.zeros((len(m.faces), 3, 3))}
        obj |= {"material": np.arange(len(m.faces)), "materials": []}
        tiles.append(_flat(obj, m.colours, K, R, t))
    rows += [np.concatenate(tiles[i : i + 12], 1) for i in range(0, 48, 12)]
    sheet = np.round(np.concatenate(rows, 0) * 255).astype(np.uint8)
    Image.fromarray(sheet).quantize(160, dither=Image.Dither.NONE).save(OUT / "sheets/objects.png", optimize=True)


def _flat(obj: dict, colours: np.ndarray, K, R, t) -> np.ndarray:
    """One picture of a mesh with a colour per face."""
    global albedo
    textured, albedo = albedo, lambda o, f, b: colours[f]
    try:
        return render(obj, K, R, t, 128)[0]
    finally:
        albedo = textured


def main(deb: Path) -> None:
    zf = zipfile.ZipFile(deb / "usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f")
    entries = [e for e in catalogue(zf) if e["id"] not in LEFT_OUT]
    objects = []
    for e in sorted(entries, key=lambda e: e["id"].lower()):
        obj = read_obj(zf, e["model"])
        place(obj, e)
        objects.append((e, obj))
    print(len(objects), "objects read")
    (OUT / "objects").mkdir(exist_ok=True)
    build_meshes(objects)
    print("meshes.npz", (OUT / "objects/meshes.npz").stat().st_size)
    for e, obj in objects:
        if e["id"] in RENDERED:
            build_views(e["id"], obj)
    (OUT / "licenses").mkdir(exist_ok=True)
    (OUT / "licenses/objects.txt").write_text(
        'Source: Debian package sweethome3d-furniture 1.8-1, file BlendSwap-CC-0.sh3f (catalogue "Blend Swap CC-0", version 1.8).\n'
        "Debian's copyright file lists BlendSwap-CC-0/* as CC0, 2014, Emmanuel Puybaret (eTeks) and other contributors. The catalogue's own LICENSE.TXT:\n\n"
        + zf.read("LICENSE.TXT").decode("utf8", "replace").strip().replace("\r", "")
        + "\n\nNot used: winchesterSofa and winchesterArmchair, whose own licence file says CC BY 3.0, and iphone, a branded product.\n"
        + "Authors are named in data/objects/meshes.json (field creator).\n",
        encoding="utf8",
    )
    from course_utils.data import write_registry

    write_registry()
    contact_sheet()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
