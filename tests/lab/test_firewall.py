"""Who can connect, on real machines: members of the cluster, others in the same network, and a
machine that was one and is no more. What the rules do in the kernel is in unit/test_firewall.py.

The tests run in the order in which they stand here, on one fleet: each starts from what the one
before it left.
"""

import shlex

import pytest
from fleet_commands import output
from lab_commands import Lab
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(110)

TABLE = "sudo nft list table inet uwsgi_consul_fleet"
OWN = "sudo nft list table inet own"
OTHERS = """
sudo nft -f - <<'END'
table inet own {
    set names { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.7 }; }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr @names counter drop
        tcp dport 9 reject
    }
}
END
"""
UNIT = "uwsgi-consul-fleet-firewall"
LEFT = (
    f"find /etc -name '*{UNIT}*' -o -path '*/nftables.service.d' -o -path '*-fleet/firewall'; "
    f"{TABLE} 2>/dev/null"
)
# usage: python3 -c ATTEMPTS ADDRESS PORT...: prints the ports that one gets through to.
ATTEMPTS = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(port):
    try: socket.create_connection((sys.argv[1], port), timeout=1).close()
    except OSError: return False
    return True
ports = list(map(int, sys.argv[2:]))
with ThreadPoolExecutor(32) as pool:
    print(*(port for port, fine in zip(ports, pool.map(reached, ports)) if fine))
"""
CONSUL = (8300, 8301, 8302, 8500, 8501, 8502, 8503, 8600)
APP = (2001, 2002)


def reached(lab: Lab, machine: str, to: str) -> set[int]:
    """Which ports of ``to`` a machine gets through to."""
    words = ["python3", "-c", ATTEMPTS, lab.address(to), *map(str, (*CONSUL, *APP, 22))]
    return {int(port) for port in lab.ssh(machine, shlex.join(words)).stdout.split()}


@pytest.fixture(scope="module")
def others(fleet: SharedFleet, lab: Lab) -> str:
    """Rules of the operator's own, as nft lists them."""
    fleet.more("ormen")
    lab.ssh("cheetah", OTHERS)
    return str(lab.ssh("cheetah", OWN).stdout)


@pytest.mark.usefixtures("others")
def test_from_outside_nobody_speaks_to_consul(lab: Lab) -> None:
    assert reached(lab, "ormen", "drakar") == {*APP, 22}
    assert reached(lab, "ormen", "cheetah") == {*APP, 22}
    # A server speaks to other datacenters' as well.
    assert reached(lab, "cheetah", "drakar") == {8300, 8301, 8302, *APP, 22}
    assert reached(lab, "drakar", "cheetah") == {8301, *APP, 22}


def test_an_application_says_who_its_clients_are(fleet: SharedFleet, lab: Lab, others: str) -> None:
    fleet.hosts(["drakar"], ["drakar", ("cheetah", {"app_clients": []})])
    assert fleet.changes() == {"Firewall: let in who may connect": ["cheetah"]}
    assert reached(lab, "ormen", "cheetah") == {22}
    assert reached(lab, "drakar", "cheetah") == {8301, *APP, 22}
    assert reached(lab, "ormen", "drakar") == {*APP, 22}
    fleet.verify("--probe")
    assert lab.ssh("cheetah", OWN).stdout == others


def test_it_is_there_whatever_happens_to_the_hosts_own_rules(lab: Lab) -> None:
    """Its unit flushes all rules that there are; and so does a boot."""
    before = lab.ssh("cheetah", TABLE).stdout
    for verb in ("start", "reload", "restart", "stop"):
        lab.ssh("cheetah", f"sudo systemctl {verb} nftables")
        assert lab.ssh("cheetah", TABLE).stdout == before, verb
    lab.reboot("cheetah")
    assert lab.ssh("cheetah", TABLE).stdout == before
    when = "systemctl show --value --property ActiveEnterTimestampMonotonic"
    filtered, network = lab.ssh("cheetah", f"{when} {UNIT} systemd-networkd").stdout.split()
    assert int(filtered) < int(network), "before there was a network"
    assert reached(lab, "ormen", "cheetah") == {22}


def test_who_is_new_is_let_in_by_all_also_with_limit(fleet: SharedFleet, lab: Lab) -> None:
    fleet.hosts(["drakar"], ["drakar", "cheetah", "ormen"])
    fleet.deploy("--limit", "ormen")
    # In no inventory any more, but in the cluster: another inventory may have it.
    fleet.hosts(["drakar"], ["drakar", ("cheetah", {"app_clients": []})])
    assert fleet.changes() == {}
    assert reached(lab, "ormen", "drakar") == {8300, 8301, 8302, *APP, 22}
    assert reached(lab, "ormen", "cheetah") == {8301, *APP, 22}


def test_who_retires_is_let_in_no_more(fleet: SharedFleet, lab: Lab) -> None:
    """And on a host that is to have no filter nothing of it is left."""
    lab.ssh("cheetah", OTHERS)
    before = lab.ssh("cheetah", OWN).stdout
    fleet.hosts(["drakar"], ["drakar", ("cheetah", {"firewall": False})], ["ormen"])
    changes = fleet.changes()
    assert changes["Firewall: let in who may connect"] == ["cheetah"]
    assert set(changes["Firewall: let nobody in who has left"]) == {"drakar", "ormen"}
    assert reached(lab, "ormen", "drakar") == {*APP, 22}
    assert reached(lab, "ormen", "cheetah") == {8301, *APP, 22}
    for name in ("ormen", "cheetah"):
        assert lab.ssh(name, LEFT, check=False).stdout == ""
    assert lab.ssh("cheetah", OWN).stdout == before
    assert fleet.changes() == {}


def test_a_filter_that_the_kernel_does_not_take(fleet: SharedFleet, lab: Lab) -> None:
    """The host is left alone before anything else, and told what turns it off."""
    lab.ssh("cheetah", "sudo mount --bind /bin/false /usr/sbin/nft")
    try:
        fleet.hosts(["drakar"], ["drakar", "cheetah"])
        result = fleet.deploy(check=False)
    finally:
        lab.ssh("cheetah", "sudo umount /usr/sbin/nft")
    assert result.returncode == 1
    assert "cheetah: the packet filter can't be loaded, and is as it was" in output(result)
    assert "firewall = False" in output(result)
