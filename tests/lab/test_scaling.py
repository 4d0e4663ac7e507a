"""From two hosts to four and back by edits of the inventory, under load.

Half of the clients look the instances up before each request, the other half use the addresses
of the hosts that stay. The tests run in the order in which they stand here, on one fleet: each
starts from what the one before it left. Two, six, two is in bench/scaling.py.
"""

import re
from pathlib import Path

import pytest
from applications import application
from fleet_commands import output
from growing import TOUCHED, grow_and_shrink, rows
from lab_commands import Lab
from load import Load, instances
from releasing import Releases
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(350)

STAY = ("drakar", "cheetah")
MORE = ("ormen", "skeid")


@pytest.fixture(scope="module")
def more(fleet: SharedFleet) -> None:
    fleet.more(*MORE)


@pytest.mark.usefixtures("more")
def test_two_four_two(fleet: SharedFleet, lab: Lab) -> None:
    grow_and_shrink(fleet, lab, STAY, MORE)


def test_nobody_retires_before_their_replacement_is_there(fleet: SharedFleet, lab: Lab) -> None:
    unreachable = ("ormen", {"ssh_port": 9})
    fleet.hosts(["drakar"], ["drakar", unreachable], ["cheetah"])
    before = lab.ssh("cheetah", TOUCHED).stdout
    result = fleet.deploy(check=False)
    assert result.returncode == 1
    assert "cheetah: consul-demo-server stays on it: ormen can't be reached" in output(result)
    assert lab.ssh("cheetah", TOUCHED).stdout == before


def test_one_host_takes_over_from_another(fleet: SharedFleet, lab: Lab) -> None:
    """Both in one edit: the new one serves before the old one goes."""
    fleet.hosts(["drakar"], ["drakar", "ormen"], ["cheetah"])
    with Load(lab, instances(lab, "drakar")) as load:
        load.mark("cheetah for ormen")
        fleet.deploy()
        window = load.window("cheetah for ormen")
        print(f"\n{window}")
        window.expect(passing=4)
    assert {row["node"] for row in rows(fleet)} == {"drakar", "ormen"}


def test_a_consul_server_that_serves_no_more_stays_a_server(fleet: SharedFleet, lab: Lab) -> None:
    agent = "systemctl show --property MainPID,ActiveEnterTimestamp consul"
    before = lab.ssh("drakar", agent).stdout
    fleet.hosts(["drakar"], ["ormen"])
    with Load(lab, instances(lab, "ormen")) as load:
        load.mark("drakar serves no more")
        changes = fleet.changes()
        assert changes.pop("Consul: forget secrets that nobody uses") == ["drakar"]  # its token
        assert changes == {"Application: stop it and remove it": ["drakar"]}
        window = load.window("drakar serves no more")
        print(f"\n{window}")
        window.expect(passing=2)
    assert {row["node"] for row in rows(fleet) if row["port"]} == {"ormen"}
    left = "sudo ls /opt /srv /etc/uwsgi-consul-fleet; systemctl list-units --all 'consul-demo*'"
    assert "demo" not in lab.ssh("drakar", left, check=False).stdout
    assert lab.ssh("drakar", agent).stdout == before
    assert fleet.changes() == {}


def test_without_a_purge_releases_and_data_stay(
    fleet: SharedFleet, lab: Lab, tmp_path: Path
) -> None:
    fleet.hosts(["drakar"], ["drakar"], [("ormen", {"purge": False})])
    fleet.deploy()
    assert {row["node"] for row in rows(fleet)} == {"drakar"}
    left = lab.ssh("ormen", "sudo ls /srv/consul-demo-server/releases /var/lib/consul").stdout
    assert "checks" in left or "serf" in left, left
    assert fleet.changes() == {}
    fleet.hosts(["drakar"], ["drakar", "ormen"])
    fleet.deploy()
    assert {row["node"] for row in rows(fleet)} == {"drakar", "ormen"}


def test_two_applications_are_released_together(
    fleet: SharedFleet, lab: Lab, tmp_path: Path
) -> None:
    """Each is known by its own name, also to who takes it away when nothing says its name."""
    fleet.hosts(["drakar"], ["drakar", ("ormen", {"app_name": "other-server"})])
    said = output(fleet.deploy(check=False))
    assert "ormen: consul-demo-server serves on port 2001, 2002, which other-server needs" in said
    other = {"app_name": "other-server", "instances": {"server1": 3001}}
    fleet.hosts(["drakar"], ["drakar", ("ormen", other)])
    # Not a number, though pyinfra would make one of it.
    fleet.deploy("--data", "release=1.10", "--data", "app_processes=3")
    found = {(row["node"], row["service"], row["release"]) for row in rows(fleet)}
    assert found == {
        ("drakar", "consul-demo-server", "1.10"),
        ("ormen", "other-server", "1.10"),
    }
    # Each has its own canary and its own end.
    bad = {**other, "app_source": str(application(tmp_path, "raise RuntimeError('no wind')"))}
    fleet.hosts(["drakar"], ["drakar", ("ormen", bad)])
    result = fleet.deploy("--data", "release=1.11", "--data", "app_processes=3", check=False)
    assert result.returncode == 1
    assert "switch the canary: ormen" in output(result)
    assert {(row["node"], row["release"]) for row in rows(fleet)} == {
        ("drakar", "1.11"),
        ("ormen", "1.10"),
    }
    # What one goes on with is not the other's.
    said = output(fleet.deploy("--dry"))
    assert "consul-demo-server: stays on 1.11: app_source is what it serves" in said
    assert re.search(r"other-server: releases \S+ \(app_source\) over 1\.10", said), said
    fleet.hosts(["drakar"], ["drakar"], ["ormen"])
    fleet.deploy()
    left = "sudo ls /srv /etc/uwsgi-consul-fleet /opt; systemctl list-units --all '*-server-*'"
    assert "server" not in lab.ssh("ormen", left, check=False).stdout
    assert {row["node"] for row in rows(fleet)} == {"drakar"}


def test_releases_on_a_fleet_of_one_lose_no_request(
    fleet: SharedFleet, lab: Lab, tmp_path: Path
) -> None:
    releases = Releases(fleet, lab, tmp_path, ["drakar"])
    with Load(lab, instances(lab, "drakar")) as load:
        load.mark("one host")
        names = [releases.deploy() for _ in range(2)]
        window = load.window("one host")
        print(f"\n{window}")
        window.expect(passing=2)
        assert set(names) <= set(window.releases)
    releases.expect_everywhere()
