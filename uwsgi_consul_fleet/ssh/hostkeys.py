"""Is this the host that it was? The known_hosts files, read as ssh reads them and only added to.

Paramiko's own keeping of them writes a file anew from what it understood of it: comments, and
what others added meanwhile, are lost.
"""

import fcntl
import hmac
import os
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeys

from uwsgi_consul_fleet.ssh.config import matches
from uwsgi_consul_fleet.ssh.options import Options

TRUST = "invoke ssh.trust"  # the command that asks about all hosts that were never met
# Trusted in this run, where no file could be written: name, kind and key.
_unwritten: set[tuple[str, str, str]] = set()


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
    its = (key.get_name(), key.get_base64())
    if (options.key_name, *its) in _unwritten:
        return True
    entries = list(_entries(options))
    for entry in entries:
        if entry.marker == "@revoked" and (entry.kind, entry.key) == its:
            raise HostKeyError(f"its host key is revoked, by {entry.file} line {entry.line}")
    plain = [entry for entry in entries if not entry.marker]
    if any((entry.kind, entry.key) == its for entry in plain):
        return True
    if plain:
        raise HostKeyError(_changed(options, plain[0], key))
    return False


def _changed(options: Options, entry: Entry, key: paramiko.PKey) -> str:
    return (
        f"its host key has changed: {entry.file} line {entry.line} has another one than "
        f"{shown(key)}, which it shows now; somebody may be listening in. If the machine was "
        f"made anew: ssh-keygen -R '{options.key_name}' -f {entry.file}"
    )


def shown(key: paramiko.PKey) -> str:
    """As ssh shows it: the kind, and the fingerprint."""
    digest = b64encode(sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def _entries(options: Options) -> Iterator[Entry]:
    """A host's lines; those that can't be understood are passed over."""
    for file in (*options.known_hosts, *options.systems_known_hosts):
        try:
            found = Path(file).stat()
        except OSError:
            continue
        yield from _of(options.key_name, file, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2000)
def _of(name: str, file: str, modified: int, size: int) -> list[Entry]:
    """A host's lines in a file, looked for again when it has changed: each hash takes its time."""
    return [entry for is_about, entry in _read(file, modified, size) if is_about(name)]


@lru_cache(maxsize=16)
def _read(file: str, _modified: int, _size: int) -> list[tuple[Callable[[str], bool], Entry]]:
    """All lines of a file, each with what says whether it is about a name."""
    try:
        lines = Path(file).read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) > 2 and words[0][0] != "#":
            found.append((_names(words[0]), Entry(file, number, marker, words[1], words[2])))
    return found


def _names(word: str) -> Callable[[str], bool]:
    """Whether a line's first word, a list of patterns or one hash, is about a name."""
    if not word.startswith("|"):
        return partial(matches, patterns=word)
    kind, *rest = word[1:].split("|")
    try:
        salt, digest = map(b64decode, rest)
    except ValueError:
        return lambda name: False
    return lambda name: kind == "1" and hmac.digest(salt, name.encode(), "sha1") == digest


# --- A host that was never met -----------------------------------------------------------


def _meet(options: Options, key: paramiko.PKey) -> None:
    if options.mode in ("yes", "ask"):
        strict = ' (StrictHostKeyChecking is "yes")' * (options.mode == "yes")
        raise HostKeyError(
            f"its host key, {shown(key)}, is in no known_hosts file{strict}; compare it with the "
            f"host's own, then trust it: {TRUST}"
        )
    trust(options, key)
    said = f"its host key, {shown(key)}, is trusted as the first that it shows"
    print(f"{options.name} ({options.host}): {said}", file=sys.stderr)


def trust(options: Options, key: paramiko.PKey) -> None:
    """Know this key from now on.

    :raises HostKeyError: where another connection has met the host meanwhile, with another key
    """
    try:
        _remember(options, key)
    except OSError as error:
        _unwritten.add((options.key_name, key.get_name(), key.get_base64()))
        print(f"the host key of {options.name} is not remembered: {error}", file=sys.stderr)


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
