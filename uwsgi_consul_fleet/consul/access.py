"""What the operator's machine shows to Consul, and how it knows that it is the right one.

For a Consul of the fleet's own that is derived from the fleet's secrets. Of one that was there
before, the settings say what is needed. Whatever asks Consul takes it from here.
"""

import json
import os
import stat
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host.consul import ADDRESS, KEYS
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.inventory.settings import HostSettings
from uwsgi_consul_fleet.secrets import store, tokens

Role = Literal["deploy", "read", "management"]


class Unseen(str):
    """Standard input of a command, of which nothing is shown: pyinfra prints, at -v, what facts
    and operations are given. It is itself where it is encoded, joined or added to."""

    __slots__ = ()

    def __new__(cls, text: str) -> "Unseen":
        # pyinfra would put the end of the line behind what it may show.
        return super().__new__(cls, text if not text or text.endswith("\n") else f"{text}\n")

    def __str__(self) -> str:
        return "(not shown)"

    def __repr__(self) -> str:
        return str(self)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __add__(self, other: str) -> "Unseen":
        return Unseen(super().__add__(other))


class Access(NamedTuple):
    """``address`` is that of a host's agent, as seen from the host; ``token`` the deploy's;
    ``keys`` what our keys begin with. ``ca_file``, ``cert_file`` and ``key_file`` are paths of
    files here, '' for none.

    ``other`` is the token that was shown before a rotation, '' for none, and whoever asks a cluster
    that does not know `token` shows that, and then nothing; None where `token` alone counts.
    """

    address: str = ADDRESS
    token: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    keys: str = KEYS
    other: str | None = None

    @property
    def is_https(self) -> bool:
        return self.address.startswith("https:")

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the address."""
        url = urlsplit(self.address)
        assert url.hostname and url.port is not None
        return url.hostname, url.port

    @property
    def words(self) -> tuple[str, ...]:
        """What tells the host program to read the rest from its standard input."""
        return ("--access-stdin",)

    @property
    def stdin(self) -> Unseen:
        """What it reads there first: a line, also where there is nothing to tell."""
        said: dict[str, Any] = {}
        if self.other is not None:
            said = {"token": self.token, "other": self.other}
        elif self != Access():
            said = {"address": self.address, "token_file": "", "token": self.token}
            said["keys"] = self.keys
            for kind in ("ca", "cert", "key"):
                said[kind] = _text(f"consul_{kind}_file", getattr(self, f"{kind}_file"))
        return Unseen(json.dumps(said) + "\n")


def access(host: Host, role: Role = "deploy") -> Access:
    """For the agent of a host.

    :param role: which of the tokens of a Consul of the fleet's own
    :raises FleetError: where a file or a variable that the settings name is missing, or the
        fleet's secrets can't be read
    """
    if host.brings_consul:
        return _own(host, role)
    settings = host.settings
    files = (settings.consul_ca_file, settings.consul_cert_file, settings.consul_key_file)
    ca, cert, key = (str(Path(name).expanduser()) if name else "" for name in files)
    token = secret(settings, "consul_token")
    return Access(settings.consul_address, token, ca, cert, key, Fleet((host,)).keys)


def _own(host: Host, role: Role) -> Access:
    secrets = store.load(host)
    if secrets is None:
        return Access()
    before = tokens.secret(secrets.seed_before, role) if secrets.seed_before else ""
    return Access(token=tokens.secret(secrets.seed, role), other=before)


def check(fleet: Fleet) -> None:
    """:raises FleetError: where something that the settings of a host name is missing"""
    for host in fleet.hosts:
        _ = access(host).stdin, secret(host.settings, "consul_app_token")


def secret(settings: HostSettings, key: str) -> str:
    """What the setting ``key`` names, '' for None; :raises FleetError: where it is missing"""
    return _secret(key, getattr(settings, key) or "")


@cache
def _secret(key: str, where: str) -> str:
    if where.startswith("$"):
        found = os.environ.get(where[1:], "")
    elif where:
        path = Path(where).expanduser()
        found = _text(key, str(path))
        if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            raise FleetError(
                f"{key}: others on this machine may read {path}: chmod 600 {path}; nothing was "
                "changed"
            )
    else:
        return ""
    found = found.strip()
    if not found or not found.isprintable() or " " in found:
        raise FleetError(f"{key}: there is no token in {where}; nothing was changed")
    return found


@cache
def _text(key: str, path: str) -> str:
    """A file, read once in a run."""
    try:
        return Path(path).read_text() if path else ""
    except (OSError, ValueError) as error:
        raise FleetError(f"{key}: {path}: {error}; nothing was changed") from error
