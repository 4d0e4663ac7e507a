"""Who is in the cluster, as serf tells it."""

from __future__ import annotations

from typing import Any

from .consul import ALIVE, FAILED, LEAVING, Consul


def of_datacenter(consul: Consul) -> Any:
    return consul.get("/v1/agent/members")


def everybody(consul: Consul) -> list[Any]:
    """Those of the datacenter, and servers of all datacenters; a server of this one is there
    twice. Nobody where a token may not ask."""
    near = of_datacenter(consul)
    here = {each["Tags"].get("dc") for each in near}
    serve = {
        f"{each['Name']}.{each['Tags'].get('dc')}"
        for each in near
        if is_server(each) and is_in_it(each)
    }
    # Of who was a server here they may tell for days; see cluster.py, _forget_in_wan.
    far = [
        each
        for each in consul.get("/v1/agent/members?wan=1")
        if each["Tags"].get("dc") not in here or each["Name"] in serve
    ]
    return [*near, *far]


def is_in_it(member: Any) -> bool:
    """Whether it has not left."""
    return member["Status"] in (ALIVE, LEAVING, FAILED)


def is_server(member: Any) -> bool:
    return bool(member["Tags"].get("role") == "consul")
