"""A run of the deployment: what it knows of the fleet and its hosts, and what happened in it."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from pyinfra import host

from uwsgi_consul_fleet.inventory.model import AppHost, Fleet, Host
from uwsgi_consul_fleet.operations import plan, pyinfra_run, state
from uwsgi_consul_fleet.operations.pyinfra_run import PyinfraRun
from uwsgi_consul_fleet.operations.state import AppState, HostState
from uwsgi_consul_fleet.releases.rollout import Rollout

T = TypeVar("T")


class Run:
    """One for all hosts, which are prepared side by side.

    ``rollouts`` say how far each application's new release got; ``lost_agents`` are hosts whose
    Consul agent did not come back.
    """

    def __init__(self, pyinfra: PyinfraRun) -> None:
        """:raises DeployError: with every mistake in the inventory"""
        self.pyinfra = pyinfra
        self.fleet: Fleet = plan.read(pyinfra)
        self.rollouts = {app: self._rollout(app) for app in self.fleet.services}
        self.lost_agents: set[str] = set()
        self._done: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
        self._known: dict[tuple[str, bool], HostState] = {}
        self._together: dict[str, bool] = {}
        self._made: dict[Hashable, Any] = {}
        self._one_at_a_time: defaultdict[Hashable, Lock] = defaultdict(Lock)

    def _rollout(self, app: str) -> Rollout:
        """Over those of its hosts that were reached."""
        serving, reached = self.fleet.serving(app), self.pyinfra.connected
        return Rollout([each for each in serving if each.name in reached], of=len(serving))

    def title(self, app: str) -> str:
        """What the names of an application's operations begin with."""
        fleet = self.fleet
        return app if fleet.is_part or len(fleet.services) > 1 else "Application"

    def follow(self, its: AppHost, operation: Any) -> None:
        """Know how an operation of an application ends on a host."""
        self._done[its.app, its.name].append(operation)

    def has_failed(self, its: AppHost) -> bool:
        """Whether one did, where that does not fail the host."""
        return any(map(self.pyinfra.has_failed, self._done[its.app, its.name]))

    def failed(self, app: str) -> set[str]:
        """The hosts on which one of an application's did."""
        return {its.name for its in self.fleet.serving(app) if self.has_failed(its)}

    def state_of(self, name: str) -> HostState:
        """How a connected host looks, read once until something is changed there."""
        key = self._key(name)
        with self._one_at_a_time[key]:
            if key not in self._known:
                host = self.fleet.host(name)
                self._known[key] = state.read(self.pyinfra.host(name), host)
            return self._known[key]

    def its_state(self, its: AppHost) -> AppState:
        """What of an application is on one of its hosts."""
        return self.state_of(its.name).of(its.app)

    def forget(self, name: str) -> None:
        """Something was changed on a host: what was read before no longer holds."""
        if name in self._together:
            self._together[name] = True
        else:
            self._known.pop(self._key(name), None)

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """What is changed on a host meanwhile counts as one change, also where it ends early."""
        self._together[name] = False
        try:
            yield
        finally:
            if self._together.pop(name):
                self.forget(name)

    def _key(self, name: str) -> tuple[str, bool]:
        # Between the preparation and the execution an operator may look at the proposed
        # changes for as long as they like; with -y the one follows the other at once.
        return name, self.pyinfra.is_executing and self.pyinfra.asks_first

    def once(self, make: Callable[["Run"], T]) -> T:
        """What this function makes of the run, which it is asked for once."""
        with self._one_at_a_time[make]:
            if make not in self._made:
                self._made[make] = make(self)
            made: T = self._made[make]
            return made

    def again(self, make: Callable[["Run"], Any]) -> None:
        """Have it made once more, where it is asked for again: something has changed since."""
        with self._one_at_a_time[make]:
            self._made.pop(make, None)


@dataclass(frozen=True)
class Here:
    """A host in a run: what it should be, and what it is."""

    run: Run
    me: Host

    @property
    def known(self) -> HostState:
        """How it looks now."""
        return self.run.state_of(self.me.name)

    @property
    def applications(self) -> Iterator["AppHere"]:
        """Each application of the host."""
        return (AppHere(self.run, its) for its in self.me.applications)

    def changed(self) -> None:
        """To be called after a change of it."""
        self.run.forget(self.me.name)


@dataclass(frozen=True)
class AppHere(Here):
    """An application on a host in a run."""

    me: AppHost

    @property
    def its(self) -> AppState:
        """What there is of it now."""
        return self.run.its_state(self.me)


def here() -> Here:
    """The host in context, in the run that goes on.

    :raises DeployError: with every mistake in the inventory
    """
    run = pyinfra_run.of_this_run(Run)
    return Here(run, run.fleet.host(host.name))
