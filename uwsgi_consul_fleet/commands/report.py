"""Reports for a person: a verification, and the audit."""

from collections.abc import Iterable
from datetime import datetime

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from uwsgi_consul_fleet.consul.audit import Entry
from uwsgi_consul_fleet.releases.releases import HostReleases, Release
from uwsgi_consul_fleet.verify.comparison import Report, Row

WIDTH = 120  # columns in a log, where no terminal says how many there are


def show(report: Report) -> None:
    """Print the table, then a line for each difference, then the verdict."""
    console = _console()
    table = _table("node", "service", "instance", "address", "release", "state")
    for row in report.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for difference in report.differences:
        console.print(Text(str(difference), style="red"), soft_wrap=True)
    console.print(_verdict(report), soft_wrap=True)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


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
    console = _console()
    table = _table("node", "release", "with its settings", "state", "since")
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
    since = _moment(release.since) if release.since else "never served"
    return release.release, release.settings, state, since


def _moment(iso: str) -> str:
    """A moment in the operator's own time."""
    return f"{datetime.fromisoformat(iso).astimezone():%Y-%m-%d %H:%M:%S}"


STYLES = {"ok": "green", "failed": "bold red", "interrupted": "yellow"}


def show_audit(entries: Iterable[Entry]) -> None:
    """Print who did what, oldest first."""
    table = _table("when", "who", "what", "release", "outcome", "took", "hosts")
    table.columns[-1].no_wrap = False
    for entry in entries:
        release = ", ".join(sorted(set(entry.releases.values())))
        outcome = Text(entry.outcome, style=STYLES.get(entry.outcome, ""))
        table.add_row(
            _moment(entry.since),
            f"{entry.who}@{entry.machine}",
            entry.what,
            release,
            outcome,
            f"{entry.seconds:g} s",
            _hosts(entry),
        )
    console = _console()
    console.print(table if table.rows else "Nothing was recorded yet.")


def _hosts(entry: Entry) -> str:
    changed = [host for host in entry.changed if host not in entry.failed]
    failed = [f"{host} failed" for host in entry.failed]
    return ", ".join([*changed, *failed]) or entry.detail
