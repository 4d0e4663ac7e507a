"""From two hosts to six and back by edits of the inventory, under load.

Half of the clients look the instances up before each request, the other half use the addresses
of the hosts that stay.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_commands import Fleet, output
from load import Load, instances

STAY = ("drakar", "cheetah")
MORE = ("ormen", "skeid", "knarr", "busse")
# Everything that could tell that a host was touched.
TOUCHED = (
    "sudo find /etc/consul.d /etc/systemd/system /etc/uwsgi-consul-fleet /opt /srv "
    "-not -name '*.pyc' -not -name __pycache__ -printf '%p %i %C@\\n' | sort; "
    "systemctl show --property Id,MainPID,ActiveEnterTimestamp 'consul*' | sort"
)
# What a host has before anything was deployed to it.
EMPTY = (
    "sudo find /etc/consul.d /etc/uwsgi-consul-fleet /opt /srv /var/lib/consul /usr/local/bin "
    "/run/uwsgi-consul-fleet -mindepth 1 2>/dev/null; "
    "find /etc/systemd/system /run/systemd/system -name '*consul*'; "
    "getent passwd consul consul-demo-server; "
    "systemctl list-units --all --plain --no-legend 'consul*'; "
    "ss -Hltn | awk '{print $4}' | grep -v ':22$'; true"
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, lab: Any) -> Iterator[Fleet]:
    lab.up(*STAY, *MORE)
    lab.rebuild(*STAY, *MORE)
    found = Fleet(tmp_path_factory.mktemp("fleet") / "fleet.py")
    found.hosts(["drakar"], list(STAY))
    found.build()
    found.deploy()
    yield found
    lab.down(*MORE)


def test_two_six_two(fleet: Fleet, lab: Any) -> None:
    fresh = {name: lab.ssh(name, EMPTY).stdout for name in MORE}
    before = {name: lab.ssh(name, TOUCHED).stdout for name in STAY}
    with Load(lab, instances(lab, *STAY)) as load:
        load.mark("two hosts")
        time.sleep(3)
        fleet.hosts(["drakar"], [*STAY, *MORE])
        load.mark("to six")
        changes = fleet.changes()
        assert {host for hosts in changes.values() for host in hosts} == set(MORE), changes
        load.mark("six hosts")
        assert len(rows(fleet)) == 12
        time.sleep(3)  # until clients that choose at random have met every instance
        fleet.hosts(["drakar"], list(STAY), MORE)
        load.mark("to two")
        changes = fleet.changes()
        assert {host for hosts in changes.values() for host in hosts} == set(MORE), changes
        load.mark("two hosts again")
        assert {row["node"] for row in rows(fleet)} == set(STAY)
        print(f"\n{load.summary()}")
        for window in load.windows():
            window.expect(passing=4)
        reached = {request.address for request in load.window("six hosts", "to two").requests}
        assert reached == set(instances(lab, *STAY, *MORE))
    assert {name: lab.ssh(name, TOUCHED).stdout for name in STAY} == before
    assert {name: lab.ssh(name, EMPTY).stdout for name in MORE} == fresh
    assert fleet.changes() == {}


def rows(fleet: Fleet) -> list[dict[str, Any]]:
    """What verify sees, when it agrees."""
    found: list[dict[str, Any]] = json.loads(fleet.verify("--json", "--wait", "10").stdout)["rows"]
    return found


def test_nobody_retires_before_their_replacement_is_there(fleet: Fleet, lab: Any) -> None:
    unreachable = ("ormen", {"ssh_port": 9})
    fleet.hosts(["drakar"], ["drakar", unreachable], ["cheetah"])
    before = lab.ssh("cheetah", TOUCHED).stdout
    result = fleet.deploy(check=False)
    assert result.returncode == 1
    assert "cheetah: consul-demo-server stays on it: ormen can't be reached" in output(result)
    assert lab.ssh("cheetah", TOUCHED).stdout == before


def test_one_host_takes_over_from_another(fleet: Fleet, lab: Any) -> None:
    """Both in one edit: the new one serves before the old one goes."""
    fleet.hosts(["drakar"], ["drakar", "ormen"], ["cheetah"])
    with Load(lab, instances(lab, "drakar")) as load:
        load.mark("cheetah for ormen")
        fleet.deploy()
        window = load.window("cheetah for ormen")
        print(f"\n{window}")
        window.expect(passing=4)
    assert {row["node"] for row in rows(fleet)} == {"drakar", "ormen"}


def test_a_consul_server_that_serves_no_more_stays_a_server(fleet: Fleet, lab: Any) -> None:
    agent = "systemctl show --property MainPID,ActiveEnterTimestamp consul"
    before = lab.ssh("drakar", agent).stdout
    fleet.hosts(["drakar"], ["ormen"])
    with Load(lab, instances(lab, "ormen")) as load:
        load.mark("drakar serves no more")
        changes = fleet.changes()
        assert changes == {"Application: stop it and remove it": ["drakar"]}
        window = load.window("drakar serves no more")
        print(f"\n{window}")
        window.expect(passing=2)
    assert {row["node"] for row in rows(fleet) if row["port"]} == {"ormen"}
    left = "sudo ls /opt /srv /etc/uwsgi-consul-fleet; systemctl list-units --all 'consul-demo*'"
    assert "demo" not in lab.ssh("drakar", left, check=False).stdout
    assert lab.ssh("drakar", agent).stdout == before
    assert fleet.changes() == {}


def test_without_a_purge_releases_and_data_stay(fleet: Fleet, lab: Any, tmp_path: Path) -> None:
    fleet.hosts(["drakar"], ["drakar"], [("ormen", {"purge": False})])
    fleet.deploy()
    assert {row["node"] for row in rows(fleet)} == {"drakar"}
    left = lab.ssh("ormen", "sudo ls /srv/consul-demo-server/releases /var/lib/consul").stdout
    assert "checks" in left or "serf" in left, left
    assert fleet.changes() == {}
    fleet.hosts(["drakar"], ["drakar", "ormen"])
    fleet.deploy()
    assert {row["node"] for row in rows(fleet)} == {"drakar", "ormen"}


def test_two_applications_are_released_together(fleet: Fleet, lab: Any) -> None:
    """Each is known by its own name, also to who takes it away when nothing says its name."""
    fleet.hosts(["drakar"], ["drakar", ("ormen", {"app_name": "other-server"})])
    said = output(fleet.deploy(check=False))
    assert "ormen: consul-demo-server serves on port 2001, 2002, which other-server is" in said
    other = {"app_name": "other-server", "instances": {"server1": 3001}}
    fleet.hosts(["drakar"], ["drakar", ("ormen", other)])
    fleet.deploy("--data", "release=spring", "--data", "app_processes=3")
    found = {(row["node"], row["service"], row["release"]) for row in rows(fleet)}
    assert found == {
        ("drakar", "consul-demo-server", "spring"),
        ("ormen", "other-server", "spring"),
    }
    fleet.hosts(["drakar"], ["drakar"], ["ormen"])
    fleet.deploy()
    left = "sudo ls /srv /etc/uwsgi-consul-fleet /opt; systemctl list-units --all '*-server-*'"
    assert "server" not in lab.ssh("ormen", left, check=False).stdout
    assert {row["node"] for row in rows(fleet)} == {"drakar"}
