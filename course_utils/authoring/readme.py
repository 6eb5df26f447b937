"""The parts of README.md and README.ko.md that are generated: the table of lessons (from curriculum and scoreboard) and the gallery."""

from __future__ import annotations

import base64
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
    },
    "README.ko.md": {
        "headers": ("", "강의", "", "시간 (읽고 풀기 · CPU 2코어 · GPU)", "quick 프로파일, 학습에 쓰지 않은 데이터에서 잰 값"),
        "study": "{}분",
        "planned": "예정",
        "part": "{number}부 · {korean}",
    },
}


def _block(text: str, name: str, content: str) -> str:
    """The text with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced."""
    found = re.search(rf"<!-- {name} -->\n.*?<!-- /{name} -->", text, re.S)
    if not found:
        raise CourseError(f"The README has no place for the generated part: put <!-- {name} --> and <!-- /{name} --> on lines of their own.")
    return text[: found.start()] + f"<!-- {name} -->\n{content}\n<!-- /{name} -->" + text[found.end() :]


def lessons_table(file: str) -> str:
    """The table of lessons in Markdown, one table a part."""
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
    return "\n".join(out).strip()


def gallery_table(file: str) -> str:
    """The gallery in Markdown: one picture a lesson that has one."""
    korean = file.endswith("ko.md")
    shown = [x for x in curriculum.ready() if (_folder() / f"{x.name}.png").exists()]
    out = []
    for lesson in shown:
        title = lesson.korean if korean else lesson.title
        out.append(f"**{lesson.number} {title}**\n\n![{title}](docs/gallery/{lesson.name}.png)\n")
    return "\n".join(out).strip()


def rendered(file: Path) -> str:
    """A README with its generated parts made anew."""
    text = file.read_text(encoding="utf8")
    return _block(_block(text, "lessons", lessons_table(file.name)), "gallery", gallery_table(file.name))


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


def _folder() -> Path:
    return badges.root() / "docs" / "gallery"


def gallery() -> int:
    """Write docs/gallery/<lesson>.png: the first stored picture of the cell tagged ``gallery`` in each notebook."""
    _folder().mkdir(parents=True, exist_ok=True)
    missing = []
    for name, path in notebooks.lessons().items():
        png = next((p for p in map(_picture, notebooks.read(path)["cells"]) if p), None)
        if png is None:
            missing.append(name)
            continue
        (_folder() / f"{name}.png").write_bytes(png)
        print(f"wrote docs/gallery/{name}.png ({len(png) // 1024} kB)")
    if missing:
        print(f"No stored picture in a cell tagged gallery: {', '.join(missing)}.")
    return 1 if missing else 0


def _picture(cell: dict) -> bytes | None:
    if "gallery" not in cell["metadata"].get("tags", []):
        return None
    found = [o["data"]["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    return base64.b64decode("".join(found[0])) if found else None
