"""pyinfra's connections, made where all others are: see client.py."""

from collections.abc import Callable, Mapping
from typing import Any

import pyinfra.connectors.ssh
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.ssh import SSHConnector

from uwsgi_consul_fleet.errors import FleetError

ROOTS = ("", None, False, "root")


class Connector(SSHConnector):
    """pyinfra's own but for how it connects: hosts whose deploy goes through are reached by every
    command, and the same way. ``reached`` is told of each: its name, groups and data."""

    reached: Callable[[str, list[str], Mapping[str, Any]], None]

    def connect(self) -> None:
        """:raises ConnectError: with what the commands say too"""
        # Here, because every command starts pyinfra to read the inventory and connects to nothing.
        from uwsgi_consul_fleet.ssh import client, options

        data: dict[str, Any] = self.host.data.dict()  # type: ignore[no-untyped-call]
        try:
            found = options.of(self.host.name, data, self.state.config.CONNECT_TIMEOUT)
            self.client = client.connect(found)  # type: ignore[assignment] # not pyinfra's own
        except FleetError as error:
            raise ConnectError(str(error)) from error
        self.reached(self.host.name, self.host.groups, data)

    def run_shell_command(self, command: Any, *args: Any, **arguments: Any) -> Any:
        """Where ssh's user is root, nothing is put before a command to become it."""
        made = getattr(self.client, "options", None)
        if made and made.user == "root":
            arguments = _as_root(arguments)
        return super().run_shell_command(command, *args, **arguments)


def _as_root(arguments: dict[str, Any]) -> dict[str, Any]:
    """Without what would make root of root; another user is another matter."""
    kept = dict(arguments)
    for way in ("_sudo", "_doas", "_dzdo"):
        if kept.get(f"{way}_user") in ROOTS:
            kept.pop(way, None)
    if kept.get("_su_user") == "root":
        kept.pop("_su_user")
    return kept


def register(reached: Callable[[str, list[str], Mapping[str, Any]], None]) -> None:
    """pyinfra finds its connectors by name, this one as this attribute of this module.

    :param reached: see :class:`Connector`
    """
    Connector.reached = staticmethod(reached)
    pyinfra.connectors.ssh.SSHConnector = Connector  # type: ignore[misc]
