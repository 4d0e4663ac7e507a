"""Where a build runs, on hosts of the fleet or on this machine, and which of them it is for."""

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Thread

from uwsgi_consul_fleet.build.identity import binary
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import AppHost, Fleet, Host
from uwsgi_consul_fleet.inventory.settings import Settings, nearest
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.ssh.connection import Result

Follow = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """A machine that runs shell scripts as root.

    :param host: of the fleet; None for this machine, with the uWSGI that is on its PATH
    :param is_builder: plugins are compiled here rather than on other machines
    """

    host: Host | None = None
    is_builder: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.host.name if self.host else "this machine"

    @property
    def settings(self) -> Settings | None:
        """They say which uWSGI is meant."""
        return self.host.settings if isinstance(self.host, AppHost) else None

    def run(self, script: str, stdin: bytes = b"", on_line: Follow = lambda line: None) -> Result:
        """Run a script, which finds its own text in ``$SCRIPT``; see :func:`ssh.run_script`.

        :raises FleetError: where the machine can't be reached, or goes away
        """
        if self.host is None:
            return _run_here(script, stdin, on_line)
        with ssh.connect(self.host) as connection:
            return ssh.run_script(connection, script, stdin, on_line)


def _run_here(script: str, stdin: bytes, on_line: Follow) -> Result:
    command = ["env", f"SCRIPT={script}", "sh", "-c", script]
    if os.geteuid() != 0:
        command = ["sudo", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr
        lines: list[str] = []

        def follow(raw_lines: Iterable[bytes]) -> None:
            for raw in raw_lines:
                lines.append(raw.decode(errors="replace"))
                on_line(lines[-1].rstrip("\n"))

        reader = Thread(target=follow, args=(process.stderr,), daemon=True)
        reader.start()
        process.stdin.write(stdin)
        process.stdin.close()
        output = process.stdout.read()
        reader.join()
        return Result(output, "".join(lines), process.wait())


def local(names: Sequence[str]) -> list[Place]:
    """This machine.

    :raises FleetError: where hosts are named as well
    """
    if names:
        raise FleetError("--local is this machine: it does not go together with --host")
    return [Place()]


def of_fleet(fleet: Fleet, names: Sequence[str], inventory: str) -> list[Place]:
    """The application's hosts, and the builders.

    :param names: only these hosts; all where it is empty
    :param inventory: what a message calls the fleet's inventory
    :raises FleetError: where it has no such host
    """
    known = {host.name for host in fleet.app_servers}
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise FleetError(
                f"--host {name}: {inventory} has no host of this name in app_servers{hint}"
            )
    chosen = _each_uwsgi(x for x in fleet.applications if not names or x.name in names)
    builders = (its for host in fleet.builders for its in _building(host, fleet))
    return [*map(Place, chosen), *(Place(its, is_builder=True) for its in builders)]


def _building(builder: Host, fleet: Fleet) -> Iterable[AppHost]:
    """A builder with the uWSGI that its settings say, or else with each that the fleet has."""
    if isinstance(builder.settings, Settings):
        return [builder.having(builder.settings)]
    return _each_uwsgi(builder.having(each.settings) for each in fleet.applications)


def _each_uwsgi(hosts: Iterable[AppHost]) -> Iterable[AppHost]:
    """Several applications of a host may have one uWSGI."""
    return {(each.name, binary(each.settings)): each for each in hosts}.values()
