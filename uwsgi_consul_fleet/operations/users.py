"""System users that own nothing and can't log in."""

from collections.abc import Generator
from typing import Any

from pyinfra.operations import server

from uwsgi_consul_fleet.operations.pyinfra_run import embed
from uwsgi_consul_fleet.operations.run import Here

NOLOGIN = "/usr/sbin/nologin"


def system_user(here: Here, name: str) -> Generator[Any, None, None]:
    """The commands that create the user; none if there is one of that name."""
    if name not in here.known.users:
        yield from embed(
            server.user,
            user=name,
            system=True,
            home="/nonexistent",
            ensure_home=False,
            shell=NOLOGIN,
        )
        here.known.users.add(name)  # nothing else of what is known has changed
