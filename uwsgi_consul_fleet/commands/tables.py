"""Tables for a person, on a terminal or in a log."""

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 120  # columns in a log, where no terminal says how many there are


def console() -> Console:
    """Where to print."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)


def table(*headings: str) -> Table:
    """An empty one."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        made.add_column(heading, no_wrap=True)
    return made
