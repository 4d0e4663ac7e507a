"""One release takes over from another on this host, or nothing changes."""

from __future__ import annotations

from collections.abc import Iterable

from . import health, retire, store, systemd, units
from .says import ReleaseError, say
from .store import Release


def switch(app: str, generation: str, keep: int) -> None:
    """Let a release serve.

    :param keep: how many releases stay on this host
    :raises ReleaseError: where it does not come up; what served before still does
    """
    new, old = store.load(app, generation), store.current(app)
    _clear_trials(app)
    units.install(new)
    _bring_up(new, old)
    _take_over(new)
    _confirm(new, old)
    store.record(new)
    store.prune(app, keep)
    units.remove_unused(app)
    say(f"{new.release} serves on port {_ports(new)}")


def _bring_up(new: Release, old: Release | None) -> None:
    """Start it beside the old one; as if there had been no attempt where that fails."""
    closed = units.closed_ports(new)
    try:
        if retire.running(new.app) and not store.has_served(new):
            _try(new)
        units.open_sockets(new, closed)
        _start(new)
    except ReleaseError as error:
        if old is None or old.generation != new.generation:
            systemd.stop(systemd.active(f"{new.app}-*@{new.generation}.service"))
            units.close_sockets(new.app, closed)
            _forget(new)
        raise ReleaseError(f"{error}\n{_still(new, old)}") from None


def _confirm(new: Release, old: Release | None) -> None:
    """Wait for Consul to see it; back to the old one where it does not."""
    try:
        health.wait_for_consul(new)
    except ReleaseError as error:
        said = f"{systemd.journal(new.services)}\n{error}"
        if old is None:
            retire.stop(new.app)
        elif old.generation != new.generation:
            units.install(old)
            _start(old)
            _take_over(old)
            _forget(new)
        raise ReleaseError(f"{said}\n{_still(new, old)}") from None


def _forget(new: Release) -> None:
    units.remove_unused(new.app)
    if not store.has_served(new):
        store.discard(new)


def _still(new: Release, old: Release | None) -> str:
    if old is None:
        return "nothing serves, as before"
    if old.generation == new.generation:
        return f"{old.release} should serve and does not: this host needs a look"
    return f"{old.release} still serves"


def _ports(release: Release) -> str:
    return ", ".join(str(instance.port) for instance in release.instances)


def _clear_trials(app: str) -> None:
    """What an interrupted switch left."""
    systemd.stop(systemd.active(f"{app}-trial@*.service"))


def _try(new: Release) -> None:
    """Start it where no client is, and see whether it is well and stays so."""
    say(f"{new.release}: tried on a socket of its own")
    try:
        systemd.start([new.trial])
        health.wait(new, "trial", new.trial)
        say(f"{new.release}: healthy, watched for {new.min_healthy_time} s")
        health.watch(new, "trial", new.trial)
    except ReleaseError as error:
        raise _told(new, [new.trial], error) from None
    finally:
        systemd.stop([new.trial])


def _told(new: Release, services: Iterable[str], error: ReleaseError) -> ReleaseError:
    """The error with what the release itself said."""
    lines = systemd.journal(services)
    return ReleaseError(f"{lines}\n{new.release} is not fit to serve: {error}")


def _start(new: Release) -> None:
    """Beside the old one, on the sockets that both hold."""
    try:
        systemd.start(new.services)
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


def expect_passing(app: str, release: str, allowed: int, instances: list[str]) -> None:
    """:raises ReleaseError: where more than so many of the instances do not pass on it"""
    try:
        left, _ = health.missing(app, release, "", instances, "0")
    except (OSError, ValueError) as error:
        raise ReleaseError(f"the Consul agent does not answer: {error}") from None
    if len(left) > allowed:
        raise ReleaseError(f"no longer passing with {release}: {', '.join(left)}")
