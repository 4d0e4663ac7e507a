"""A script on a host with the operator's terminal at its other end."""

import codecs
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import select
from typing import Any

import paramiko
from fabric import Connection

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.ssh import root
from uwsgi_consul_fleet.ssh.client import LOST


def is_there() -> bool:
    """Whether a person sits at both ends of this process."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def attach(connection: Connection, script: str, ready: str, first: bytes) -> int:
    """Run a script as root; returns its exit status.

    :param ready: what it says when it is ready for its first line; what comes before is shown only
        where that does not come
    :param first: that line
    :raises UnreachableError: where it can't become root, or the connection is lost
    """
    options = connection.client.options
    name = f"{options.name} ({options.host})"
    try:
        channel = connection.transport.open_session()
        channel.get_pty(os.environ.get("TERM", "xterm"), *_size())
        channel.exec_command(root.command(options.root, script))
        said = _become_root(channel, root.Dialog(options), name)
        while ready not in said and (received := channel.recv(4096)):
            said += received.decode(errors="replace")
        if ready not in said:
            print(said.strip(), file=sys.stderr)
        else:
            channel.sendall(first)
            with _raw():
                _shuttle(channel, said.partition(ready)[2].lstrip("\r\n"))
        code: int = channel.recv_exit_status()
    except LOST as error:
        raise UnreachableError(f"{name}: connection lost: {error}") from error
    if code == -1:
        raise UnreachableError(f"{name}: connection lost")
    return code


def _become_root(channel: paramiko.Channel, dialog: root.Dialog, name: str) -> str:
    """What it says behind that."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while not dialog.user and (received := channel.recv(4096)):
        answer, said = dialog.hear(decoder.decode(received).replace("\r\n", "\n"))
        if answer:
            channel.sendall(answer.encode())
    if not dialog.begun:
        raise UnreachableError(f"{name}: cannot become root: {dialog.reason()}")
    return said


def _size() -> tuple[int, int]:
    """Columns and lines, whatever the environment says of them."""
    found = os.get_terminal_size(0)
    return (found.columns, found.lines) if all(found) else (80, 24)


@contextmanager
def _raw() -> Iterator[None]:
    """Each key goes to the host, Ctrl-C too."""
    before = termios.tcgetattr(0)
    # Who ends this process must not leave a terminal behind that shows no key.
    ended = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    tty.setraw(0, termios.TCSADRAIN)  # what was typed meanwhile stays
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, ended)


@contextmanager
def _woken() -> Iterator[int]:
    """What can be read when a signal came: the terminal has got another size, or this process is
    to end. Python's handlers run when select has returned, and a signal that comes just before it
    begins, or in another thread, would not end it."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    wakes = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        yield ours
    finally:
        signal.signal(signal.SIGWINCH, before)
        signal.set_wakeup_fd(wakes)
        os.close(ours)
        os.close(theirs)


def _shuttle(channel: paramiko.Channel, said: str) -> None:
    """Until the other end has nothing more to say."""
    _write(said.encode())
    with _woken() as woken:
        ends: list[Any] = [channel, 0, woken]
        while True:
            readable = select(ends, [], [])[0]
            if woken in readable:
                os.read(woken, 4096)
                with suppress(paramiko.SSHException):  # it has just ended
                    channel.resize_pty(*_size())
            if channel in readable:
                if not (received := channel.recv(65536)):
                    return
                _write(received)
            if 0 in readable:
                if typed := os.read(0, 4096):
                    channel.sendall(typed)
                else:
                    ends.remove(0)


def _write(text: bytes) -> None:
    while text:
        try:
            text = text[os.write(1, text) :]
        except BlockingIOError:  # somebody else has made it so
            select([], [1], [])
