"""A fleet that grows and shrinks under load; the suite does it once, bench/scaling.py with more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from consul_processes import until
from fleet_commands import Fleet
from lab_commands import Lab
from load import Load, instances

# Everything that could tell that a host was touched, but for whom it lets in, and for the gossip's
# key, which is replaced where a host retires that knows it; a mark comes and goes beside it, see
# UNREAD in host/consul.py.
TOUCHED = (
    "sudo find /etc/systemd/system /etc/uwsgi-consul-fleet /opt /srv "
    "-path '*-fleet/firewall' -prune -o -not -regex '.*/consul.d\\(/secrets.json\\)?' "
    "-not -name '*.pyc' -not -name __pycache__ -not -path /etc/uwsgi-consul-fleet "
    "-printf '%p %i %C@\\n' | sort; "
    "systemctl show --property Id,MainPID,ActiveEnterTimestamp 'consul*' | sort"
)
# What a host has before anything was deployed to it: nothing of this.
EMPTY = (
    "sudo find /etc/uwsgi-consul-fleet /opt /srv /var/lib/consul /usr/local/bin "
    "/run/uwsgi-consul-fleet -mindepth 1 2>/dev/null; "
    "find /etc/systemd/system /run/systemd/system -name '*consul*'; "
    "getent passwd consul consul-demo-server; "
    "systemctl list-units --all --plain --no-legend 'consul*'; "
    "ss -Hltn | awk '{print $4}' | grep -v ':22$'; true"
)
# What others have to do with hosts that come and go.
OTHERS = (
    "Firewall: ",
    "Consul: make tokens",
    "Consul: replace the key of the gossip",
    "Consul: tell the agent its secrets",
    "Consul: forget secrets that nobody uses",
)
# A host that an earlier test removed by force is counted after a minute.
WAIT = "70"


def rows(fleet: Fleet) -> list[dict[str, Any]]:
    """What verify sees, when it agrees."""
    found: list[dict[str, Any]] = json.loads(fleet.verify("--json", "--wait", WAIT).stdout)["rows"]
    return found


def grow_and_shrink(fleet: Fleet, lab: Lab, stay: Sequence[str], more: Sequence[str]) -> None:
    """Hosts come and go without a lost request, and nothing else is touched by it.

    :param stay: the fleet before and after; the first one is Consul's server
    :param more: machines to which nothing is deployed before, nor left afterwards
    """
    assert {name: lab.ssh(name, EMPTY).stdout for name in more} == dict.fromkeys(more, "")
    before = {name: lab.ssh(name, TOUCHED).stdout for name in stay}
    every = set(instances(lab, *stay, *more))
    with Load(lab, instances(lab, *stay), on=stay[0]) as load:
        # Who goes is still there for a client that is held up between its look-up and its request.
        fleet.hosts([stay[0]], [*stay, *((name, {"drain": 5}) for name in more)])
        load.mark("more hosts")
        _expect_changes(fleet, more)
        load.mark("all hosts")
        assert len(rows(fleet)) == len(every)
        # Clients choose at random.
        until(lambda: _reached(load) == every, "every instance is used")
        fleet.hosts([stay[0]], list(stay), more)
        load.mark("fewer hosts")
        _expect_changes(fleet, more)
        load.mark("the first hosts again")
        assert {row["node"] for row in rows(fleet)} == set(stay)
        print(f"\n{load.summary()}")
        for window in load.windows():
            window.expect(passing=2 * len(stay))
    assert {name: lab.ssh(name, TOUCHED).stdout for name in stay} == before
    assert {name: lab.ssh(name, EMPTY).stdout for name in more} == dict.fromkeys(more, "")
    assert fleet.changes() == {}


def _expect_changes(fleet: Fleet, hosts: Sequence[str]) -> None:
    changes = fleet.changes()
    changes = {name: its for name, its in changes.items() if not name.startswith(OTHERS)}
    assert {host for found in changes.values() for host in found} == set(hosts), changes


def _reached(load: Load) -> set[str]:
    return {request.address for request in load.window("all hosts").requests}
