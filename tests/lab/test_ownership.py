"""Machines with a life of their own: what is not this fleet's is refused, and stays as it is.

The tests run in the order in which they stand here: skeid is the fleet's server. ormen has an
owner, and becomes another fleet's, which reaches it by IPv6.
"""

import urllib.request
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.error import URLError

import pytest
from fleet_commands import Fleet, changed, output, run
from owned_machine import BESIDE

from uwsgi_consul_fleet.lab.network import ipv6

pytestmark = pytest.mark.takes(260)

HOSTS = ("skeid", "ormen")
RECORD = "/etc/uwsgi-consul-fleet/fleet.json"
SETTINGS = """
app_requirements = None
min_healthy_time = 0
fleet = {name!r}
"""
# What an operator may have on a machine: HashiCorp's layout of Consul, which is stopped, and the
# application's name in other hands.
IN_THE_WAY = """
useradd --system --home-dir /opt/consul --shell /bin/false consul
mkdir -p /etc/consul.d /opt/consul/raft /srv/consul-demo-server/releases/20200101
echo 'data_dir = "/opt/consul"' >/etc/consul.d/consul.hcl
echo precious >/opt/consul/raft/raft.db
echo upload >/srv/consul-demo-server/releases/20200101/upload
printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >/usr/lib/systemd/system/consul.service
useradd --create-home --shell /bin/bash consul-demo-server
touch /etc/systemd/system/consul-demo-server.target
touch /etc/systemd/system/consul-demo-server-2001.socket
systemd-run --quiet --unit other-web python3 -m http.server 2002
"""
PROCESSES = "pgrep --list-full sleep"
RULES = "nft list tables || :"
FILES = (
    "find /etc/consul.d /etc/systemd/system /opt /srv /usr/local /usr/lib/systemd/system/consul*"
    " -xdev -type f -exec sha256sum {} +"
)


def state(lab: Any, host: str) -> list[str]:
    """What is there, byte by byte and process by process."""
    look = f"{{ {FILES}; }} 2>/dev/null | sort; {PROCESSES}; getent passwd | sort; {RULES}"
    return str(lab.ssh(host, f"sudo sh -c {quote(look)}").stdout).splitlines()


def fleet_of(folder: Path, name: str | None) -> Fleet:
    (folder / "group_data").mkdir(parents=True)
    (folder / "group_data/all.py").write_text(SETTINGS.format(name=name))
    return Fleet(folder / "fleet.py")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, lab: Any) -> Iterator[Fleet]:
    lab.fresh(*HOSTS)
    found = fleet_of(tmp_path_factory.mktemp("fleet"), "shop-production")
    found.hosts(["skeid"], ["skeid"])
    found.build_once()
    found.deploy()
    yield found
    lab.down(*HOSTS)


@pytest.fixture(scope="module")
def address(lab: Any) -> str:
    """ormen's, for the other fleet."""
    return str(ipv6(IPv4Address(lab.address("ormen"))))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, fleet: Fleet, address: str) -> Fleet:
    """ormen's, by the name of its application, when it is nobody else's."""
    found = fleet_of(tmp_path_factory.mktemp("other"), None)
    found.hosts(["ormen"], [("ormen", {"address": address})])
    said = output(found.deploy())
    assert "Fleet consul-demo-server (" in said
    return found


def refused(result: Any, *expected: str) -> None:
    assert result.returncode, output(result)
    for text in expected:
        assert text in output(result)


# --- A host with an owner ------------------------------------------------------------


def test_what_is_in_the_way_is_named_and_left_alone(fleet: Fleet, lab: Any) -> None:
    for script in (BESIDE, IN_THE_WAY):
        lab.ssh("ormen", f"sudo sh -ec {quote(script)}")
    before = state(lab, "ormen")
    fleet.hosts(["skeid"], ["skeid", "ormen"])
    refused(
        fleet.deploy(check=False),
        "ormen: not everything that this fleet would put there is free",
        "Consul: /lib/systemd/system/consul.service",
        "Consul: the user consul",
        'use the Consul that is there (consul_source = "none")',
        "consul-demo-server: /srv/consul-demo-server",
        "consul-demo-server: the user consul-demo-server",
        "consul-demo-server: /etc/systemd/system/consul-demo-server.target",
        "consul-demo-server: /etc/systemd/system/consul-demo-server-2001.socket",
        "port 2002: python3 (process ",
        "nothing was changed",
    )
    # Nor is anything of it the fleet's when it is told to go.
    fleet.hosts(["skeid"], ["skeid"], ["ormen"])
    assert fleet.changes() == {}
    assert state(lab, "ormen") == before


def test_it_is_handed_over_on_demand_alone(fleet: Fleet, lab: Any) -> None:
    fleet.hosts(["skeid"], ["skeid", "ormen"])
    adopt = ("invoke", "adopt", "ormen", "--inventory", str(fleet.path))
    refused(run(*adopt, check=False), "free these ports")
    lab.ssh("ormen", "sudo systemctl stop other-web")
    refused(run(*adopt, check=False), "say --yes", "consul-demo-server: /srv/consul-demo-server")
    # What stands in for an operator's decision to give it away.
    lab.ssh("ormen", "sudo rm -r /srv/consul-demo-server /opt/consul /etc/consul.d")
    lab.ssh("ormen", "sudo rm /usr/lib/systemd/system/consul.service; sudo userdel consul")
    lab.ssh("ormen", "sudo rm /etc/systemd/system/consul-demo-server*")
    lab.ssh("ormen", "sudo userdel --remove consul-demo-server 2>&1")
    assert "Nothing is in the way" in output(run(*adopt))


def test_what_is_beside_it_stays_as_it_is_until_the_host_retires(fleet: Fleet, lab: Any) -> None:
    before = state(lab, "ormen")
    fleet.deploy("--limit", "ormen", "--data", "release=one")
    fleet.deploy("--data", "release=two")
    assert fleet.releases() == {"skeid": "two", "ormen": "two"}
    assert fleet.changes("--data", "release=two") == {}  # whatever runs by a similar name
    now = state(lab, "ormen")
    assert [line for line in before if line not in now] == []
    fleet.hosts(["skeid"], ["skeid"], ["ormen"])
    fleet.deploy("--data", "release=two", "--data", "purge=True")
    assert state(lab, "ormen") == before


# --- Another fleet's -----------------------------------------------------------------


def test_a_host_that_others_reach_by_ipv6(other: Fleet, lab: Any, address: str) -> None:
    other.verify("--probe")
    assert other.changes() == {}
    url = f"http://[{address}]:2001/healthz"
    assert urllib.request.urlopen(url, timeout=5).read() == b"ok\n"
    with pytest.raises(URLError, match="refused"):  # an address that the fleet does not use
        urllib.request.urlopen(f"http://{lab.address('ormen')}:2001/healthz", timeout=5)
    lab.reboot("ormen")
    other.verify("--probe")


def test_another_fleets_host_is_refused_by_every_command(
    fleet: Fleet, other: Fleet, lab: Any
) -> None:
    before = [state(lab, host) for host in HOSTS]
    mixed = (
        "mixes hosts of several fleets",
        "shop-production (",
        "consul-demo-server (",
        "ormen",
    )
    # Whatever else it may be meant for is in the unit tests.
    fleet.hosts(["skeid"], ["skeid"], ["ormen"])
    refused(fleet.deploy(check=False), *mixed)
    fleet.hosts(["skeid"], ["skeid", "ormen"])
    refused(fleet.build(check=False), *mixed)
    assert "built" in output(fleet.build("--list"))  # which changes nothing
    # An inventory whose hosts all agree, and which is the wrong one.
    fleet.hosts(["ormen"], ["ormen"])
    wrong = ("belongs to the fleet consul-demo-server (", "'shop-production'")
    refused(fleet.deploy(check=False), *wrong)
    refused(fleet.rollback(check=False), *wrong)
    refused(fleet.verify(check=False), *wrong)
    refused(run("invoke", "unlock", "--inventory", str(fleet.path), check=False), *wrong)
    assert [state(lab, host) for host in HOSTS] == before


def test_a_host_takes_no_second_fleet(fleet: Fleet, lab: Any) -> None:
    """As when two first deploys come at the same moment."""
    words = "sudo /opt/uwsgi-consul-fleet/release mark other 0123456789 2 consul"
    result = lab.ssh("skeid", words, check=False)
    refused(result, "belongs to the fleet shop-production (")


# --- From before there were identities ------------------------------------------------


def test_hosts_of_another_cluster_are_refused_and_the_others_get_an_identity(
    fleet: Fleet, other: Fleet, lab: Any
) -> None:
    for host in HOSTS:
        lab.consul(host, f"kv delete uwsgi-consul-fleet/fleet && sudo rm {RECORD}")
    before = [state(lab, host) for host in HOSTS]
    for groups in (
        (["skeid"], ["skeid", "ormen"]),
        (["skeid", "ormen"], ["skeid"]),
        (["skeid"], ["skeid"], ["ormen"]),
    ):
        fleet.hosts(*groups)
        refused(
            fleet.deploy(check=False),
            "ormen: its Consul agent is of the cluster of",
            "invoke adopt ormen",
        )
    assert [state(lab, host) for host in HOSTS] == before
    fleet.hosts(["skeid"], ["skeid", "ormen"])
    refused(fleet.deploy("--limit", "skeid", check=False), "no --limit")
    fleet.hosts(["skeid"], ["skeid"])
    assert fleet.changes() == {"Fleet: mark the Consul servers": ["skeid"]}


def test_a_host_that_is_handed_over_changes_its_cluster(
    fleet: Fleet, other: Fleet, lab: Any
) -> None:
    fleet.hosts(["skeid"], ["skeid", "ormen"])
    adopt = ("invoke", "adopt", "ormen", "--yes", "--inventory", str(fleet.path))
    assert "ormen: is handed over" in output(run(*adopt))
    deploy = fleet.deploy("--json")
    # And nothing is left to do where the identity has been written.
    changes = changed(deploy)
    assert {*changes.pop("Firewall: let in who may connect")} == {"ormen", "skeid"}
    assert [*changes.pop("Consul: make tokens")] == ["skeid"]
    assert {host for hosts in changes.values() for host in hosts} == {"ormen"}
    for said in (deploy, fleet.verify()):
        assert "Fleet shop-production (" in output(said)
    audit = run("invoke", "audit", "--inventory", str(fleet.path))
    assert output(audit).startswith("Fleet shop-production\n")
