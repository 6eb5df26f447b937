"""What the tests of all checks share: right answers pass, however they are written, and every refusal is one short sentence."""

import pytest

from course_utils.exercises import Wrong, examine

WRONG_SHAPE = r"should have shape \(.*\), but it has \(2, "


def accepts(checks, lesson, name):
    """The course's own answer to exercise ``name`` passes, and there are at least three hints."""
    examine(getattr(checks, name), getattr(lesson, name))
    assert len(checks.HINTS[name]) >= 3


def refuses(check, answer, words=""):
    """``check`` refuses the answer with one short sentence in which the pattern ``words`` occurs."""
    with pytest.raises(Wrong, match=words or None) as error:
        examine(check, answer)
    message = str(error.value)
    assert "\n" not in message and 10 < len(message) < 300


def every(cases):
    """Decorator: the test runs for each (name, answer, words) of ``cases``, a dict from names to answers or to (answer, words)."""
    rows = [(name, *(case if isinstance(case, tuple) else (case, ""))) for name, answers in cases.items() for case in answers]
    ids = [f"{name}-{getattr(answer, '__name__', 'answer').strip('<>')}-{k}" for k, (name, answer, _) in enumerate(rows)]
    return pytest.mark.parametrize("name, answer, words", rows, ids=ids)
