"""What an operator reads while a host works."""

from __future__ import annotations

import sys
from contextlib import suppress


class ReleaseError(Exception):
    """Why it did not work, and how the host is now."""


def say(text: str, error: bool = False) -> None:
    """A line for the operator, as far as there still is one."""
    with suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
