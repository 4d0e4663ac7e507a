"""Opening a connection to a host: the only place that does, for pyinfra and for us."""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import paramiko
from paramiko.agent import AgentRequestHandler

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.ssh import transport
from uwsgi_consul_fleet.ssh.hostkeys import HostKeyError, Policy
from uwsgi_consul_fleet.ssh.identities import Identities
from uwsgi_consul_fleet.ssh.options import Options

# What befalls a connection, as paramiko says it.
LOST = (OSError, EOFError, paramiko.SSHException)
AT_ONCE = 2  # seconds; who is silent for longer is not waited for twice

# What it would print is in our errors, with the host and what to do.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class JumpError(paramiko.SSHException):
    """A jump host can't be reached, or does not reach what lies behind it."""


class Client(paramiko.SSHClient):
    """A connection that knows how it was made."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.forwarding: AgentRequestHandler | None = None


def _unreachable(options: Options, reason: str) -> UnreachableError:
    return UnreachableError(
        f"{options.name} ({options.host}): no SSH connection: {reason}; try: {options.command_line}"
    )


# Hosts that did not show their key a moment ago, and why: they are not asked again at once.
_silent: dict[Options, UnreachableError] = {}


def connect(options: Options) -> Client:
    """Open a connection, by way of others where it needs them; once more where a host is there
    and breaks off at once.

    :raises UnreachableError: naming the host, why, and what to look at
    """
    retries, may_break_off = options.retries, True
    if (reason := _silent.pop(options, None)) and not retries:
        raise reason
    while True:
        began = time.monotonic()
        try:
            return _connect(options)
        except (HostKeyError, paramiko.AuthenticationException) as error:
            raise _unreachable(options, str(error)) from error
        except LOST as error:
            if may_break_off and _broke_off(error, time.monotonic() - began):
                may_break_off = False
            elif retries:
                retries -= 1
            else:
                raise _unreachable(options, _reason(error)) from error
        time.sleep(random.uniform(*options.retry_delay))  # noqa: S311 - not for secrets


def _broke_off(error: Exception, seconds: float) -> bool:
    """Whether a host was there and would be again: as where sshd drops some of many that come at
    the same time (MaxStartups in sshd_config(5))."""
    is_other = isinstance(error, OSError) and not isinstance(error, ConnectionResetError)
    return seconds < AT_ONCE and not is_other and not isinstance(error, JumpError)


def shown_key(options: Options) -> paramiko.PKey | None:
    """The key by which a host says who it is, which is told nothing of us; None where it says
    nothing, as the next :func:`connect` explains."""
    try:
        with _wire(options) as wire:
            asked = transport.Transport(options, wire)
            try:
                asked.start_client(timeout=options.timeout)
                return asked.get_remote_server_key()
            finally:
                asked.close()
    except LOST as error:
        _silent[options] = _unreachable(options, _reason(error))
        return None


def silent() -> list[UnreachableError]:
    """Why those hosts that were asked for their key did not show one."""
    return [*_silent.values()]


def _reason(error: Exception) -> str:
    # As paramiko has it where its time is up before it has heard anything.
    timed_out = str(error) == "No existing session"
    return "timed out" if timed_out else str(error) or type(error).__name__


def _connect(options: Options) -> Client:
    client = Client(options)
    client.set_missing_host_key_policy(Policy(options))
    with _wire(options) as wire:
        try:
            client.connect(
                options.host,
                options.port,
                sock=wire,
                timeout=options.timeout,
                transport_factory=partial(transport.Transport, options),
                auth_strategy=Identities(options),  # type: ignore[arg-type] # it has its own list
                **options.more,
            )
        except BaseException:
            client.close()
            raise
    _keep(client)
    return client


def _keep(client: Client) -> None:
    options, wire = client.options, client.get_transport()
    assert wire
    if options.alive_interval:
        transport.watch(wire, options.alive_interval, options.alive_count)
    elif options.jump or options.proxy_command:
        transport.watch(wire, transport.QUESTION, transport.UNANSWERED)
    if options.forward_agent:
        # Kept with the client: it ends when nobody holds it.
        client.forwarding = AgentRequestHandler(wire.open_session())


@contextmanager
def _wire(options: Options) -> Iterator[Any]:
    """What leads to a host; closed where something goes wrong with it."""
    wire = _open(options)
    try:
        yield wire
    except BaseException as error:
        wire.close()
        words = wire.last_words() if isinstance(wire, transport.Command) else ""
        if words and isinstance(error, LOST):
            raise paramiko.SSHException(
                f"{_reason(error)}; its ProxyCommand says: {words}"
            ) from error
        raise


def _open(options: Options) -> Any:
    if options.proxy_command:
        return transport.Command(options.proxy_command)
    if options.jump:
        return _through(options.jump, options)
    return transport.dial(options)


# --- Jump hosts: one connection to each, for all that lies behind it --------------------------


class _Jump:
    """A jump host's connection. Who waits while it is tried shares in how that ends."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._mutex = Lock()
        self._client: Client | None = None
        self._failure: UnreachableError | None = None
        self._failed = 0.0

    def wire(self) -> paramiko.Transport:
        """:raises UnreachableError: where it can't be reached"""
        asked = time.monotonic()
        with self._mutex:
            wire = self._client.get_transport() if self._client else None
            if wire and wire.is_active():
                return wire
            if self._failure and self._failed > asked:
                raise self._failure
            try:
                self._client = connect(self._options)
            except UnreachableError as error:
                self._failure, self._failed = error, time.monotonic()
                raise
            wire = self._client.get_transport()
            assert wire
            return wire


_jumps: dict[Options, _Jump] = {}


def _through(options: Options, target: Options) -> paramiko.Channel:
    """:raises JumpError: where the jump host can't be reached, or does not reach the target"""
    jump = _jumps.setdefault(options, _Jump(options))
    where = (target.host, target.port)
    try:
        return jump.wire().open_channel(
            "direct-tcpip", where, ("127.0.0.1", 0), timeout=target.timeout
        )
    except UnreachableError as error:
        raise JumpError(f"by way of {error}") from error
    except paramiko.ChannelException as error:
        reason = f"by way of {options.name}, which can't reach {target.host} port {target.port}"
        raise JumpError(f"{reason}: {error.text}") from error
