"""invoke unlock"""

import sys

from invoke import Exit

from uwsgi_consul_fleet.commands.command import Fleet, command
from uwsgi_consul_fleet.errors import FleetError


@command(failure=2, help={"yes": "do not ask"})
def unlock(fleet: Fleet, yes: bool = False) -> None:
    """Remove the lock of a deploy that is gone, after showing whose it is."""
    from uwsgi_consul_fleet.lock import lock

    held = lock.holder(fleet)
    if held is None:
        print("There is no lock.")
        return
    print(lock.told(held))
    if not yes and not sys.stdin.isatty():
        raise FleetError("nothing removed: without a terminal to ask at, say --yes")
    if not yes:
        print("Remove it? If that run still goes on, it stops. [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Exit("nothing removed", 1)
    lock.unlock(fleet, held)
    print("removed")
