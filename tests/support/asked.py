"""What is asked of a host's Consul by who may not, and what it answers.

Each of `REQUESTS` is sent as somebody who should be told nothing, and at last by who may do
everything: so it is not a mistake in it that it is refused.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lab_commands import Lab

# Begins what is here for somebody to find, or to change; see `put`.
MARK = "asked-"
SERVICE, NODE, KEY, SESSION = f"{MARK}service", f"{MARK}node", f"{MARK}key", f"{MARK}session"
OURS = f"uwsgi-consul-fleet/{MARK}ours"
LOCK = "uwsgi-consul-fleet/lock"
ACCESSOR = "a53ed000-0000-4000-8000-000000000001"
# usage: python3 -c ASK TOKEN REQUESTS: prints the status and the answer of each.
ASK = """
import json, sys, urllib.error, urllib.request
def ask(method, path, body):
    data = None if body is None else body.encode()
    url = "http://127.0.0.1:8500/v1/" + path
    asked = urllib.request.Request(url, data, method=method)
    if sys.argv[1]:
        asked.add_header("X-Consul-Token", sys.argv[1])
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status, answer.read(20000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
print(json.dumps([ask(*request) for request in json.loads(sys.argv[2])]))
"""


class Request(NamedTuple):
    """``path`` is behind /v1/, with {session} for one that is there."""

    method: str
    path: str
    body: str | None = None


class Answer(NamedTuple):
    """Of the agent."""

    status: int
    text: str

    @property
    def is_refused(self) -> bool:
        """Or it says that there is no such thing, or that a transaction did not happen."""
        denied = re.search("denied|ACL not found", self.text)  # which may be an error of its own
        return self.status in (401, 403, 404, 409) or (self.status == 500 and bool(denied))

    @property
    def is_empty(self) -> bool:
        """A list that has nothing in it."""
        try:
            return not json.loads(self.text)
        except ValueError:
            return False


def _put(path: str, body: Any = None) -> Request:
    return Request("PUT", path, "" if body is None else json.dumps(body))


def _query(name: str) -> Request:
    return Request("POST", "query", json.dumps({"Name": name, "Service": {"Service": SERVICE}}))


# None of them may be answered with anything that is there.
READS = {
    what: Request("GET", path)
    for what, path in {
        "list services": "catalog/services",
        "list nodes": "catalog/nodes",
        "list the services of a node": "catalog/node/drakar",
        "list instances": f"catalog/service/{SERVICE}",
        "list healthy instances": f"health/service/{SERVICE}",
        "list the application's instances": "health/service/consul-demo-server",
        "list the checks of a node": "health/node/cheetah",
        "list the checks of a service": f"health/checks/{SERVICE}",
        "list checks": "health/state/any",
        "list the agent's services": "agent/services",
        "list the agent's checks": "agent/checks",
        "read a service of the agent": f"agent/service/{SERVICE}",
        "read the health of a service": f"agent/health/service/name/{SERVICE}",
        "read the agent's configuration": "agent/self",
        "read the agent's metrics": "agent/metrics",
        "read what the agent's host is": "agent/host",
        "list members": "agent/members",
        "list services as the UI does": "internal/ui/services",
        "list nodes as the UI does": "internal/ui/nodes",
        "list coordinates": "coordinate/nodes",
        "read a key": f"kv/{KEY}",
        "read a key of ours": f"kv/{OURS}",
        "list keys": "kv/?keys",
        "read all keys": "kv/?recurse",
        "list sessions": "session/list",
        "list sessions of a node": "session/node/cheetah",
        "read a session": "session/info/{session}",
        "list queries": "query",
        "list tokens": "acl/tokens",
        "list policies": "acl/policies",
        "read raft's configuration": "operator/raft/configuration",
        "read autopilot's configuration": "operator/autopilot/configuration",
        "read the servers' health": "operator/autopilot/health",
        "list gossip keys": "operator/keyring",
        "take a snapshot": "snapshot",
    }.items()
}
CHECK = {"Name": f"{MARK}check", "TTL": "600s", "Status": "passing"}
# Each of these can be done after those before it.
CHANGES = {
    "register a service": _put("agent/service/register", {"Name": f"{MARK}new"}),
    "register a check": _put("agent/check/register", CHECK),
    "pass a check": _put(f"agent/check/pass/service:{SERVICE}"),
    "fail a check": _put(f"agent/check/fail/service:{SERVICE}"),
    "deregister a check": _put(f"agent/check/deregister/{MARK}check"),
    "maintain a service": _put(f"agent/service/maintenance/{SERVICE}?enable=false"),
    "maintain a node": _put("agent/maintenance?enable=false"),
    "register in the catalog": _put(
        "catalog/register",
        {"Node": NODE, "Address": "192.0.2.9", "Service": {"Service": f"{MARK}far"}},
    ),
    "deregister in the catalog": _put("catalog/deregister", {"Node": NODE}),
    "deregister a service in the catalog": _put(
        "catalog/deregister", {"Node": "cheetah", "ServiceID": SERVICE}
    ),
    "write a key": _put(f"kv/{KEY}", 1),
    "write a key of ours": _put(f"kv/{OURS}", 1),
    "write a new key": _put(f"kv/{MARK}new", 1),
    "write a key in a transaction": _put(
        "txn", [{"KV": {"Verb": "set", "Key": KEY, "Value": "MQ=="}}]
    ),
    "make a session": _put("session/create", {"Name": f"{MARK}new", "TTL": "10s"}),
    "renew a session": _put("session/renew/{session}"),
    "take the lock": _put(f"kv/{LOCK}?acquire={{session}}"),
    "let the lock go": _put(f"kv/{LOCK}?release={{session}}"),
    "delete the lock": Request("DELETE", f"kv/{LOCK}"),
    "delete a key": Request("DELETE", f"kv/{KEY}"),
    "delete our keys": Request("DELETE", f"kv/{OURS}?recurse"),
    "fire an event": _put(f"event/fire/{MARK}event"),
    "make a query": _query(f"{MARK}new"),
    "write a configuration": _put("config", {"Kind": "service-defaults", "Name": f"{MARK}new"}),
    "delete a configuration": Request("DELETE", f"config/service-defaults/{MARK}new"),
    "make a token": _put("acl/token", {"AccessorID": ACCESSOR, "Local": True}),
    "delete a token": Request("DELETE", f"acl/token/{ACCESSOR}"),
    "make a policy": _put("acl/policy", {"Name": f"{MARK}policy", "Rules": ""}),
    "change autopilot's configuration": _put("operator/autopilot/configuration", {}),
    "choose a gossip key": _put("operator/keyring", {"Key": "{gossip}"}),
    "give the agent a token": _put("agent/token/replication", {"Token": ""}),
    "have the agent reload": _put("agent/reload"),
    "have the agent join": _put("agent/join/{address}"),
    "end a session": _put("session/destroy/{session}"),
    "deregister a service": _put(f"agent/service/deregister/{SERVICE}"),
}
# A client's agent only says where to ask, or that it was not answered.
OF_A_SERVER = {"list gossip keys", "choose a gossip key", "take a snapshot"}
# What Consul answers whoever asks, the last two from 1.9 on.
OPEN = {
    what: Request("GET", path)
    for what, path in {
        "who leads": "status/leader",
        "which servers": "status/peers",
        "which datacenters": "catalog/datacenters",
        "how far servers are": "coordinate/datacenters",
        "whether tokens are copied": "acl/replication",
        "which version": "agent/version",
        "Connect's authority": "connect/ca/roots",
    }.items()
}
# What there is for each of them to find.
THERE = (
    _put(
        "agent/service/register",
        {"Name": SERVICE, "Meta": {f"{MARK}meta": "1"}, "Check": {"TTL": "600s"}},
    ),
    _put(f"agent/check/pass/service:{SERVICE}"),
    _put(f"kv/{KEY}", f"{MARK}value"),
    _put(f"kv/{OURS}", f"{MARK}value"),
    _put("session/create", {"Name": SESSION, "TTL": "600s", "Behavior": "delete"}),
    _query(f"{MARK}query"),
    _put("agent/check/register", CHECK),
)

# What these leave there.
REMOVE = {"new": _put(f"agent/service/deregister/{MARK}new")}


def ask(
    lab: Lab, host: str, user: str, token: str, requests: Mapping[str, Request], **known: str
) -> dict[str, Answer]:
    """The agent of a host, as one of its users.

    :param token: '' for none
    :param known: what stands for {session} and the like
    """
    found = _ask(lab, host, user, token, [_with(each, known) for each in requests.values()])
    return dict(zip(requests, found, strict=True))


def put(lab: Lab, host: str, management: str) -> str:
    """Have on a host what others may not find; returns the id of a session."""
    found = _ask(lab, host, "root", management, THERE)
    assert {answer.status for answer in found} == {200}, found
    return str(next(json.loads(each.text)["ID"] for each in found if '"ID"' in each.text))


def _with(request: Request, known: Mapping[str, str]) -> Request:
    texts = [request.path, request.body]
    for name, value in known.items():
        texts = [text and text.replace(f"{{{name}}}", value) for text in texts]
    assert texts[0]
    return Request(request.method, texts[0], texts[1])


def _ask(
    lab: Lab, host: str, user: str, token: str, requests: Iterable[Request] | Sequence[Request]
) -> list[Answer]:
    words = ["sudo", "-u", user, "python3", "-c", ASK, token, json.dumps([*requests])]
    said = lab.ssh(host, f"cd / && {shlex.join(words)}").stdout
    return [Answer(*answer) for answer in json.loads(said)]
