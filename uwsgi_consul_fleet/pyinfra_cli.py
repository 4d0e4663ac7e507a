"""Let pyinfra's command line take a folder, as in `pyinfra inventory.py deploy/`.

pyinfra 3.10 accepts only ``.py`` files as operations and checks them before it
loads anything of ours. pyproject.toml registers what is here under two of gevent's entry
points, which are called when ``pyinfra_cli`` is imported: before and after gevent patches the
standard library.
"""

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any


def read_entry_points_once(_event: object) -> None:
    """For each module that it patches gevent looks twice for plugins in all installed packages,
    and pyinfra for each host: in pyinfra's process they look into what is read here. It takes a
    fifth of a second otherwise, of each command that reads an inventory.
    """
    if _is_pyinfra():
        metadata.entry_points = metadata.entry_points().select


def _is_pyinfra() -> bool:
    return Path(sys.argv[0]).name == "pyinfra"


def accept_folders(_event: object) -> None:
    """Have pyinfra accept our command line; any other program that patches itself with gevent is
    left alone. It is also the one moment before pyinfra reads an inventory: settings of the version
    before are prepared for, and hosts are reached our way.
    """
    if not _is_pyinfra():
        return
    # Here, where gevent has patched what it imports.
    from uwsgi_consul_fleet import before

    before.stand_in()
    take_command_line()
    # Last of all: it takes longest to load.
    from uwsgi_consul_fleet.ssh import connector

    connector.register(_reached)


def take_command_line() -> None:
    """Replace each folder on it by the ``__main__.py`` inside it; one without is left alone. Where
    something is going to be changed, the process that will keep the lock is loaded meanwhile."""
    from uwsgi_consul_fleet.lock import handle as keeper

    for position, argument in enumerate(sys.argv[1:], start=1):
        main = Path(argument) / "__main__.py"
        if main.is_file():
            sys.argv[position] = str(main)
            if "--dry" not in sys.argv:
                keeper.prepare()
    take_as_typed(sys.argv)
    if "debug-inventory" in sys.argv:
        from pyinfra_cli import prints  # type: ignore[import-untyped]

        from uwsgi_consul_fleet.inventory.told import told

        # With what its own does not tell.
        prints._host_to_dict = told


def _reached(name: str, groups: list[str], data: Mapping[str, Any]) -> None:
    """A host, of which the keeper of the lock may make use already."""
    from uwsgi_consul_fleet.lock import handle as keeper
    from uwsgi_consul_fleet.ssh.options import plain

    if "consul_servers" in groups and data.get("consul_source") != "none":
        keeper.reached(name, plain(data))


def take_as_typed(arguments: list[str]) -> None:
    """pyinfra reads the values of ``--data`` as JSON, where 1.10 is 1.1 and 007 is 7: where a
    setting is a text, it is given one."""
    for position, word in enumerate(arguments):
        if word == "--data" and position + 1 < len(arguments):
            arguments[position + 1] = _as_typed(arguments[position + 1])
        elif word.startswith("--data="):
            arguments[position] = "--data=" + _as_typed(word.removeprefix("--data="))


def _as_typed(setting: str) -> str:
    # Here, because most commands start pyinfra without any, and it takes time to load.
    from uwsgi_consul_fleet.inventory.settings import is_text

    key, _, value = setting.partition("=")
    is_json = value.startswith('"') or (value == "null" and key != "release")
    return setting if is_json or not is_text(key) else f"{key}={json.dumps(value)}"
