"""Make the emoji pack (data/emoji) from packages of the npm registry.

Run: ``python data/build/emoji.py [cache folder]``. Needs ``npm``, ``pillow``, ``numpy`` and ``resvg_py`` (for the SVG style only).

Pictures: emoji-datasource-google 16.0.0 (Noto Emoji, Apache-2.0), emoji-datasource-twitter 16.0.0 (Twemoji, CC BY 4.0),
@iconify-json/fluent-emoji-flat 1.2.6 (Fluent Emoji, MIT). Names and keywords: Unicode CLDR 48.2.0 (Unicode-3.0).
"""

import collections
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "names": "cldr-annotations-full@48.2.0",
    "derived": "cldr-annotations-derived-full@48.2.0",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
}
SIZE, COLUMNS = 64, 62
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
N_CONCEPTS, N_COMPOSITIONS, SALT = 200, 300, "emoji-split-1"
NEAR = 1.5  # two pictures closer than this (RMS at 32x32, of 255) count as the same picture

# Gender is written into an emoji in three ways: a sign joined at the end, a man or a woman in front, or a code point of its own.
PEOPLE = {"1F468": "man", "1F469": "woman", "1F9D1": "person"}
OWN = {  # code points -> (concept, gender)
    "1F468": ("1F9D1", "man"), "1F469": ("1F9D1", "woman"),
    "1F466": ("1F9D2", "man"), "1F467": ("1F9D2", "woman"),
    "1F474": ("1F9D3", "man"), "1F475": ("1F9D3", "woman"),
    "1F934": ("1FAC5", "man"), "1F478": ("1FAC5", "woman"),
    "1F385": ("1F9D1-200D-1F384", "man"), "1F936": ("1F9D1-200D-1F384", "woman"),
    "1F57A": ("1F483", "man"), "1F483": ("1F483", "woman"),
    "1FAC3": ("1FAC4", "man"), "1F930": ("1FAC4", "woman"),
    "1F46B": ("HANDS", "woman and man"), "1F46C": ("HANDS", "two men"), "1F46D": ("HANDS", "two women"),
}  # fmt: skip
NAMED = {"HANDS": "1F9D1-200D-1F91D-200D-1F9D1", "KISS": "1F48F", "HEART": "1F491", "FAMILY": "1F46A"}


def fetch(cache: Path) -> dict[str, Path]:
    """Download the packages with the ordinary npm client; return one unpacked folder each."""
    folders = {}
    for key, spec in PACKAGES.items():
        name, version = spec.rsplit("@", 1)
        tar = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not tar.exists():
            subprocess.run(["npm", "pack", spec], cwd=cache, check=True, capture_output=True)
        folders[key] = cache / tar.stem
        if not (folders[key] / "package").exists():
            with tarfile.open(tar) as archive:
                wanted = [m for m in archive if "/img/" not in m.name or f"/{key}/{SIZE}/" in m.name]
                archive.extractall(folders[key], members=wanted, filter="data")
    return folders


def char_of(unified: str) -> str:
    return "".join(chr(int(x, 16)) for x in unified.split("-"))


def read_names(folders: dict[str, Path]) -> dict[str, dict]:
    """{language: {character without U+FE0F: {"tts": [name], "default": [keywords]}}}."""
    names: dict[str, dict] = {"en": {}, "ko": {}}
    for language in names:
        for key, part in (("names", "annotations"), ("derived", "annotationsDerived")):
            file = folders[key] / "package" / part / language / "annotations.json"
            for char, entry in json.loads(file.read_text("utf-8"))[part]["annotations"].items():
                names[language][char.replace("\ufe0f", "")] = entry
    return names


def parse(unified: str) -> tuple[str, str, list[str], str]:
    """Split a code point sequence into concept, gender, skin tones and direction."""
    codes = [c for c in unified.split("-") if c != "FE0F"]
    tones = [TONES[c] for c in codes if c in TONES]
    if len(codes) == 1 and tones:  # the five modifiers themselves
        return unified, "", [], ""
    codes = [c for c in codes if c not in TONES]
    text, facing, gender = "-".join(codes), "", ""
    if text.endswith("-200D-27A1"):
        text, facing = text.removesuffix("-200D-27A1"), "right"
    for sign, name in (("-200D-2642", "man"), ("-200D-2640", "woman")):
        if text.endswith(sign):
            text, gender = text.removesuffix(sign), name
    if text in OWN:
        text, gender = OWN[text]
    elif text == "1FAF1-200D-1FAF2":  # a handshake of two tones
        text = "1F91D"
    elif "1F91D" in text and "200D" in text:
        text, gender = "HANDS", couple(text)
    elif "2764" in text and "1F48B" in text:
        text, gender = "KISS", couple(text)
    elif "2764" in text and "200D" in text and text.split("-")[0] in PEOPLE:
        text, gender = "HEART", couple(text)
    else:
        parts = text.split("-200D-")
        members = set(PEOPLE) | {"1F466", "1F467", "1F9D2"}
        if len(parts) > 1 and all(p in members for p in parts):
            text = "FAMILY"
        elif len(parts) > 1 and parts[0] in PEOPLE:
            text, gender = "-200D-".join(["1F9D1", *parts[1:]]), PEOPLE[parts[0]].replace("person", "")
    return NAMED.get(text, text), gender, tones, facing


def couple(text: str) -> str:
    who = [PEOPLE[c] for c in text.split("-") if c in PEOPLE]
    two = {("man", "man"): "two men", ("woman", "woman"): "two women", ("woman", "man"): "woman and man"}
    return two.get(tuple(who), "")


def rank(text: str) -> str:
    return hashlib.sha256(f"{SALT}:{text}".encode()).hexdigest()


def read_pictures(folders: dict[str, Path], style: str, rows: list[dict]) -> list[Image.Image | None]:
    if style != "fluent":
        folder = folders[style] / "package" / "img" / style / str(SIZE)
        return [Image.open(folder / row["image"]).convert("RGBA") for row in rows]
    import resvg_py

    package = folders[style] / "package"
    icons = json.loads((package / "icons.json").read_text())
    chars = {k.replace("-fe0f", ""): v for k, v in json.loads((package / "chars.json").read_text()).items()}
    alias = icons.get("aliases", {})
    pictures: list[Image.Image | None] = []
    for row in rows:
        name = chars.get(row["id"])
        name = alias[name]["parent"] if name in alias else name
        if name not in icons["icons"]:
            pictures.append(None)
            continue
        body = icons["icons"][name]["body"]
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="{SIZE}" height="{SIZE}">{body}</svg>'
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
        pictures.append(Image.open(io.BytesIO(png)).convert("RGBA"))
    return pictures


def write_sheet(pictures: list[Image.Image | None], path: Path) -> None:
    height = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIZE, height * SIZE), (255, 255, 255, 0))
    for i, picture in enumerate(pictures):
        if picture is not None:
            assert picture.size == (SIZE, SIZE), picture.size
            sheet.paste(picture, (i % COLUMNS * SIZE, i // COLUMNS * SIZE))
    sheet.save(path, lossless=True, quality=100, method=6)


def write_contact(pictures: dict[str, list[Image.Image | None]], parts: list[str], path: Path) -> None:
    """A small overview: for each split 24 emoji, one row a style."""
    rows = []
    for part in ("train", "compositions", "concepts"):
        members = [i for i, p in enumerate(parts) if p == part and pictures["fluent"][i] is not None]
        chosen = members[:: len(members) // 24][:24]
        rows += [[images[i] for i in chosen] for images in pictures.values()]
    sheet = Image.new("RGBA", (24 * 36, len(rows) * 36 + 24), "white")
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            sheet.alpha_composite(picture.reduce(2), (c * 36 + 2, r * 36 + r // 3 * 10 + 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.convert("RGB").quantize(256).save(path, optimize=True)


def small(pictures: list[Image.Image | None]) -> np.ndarray:
    """Pictures on white at 32x32, (N, 3072) float32."""
    out = []
    for picture in pictures:
        white = Image.new("RGBA", (SIZE, SIZE), "white")
        white.alpha_composite(picture)
        out.append(np.asarray(white.convert("RGB").reduce(2), np.float32).ravel())
    return np.stack(out)


def twins(images: np.ndarray) -> list[set[int]]:
    """For each picture the others that look the same (RMS below NEAR)."""
    square = (images.astype(np.float64) ** 2).sum(1)
    found: list[set[int]] = []
    for i in range(len(images)):
        distance = square + square[i] - 2 * (images @ images[i]).astype(np.float64)
        close = np.flatnonzero(distance < 4 * NEAR**2 * images.shape[1])
        exact = [j for j in close if np.sqrt(((images[j] - images[i]) ** 2).mean()) < NEAR]
        found.append(set(map(int, exact)) - {i})
    return found


def split(rows: list[dict], same: list[set[int]]) -> list[str]:
    """Two held-out sets by a fixed rule (order by a salted hash, so that no random generator is involved).

    concepts: 200 concepts with every variant, none of whose pictures looks like a picture of another concept.
    compositions: from the groups (concept, gender, direction) of the other concepts one skin tone each, a second one only
    where that gives fewer than 300; only variants whose picture looks like no other.
    """
    out = ["train"] * len(rows)
    members = collections.defaultdict(list)
    for i, row in enumerate(rows):
        members[row["concept"]].append(i)

    def alone(concept: str) -> bool:
        return all(rows[j]["concept"] == concept for i in members[concept] for j in same[i])

    free = [c for c in members if alone(c) and rows[members[c][0]]["category"] != "Component"]
    held = set(sorted(free, key=rank)[:N_CONCEPTS])
    groups = collections.defaultdict(list)
    for i, row in enumerate(rows):
        if row["concept"] in held:
            out[i] = "concepts"
        elif row["tone"]:
            groups[row["concept"], row["gender"], row["facing"]].append(i)
    candidates = []
    for key, variants in groups.items():
        good = sorted((i for i in variants if not same[i]), key=lambda i: rank(rows[i]["id"]))
        candidates += [(turn, rank("|".join(key)), i) for turn, i in enumerate(good[:2])]
    for *_, i in sorted(candidates)[:N_COMPOSITIONS]:
        out[i] = "compositions"
    assert out.count("compositions") == N_COMPOSITIONS, len(candidates)
    return out


def main(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    folders = fetch(cache)
    names = read_names(folders)
    rows = []
    entries = json.loads((folders["google"] / "package" / "emoji.json").read_text("utf-8"))
    for entry in sorted(entries, key=lambda e: (e["category"] == "Component", e["sort_order"])):
        for variant in [entry, *entry.get("skin_variations", {}).values()]:
            unified = variant["unified"]
            char = char_of(unified)
            en, ko = (names[k][char.replace("\ufe0f", "")] for k in ("en", "ko"))
            concept, gender, tones, facing = parse(unified)
            rows.append({
                "id": unified.lower().replace("-fe0f", ""), "char": char, "image": variant["image"],
                "en": en["tts"][0], "ko": ko["tts"][0], "keywords_en": en["default"], "keywords_ko": ko["default"],
                "category": entry["category"], "subcategory": entry["subcategory"],
                "concept": concept.lower().replace("-fe0f", ""), "gender": gender, "tone": ", ".join(tones), "facing": facing,
            })  # fmt: skip
    ids = [row["id"] for row in rows]
    index = {i: n for n, i in enumerate(ids)}
    assert len(index) == len(rows)
    first: dict[str, int] = {}
    for n, row in enumerate(rows):  # the base of a concept: the plain emoji, else its first member
        first.setdefault(row["concept"], index.get(row["concept"], n))
    pictures = {style: read_pictures(folders, style, rows) for style in ("google", "twitter", "fluent")}
    same = [a | b for a, b in zip(twins(small(pictures["google"])), twins(small(pictures["twitter"])), strict=True)]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("image", "concept")}
    columns["base"] = [first[row["concept"]] for row in rows]
    columns["split"] = split(rows, same)
    columns["fluent"] = [int(p is not None) for p in pictures["fluent"]]
    columns["twins"] = {str(i): sorted(s) for i, s in enumerate(same) if s}
    table = {"size": SIZE, "columns_in_sheet": COLUMNS, "count": len(rows), "sources": PACKAGES, "table": columns}
    folder = OUT / "emoji"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    for style, images in pictures.items():
        write_sheet(images, folder / f"{style}.webp")
    write_contact(pictures, columns["split"], OUT / "sheets" / "emoji.png")
    counts = collections.Counter(columns["split"])
    print(len(rows), "emoji,", len(first), "concepts,", dict(counts), "fluent:", sum(columns["fluent"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "course-npm")
