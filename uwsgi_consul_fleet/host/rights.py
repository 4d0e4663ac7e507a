"""What a token may write, by what Consul says of it: as under `default_policy` deny, and so before
that is set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import hcl
from .consul import Consul

WRITE, DENY = "write", "deny"


def may_write(consul: Consul, token: Any, datacenter: str, kind: str, name: str) -> bool:
    """
    :param consul: may read access control
    :param token: as `/v1/acl/token/self` answers
    :param kind: ``service`` or ``node``
    """
    rules = [rule for text in _texts(consul, token, datacenter) for rule in hcl.items(text)]
    exact = [_policy(value) for key, value in _named(rules, kind) if key == name]
    if exact:
        return WRITE in exact and DENY not in exact
    # Of prefixes the longest counts, and what is denied most of all.
    begins = [(key, _policy(value)) for key, value in _named(rules, f"{kind}_prefix")]
    fitting = [each for each in begins if name.startswith(each[0])]
    longest = max((len(key) for key, _ in fitting), default=0)
    policies = [policy for key, policy in fitting if len(key) == longest]
    return WRITE in policies and DENY not in policies


def _named(rules: list[tuple[str, Any]], kind: str) -> Iterator[tuple[str, Any]]:
    for key, value in rules:
        if key == kind:
            yield from hcl.items(value)


def _policy(value: Any) -> str:
    return str(dict(hcl.items(value)).get("policy", ""))


def _texts(consul: Consul, token: Any, datacenter: str) -> Iterator[Any]:
    """The rules that it has, parsed."""
    roles = (consul.get(f"/v1/acl/role/{each['ID']}") for each in token.get("Roles") or ())
    for one in (token, *roles):
        for link in one.get("Policies") or ():
            policy = consul.get(f"/v1/acl/policy/{link['ID']}")
            if _counts(policy, datacenter):
                try:
                    yield hcl.parse(policy["Rules"])
                except ValueError:
                    continue  # what is not understood allows nothing
        for identity in one.get("ServiceIdentities") or ():
            if _counts(identity, datacenter):
                yield _service(identity["ServiceName"])
        for identity in one.get("NodeIdentities") or ():
            if identity["Datacenter"] == datacenter:
                yield {"node": {identity["NodeName"]: {"policy": WRITE}}}
        for each in one.get("TemplatedPolicies") or ():
            if _counts(each, datacenter):
                yield _templated(each)


def _counts(limited: Any, datacenter: str) -> bool:
    return datacenter in (limited.get("Datacenters") or [datacenter])


def _service(name: str) -> Any:
    write = {"policy": WRITE}
    return {"service": {name: write, f"{name}-sidecar-proxy": write}}


def _templated(policy: Any) -> Any:
    """Consul's own templates that write something that is registered."""
    name = (policy.get("TemplateVariables") or {}).get("Name", "")
    if policy["TemplateName"] == "builtin/service":
        return _service(name)
    if policy["TemplateName"] == "builtin/node":
        return {"node": {name: {"policy": WRITE}}}
    return {}
