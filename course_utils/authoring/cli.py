"""``python -m course_utils <command>``: the course's one console entry."""

from __future__ import annotations

import argparse
import sys

from ..errors import CourseError, cannot_write, plain_console, say, writable


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run one command; returns the exit status."""
    plain_console()
    parser = argparse.ArgumentParser(prog="course_utils", description="Tools of the course. Each command has its own --help.")
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = sub.add_parser("doctor", help="versions, device, profile, data and weights, and how to mend what is not right")
    p.set_defaults(call=lambda a: _module("doctor").main())

    p = sub.add_parser("list", help="the lessons: number, name, state, time, headline")
    p.set_defaults(call=lambda a: _module("curriculum").main())

    p = sub.add_parser("export", help="write course_utils/lessons/*.py from the cells tagged export")
    p.add_argument("names", nargs="*", help="lessons (all when none is named)")
    p.add_argument("--check", action="store_true", help="change nothing; fail when a module is out of step")
    p.set_defaults(call=_export)

    p = sub.add_parser("execute", help="run notebooks in Jupyter's kernel and store their outputs")
    p.add_argument("names", nargs="*", help="lessons (all when none is named)")
    p.add_argument("--profile", choices=("quick", "full"), help="COURSE_PROFILE, or quick, when it is not given")
    p.set_defaults(call=_execute)

    p = sub.add_parser("run", help="run a lesson's code cells as plain Python, without Jupyter (for a bare GPU machine)")
    p.add_argument("names", nargs="*", help="the lesson, or several")
    p.add_argument("--profile", choices=("quick", "full"), help="COURSE_PROFILE, or full, when it is not given")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override a field of the lesson's configuration, as in --set steps=100")
    p.add_argument("--figures", default=None, metavar="FOLDER", help="save every figure there as PNG")
    p.add_argument("--with-weights", action="store_true", help="all lessons that write weights")
    p.set_defaults(call=lambda a: _module("run_notebook").main(a))

    p = sub.add_parser("assignments", help="write the practice edition, without solutions, to assignments/")
    p.add_argument("--out", default=None, help="another folder")
    p.add_argument("--check", action="store_true", help="change nothing; fail when a notebook of the edition is out of step")
    p.set_defaults(call=lambda a: _module("assignments").main(a))

    p = sub.add_parser("scoreboard", help="show the scoreboard; --write puts the results table into README.md and README.ko.md")
    p.add_argument("--write", action="store_true")
    p.add_argument("--check", action="store_true", help="fail when a README's table is out of step")
    p.set_defaults(call=lambda a: _module("readme").main(a))

    p = sub.add_parser("gallery", help="write docs/gallery and docs/banner.png from the stored figures tagged gallery")
    p.add_argument("--check", action="store_true", help="change nothing; fail when a figure is out of step with its notebook")
    p.set_defaults(call=lambda a: _module("readme").gallery(a.check))

    p = sub.add_parser("badges", help="rewrite Colab badges, links to neighbours, times and set-up cells in the notebooks")
    p.add_argument("--check", action="store_true")
    p.set_defaults(call=lambda a: _module("badges").main(a))

    args = parser.parse_args(argv)
    try:
        return int(args.call(args) or 0)
    except CourseError as e:
        say(str(e), file=sys.stderr)
        return 1
    except OSError as e:
        sentence = cannot_write(e)
        if sentence is None:
            raise
        say(str(sentence), file=sys.stderr)
        return 1


def _module(name: str):
    import importlib

    return importlib.import_module(f"..{name}" if name == "curriculum" else f".{name}", __package__)


def _export(args) -> int:
    changed = _module("export").export(args.names, args.check)
    if args.check and changed:
        print(f"out of step: {', '.join(changed)}. Run `python -m course_utils export`.")
        return 1
    print("\n".join(f"wrote course_utils/lessons/{n}.py" for n in changed) or "all in step")
    return 0


def _execute(args) -> int:
    import time

    from .. import lesson

    notebooks = _module("notebooks")
    profile = args.profile or lesson.chosen_profile("quick")
    for name in args.names or ["start_here", *notebooks.lessons()]:
        began, path = time.time(), notebooks.find(name)
        writable(path.parent, "the outputs are stored in the notebook, so make its folder writable first")
        notebooks.execute(path, profile)
        print(f"{name}: {time.time() - began:.0f} s")
    return 0
