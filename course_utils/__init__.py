"""Helper package of the course: what the lessons need and do not teach.

``from course_utils import lesson, data, show, train, weights, check, hint, reveal``

Importing the package is light: nothing below imports torch or matplotlib before it is used, and nothing here opens a network connection.
"""

import importlib

__version__ = "0.1.0"
_MODULES = {"course", "curriculum", "data", "exercises", "lesson", "scoreboard", "show", "train", "weights"}
_FUNCTIONS = {"check": "exercises", "hint": "exercises", "reveal": "exercises", "CourseError": "errors"}
__all__ = sorted(_MODULES | set(_FUNCTIONS))


def __getattr__(name: str):
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f".{_FUNCTIONS[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(list(globals()) + __all__)
