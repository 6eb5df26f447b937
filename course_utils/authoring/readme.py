"""What is generated for the code-hosting page: the READMEs' tables of lessons (from curriculum and scoreboard), the gallery, and the banner of four figures."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from .. import curriculum, scoreboard
from ..errors import CourseError
from . import badges, notebooks

WORDS = {
    "README.md": {
        "headers": ("", "lesson", "", "time (read and solve · 2 cores · GPU)", "measured at the quick profile, on held-out data"),
        "study": "{} min",
        "planned": "planned",
        "part": "Part {number} · {title}",
        "loads": "Load weights that were trained beforehand: {}. In these the three seeds repeat the notebook, not that training.",
    },
    "README.ko.md": {
        "headers": ("", "강의", "", "시간 (읽고 풀기 · CPU 2코어 · GPU)", "quick 프로파일, 학습에 쓰지 않은 데이터에서 잰 값"),
        "study": "{}분",
        "planned": "예정",
        "part": "{number}부 · {korean}",
        "loads": "미리 학습한 가중치를 불러오는 강의: {}. 이 강의들의 시드 세 개는 노트북을 되풀이한 것이고 그 학습을 되풀이한 것은 아닙니다.",
    },
}


def _block(text: str, name: str, content: str) -> str:
    """The text with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced."""
    found = re.search(rf"<!-- {name} -->\n.*?<!-- /{name} -->", text, re.S)
    if not found:
        raise CourseError(f"The README has no place for the generated part: put <!-- {name} --> and <!-- /{name} --> on lines of their own.")
    return text[: found.start()] + f"<!-- {name} -->\n{content}\n<!-- /{name} -->" + text[found.end() :]


def lessons_table(file: str) -> str:
    """The table of lessons in Markdown, one table a part, and which lessons load stored weights."""
    words, where, board = WORDS[file], badges.origin(), scoreboard.lessons()
    out = []
    for part in curriculum.parts():
        head = words["part"].format(number=part.number, title=part.title, korean=part.korean)
        out += [f"**{head}**", "", "| " + " | ".join(words["headers"]) + " |", "|---|---|---|---|---|"]
        for lesson in curriculum.lessons().values():
            if lesson.part != part:
                continue
            title = lesson.korean if file.endswith("ko.md") else lesson.title
            if lesson.status == "ready":
                seconds = board[lesson.name].get("seconds", {})
                study = badges.study_minutes(notebooks.read(badges.root() / lesson.path))
                time = f"{words['study'].format(study)} · {badges.spell(seconds.get('quick'))} · {badges.spell(seconds.get('full'))}"
                out.append(f"| {lesson.number} | [{title}]({lesson.path}) | {badges.both(lesson.path, where)} | {time} | {scoreboard.headline(lesson.name)} |")
            else:
                out.append(f"| {lesson.number} | {title} | | | {words['planned']} |")
        out.append("")
    return "\n".join([*out, words["loads"].format(", ".join(loading_weights()))])


def start_table() -> str:
    """The table of the start page in Markdown: the lessons that stand, to read and to practise, here and in Colab."""
    where, board = badges.origin(), scoreboard.lessons()
    out = ["| | lesson · 강의 | open here | in Colab | read and solve · compute | needs |", "|---|---|---|---|---|---|"]
    for lesson in curriculum.ready():
        here = lesson.path.removeprefix("notebooks/")
        title = lesson.title if lesson.korean == lesson.title else f"{lesson.title} · {lesson.korean}"
        study = badges.study_minutes(notebooks.read(badges.root() / lesson.path))
        time = f"{study} min · {badges.spell(board[lesson.name].get('seconds', {}).get('quick'))}"
        needs = ", ".join(curriculum.lessons()[n].number for n in lesson.needs) or "–"
        links = f"[read]({here}) · [practise](../assignments/{here})"
        out.append(f"| {lesson.number} | {title} | {links} | {badges.both(lesson.path, where)} | {time} | {needs} |")
    more = sum(x.status != "ready" for x in curriculum.lessons().values())
    return "\n".join([*out, "", f"{more} more lessons are planned."] if more else out)


def start_page(text: str) -> str:
    """A text cell of the start page with its table, if it holds the place for it, made anew."""
    return _block(text, "lessons", start_table()) if "<!-- lessons -->" in text else text


def loading_weights() -> list[str]:
    """Numbers of the lessons that load stored weights, their own or, by way of another lesson's loader, that one's."""
    own = {x.name: _loads(notebooks.read(badges.root() / x.path)) for x in curriculum.ready()}
    return [x.number for x in curriculum.ready() if own[x.name]]


def _loads(nb: dict) -> bool:
    code = "\n".join(notebooks.source(c) for c in nb["cells"] if c["cell_type"] == "code")
    return bool(re.search(r"\bweights\.load\(|\bload_\w+\(", code))


def rendered(file: Path) -> str:
    """A README with its generated part made anew."""
    return _block(file.read_text(encoding="utf8"), "lessons", lessons_table(file.name))


def main(args) -> int:
    """``python -m course_utils scoreboard [--write | --check]``."""
    files = [badges.root() / name for name in WORDS]
    if not args.write and not args.check:
        _print_board()
        return 0
    stale = [f for f in files if rendered(f) != f.read_text(encoding="utf8")]
    if args.check and stale:
        print(f"out of step: {', '.join(f.name for f in stale)}. Run `python -m course_utils scoreboard --write`.")
        return 1
    if args.write:
        for f in stale:
            f.write_text(rendered(f), encoding="utf8")
    print("\n".join(f"wrote {f.name}" for f in stale) or "all in step")
    return 0


def _print_board() -> None:
    """Every metric of every lesson as text: mean and spread over the seeds, expected range, baseline."""
    for name, entry in scoreboard.lessons().items():
        print(f"{entry['number']} {entry['title']} ({name})")
        for metric in entry.get("metrics", {}).values():
            for profile in ("quick", "full"):
                if profile not in metric:
                    continue
                spec = metric[profile]
                seeds, (low, high) = spec["seeds"], spec["range"]
                base = f", {metric.get('baseline_is', 'baseline')} {scoreboard.spell(metric['baseline'])}" if "baseline" in metric else ""
                print(
                    f"  {profile:5} {metric['label']}: {scoreboard.spell(sum(seeds) / len(seeds))} over {len(seeds)} seeds "
                    f"({scoreboard.spell(min(seeds))} … {scoreboard.spell(max(seeds))}; expected {scoreboard.spell(low)} … {scoreboard.spell(high)}{base})"
                )


# The gallery: the stored figure of the cell tagged `gallery` in each notebook

BANNER = {  # part → lesson, and the piece of its figure: left, top, right, bottom as fractions
    1: ("clip", (0, 0, 1, 1)),
    2: ("controlnet", (0, 0, 1, 1)),
    3: ("nerf", (0, 0, 1, 1)),
    4: ("linear_blend_skinning", (0, 0, 1, 1)),
}


def _folder() -> Path:
    return badges.root() / "docs" / "gallery"


def figures() -> dict[str, bytes]:
    """Lesson name → its gallery figure as PNG, for the lessons that stand and have one."""
    found = {}
    for lesson in curriculum.ready():
        pictures = map(_picture, notebooks.read(badges.root() / lesson.path)["cells"])
        found[lesson.name] = next((p for p in pictures if p), None)
    return {name: png for name, png in found.items() if png}


def gallery_page() -> str:
    """docs/gallery/README.md: every lesson's figure, with a link to the lesson."""
    out = [
        "# Gallery · 갤러리",
        "",
        "All of it drawn by the notebooks: these are figures of their stored outputs. · 모두 노트북이 그린, 저장된 출력입니다.",
        "",
    ]
    for name in figures():
        lesson = curriculum.lessons()[name]
        korean = "" if lesson.korean == lesson.title else f" · {lesson.korean}"
        out += [f"**{lesson.number} [{lesson.title}](../../{lesson.path})**{korean}", "", f"![{lesson.title}]({name}.png)", ""]
    return "\n".join(out)


def gallery_drift() -> list[str]:
    """Files of docs/gallery that are missing, out of step with the notebooks, or left over."""
    wanted = {f"{name}.png": png for name, png in figures().items()} | {"README.md": gallery_page().encode()}
    there = {f.name: f.read_bytes() for f in _folder().iterdir()} if _folder().is_dir() else {}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def gallery(check: bool = False) -> int:
    """Write docs/gallery and docs/banner.png from the notebooks' stored figures; with ``check`` only say what is out of step."""
    stale = gallery_drift()
    if check:
        print(f"out of step: {', '.join(stale)}. Run `python -m course_utils gallery`." if stale else "all in step")
        return bool(stale)
    _folder().mkdir(parents=True, exist_ok=True)
    for name in stale:
        (_folder() / name).unlink(missing_ok=True)
    for name, png in figures().items():
        (_folder() / f"{name}.png").write_bytes(png)
    (_folder() / "README.md").write_text(gallery_page(), encoding="utf8")
    (_folder().parent / "banner.png").write_bytes(banner())
    print("wrote " + (", ".join(f"docs/gallery/{name}" for name in stale) or "docs/banner.png"))
    missing = [x.name for x in curriculum.ready() if x.name not in figures()]
    if missing:
        print(f"No stored picture in a cell tagged gallery: {', '.join(missing)}.")
    return bool(missing)


def banner(width: int = 2000) -> bytes:
    """One row of four figures, one a part, all of one height, with the parts' names above: PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    shown = figures()
    parts = [p for p in curriculum.parts() if BANNER[p.number][0] in shown]
    pictures = [_trimmed(Image.open(io.BytesIO(shown[BANNER[p.number][0]])).convert("RGB"), BANNER[p.number][1]) for p in parts]
    aspects = [picture.width / picture.height for picture in pictures]
    inches, gap, top = width / 200, 0.012, 0.34  # of the width; inches above the figures for the names
    high = inches * (1 - gap * (len(parts) + 1)) / sum(aspects)
    figure = Figure(figsize=(inches, high + top + 0.08), facecolor="white")
    FigureCanvasAgg(figure)
    left = gap
    for part, picture, aspect in zip(parts, pictures, aspects):
        wide = high * aspect / inches
        axes = figure.add_axes((left, 0.04 / figure.get_figheight(), wide, high / figure.get_figheight()))
        axes.imshow(picture.resize((round(wide * width), round(high * 200)), Image.LANCZOS))
        axes.axis("off")
        axes.set_title(part.title, fontsize=9, color="#333333", pad=5)
        left += wide + gap
    out = io.BytesIO()
    figure.savefig(out, dpi=200, format="png")
    small = io.BytesIO()
    Image.open(out).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()


def _trimmed(picture, box: tuple[float, float, float, float]):
    """The piece of a picture that the fractions name, without white borders."""
    from PIL import Image, ImageChops

    w, h = picture.size
    piece = picture.crop((round(box[0] * w), round(box[1] * h), round(box[2] * w), round(box[3] * h)))
    return piece.crop(ImageChops.difference(piece, Image.new("RGB", piece.size, "white")).getbbox())


def _picture(cell: dict) -> bytes | None:
    if "gallery" not in cell["metadata"].get("tags", []):
        return None
    found = [o["data"]["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    return base64.b64decode("".join(found[0])) if found else None
