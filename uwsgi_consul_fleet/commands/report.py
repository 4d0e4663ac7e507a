"""Reports for a person: a verification, the releases, and the audit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.text import Text

from uwsgi_consul_fleet.commands.tables import console, table
from uwsgi_consul_fleet.consul.audit import Entry
from uwsgi_consul_fleet.releases.releases import Generation, HostReleases
from uwsgi_consul_fleet.verify.comparison import Report, Row


def show(report: Report) -> None:
    """Print the table, then a line for each difference and each note, then the verdict."""
    screen = console()
    if report.fleet:
        screen.print(f"Fleet {report.fleet}", highlight=False)
    rows = table("node", "service", "instance", "address", "release", "state")
    for row in report.rows:
        rows.add_row(*_cells(row))
    screen.print(rows)
    for difference in report.differences:
        screen.print(Text(str(difference), style="red"), soft_wrap=True)
    for note in report.notes:
        screen.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    screen.print(_verdict(report), soft_wrap=True)


def _cells(row: Row) -> tuple[str | Text, ...]:
    state = Text(f"✓ {row.state}" if row.agrees else f"✗ {row.state}")
    state.stylize("green" if row.agrees else "bold red")
    address = f"{row.address}:{row.port}" if row.port else row.address
    return row.node, row.service, row.id, address, row.release, state


def _verdict(report: Report) -> Text:
    count = len(report.differences)
    asked = f"(asked {report.asked})"
    if report.agrees:
        return Text(f"The catalog agrees with the inventory {asked}.", style="green")
    things = "1 difference" if count == 1 else f"{count} differences"
    said = f"The catalog does not agree with the inventory: {things} {asked}."
    return Text(said, style="bold red")


def show_releases(found: Iterable[HostReleases], services: Sequence[str]) -> None:
    """Print a line for each release on each host, and then for each host that said nothing.

    :param services: of several, each line names its own
    """
    screen = console()
    several = len(services) > 1
    listed = list(found)
    workers = any(one.workers for each in listed for one in each.generations)
    columns = ("node", *["service"] * several, "release", "with its settings", "state", "since")
    rows = table(*columns, *["workers"] * workers)
    for each in listed:
        place = (each.host.name, *[each.host.app] * several)
        for one in each.generations:
            rows.add_row(*place, *_generation_cells(one), *[_workers(one)] * workers)
    screen.print(rows)
    for problem in dict.fromkeys(each.problem for each in listed if each.problem):
        screen.print(Text(problem, style="red"), soft_wrap=True)


def _generation_cells(found: Generation) -> tuple[str | Text, ...]:
    state = Text("✓ serves", style="green") if found.current else Text("kept")
    since = _moment(found.since) if found.since else "never served"
    return found.release, found.settings, state, since


def _workers(found: Generation) -> str:
    """How many of each kind, where it isn't one."""
    kinds = Counter(each.kind for each in found.workers)
    return ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in kinds.items())


def _moment(iso: str) -> str:
    """A moment in the operator's own time."""
    return f"{datetime.fromisoformat(iso).astimezone():%Y-%m-%d %H:%M:%S}"


STYLES = {"ok": "green", "failed": "bold red", "interrupted": "yellow"}


def show_audit(entries: Iterable[Entry]) -> None:
    """Print who did what, oldest first."""
    listed = list(entries)
    if listed and listed[-1].fleet:
        console().print(f"Fleet {listed[-1].fleet}", highlight=False)
    rows = table("when", "who", "what", "release", "outcome", "took", "hosts")
    rows.columns[-1].no_wrap = False
    for entry in listed:
        release = _told(entry.releases)
        outcome = Text(entry.outcome, style=STYLES.get(entry.outcome, ""))
        rows.add_row(
            _moment(entry.since),
            f"{entry.who}@{entry.machine}",
            entry.what,
            release,
            outcome,
            f"{entry.seconds:g} s",
            _hosts(entry),
        )
    console().print(rows if rows.rows else "Nothing was recorded yet.")


def _told(releases: Mapping[str, str]) -> str:
    """Of several services each with its name, on a line of its own, unless all have one."""
    distinct = sorted(set(releases.values()))
    if len(distinct) < 2:
        return "".join(distinct)
    return "\n".join(f"{service} {release}" for service, release in sorted(releases.items()))


def _hosts(entry: Entry) -> str:
    changed = [host for host in entry.changed if host not in entry.failed]
    failed = [f"{host} failed" for host in entry.failed]
    return ", ".join([*changed, *failed]) or entry.detail
