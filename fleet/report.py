"""A verification report for a person."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleet.verification import Report, Row

WIDTH = 120  # columns in a log, where no terminal says how many there are


def show(report: Report) -> None:
    """Print the table, then a line for each difference, then the verdict."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("node", "service", "instance", "address", "release", "state"):
        table.add_column(heading, no_wrap=True)
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
