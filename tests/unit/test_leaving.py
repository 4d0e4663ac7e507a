"""What a deploy removes of Consul from a host that has left the cluster, and what it must not."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from folders import Machine

from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.operations.consul import expiry, leaving
from uwsgi_consul_fleet.operations.state import FileState, HostState
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
