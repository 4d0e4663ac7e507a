"""Commands that begin where Python has imported what they need.

A run of the tests starts `pyinfra` and `invoke` more than a thousand times, and more than half of
what they take of a processor goes into the same imports. Here a process imports them once, and
each command is a fork of it: the same script, with arguments, a folder and output of its own.
What is to be watched, interrupted or killed is started as an operator starts it, as is what
demos and wheels are tested with.

Run as a program it is that process: warm.py SCRIPT DESCRIPTOR; it ends with the other end of the
socket that the descriptor is.
"""

from __future__ import annotations

import _socket
import json
import os
import posix
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from runpy import run_path
from typing import NamedTuple, NoReturn

LONGEST = 1 << 16  # bytes of a command
PACKAGE = "uwsgi_consul_fleet"
# What each of the scripts imports before it has looked at its arguments, or soon after.
IMPORTS = {
    "pyinfra": ["pyinfra_cli.main", f"{PACKAGE}.operations"],
    "invoke": [
        "invoke.main",
        f"{PACKAGE}.commands",
        f"{PACKAGE}.inventory.reading",
        f"{PACKAGE}.ssh.strangers",
        f"{PACKAGE}.verify",
        "multiprocessing.pool",
    ],
}


class Server(NamedTuple):
    """The process for a script, and the environment in which it has imported everything."""

    socket: socket.socket
    environment: Mapping[str, str]


_servers: dict[str, Server] | None = None


@contextmanager
def commands() -> Iterator[None]:
    """Meanwhile, :func:`run` runs what it can, by processes of its own: one may be in another."""
    global _servers
    before, mine = _servers, dict[str, Server]()
    _servers = mine
    try:
        yield
    finally:
        for server in mine.values():
            server.socket.close()
        _servers = before


def run(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str] | None:
    """A command's status and what it printed; None where it has to be started, as when modules
    that are imported may depend on where or in which environment it is.

    :param words: the path of a script, and its arguments
    """
    script = Path(words[0]).name
    lasting = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
    if _servers is None or script not in IMPORTS:
        return None
    if (cwd / PACKAGE).exists() and str(cwd) != environment.get("PYTHONPATH"):
        return None
    server = _servers.get(script) or _servers.setdefault(script, _start(script, lasting))
    return _ask(server, words, cwd) if server.environment == lasting else None


def _start(script: str, environment: Mapping[str, str]) -> Server:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, script, str(theirs.fileno())]
        subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL
        )
    return Server(ours, environment)


def _ask(server: Server, words: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    message = json.dumps([*words, str(cwd)]).encode()
    assert len(message) <= LONGEST
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        with theirs:
            descriptors = [0, stdout.fileno(), stderr.fileno(), theirs.fileno()]
            socket.send_fds(server.socket, [message], descriptors)
        status = ours.recv(16)
        assert status, f"what runs {words} has ended"
        printed = []
        for file in (stdout, stderr):
            file.seek(0)
            printed.append(file.read())
    return subprocess.CompletedProcess([*words], int(status), *printed)


# --- In the process for a script, which calls nothing that an import may have patched ---------


def _serve(script: str, descriptor: int) -> None:
    """Returns in each fork, which is to run the script."""
    sys.argv = [script]  # what is ours in pyinfra's process begins there alone
    _import(IMPORTS[script])
    control = _socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that tell
    while True:
        message, told = _hear(control)
        if not message:
            posix._exit(0)
        *streams, teller = told
        if posix.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if child := posix.fork():
                _tell(child, teller)
            posix.close(teller)
            for number, stream in enumerate(streams):
                posix.dup2(stream, number)
                posix.close(stream)
            return _become(*json.loads(message))
        for each in told:
            posix.close(each)


def _import(names: Sequence[str]) -> None:
    """Packages with all of their modules but those that are programs."""
    for name in names:
        module = import_module(name)
        for found in walk_packages(getattr(module, "__path__", ()), f"{name}."):
            if not found.name.endswith("__main__"):
                import_module(found.name)


def _hear(control: _socket.socket) -> tuple[bytes, list[int]]:
    """A command, and the descriptors that come with it."""
    message, ancillary, _, _ = control.recvmsg(LONGEST, _socket.CMSG_SPACE(4 * 4))
    return message, [each for _, _, data in ancillary for each in memoryview(data).cast("i")]


def _tell(child: int, teller: int) -> NoReturn:
    _, status = posix.waitpid(child, 0)
    posix.write(teller, str(posix.waitstatus_to_exitcode(status)).encode())
    posix._exit(0)


def _become(*command: str) -> None:
    *words, cwd = command
    os.chdir(cwd)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    if Path(words[0]).name == "pyinfra":
        # At the import of pyinfra_cli there was none yet.
        from uwsgi_consul_fleet.pyinfra_cli import take_command_line

        take_command_line()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
    run_path(sys.argv[0], run_name="__main__")
