"""The cluster, as the agent of this host sees it, and what is changed about it.

What is done twice, or was done before, is done.
"""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from socket import gethostname
from typing import Any

from . import keyring, members
from .consul import (
    ALIVE,
    CONTENTS,
    FAILED,
    FLEET,
    UNKNOWN,
    Consul,
    UnavailableError,
)
from .says import ReleaseError

ANONYMOUS = "00000000-0000-0000-0000-000000000002"  # the accessor of who shows no token
MADE = "uwsgi-consul-fleet: "  # what the descriptions of our tokens begin with
LEGACY = "legacy mode"  # what Consul 1.8 says as long as it has tokens of before 1.4 alone
LEADER = 30.0  # seconds for a leader to be found
DEMOTED = 10.0  # seconds for a former server to be seen as a client


def status(consul: Consul) -> dict[str, Any]:
    """Of a server, by itself: whom it follows, which servers it counts, each as HOST:PORT, whose
    the cluster is, what its services were put to, who is in it, its access control and the
    fingerprints of its gossip keys; or why it could not be asked.
    """
    try:
        peers = consul.get("/v1/status/peers") or []
        try:
            found = {**_known(consul), "members": _everybody(consul), "acl": _acl(consul)}
        except UnavailableError as error:
            if error.status != 403 or UNKNOWN not in str(error):
                raise
            found = _before_tokens(consul)
        return {**found, "peers": peers, "keys": keyring.fingerprints()}
    except UnavailableError as error:
        return {"problem": str(error), "refused": error.status == 403}


def _before_tokens(consul: Consul) -> dict[str, Any]:
    """What a server says to who shows a token that its cluster does not know.

    The run that started it was interrupted before it made tokens; or there are tokens of other
    secrets, and nobody tells those two apart but who makes tokens (acl.py), which is next.
    """
    leader = consul.get("/v1/status/leader")
    return {"leader": leader, "fleet": "", "contents": None, "members": [], "acl": None}


def _acl(consul: Consul) -> dict[str, Any] | None:
    """The policies of each token, by its accessor; None where there is no access control, or the
    token may not ask for it."""
    try:
        listed = consul.get("/v1/acl/tokens")
        policies = {each["Name"]: each["Description"] for each in consul.get("/v1/acl/policies")}
    except UnavailableError as error:
        if error.status in (401, 403, 500):
            return None
        raise
    tokens = {
        each["AccessorID"]: [policy["Name"] for policy in each.get("Policies") or ()]
        for each in listed
    }
    made = [each["AccessorID"] for each in listed if each["Description"].startswith(MADE)]
    anonymous = tokens.pop(ANONYMOUS, [])
    return {"tokens": tokens, "made": made, "policies": policies, "anonymous": anonymous}


def agent(consul: Consul) -> dict[str, Any]:
    """Of an agent that was here before us: whom it follows, whose our part of its keys is, what our
    services were put to, and what it calls the host, where a token may ask for that; or why it
    could not be asked."""
    try:
        found = _known(consul)
    except UnavailableError as error:
        return {"problem": str(error), "refused": error.status == 403}
    with suppress(UnavailableError):
        found["node"] = consul.get("/v1/agent/self")["Config"]["NodeName"]
    return found


def _known(consul: Consul) -> dict[str, Any]:
    leader = consul.get("/v1/status/leader")
    contents = _contents(consul) if leader else None
    return {"leader": leader, "fleet": _fleet(consul), "contents": contents}


def _fleet(consul: Consul) -> str:
    """'' where nobody wrote it down. While there is no leader it may not be known."""
    at = f"/v1/kv/{consul.access.keys}{FLEET}?raw"
    try:
        try:
            return json.dumps(consul.get(f"{at}&stale"))
        except UnavailableError as error:
            if UNKNOWN not in str(error):
                raise
            return json.dumps(consul.get(at))  # the leader, who may know the token
    except UnavailableError as error:
        if error.status in (404, 500):
            return ""
        raise


def _contents(consul: Consul) -> dict[str, str] | None:
    """Of each service, as lock_session.py wrote it; None where nobody can tell."""
    at = consul.access.keys + CONTENTS
    try:
        # A server that was just restarted knows nothing yet, and does not say so otherwise.
        entries = consul.get(f"/v1/kv/{at}?recurse&consistent")
    except UnavailableError as error:
        if error.status in (404, 500):
            return {} if error.status == 404 else None
        raise
    return {
        each["Key"][len(at) :]: b64decode(each["Value"] or "").decode(errors="replace")
        for each in entries
    }


def cluster(consul: Consul) -> dict[str, Any]:
    """How this agent sees its cluster: Raft's servers, serf's members and whether each is alive,
    and the catalog's nodes. ``problem`` says what it could not say, and why."""
    found: dict[str, Any] = {"servers": [], "members": {}, "nodes": []}
    try:
        near = members.of_datacenter(consul)
        found["members"] = {each["Name"]: each["Status"] == ALIVE for each in near}
        found["servers"] = servers(consul, "?stale")
        found["nodes"] = [each["Node"] for each in consul.get("/v1/catalog/nodes")]
    except UnavailableError as error:
        found["problem"] = str(error)
    return found


def _everybody(consul: Consul) -> list[tuple[str, str, bool, str]]:
    """Who has not left, with the address, whether it is alive and which Consul it has; servers of
    other datacenters too. Empty where a token may not ask."""
    found: dict[str, tuple[str, str, bool, str]] = {}
    with suppress(UnavailableError):
        for each in filter(members.is_in_it, members.everybody(consul)):
            alive, build = each["Status"] != FAILED, each["Tags"].get("build", "")
            found.setdefault(each["Addr"], (each["Name"], each["Addr"], alive, build))
    return list(found.values())


def servers(consul: Consul, query: str = "") -> Any:
    """Raft's."""
    return consul.get(f"/v1/operator/raft/configuration{query}")["Servers"]


def has_caught_up(consul: Consul) -> bool:
    """Whether the server of this host has applied all that its leader had when it was asked, votes,
    and counts as healthy."""
    try:
        itself = consul.get("/v1/agent/self")
    except UnavailableError as error:
        if UNKNOWN not in str(error):
            raise
        # Its leader is the next to be restarted, or the one after that, and until then no sign of
        # life of an application on this host is taken: what is sure is that it follows, and counts.
        return bool(consul.get("/v1/status/leader"))
    health = {each["Name"]: each for each in consul.health()}
    mine = health.get(itself["Config"]["NodeName"], {"Healthy": False})
    led = [each["LastIndex"] for each in health.values() if each["Leader"]]
    applied = int(itself["Stats"]["raft"]["applied_index"])
    return bool(led and mine["Healthy"] and mine["Voter"] and applied >= led[0])


def has_company(consul: Consul) -> bool:
    """Whether this agent's gossip reaches most of the servers that there are: it has the key that
    they have. One that may not say so is taken for one that does."""
    try:
        peers = consul.get("/v1/status/peers") or []
        alive = [
            each["Status"] == ALIVE
            for each in members.of_datacenter(consul)
            if members.is_server(each)
        ]
    except UnavailableError as error:
        return error.status == 403
    return bool(sum(alive) > len(peers) // 2)


def knows_tokens(consul: Consul) -> bool:
    """Whether this agent tells one token from another, or won't before others are restarted, too.

    Consul 1.8 starts without that, and then lists nothing under default_policy deny, whatever token
    is shown.
    """
    try:
        consul.get("/v1/acl/token/self")
    except UnavailableError as error:
        if LEGACY not in str(error):
            return error.status != 0
        try:
            members.of_datacenter(consul)
            return False
        except UnavailableError as refused:
            return UNKNOWN in str(refused)
    return True


def until(seconds: float, look: Callable[[], bool]) -> bool:
    """Whether that came true in time; an agent without an answer is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if look():
                return True
        except UnavailableError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def join(consul: Consul, addresses: list[str]) -> None:
    """Find one of these servers; :raises ReleaseError: where none can be joined"""
    reasons = []
    for address in addresses:
        try:
            consul.put(f"/v1/agent/join/{address}")
        except UnavailableError as error:
            reasons.append(f"{address}: {error}")
    if len(reasons) == len(addresses):
        raise ReleaseError("\n".join([*reasons, "Failed to join any nodes."]))


# --- Others, as a server that stays removes them -------------------------------------


def demote(consul: Consul, peer: str, address: str) -> None:
    """Take the vote of another server away.

    :param peer: its id in Raft
    :param address: where it can be told as the leader, HOST:PORT
    """
    _remove_peer(consul, peer)
    # If it was the leader, it must run on until there is another one: until then, it is the one
    # who keeps everybody's questions waiting; without it they would fail.
    if not until(LEADER, lambda: consul.get("/v1/status/leader") not in ("", address)):
        raise ReleaseError(
            f"{gethostname()}: the Consul servers have no leader after {LEADER:.0f} s"
        )


def tidy(consul: Consul, node: str, peer: str, datacenter: str) -> None:
    """Another server has become a client: forget what it was."""

    def is_client() -> bool:
        found = (
            each["Tags"]["role"] for each in members.of_datacenter(consul) if each["Name"] == node
        )
        return "node" in found

    until(DEMOTED, is_client)
    # The leader adds every server that it sees, so it may just have added this one again.
    _remove_peer(consul, peer)
    service = {"Datacenter": datacenter, "Node": node, "ServiceID": "consul"}
    consul.put("/v1/catalog/deregister", service)
    _forget_in_wan(consul, node, datacenter)


def expel(consul: Consul, node: str, datacenter: str, peer: str = "") -> None:
    """Remove a node that is gone.

    :param peer: its id in Raft, where it was a server; '' where it was none
    """
    if peer:
        _remove_peer(consul, peer)
    if any(
        each["Name"] == node and each["Status"] == FAILED for each in members.of_datacenter(consul)
    ):
        consul.put(f"/v1/agent/force-leave/{node}?prune")
    _forget_in_wan(consul, node, datacenter)
    consul.put("/v1/catalog/deregister", {"Datacenter": datacenter, "Node": node})


def _remove_peer(consul: Consul, peer: str) -> None:
    if any(each["ID"] == peer for each in servers(consul)):
        consul.call("DELETE", f"/v1/operator/raft/peer?id={peer}")


def _forget_in_wan(consul: Consul, node: str, datacenter: str) -> None:
    """Among the servers of several datacenters a server has another name. It may be forgotten
    there already; where it is not, it is after some days."""
    with suppress(UnavailableError):
        consul.put(f"/v1/agent/force-leave/{node}.{datacenter}?prune&wan=1")
