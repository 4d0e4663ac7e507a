"""Reading the inventory: the only module that knows how pyinfra presents it."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory import model
from uwsgi_consul_fleet.ssh import options


def read(file: str | Path) -> model.Fleet:
    """The fleet, for every program but pyinfra itself.

    pyinfra reads it in a process of its own (importing its command line would
    patch the standard library of ours).

    :raises FleetError: where there is no inventory or pyinfra can't read it
    :raises InventoryError: with every mistake in it
    """
    path = Path(file)
    if not path.is_file():
        raise FleetError(f"{path}: no such inventory; run this from the folder that holds it")
    pyinfra = Path(sys.executable).with_name("pyinfra")
    command = [str(pyinfra), str(path), "debug-inventory", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise FleetError(f"{path}: pyinfra can't read it:\n{result.stderr.strip()}")
    return build(path, (_json_host(entry) for entry in json.loads(result.stdout)))


def build(path: Path, hosts: Iterable[model.InventoryHost]) -> model.Fleet:
    """The fleet from hosts as pyinfra has them in memory (see deploy/) or printed them.

    :param path: the inventory file; pyinfra makes a group of its name
    """
    # Where pyinfra looks for them: beside the inventory and in the current folder.
    folders = {path.resolve().parent, Path.cwd()}
    group_files = {file.stem for folder in folders for file in folder.glob("group_data/*.py")}
    return model.build(
        hosts,
        group_files,
        implicit_groups={"all", path.stem},
        resolve=lambda host: options.address(host.name, host.data),
    )


def _json_host(entry: dict[str, Any]) -> model.InventoryHost:
    return model.InventoryHost(entry["name"], frozenset(entry["groups"]), entry["data"])
