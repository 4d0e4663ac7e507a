"""The fleet inside a pyinfra run."""

import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pyinfra import inventory, logger
from pyinfra.api.exceptions import PyinfraError

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory import reading as fleet_inventory
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost
from uwsgi_consul_fleet.shipped import shipped
from uwsgi_consul_fleet.ssh import transport

# pyinfra orders operations by the call stack and asks `inspect` for each frame's module.
# It runs deploy/__main__.py outside the module system, where `inspect` then searches
# every module there is: 4 ms for each operation and host, unless it has an entry.
_main = sys.modules.setdefault("uwsgi_consul_fleet._deploy", ModuleType("_deploy"))
_main.__file__ = str(shipped("deploy/__main__.py"))


class DeployError(PyinfraError):
    """Shown by pyinfra as one message, and ends the run before any host is changed."""


@cache
def fleet() -> Fleet:
    """The fleet, from the inventory of this run.

    :raises DeployError: with every mistake in it
    """
    refuse_own_order(sys.argv)
    hosts = [
        InventoryHost(host.name, frozenset(host.groups), _data(host.data)) for host in inventory
    ]
    try:
        found = fleet_inventory.build(inventory_file(sys.argv), hosts, transport.resolve)
    except FleetError as error:
        raise DeployError(str(error)) from error
    for warning in found.warnings:
        logger.warning(f"    Warning: {warning}")
    return found


def refuse_own_order(arguments: list[str]) -> None:
    """A roll-out has its order: canaries, then batches, then who retires; and one attempt.

    :raises DeployError: where pyinfra was asked for something else
    """
    for word in arguments:
        option = word.partition("=")[0]
        if option in ("--serial", "--no-wait", "--retry"):
            raise DeployError(
                f"{option}: hosts would be switched in another order than that of the roll-out, or "
                "again after it stopped; leave it out (canary and batch in group_data/ say how "
                "many at a time); nothing was changed"
            )


def inventory_file(arguments: list[str]) -> Path:
    """The inventory on pyinfra's command line: the first file that it takes."""
    return next(
        (path for path in map(Path, arguments[1:]) if path.suffix == ".py" and path.is_file()),
        Path("inventory.py"),
    )


def _data(data: Any) -> dict[str, Any]:
    merged: dict[str, Any] = data.dict()
    return merged
