"""What the settings of the version before import: they go on working, and say what to delete."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WORD = """\
uwsgi-consul-fleet: group_data/ is of the version before; delete these lines from it:
    from fleet.transport import config_file, nodelay_transport
    ssh_paramiko_connect_kwargs = {"transport_factory": nodelay_transport}
and ssh_config_file = config_file(), or for the lab's machines instead of it:
    from uwsgi_consul_fleet.lab import ssh_config
    ssh_config_file = ssh_config()"""


class _Finder(MetaPathFinder):
    """Asked last: for ``fleet.transport`` where nobody else has one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "fleet":
            return ModuleSpec(name, _Loader(), is_package=True)
        return ModuleSpec(name, _Loader()) if name == "fleet.transport" else None


class _Loader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "fleet.transport":
            print(WORD, file=sys.stderr)
            vars(module).update(config_file=_config_file, nodelay_transport=_nodelay_transport)


def _config_file() -> str:
    from uwsgi_consul_fleet.lab import ssh_config

    return ssh_config()


def _nodelay_transport(sock: Any, **kwargs: Any) -> Any:
    """For pyinfra it is decided elsewhere; see :mod:`uwsgi_consul_fleet.ssh.connector`."""
    from paramiko import Transport

    return Transport(sock, **kwargs)


def stand_in() -> None:
    """Let ``fleet.transport`` be imported."""
    sys.meta_path.append(_Finder())
