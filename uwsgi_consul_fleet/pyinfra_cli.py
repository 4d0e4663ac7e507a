"""Let pyinfra's command line take a folder, as in `pyinfra inventory.py deploy/`.

pyinfra 3.10 accepts only ``.py`` files as operations and checks them before it
loads anything of ours. pyproject.toml registers :func:`accept_folders` under
gevent's ``did_patch_all`` entry point, which runs when ``pyinfra_cli`` is imported.
"""

import json
import sys
from pathlib import Path

from uwsgi_consul_fleet import before
from uwsgi_consul_fleet.lock import handle as keeper


def accept_folders(_event: object) -> None:
    """Replace each folder on pyinfra's command line by the ``__main__.py`` inside it.

    Any other program that patches itself with gevent is left alone, and so is a
    folder without a ``__main__.py``. Where something is going to be changed, the process
    that will keep the lock is loaded meanwhile. It is also the one moment before pyinfra reads
    an inventory: settings of the version before are prepared for, and hosts are reached our way.
    """
    if Path(sys.argv[0]).name != "pyinfra":
        return
    for position, argument in enumerate(sys.argv[1:], start=1):
        main = Path(argument) / "__main__.py"
        if main.is_file():
            sys.argv[position] = str(main)
            if "--dry" not in sys.argv:
                keeper.prepare()
    before.stand_in()
    take_as_typed(sys.argv)
    # Here, where gevent has patched what it imports.
    from uwsgi_consul_fleet.ssh import connector

    connector.register()


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
