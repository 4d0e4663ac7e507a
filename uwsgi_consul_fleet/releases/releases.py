"""The releases on the hosts."""

import json
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.consul.access import access
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.host.store import Worker
from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.inventory.model import AppHost, Fleet, Host
from uwsgi_consul_fleet.ssh import connection as ssh


@dataclass(frozen=True)
class Generation:
    """A release on a host with everything it runs with there; ``since`` when it serves or last
    served, None if it never did.

    ``settings`` is a hash of what it runs with, the same on each host with the same settings;
    ``instances`` are the service ids that it registers, ``workers`` its other processes;
    ``previous`` is that to which a roll-back goes; ``content`` is the digest of its bytes, '' where
    a version before 0.3 made it.
    """

    name: str
    release: str
    settings: str
    instances: tuple[str, ...]
    current: bool
    since: str | None
    previous: bool = False
    content: str = ""
    workers: tuple[Worker, ...] = ()

    @property
    def alone(self) -> set[str]:
        """The kinds of its workers of which only one may run in the fleet."""
        return {each.kind for each in self.workers if not each.overlap}


@dataclass(frozen=True)
class HostReleases:
    """What a host has, the one that serves first; or why that is not known."""

    host: AppHost
    generations: tuple[Generation, ...]
    problem: str = ""

    @property
    def current(self) -> Generation | None:
        return next((each for each in self.generations if each.current), None)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        rows = [asdict(each) for each in self.generations]
        releases = [{"generation": row.pop("name"), **row} for row in rows]
        at = {"node": self.host.name, "service": self.host.app}
        return {**at, "releases": releases, "problem": self.problem}


def read(fleet: Fleet, settled: bool = False) -> list[HostReleases]:
    """Ask every host about each of its applications, side by side.

    :param settled: when it has ended what an interrupted run began there, for a minute at most
    """
    hosts = fleet.applications
    with ssh.side_by_side(len(hosts)) as pool:
        return pool.map(lambda host: _read(host, settled), hosts)


def carried(host: Host, *words: str) -> tuple[str, bytes]:
    """A script that runs this version's program on a host with these words, since the one there may
    know less; and what it reads first."""
    shown = access(host)
    script = f"exec {shlex.join([*host_program.carried(), *shown.words, *words])}"
    return script, shown.stdin.encode()


def ask(host: Host, *words: str) -> dict[str, Any]:
    """What this version's program says on a host, as JSON; nothing where it fails, or the host
    can't be asked."""
    script, stdin = carried(host, *words)
    try:
        with ssh.connect(host) as connection:
            result = ssh.run_script(connection, script, stdin)
    except UnreachableError:
        return {}
    return dict(json.loads(result.stdout)) if result.exit_code == 0 else {}


def _read(host: AppHost, settled: bool) -> HostReleases:
    # This version's: the one there may know less.
    ask = shlex.join([*host_program.carried(), "list", host.app])
    wait = host_program.SETTLED if settled else ""
    script = f"[ -e {PROGRAM} ] || exit 0\n{wait}exec {ask}"
    try:
        with ssh.connect(host) as connection:
            result = ssh.run_script(connection, script)
    except UnreachableError as error:
        return HostReleases(host, (), str(error))
    if result.exit_code:
        return HostReleases(host, (), f"{host.name}: {result.stderr.strip()}")
    if not result.stdout:
        return HostReleases(host, (), f"{host.name}: nothing was deployed to it")
    rows = json.loads(result.stdout)
    return HostReleases(host, tuple(map(_generation, rows)))


def _generation(row: dict[str, Any]) -> Generation:
    """As the program on a host prints it."""
    instances = tuple(row.pop("instances"))
    workers = tuple(Worker(**each) for each in row.pop("workers"))
    return Generation(name=row.pop("generation"), instances=instances, workers=workers, **row)
