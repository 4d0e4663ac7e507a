"""A release's other processes on this host, such as a Celery worker: they come and go with it."""

from __future__ import annotations

import time

from . import systemd
from .says import ReleaseError, say
from .store import Release

INTERVAL = 0.25  # seconds between two looks


def running(app: str) -> list[str]:
    """The workers of an application, whatever their release, also those that fail and are started
    again."""
    return [unit for unit in systemd.active(f"{app}.*@*.service") if systemd.worker_kind(app, unit)]


def others(release: Release) -> list[str]:
    """Those that run and are another release's."""
    return [unit for unit in running(release.app) if unit not in release.worker_units]


def start(release: Release) -> list[str]:
    """Start those of a release that do not run yet, and return them. Of one that must never run
    twice the other releases' has ended by then.

    :raises ReleaseError: where one can't be started, or the other one does not end
    """
    app = release.app
    alone = {each.kind for each in release.workers if not each.overlap}
    end([unit for unit in others(release) if systemd.worker_kind(app, unit) in alone])
    began = [unit for unit in release.worker_units if not systemd.is_active(unit)]
    try:
        if began:
            systemd.start(began, release.health_timeout)
    except ReleaseError as error:
        failed = [unit for unit in began if not systemd.is_active(unit)]
        raise ReleaseError(f"{systemd.journal(failed)}\n{release.release}: {error}") from None
    return began


def start_again(release: Release) -> list[str]:
    """Start those that do not run of a release that serves already. What ails them, as a broker
    that is down, is no fault of what is deployed."""
    try:
        if began := start(release):
            say(f"Warning: {', '.join(began)} did not run: started again", error=True)
        return began
    except ReleaseError as error:
        say(f"Warning: {error}", error=True)
        return []


def end_others(release: Release) -> None:
    """Let those of other releases finish what they are at."""
    end(others(release))


def end(units: list[str]) -> None:
    """Let these finish what they are at, and say which did not."""
    if not units:
        return
    kinds = sorted({unit.partition("@")[0].rpartition(".")[0] for unit in units})
    say(f"waits until {len(units)} workers have finished: {', '.join(kinds)}")
    systemd.systemctl("stop", *units)
    for unit in systemd.timed_out(units):
        say(f"{unit} did not finish within its stop_timeout, and was killed", error=True)
    systemd.stop(units)  # which forgets how they ended


def watch(release: Release, units: list[str]) -> None:
    """For min_healthy_time; :raises ReleaseError: where one of these does not stay up."""
    deadline = time.monotonic() + release.min_healthy_time
    while units and time.monotonic() < deadline:
        time.sleep(INTERVAL)
        if ended := [unit for unit in units if not systemd.is_active(unit)]:
            raise ReleaseError(
                f"{systemd.journal(ended)}\n{release.release}: {', '.join(ended)} ended within "
                f"{release.min_healthy_time} s after its start"
            )
