"""One exception for everything that a user can mend: a single sentence that says what to do."""

import codecs
import errno
import os
import sys
from pathlib import Path


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


def as_list(values, name: str = "captions") -> list:
    """``values`` as a list of strings; a plain string is refused, because it would be taken for a list of its letters."""
    if isinstance(values, (str, bytes)):
        raise CourseError(f"{name} is a list of strings, and this is one string: put it in brackets, as in [{values[:40]!r}].")
    values = list(values)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise CourseError(f"{name} is a list of strings, and number {i + 1} of them is {value!r}.")
    return values


# Memory and files


def memory_full(setting: str = "cfg.batch") -> str:
    """The sentence for a GPU that ran out of memory."""
    return f"The GPU ran out of memory: restart the kernel and halve {setting}, or set COURSE_PROFILE=quick before starting."


class gpu_memory:
    """``with gpu_memory("cfg.batch"):`` turns a GPU out of memory into one sentence that names the setting to halve."""

    def __init__(self, setting: str = "cfg.batch"):
        self.setting = setting

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None and kind.__name__ == "OutOfMemoryError":
            raise CourseError(memory_full(self.setting)) from error
        return False


UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, getattr(errno, "EDQUOT", errno.ENOSPC)}


def cannot_write(error: OSError, advice: str = "choose a folder of your own") -> CourseError | None:
    """A CourseError for a file or folder that cannot be written (read-only, full, in the way of another); None when the error is about something else."""
    if error.errno not in UNWRITABLE:
        return None
    where = f" {error.filename}" if error.filename else ""
    return CourseError(f"Cannot write{where} ({error.strerror}): {advice}.")


def writable(folder, advice: str = "choose a folder of your own") -> None:
    """Raise CourseError unless files can be made in ``folder`` (or in the nearest folder above it that exists): to be asked before work that ends in a file."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise CourseError(f"Cannot write in {place}: {advice}.")


# Printing, on consoles of any encoding


_PLAIN = {
    "✅": "[ok]",
    "❌": "[x]",
    "⏳": "[...]",
    "·": "-",
    "→": "->",
    "←": "<-",
    "≥": ">=",
    "≤": "<=",
    "–": "-",
    "—": "-",
    "…": "...",
    "×": "x",
    "−": "-",
    "²": "^2",
    "°": " deg",
}


def _spell_plainly(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: characters that the encoding lacks become ASCII marks, or ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


codecs.register_error("course", _spell_plainly)


def plain_console() -> None:
    """Let stdout and stderr spell what their encoding lacks (cp949, cp1252, ascii) in ASCII, instead of stopping with UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-")
        if hasattr(stream, "reconfigure") and not encoding.startswith("utf"):
            stream.reconfigure(errors="course")


def say(text: str = "", file=None) -> None:
    """Print a line, also on a console whose encoding lacks some of its characters: marks become words, what is left becomes ``?``."""
    out = file or sys.stdout
    encoding = getattr(out, "encoding", None) or "utf-8"
    print(text.encode(encoding, "course").decode(encoding), file=out)
