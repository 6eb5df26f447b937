"""Every notebook by the anatomy and the budgets of the course, every lesson complete, every link good, nothing private in the repository.

All of it reads files; nothing is executed. The tests pick up whatever notebooks there are.
"""

import ast
import importlib
import json
import re
import statistics
import subprocess
from urllib.parse import unquote

import nbformat
import pytest
from conftest import ROOT

from course_utils import curriculum
from course_utils.authoring import badges, export, notebooks

READY = curriculum.ready()
STANDING = [x for x in READY if (ROOT / x.path).exists()]
EVERY = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
HEADINGS = ["The idea", "The data", "Training", "Results on held-out data", "Failures", "Paper and here", "Play", "Explore", "What you built"]
ORACLES = {"transformers", "diffusers", "nerfacc", "roma", "body_models", "skimage", "torchvision", "peft", "kornia", "gsplat"}

each_notebook = pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
each_lesson = pytest.mark.parametrize("lesson", STANDING, ids=lambda x: x.name)


def load(path):
    return json.loads(path.read_text(encoding="utf8"))


def cells(lesson, kind):
    """(position, source, tags) of the cells of one kind."""
    for i, c in enumerate(load(ROOT / lesson.path)["cells"]):
        if c["cell_type"] == kind:
            yield i, notebooks.source(c), set(c["metadata"].get("tags", []))


def n_lines(code):
    return sum(1 for line in code.splitlines() if line.strip())


def prose(text):
    """A text cell without its formulas, tables, code, addresses and headings."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$|```.*?```|`[^`\n]*`", " ", text, flags=re.S)
    text = re.sub(r"^.*\[start page\].*$", " ", text, flags=re.M)
    text = re.sub(r"\]\([^)]*\)|https?://\S+|^\|.*$|^#.*$", " ", text, flags=re.M)
    return re.findall(r"\w[\w'’-]*", text)


# Which lessons there are


@pytest.mark.parametrize("lesson", READY, ids=lambda x: x.name)
def test_a_ready_lesson_has_all_its_parts(lesson):
    name = lesson.name
    wanted = [lesson.path, f"course_utils/lessons/{name}.py", f"course_utils/checks/{name}.py", f"tests/lessons/test_{name}.py", f"tests/checks/test_{name}.py"]
    assert [p for p in wanted if not (ROOT / p).exists()] == []


def test_every_notebook_is_in_the_curriculum():
    known = {x.path for x in READY} | {"notebooks/00_start_here.ipynb"}
    assert {p.relative_to(ROOT).as_posix() for p in EVERY} - known == set(), "mark the lesson as ready in course_utils/curriculum.toml"


def test_the_curriculum_is_whole():
    every = curriculum.lessons()
    numbers = [tuple(map(int, x.number.split("."))) for x in every.values()]
    assert len(every) == 34 and numbers == sorted(set(numbers))
    for name, x in every.items():
        assert x.stem == f"{int(x.number.split('.')[1]):02}_{name}" and x.status in {"ready", "planned"}
        assert set(x.needs) <= set(every) - {name}
    assert len(curriculum.order({n: x.needs for n, x in every.items()})) == 34  # raises on a circle


def test_ready_lessons_need_only_ready_ones():
    ready = {x.name for x in READY}
    assert [(x.name, n) for x in READY for n in x.needs if n not in ready] == []


# How a notebook is stored


@each_notebook
def test_valid_and_clean(path):
    nb = load(path)
    nbformat.validate(nbformat.from_dict(nb))
    assert (nb["nbformat"], nb["nbformat_minor"]) == (4, 5)
    ids = [c["id"] for c in nb["cells"]]
    assert len(set(ids)) == len(ids), "two cells have one id"
    assert set(nb["metadata"]) <= {"kernelspec", "language_info"}, "metadata that changes from run to run (widget state?)"
    assert all(set(c["metadata"]) <= {"tags"} for c in nb["cells"]), "cell metadata that changes from run to run (time stamps?)"


@each_notebook
def test_stored_as_executed_once_from_top_to_bottom(path):
    code = [c for c in load(path)["cells"] if c["cell_type"] == "code" and notebooks.source(c).strip()]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c["outputs"]]
    assert [o["ename"] for o in outputs if o["output_type"] == "error"] == []
    assert not any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs), "a widget without its state"
    printed = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr")
    assert printed == "", "warnings in the stored output"


def test_sizes():
    size = lambda files: sum(f.stat().st_size for f in files if f.is_file()) / 1e6  # noqa: E731
    assert [p.name for p in EVERY if p.stat().st_size > 1.5e6] == []
    weights = list((ROOT / "data" / "weights").rglob("*")) if (ROOT / "data" / "weights").exists() else []
    local = list((ROOT / "data" / "local").rglob("*"))
    assert size(EVERY) <= 0.8 * len(EVERY) and size(weights) <= 75 and all(f.stat().st_size <= 16 * 2**20 for f in weights)
    assert size(set((ROOT / "data").rglob("*")) - set(weights) - set(local)) <= 60


# The anatomy of a lesson


@each_lesson
def test_title_cell(lesson):
    title = next(cells(lesson, "markdown"))[1]
    assert title.startswith(f"# {lesson.number} ")
    assert badges.both(lesson.path, badges.origin()) in title and badges.way(lesson) in title
    assert re.search(r"\]\(https://(?:arxiv\.org|doi\.org|openaccess)", title), "papers are links"
    assert re.search(r"you will build", title, re.I) and re.search(r"you will be able to", title, re.I)
    korean = title.split("한국어 요약", 1)[1]
    assert len(re.findall("[가-힣]", korean)) >= 120
    assert needs_row(title) == {curriculum.lessons()[n].number for n in lesson.needs}
    assert len(prose(title)) < 280


def needs_row(title):
    """Lesson numbers in the title table's cell called needs, whichever way the table runs."""
    rows = [[c.strip(" *") for c in line.strip().strip("|").split("|")] for line in title.splitlines() if line.strip().startswith("|")]
    for i, row in enumerate(rows):
        at = next((j for j, c in enumerate(row) if c.lower().startswith("needs")), None)
        if at is None:
            continue
        below = rows[i + 2] if i + 2 < len(rows) and set("".join(rows[i + 1])) <= set("-: ") and len(row) > 2 else None
        cell = below[at] if below else " ".join(row[at + 1 :])
        return set(re.findall(r"\b\d\.\d+\b", re.sub(r"\([^)]*\)", "", cell)))
    raise AssertionError("the title's table has no cell called needs")


@each_lesson
def test_setup_cell(lesson):
    _, code, tags = next(cells(lesson, "code"))
    repository, tag = badges.origin()
    pattern = (
        r"import importlib\.util\n\n?"
        r'if importlib\.util\.find_spec\("course_utils"\) is None:.*\n'
        r'    %pip install -q "course-utils @ git\+https://github\.com/REPOSITORY@TAG"\n\n?'
        r"from course_utils import [\w, ]+\n\n"
        r'run = lesson\.start\("NAME"\)\s*'
    )
    for word, value in {"REPOSITORY": repository, "TAG": tag, "NAME": lesson.name}.items():
        pattern = pattern.replace(word, re.escape(value))
    assert re.fullmatch(pattern, code), "the first code cell is the set-up cell that CONTRIBUTING.md shows"
    assert "setup" in tags


@each_lesson
def test_headings(lesson):
    found = [m for _, text, _ in cells(lesson, "markdown") for m in re.findall(r"^## (.+?)\s*$", text, re.M)]
    steps = [h for h in found if h.startswith("Step ")]
    assert [h for h in found if h not in steps] == HEADINGS
    assert [int(re.match(r"Step (\d+): \S", h)[1]) for h in steps] == list(range(1, len(steps) + 1)) and steps
    assert found.index("The data") < found.index(steps[0]) and found.index(steps[-1]) < found.index("Results on held-out data")


@each_lesson
def test_budgets(lesson):
    code = [c for _, c, _ in cells(lesson, "code") if c.strip()]
    lines = [n_lines(c) for c in code]
    assert len(code) >= 20, "too coarse to be step by step"
    assert statistics.median(lines) <= 10 and max(lines) <= 40
    texts = list(cells(lesson, "markdown"))[1:]
    words = [len(prose(t)) for _, t, tags in texts if "derivation" not in tags]
    assert 15 <= statistics.median(words) and max(words) <= 120, "a text cell has between 15 and 120 words"
    assert all(len(prose(t)) <= 300 for _, t, _ in texts), "a derivation has up to 300 words"
    joined = "\n".join(code)
    assert "# noqa" not in joined and joined.count("# fmt: skip") <= 3, "teaching cells are not written for a linter"


@each_lesson
def test_content(lesson):
    text = "\n".join(t for _, t, _ in cells(lesson, "markdown"))
    code = "\n".join(c for _, c, _ in cells(lesson, "code"))
    outputs = [o for c in load(ROOT / lesson.path)["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 5
    assert len(re.findall(r"^\s*assert |torch\.testing\.|NBVAL_CHECK_OUTPUT", code, re.M)) >= 4
    assert text.count("$") >= 6, "three formulas at least"
    assert "show.play(" in code or "show.mesh(" in code or "show.points(" in code, "nothing to play with"
    assert re.search(r"run\.score\(", code)
    assert "torch.optim" not in code or "log.steps(" in code, "a training loop runs over log.steps(...), so that it can be stopped and resumed"
    assert not re.search(r"^\s*!|\bsudo\b|google\.colab|renderers\.default|FigureWidget", code, re.M)


@each_lesson
def test_every_exercise_is_followed_by_its_check(lesson):
    nb = load(ROOT / lesson.path)["cells"]
    checks = importlib.import_module(f"course_utils.checks.{lesson.name}")
    names = []
    for i, cell in enumerate(nb):
        code = notebooks.source(cell)
        if cell["cell_type"] != "code" or "### BEGIN SOLUTION" not in code:
            continue
        assert {"export", "exercise"} <= set(cell["metadata"].get("tags", []))
        assert code.count("### BEGIN SOLUTION") == code.count("### END SOLUTION")
        following = next(notebooks.source(c) for c in nb[i + 1 :] if c["cell_type"] == "code")
        asked = re.match(rf'check\("{lesson.name}\.(\w+)", (\w+)\)', following)
        assert asked and asked[1] == asked[2], f"after the exercise in cell {i} the next code cell is its check"
        node = next(n for n in ast.parse(code).body if getattr(n, "name", "") == asked[1])
        assert ast.get_docstring(node), f"{asked[1]} has no docstring"
        names.append(asked[1])
        above = next(notebooks.source(c) for c in reversed(nb[:i]) if c["cell_type"] == "markdown")
        heading = re.search(r"\*\*Exercise (\d+) (●○○|●●○|●●●) · \d+ min · .+\*\*", above)
        assert heading and int(heading[1]) == len(names), f"the text above {asked[1]}: **Exercise {len(names)} ●○○ · 10 min · why it matters**"
    assert len(names) >= 3
    solutions = re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", "\n".join(c for _, c, _ in cells(lesson, "code")), re.S)
    assert 8 <= max(n_lines(s) for s in solutions) <= 25, "one exercise is module-sized"
    assert set(checks.HINTS) == set(names) and all(len(h) >= 3 for h in checks.HINTS.values())
    assert all(callable(getattr(checks, n)) for n in names)


@each_lesson
def test_lessons_to_come_are_spoken_of_as_such(lesson):
    planned = {x.number for x in curriculum.lessons().values() if x.status != "ready"}
    text = "\n".join(t for _, t, _ in list(cells(lesson, "markdown"))[1:])
    named = set(re.findall(r"[Ll]essons? (\d\.\d{1,2})\b", text)) | set(re.findall(r"(?<![.\d])(\d\.\d{1,2}) (?:learns|teaches|builds|shows|will)\b", text))
    assert named & planned == set(), "a lesson that does not stand yet is 'a later lesson'"


# What a lesson imports


def imported(code):
    """Modules that a piece of code imports, as dotted names."""
    code = "\n".join(
        "pass" if re.match(r"\s*[%!]", line) and not line.startswith(" ") else re.sub(r"^(\s+)[%!].*", r"\1pass", line) for line in code.split("\n")
    )
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{a.name}" for a in node.names)


def lessons_in(modules):
    return {m.split(".")[2] for m in modules if m.startswith("course_utils.lessons.")}


@each_lesson
def test_a_lesson_imports_exactly_what_it_needs(lesson):
    modules = {m for _, c, _ in cells(lesson, "code") for m in imported(c)}
    assert lessons_in(modules) == set(lesson.needs), "course_utils/curriculum.toml and the imports differ"
    assert {m.split(".")[0] for m in modules} & ORACLES == set(), "reference libraries are for the tests"
    assert not any(m.startswith(("course_utils.checks", "tests")) for m in modules)


@each_lesson
def test_the_module_imports_no_more_than_the_lesson(lesson):
    modules = set(imported((ROOT / f"course_utils/lessons/{lesson.name}.py").read_text(encoding="utf8")))
    assert lessons_in(modules) <= set(lesson.needs)
    assert not any(m.startswith(("course_utils.checks", "course_utils.authoring.notebooks", "tests")) for m in modules)


def test_modules_are_in_step_with_the_notebooks():
    assert export.export(check=True) == [], "run `python -m course_utils export`"


@each_lesson
def test_weights_that_are_loaded_are_there(lesson):
    from course_utils import data

    code = "\n".join(c for _, c, _ in cells(lesson, "code"))
    wanted = {f"weights/{n}.safetensors" for n in re.findall(r'weights\.(?:load|file|metadata)\("(\w+)"', code)}
    assert wanted - set(data.registry()) == set(), "run `make weights`, then `python -m course_utils.data`"


# The repository


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / n for n in listed.stdout.decode().split("\0") if n and (ROOT / n).is_file()]


def test_links_between_files():
    pages = {p: p.read_text(encoding="utf8") for p in tracked() if p.suffix == ".md"}
    for p in EVERY:
        pages[p] = "\n".join(notebooks.source(c) for c in load(p)["cells"] if c["cell_type"] == "markdown")
    broken = []
    for page, text in pages.items():
        text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
            if not re.match(r"[a-z]+:|#", target) and not (page.parent / unquote(target.split("#")[0])).exists():
                broken.append(f"{page.relative_to(ROOT)} → {target}")
    assert broken == []


PRIVATE = {
    "a path of one machine": r"(?<![\w.])/(?:root|home|Users)/[\w.-]+|(?<![\w.:/])/(?:work|tmp|opt|mnt)/\w",
    "a token": r"\b(?:ghp_|gho_|github_pat_|hf_|sk-)[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b|BEGIN (?:RSA |OPENSSH )?PRIVATE KEY",
    "a file outside the repository": r"\.\./shared/",
}


def test_nothing_private():
    found = []
    for file in tracked():
        if file == ROOT / "tests" / "test_structure.py" or file.stat().st_size > 4e6:
            continue
        try:
            text = file.read_text(encoding="utf8")
        except UnicodeDecodeError:
            continue
        if file.suffix == ".ipynb":
            text = re.sub(r'"image/png": "[^"]*"|base64,[A-Za-z0-9+/=]*|"bdata": "[^"]*"', "", text)
        found += [f"{file.relative_to(ROOT)}: {what}: {m[0]}" for what, pattern in PRIVATE.items() for m in [re.search(pattern, text)] if m]
    assert found == []


def test_data_is_documented():
    page = ROOT / "data" / "README.md"
    packs = {n.split("/")[0] for n in __import__("course_utils.data", fromlist=["registry"]).registry()} - {"weights"}
    text = page.read_text(encoding="utf8") if page.exists() else ""
    assert [p for p in packs if not re.search(rf"\b{p}\b", text)] == [], "data/README.md names source, licence and checksum of each pack"
