"""The fleet inside a pyinfra run."""

from functools import cache
from pathlib import Path

from pyinfra import inventory, logger, state
from pyinfra.api.exceptions import PyinfraError

from fleet import inventory as fleet_inventory
from fleet.errors import FleetError
from fleet.model import Fleet, InventoryHost


class DeployError(PyinfraError):
    """Shown by pyinfra as one message, and ends the run before any host is changed."""


@cache
def fleet() -> Fleet:
    """The fleet, from the inventory of this run.

    :raises DeployError: with every mistake in it
    """
    hosts = [
        InventoryHost(host.name, frozenset(host.groups), host.data.dict()) for host in inventory
    ]
    try:
        found = fleet_inventory.build(Path(state.cwd) / fleet_inventory.INVENTORY, hosts)
    except FleetError as error:
        raise DeployError(str(error)) from error
    for warning in found.warnings:
        logger.warning(f"    Warning: {warning}")
    return found
