"""One release takes over from another on this host, or nothing changes."""

from __future__ import annotations

import fcntl
import os
import pwd
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from . import content, health, retire, store, systemd, units, workers
from .consul import Consul, UnavailableError
from .says import ReleaseError, say
from .store import Release

RUN = Path("/run")
HELD = 5  # seconds in which a process that only looks at the lock lets go
PATIENCE = 10  # seconds in which instances may pass again, or an agent come back


def switch(
    consul: Consul,
    app: str,
    generation: str,
    keep: int,
    undo: bool = False,
    back: bool = False,
    without_consul: bool = False,
) -> None:
    """Let a release serve.

    :param keep: how many releases stay on this host
    :param undo: what serves now was a mistake: this host forgets that it served
    :param back: it is rolled back from: the next roll-back goes further back
    :param without_consul: do not wait for what Consul reports
    :raises ReleaseError: where it does not come up; what served before still does
    """
    began = store.now()
    new, old = store.load(app, generation), store.current(app)
    if old and not store.has_served(old):  # the power failed when it had just taken over
        store.record(old)
    if not without_consul:
        health.refuse_others(consul, app, store.first_ids(new))
    retire.give_back(app)
    ran = retire.running(app)
    opened = units.closed_ports(new)
    held: list[str] = []
    with _side_by_side(app).open("w") as lock:
        try:
            _clear_trials(app)
            units.install(new, old)
            if not store.has_served(new):
                _try(new)
            units.open_sockets(new, opened)
            if not without_consul:
                held = health.hold_places(consul, new)
            _replace_by(new, lock, watched=not store.has_served(new), again=old == new)
            if not without_consul:
                _wait_for_consul(consul, new)
        except (ReleaseError, OSError) as error:
            undone = _undo(new, old, opened, ran, lock)
            health.leave_places(consul, new, held)
            raise ReleaseError(f"{error}\n{undone}") from None
    say(f"{new.release} serves on port {_ports(new)}")
    try:
        if undo and old:
            store.forget(old)
        else:
            store.record(new, back, began)
        store.prune(app, keep)
        units.remove_unused(app)
    except (ReleaseError, OSError) as error:  # it serves all the same
        say(f"could not be tidied up: {error}", error=True)


def _ports(release: Release) -> str:
    return ", ".join(str(instance.port) for instance in release.instances)


def _clear_trials(app: str) -> None:
    """What an interrupted switch left."""
    systemd.stop(systemd.active(f"{app}-trial@*.service"))


def _try(new: Release) -> None:
    """Start it where no client is, and see whether it is well and stays so."""
    say(f"{new.release}: tried on a socket of its own")
    try:
        systemd.start([new.trial], new.health_timeout)
        health.wait(new, "trial", new.trial)
        say(f"{new.release}: healthy, watched for {new.min_healthy_time} s")
        health.watch(new, "trial", new.trial)
    except ReleaseError as error:
        raise _told(new, [new.trial], error) from None
    finally:
        systemd.stop([new.trial])


def _told(new: Release, services: list[str], error: ReleaseError) -> ReleaseError:
    """The error with what the release itself said."""
    lines = systemd.journal(services)
    return ReleaseError(f"{lines}\n{new.release} is not fit to serve: {error}")


def _replace_by(new: Release, lock: IO[str], watched: bool, again: bool = False) -> None:
    """Start it beside what serves, which it leaves timers, daemons and the like to until that has
    stopped: the consul plugin looks at this lock (RELEASE_LOCK in the unit). Where it does not come
    up the lock stays held: a rejected release begins none of them until it is gone.

    :param watched: whether its workers must stay up, which nobody can try before
    :param again: it is what serves already
    """
    _hold(lock)
    content.touch(new.folder)
    _start(new)
    began = workers.start_again(new) if again else workers.start(new)
    if watched:
        workers.watch(new, began)
    _take_over(new)
    fcntl.flock(lock, fcntl.LOCK_UN)
    workers.end_others(new)


def _side_by_side(app: str) -> Path:
    """The application's lock of this. Its user must be able to read it, and nobody else: others
    could hold it."""
    path = RUN / f"uwsgi-consul-fleet.switch-{app}"
    path.touch(0o600)
    with suppress(KeyError):
        os.chown(path, 0, pwd.getpwnam(app).pw_gid)
    path.chmod(0o640)
    return path


def _hold(lock: IO[str]) -> None:
    """The application's user can hold it for good: then both do their jobs for a moment."""
    deadline = time.monotonic() + HELD
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return say(
                    f"{lock.name} is held by another process: goes on without it", error=True
                )
            time.sleep(0.05)


def _start(new: Release) -> None:
    """Beside the old one, on the sockets that both hold."""
    try:
        systemd.start(new.services, new.health_timeout)
        for instance in new.instances:
            health.wait(new, instance.port, new.service(instance.port))
    except ReleaseError as error:
        raise _told(new, new.services, error) from None


def _take_over(new: Release) -> None:
    """From here on this host is on the new release, whatever happens to it."""
    store.point_to(new)
    units.enable(new)
    others = [unit for unit in retire.running(new.app) if unit not in new.services]
    # A port that is gone: nobody must start the old release there once it has stopped.
    units.close_sockets(new.app, units.other_ports(new))
    systemd.stop(others)


def _wait_for_consul(consul: Consul, new: Release) -> None:
    try:
        health.wait_for_consul(consul, new)
    except ReleaseError as error:
        raise ReleaseError(f"{systemd.journal(new.services)}\n{error}") from None


# --- Back to how it was --------------------------------------------------------------


def _undo(
    new: Release, old: Release | None, opened: list[int], ran: list[str], lock: IO[str]
) -> str:
    """As if there had been no attempt; says how the host is then."""
    try:
        if old is not None and old.generation == new.generation:
            return _state(old)  # it is the one that should serve: leave it to be looked at
        systemd.abandon(new.services)
        if old is not None and ran:
            _go_back(old, lock)
            _discard(new)
        elif ran:  # by what, nobody knows: leave it alone
            _stop_all(new)
        else:
            _stop(new, old, opened)
            _discard(new)
    except (ReleaseError, OSError) as error:
        return f"{error}\n{_state(old)}: this host needs a look"
    return _state(old)


def _state(old: Release | None) -> str:
    if old is not None and all(systemd.is_active(service) for service in old.services):
        return f"{old.release} still serves"
    return "nothing serves" + (f", and {old.release} should" if old else ", as before")


def _go_back(old: Release, lock: IO[str]) -> None:
    """The old one may run still, or be stopped already; its sockets may be closed."""
    units.install(old)
    units.open_sockets(old, units.closed_ports(old))
    _replace_by(old, lock, watched=False)


def _stop_all(new: Release) -> None:
    its = systemd.active(f"{new.app}-*@{new.generation}.service")
    systemd.stop([*its, *(unit for unit in new.worker_units if unit in workers.running(new.app))])


def _stop(new: Release, old: Release | None, opened: list[int]) -> None:
    """Nothing ran before."""
    if old is None:
        retire.stop(new.app)
        return
    store.point_to(old)
    known = [instance.port for instance in old.instances]
    systemd.stop(f"{new.app}-{port}.socket" for port in opened if port in known)
    _stop_all(new)
    systemd.stop(retire.running(new.app))  # what a connection has started meanwhile
    units.close_sockets(new.app, [port for port in opened if port not in known])


def _discard(new: Release) -> None:
    units.remove_unused(new.app)
    if not store.has_served(new):
        store.discard(new)


def expect_passing(
    consul: Consul, app: str, release: str, allowed: int, instances: list[str]
) -> None:
    """:raises ReleaseError: where more than so many of the instances do not pass on it, and do
    not come back within some seconds"""
    deadline = time.monotonic() + PATIENCE
    index = "0"
    while True:
        try:
            left, index = health.missing(consul, app, release, "", instances, index)
            said = f"no longer passing with {release}: {', '.join(left)}"
        except UnavailableError as error:
            left, index, said = instances, "0", str(error)
            time.sleep(health.INTERVAL)
        if len(left) <= allowed:
            return
        if time.monotonic() > deadline:
            raise ReleaseError(said)
