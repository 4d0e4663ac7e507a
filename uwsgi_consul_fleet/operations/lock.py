"""One deploy at a time: a run holds the lock from its first operation to its end.

:func:`look` follows pyinfra's own callbacks, so that the lock is not an operation
that would show in the results; :func:`require` is one, for what must not go on without it.
"""

import atexit
import signal
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from threading import Lock as Mutex
from typing import Any, NoReturn

import click
import gevent
from pyinfra import host, logger
from pyinfra.api import operation

from uwsgi_consul_fleet import durations
from uwsgi_consul_fleet.errors import (
    FleetError,
    LockedError,
    LostLockError,
    RefusedError,
    UnreachableError,
)
from uwsgi_consul_fleet.hooks import Frame
from uwsgi_consul_fleet.host.lock_session import AND
from uwsgi_consul_fleet.lock.lock import PATIENCE, Lock
from uwsgi_consul_fleet.operations import hooks, ownership
from uwsgi_consul_fleet.operations.consul import cluster, secrets
from uwsgi_consul_fleet.operations.files import fail
from uwsgi_consul_fleet.operations.run import AppHere, Here, Run
from uwsgi_consul_fleet.ownership.identity import ForeignError
from uwsgi_consul_fleet.releases.rule import Content

ELECTION = 30  # seconds in which a cluster that was just started finds its leader
NEW_LEADER = 10  # seconds in which one that runs does, as after the restart of a server
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

__all__ = ["announce", "guard", "look", "missing", "require", "rolled_out"]


class Guard:
    """What this run knows of its lock."""

    def __init__(self, run: Run) -> None:
        """Follow the run's operations, its signals and its end."""
        self._run = run
        self._know_secrets()
        self.lock = None if run.pyinfra.is_dry else self._lock()
        self.releases: dict[str, str] = {}
        self.contents: defaultdict[str, set[Content]] = defaultdict(set)
        self.refused: defaultdict[str, set[Content]] = defaultdict(set)
        self.written: set[str] = set()
        self.held = False
        self.interrupted = False
        replaced = run.pyinfra.typed.get("rotate")
        self._what = f"replacement of secrets ({replaced})" if replaced else "deploy"
        self._frame: Frame | None = None
        self._ends = False
        self._looked = self._began = False
        self._stop: SystemExit | None = None
        self._required = False
        self._missing = self._refused = ""
        # Hosts come here side by side.
        self._mutex = Mutex()
        run.pyinfra.before_each_operation(self.begin)
        run.pyinfra.before_each_change(self.change)
        for number in SIGNALS:
            signal.signal(number, self._interrupt)
        atexit.register(self.end)

    def look(self) -> None:
        """Before anything is read of a host: what another run changes from here on is noticed; or
        with ``wait`` nobody changes anything any more.

        :raises SystemExit: where somebody has the lock, and nobody is to be shown anything first
        """
        with self._mutex:
            self._go_on()
            if self._looked or not self.lock or self._servers() <= self._run.pyinfra.failed:
                return
            self._looked = True
            wait = self._run.fleet.hosts[0].settings.wait
            try:
                if wait:
                    self.lock.wait("deploy", durations.seconds(wait), self._say)
                    # Who was waited for may have replaced them.
                    self._run.again(secrets.Kept)
                    self._know_secrets()
                else:
                    self.lock.look(refuse=not self._run.pyinfra.asks_first)
            except LockedError as error:
                self._end_by(error, error.exit_code, f"{error}. Nothing was touched")
            except FleetError as error:  # of secrets that can't be read any more
                self._end_by(error, 1, str(error))

    def _know_secrets(self) -> None:
        """So that the lock is asked for with what Consul will know."""
        if self._run.fleet.brings_consul:
            secrets.kept(self._run)

    def _say(self, line: str) -> None:
        logger.info(f"    {line}")

    def _end_by(self, error: FleetError | None, code: int, message: str) -> NoReturn:
        self._stop = _exit(code, message)
        raise self._stop from error

    def _go_on(self) -> None:
        if self._stop:
            # gevent throws it into the main greenlet, which a second one would hit while it ends.
            raise gevent.GreenletExit

    def begin(self) -> None:
        """Before each operation on each host: take the lock, if there is a Consul to hold it.

        :raises SystemExit: where somebody else has it
        """
        with self._mutex:
            self._go_on()
            try:
                if not self._began:
                    self._take(wait=NEW_LEADER if self._has_cluster() else 0)
                elif self.held and self.lock:
                    self.lock.check(PATIENCE)
            except LockedError as error:
                self._end_by(error, error.exit_code, f"{error}. Nothing was touched")
            except (ForeignError, RefusedError) as error:
                self._end_by(error, 1, str(error))
            except LostLockError as error:
                self._end_by(error, 1, f"{error}. Stopped; the same command again goes on")
            self._began = True

    def change(self) -> None:
        """Before each change: the first takes place when the operator's hook lets it.

        :raises SystemExit: where it does not
        """
        with self._mutex:
            self._go_on()
            if not self._frame:
                self._frame = hooks.frame(self._run)
                self._refused = self._frame.begin(**self._about())
                if self.interrupted:
                    raise gevent.GreenletExit
                if self._refused:
                    self._end_by(None, 1, f"{self._refused}. Nothing was touched")

    def _about(self) -> dict[str, str]:
        """What hooks are told of the run."""
        about = self._run.pyinfra.about
        return {
            "app": " ".join(self.releases),
            "release": " ".join(each.replace(AND, ",") for each in self.releases.values()),
            "hosts": " ".join(host.name for host in self._run.fleet.hosts if host.name in about),
        }

    def _has_cluster(self) -> bool:
        return not self._run.fleet.brings_consul or bool(cluster.change(self._run).peers)

    def require(self) -> str:
        """Why the lock is not held even now, or '' where it is."""
        with self._mutex:
            if not self.held and not self._required:
                self._required = True
                try:
                    self._take(wait=self._until_led())
                except (LockedError, ForeignError, RefusedError) as error:
                    self._missing = str(error)
            return "" if self.held else self._missing

    def _take(self, wait: float) -> None:
        assert self.lock  # nothing is carried out with --dry
        try:
            identity = ownership.settled(self._run).identity
            self.lock.take(self._what, self.releases, wait, identity)
            self.held = True
        except UnreachableError as error:
            # Consul may be what this very run brings or repairs.
            self._missing = str(error)
        except RefusedError as error:
            # Or it is this run that lets it know its tokens.
            if self._began or not secrets.are_unknown(self._run):
                raise
            self._missing = str(error)

    def end(self) -> None:
        """When the process ends, however it does: run the hook that is for this end, tell the
        audit, let the lock go."""
        if self.lock is None:
            return
        self._ends = True
        outcome = self._outcome()
        changed, failed = map(sorted, (self._run.pyinfra.changed, self._run.pyinfra.failed))
        if self._frame:
            hooks.hooks(self._run).end()
            self._frame.end(outcome, changed=" ".join(changed), failed=" ".join(failed))
        try:
            # One that began nothing may have waited for its turn, and has nothing to tell.
            if outcome and self._began:
                detail = self._lost() or self._refused
                self.lock.finish(outcome, changed=changed, failed=failed, detail=detail)
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
        pyinfra = self._run.pyinfra
        if self._stop or pyinfra.failed or not pyinfra.is_over:
            return "failed"
        return "ok" if pyinfra.changed else ""

    def _lock(self) -> Lock:
        """Asks those agents first that this run could connect to."""
        connected = self._run.pyinfra.connected
        servers = self._run.fleet.asked
        return Lock(sorted(servers, key=lambda server: server.name not in connected))

    def _servers(self) -> set[str]:
        return {server.name for server in self._run.fleet.asked}

    def _until_led(self) -> float:
        """How long to wait for a leader, in seconds: not where this very run failed on each of
        the servers, and not for the first election of one that runs already and hangs."""
        if self._servers() <= self._run.pyinfra.failed:
            return 0
        return NEW_LEADER if cluster.change(self._run).hung else ELECTION

    def _interrupt(self, number: int, _frame: Any) -> None:
        """Ctrl-C and the like: an end like any other, with an exit status that says so."""
        if self._frame:
            hooks.hooks(self._run).interrupt()
        if self._ends:
            return
        self.interrupted = self._run.pyinfra.is_executing
        left = "hosts finish what they are in the middle of; the same command again goes on"
        began = self.interrupted and not (self._frame and self._frame.asks)
        said = left if began else "nothing was touched"
        stop = _exit(128 + number, f"{signal.Signals(number).name}: {said}")
        hub = gevent.get_hub()
        if gevent.getcurrent() is hub.parent:
            raise stop
        # Other greenlets, paramiko's among them, may catch what is raised in them.
        hub.loop.run_callback(hub.parent.throw, stop)


def look(here: Here) -> None:
    """Watch over the lock from here on, which the run holds from its first operation to its end.

    :raises SystemExit: see :meth:`Guard.look`
    """
    guard(here).look()


def guard(here: Here) -> Guard:
    """The guard of this run's lock."""
    return here.run.once(Guard)


def announce(here: AppHere, release: Content, refused: Iterable[Content]) -> None:
    """Name a release that this run brings: whoever is locked out reads it. Hosts with an
    ``app_source`` of their own may bring several of one service.

    :param refused: what is not to be released unless it is named
    """
    found, service = guard(here), here.me.app
    found.contents[service].add(release)
    found.refused[service].update(refused)
    found.releases[service] = AND.join(sorted({each.release for each in found.contents[service]}))


def rolled_out(here: AppHere) -> None:
    """Write down that the announced release is what the service should be on; once, not for
    each host.

    :raises LostLockError: where the lock is gone
    :raises UnreachableError: where Consul does not answer
    """
    found, service = guard(here), here.me.app
    if found.lock and service not in found.written:
        found.written.add(service)
        known = {"on": found.contents[service], "refused": found.refused[service]}
        contents = {key: [each.as_dict() for each in sorted(all_)] for key, all_ in known.items()}
        found.lock.expect({service: found.releases[service]}, {service: contents})


def missing(here: Here) -> str:
    """Why this run does not hold the lock, even now that Consul runs; '' where it does."""
    return guard(here).require()


@operation()
def require(here: Here, mistaken: Callable[[Here], str]) -> Generator[Any, None, None]:
    """Fail the host where the run cannot acquire the lock, now that Consul runs.

    :param mistaken: why it can't go on with it either, or ''
    """
    if here.run.pyinfra.is_executing and (reason := missing(here) or mistaken(here)):
        yield fail(f"{here.me.name}: the application was left as it is: {reason}")
    else:
        host.noop("this run holds the lock")


def _exit(code: int, message: str) -> SystemExit:
    click.echo(err=True)
    logger.error(f"--> {message}")
    return SystemExit(code)
