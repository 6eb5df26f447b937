"""``python -m course_utils <command>``."""

import sys

from .authoring.cli import main

if __name__ == "__main__":
    sys.exit(main())
