"""Reading the inventory: the only module that knows how pyinfra presents it."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.errors import FleetError, InventoryError
from uwsgi_consul_fleet.inventory import applications, model
from uwsgi_consul_fleet.inventory.vault import FOLDER, NOWHERE, SERVERS, Vault

# The address under which a host of that name and with that data is reached, or OSError.
Resolve = Callable[[str, Mapping[str, Any]], str]


def read(file: str | Path, resolve: Resolve) -> model.Fleet:
    """The fleet, for every program but pyinfra itself.

    pyinfra reads it in a process of its own (importing its command line would
    patch the standard library of ours).

    :param resolve: for hosts without an ``address``
    :raises FleetError: where there is no inventory or pyinfra can't read it
    :raises InventoryError: with every mistake in it
    """
    path = Path(file)
    if not path.is_file():
        raise FleetError(
            f"{path}: there is no such file; run this from the folder that holds the inventory"
        )
    pyinfra = Path(sys.executable).with_name("pyinfra")
    command = [str(pyinfra), str(path), "debug-inventory", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise FleetError(f"{path}: pyinfra can't read it:\n{result.stderr.strip()}")
    return build(path, json.loads(result.stdout), resolve)


def build(
    path: Path,
    hosts: Sequence[Mapping[str, Any]],
    resolve: Resolve,
    typed: Mapping[str, Any] | None = None,
) -> model.Fleet:
    """The fleet from hosts as :func:`.told.told` has them.

    :param path: the inventory file; pyinfra makes a group of its name
    :param typed: what comes before their data
    :raises InventoryError: with every mistake in it
    """
    # Where pyinfra looks for them: beside the inventory and in the current folder.
    folders = list(dict.fromkeys((path.resolve().parent, Path.cwd())))
    group_files = {file.stem for folder in folders for file in folder.glob("group_data/*.py")}
    listed = [
        model.InventoryHost(
            each["name"],
            frozenset(each["groups"]),
            each["data"],
            typed or {},
            frozenset(each["own"]),
        )
        for each in hosts
    ]
    files = applications.files(folders)
    named = ", ".join(each.name for each in listed if "app_name" in each.data)
    note = f"{applications.FOLDER}/ is not read: the data of hosts set app_name ({named})"
    try:
        fleet = model.build(
            listed,
            group_files,
            implicit_groups={"all", path.stem},
            resolve=lambda host: resolve(host.name, host.data),
            applications=None if named else applications.read(files),
            groups={group for each in hosts for group in each["all_groups"]} - group_files,
        )
    except InventoryError as error:
        used = {group for each in listed for group in each.groups}
        if named and used & {file.stem.replace("-", "_") for file in files}:
            raise InventoryError([*error.problems, note]) from None  # so its groups are unknown
        raise
    fleet = fleet.kept_in(_vault(fleet, path.resolve()))
    return replace(fleet, file=path, notes=(note,) if named and files else ())


def _vault(fleet: model.Fleet, path: Path) -> Vault:
    """Where its secrets are; nowhere, where Consul is not its own."""
    servers = [host for host in fleet.hosts if host.is_consul_server]
    if not fleet.brings_consul or not servers:
        return NOWHERE
    settings = servers[0].settings
    name = fleet.name or _named(fleet, path, servers[0].name)
    return Vault(path.parent, name, settings.secrets_load or "", settings.secrets_save or "")


def _named(fleet: model.Fleet, path: Path, first: str) -> str:
    """Of a fleet without a name: after its inventory and the server that was the first one at its
    first deploy, which may have left since."""
    hosts = dict.fromkeys([first, *(host.name for host in fleet.hosts)])
    names = [f"{path.stem}-{name}" for name in hosts]
    place = path.parent / FOLDER
    there = (name for name in names if (place / name).is_dir())
    return next(there, "") or _noted(place, path.stem, {*hosts}) or names[0]


def _noted(place: Path, stem: str, hosts: set[str]) -> str:
    """Where one of these hosts was a Consul server at the last deploy; '' for nowhere."""
    for file in sorted(place.glob(f"{escape(stem)}-*/{SERVERS}")):
        with suppress(OSError, ValueError):  # what can't be read is no reason to stop
            if hosts & {*file.read_text().split()}:
                return file.parent.name
    return ""
