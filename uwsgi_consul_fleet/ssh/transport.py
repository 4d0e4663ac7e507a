"""The wire under a connection: a socket, a command, or a channel of another connection."""

import os
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from threading import Thread
from typing import IO, Any

import paramiko

from uwsgi_consul_fleet.ssh import hostkeys
from uwsgi_consul_fleet.ssh.options import Options

# A host that lost its power or its network says nothing: after half a minute it is given up.
# Seconds, but for the last, which are milliseconds.
VANISHED = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 30_000,
}
# The same where the socket leads to something between us: seconds between two questions, and
# how many of these may pass without an answer.
QUESTION = 10
UNANSWERED = 3


class Transport(paramiko.Transport):
    """Asks for a key by which the host is known, and says that a connection is lost in a way that
    callers of paramiko expect.

    Where the other side has gone, paramiko raises a bare EOFError, which is not an OSError and
    which pyinfra 3.10 does not catch: the whole run would end there.
    """

    def __init__(self, options: Options, wire: Any, **kwargs: Any) -> None:
        super().__init__(wire, **kwargs)
        known = hostkeys.known_kinds(options)
        if "ssh-rsa" in known:  # the keys' name; these are the signatures' now
            known |= {"rsa-sha2-256", "rsa-sha2-512"}
        offered = self.get_security_options()
        offered.key_types = sorted(offered.key_types, key=lambda kind: kind not in known)

    def open_channel(self, *args: Any, **kwargs: Any) -> paramiko.Channel:
        try:
            return super().open_channel(*args, **kwargs)
        except EOFError as error:
            raise paramiko.SSHException("connection lost") from error


class Command(socket.socket):
    """A socket with a ProxyCommand at its other end, as ssh has it.

    Paramiko's own class reads on for ever when the command ends.
    """

    def __init__(self, command: str) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            os.set_blocking(theirs.fileno(), True)  # which gevent's sockets are not
            # The operator's own configuration says so, and ssh runs it just like that.
            self._process = subprocess.Popen(
                [os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._said,
                start_new_session=True,
            )

    def last_words(self) -> str:
        """The last line that it complained with."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        super().close()
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)


def dial(options: Options) -> socket.socket:
    """A TCP connection to the first of a host's addresses that takes one.

    :raises OSError: the last one's reason
    """
    reason: OSError | None = None
    kind = socket.SOCK_STREAM
    for entry in socket.getaddrinfo(options.host, options.port, options.family, kind):
        found = socket.socket(entry[0], kind)
        found.settimeout(options.timeout)
        try:
            found.connect(entry[4])
            return _awake(found)
        except OSError as error:
            found.close()
            reason = error
    raise reason or OSError(f"no address of {options.host}")


def _awake(found: socket.socket) -> socket.socket:
    """Small packets are sent at once, and a host that goes away is noticed.

    Paramiko leaves Nagle's algorithm on, and its many small writes then wait for
    delayed acknowledgements: 50 ms for a command instead of 15.
    """
    for name, value in {"TCP_NODELAY": 1, **VANISHED}.items():
        if hasattr(socket, name):  # some are Linux's alone
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return found


def watch(transport: paramiko.Transport, interval: float, count: int) -> None:
    """Ask the host now and then whether it is there, and give the connection up if it is not:
    where a command or a jump host is between, its silence is nobody else's business.

    :param interval: seconds between two questions
    :param count: so many of them may go without an answer
    """

    def ask() -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            transport.global_request("keepalive@openssh.com")

    def go_on() -> None:
        while transport.is_active():
            question = Thread(target=ask, daemon=True)
            question.start()
            question.join(interval * count)
            if question.is_alive():
                transport.close()
            time.sleep(interval)

    Thread(target=go_on, daemon=True).start()
