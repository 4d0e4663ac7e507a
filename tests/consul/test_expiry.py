"""Certificates that end soon, as a warning in the catalog of a real Consul that denies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from acl_tokens import make
from consul_processes import Agent, until
from host_programs import release

from uwsgi_consul_fleet.host import expiry, stored
from uwsgi_consul_fleet.host.consul import Access, Consul, UnavailableError
from uwsgi_consul_fleet.host.says import ReleaseError
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.secrets import certificates, tokens
from uwsgi_consul_fleet.secrets.document import Secrets

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
ROOT = "open-sesame"
SEED, LATER = "11" * 32, "22" * 32
APP = "consul-demo-server"
NODE = tokens.node("drakar")


def fleet() -> Fleet:
    listed = InventoryHost("drakar", frozenset({"consul_servers", "app_servers"}), DEMO)
    return build([listed], (), (), lambda host: "10.0.3.1")


class Machine:
    """A host whose files and whose agent are as a deploy leaves them."""

    def __init__(self, folder: Path) -> None:
        self.conf, self.tls, self.data = (folder / name for name in ("consul.d", "tls", "data"))
        for each in (self.conf, self.tls):
            each.mkdir()
        (self.conf / "consul.json").write_text(json.dumps({"node_name": "drakar"}))
        self.secrets = Secrets.new("shop")
        acl = (
            'acl { enabled = true default_policy = "deny" tokens { '
            f'master = "{ROOT}" agent = "{tokens.secret(SEED, NODE)}" }} }}'
        )
        options = ("-server", "-bootstrap", "-data-dir", str(self.data))
        self.agent = Agent(folder, *options, config=acl)
        self.agent.session.headers["X-Consul-Token"] = ROOT
        self.agent.start(wait=False)
        until(self._is_led, "it follows a leader, and knows tokens", 60)
        self.has_tokens(SEED)
        until(self.agent.is_ready, "the agent is in the catalog", 30)

    def _is_led(self) -> bool:
        try:
            return bool(self.agent.call("GET", "/v1/acl/tokens").json())
        except requests.RequestException:
            return False

    @property
    def consul(self) -> Consul:
        """As the unit of the timer has it: without any token."""
        return Consul(Access(self.agent.url))

    def has_tokens(self, seed: str) -> None:
        """Consul's and, for its agent, the host's."""

        wanted = tokens.wanted(fleet(), seed, "dc1", lookups=False)
        make(self.agent, wanted if seed == SEED else wanted._replace(policies={}))
        own = tokens.secret(seed, NODE)
        self.agent.call("PUT", "/v1/agent/token/agent", json={"Token": own})
        told = {"encrypt": "", "acl": {"tokens": {"agent": own}}}
        (self.conf / "secrets.json").write_text(json.dumps(told))

    def has(self, days: float, authority: float = 2000) -> None:
        """Certificates that end in so many days."""
        begins = NOW + timedelta(days=days) - certificates.NODE
        pem = certificates.issue(self.secrets, "drakar", "10.0.3.1", "dc1", True, begins)
        (self.tls / "node.pem").write_text(pem)
        begins = NOW + timedelta(days=authority) - certificates.AUTHORITY
        (self.tls / "ca.pem").write_text(certificates.authority("shop", begins)[0])

    def look(self) -> None:
        expiry.look(self.consul, self.conf, self.tls, NOW)

    def said(self) -> list[tuple[str, str]]:
        """What its catalog says of the certificates."""
        return [
            (each["Status"], each["Output"])
            for entry in self.entries(expiry.SERVICE)
            for each in entry["Checks"]
            if each["ServiceName"] == expiry.SERVICE
        ]

    def at_agent(self) -> tuple[str, str]:
        """What the agent has of it, which tells the catalog of another output minutes later."""
        check = self.agent.call("GET", "/v1/agent/checks").json()[f"service:{expiry.SERVICE}"]
        return check["Status"], check["Output"]

    def entries(self, service: str) -> list[Any]:
        found: list[Any] = self.agent.call("GET", f"/v1/health/service/{service}").json()
        return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    made.agent.kill()


def test_it_is_said_from_sixty_days_on_until_there_is_another(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(days=61)
    machine.look()
    assert expiry.SERVICE not in machine.agent.call("GET", "/v1/agent/services").json()

    machine.has(days=59)
    machine.look()
    told = "drakar: its certificate ends on 2027-01-25; a deploy gives it another one"
    until(lambda: machine.said() == [("warning", told)], "the catalog says it")
    assert capsys.readouterr().out == f"{told}\n"  # the journal, too
    # The next day, and when it has ended.
    machine.has(days=-1)
    ended = "drakar: its certificate ended on 2026-11-26; a deploy gives it another one"
    between: list[tuple[str, str]] = []
    put = Consul.put

    def watched(self: Consul, path: str, body: Any = None) -> Any:
        put(self, path, body)
        between.append(machine.at_agent())

    with monkeypatch.context() as patched:
        patched.setattr(Consul, "put", watched)
        machine.look()
    assert between == [("warning", told), ("warning", ended)], "it never passes meanwhile"

    machine.has(days=365)
    machine.look()
    until(lambda: machine.entries(expiry.SERVICE) == [], "nothing is said any more")


def test_an_authority_that_ends_counts_until_there_is_another(machine: Machine) -> None:
    machine.has(days=365, authority=59)
    machine.look()
    told = "drakar: the authority of its certificate ends on 2027-01-25: invoke secrets.rotate ca"
    until(lambda: machine.said() == [("warning", told)], "the catalog says it")
    with (machine.tls / "ca.pem").open("a") as bundle:
        bundle.write(machine.secrets.ca)
    machine.look()
    until(lambda: machine.entries(expiry.SERVICE) == [], "nothing is said any more")


def test_what_the_host_serves_goes_on_passing(machine: Machine) -> None:
    machine.agent.register(2001, status="passing", service=APP)
    machine.has(days=1)
    machine.look()
    until(machine.said, "the catalog says it")
    assert [each["Service"]["ID"] for each in machine.entries(f"{APP}?passing")] == [f"{APP}-2001"]
    assert machine.entries(f"{expiry.SERVICE}?passing") == []
    as_root = Consul(Access(machine.agent.url), ROOT)
    problems = stored.look(as_root, {}, machine.data, machine.conf)["problems"]
    assert not [each for each in problems if expiry.SERVICE in each], problems
    machine.agent.deregister(2001, service=APP)


def test_it_outlives_a_restart_and_goes_on_with_a_new_token(machine: Machine) -> None:
    """Nothing has the old one any more, which so can be deleted."""
    machine.has(days=1)
    machine.look()
    until(machine.said, "the catalog says it")
    before = machine.said()
    machine.agent.kill()
    machine.agent.start()
    until(lambda: machine.said() == before, "it says it after the restart")

    as_root = Consul(Access(machine.agent.url), ROOT)
    assert stored.accessors(as_root, machine.data) == {tokens.accessor(SEED, NODE)}
    machine.has_tokens(LATER)
    machine.look()
    assert stored.accessors(as_root, machine.data) == {tokens.accessor(LATER, NODE)}
    machine.agent.call("DELETE", f"/v1/acl/token/{tokens.accessor(SEED, NODE)}")
    machine.has(days=365)
    machine.look()
    until(lambda: machine.entries(expiry.SERVICE) == [], "nothing is said any more")


def test_what_can_not_be_told_is_a_failure(machine: Machine, tmp_path: Path) -> None:
    machine.has(days=1)
    (machine.tls / "node.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(ReleaseError, match=r"node.pem: can't be read"):
        machine.look()
    machine.has(days=365)
    nobody = Consul(Access("http://127.0.0.1:1"))
    with pytest.raises(UnavailableError, match="does not answer"):
        expiry.look(nobody, machine.conf, machine.tls, NOW)
    # As the unit starts it, where nothing is.
    said = release(tmp_path, {"address": machine.agent.url}, "consul", "expiry")
    assert said.returncode == 1 and "No such file" in said.stderr
