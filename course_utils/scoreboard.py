"""The scoreboard: what every lesson must reach, and the table that shows what it reached here.

Everything stands in ``scoreboard.toml``: for each lesson its number, title and times, and for each metric its label, baseline, the paper's figure, and for each profile the
expected range with the seeds that it was set from.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

from .errors import CourseError, under_ci

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

FILE = Path(__file__).with_name("scoreboard.toml")


@lru_cache(maxsize=1)
def lessons() -> dict:
    """The whole scoreboard as a dictionary: lesson name → entry."""
    try:
        return tomllib.loads(FILE.read_text(encoding="utf8"))
    except FileNotFoundError as e:
        raise CourseError("course_utils/scoreboard.toml is missing: install the package again, or restore the file from the repository.") from e


def spell(value, signed: bool = False) -> str:
    """A number as the tables show it: three significant digits, no trailing noise."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.1e}"


def verdict(metric: dict, profile: str, value: float) -> tuple[bool | None, str]:
    """(inside the range?, the range in words). None where no range is set for this profile."""
    spec = metric.get(profile)
    if not spec:
        return None, "not set for this profile"
    low, high = spec["range"]
    return (math.isfinite(value) and low <= value <= high), f"{spell(low)} … {spell(high)}"


def score(run, metrics: dict):
    """Show *metric · here · expected · baseline · paper* for one run; raise under CI if one is outside its range or missing."""
    from . import show

    entry = lessons()[run.name]
    listed = entry.get("metrics", {})
    unknown = [m for m in metrics if m not in listed]
    if unknown:
        raise CourseError(f"The scoreboard of {run.name} has no metric {unknown[0]!r}: add it to course_utils/scoreboard.toml.")
    rows, wrong = [], []
    for key, spec in listed.items():
        if key not in metrics:
            if spec.get(run.profile):
                wrong.append(f"{key} was not measured")
            continue
        value = float(metrics[key])
        ok, expected = verdict(spec, run.profile, value)
        mark = {True: "✅", False: "❌", None: "·"}[ok]
        baseline = spell(spec.get("baseline")) + (f" ({spec['baseline_is']})" if spec.get("baseline_is") else "")
        rows.append([mark, spec["label"], spell(value), expected, baseline, spec.get("paper", "–")])
        if ok is False:
            wrong.append(f"{key} = {spell(value)}, expected {expected}")
    show.table(rows, ["", "metric", "here", "expected", "baseline", "paper"])
    if wrong and under_ci():
        raise CourseError(f"Outside the expected range ({run.name}, {run.profile}): " + "; ".join(wrong) + ".")


def headline(name: str, profile: str = "quick") -> str:
    """The figure that the README shows for a lesson: label and the mean over the seeds."""
    entry = lessons()[name]
    spec = entry.get("metrics", {}).get(entry.get("headline", ""))
    if not spec or not spec.get(profile):
        return "–"
    seeds = spec[profile]["seeds"]
    base = f" ({spec['baseline_is']}: {spell(spec['baseline'])})" if "baseline" in spec and "baseline_is" in spec else ""
    return f"{spec['label']}: **{spell(sum(seeds) / len(seeds))}**{base}"
