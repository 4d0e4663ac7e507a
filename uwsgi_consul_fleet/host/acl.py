"""Tokens and policies of the cluster, made as they are wanted; again is always safe.

Where nothing was ever made, or nobody knows the management token any more, this is done by the
servers' leader: Consul lets the first token be made once, and then again only where a file in the
leader's own folder says so (https://developer.hashicorp.com/consul/docs/security/acl/).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from socket import gethostname
from typing import Any
from uuid import UUID, uuid5

from . import store, stored
from .cluster import ANONYMOUS, until
from .consul import DATA, UNKNOWN, Consul, UnavailableError
from .says import ReleaseError

PREFIX = "uwsgi-consul-fleet-"  # of our policies' names
MARKER = Path("/etc/uwsgi-consul-fleet/bootstrap")
USABLE = 60.0  # seconds: 1.8 begins when all servers have it, and looks for that from time to time
INTERVAL = 0.2  # seconds between two looks
KNOWN = 10.0  # seconds for this server to know a token that was just made
RESET = re.compile(r"reset index: (\d+)")
FIRST = "Bootstrap Token (Global Management)"  # how Consul describes it

Message = dict[str, Any]


def converge(consul: Consul, wanted: Message, data: Path = DATA, marker: Path = MARKER) -> Message:
    """Make all that is wanted, and say what was changed.

    :param consul: with the management token, which is one of those that are wanted
    :param wanted: ``policies`` by their names, each with ``description`` and ``rules``; ``tokens``,
        each with ``accessor``, ``secret``, ``description`` and ``policies``; accessors that are
        ``gone`` and names in ``gone_policies``; the policies of the ``anonymous`` token, None to
        leave them; ``reset``: whether the first token may be made again
    :param data: the agent's folder
    :param marker: is there while the first token is made
    :returns: ``changed``: sentences; ``kept``: which tokens are gone, but still shown by what is
        registered on this host
    """
    mine = consul.showing(consul.token)
    changed = []
    if not _is_usable(mine):
        changed.append(_manage(consul, wanted, data, marker))
    policies = {each["Name"]: each for each in mine.get("/v1/acl/policies")}
    for name, policy in wanted["policies"].items():
        changed += _policy(mine, name, policy, policies.get(name))
    there = {each["AccessorID"]: each for each in mine.get("/v1/acl/tokens")}
    for token in wanted["tokens"]:
        changed += _token(mine, token, there.get(token["accessor"]))
    if wanted.get("anonymous") is not None:
        changed += _anonymous(mine, wanted["anonymous"])
    changed += _forget_first(mine, marker)
    gone = [each for each in wanted.get("gone", ()) if each in there]
    used = stored.accessors(mine, data) if gone else set()
    for accessor in gone:
        if accessor not in used:
            mine.call("DELETE", f"/v1/acl/token/{accessor}")
            changed.append(f"token {there[accessor]['Description'] or accessor} deleted")
    for name in wanted.get("gone_policies", ()):
        if name in policies:
            mine.call("DELETE", f"/v1/acl/policy/{policies[name]['ID']}")
            changed.append(f"policy {name} deleted")
    return {"changed": changed, "kept": sorted(used.intersection(gone))}


def _is_usable(consul: Consul) -> bool:
    """Whether the management token is known, as soon as that can be told."""
    deadline = time.monotonic() + USABLE
    while True:
        try:
            consul.get("/v1/acl/policies")
            return True
        except UnavailableError as error:
            if UNKNOWN in str(error):
                return False
            if error.status != 500 or time.monotonic() > deadline:
                raise
        time.sleep(INTERVAL)


def _policy(consul: Consul, name: str, wanted: Message, listed: Message | None) -> list[str]:
    told = {"Name": name, "Description": wanted["description"], "Rules": wanted["rules"]}
    if listed is None:
        consul.put("/v1/acl/policy", told)
        return [f"policy {name} made"]
    path = f"/v1/acl/policy/{listed['ID']}"
    there = consul.get(path)  # the list has no rules
    if all(there[key] == value for key, value in told.items()):
        return []
    consul.put(path, {**told, "ID": listed["ID"]})
    return [f"policy {name} changed"]


def _token(consul: Consul, wanted: Message, there: Message | None) -> list[str]:
    if there is None:
        _make(consul, wanted)
        return [f"token {wanted['description']} made"]
    if _names(there) == set(wanted["policies"]) and there["Description"] == wanted["description"]:
        return []
    told = {"Description": wanted["description"], "Policies": _links(wanted["policies"])}
    consul.put(f"/v1/acl/token/{wanted['accessor']}", {**told, "Local": there["Local"]})
    return [f"token {wanted['description']} changed"]


def _make(consul: Consul, wanted: Message) -> None:
    told = {"AccessorID": wanted["accessor"], "SecretID": wanted["secret"], "Local": True}
    more = {"Description": wanted["description"], "Policies": _links(wanted["policies"])}
    consul.put("/v1/acl/token", {**told, **more})


def _anonymous(consul: Consul, wanted: Iterable[str]) -> list[str]:
    """What others let it do stays."""
    path = f"/v1/acl/token/{ANONYMOUS}"
    there = consul.get(path)
    before = _names(there)
    names = {name for name in before if not name.startswith(PREFIX)}.union(wanted)
    if names == before:
        return []
    consul.put(path, {**there, "Policies": _links(sorted(names))})
    return ["the anonymous token changed"]


def _names(token: Message) -> set[str]:
    return {each["Name"] for each in token.get("Policies") or ()}


def _links(names: Iterable[str]) -> list[dict[str, str]]:
    return [{"Name": name} for name in names]


# --- The first token -----------------------------------------------------------------


def _manage(consul: Consul, wanted: Message, data: Path, marker: Path) -> str:
    """Make the management token with the one before, or with Consul's first."""
    secret = consul.token
    token = next((each for each in wanted["tokens"] if each["secret"] == secret), None)
    if token is None:
        raise ReleaseError("the management token is not among those that are wanted")
    # Of a run that was killed; only where Consul took the secret that it was told.
    first = str(uuid5(UUID(secret), "bootstrap"))
    for other in filter(None, (consul.access.other, first)):
        maker = consul.showing(other)
        if _is_usable(maker):
            break
    else:
        maker = _first(consul.showing(""), first, token["accessor"], wanted, data, marker)
    _make(maker, token)
    if not until(KNOWN, lambda: consul.showing(secret).get("/v1/acl/policies")):
        raise ReleaseError(f"after {KNOWN:g} s this server does not know the management token")
    return f"token {token['description']} made"


def _first(
    consul: Consul, secret: str, accessor: str, wanted: Message, data: Path, marker: Path
) -> Consul:
    """Shows Consul's first token, which it made now; the marker says so until it is deleted,
    because from a lost answer nobody would know it."""
    was_there = marker.exists()
    store.write(marker, f"{accessor}\n")
    marker.chmod(0o600)
    try:
        return consul.showing(_bootstrapped(consul, secret))
    except _NotAgainError as error:
        if wanted.get("reset"):
            return consul.showing(_again(consul, secret, error.index, data))
        if not was_there:
            marker.unlink()
        raise ReleaseError(f"{error}: it has tokens that were made with other secrets") from None


class _NotAgainError(ReleaseError):
    def __init__(self, reason: str, index: str) -> None:
        super().__init__(reason)
        self.index = index


def _bootstrapped(consul: Consul, secret: str) -> str:
    """The secret of the first token; Consul before 1.15 makes one of its own."""
    deadline = time.monotonic() + USABLE
    while True:
        try:
            answer = consul.put("/v1/acl/bootstrap", {"BootstrapSecret": secret})
            return str(answer["SecretID"])
        except UnavailableError as error:
            if found := RESET.search(str(error)):
                raise _NotAgainError(str(error), found[1]) from None
            if error.status != 500 or time.monotonic() > deadline:
                raise
        time.sleep(INTERVAL)


def _again(consul: Consul, secret: str, index: str, data: Path) -> str:
    file = data / "acl-bootstrap-reset"
    store.write(file, index)  # the agent removes it
    try:
        return _bootstrapped(consul, secret)
    except _NotAgainError:
        raise ReleaseError(
            f"{gethostname()}: its Consul server does not lead the others any more; deploy again"
        ) from None
    finally:
        file.unlink(missing_ok=True)


def _forget_first(consul: Consul, marker: Path) -> list[str]:
    """Delete what the first token was; with the marker, also one of which nobody has the secret."""
    if not marker.exists():
        return []
    found = [each for each in consul.get("/v1/acl/tokens") if each["Description"] == FIRST]
    for each in found:
        consul.call("DELETE", f"/v1/acl/token/{each['AccessorID']}")
    marker.unlink()
    return [f"token {FIRST} deleted"] * bool(found)
