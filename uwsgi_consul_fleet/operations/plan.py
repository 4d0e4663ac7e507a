"""The fleet of a pyinfra run, from its inventory and its command line."""

import sys
from pathlib import Path

from pyinfra import logger
from pyinfra.api.exceptions import PyinfraError

from uwsgi_consul_fleet import hooks
from uwsgi_consul_fleet.consul import access
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory import reading as fleet_inventory
from uwsgi_consul_fleet.inventory.model import Fleet
from uwsgi_consul_fleet.inventory.settings import TYPED
from uwsgi_consul_fleet.inventory.told import told
from uwsgi_consul_fleet.operations.pyinfra_run import PyinfraRun
from uwsgi_consul_fleet.ssh import options


class DeployError(PyinfraError):
    """Shown by pyinfra as one message, and ends the run before any host is changed."""


def read(pyinfra: PyinfraRun) -> Fleet:
    """The fleet as pyinfra has it.

    :raises DeployError: with every mistake in it
    """
    refuse_own_order(sys.argv)
    hosts = [{**told(each), "data": pyinfra.untyped(each.name)} for each in pyinfra]
    typed = {key: value for key, value in pyinfra.typed.items() if key not in TYPED}
    try:
        found = fleet_inventory.build(inventory_file(sys.argv), hosts, options.address, typed)
        access.check(found)
        hooks.find(found.folder)
        found = found.only(str(pyinfra.typed.get("app") or ""))
    except FleetError as error:
        raise DeployError(str(error)) from error
    for note in found.notes:
        logger.info(f"    {note}")
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
