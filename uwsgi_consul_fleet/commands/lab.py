"""invoke lab.up and its kin: the lab's own command line does what they say"""

import subprocess
import sys

from invoke import Exit

from uwsgi_consul_fleet.commands.command import command
from uwsgi_consul_fleet.commands.names import NamesTask


def _lab(*arguments: str) -> None:
    words = [sys.executable, "-m", "uwsgi_consul_fleet.lab", *arguments]
    if code := subprocess.run(words, check=False).returncode:
        raise Exit(code=code)


@command(klass=NamesTask, help={"names": "machines to start, as NAME[:DEBIAN_RELEASE][@NETWORK]"})
def up(names: list[str]) -> None:
    """Start lab machines: drakar and cheetah, or those named (cheetah:13 for Debian 13)."""
    _lab("up", *names)


@command(
    klass=NamesTask,
    help={"names": "machines to remove (default: all)", "purge": "also remove what is cached"},
)
def down(names: list[str], purge: bool = False) -> None:
    """Remove lab machines with everything on them."""
    _lab("down", *names, *["--purge"] * purge)


@command(help={"json": "print it as JSON"})
def status(json: bool = False) -> None:
    """Show the lab machines."""
    _lab("status", *["--json"] * json)


@command(klass=NamesTask, help={"names": "machines to make anew (default: all)"})
def rebuild(names: list[str]) -> None:
    """Put lab machines back to the state in which they were first started."""
    _lab("rebuild", *names)


@command(help={"name": "the machine"})
def ssh(name: str) -> None:
    """Open a shell on a lab machine."""
    _lab("ssh", "--", name)
