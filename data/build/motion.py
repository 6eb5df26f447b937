"""Make data/motion/motion.npz: real motion capture, retargeted to the body of data/bodies, from the BVH files of Debian's `assimp-testmodels` 5.2.5.

    apt-get download assimp-testmodels && dpkg -x assimp-testmodels_*.deb build/assimp
    python data/build/motion.py build/assimp

Needs numpy and scipy (rotations). A few seconds. Make bodies first: its joints are the target.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "usr/share/assimp/models/BVH"
CMU = {"LFingers": "LeftHandFinger1", "RFingers": "RightHandFinger1"}  # the two names that differ between the file and the rig
BOX = {"Ab": "LowerBack", "Chest": "Spine1", "Head": "Head", "Neck": "Neck"} | {
    f"{s}{a}": f"{s}{b}"
    for s in ("Left", "Right")
    for a, b in {
        "Collar": "Shoulder",
        "Shoulder": "Arm",
        "Elbow": "ForeArm",
        "Wrist": "Hand",
        "Hip": "UpLeg",
        "Knee": "Leg",
        "Ankle": "Foot",
        "Toes": "ToeBase",
    }.items()
}
#        name, file, frames kept (from, to), other names, metres per unit, split
CLIPS = [
    ("jump", "01_01.bvh", (1, None), CMU, 0.0254 / 0.45, "train"),  # CMU lengths: inches · 0.45
    ("climb", "01_03.bvh", (1, None), CMU, 0.0254 / 0.45, "train"),
    ("boxing", "Boxing_Toes.bvh", (0, None), BOX, 0.01, "test"),
]
FPS = 30
# Limb bones whose rest direction differs (the file's T-pose, the body's A-pose): joint → the child that shows the direction.
LIMBS = {"Arm": "ForeArm", "ForeArm": "Hand", "UpLeg": "Leg", "Leg": "Foot"}


def read_bvh(file: Path):
    """Names, parents, rest offsets (J, 3), frame time, root positions (T, 3), local rotations (T, J, 3, 3)."""
    header, motion = file.read_text().split("MOTION")
    names, parents, offsets, channels, stack = [], [], [], [], []
    for line in header.splitlines():
        s = line.split()
        if not s:
            continue
        if s[0] in ("ROOT", "JOINT"):
            parents.append(stack[-1] if stack else -1)
            stack.append(len(names))
            names.append(s[1])
        elif s[0] == "End":
            stack.append(None)  # an end site carries no rotation
        elif s[0] == "}":
            stack.pop()
        elif s[0] == "OFFSET" and stack[-1] is not None:
            offsets.append([float(x) for x in s[1:4]])
        elif s[0] == "CHANNELS":
            channels.append(s[2:])
    lines = motion.strip().splitlines()
    frame_time = float(lines[1].split(":")[1])
    values = np.array([[float(x) for x in line.split()] for line in lines[2:] if line.strip()])
    root, rotations, at = np.zeros((len(values), 3)), [], 0
    for c in channels:
        v, at = values[:, at : at + len(c)], at + len(c)
        for k, name in enumerate(c):
            if name.endswith("position"):
                root[:, "XYZ".index(name[0])] = v[:, k]
        turn = [k for k, name in enumerate(c) if name.endswith("rotation")]
        rotations.append(Rotation.from_euler("".join(c[k][0] for k in turn), v[:, turn], degrees=True).as_matrix())
    return names, np.array(parents), np.array(offsets), frame_time, root, np.stack(rotations, 1)


def world(parents, local):
    """World rotations along the chain: G_j = G_parent R_j."""
    G = local.copy()
    for j, p in enumerate(parents):
        if p >= 0:
            G[:, j] = G[:, p] @ local[:, j]
    return G


def turn(a, b):
    """The smallest rotation that takes direction a to direction b."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    axis, c = np.cross(a, b), a @ b
    return Rotation.from_rotvec(axis / (np.linalg.norm(axis) + 1e-12) * np.arccos(np.clip(c, -1, 1))).as_matrix()


def retarget(body, names, parents, offsets, rotations, rename):
    """Rotations (T, 31, 3, 3) for the body's joints, so that every limb points where the actor's limb points.

    Both skeletons have their own rest pose. With A_j the turn from the body's rest bone to the file's, the body's world rotation is G_j A_j.
    """
    mine = {rename.get(n, n): k for k, n in enumerate(names)}
    offset = {n: offsets[k] for n, k in mine.items()}
    G_file, T = world(parents, rotations), len(rotations)
    A = {j: np.eye(3) for j in body.joints}
    for side in ("Left", "Right"):
        for bone, child in LIMBS.items():
            here, there = body.joint(side + bone), body.joint(side + child)
            A[side + bone] = turn(body.J[there] - body.J[here], offset[side + child])
        for tip in ("Hand", "FingerBase", "HandFinger1"):
            A[side + tip] = A[side + "ForeArm"]
        A[side[0] + "Thumb"] = A[side + "ForeArm"]
    G, local = np.zeros((T, len(body.joints), 3, 3)), np.zeros((T, len(body.joints), 3, 3))
    for j, name in enumerate(body.joints):
        p = body.parents[j]
        parent = G[:, p] if p >= 0 else np.broadcast_to(np.eye(3), (T, 3, 3))
        G[:, j] = G_file[:, mine[name]] @ A[name] if name in mine else parent
        local[:, j] = parent.transpose(0, 2, 1) @ G[:, j]
    return local, G


def soles(body, G, root):
    """Height of the lowest toe or ankle joint in each frame (T,), for the floor."""
    at = np.zeros((len(root), len(body.joints), 3))
    for j, p in enumerate(body.parents):
        at[:, j] = root if p < 0 else at[:, p] + np.einsum("tab,b->ta", G[:, p], body.J[j] - body.J[p])
    return at


def posed(body, theta, trans):
    """The body's vertices in one frame, by linear blend skinning, for the contact sheet."""
    R, G, p = Rotation.from_rotvec(theta).as_matrix(), np.zeros((len(theta), 3, 3)), np.zeros((len(theta), 3))
    for j, q in enumerate(body.parents):
        G[j] = R[j] if q < 0 else G[q] @ R[j]
        p[j] = body.J[j] if q < 0 else p[q] + G[q] @ (body.J[j] - body.J[q])
    moved = np.einsum("jab,njb->nja", G, body.V[:, None] - body.J) + p
    return np.einsum("nj,nja->na", body.W, moved) + trans


def contact_sheet(body):
    """data/sheets/motion.png: twelve frames of each clip."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from course_utils import show
    from course_utils.packs.motion import clips, motion

    fig, axes = plt.subplots(len(clips()), 12, figsize=(18, 6.6), layout="constrained")
    for row, name in zip(axes, clips()):
        m = motion(name)
        for ax, t in zip(row, np.linspace(0, len(m.theta) - 1, 12).astype(int)):
            V = posed(body, m.theta[t], m.trans[t])
            show.draw_mesh(ax, V, body.F, "#9db4d0", azimuth=30, elevation=8)
            middle = V[:, [0, 2]].mean(0) @ [np.cos(np.pi / 6), -np.sin(np.pi / 6)]
            ax.set(xlim=(middle - 0.8, middle + 0.8), ylim=(-0.6, 2.6))
            ax.set_title(f"{name} {t / m.fps:.1f} s", fontsize=8)
    (ROOT / "sheets").mkdir(exist_ok=True)
    fig.savefig(ROOT / "sheets/motion.png", dpi=60)


def main(source: Path):
    sys.path.insert(0, str(ROOT.parent))
    from course_utils.packs.bodies import bodies

    body = bodies()
    out = {"joints": np.array(body.joints), "names": [], "splits": [], "files": []}
    leg = sum(np.linalg.norm(body.J[body.joint(b)] - body.J[body.joint(a)]) for a, b in (("LeftUpLeg", "LeftLeg"), ("LeftLeg", "LeftFoot")))
    for name, file, (first, last), rename, unit, split in CLIPS:
        names, parents, offsets, dt, root, rotations = read_bvh(source / FOLDER / file)
        step = round(1 / dt / FPS)
        root, rotations = root[first:last:step], rotations[first:last:step]
        local, G = retarget(body, names, parents, offsets, rotations, rename)
        index = {rename.get(n, n): k for k, n in enumerate(names)}
        actor = sum(np.linalg.norm(offsets[index[j]]) for j in ("LeftLeg", "LeftFoot"))  # the actor's leg, in file units
        root = root * (leg / actor)  # the body is not the actor's size: its steps scale with its legs
        at = soles(body, G, root)
        rest = body.J[[body.joint("LeftToeBase"), body.joint("RightToeBase"), body.joint("LeftFoot"), body.joint("RightFoot")], 1]
        low = (at[:, [body.joint("LeftToeBase"), body.joint("RightToeBase"), body.joint("LeftFoot"), body.joint("RightFoot")], 1] - rest).min(1)
        root = root - [0, np.percentile(low, 5), 0]  # the floor is where the feet stand
        root = root - [root[0, 0], 0, root[0, 2]] - body.J[0]  # translation: added to the posed body
        theta = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().reshape(*local.shape[:2], 3)
        out[f"{name}_theta"] = (theta / np.pi * 32767).round().astype("i2")
        out[f"{name}_trans"] = root.astype("f4")
        out[f"{name}_fps"] = np.float32(1 / dt / step)
        out[f"{name}_offsets"] = np.stack([offsets[index[j]] * unit if j in index else np.full(3, np.nan) for j in body.joints]).astype("f4")
        for key, value in (("names", name), ("splits", split), ("files", file)):
            out[key].append(value)
        print(
            f"{name}: {file}, {len(theta)} frames at {1 / dt / step:.1f} per second, actor's leg {actor * unit:.2f} m, body's {leg:.2f} m, largest turn {np.abs(theta).max():.2f} rad"
        )
    target = ROOT / "motion/motion.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **{k: np.array(v) for k, v in out.items()})
    print(target.name, target.stat().st_size // 1024, "kB")
    from course_utils.data import write_registry

    write_registry()
    contact_sheet(body)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
