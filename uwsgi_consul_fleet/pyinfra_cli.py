"""Let pyinfra's command line take a folder, as in `pyinfra inventory.py deploy/`.

pyinfra 3.10 accepts only ``.py`` files as operations and checks them before it
loads anything of ours. pyproject.toml registers :func:`accept_folders` under
gevent's ``did_patch_all`` entry point, which runs when ``pyinfra_cli`` is imported.
"""

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
    # Here, where gevent has patched what it imports.
    from uwsgi_consul_fleet.ssh import connector

    connector.register()
