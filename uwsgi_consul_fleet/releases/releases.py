"""The releases on the hosts, and going back to one of them."""

import json
import shlex
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fabric import Connection

from uwsgi_consul_fleet.errors import FleetError, LostLockError, RollbackError, UnreachableError
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.lock import lock
from uwsgi_consul_fleet.releases.batches import batches
from uwsgi_consul_fleet.releases.rollout import Rollout, Step
from uwsgi_consul_fleet.ssh import connection as ssh

# On each host; see uwsgi_consul_fleet/host.
PROGRAM = "/opt/uwsgi-consul-fleet/release"
PATIENCE = 30  # seconds in which Consul must confirm the lock before the next batch


@dataclass(frozen=True)
class Release:
    """A release on a host; ``since`` when it serves or last served, None if it never did.

    ``settings`` is a hash of what it runs with, the same on each host with the same settings;
    ``instances`` are the service ids that it registers.
    """

    generation: str
    release: str
    settings: str
    instances: tuple[str, ...]
    current: bool
    since: str | None


@dataclass(frozen=True)
class HostReleases:
    """The releases of a host, the one that serves first; or why they are not known."""

    host: Host
    releases: tuple[Release, ...]
    problem: str = ""

    @property
    def current(self) -> Release | None:
        return next((release for release in self.releases if release.current), None)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        releases = [asdict(release) for release in self.releases]
        return {"node": self.host.name, "releases": releases, "problem": self.problem}


def read(fleet: Fleet) -> list[HostReleases]:
    """Ask every host, side by side."""
    hosts = fleet.app_servers
    with ssh.side_by_side(len(hosts)) as pool:
        return pool.map(_read, hosts)


def _read(host: Host) -> HostReleases:
    script = f"[ ! -e {PROGRAM} ] || {shlex.join([PROGRAM, 'list', host.settings.app_name])}"
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
    found = (Release(**{**row, "instances": tuple(row["instances"])}) for row in rows)
    return HostReleases(host, tuple(found))


# --- Going back ----------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a host goes back to."""

    found: HostReleases
    release: Release


def targets(found: Sequence[HostReleases], name: str) -> list[Target]:
    """Which release each host goes back to. One that can't be asked is left out: in an hour
    of need the others must not wait for it. So is an application without a release of the name.

    :param name: a release, or with the hash of its settings behind it; '' for the one before
    :raises FleetError: where a host does not have it, or the hosts would part
    """
    asked = [each for each in found if not each.problem]
    if not asked:
        raise FleetError("\n".join([*(each.problem for each in found), "nothing was changed"]))
    by_settings = {
        (each.host.settings.app_name, release.release)
        for each in asked
        for release in each.releases
        if release.since and name == f"{release.release}-{release.settings}"
    }
    chosen = [(each, _choose(each, name, by_settings)) for each in asked]
    affected = {each.host.settings.app_name for each, release in chosen if release}
    missing = [
        each.host.name
        for each, release in chosen
        if release is None and (not affected or each.host.settings.app_name in affected)
    ]
    # A host that joined since has none before; that is told when the others are back.
    if missing and (name or not affected):
        raise FleetError(_missing(asked, missing, name))
    result = [Target(each, release) for each, release in chosen if release is not None]
    for app in affected:
        _refuse_to_part([t for t in result if t.found.host.settings.app_name == app])
    return result


def _missing(asked: Sequence[HostReleases], missing: Sequence[str], name: str) -> str:
    what = f"no release {name}" if name else "no release before the one that serves"
    there = sorted({release.release for each in asked for release in each.releases})
    return (
        f"{', '.join(missing)}: {what}; there is: {', '.join(there) or 'none'}. Nothing was "
        "changed; deploy it instead: pyinfra --data release=NAME …"
    )


def _refuse_to_part(targets: Sequence[Target]) -> None:
    """:raises FleetError: where the hosts of an application would go to different releases"""
    if len({target.release.release for target in targets}) > 1:
        listing = ", ".join(f"{t.release.release} on {t.found.host.name}" for t in targets)
        raise FleetError(f"the hosts would part: {listing}; name a release. Nothing was changed")


def _choose(
    found: HostReleases, name: str, by_settings: Container[tuple[str, str]]
) -> Release | None:
    """The latest that served under this name; without one, the latest that served before.

    :param by_settings: what the name means with the hash of some host's settings behind it
    """
    served = [release for release in found.releases if release.since]
    if not name:
        return next((release for release in served if not release.current), None)
    for release in served:
        if name in (release.release, f"{release.release}-{release.settings}"):
            return release
    # A host with settings of its own: there is no doubt where it has one of the name alone.
    app = found.host.settings.app_name
    alike = [release for release in served if (app, release.release) in by_settings]
    return alike[0] if len(alike) == 1 else None


def rollback(fleet: Fleet, name: str = "") -> None:
    """Switch the hosts, batch after batch, under the fleet's lock.

    :param name: a release, or with the hash of its settings behind it; '' for the one before
    :raises FleetError: see :func:`targets`; nothing was changed
    :raises LockedError: where another run holds it; nothing was changed
    :raises RollbackError: where a host failed, and all of them are as before; or where one was
        left out because it can't be asked
    """
    found = read(fleet)
    chosen = targets(found, name)
    _switch_all(fleet, chosen)
    back = {target.found.host.name for target in chosen}
    left_out = [
        each.problem or f"{each.host.name}: has no release before the one that serves"
        for each in found
        # Without a problem and with a name: another application, which was not meant.
        if each.host.name not in back and (each.problem or not name)
    ]
    if left_out:
        raise RollbackError("\n".join([*left_out, "left out; the other hosts went back"]))


def _switch_all(fleet: Fleet, chosen: Sequence[Target]) -> None:
    wanted = {t.found.host.settings.app_name: t.release.release for t in chosen}
    with lock.take(fleet, "rollback", wanted) as held:
        rollout = Rollout()
        by_name = {target.found.host.name: target for target in chosen}
        for batch in batches(fleet):
            try:
                held.check(PATIENCE)
            except LostLockError as error:
                raise RollbackError(f"{error}; invoke releases shows what serves") from error
            _switch_batch(rollout, [by_name[h.name] for h in batch.hosts if h.name in by_name])
        names = [target.found.host.name for target in chosen if not _is_on(target)]
        try:
            held.expect(wanted)
            held.finish("ok", changed=names)
        except FleetError as error:
            raise RollbackError(f"the hosts went back, but: {error}") from error


def _is_on(target: Target) -> bool:
    return target.found.current == target.release


def _switch_batch(rollout: Rollout, targets: list[Target]) -> None:
    with ssh.side_by_side(len(targets)) as pool:
        fine = pool.map(lambda target: _switch(rollout, target), targets)
    if not all(fine):
        raise RollbackError(
            f"the roll-back stopped {rollout.stopped}; invoke releases shows what serves"
        )


def _switch(rollout: Rollout, target: Target) -> bool:
    host, now = target.found.host, target.found.current
    if _is_on(target):
        _log(host, f"{target.release.release} serves already")
        return True

    def execute(words: Sequence[str]) -> bool:
        try:
            with ssh.connect(host) as connection:
                return _execute(connection, host, words)
        except UnreachableError as error:
            _log(host, str(error))
            return False

    step = Step(
        host=host,
        before=now.generation if now else "",
        after=target.release.generation,
        release=target.release.release,
        instances=target.release.instances,
        execute=execute,
        log=lambda line: _log(host, line),
    )
    return rollout.run(step)


def _execute(connection: Connection, host: Host, words: Sequence[str]) -> bool:
    script = f"exec {shlex.join([PROGRAM, *words])} >&2"
    result = ssh.run_script(connection, script, on_line=lambda line: _log(host, line))
    return result.exit_code == 0


def _log(host: Host, line: str) -> None:
    print(f"[{host.name}] {line}", flush=True)
