"""This process stands for a command on a host: what it reads, what it says, and signals."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Self

from fabric import Connection
from paramiko import Channel

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.ssh.client import LOST
from uwsgi_consul_fleet.ssh.connection import run_script

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def feed(channel: Channel, first: bytes) -> None:
    """Let it read this, and then our standard input."""
    with suppress(*LOST):  # or our own input, which may be closed
        channel.sendall(first)
        while piece := os.read(0, 65536):
            channel.sendall(piece)
    with suppress(*LOST):
        channel.shutdown_write()


def complain(line: str) -> None:
    """Say something on standard error, at once."""
    print(line, file=sys.stderr, flush=True)


class Through:
    """Output as it is."""

    def writelines(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


class Signals:
    """Ctrl-C and the like go to the commands on the hosts, and this process waits for their end.

    ``received`` is the number of the first; a command that has not begun begins no more.
    """

    def __init__(self) -> None:
        self.received = 0
        self._reached: dict[str, Connection] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def reach(self, connection: Connection, script: str) -> Iterator[None]:
        """Here they go to a command, by a script that finds the name in ``$signal``."""
        self._reached[script] = connection
        try:
            yield
        finally:
            del self._reached[script]

    def _pass_on(self, number: int, _frame: object) -> None:
        # Who asks again means it.
        name = signal.Signals(number).name if not self.received else "SIGKILL"
        self.received = self.received or number
        for script, connection in [*self._reached.items()]:
            words = (connection, f"signal={name}\n{script}")
            Thread(target=_kill, args=words, daemon=True).start()


def _kill(connection: Connection, script: str) -> None:
    with suppress(UnreachableError):
        run_script(connection, script)
