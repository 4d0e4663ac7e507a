"""A command beside the instances, in the release that serves."""

import os
import shlex
import sys
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Thread
from uuid import uuid4

from fabric import Connection

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.host.execution import READY
from uwsgi_consul_fleet.host.store import pointer
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.ssh import terminal
from uwsgi_consul_fleet.ssh.through import Signals, Through, complain, feed

FAILED = 255  # as ssh has it, where the command could not be run
# It may not have begun.
KILL = """\
for _ in 1 2 3 4 5 6 7 8 9; do
    systemctl kill --signal="$signal" {unit} 2>/dev/null && break
    sleep 0.5
done
"""


@dataclass(frozen=True)
class Command:
    """What is to be run, for an application; ``who`` is told to the host's journal."""

    app: str
    words: Sequence[str]
    who: str

    @property
    def line(self) -> bytes:
        """As the host program reads it: quoted for a shell, as it was typed byte by byte."""
        return b64encode(os.fsencode(shlex.join(self.words))) + b"\n"

    def script(self, unit: str, *options: str) -> str:
        """What runs it on a host, in a unit of this name."""
        program = (*host_program.carried(), "exec", *options, self.app, unit, self.who)
        return f"exec {shlex.join(program)}"


def first(hosts: Sequence[Host], app: str) -> Host:
    """The first that can be reached and serves the application.

    :raises UnreachableError: where none does
    """
    problems = []
    for host in hosts:
        try:
            with ssh.connect(host) as connection:
                asked = ssh.run_script(connection, f"[ -e {shlex.quote(str(pointer(app)))} ]")
            if not asked.exit_code:
                return host
            problems.append(f"{host.name}: {app}: no release serves on it")
        except UnreachableError as error:
            problems.append(str(error))
    raise UnreachableError("\n".join(problems))


def run(hosts: Sequence[Host], command: Command) -> int:
    """On these hosts; returns the worst exit status.

    :raises UnreachableError: where the only one can't be asked
    """
    if len(hosts) > 1:
        return side_by_side(hosts, command)
    return (interactively if terminal.is_there() else alone)(hosts[0], command)


def interactively(host: Host, command: Command) -> int:
    """With this terminal; returns its exit status.

    :raises UnreachableError: where the host can't be asked
    """
    with ssh.connect(host) as connection:
        script = command.script(_unit(), "--terminal")
        return terminal.attach(connection, script, READY, command.line)


def alone(host: Host, command: Command) -> int:
    """On one host, with this process's standard input and output; returns its exit status.

    :raises UnreachableError: where the host can't be asked
    """
    with Signals() as signals, ssh.connect(host) as connection:
        return _run(connection, command, signals, Through(), complain, feeds=True)


def side_by_side(hosts: Sequence[Host], command: Command) -> int:
    """On several, with nothing to read, each line behind its host; the worst exit status."""
    width = max(len(host.name) for host in hosts) + 2
    with Signals() as signals, ssh.side_by_side(len(hosts)) as pool:

        def run(host: Host) -> int:
            prefix = f"{f'[{host.name}]':{width}} "

            def told(line: str) -> None:
                complain(prefix + line)

            try:
                with ssh.connect(host) as connection:
                    code = _run(connection, command, signals, _Lines(prefix), told)
            except UnreachableError as error:
                complain(str(error))
                return FAILED
            if code:
                told(f"exit status {code}")
            return code

        return max(pool.map(run, hosts))


def _run(
    connection: Connection,
    command: Command,
    signals: Signals,
    output: ssh.Writer,
    errors: ssh.Follow,
    feeds: bool = False,
) -> int:
    unit = _unit()
    with signals.reach(connection, KILL.format(unit=unit)):
        if signals.received:
            return 128 + signals.received
        running = ssh.Running(connection, command.script(unit), errors)
        running.begin()
        if feeds:
            Thread(target=feed, args=(running.channel, command.line), daemon=True).start()
        return running.finish(None if feeds else command.line, output).exit_code


def _unit() -> str:
    return f"uwsgi-consul-fleet-exec-{uuid4().hex[:12]}.service"


class _Lines:
    """Output line by line, each behind a prefix, and otherwise as it is."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()

    def writelines(self, pieces: Iterable[bytes]) -> None:
        begun: list[bytes] = []  # what came of a line that may be long
        for piece in pieces:
            first, *more = piece.split(b"\n")
            begun.append(first)
            for each in more:
                self._show(begun)
                begun = [each]
        if any(begun):
            self._show(begun)

    def _show(self, parts: Iterable[bytes]) -> None:
        # In one, because other hosts' lines come side by side.
        sys.stdout.buffer.write(b"".join([self._prefix, *parts, b"\n"]))
        sys.stdout.buffer.flush()
