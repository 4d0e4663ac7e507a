"""Showing a host who we are, in ssh's order: the agent's keys, key files, a password."""

import getpass
import socket
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from threading import Lock

import paramiko
from paramiko.agent import AgentKey, AgentSSH

from uwsgi_consul_fleet.ssh.options import Options

_asking = Lock()


class Identities:
    """What paramiko calls an authentication strategy. Its own way through keys ends at an
    agent's key of a kind that it does not know, and has no other agent than the environment's."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def authenticate(self, transport: paramiko.Transport) -> None:
        """:raises AuthenticationException: naming what was tried"""
        tried = []
        for what, attempt in self._attempts(transport):
            tried.append(what)
            try:
                attempt()
            except paramiko.AuthenticationException:
                continue
            except (EOFError, paramiko.SSHException) as error:
                # The other side has enough of it; sshd takes six attempts.
                raise paramiko.AuthenticationException(self._refused(tried)) from error
            if transport.is_authenticated():  # else it wants to see something more
                return
        raise paramiko.AuthenticationException(self._refused(tried))

    def _refused(self, tried: list[str]) -> str:
        options = self._options
        what = ", ".join(tried) or "nothing, there is no key and no password"
        said = [f"it does not let {options.user} in; tried: {what}"]
        for file in filter(None, (options.key, *options.identities)):
            is_there = Path(file).expanduser().is_file()
            if file == options.key and not is_there:
                said.append(f"{file}: no such file")
            if is_there and not _load(file, options.key_password):
                told = "is not a private key, or needs its password (ssh_key_password)"
                said.append(f"{file}: {told}")
        return "; ".join(said)

    def _attempts(self, wire: paramiko.Transport) -> Iterator[tuple[str, Callable[[], object]]]:
        options, user = self._options, self._options.user
        if options.more.get("gss_auth"):
            yield "Kerberos", partial(wire.auth_gssapi_with_mic, user, wire.gss_host, True)
        files = (options.key,) if options.key else options.identities
        public = {known for file in files if (known := _public(file))}
        agents = _agent(options.agent) if options.agent else ()
        named = [key for key in agents if key.asbytes() in public]
        others = [] if options.only_identities or options.key else set(agents).difference(named)
        for held in (*named, *others):
            called = getattr(held, "comment", "") or f"{held.get_name()} key"
            yield f"the agent's {called}", partial(wire.auth_publickey, user, held)
        for file in files:
            if key := _load(file, options.key_password) or self._ask(file):
                for certificate in options.certificates[:1]:
                    key.load_certificate(certificate)
                yield file, partial(wire.auth_publickey, user, key)
        if options.password:
            yield "the password", partial(wire.auth_password, user, options.password)

    def _ask(self, file: str) -> paramiko.PKey | None:
        """For the one that the inventory names, the operator may be asked for its password."""
        if not self._options.key or not Path(file).expanduser().is_file():
            return None
        if not sys.stdin or not sys.stdin.isatty():
            return None
        with _asking:
            return _asked(file)


@cache
def _asked(file: str) -> paramiko.PKey | None:
    return _load(file, getpass.getpass(f"Enter password for private key: {file}: "))


@cache
def _load(file: str, password: str) -> paramiko.PKey | None:
    """A key with the certificate beside it; None where there is none that can be read."""
    try:
        return paramiko.PKey.from_path(Path(file).expanduser(), password.encode() or None)
    # TypeError is cryptography's way to ask for a password, or not to want one.
    except TypeError:
        return _load(file, "") if password else None
    except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
        return None


def _public(file: str) -> bytes:
    """The public half of a key file, of which the agent may have the private one."""
    for candidate in (f"{file}.pub", file):
        try:
            kind, data = Path(candidate).expanduser().read_text().split()[:2]
            return paramiko.PKey.from_type_string(kind, b64decode(data)).asbytes()
        except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType):
            continue
    return b""


def _agent(path: str) -> tuple[AgentKey, ...]:
    connection, agent = socket.socket(socket.AF_UNIX), AgentSSH()
    try:
        connection.connect(path)
        agent._connect(connection)  # type: ignore[attr-defined] # as paramiko's own does
        keys = agent.get_keys()
    except (OSError, paramiko.SSHException):
        return ()
    for key in keys:
        # A security key's: paramiko looks in vain for what is in it.
        if getattr(key, "inner_key", None) is None:
            key.public_blob = None
    return keys
