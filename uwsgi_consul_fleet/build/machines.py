"""Where a build runs: on hosts of the fleet, or on this machine."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import IO, Protocol

from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.ssh.connection import Result

Follow = Callable[[str], None]


class Machine(Protocol):
    """Runs shell scripts as root."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def run(self, script: str, stdin: bytes = b"", on_line: Follow = lambda line: None) -> Result:
        """Run a script, which finds its own text in ``$SCRIPT``; see :func:`ssh.run_script`.

        :raises FleetError: where the machine can't be reached, or goes away
        """


@dataclass(frozen=True)
class Remote:
    """A host of the fleet."""

    host: Host

    @property
    def name(self) -> str:
        return self.host.name

    def run(self, script: str, stdin: bytes = b"", on_line: Follow = lambda line: None) -> Result:
        with ssh.connect(self.host) as connection:
            return ssh.run_script(connection, script, stdin, on_line)


@dataclass(frozen=True)
class Local:
    """This machine."""

    name: str = "this machine"

    def run(self, script: str, stdin: bytes = b"", on_line: Follow = lambda line: None) -> Result:
        command = ["env", f"SCRIPT={script}", "sh", "-c", script]
        if os.geteuid() != 0:
            command = ["sudo", *command]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin and process.stdout and process.stderr
            lines: list[str] = []
            reader = Thread(target=_follow, args=(process.stderr, lines, on_line), daemon=True)
            reader.start()
            process.stdin.write(stdin)
            process.stdin.close()
            output = process.stdout.read()
            reader.join()
            return Result(output, "".join(lines), process.wait())


def _follow(stream: IO[bytes], lines: list[str], on_line: Follow) -> None:
    for raw in stream:
        line = raw.decode(errors="replace")
        lines.append(line)
        on_line(line.rstrip("\n"))
