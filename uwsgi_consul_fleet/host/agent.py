"""The Consul agent as a service of this host: its start and its end."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from socket import gethostname

from . import expiry, keyring, lapse, systemd
from .cluster import has_caught_up, has_company, knows_tokens, servers, until
from .consul import CONFIGURATION, DATA, DNS_TOKEN, UNREAD, Consul, UnavailableError
from .says import ReleaseError

UNIT = "consul.service"
DNS = "dns.json"
COMMAND = Path("/usr/local/bin/consul")
CAUGHT_UP = 60.0  # seconds for a server to have what the leader has
TOKENS = 20.0  # seconds for an agent to know tokens
ANSWERS = 30.0  # seconds for an agent to answer after it read its configuration again
LEAVING = 60.0  # seconds for an agent to say goodbye


def start(consul: Consul, binary: str, new: bool, wait: bool, first: bool = False) -> None:
    """Start the agent anew with what lies on this host now.

    :param new: forget what it knew when it last was a server: with that log it would call for an
        election again and again, and the key of those of several datacenters was replaced since
    :param wait: until it has caught up with the leader, and the next server may be restarted
    :param first: it gets access control, and may know nobody for a while
    :raises ReleaseError: with the agent's last lines
    """
    _suit(binary)
    _validate(binary)
    part = COMMAND.with_name(".consul.part")
    part.unlink(missing_ok=True)
    part.symlink_to(binary)
    part.replace(COMMAND)
    systemd.systemctl("enable", "--no-reload", UNIT)
    systemd.systemctl("daemon-reload")
    if first:
        with suppress(UnavailableError):  # what is down lapses anyhow
            lapse.put_off(consul)
    company = systemd.is_active(UNIT) and has_company(consul)
    systemd.systemctl("stop", UNIT)
    if not company:
        keyring.forget_others(DATA, CONFIGURATION)
    if new:
        shutil.rmtree(DATA / "raft", ignore_errors=True)
        for name in ("remote.snapshot", "remote.keyring"):
            (DATA / "serf" / name).unlink(missing_ok=True)
    Path(UNREAD).unlink(missing_ok=True)
    try:
        systemd.start([UNIT])
    except ReleaseError as error:
        raise _told(str(error)) from None
    if wait and not until(CAUGHT_UP, lambda: has_caught_up(consul)):
        raise _told(f"after {CAUGHT_UP:.0f} s its Consul server has not caught up with the others")
    if wait:
        until(TOKENS, lambda: knows_tokens(consul))  # it may take longer, which does no harm
    expiry.look_again()


def _suit(binary: str, folder: Path = CONFIGURATION) -> None:
    """Have the agent read by which token it answers DNS, unless its version would not start then.

    :param folder: of its configuration, beside which that lies
    """
    link, file = folder / DNS, folder.parent / DNS
    link.unlink(missing_ok=True)
    if not file.exists():
        return
    said = subprocess.run([binary, "version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"Consul v(\d+)\.(\d+)", said)
    if found and tuple(map(int, found.groups())) >= DNS_TOKEN:
        link.symlink_to(file)


def _validate(binary: str) -> None:
    words = [binary, "validate", str(CONFIGURATION)]
    valid = subprocess.run(words, capture_output=True, text=True, check=False)
    if valid.returncode:
        raise ReleaseError(f"{valid.stderr.strip() or valid.stdout.strip()}")


def reload(consul: Consul) -> None:
    """Let the agent read again what needs no restart: its certificate and its own token.

    :raises ReleaseError: where it could not, or does not answer afterwards
    """
    _suit(str(COMMAND))
    _validate(str(COMMAND))
    systemd.systemctl("reload", UNIT)
    if not until(ANSWERS, lambda: consul.get("/v1/status/leader") is not None):
        raise _told(f"its Consul agent does not answer {ANSWERS:.0f} s after it was reloaded")
    Path(UNREAD).unlink(missing_ok=True)
    expiry.look_again()


def _told(what: str) -> ReleaseError:
    return ReleaseError(f"{gethostname()}: {what}\n{systemd.journal([UNIT])}")


def leave(consul: Consul) -> None:
    """Say goodbye to the cluster, and be started no more. One that never came up is in no
    cluster that it could leave."""
    if systemd.is_active(UNIT):
        Consul(consul.access, consul.token, LEAVING).put("/v1/agent/leave")
    systemd.systemctl("disable", "--now", UNIT)


def vote(consul: Consul, node: str, seconds: float) -> None:
    """Wait until this host votes as a server: a cluster gives a new one its vote when it has
    been healthy for ten seconds."""

    def votes() -> bool:
        return any(each["Node"] == node and each["Voter"] for each in servers(consul))

    if not until(seconds, votes):
        raise ReleaseError(
            f"{node}: the Consul servers gave it no vote within {seconds:g} s; no server is "
            f"removed meanwhile\n{systemd.journal([UNIT])}"
        )
