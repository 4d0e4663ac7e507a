"""The keys that the members of the cluster encrypt their gossip with.

What an agent has in its own files counts more than `encrypt` in its configuration, which only says
what it begins with.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from . import members
from .consul import ALIVE, DATA, FAILED, Consul, UnavailableError
from .says import ReleaseError

PATH = "/v1/operator/keyring"
NONE = "encryption not enabled"  # what Consul says of a cluster that has no keys
INTERVAL = 0.2  # seconds between two looks
# Seconds for all members to have a key. A server that was made a client is counted among those of
# several datacenters until it is seen as failed there, after some 45 (memberlist's
# DefaultWANConfig).
EVERYWHERE = 90.0


def fingerprints(data: Path = DATA) -> list[str]:
    """Which keys the agent of this host has for its datacenter: what it encrypts with first.
    Nobody learns a key from these."""
    keys = _keys(data / "serf/local.keyring")
    if not keys:
        return []
    from hashlib import sha256  # takes as long to load as all else

    return [sha256(key.encode()).hexdigest()[:16] for key in keys]


def _keys(file: Path) -> list[str]:
    try:
        return [str(each) for each in json.loads(file.read_text())]
    except (FileNotFoundError, ValueError):  # what is no JSON its agent complains about
        return []


def forget_others(data: Path, configuration: Path) -> None:
    """Of an agent that does not run: the keys of a cluster that has another one meanwhile."""
    try:
        wanted = json.loads((configuration / "secrets.json").read_text()).get("encrypt")
    except FileNotFoundError:
        return
    for file in (data / "serf/local.keyring", data / "serf/remote.keyring"):
        if wanted and wanted not in _keys(file):
            file.unlink(missing_ok=True)


def rotate(
    consul: Consul, key: str, before: str | None = None, patience: float = EVERYWHERE
) -> None:
    """Let all members encrypt with ``key``, and forget ``before``. What is done is not done again.

    :param patience: seconds for all of them to have it
    :raises ReleaseError: with who is missing: without the new key it could not come back
    """
    deadline = time.monotonic() + patience
    while True:
        late = _expect_all(consul)
        why = f"{late} does not answer as a server" if late else "they still answer otherwise"
        try:
            if not late and _step(consul, key, before if before != key else None):
                return
        except UnavailableError as error:
            # One of them did not answer: it is seen as gone soon, or it was busy.
            if error.status != 500 or NONE in str(error):
                raise
            why = str(error)
        if time.monotonic() > deadline:
            raise ReleaseError(
                f"the gossip key was not changed on all members within {patience:g} s: {why}"
            )
        time.sleep(INTERVAL)


def _step(consul: Consul, key: str, before: str | None) -> bool:
    """The next one that is due, and whether none was. A pool is that of the datacenter's members,
    or of the servers of all; who is in both has the keys for each."""
    pools = consul.get(PATH)
    if any((each["Keys"] or {}).get(key) != each["NumNodes"] for each in pools):
        consul.call("POST", PATH, {"Key": key})
    elif any((each["PrimaryKeys"] or {}).get(key) != each["NumNodes"] for each in pools):
        consul.call("PUT", PATH, {"Key": key})
    elif before and any(before in each["Keys"] for each in pools):
        consul.call("DELETE", PATH, {"Key": before})
    else:
        return True
    return False


def _expect_all(consul: Consul) -> str:
    """Who is alive, and not yet back among the servers of all datacenters; '' for nobody."""
    found = members.everybody(consul)
    if not found:
        raise ReleaseError("Consul names no members: the token needs node_prefix read")
    alive = {
        f"{each['Name']}.{each['Tags'].get('dc')}" for each in found if each["Status"] == ALIVE
    }
    failed = {each["Name"] for each in found if each["Status"] == FAILED}
    if gone := sorted(failed - alive):
        raise ReleaseError(
            f"the gossip key was not changed everywhere: {', '.join(gone)} does not answer, and "
            "could not come back with the one before; start it, or move it to retired, and deploy "
            "again"
        )
    return ", ".join(sorted(failed))
