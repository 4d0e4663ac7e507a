"""Tables for a person, on a terminal or in a log."""

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 120  # columns that a table may have, also in a log


def console() -> Console:
    """Where to print. A terminal that has fewer columns wraps lines; none loses a port."""
    found = Console(highlight=False)
    wide = max(WIDTH, found.width) if found.is_terminal else WIDTH
    return Console(highlight=False, width=wide)


def table(*headings: str) -> Table:
    """An empty one."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        made.add_column(heading, no_wrap=True)
    return made
