"""The tokens of a fleet, as Consul itself takes and understands them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from acl_tokens import make
from consul_processes import Agent, until

from uwsgi_consul_fleet.inventory.model import InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.secrets import tokens

SEED = "11" * 32
APP = "consul-demo-server"
ROOT = "open-sesame"
ACL = f'acl {{ enabled = true default_policy = "deny" tokens {{ master = "{ROOT}" }} }}'


class Asking:
    """The agent, asked with a token of the fleet."""

    def __init__(self, agent: Agent, is_open: bool) -> None:
        self.agent = agent
        self.is_open = is_open  # whether look-ups take no token

    def status(self, what: str, method: str, path: str, **arguments: Any) -> int:
        """HTTP's, of the answer to who has the token of `what`; '' is nobody's."""
        headers = {"X-Consul-Token": tokens.secret(SEED, what)} if what else {}
        url = self.agent.url + path
        return requests.request(method, url, headers=headers, timeout=30, **arguments).status_code

    def sees(self, what: str, service: str) -> bool:
        """Whether an instance of a service is found."""
        headers = {"X-Consul-Token": tokens.secret(SEED, what)} if what else {}
        url = f"{self.agent.url}/v1/health/service/{service}"
        return bool(requests.get(url, headers=headers, timeout=30).json())

    def registers(self, what: str, service: str) -> bool:
        body = {"Name": service, "ID": service, "Port": 1}
        return self.status(what, "PUT", "/v1/agent/service/register", json=body) == 200


@pytest.fixture(scope="module", params=[False, True], ids=["closed", "open"])
def asking(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asking]:
    agent = Agent(tmp_path_factory.mktemp("tokens"), config=ACL)
    agent.session.headers["X-Consul-Token"] = ROOT
    agent.start()
    listed = InventoryHost(
        "drakar",
        frozenset({"consul_servers", "app_servers"}),
        {**DEMO, "app_discovers": ["search"]},
    )
    other = InventoryHost("web.Example.com", frozenset({"app_servers"}), DEMO | {"app_name": "b"})
    fleet = build([listed, other], (), (), lambda host: f"10.0.3.{len(host.name)}")
    make(agent, tokens.wanted(fleet, SEED, "dc1", lookups=request.param))
    agent.register(1, service="search")
    agent.register(1, service="payments")
    yield Asking(agent, request.param)
    agent.kill()


def test_an_application_writes_its_own_service_and_finds_what_it_discovers(asking: Asking) -> None:
    mine = tokens.app("drakar", APP)
    assert asking.registers(mine, APP)
    assert not asking.registers(mine, "search")
    assert not asking.registers(mine, f"{APP}-2")
    until(lambda: asking.sees(mine, APP), "it finds itself")
    until(lambda: asking.sees(mine, "search"), "it finds what it discovers")
    assert not asking.sees(mine, "payments")
    assert asking.status(mine, "PUT", "/v1/kv/uwsgi-consul-fleet/a", data="x") == 403
    assert asking.status(mine, "PUT", "/v1/session/create") == 403
    assert asking.status(mine, "GET", "/v1/acl/tokens") == 403
    assert asking.status(mine, "GET", "/v1/agent/self") == 403


def test_an_application_that_does_not_say_finds_all_as_long_as_look_ups_are_open(
    asking: Asking,
) -> None:
    theirs = tokens.app("web.Example.com", "b")
    until(lambda: asking.sees(tokens.READ, "payments"), "it is there")
    assert asking.sees(theirs, "payments") == asking.is_open
    assert asking.sees("", "payments") == asking.is_open
    assert asking.status("", "PUT", "/v1/kv/uwsgi-consul-fleet/a", data="x") == 403
    assert not asking.registers("", "c")


def test_commands_read_and_change_nothing(asking: Asking) -> None:
    for path in ("agent/self", "operator/raft/configuration", "agent/members", "catalog/nodes"):
        assert asking.status(tokens.READ, "GET", f"/v1/{path}") == 200, path
    assert asking.status(tokens.READ, "GET", "/v1/kv/uwsgi-consul-fleet/?recurse") == 404
    for path in ("kv/uwsgi-consul-fleet/a", "session/create", "agent/service/deregister/search-1"):
        assert asking.status(tokens.READ, "PUT", f"/v1/{path}") == 403, path
    assert asking.status(tokens.READ, "GET", "/v1/acl/tokens") == 403
    assert asking.status(tokens.READ, "GET", "/v1/kv/others") == 403


def test_a_deploy_changes_what_it_must_and_makes_no_tokens(asking: Asking) -> None:
    def answer(method: str, path: str, **arguments: Any) -> int:
        return asking.status(tokens.DEPLOY, method, f"/v1/{path}", **arguments)

    assert answer("PUT", "kv/uwsgi-consul-fleet/a", data="x") == 200
    assert answer("PUT", "session/create") == 200
    assert answer("DELETE", "kv/uwsgi-consul-fleet/a") == 200
    assert answer("GET", "acl/tokens") == 200
    assert answer("PUT", "kv/others", data="x") == 403
    assert answer("PUT", "acl/policy", json={"Name": "mine"}) == 403
    assert answer("GET", "operator/autopilot/configuration") == 200
    # Without gossip encryption there is no keyring, which is another answer than 403.
    assert answer("GET", "operator/keyring") != 403


def test_an_agent_is_its_own_node_alone(asking: Asking) -> None:
    def registers(what: str, node: str, address: str = "10.0.3.9") -> int:
        body = {"Node": node, "Address": address}
        return asking.status(what, "PUT", "/v1/catalog/register", json=body)

    mine, theirs = tokens.node("drakar"), tokens.node("web.Example.com")
    assert registers(theirs, "web.Example.com") == 200
    assert registers(mine, "web.Example.com", "10.0.3.10") == 403
    assert asking.status(mine, "GET", "/v1/agent/self") == 200
    assert asking.status(theirs, "GET", "/v1/agent/self") == 403


def test_management_may_do_everything(asking: Asking) -> None:
    assert asking.status(tokens.MANAGEMENT, "PUT", "/v1/acl/policy", json={"Name": "mine"}) == 200


def test_a_tokens_accessor_is_the_one_that_is_derived(asking: Asking) -> None:
    for what in (tokens.MANAGEMENT, tokens.DEPLOY, tokens.READ, tokens.node("drakar")):
        headers = {"X-Consul-Token": tokens.secret(SEED, what)}
        url = f"{asking.agent.url}/v1/acl/token/self"
        found = requests.get(url, headers=headers, timeout=30).json()
        assert found["AccessorID"] == tokens.accessor(SEED, what)
