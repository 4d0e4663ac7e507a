"""Consul's servers come and go with the inventory, and the catalog answers throughout.

The tests run in the order in which they stand here, on one fleet: each starts from what the one
before it left.
"""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from checkout import ROOT
from consul_processes import until
from consul_version import CUT_OFF
from fleet_commands import output, run
from lab_commands import Lab
from shared_fleet import SharedFleet

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.inventory import reading as inventory
from uwsgi_consul_fleet.lock import lock
from uwsgi_consul_fleet.lock.lock import Lock
from uwsgi_consul_fleet.ssh import options

pytestmark = [pytest.mark.takes(600), pytest.mark.usefixtures("fresh")]

MACHINES = ("drakar", "cheetah", "ormen", "skeid")
APPS = ["drakar", "cheetah", "skeid"]
AUTOPILOT = "operator autopilot set-config"
NOT_BELIEVED = "sudo journalctl --unit consul --boot | grep 'not server.dc1.consul'"
# What Consul could leave behind.
FOOTPRINT = (
    "cd / && sudo find etc/uwsgi-consul-fleet/consul.d etc/systemd/system opt/uwsgi-consul-fleet "
    "usr/local/bin var/lib/consul "
    r"-printf '%M %u %g %p %l\n' 2>/dev/null | sort; getent passwd consul; getent group consul; "
    "systemctl list-units --all --plain --no-legend 'consul.*' | awk '{print $1, $3, $4}'; "
    "ss -Hltn | awk '{print $4}' | sort"
)
# Asks the agent beside it, ten times a second, until its standard input ends.
WATCH = """
import collections, json, os, select, sys, time, urllib.request as u
url = "http://127.0.0.1:8500/v1/health/service/consul-demo-server?passing"
asking = u.Request(url, headers={"X-Consul-Token": os.environ["CONSUL_HTTP_TOKEN"]})
counts, failures, slowest = collections.Counter(), [], 0
def asked():
    try:
        counts[len(json.load(u.urlopen(asking, timeout=30)))] += 1
    except (OSError, ValueError) as error:
        read = getattr(error, "read", lambda: b"")
        return f"{error}: {read().decode()}"
while not select.select([sys.stdin], [], [], 0.1)[0]:
    begin = time.monotonic()
    failed = asked()
    if failed:
        failures.append([failed, asked()])
    slowest = max(slowest, time.monotonic() - begin)
    if sum(counts.values()) + len(failures) == 1:
        print("watching", flush=True)
print(json.dumps({"counts": counts, "failures": failures, "slowest": slowest}))
"""


class Watch:
    """Counts what the agent of a host answers meanwhile."""

    def __init__(self, lab: Lab, host: str) -> None:
        self.host = host
        asked = f"{lab.as_management(host)} python3 -c '{WATCH}'"
        self.process = subprocess.Popen(
            ["ssh", "-F", str(ROOT / ".lab/ssh_config"), host, asked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout and self.process.stdout.readline() == "watching\n"

    def expect(self, instances: int, stopped: int = 0) -> None:
        """So many in each answer, and no question without one.

        :param stopped: how many servers have stopped meanwhile
        """
        told, _ = self.process.communicate()
        found = json.loads(told)
        answers = sum(found["counts"].values())
        print(
            f"asked {self.host}: {answers} answers, {len(found['failures'])} failed, instances "
            f"{found['counts']}, slowest {found['slowest']:.2f} s"
        )
        assert answers > 5
        # Cut off is at most one question for each server that stops, and never twice.
        failures = found["failures"]
        assert all(re.search(CUT_OFF, first) and not again for first, again in failures), found
        assert len(failures) <= stopped, found
        assert set(found["counts"]) == {str(instances)}


def voters(lab: Lab, host: str) -> set[str]:
    """None while it knows no leader."""
    return {name for name, (_, votes) in lab.peers(host, check=False).items() if votes}


def members(lab: Lab, host: str) -> dict[str, str]:
    """The agents that one of them sees, each as alive, failed or left."""
    lines = lab.consul(host, "members").stdout.splitlines()
    return {name: status for name, _, status, *_ in map(str.split, lines)}


def expect_status(lab: Lab, host: str, name: str, status: str) -> None:
    """Wait until an agent sees another one so."""
    seen = f"{name} is {status}, as {host} sees it"
    until(lambda: members(lab, host).get(name) == status, seen, 30)


def expect_outside(lab: Lab, host: str, name: str) -> None:
    """Wait until an agent that runs has tried to join, and see that nobody let it in."""
    tried = "sudo journalctl --unit consul --boot | grep -i -e \"couldn't join\" -e 'join .*failed'"
    until(lambda: not lab.ssh(name, tried, check=False).returncode, f"{name} has tried", 30)
    assert members(lab, host).get(name) in (None, "left")


def is_free(fleet: SharedFleet) -> bool:
    """Whether nobody has the lock; while the servers elect a leader nobody knows."""
    try:
        return lock.holder(inventory.read(fleet.path, options.address)) is None
    except UnreachableError:
        return False


def agents(lab: Lab, *names: str) -> list[str]:
    look = "systemctl show --property MainPID,ActiveEnterTimestamp consul"
    return [lab.ssh(name, look).stdout for name in names]


@pytest.fixture(scope="module")
def grown(fleet: SharedFleet) -> None:
    """A third host with the application, and a machine to which nothing was deployed yet."""
    fleet.more("ormen", "skeid")
    fleet.hosts(["drakar"], APPS)
    fleet.deploy()


@pytest.fixture(scope="module")
def fresh(grown: None, lab: Lab) -> str:
    """What a machine looks like as it comes."""
    return lab.ssh("ormen", FOOTPRINT).stdout


@pytest.fixture(scope="module")
def staying(fleet: SharedFleet, lab: Lab) -> str:
    """The server that stays in the end: not the one that leads when this is first asked."""
    return "drakar" if lab.peers("drakar")["cheetah"][0] == "leader" else "cheetah"


def other(staying: str) -> str:
    return "cheetah" if staying == "drakar" else "drakar"


# --- More servers --------------------------------------------------------------------


def test_from_one_server_to_three(fleet: SharedFleet, lab: Lab) -> None:
    before = agents(lab, "drakar", "skeid")
    watches = [Watch(lab, "drakar"), Watch(lab, "skeid")]
    fleet.hosts(["drakar", "cheetah", "ormen"], APPS)
    fleet.deploy()
    assert voters(lab, "drakar") == {"drakar", "cheetah", "ormen"}
    for watch in watches:
        watch.expect(6)
    assert agents(lab, "drakar", "skeid") == before, "who stays what it was is not restarted"
    fleet.verify()


def test_an_agent_that_restarts_stays_in_the_catalog(fleet: SharedFleet, lab: Lab) -> None:
    watch = Watch(lab, "drakar")
    lab.ssh("skeid", "sudo systemctl restart consul")
    # Its own agent has joined again when systemctl returns; what it tells the servers follows.
    fleet.verify()
    watch.expect(6)


def test_a_consul_that_does_not_start_reaches_one_server_and_no_other(
    fleet: SharedFleet, lab: Lab, tmp_path: Path
) -> None:
    shutil.copy("/usr/bin/true", tmp_path / "consul")
    before = agents(lab, *MACHINES)
    file = ("--data", "consul_source=file", "--data", f"consul_file={tmp_path / 'consul'}")
    result = fleet.deploy(*file, check=False)
    assert result.returncode == 1
    assert "Consul was not restarted, because it did not come back on" in output(result)
    after = agents(lab, *MACHINES)
    assert sum(a != b for a, b in zip(after, before, strict=True)) == 1
    # Sooner than the lock of a dead run is free by itself, which takes 13 s at least.
    until(lambda: is_free(fleet), "the lock is free", 12)
    fleet.deploy()
    again = agents(lab, *MACHINES)
    assert sum(a != b for a, b in zip(again, before, strict=True)) == 1


def test_servers_restart_one_after_the_other_and_the_leader_last(
    fleet: SharedFleet, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    binary = shutil.copy(shutil.which("consul") or "", tmp_path)
    with Path(binary).open("ab") as file:
        file.write(b"another version")
    label = f"file-{hashlib.sha256(Path(binary).read_bytes()).hexdigest()[:16]}"
    place = "/opt/uwsgi-consul-fleet/consul"
    for name in MACHINES[1:]:  # to one of them it is sent
        there = "$(dirname $(readlink /usr/local/bin/consul))"
        lab.ssh(name, f"sudo cp -r {there} {place}/{label}")
    roles = lab.peers("drakar")
    said = output(fleet.deploy("--data", "consul_source=file", "--data", f"consul_file={binary}"))
    assert "is packed" in said
    sent = lab.ssh("drakar", f"sha256sum {place}/{label}/consul").stdout
    assert label.removeprefix("file-") == sent[:16]
    look = "systemctl show --value --property ExecMainStartTimestampMonotonic consul"
    began = {name: int(lab.ssh(name, look).stdout) for name in roles}  # they share one clock
    assert roles[max(began, key=lambda name: began[name])][0] == "leader"
    fleet.deploy()
    assert fleet.changes() == {}


def test_the_loss_of_the_server_that_keeps_the_lock_is_none(fleet: SharedFleet, lab: Lab) -> None:
    # A server votes when it was well for so long: by default for 10 s, as in the first test.
    lab.consul("drakar", f"{AUTOPILOT} -server-stabilization-time=1s")
    known = inventory.read(fleet.path, options.address)
    with Lock(known.consul_servers) as held:
        held.take("test", {})
        lab.kill("drakar")

        def is_confirmed_without_it() -> bool:
            held.check(patience=15)
            nodes = lab.consul("cheetah", "catalog nodes", check=False)
            return nodes.returncode == 0 and "drakar" not in nodes.stdout

        # A dead server leaves the catalog after some seconds, and its sessions with it.
        until(is_confirmed_without_it, "drakar is out of the catalog", 60)
        held.expect({})  # which asks Consul, whatever was known
        found = lab.consul("cheetah", "kv get uwsgi-consul-fleet/lock").stdout
        assert '"what": "test"' in found
    entries = run("invoke", "audit", "--json", "--last", "1", "--inventory", str(fleet.path))
    assert json.loads(entries.stdout)[0]["outcome"] == "ok"
    lab.up("drakar")
    until(lambda: voters(lab, "cheetah") == {"drakar", "cheetah", "ormen"}, "three votes", 60)
    fleet.verify()


# --- What is refused -----------------------------------------------------------------


def test_a_deploy_that_comes_second_is_told_once(fleet: SharedFleet) -> None:
    """However many hosts are asked at the same time; of two alone none would be in the way."""
    with Lock(inventory.read(fleet.path, options.address).consul_servers) as held:
        held.take("test", {})
        result = fleet.deploy(check=False)
    assert result.returncode == 75, output(result)
    assert output(result).count("locked: ") == 1


def refused(fleet: SharedFleet, lab: Lab, *running: str, options: tuple[str, ...] = ()) -> str:
    """What the deploy says; nothing is touched on these hosts."""
    look = "sudo sha256sum /etc/uwsgi-consul-fleet/consul.d/* /etc/systemd/system/consul.service"
    before = [lab.ssh(name, look).stdout for name in running], agents(lab, *running)
    result = fleet.deploy(*options, check=False)
    assert result.returncode == 1
    assert ([lab.ssh(name, look).stdout for name in running], agents(lab, *running)) == before
    return output(result)


def test_replacing_all_servers_at_once_is_refused(fleet: SharedFleet, lab: Lab) -> None:
    fleet.hosts(["skeid"], APPS, ["ormen"])
    said = refused(fleet, lab, *MACHINES)
    assert "none of today's Consul servers (cheetah, drakar and ormen) is among them" in said
    assert "keep one of them, deploy, and take it out with the next deploy" in said


def test_losing_the_quorum_is_refused(fleet: SharedFleet, lab: Lab, tmp_path: Path) -> None:
    # Else Consul itself removes a dead server within seconds, when the others can agree on it.
    lab.consul("drakar", f"{AUTOPILOT} -cleanup-dead-servers=false")
    lab.kill("ormen")
    expect_status(lab, "drakar", "ormen", "failed")
    fleet.hosts(["drakar", "ormen"], APPS)
    said = refused(fleet, lab, "drakar", "cheetah", "skeid")
    assert "cheetah: can't be removed from the Consul servers while ormen is down" in said
    assert "start ormen first, or move it to retired as well" in said
    # Nor is a server restarted, when one would be left.
    fleet.hosts(["drakar", "cheetah", "ormen"], APPS)
    shutil.copy("/usr/bin/true", tmp_path / "consul")
    other = ("--data", "consul_source=file", "--data", f"consul_file={tmp_path / 'consul'}")
    said = refused(fleet, lab, "drakar", "cheetah", "skeid", options=other)
    assert "its Consul server can't be restarted while ormen is down" in said
    assert "1 of 3 alive, and it takes 2 to agree; start ormen first" in said
    lab.up("ormen")
    expect_status(lab, "drakar", "ormen", "alive")
    lab.consul("drakar", f"{AUTOPILOT} -cleanup-dead-servers=true")
    until(lambda: voters(lab, "drakar") == {"drakar", "cheetah", "ormen"}, "three votes", 30)


# --- Fewer servers -------------------------------------------------------------------


def test_from_three_servers_to_one(fleet: SharedFleet, lab: Lab, staying: str, fresh: str) -> None:
    watches = [Watch(lab, staying), Watch(lab, "skeid")]
    before = agents(lab, staying, "skeid")
    fleet.hosts([staying], APPS, ["ormen"])
    fleet.deploy()
    assert lab.peers(staying) == {staying: ("leader", True)}
    for watch in watches:
        watch.expect(6, stopped=2)
    # While it is a server others believe it to be one: it is told who leads in its place.
    for host in (staying, "ormen"):
        assert not lab.ssh(host, NOT_BELIEVED, check=False).stdout
    assert agents(lab, staying, "skeid") == before
    servers = lab.consul(staying, "catalog nodes -service=consul").stdout.splitlines()[1:]
    assert [line.split()[0] for line in servers] == [staying]
    assert lab.ssh("ormen", FOOTPRINT).stdout == fresh


# --- A host that vanished ------------------------------------------------------------


def test_a_host_that_vanished_is_retired_and_a_client_becomes_a_server_again(
    fleet: SharedFleet, lab: Lab, staying: str
) -> None:
    lab.kill("skeid")
    expect_status(lab, staying, "skeid", "failed")
    result = fleet.verify(check=False)
    assert result.returncode == 1
    assert "dead: node skeid: " in result.stdout
    assert "move the host to retired if it is gone for good" in result.stdout

    fleet.hosts([staying, other(staying)], ["drakar", "cheetah"], ["ormen", "skeid"])
    said = output(fleet.deploy())
    assert f"skeid can't be reached: removed from the catalog by {staying}" in said
    assert voters(lab, staying) == {"drakar", "cheetah"}
    assert fleet.changes() == {}
    fleet.verify()


def test_a_retired_host_that_is_back_stays_outside_and_keeps_its_data_without_purge(
    fleet: SharedFleet, lab: Lab, staying: str, fresh: str
) -> None:
    lab.up("skeid")
    expect_outside(lab, staying, "skeid")
    keep = ("--data", "purge=false")
    fleet.deploy(*keep)
    assert members(lab, staying).get("skeid") in (None, "left")
    assert lab.ssh("skeid", "systemctl --quiet is-active consul", check=False).returncode
    assert lab.ssh("skeid", "sudo ls /var/lib/consul/node-id", check=False).returncode == 0
    assert fleet.changes(*keep) == {}
    fleet.deploy()
    assert lab.ssh("skeid", FOOTPRINT).stdout == fresh
    fleet.verify()


def test_a_host_that_was_a_server_and_leaves_is_let_in_no_more(
    fleet: SharedFleet, staying: str
) -> None:
    """What servers tell each other across datacenters tells of it on."""
    fleet.hosts([staying], ["drakar", "cheetah"])
    fleet.deploy()
    fleet.hosts([staying], [staying], [other(staying)])
    changes = fleet.changes()
    assert staying in changes["Firewall: let nobody in who has left"]
    # It is in no inventory any more, and whoever is a member would be let in.
    fleet.hosts([staying], [staying])
    assert fleet.changes() == {}
