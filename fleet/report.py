"""A verification report for a person."""

from collections.abc import Iterable
from datetime import datetime

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleet.releases import HostReleases, Release
from fleet.verification import Report, Row

WIDTH = 120  # columns in a log, where no terminal says how many there are


def wide_console() -> Console:
    """Standard output; as wide as the terminal, or as a log."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def table_of(*headings: str) -> Table:
    """An empty table in the style of all our tables."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def show(report: Report) -> None:
    """Print the table, then a line for each difference, then the verdict."""
    console = wide_console()
    table = table_of("node", "service", "instance", "address", "release", "state")
    for row in report.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for difference in report.differences:
        console.print(Text(str(difference), style="red"), soft_wrap=True)
    console.print(_verdict(report), soft_wrap=True)


def _cells(row: Row) -> tuple[str | Text, ...]:
    state = Text(f"✓ {row.state}" if row.agrees else f"✗ {row.state}")
    state.stylize("green" if row.agrees else "bold red")
    address = f"{row.address}:{row.port}" if row.port else row.address
    return row.node, row.service, row.id, address, row.release, state


def _verdict(report: Report) -> Text:
    count = len(report.differences)
    if report.agrees:
        return Text(f"The catalog agrees with the inventory (asked {report.asked}).", style="green")
    things = "1 difference" if count == 1 else f"{count} differences"
    return Text(
        f"The catalog does not agree with the inventory: {things} (asked {report.asked}).",
        style="bold red",
    )


def show_releases(found: Iterable[HostReleases]) -> None:
    """Print a line for each release on each host, and then for each host that said nothing."""
    console = wide_console()
    table = table_of("node", "release", "with its settings", "state", "since")
    listed = list(found)
    for each in listed:
        for release in each.releases:
            table.add_row(each.host.name, *_release_cells(release))
    console.print(table)
    for each in listed:
        if each.problem:
            console.print(Text(each.problem, style="red"), soft_wrap=True)


def _release_cells(release: Release) -> tuple[str | Text, ...]:
    state = Text("✓ serves", style="green") if release.current else Text("kept")
    since = datetime.fromisoformat(release.since) if release.since else None
    # In the operator's own time.
    when = f"{since.astimezone():%Y-%m-%d %H:%M:%S}" if since else "never served"
    return release.release, release.generation.rpartition("-")[2], state, when
