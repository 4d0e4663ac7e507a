"""invoke logs"""

import os
import re
import sys
import time
from typing import TYPE_CHECKING

from invoke import Exit

from uwsgi_consul_fleet import durations
from uwsgi_consul_fleet.commands.command import Fleet, command
from uwsgi_consul_fleet.errors import FleetError

if TYPE_CHECKING:
    from uwsgi_consul_fleet.instances.logs import Line

COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # of a terminal's


@command(
    failure=2,
    iterable=["host"],
    app="only of this application",
    help={
        "follow": "go on until Ctrl-C, also over releases that come meanwhile",
        "since": "how far back to begin: 90s, 10m, 2h, 1d",
        "host": "only of this host (may be given several times)",
        "instance": "only of the instances of this name",
        "release": "only of this release",
        "grep": "only lines in which this regular expression is found",
    },
)
def logs(
    fleet: Fleet,
    host: list[str],
    follow: bool = False,
    since: str = "10m",
    instance: str = "",
    release: str = "",
    grep: str = "",
) -> None:
    """Show what all instances say, in the order of time. Exit 1: a host could not be asked."""
    from uwsgi_consul_fleet.instances import choice, logs

    begin, pattern = durations.typed("since", since), _pattern(grep)
    chosen = choice.choose(fleet, host, instance)
    problems: list[str] = []

    def problem(text: str) -> None:
        problems.append(text)
        print(text, file=sys.stderr, flush=True)

    show = Screen()
    for line in logs.read(chosen, begin, follow, problem):
        if release in ("", line.release, line.generation) and pattern.search(line.text):
            show(line, flush=follow)
    sys.stdout.flush()
    raise Exit(code=1 if problems else 0)


def _pattern(grep: str) -> re.Pattern[str]:
    try:
        return re.compile(grep)
    except re.error as error:
        raise FleetError(f"--grep {grep}: is no regular expression: {error}") from None


class Screen:
    """Shows lines, each behind who says it; in colours where a person looks on."""

    def __init__(self) -> None:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self._is_coloured = sys.stdout.isatty() and not plain
        self._colours: dict[tuple[str, str], int] = {}
        self._width = 0

    def __call__(self, line: "Line", flush: bool) -> None:
        who = f"{line.host} {line.instance} {line.release}"
        self._width = max(self._width, len(who))
        moment = time.strftime("%H:%M:%S", time.localtime(line.moment // 1_000_000))
        prefix = f"{moment}.{line.moment // 1000 % 1000:03} {who:{self._width}} |"
        if self._is_coloured:
            key = (line.host, line.instance)
            colour = self._colours.setdefault(key, COLOURS[len(self._colours) % len(COLOURS)])
            prefix = f"\033[{colour}m{prefix}\033[0m"
        for text in line.text.split("\n"):
            print(prefix, printable(text), flush=flush)


def printable(text: str) -> str:
    """Without what would command the terminal: anybody may get something into a log."""
    if text.isprintable():
        return text
    shown = (
        each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode()
        for each in text
    )
    return "".join(shown)
