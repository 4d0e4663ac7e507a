"""What pyinfra and Fabric share about SSH: which configuration, and how to open a connection."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paramiko

from uwsgi_consul_fleet import lab

USER_CONFIG = Path("~/.ssh/config").expanduser()
# A host that lost its power or its network says nothing: after half a minute it is given up.
# Seconds, but for the last, which are milliseconds.
VANISHED = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 30_000,
}


def config_file() -> str:
    """The ssh config of the lab while it is up, else the operator's own, which may not exist."""
    return str(lab.SSH_CONFIG if lab.SSH_CONFIG.exists() else USER_CONFIG)


class Transport(paramiko.Transport):
    """Says that a connection is lost in a way that callers of paramiko expect.

    Where the other side has gone, paramiko raises a bare EOFError, which is no OSError and which
    pyinfra 3.10 does not catch: the whole run would end there.
    """

    def open_channel(self, *args: Any, **kwargs: Any) -> paramiko.Channel:
        try:
            return super().open_channel(*args, **kwargs)
        except EOFError as error:
            raise paramiko.SSHException("connection lost") from error


def nodelay_transport(sock: Any, **kwargs: Any) -> paramiko.Transport:
    """A transport that sends small packets at once, and notices when its host goes away.

    Paramiko leaves Nagle's algorithm on, and its many small writes then wait for
    delayed acknowledgements: 50 ms for a command instead of 15.
    """
    options = {"TCP_NODELAY": 1, **VANISHED}
    for name, value in options.items():
        if hasattr(socket, name):  # some are Linux's alone
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return Transport(sock, **kwargs)


def ssh_config(host_data: Mapping[str, Any]) -> paramiko.SSHConfig:
    """The ssh configuration that holds for a host, first file first as in ssh itself."""
    config = paramiko.SSHConfig()
    for name in (host_data.get("ssh_config_file"), USER_CONFIG):
        path = Path(name).expanduser() if name else None
        if path and path.is_file():
            with path.open() as file:
                config.parse(file)
    return config


def resolve(name: str, host_data: Mapping[str, Any]) -> str:
    """The IPv4 address under which a host is reached.

    :raises OSError: where neither the ssh configuration nor DNS knows the name
    """
    alias = host_data.get("ssh_hostname") or name
    target = ssh_config(host_data).lookup(alias).get("hostname", alias)
    found = socket.getaddrinfo(target, None, socket.AF_INET, socket.SOCK_STREAM)
    return str(found[0][4][0])
