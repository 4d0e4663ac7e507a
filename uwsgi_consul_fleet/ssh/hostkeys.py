"""Is this the host that it was? The known_hosts files, read as ssh reads them and only added to.

Paramiko's own keeping of them writes a file anew from what it understood of it: comments, and
what others added meanwhile, are lost.
"""

import fcntl
import os
import sys
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock

import paramiko
from paramiko.hostkeys import HostKeys

from uwsgi_consul_fleet.ssh.config import matches
from uwsgi_consul_fleet.ssh.options import Options

_asking = Lock()


class HostKeyError(paramiko.SSHException):
    """A host is not, or may not be, the one that it should be."""


@dataclass(frozen=True)
class Entry:
    """A line of a known_hosts file; ``marker`` is '', ``@revoked`` or ``@cert-authority``."""

    file: str
    line: int
    marker: str
    kind: str
    key: str


class Policy(paramiko.MissingHostKeyPolicy):
    """Paramiko is told of no known host, so that it asks here about each."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        """:raises HostKeyError: with what to do"""
        if not _is_known(self._options, key):
            _meet(self._options, key)


def known_kinds(options: Options) -> set[str]:
    """The kinds of keys under which a host is known; it is to show one of these."""
    return {entry.kind for entry in _entries(options) if not entry.marker}


def _is_known(options: Options, key: paramiko.PKey) -> bool:
    """:raises HostKeyError: where it is known with another key"""
    shown = (key.get_name(), key.get_base64())
    entries = list(_entries(options))
    for entry in entries:
        if entry.marker == "@revoked" and (entry.kind, entry.key) == shown:
            raise HostKeyError(f"its host key is revoked, by {entry.file} line {entry.line}")
    plain = [entry for entry in entries if not entry.marker]
    if any((entry.kind, entry.key) == shown for entry in plain):
        return True
    if plain:
        raise HostKeyError(_changed(options, plain[0], key))
    return False


def _changed(options: Options, entry: Entry, key: paramiko.PKey) -> str:
    return (
        f"its host key has changed: {entry.file} line {entry.line} has another one than "
        f"{_shown(key)}, which it shows now; somebody may be listening in. If the machine was "
        f"made anew: ssh-keygen -R '{options.key_name}' -f {entry.file}"
    )


def _shown(key: paramiko.PKey) -> str:
    """As ssh shows it: the kind, and the fingerprint."""
    digest = b64encode(sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def _entries(options: Options) -> Iterator[Entry]:
    """A host's lines; those that can't be understood are passed over."""
    for file in (*options.known_hosts, *options.systems_known_hosts):
        try:
            lines = Path(file).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, start=1):
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) > 2 and words[0][0] != "#" and _is_named(options.key_name, words[0]):
                yield Entry(file, number, marker, words[1], words[2])


def _is_named(name: str, names: str) -> bool:
    """Whether a line's first word, a list of patterns or one hash, is about this name."""
    if names.startswith("|"):
        try:
            return HostKeys.hash_host(name, names) == names
        except (ValueError, IndexError):
            return False
    return matches(name, names)


# --- A host that was never met -----------------------------------------------------------


def _meet(options: Options, key: paramiko.PKey) -> None:
    if options.mode in ("yes", "ask") and not (options.mode == "ask" and _agrees(options, key)):
        raise HostKeyError(
            f"its host key, {_shown(key)}, is in no known_hosts file, and StrictHostKeyChecking is "
            f'"{options.mode}"; compare it with the host\'s, then add it: {options.command_line}'
        )
    try:
        _remember(options, key)
    except OSError as error:
        print(f"the host key of {options.name} is not remembered: {error}", file=sys.stderr)


def _agrees(options: Options, key: paramiko.PKey) -> bool:
    with _asking:
        if not sys.stdin or not sys.stdin.isatty():
            return False
        if _is_known(options, key):  # another connection asked meanwhile
            return True
        question = f"{options.name} was never met; its host key is {_shown(key)}. Is it right?"
        print(f"{question} [yes/no] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() == "yes"


def _remember(options: Options, key: paramiko.PKey) -> None:
    """Add a line; many connections at once, in this and other processes, wait for each other.

    :raises HostKeyError: where another connection has met it meanwhile, with another key
    """
    if not options.known_hosts:
        return
    path = Path(options.known_hosts[0])
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = HostKeys.hash_host(options.key_name) if options.hash_names else options.key_name
    line = f"{name} {key.get_name()} {key.get_base64()}\n".encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        # Nothing below lets another greenlet of pyinfra's run, which would wait here for ever.
        fcntl.flock(file, fcntl.LOCK_EX)
        if _is_known(options, key):
            return
        size = os.fstat(descriptor).st_size
        ends = not size or os.pread(descriptor, 1, size - 1) == b"\n"
        os.write(descriptor, line if ends else b"\n" + line)
