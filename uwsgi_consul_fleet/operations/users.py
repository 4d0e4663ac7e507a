"""System users that own nothing and can't log in."""

from collections.abc import Generator
from typing import Any

from pyinfra.operations import server

from uwsgi_consul_fleet.operations.state import current, forget

NOLOGIN = "/usr/sbin/nologin"


def system_user(name: str) -> Generator[Any, None, None]:
    """The commands that create the user; none if there is one of that name."""
    if name not in current().users:
        yield from server.user._inner(
            user=name, system=True, home="/nonexistent", create_home=False, shell=NOLOGIN
        )
        forget()
