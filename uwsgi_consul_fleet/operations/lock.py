"""One deploy at a time: a run holds the lock from its first operation to its end.

:func:`guard` follows pyinfra's own callbacks, so that the lock is not an operation
that would show in the results; :func:`require` is one, for what must not go on without it.
"""

import atexit
import signal
from collections.abc import Generator
from functools import cache
from threading import Lock as Mutex
from typing import Any

import click
import gevent
from pyinfra import host, logger
from pyinfra.api import operation
from pyinfra.api.state import BaseStateCallback, StateStage
from pyinfra.context import state as run

from uwsgi_consul_fleet.errors import FleetError, LockedError, LostLockError, UnreachableError
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.lock.lock import Lock
from uwsgi_consul_fleet.lock.session import AND
from uwsgi_consul_fleet.operations.consul import cluster
from uwsgi_consul_fleet.operations.files import fail
from uwsgi_consul_fleet.operations.plan import fleet

ELECTION = 30  # seconds in which a cluster that was just started finds its leader
NEW_LEADER = 10  # seconds in which one that runs does, as after the restart of a server
PATIENCE = 30  # seconds in which Consul must confirm the lock before the next operation
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

__all__ = ["announce", "guard", "missing", "require", "rolled_out"]


class Guard:
    """What this run knows of its lock."""

    def __init__(self) -> None:
        self.lock: Lock | None = None
        self.releases: dict[str, str] = {}
        self.written: set[str] = set()
        self.held = False
        self.interrupted = False
        self._began = False
        self._stop: SystemExit | None = None
        self._required = False
        self._missing = ""
        # Hosts come here side by side.
        self._mutex = Mutex()
        self._is_set_up = False

    def set_up(self) -> None:
        """Once in a run: follow its operations, its signals and its end."""
        with self._mutex:
            if self._is_set_up:
                return
            self._is_set_up = True
            run.add_callback_handler(_Callbacks())  # type: ignore[no-untyped-call]
            for number in SIGNALS:
                signal.signal(number, _interrupted)
            atexit.register(self.end)
            if not run.check_for_changes:  # -y: the first operation begins in a moment
                self.lock = _lock()

    def begin(self) -> None:
        """Before each operation on each host: take the lock, if there is a Consul to hold it.

        :raises SystemExit: where somebody else has it
        """
        with self._mutex:
            if self._stop:
                # gevent throws it into the main greenlet, which a second one would hit while
                # it ends.
                raise gevent.GreenletExit
            try:
                if not self._began:
                    self._take(wait=NEW_LEADER if cluster.change().peers else 0)
                elif self.held and self.lock:
                    self.lock.check(PATIENCE)
            except LockedError as error:
                self._stop = _exit(error.exit_code, f"{error}. Nothing was touched")
                raise self._stop from error
            except LostLockError as error:
                self._stop = _exit(1, f"{error}. Stopped; the same command again goes on")
                raise self._stop from error
            self._began = True

    def require(self) -> str:
        """Why the lock is not held even now, or '' where it is."""
        with self._mutex:
            if not self.held and not self._required:
                self._required = True
                try:
                    self._take(wait=0 if _no_server_is_left() else ELECTION)
                except LockedError as error:
                    self._missing = str(error)
            return "" if self.held else self._missing

    def _take(self, wait: float) -> None:
        self.lock = self.lock or _lock()
        try:
            self.lock.take("deploy", self.releases, wait)
            self.held = True
        except UnreachableError as error:
            # Consul may be what this very run brings or repairs.
            self._missing = str(error)

    def end(self) -> None:
        """When the process ends, however it does: tell the audit, let the lock go."""
        if self.lock is None:
            return
        try:
            if outcome := self._outcome():
                self.lock.finish(outcome, changed=_changed(), failed=_failed(), detail=self._lost())
            else:
                self.lock.release()
        except FleetError as error:
            click.echo(f"--> {error}", err=True)

    def _lost(self) -> str:
        """For the audit: that somebody else may have deployed at the same time."""
        try:
            if self.held and self.lock and not self._stop:
                self.lock.check()
        except LostLockError as error:
            click.echo(f"--> {error}", err=True)
            return str(error)
        return ""

    def _outcome(self) -> str:
        """Empty for a run that found nothing to do."""
        if self.interrupted:
            return "interrupted"
        if self._stop or _failed() or run.current_stage < StateStage.Disconnect:
            return "failed"
        return "ok" if _changed() else ""


def _lock() -> Lock:
    """Asks those Consul servers first that this run could connect to."""
    connected = {host.name for host in run.active_hosts}
    servers = sorted(fleet().consul_servers, key=lambda server: server.name not in connected)
    return Lock(servers)


class _Callbacks(BaseStateCallback):
    @staticmethod
    def operation_host_start(state: Any, host: Any, op_hash: str) -> None:
        _guard().begin()


@cache
def _guard() -> Guard:
    return Guard()


def guard() -> None:
    """Let this run hold the lock from its first operation on. Called for each host, done once."""
    _guard().set_up()


def announce(service: str, release: str) -> None:
    """Name a release that this run brings: whoever is locked out reads it. Hosts with an
    ``app_source`` of their own may bring several of one service."""
    known = _guard().releases
    known[service] = AND.join(sorted({*known.get(service, release).split(AND), release}))


def rolled_out(service: str) -> None:
    """Write down that the announced release is what the service should be on; once, not for
    each host.

    :raises LostLockError: where the lock is gone
    :raises UnreachableError: where Consul does not answer
    """
    found = _guard()
    if found.lock and service not in found.written:
        found.written.add(service)
        found.lock.expect({service: found.releases[service]})


def missing() -> str:
    """Why this run does not hold the lock, even now that Consul runs; '' where it does."""
    return _guard().require()


@operation()
def require(me: Host) -> Generator[Any, None, None]:
    """Fail the host where the run cannot acquire the lock, now that Consul runs."""
    if run.is_executing and (reason := missing()):
        yield fail(f"{me.name}: the application was left as it is: {reason}")
    else:
        host.noop("this run holds the lock")


def _interrupted(number: int, _frame: Any) -> None:
    """Ctrl-C and the like: an end like any other, with an exit status that says so."""
    found = _guard()
    found.interrupted = run.is_executing
    what = signal.Signals(number).name
    left = "hosts finish what they are in the middle of; the same command again goes on"
    stop = _exit(128 + number, f"{what}: {left if run.is_executing else 'nothing was touched'}")
    hub = gevent.get_hub()
    if gevent.getcurrent() is hub.parent:
        raise stop
    # Other greenlets, paramiko's among them, may catch what is raised in them.
    hub.loop.run_callback(hub.parent.throw, stop)


def _exit(code: int, message: str) -> SystemExit:
    click.echo(err=True)
    logger.error(f"--> {message}")
    return SystemExit(code)


def _no_server_is_left() -> bool:
    """Whether this very run failed on each of them."""
    return {server.name for server in fleet().consul_servers} <= set(_failed())


def _changed() -> list[str]:
    """Hosts on which an operation did something, whether or not it went well."""
    return sorted(
        host.name
        for host, operations in run.ops.items()
        if any(data.operation_meta._commands for data in operations.values())
    )


def _failed() -> list[str]:
    return sorted(host.name for host in run.failed_hosts)
