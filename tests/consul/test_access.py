"""What commands show to a Consul of the fleet's own, and what they say where that is not enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from consul_processes import SERVICE, Agent, until

from uwsgi_consul_fleet.client import program as program_of_client
from uwsgi_consul_fleet.consul import catalog, program
from uwsgi_consul_fleet.consul.access import Role, access
from uwsgi_consul_fleet.errors import RefusedError, UnreachableError
from uwsgi_consul_fleet.host.consul import FLEET, KEYS
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.inventory.vault import Vault
from uwsgi_consul_fleet.secrets import store, tokens
from uwsgi_consul_fleet.secrets.document import Secrets

MASTER = "5d3b3f3e-3f0f-4f0b-8a34-a4f30a6a9a51"

ROLES: tuple[Role, ...] = ("read", "deploy", "management")


def acl(policy: str) -> str:
    return f'acl {{ enabled = true default_policy = "{policy}" tokens {{ master = "{MASTER}" }} }} '


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """One of a server, whose secrets are not there yet."""
    listed = InventoryHost("drakar", frozenset({"consul_servers"}), DEMO)
    (tmp_path / "folder").mkdir()
    made = build([listed], (), (), lambda _: "10.0.3.11")
    return made.kept_in(Vault(tmp_path / "folder", "shop"))


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_known", {})


@pytest.fixture(scope="module", params=["allow", "deny"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Agent]:
    agent = Agent(tmp_path_factory.mktemp("own"), config=acl(request.param))
    agent.session.headers["X-Consul-Token"] = MASTER
    agent.start()
    until(lambda: is_settled(agent), "ACLs can be used")
    yield agent
    agent.kill()


def is_settled(agent: Agent) -> bool:
    try:
        return bool(agent.call("GET", "/v1/acl/token/self").json()["AccessorID"])
    except requests.RequestException:
        return False


def make(agent: Agent, fleet: Fleet, seed: str) -> None:
    """The tokens that come from a seed, as a deploy makes them."""
    wanted = tokens.wanted(fleet, seed, "dc1", lookups=False)
    there = {each["Name"] for each in agent.call("GET", "/v1/acl/policies").json()}
    for name, policy in wanted.policies.items():
        if name not in there:
            body = {"Name": name, "Description": policy.description, "Rules": policy.rules}
            agent.call("PUT", "/v1/acl/policy", data=json.dumps(body))
    for token in wanted.tokens:
        body = {
            "AccessorID": token.accessor,
            "SecretID": token.secret,
            "Policies": [{"Name": name} for name in token.policies],
            "Local": True,
        }
        agent.call("PUT", "/v1/acl/token", data=json.dumps(body))


def secrets() -> Secrets:
    return Secrets.new("shop")


def way(agent: Agent, fleet: Fleet, role: Role = "read") -> catalog.Way:
    (server,) = fleet.hosts
    there = catalog.Way("drakar", int(agent.url.rpartition(":")[2]), access(server, role))
    return catalog.known(server, there)


def is_deny(agent: Agent) -> bool:
    return requests.get(f"{agent.url}/v1/kv/{KEYS}{FLEET}", timeout=5).status_code == 403


def test_each_role_with_its_token(guarded: Agent, fleet: Fleet) -> None:
    made = secrets()
    (server,) = fleet.hosts
    store.save(server.vault, made, None)
    make(guarded, fleet, made.seed)
    for role in ROLES:
        assert way(guarded, fleet, role).access.token == tokens.secret(made.seed, role)
    found = catalog.read(way(guarded, fleet), [])
    assert [(node.name, node.alive) for node in found.nodes] == [("drakar", True)]
    with catalog.client(way(guarded, fleet, "deploy")) as asked:
        asked.kv.put(KEYS + "try", "tried")
    if is_deny(guarded):
        expected = r"drakar: its Consul refuses \(403\): .*the next deploy makes its tokens"
        with (
            pytest.raises(RefusedError, match=expected),
            catalog.client(way(guarded, fleet)) as asked,
        ):
            asked.kv.put(KEYS + "try", "tried")


def test_the_tokens_before_count_until_there_are_others(guarded: Agent, fleet: Fleet) -> None:
    first = secrets()
    (server,) = fleet.hosts
    store.save(server.vault, first, None)
    make(guarded, fleet, first.seed)
    second = first.rotated("tokens")
    store.save(server.vault, second, first)
    assert way(guarded, fleet).access.token == tokens.secret(first.seed, "read")
    make(guarded, fleet, second.seed)
    assert way(guarded, fleet).access.token == tokens.secret(second.seed, "read")


def test_tokens_that_nobody_made_yet(guarded: Agent, fleet: Fleet) -> None:
    """Where Consul answers to everybody a deploy makes them; where it does not they are another
    fleet's, or of long ago."""
    (server,) = fleet.hosts
    store.save(server.vault, secrets(), None)
    if is_deny(guarded):
        with pytest.raises(RefusedError, match=r"knows none of the tokens .*secrets\.json") as told:
            way(guarded, fleet)
        assert "invoke secrets.recover" in str(told.value)
    else:
        there = way(guarded, fleet)
        assert there.access.token == ""
        assert [node.name for node in catalog.read(there, []).nodes] == ["drakar"]


def test_secrets_that_are_not_here(guarded: Agent, fleet: Fleet, tmp_path: Path) -> None:
    """Lists would be empty under deny, as if everything were missing."""
    with pytest.raises(RefusedError) as told:
        way(guarded, fleet)
    said = str(told.value)
    assert said.startswith("drakar: this fleet has secrets, and they are not here: ")
    assert str(tmp_path / "folder/.fleet/shop/secrets.json") in said
    assert "secrets_load" in said and "invoke secrets.recover" in said


def test_where_there_is_no_access_control(agent: Agent, fleet: Fleet) -> None:
    assert way(agent, fleet).access.token == ""
    (server,) = fleet.hosts
    store.save(server.vault, secrets(), None)
    assert catalog.read(way(agent, fleet), []).nodes


def test_nothing_of_the_environment(
    guarded: Agent, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = secrets()
    (server,) = fleet.hosts
    store.save(server.vault, made, None)
    make(guarded, fleet, made.seed)
    (tmp_path / "other").write_text("another")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "another")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(tmp_path / "other"))
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://127.0.0.1:1")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    assert catalog.read(way(guarded, fleet), []).nodes


@contextmanager
def tunnelled(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A connection by which an agent is reached, and which is lost when it is looked at."""

    @contextmanager
    def tunnel(*_: object) -> Iterator[int]:
        yield int(agent.url.rpartition(":")[2])

    monkeypatch.setattr(program.ssh, "tunnel", tunnel)
    yield SimpleNamespace(transport=SimpleNamespace(is_active=lambda: False))


def test_consuls_own_commands_and_its_ui(
    guarded: Agent, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server,) = fleet.hosts
    said: list[str] = []
    with tunnelled(guarded, monkeypatch) as there:
        with pytest.raises(RefusedError, match="they are not here"):
            program.token(there, server, "deploy")
        made = secrets()
        store.save(server.vault, made, None)
        make(guarded, fleet, made.seed)
        for role in ROLES:
            assert program.token(there, server, role) == tokens.secret(made.seed, role)
        for with_token in (False, True):
            with pytest.raises(UnreachableError, match="connection lost"):
                program.show(there, server, 0, said.append, with_token)
    assert [line.rsplit(" ", 1)[1] for line in said] == [
        "with",  # what --token prints
        tokens.secret(made.seed, "read"),
        "Ctrl-C",
    ]


def test_an_agent_that_does_not_answer_gets_the_newest_token(
    new_agent: Callable[..., Agent], fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of Consul's may be what tells why."""
    (server,) = fleet.hosts
    made = secrets()
    store.save(server.vault, made, None)
    with tunnelled(new_agent(), monkeypatch) as there:
        assert program.token(there, server, "deploy") == tokens.secret(made.seed, "deploy")


def test_the_client_with_the_token_that_reads(
    guarded: Agent, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (server,) = fleet.hosts
    made = secrets()
    store.save(server.vault, made, None)
    make(guarded, fleet, made.seed)
    guarded.register(2001)
    for name in ("HTTP_TOKEN", "CACERT", "CLIENT_CERT", "CLIENT_KEY"):
        monkeypatch.setenv(f"CONSUL_{name}", "another")
    there = way(guarded, fleet)
    words = ["--service", SERVICE, "--once", "--url", there.url]
    assert program_of_client.run(words, there.access) == 0
    assert program_of_client.run([*words, "--datacenter", "dc1"], there.access) == 0
    assert program_of_client.run([*words, "--datacenter", "dc2"], there.access) == 2
    shown = capfd.readouterr()
    assert shown.out.count("using port 2001") == 2
    assert "has no path to datacenter dc2" in shown.err


def test_what_can_be_looked_up_without_a_token(guarded: Agent, fleet: Fleet) -> None:
    (server,) = fleet.hosts
    made = secrets()
    store.save(server.vault, made, None)
    make(guarded, fleet, made.seed)
    assert catalog.is_open(way(guarded, fleet)) != is_deny(guarded)
