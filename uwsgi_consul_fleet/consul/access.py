"""What the operator's machine shows to Consul, and how it knows that it is the right one.

A Consul of the fleet's own needs none of it yet. Of one that was there before, the settings say
what is needed; whatever asks Consul takes it from here.
"""

import json
import os
import stat
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host.consul import ADDRESS, KEYS
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.inventory.settings import HostSettings


class Access(NamedTuple):
    """``address`` is that of a host's agent, as seen from the host; ``token`` the deploy's;
    ``keys`` what our keys begin with. The others are paths of files here, '' for none."""

    address: str = ADDRESS
    token: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    keys: str = KEYS

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
        return ("--access-stdin",) if self.stdin else ()

    @property
    def stdin(self) -> str:
        """What it reads there first; '' where there is nothing to tell."""
        if self == Access():
            return ""
        said = {"address": self.address, "token_file": "", "token": self.token, "keys": self.keys}
        kinds = ("ca", "cert", "key")
        texts = {
            kind: _text(f"consul_{kind}_file", getattr(self, f"{kind}_file")) for kind in kinds
        }
        return json.dumps({**said, **texts}) + "\n"


def access(host: Host) -> Access:
    """For the agent of a host.

    :raises FleetError: where a file or a variable that the settings name is missing
    """
    if host.brings_consul:
        return Access()
    settings = host.settings
    files = (settings.consul_ca_file, settings.consul_cert_file, settings.consul_key_file)
    ca, cert, key = (str(Path(name).expanduser()) if name else "" for name in files)
    token = secret(settings, "consul_token")
    return Access(settings.consul_address, token, ca, cert, key, Fleet((host,)).keys)


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
