"""What a deploy removes of Consul from a host that has left the cluster, and what it must not."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from folders import Machine
from runs import fleet, here, retired

from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.inventory.model import InventoryHost
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.consul import cluster, expiry, leaving
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import FileState, HostState, UnitState
from uwsgi_consul_fleet.ownership.belongings import CONSUL, Belongings

LABEL = "release-1.21.4"
BEFORE = f"/opt/consul/{LABEL}/consul"
NOW = f"/opt/uwsgi-consul-fleet/consul/{LABEL}/consul"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def leave(machine: Machine, known: HostState, purge: bool) -> None:
    """What the deploy does on a retired host that looks so."""
    me = SimpleNamespace(is_retired=True, settings=SimpleNamespace(purge=purge))
    here = SimpleNamespace(me=me, known=known, changed=lambda: None)
    for command in leaving.remove._inner(here):
        machine.run(command.get_raw_value())


@pytest.mark.parametrize("purge", [True, False])
@pytest.mark.parametrize("binary", ["/opt/consul/bin/consul", BEFORE])
def test_of_an_agent_of_others_nothing_goes(machine: Machine, binary: str, purge: bool) -> None:
    theirs = {binary, "/etc/consul.d/consul.json", "/var/lib/consul/raft/raft.db"}
    for path in theirs:
        machine.put(path, '"data_dir": "/var/lib/consul"')
    machine.link(binary)
    machine.put("/opt/uwsgi-consul-fleet/release", "ours")
    machine.put("/etc/uwsgi-consul-fleet/agent/token", "ours")
    before = {LABEL} if binary == BEFORE else set()
    mine = Belongings(json.dumps({"fleet": "shop", "id": "1", "layout": 2, "made": ["app:shop"]}))
    program = {PROGRAM: FileState("644", "root", "root", "")}
    leave(machine, HostState(belongings=mine, consul_before=before, files=program), purge)
    assert machine.files() == {*theirs, "/usr/local/bin/consul"}


@pytest.mark.parametrize("binary", [NOW, BEFORE])
def test_of_ours_everything_goes_but_what_others_put_beside_it(
    machine: Machine, binary: str
) -> None:
    machine.put(binary)
    machine.link(binary)
    machine.put("/etc/consul.d/consul.json", '"data_dir": "/var/lib/consul"')
    machine.put("/var/lib/consul/raft/raft.db")
    for unit in ("consul.service", expiry.UNIT, expiry.TIMER):
        machine.put(f"/etc/systemd/system/{unit}")
    machine.put(f"/var/lib/systemd/timers/stamp-{expiry.TIMER}")
    theirs = {"/etc/consul.d/extra.hcl", "/opt/consul/bin/tool"}
    for path in theirs:
        machine.put(path)
    mine = Belongings(marks={CONSUL})
    leave(machine, HostState(belongings=mine, consul_before={LABEL}, consul_data="yes"), purge=True)
    assert machine.files() == theirs


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_server_asks_itself_where_none_that_stays_is_in_reach(
    goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was to remove it failed: the others need it unless that one's Consul goes on."""
    at = {"drakar": "10.9.0.1:8300", "ormen": "10.9.0.3:8300", "skeid": "10.9.0.4:8300"}
    alive = dict.fromkeys(at, True)
    asked: list[str] = []

    def seen_by(_run: object, name: str) -> cluster.Cluster:
        asked.append(name)
        peers = (cluster.Peer(each, each, at[each], each == "ormen", True) for each in at)
        return cluster.Cluster(tuple(peers), alive)

    monkeypatch.setattr(cluster, "seen_by", seen_by)
    knows = HostState(
        python="python3",
        files={cluster.UNIT: FileState("644", "root", "root", "")},
        units={"consul.service": UnitState("active", "enabled")},
        belongings=Belongings(marks={CONSUL}),
        consul_raft="1",
        consul_peers=tuple(at.values()),
        consul_leader=at["ormen"],
    )
    ormen = InventoryHost("ormen", frozenset({"consul_servers"}), {**DEMO, "app_name": "shop"})
    its = here(fleet(ormen, retired("skeid")), "skeid", **dict.fromkeys(at, knows))
    assert (cluster.change(its.run).leaving, cluster.remover(its.run)) == ({"skeid"}, "drakar")
    pyinfra: Any = its.run.pyinfra
    pyinfra.is_executing, pyinfra.connected = True, frozenset({"skeid"})
    alive["drakar"] = goes_on
    monkeypatch.setattr(Here, "changed", lambda _here: None)
    command, *_ = leaving.leave._inner(its, servers=True)
    assert asked == ["drakar", "skeid"]
    said = command.get_raw_value()
    assert ("be removed from the Consul servers while drakar is down" in said) == (not goes_on)
    assert said.endswith("consul leave") == goes_on
