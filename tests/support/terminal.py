"""A command at a terminal, with a person who reads and types."""

import os
import pty
from contextlib import suppress
from select import select
from typing import Self

from checkout import BIN, ROOT


class Terminal:
    """24 lines of 80 characters; ``said`` is all that was shown."""

    def __init__(self, *command: str) -> None:
        self.said = b""
        self._pid, self.end = pty.fork()
        if self._pid == 0:
            os.chdir(ROOT)
            os.execv(BIN / command[0], command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.end)

    def until_said(self, text: bytes) -> None:
        while text not in self.said:
            try:
                self._read()
            except OSError as error:
                raise AssertionError(f"it ended, and never said {text!r}: {self.said!r}") from error

    def _read(self) -> None:
        assert select([self.end], [], [], 30)[0], self.said
        self.said += os.read(self.end, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.end, keys)

    def exit_code(self) -> int:
        """When it has ended, and said all."""
        with suppress(OSError):  # it has closed its side
            while True:
                self._read()
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
