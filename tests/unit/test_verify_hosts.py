"""What verify makes of what hosts say of their agents, and of what a deploy has still to do."""

import base64
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from consul_processes import until

from uwsgi_consul_fleet.commands import report
from uwsgi_consul_fleet.consul.catalog import Node
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.inventory.vault import Vault
from uwsgi_consul_fleet.secrets import certificates, store
from uwsgi_consul_fleet.secrets.document import Secrets
from uwsgi_consul_fleet.verify import agents, notes
from uwsgi_consul_fleet.verify.agents import Agent
from uwsgi_consul_fleet.verify.comparison import Report
from uwsgi_consul_fleet.verify.hosts import Found

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def fleet(**settings: object) -> Fleet:
    data = {**DEMO, "app_name": "shop", "instances": {"one": 2001}, **settings}
    groups = {"s1": "consul_servers", "w1": "app_servers", "w2": "app_servers"}
    listed = [InventoryHost(name, frozenset({group}), data) for name, group in groups.items()]
    return build(listed, (), (), lambda host: f"10.0.0.{ord(host.name[0]) + int(host.name[1])}")


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_known", {})


@pytest.fixture(scope="module")
def secrets() -> Secrets:
    return Secrets.new("shop")


def certificate(secrets: Secrets, days: float) -> str:
    """One that ends in so many days."""
    made = NOW + timedelta(days=days) - certificates.NODE
    return certificates.issue(secrets, "w1", "10.0.0.120", "dc1", False, made)


# --- Certificates ---


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (61, ""),
        (59, "ends on 2027-01-25, in 59 days; the next deploy gives it another one"),
        (1.5, "ends on 2026-11-29, in 36 hours; the next deploy gives it another one"),
        (-2, "ended on 2026-11-25; the next deploy gives it another one"),
    ],
)
def test_a_certificate_that_ends(secrets: Secrets, days: float, expected: str) -> None:
    agent = Agent(fleet().host("w1"), 3, certificate(secrets, days), (secrets.ca,))
    found = [str(each) for each in agents.differences(agent, NOW)]
    assert found == ([f"expiring: node w1: its certificate {expected}"] if expected else [])


def test_an_authority_that_ends_counts_until_there_is_another(secrets: Secrets) -> None:
    old, _ = certificates.authority("shop", NOW + timedelta(days=30) - certificates.AUTHORITY)
    host = fleet().host("w1")

    def found(*authorities: str) -> list[str]:
        return [str(each) for each in agents.differences(Agent(host, 3, "", authorities), NOW)]

    assert found(old) == [
        "expiring: node w1: the authority of its certificate ends on 2026-12-27, in 30 days: "
        "invoke secrets.rotate ca"
    ]
    assert found(secrets.ca, old) == []


def test_a_host_of_a_version_before_has_none() -> None:
    agent = agents.parse(fleet().host("w1"), "round 0\ncertificate \nauthorities \n")
    assert (agent.round, agent.certificate, agent.authorities) == (0, "", ())
    assert not [*agents.differences(agent, NOW)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """A host with a process in round 2 for an agent, as systemctl says."""
    with subprocess.Popen(["sleep", "60"], env={"ROUND": "2", "PATH": os.environ["PATH"]}) as one:
        (tmp_path / "systemctl").write_text(f"#!/bin/sh\necho {one.pid}\n")
        (tmp_path / "systemctl").chmod(0o755)
        environment = Path(f"/proc/{one.pid}/environ")  # for a moment a new program has none
        until(lambda: b"ROUND=2" in environment.read_bytes(), "it has its environment")
        yield tmp_path
        one.kill()


def test_what_a_host_prints_holds_no_key(running: Path, secrets: Secrets) -> None:
    made = certificate(secrets, 300)
    (running / "node.pem").write_text(made)
    both = replace(secrets, ca_before=Secrets.new("shop").ca)
    (running / "ca.pem").write_text(certificates.trusted(both))
    script = agents.SCRIPT.replace("/etc/uwsgi-consul-fleet/tls", str(running))
    path = f"{running}:{os.environ['PATH']}"
    run = subprocess.run(
        ["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    shown = base64.b64decode(run.stdout.split("certificate ")[1].split()[0]).decode()
    assert "PRIVATE" in made and "PRIVATE" not in shown
    agent = agents.parse(fleet().host("w1"), run.stdout)
    assert agent.round == 2
    assert agent.certificate == certificates.public_part(made)
    assert agent.authorities == (both.ca, both.ca_before)


def test_an_agent_that_does_not_run_has_no_round(tmp_path: Path) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "systemctl").chmod(0o755)
    run = subprocess.run(
        ["sh", "-c", agents.SCRIPT],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert agents.parse(fleet().host("w1"), run.stdout).round is None


# --- What is still to be done ---


def said(
    fleet: Fleet,
    *rounds: int | None,
    unreachable: tuple[str, ...] = (),
    more: tuple[Node, ...] = (),
    is_open: bool = False,
) -> list[str]:
    there = [Agent(host, its) for host, its in zip(fleet.hosts, rounds, strict=False)]
    nodes = [Node(host.node, host.address, True) for host in fleet.hosts]
    found = Found((), tuple(there), unreachable)
    return [*notes.of(fleet, found, [*nodes, *more], lambda: is_open)]


def test_a_fleet_that_is_closed() -> None:
    assert said(fleet(), 3, 3, 3) == []
    assert said(fleet(), None, None, None) == []


def test_the_round_is_the_lowest_of_any() -> None:
    begun = "access control and encryption are not complete: round"
    assert said(fleet(), 0, 0, 0) == [f"{begun} 0 of 3; deploy again"]
    assert said(fleet(), 3, 2, 3) == [f"{begun} 2 of 3 on w1; deploy again"]
    assert said(fleet(), 1, None, 1) == [f"{begun} 1 of 3; deploy again"]


def test_what_keeps_it_open() -> None:
    strange = Node("elsewhere", "10.0.0.9", True)
    assert said(fleet(), 1, 1, unreachable=("w2",), more=(strange,)) == [
        "access control and encryption are not complete: round 1 of 3; w2 can't be reached; "
        "elsewhere is in no inventory here, which must be mended first; then deploy again"
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "until each application sets app_discovers: missing in shop"),
        (
            {"app_discovers": [], "dns": True},
            ", since dns = True; from Consul 1.17 on a deploy ends that",
        ),
        (
            {"dns": True},
            ", since dns = True; from Consul 1.17 on a deploy ends that; where a version before "
            "0.5 served, also until each application sets app_discovers: missing in shop",
        ),
        ({"app_discovers": []}, "; the next deploy ends that"),
    ],
)
def test_look_ups_without_a_token(settings: dict[str, object], expected: str) -> None:
    (note,) = said(fleet(**settings), 3, 3, 3, is_open=True)
    assert note.removeprefix("programs without a token may look up services").strip() == (
        expected.strip()
    )
    assert said(fleet(**settings), 3, 3, 3) == []


def test_a_rotation_that_is_owed(tmp_path: Path, secrets: Secrets) -> None:
    vault = Vault(tmp_path, "shop")
    mine = fleet().kept_in(vault)
    store.save(vault, secrets, None)
    assert said(mine, 3, 3, 3) == []
    store.save(vault, secrets.rotated("gossip").rotated("ca"), secrets)
    (note,) = said(mine, 3, 3, 3)
    assert note == (
        "not replaced everywhere yet: the gossip key, the certificate authority; the next deploy "
        "goes on with that"
    )
    store.save(vault, replace(secrets, recovering=True), store.load(vault))
    (note,) = said(mine, 3, 3, 3)
    assert note == (
        "not replaced everywhere yet: the tokens of the secrets that were lost; the next deploy "
        "goes on with that"
    )


def test_a_part_of_the_fleet_and_a_consul_of_others_have_nothing_to_do() -> None:
    assert said(replace(fleet(), is_part=True), 1, 1, 1) == []
    data = {**DEMO, "consul_source": "none", "fleet": "shop"}
    theirs = build(
        [InventoryHost("w1", frozenset({"app_servers"}), data)], (), (), lambda _: "10.0.0.1"
    )
    assert said(theirs, is_open=True) == []


def test_notes_are_shown_and_are_no_differences(capsys: pytest.CaptureFixture[str]) -> None:
    found = Report((), (), "s1", notes=("not complete yet",))
    report.show(found)
    shown = capsys.readouterr().out
    assert "note: not complete yet\n" in shown
    assert shown.endswith("The catalog agrees with the inventory (asked s1).\n")
    assert found.agrees and found.as_dict()["notes"] == ("not complete yet",)
