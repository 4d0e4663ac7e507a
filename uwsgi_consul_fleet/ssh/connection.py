"""Running things on hosts outside pyinfra, over Fabric."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from socket import create_connection, socket
from threading import Thread
from typing import Any, Protocol

import paramiko
from fabric import Config, Connection
from invoke.exceptions import ThreadException

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.ssh import transport

CONNECT_TIMEOUT = 10  # seconds

# What it would print is in our errors, with the host and what to do.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class Host(Protocol):
    """What must be known of a host to reach it; the model has much more, and takes time to load."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Result:
    """What a script printed and how it ended."""

    stdout: bytes
    stderr: str
    exit_code: int


@contextmanager
def connect(host: Host) -> Iterator[Connection]:
    """An open connection to a host, configured as pyinfra's own.

    :raises UnreachableError: naming the host, why, and what to look at
    """
    connection = _connection(host)
    try:
        connection.open()
    except (OSError, paramiko.SSHException, EOFError) as error:
        raise UnreachableError(
            f"{host.name} ({connection.host}): no SSH connection: {error or type(error).__name__}; "
            f"try: {_command_line(host)}"
        ) from error
    with closing(connection):
        yield connection


def _connection(host: Host) -> Connection:
    data = host.data
    ssh_config = transport.ssh_config(data)
    connect_kwargs: dict[str, Any] = {"transport_factory": transport.nodelay_transport}
    if data.get("ssh_key"):
        connect_kwargs["key_filename"] = str(Path(data["ssh_key"]).expanduser())
    if data.get("ssh_password"):
        connect_kwargs["password"] = data["ssh_password"]
    connection = Connection(
        data.get("ssh_hostname") or host.name,
        user=data.get("ssh_user"),
        port=data.get("ssh_port"),
        config=Config(ssh_config=ssh_config),
        connect_timeout=CONNECT_TIMEOUT,
        connect_kwargs=connect_kwargs,
    )
    _trust(connection.client, connection.ssh_config, data)
    return connection


def _trust(client: paramiko.SSHClient, options: Any, data: Any) -> None:
    """Check host keys as ssh would; a changed key is refused in every mode."""
    known = data.get("ssh_known_hosts_file") or options.get(
        "userknownhostsfile", "~/.ssh/known_hosts"
    )
    path = Path(known.split()[0]).expanduser()
    if path.is_file():
        client.load_host_keys(str(path))
    mode = options.get("stricthostkeychecking") or data.get("ssh_strict_host_key_checking")
    policy = paramiko.RejectPolicy if mode in ("yes", "ask") else paramiko.AutoAddPolicy
    client.set_missing_host_key_policy(policy)


def _command_line(host: Host) -> str:
    config = host.data.get("ssh_config_file")
    return f"ssh {f'-F {config} ' if config and Path(config).is_file() else ''}{host.name}"


def side_by_side(count: int) -> ThreadPool:
    """Threads for so many hosts. Ctrl-C does not wait for what they do."""
    return ThreadPool(max(1, count))


def run_script(
    connection: Connection,
    script: str,
    stdin: bytes = b"",
    on_line: Callable[[str], None] = lambda line: None,
) -> Result:
    """Run a shell script as root, without leaving a file behind.

    :param script: its text; it finds it again in ``$SCRIPT``
    :param stdin: what it reads
    :param on_line: called with each line of its standard error as it comes
    :raises UnreachableError: where the connection is lost meanwhile
    """
    command = f"sudo -n env SCRIPT={shlex.quote(script)} sh -c {shlex.quote(script)}"
    lines: list[str] = []

    def follow(stream: Any) -> None:
        for line in stream:
            lines.append(line)
            on_line(line.rstrip("\n"))

    try:
        input_, output, errors = connection.client.exec_command(command)
        reader = Thread(target=follow, args=(errors,), daemon=True)
        reader.start()
        input_.write(stdin)
        input_.channel.shutdown_write()
        stdout = output.read()
        reader.join()
        code = output.channel.recv_exit_status()
        if code == -1:  # the channel was closed without one
            raise UnreachableError(f"{connection.original_host}: connection lost")
        return Result(stdout, "".join(lines), code)
    except (OSError, paramiko.SSHException, EOFError) as error:
        raise UnreachableError(f"{connection.original_host}: connection lost: {error}") from error


def open_channel(connection: Connection, port: int) -> paramiko.Channel:
    """A connection to a port on the host's loopback, to be used like a socket.

    :raises UnreachableError: where nothing listens there
    """
    address = ("127.0.0.1", port)
    try:
        channel: paramiko.Channel = connection.transport.open_channel(
            "direct-tcpip", address, ("127.0.0.1", 0), timeout=CONNECT_TIMEOUT
        )
    except (OSError, paramiko.SSHException) as error:
        raise UnreachableError(
            f"{connection.original_host}: nothing listens on its port {port}"
        ) from error
    return channel


@contextmanager
def tunnel(connection: Connection, remote_port: int) -> Iterator[int]:
    """A port on this machine's loopback that leads to one on the host's loopback.

    :raises UnreachableError: where nothing listens on the host's port
    """
    # Asked first: a tunnel that can't be opened leaves its local end waiting for an answer.
    open_channel(connection, remote_port).close()
    with closing(socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    forward = connection.forward_local(port, remote_port, "localhost", "127.0.0.1")
    forward.__enter__()
    try:
        _wait_for_listener(port)
        yield port
    finally:
        # Fabric raises here whatever befell a single connection of the tunnel; the
        # request that went through it has failed for its own user by then.
        with suppress(ThreadException):
            forward.__exit__(None, None, None)


def _wait_for_listener(port: int) -> None:
    """Fabric starts to listen in a thread of its own and does not say when it does."""
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while True:
        try:
            create_connection(("127.0.0.1", port), CONNECT_TIMEOUT).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise UnreachableError(f"no tunnel on local port {port}") from None
            time.sleep(0.005)
