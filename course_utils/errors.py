"""One exception for everything that a user can mend: a single sentence that says what to do."""

import os


class CourseError(RuntimeError):
    """An error that the reader can mend. In a notebook it shows as one sentence, without a traceback."""

    def _render_traceback_(self):  # the hook that IPython calls instead of printing the stack
        return [f"{type(self).__name__}: {self}"]


def under_ci() -> bool:
    """True where mistakes must stop the run (checks and scores raise): the environment variable CI is set and not 0 or false."""
    return os.environ.get("CI", "").strip().lower() not in {"", "0", "false", "no"}


def need(module: str, why: str, install: str | None = None):
    """Import an optional package, or say in one sentence how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise CourseError(f"{why} needs the package {module!r}: run `pip install {install or module}` and try again.") from e


class gpu_memory:
    """``with gpu_memory("batch_size"):`` turns a GPU out of memory into one sentence that names the setting to lower."""

    def __init__(self, setting: str = "cfg.batch"):
        self.setting = setting

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None and kind.__name__ == "OutOfMemoryError":
            raise CourseError(
                f"The GPU ran out of memory: restart the kernel and lower {self.setting}, or set COURSE_PROFILE=quick before starting."
            ) from error
        return False


_PLAIN = str.maketrans({"✅": "[ok]", "❌": "[x]", "⏳": "[...]", "·": "-", "→": "->", "←": "<-", "≥": ">=", "≤": "<=", "–": "-", "—": "-", "…": "..."})


def say(text: str = "", file=None) -> None:
    """Print a line, also on a console whose encoding lacks some of its characters (cp949, cp1252, ascii): marks become words, what is left becomes ``?``."""
    import sys

    out = file or sys.stdout
    encoding = getattr(out, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    print(text, file=out)
