"""pyinfra's connections, made where all others are: see client.py."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyinfra.api.connect
import pyinfra.connectors.ssh
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.state import State
from pyinfra.connectors.ssh import SSHConnector

from uwsgi_consul_fleet.errors import FleetError, StrangerError

if TYPE_CHECKING:
    from uwsgi_consul_fleet.ssh.options import Options

INVENTORY = "inventory.py"
ROOTS = ("", None, False, "root")


class Connector(SSHConnector):
    """pyinfra's own but for how it connects: hosts whose deploy goes through are reached by every
    command, and the same way. ``reached`` is told of each: its name, groups and data."""

    reached: Callable[[str, list[str], Mapping[str, Any]], None]

    def connect(self) -> None:
        """:raises ConnectError: with what the commands say too"""
        # Here, because every command starts pyinfra to read the inventory and connects to nothing.
        from uwsgi_consul_fleet.ssh import client

        try:
            self.client = client.connect(self.options)  # type: ignore[assignment] # not its own
        except FleetError as error:
            raise ConnectError(str(error)) from error
        self.reached(self.host.name, self.host.groups, self._data)

    @property
    def _data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.host.data.dict()  # type: ignore[no-untyped-call]
        return found

    @cached_property
    def options(self) -> "Options":
        """Looked up once: hosts are met before they are connected to.

        :raises FleetError: naming the host and the setting that can't be
        """
        from uwsgi_consul_fleet.ssh import options

        return options.of(self.host.name, self._data, self.state.config.CONNECT_TIMEOUT)

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


def _meet(state: State) -> None:
    """Before pyinfra connects to hosts, which it does side by side and shows a progress of.

    :raises PyinfraError: which ends the run
    """
    from uwsgi_consul_fleet.ssh import strangers

    limited = [each for each in state.inventory if state.is_host_in_limit(each)]
    found = []
    for each in limited:
        with suppress(FleetError):  # told where it connects
            if isinstance(each.connector, Connector):
                found.append(each.connector.options)
    try:
        strangers.settle(found, asks=state.check_for_changes, then=_named(sys.argv))
    except StrangerError as error:
        raise PyinfraError(str(error)) from error


def _named(arguments: Sequence[str]) -> str:
    """The inventory, where it is not the one that every command takes."""
    found = next((word for word in arguments[1:] if word.endswith(".py")), INVENTORY)
    return "" if found == INVENTORY else f" --inventory {found}"


def register(reached: Callable[[str, list[str], Mapping[str, Any]], None]) -> None:
    """pyinfra finds its connectors by name, this one as this attribute of this module.

    :param reached: see :class:`Connector`
    """
    Connector.reached = staticmethod(reached)
    pyinfra.connectors.ssh.SSHConnector = Connector  # type: ignore[misc]
    connect_all = pyinfra.api.connect.connect_all

    def first_meet(state: State) -> None:
        _meet(state)
        connect_all(state)

    pyinfra.api.connect.connect_all = first_meet
