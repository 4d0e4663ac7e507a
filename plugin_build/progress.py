"""Showing a build to a person."""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from fleet.model import Host
from plugin_build import builder, identity


def build(hosts: Iterable[Host], force: bool = False) -> bool:
    """Build for these hosts and say what happens; True if every host has its plugin."""
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False)
    start = time.monotonic()

    def report(host: str, message: str) -> None:
        elapsed = time.monotonic() - start
        console.print(Text(f"{elapsed:5.1f} s  {host}: {message}"), soft_wrap=True)

    outcomes = builder.build(hosts, report, force)
    for outcome in outcomes:
        if outcome.error:
            errors.print(Text(outcome.error, style="red"), soft_wrap=True)
    for path in sorted({outcome.plugin for outcome in outcomes if outcome.plugin}):
        users = [o for o in outcomes if o.plugin == path]
        version = users[0].uwsgi.version if users[0].uwsgi else ""
        names = ", ".join(o.host for o in users)
        done = "built" if any(o.built for o in users) else "up to date"
        shown = path.relative_to(identity.HERE.parent)
        console.print(
            Text(f"{done}: {shown} (uWSGI {version}: {names})", style="green"), soft_wrap=True
        )
    return not any(outcome.error for outcome in outcomes)
