"""The process that keeps the lock (keeper.py), as the run beside it sees it."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock as Mutex
from typing import Any

from uwsgi_consul_fleet.host.lock_session import Message

FAREWELL = 5.0  # seconds that it has to end


class Handle:
    """Started at once; it connects to nothing before it is told where."""

    def __init__(self) -> None:
        self._count = 0
        self.told = False
        self._mutex = Mutex()
        self._buffer = b""
        self._socket, theirs = socket.socketpair()
        with theirs:
            # In a session of its own: Ctrl-C and a closed terminal are for us to deal with.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uwsgi_consul_fleet.lock.keeper"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def go_to(self, *servers: Message) -> None:
        """Tell it where to connect to, the first one first; again, where more is known.

        :param servers: the fields of keeper.py's `Server`, without functions
        """
        self.told = True
        self.send({"servers": servers})

    def send(self, message: Message) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def ask(self, message: Message, timeout: float) -> Message:
        """Its answer; where it gives none, the state in it is ``unreachable`` or ``lost``."""
        with self._mutex:
            self._count += 1
            try:
                self.send({**message, "number": self._count})
                deadline = time.monotonic() + timeout
                while (reply := self._receive(deadline)).get("number") != self._count:
                    pass  # an answer that came too late
                return reply
            except TimeoutError:
                return {"state": "unreachable", "reason": "no Consul server answers"}
            except (OSError, EOFError):
                return {"state": "lost", "reason": "the process that keeps it is gone"}

    def _receive(self, deadline: float) -> Message:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            received = self._socket.recv(65536)
            if not received:
                raise EOFError
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: Message = json.loads(line)
        return reply

    def end(self) -> None:
        self._socket.close()
        try:
            self._process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_ready: list[Handle] = []


def prepare() -> None:
    """Have one started: it takes as long to load as a run of nothing else takes to begin."""
    _ready.append(Handle())


def reached(server: str, data: Mapping[str, Any]) -> None:
    """A Consul server to which the run has connected: one that was prepared connects to the first
    of them while the run goes on to load what it is made of, as this takes as long. What is to be
    shown to its Consul is not known yet: it says nothing there before :meth:`Handle.go_to`.

    :param data: see `options.plain`
    """
    if _ready and not _ready[-1].told:
        with suppress(OSError):  # who asks it will notice that it is gone
            _ready[-1].go_to({"name": server, "data": data, "stdin": None})


def get() -> Handle:
    """The one that was prepared, or a new one."""
    return _ready.pop() if _ready else Handle()
