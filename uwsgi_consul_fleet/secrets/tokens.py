"""Consul's tokens and policies for a fleet, all derived from one seed: nothing is kept of them, and
to make them again changes nothing."""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from uwsgi_consul_fleet.host.consul import KEYS
from uwsgi_consul_fleet.host.expiry import SERVICE
from uwsgi_consul_fleet.inventory.model import Fleet, Host

PREFIX = "uwsgi-consul-fleet-"  # what our policies' names begin with
OF_FLEET = MANAGEMENT, DEPLOY, READ, DNS = "management", "deploy", "read", "dns"
# Policies of who shows no token: of programs, and of DNS, which ends when that is turned off.
LOOKUPS, NAMES = f"{PREFIX}lookups", f"{PREFIX}names"
# Consul's own policy, which is there from the beginning.
EVERYTHING = "global-management"


def node(name: str) -> str:
    """What a token is called here: that of a node's agent."""
    return f"node/{name}"


def app(node: str, name: str) -> str:
    """What a token is called here: that of an application on a node."""
    return f"app/{node}/{name}"


def secret(seed: str, what: str) -> str:
    """The secret ID of a token, as Consul's are: a UUID.

    :param seed: in hex
    :param what: ``management``, ``deploy``, ``read``, ``dns``, or what :func:`node` and :func:`app`
        say
    """
    return _derived(seed, f"secret:{what}")


def accessor(seed: str, what: str) -> str:
    """Its accessor ID, by which it can be named without being told."""
    return _derived(seed, f"accessor:{what}")


def _derived(seed: str, text: str) -> str:
    digest = hmac.digest(bytes.fromhex(seed), text.encode(), hashlib.sha256)
    return str(UUID(bytes=digest[:16], version=4))


class Policy(NamedTuple):
    """``description`` ends with a digest of ``rules``: a list shows whether it is current."""

    description: str
    rules: str


class Token(NamedTuple):
    """``policies`` are names."""

    accessor: str
    secret: str
    description: str
    policies: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Token({self.accessor}, {self.description!r})"


class Acl(NamedTuple):
    """Policies by name, tokens (first the management token, which has Consul's own policy, then the
    deploy's), and the names of the policies that the anonymous token has, None where that is left
    as it is."""

    policies: dict[str, Policy]
    tokens: list[Token]
    anonymous: tuple[str, ...] | None


def node_policy(node: str) -> str:
    """The name of the policy of a node's agent."""
    return _name("node", node)


def app_of(policy: str) -> str:
    """The application that a policy of that name is for; '' for another policy."""
    begin = _name("app", "")
    return policy.removeprefix(begin) if policy.startswith(begin) else ""


def wanted(fleet: Fleet, seed: str, datacenter: str, lookups: bool, names: bool = False) -> Acl:
    """Those of a whole fleet: of its active hosts, and of the applications on them.

    :param lookups: whether programs look services up without a token
    :param names: whether DNS does
    """
    policies = {
        _name(DEPLOY): _policy("what a deploy changes and looks at", DEPLOYS),
        _name(READ): _policy("what commands look at", READS),
    }
    tokens = [
        _token(seed, MANAGEMENT, "makes the others", EVERYTHING),
        _token(seed, DEPLOY, f"a deploy in {datacenter}", _name(DEPLOY)),
        _token(seed, READ, f"commands in {datacenter}", _name(READ)),
    ]
    if lookups:
        policies[LOOKUPS] = _policy("what may be looked up without a token", LOOKS_UP)
    if fleet.dns:
        policies[NAMES] = _policy("what may be looked up by DNS", LOOKS_UP)
        tokens.append(_token(seed, DNS, "Consul's DNS", NAMES))
    for host in fleet.active:
        policies[name := node_policy(host.node)] = _policy(
            f"the agent of {host.node}", node_rules(host)
        )
        tokens.append(_token(seed, node(host.node), f"the agent of {host.node}", name))
        for its in host.applications:
            rules = app_rules(its.app, its.settings.app_discovers, lookups or names)
            policies[name := _name("app", its.app)] = _policy(f"the application {its.app}", rules)
            told = f"the application {its.app} on {host.node}"
            tokens.append(_token(seed, app(host.node, its.app), told, name))
    anonymous = {LOOKUPS: lookups, NAMES: names}
    return Acl(policies, tokens, tuple(name for name, is_so in anonymous.items() if is_so))


def to_begin_with(acl: Acl) -> Acl:
    """What of it a deploy shows itself."""
    own = acl.tokens[:2]
    names = {name for token in own for name in token.policies}
    return Acl({name: its for name, its in acl.policies.items() if name in names}, own, None)


def _token(seed: str, what: str, description: str, policy: str) -> Token:
    told = f"uwsgi-consul-fleet: {description}"
    return Token(accessor(seed, what), secret(seed, what), told, (policy,))


def _policy(description: str, rules: str) -> Policy:
    digest = hashlib.sha256(rules.encode()).hexdigest()[:16]
    return Policy(f"uwsgi-consul-fleet: {description}; rules {digest}", rules)


def _name(*words: str) -> str:
    """Of a policy, in the characters and within the length that Consul takes."""
    name = PREFIX + "-".join(words)
    clean = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if clean == name and len(name) <= 100:
        return name
    return f"{clean[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _rules(lines: Iterable[tuple[str, str | None, str]]) -> str:
    """In Consul's words: a resource, its name or the beginning of it, and what is allowed."""
    return "".join(
        f'{resource} = "{policy}"\n'
        if name is None
        else f'{resource} {json.dumps(name)} {{ policy = "{policy}" }}\n'
        for resource, name, policy in lines
    )


# Operator: what it asks autopilot, and taking a dead server out of Raft.
DEPLOYS = _rules(
    [
        ("key_prefix", KEYS, "write"),
        ("session_prefix", "", "write"),
        ("node_prefix", "", "write"),
        ("service_prefix", "", "write"),
        ("agent_prefix", "", "write"),
        ("operator", None, "write"),
        ("keyring", None, "write"),
        ("acl", None, "read"),
    ]
)
READS = _rules(
    [
        ("key_prefix", KEYS, "read"),
        ("session_prefix", "", "read"),
        ("node_prefix", "", "read"),
        ("service_prefix", "", "read"),
        ("agent_prefix", "", "read"),
        ("operator", None, "read"),
    ]
)
# A list of instances holds only those whose node may be read, too.
LOOKS_UP = _rules([("service_prefix", "", "read"), ("node_prefix", "", "read")])


def node_rules(host: Host) -> str:
    """What a host's agent may. Not Consul's own node identity, which takes no dots or capitals."""
    return _rules(
        [
            ("node", host.node, "write"),
            ("service_prefix", "", "read"),
            ("service", SERVICE, "write"),
            ("agent", host.node, "write"),
        ]
    )


def app_rules(name: str, discovers: tuple[str, ...] | None, lookups: bool) -> str:
    """What an application may: register itself, find itself, and what it discovers.

    :param discovers: services; None finds all of them as long as that takes no token
    """
    found = [("service", each, "read") for each in sorted({*(discovers or ())} - {name})]
    if discovers is None and lookups:
        found = [("service_prefix", "", "read")]
    return _rules([("service", name, "write"), ("node_prefix", "", "read"), *found])
