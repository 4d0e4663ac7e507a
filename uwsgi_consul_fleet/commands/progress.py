"""Showing builds, and what there is to build for, to a person."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from uwsgi_consul_fleet.build import builder, dist
from uwsgi_consul_fleet.build.builder import Build, Outcome, Report
from uwsgi_consul_fleet.build.identity import DIST, Uwsgi
from uwsgi_consul_fleet.build.places import Place
from uwsgi_consul_fleet.build.source import Source
from uwsgi_consul_fleet.commands.tables import console, table


def reporter() -> Report:
    """What says how a build goes on, with the time since now."""
    screen = Console(highlight=False)
    start = time.monotonic()

    def report(host: str, message: str) -> None:
        elapsed = time.monotonic() - start
        screen.print(Text(f"{elapsed:5.1f} s  {host}: {message}"), soft_wrap=True)

    return report


def build(places: Sequence[Place], how: Build) -> bool:
    """Build for these machines; True if every one has its plugin."""
    screen = Console(highlight=False)
    outcomes = builder.build(places, how)
    for path in sorted({outcome.plugin for outcome in outcomes if outcome.plugin}):
        screen.print(Text(_done(path, outcomes), style="green"), soft_wrap=True)
    failed = [outcome for outcome in outcomes if outcome.error]
    _show_errors(failed, len(outcomes))
    return not failed


def _done(path: Path, outcomes: Sequence[Outcome]) -> str:
    users = [outcome for outcome in outcomes if outcome.plugin == path]
    version = users[0].uwsgi.version if users[0].uwsgi else ""
    names = ", ".join(outcome.host for outcome in users)
    done = "built" if any(outcome.built for outcome in users) else "up to date"
    return f"{done}: {path.relative_to(DIST.parents[1])} (uWSGI {version}: {names})"


def _show_errors(failed: Sequence[Outcome], count: int) -> None:
    errors = Console(stderr=True, highlight=False)
    # Machines of one kind share what went wrong: told once.
    for error in dict.fromkeys(outcome.error for outcome in failed):
        errors.print(Text(error, style="red"), soft_wrap=True)
    if failed:
        names = ", ".join(outcome.host for outcome in failed)
        hosts = "1 host has" if len(failed) == 1 else f"{len(failed)} of {count} hosts have"
        errors.print(Text(f"{hosts} no plugin: {names}", style="bold red"), soft_wrap=True)


def show(places: Sequence[Place], source: Source) -> bool:
    """List the machines and what is built for them; True if nothing is missing."""
    screen = console()
    rows = table("host", "uWSGI", "version", "fingerprint", "plugin")
    found = builder.find(places)
    states = [_state(uwsgi, source) for uwsgi in found]
    for place, uwsgi, state in zip(places, found, states, strict=True):
        if isinstance(uwsgi, Uwsgi):
            rows.add_row(place.name, uwsgi.path, uwsgi.version, uwsgi.fingerprint, state)
        else:
            rows.add_row(place.name, "-", "-", "-", state)
    screen.print(rows)
    for problem in found:
        if isinstance(problem, str):
            screen.print(Text(problem, style="red"), soft_wrap=True)
    return all(state == "built" for state in states)


def _state(uwsgi: Uwsgi | str, source: Source) -> str:
    if isinstance(uwsgi, str):
        return "unknown"
    if dist.is_current(uwsgi, source):
        return "built"
    return "out of date" if dist.path(uwsgi, source).exists() else "not built"
