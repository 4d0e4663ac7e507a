"""The packet filter: what is written, whether nft takes it, and what the kernel does by it.

Packets go between network namespaces of a test's own, which takes root.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from consul_processes import until
from runs import OURS, RUNS, fleet, here, retired, server

from uwsgi_consul_fleet.errors import InventoryError
from uwsgi_consul_fleet.host import cluster
from uwsgi_consul_fleet.host.consul import Access, Consul
from uwsgi_consul_fleet.inventory.model import InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations import left_out
from uwsgi_consul_fleet.operations.firewall import firewall, rules
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import (
    FileState,
    HostState,
    Member,
    note_consul,
    parse,
)

HOSTS = {"drakar": frozenset({"10.9.0.1"}), "ormen": frozenset({"10.9.0.3", "fd09::3"})}
FILES = {
    rules.FLEET: rules.of_fleet(HOSTS, consul=True),
    rules.application("shop-2"): rules.of_application(
        "shop-2", [2001, 2002], ["10.9.0.4", "fd00::/8"]
    ),
    rules.application("4"): rules.of_application("4", [3001], []),
}


def nft(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In a network namespace of its own."""
    words = ["unshare", "--user", "--map-root-user", "--net", "nft", *options, "-f", "-"]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("consul", [True, False])
@pytest.mark.parametrize("clients", [[], ["0.0.0.0/0"], ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]])
def test_nft_takes_it(consul: bool, clients: list[str]) -> None:
    fleet = rules.of_fleet(HOSTS, consul) + rules.of_fleet({}, consul)
    found = nft(fleet + rules.of_application("0-a", [1, 2], clients), "-c")
    assert found.returncode == 0, found.stderr
    assert nft("table inet x { chain y { tcp dport 1 jump z } }", "-c").returncode != 0


def test_the_kernel_tells_what_it_has() -> None:
    """By the marks that the next deploy reads: of what is loaded now, not of what was before."""
    old = rules.of_fleet({}, consul=True)
    loaded = nft(f"{old}{''.join(FILES.values())}list table inet uwsgi_consul_fleet\n").stdout
    found = parse(
        [f"filter {line.split()[1]}" for line in loaded.splitlines() if "\tchain is_" in line]
    )
    assert found.filters == {rules.mark(text) for text in FILES.values()}
    assert rules.mark(old) not in found.filters


# --- Packets ---

# Each is plugged into a bridge: the guarded host, a host of the fleet, a client, a stranger.
MACHINES = {"drakar": 1, "ormen": 3, "client": 4, "stranger": 5}
LISTEN = """
import socket, sys, threading
ports = [8300, 8301, 8302, 8500, 8503, 8600, 2001, 2002, 3001, 4001, 22]
listening = [socket.create_server((at, port), family=family) for port in ports
             for at, family in (("0.0.0.0", socket.AF_INET), ("fd09::1", socket.AF_INET6))]
gossip = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for port in (8301, 8302, 8600)]
for each, port in zip(gossip, (8301, 8302, 8600)): each.bind(("0.0.0.0", port))
def echo(each):
    while True:
        each.sendto(*each.recvfrom(100))
for each in gossip: threading.Thread(target=echo, args=[each], daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
# usage: ATTEMPT AT TCP-PORTS UDP-PORTS: prints those that got through
ATTEMPT = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
at = sys.argv[1]
family = socket.AF_INET6 if ":" in at else socket.AF_INET
def tcp(port):
    try: socket.create_connection((at, port), timeout=0.3).close(); return f"tcp {port}"
    except OSError: return ""
def udp(port):
    with socket.socket(family, socket.SOCK_DGRAM) as each:
        each.settimeout(0.3); each.sendto(b"x", (at, port))
        try: each.recv(9); return f"udp {port}"
        except OSError: return ""
with ThreadPoolExecutor(32) as pool:
    tries = [*pool.map(tcp, eval(sys.argv[2])), *pool.map(udp, eval(sys.argv[3]))]
print("; ".join(filter(None, tries)))
"""


@pytest.fixture(scope="module")
def net() -> Iterator[str]:
    """Prefix of the namespaces' names; drakar listens."""
    if os.geteuid():
        pytest.skip("network namespaces take root")
    name = f"ucf-{os.getpid()}"
    spaces = [f"{name}-{machine}" for machine in ("bridge", *MACHINES)]
    setup = [f"ip netns add {each}" for each in spaces]
    setup.append(f"ip -n {name}-bridge link add br0 type bridge")
    setup.append(f"ip -n {name}-bridge link set br0 up")
    for machine, number in MACHINES.items():
        own = f"ip -n {name}-{machine}"
        setup += [
            f"{own} link add eth0 type veth peer name v{number} netns {name}-bridge",
            f"ip -n {name}-bridge link set v{number} master br0 up",
            f"{own} address add 10.9.0.{number}/24 dev eth0",
            f"{own} address add fd09::{number}/64 dev eth0 nodad",
            f"{own} link set eth0 up",
            f"{own} link set lo up",
        ]
    try:
        subprocess.run(["sh", "-ec", "\n".join(setup)], check=True)
        words = ["ip", "netns", "exec", f"{name}-drakar", "python3", "-c", LISTEN]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as listener:
            assert listener.stdout and listener.stdout.readline() == "ready\n"
            yield name
            assert listener.stdin
            listener.stdin.close()
    finally:
        for each in spaces:
            subprocess.run(["ip", "netns", "delete", each], check=False)


def load(net: str, text: str) -> None:
    subprocess.run(
        ["ip", "netns", "exec", f"{net}-drakar", "nft", "-f", "-"],
        input=text,
        text=True,
        check=True,
    )


def reached(net: str, machine: str, at: str = "10.9.0.1") -> set[str]:
    """What gets through to drakar."""
    ports = ("[8300,8301,8302,8500,8503,8600,2001,2002,3001,4001,22]", "[8301,8302,8600]")
    words = ["ip", "netns", "exec", f"{net}-{machine}", "python3", "-c", ATTEMPT, at, *ports]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return set(said.split("; "))


def expect(net: str, machine: str, expected: set[str], at: str = "10.9.0.1") -> None:
    """Just these get through. What is let in may be answered late, and is tried again then."""
    for _ in range(10):
        found = reached(net, machine, at)
        if not found < expected:
            break
    assert found == expected, f"{machine} to {at}"


CONSUL = {"tcp 8300", "tcp 8301", "tcp 8302", "udp 8301", "udp 8302"}
LOOPBACK = {"tcp 8500", "tcp 8503", "tcp 8600", "udp 8600"}
APPS = {"tcp 2001", "tcp 2002", "tcp 3001"}
OTHERS = {"tcp 4001", "tcp 22"}
SHOP = {"tcp 2001", "tcp 2002"}


def test_who_gets_through(net: str) -> None:
    everything = CONSUL | LOOPBACK | APPS | OTHERS
    expect(net, "stranger", everything)  # without the filter
    load(net, "".join(FILES.values()))
    expect(net, "stranger", OTHERS)
    expect(net, "client", OTHERS | SHOP)
    expect(net, "ormen", OTHERS | APPS | CONSUL)
    expect(net, "drakar", everything)  # the host itself
    six = {each for each in OTHERS | APPS | CONSUL if each.startswith("tcp")}
    expect(net, "ormen", six, "fd09::1")
    expect(net, "client", OTHERS | SHOP, "fd09::1")
    load(net, FILES[rules.FLEET])
    expect(net, "stranger", OTHERS | APPS)  # an application without app_clients


OPEN = """
import socket, sys
with socket.create_connection(("10.9.0.1", 2001), timeout=1) as wire:
    print(wire.getsockname()[1], flush=True)
    sys.stdin.readline()
    wire.shutdown(socket.SHUT_WR)
    print("ended", flush=True)
    sys.stdin.readline()
"""


def test_a_connection_that_is_open_stays_so(net: str) -> None:
    """Also where who made it is let in no more: what is under way finishes."""
    load(net, FILES[rules.FLEET])
    words = ["ip", "netns", "exec", f"{net}-stranger", "python3", "-c", OPEN]
    heard = ["ip", "netns", "exec", f"{net}-drakar", "ss", "-Htn", "state", "close-wait"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as client:
        assert client.stdin and client.stdout
        port = int(client.stdout.readline())
        load(net, "".join(FILES.values()))
        assert "tcp 2001" not in reached(net, "stranger")
        print(file=client.stdin, flush=True)
        assert client.stdout.readline() == "ended\n"
        until(
            lambda: f"10.9.0.5:{port}" in subprocess.check_output(heard, text=True).split(),
            "the host hears of its end",
        )
        client.stdin.close()


# --- Who is let in ---


def let_in(at: Here, at_end: bool = False) -> dict[str, set[str]]:
    return {name: {*its} for name, its in firewall._hosts(at, at_end).items()}


def test_members_that_no_inventory_lists_are_let_in() -> None:
    """Also while they are down, or they would not come back."""
    strangers = {"ormen": ("10.9.0.8", True), "skeid": ("10.9.0.9", False)}
    found = let_in(here(fleet(), drakar=server(OURS | strangers), cheetah=RUNS))
    assert found == {
        "drakar": {"10.9.0.1"},
        "cheetah": {"10.9.0.2"},
        "ormen": {"10.9.0.8"},
        "skeid": {"10.9.0.9"},
    }


def test_who_retires_is_let_in_until_it_has_left() -> None:
    known = server(OURS | {"ormen": ("10.9.0.3", True), "skeid": ("10.9.0.4", False)})
    of = fleet(retired("ormen"), retired("skeid"))
    states = {"drakar": known, "cheetah": RUNS}
    assert {*let_in(here(of, **states, ormen=RUNS))} == {"drakar", "cheetah", "ormen"}
    assert {*let_in(here(of, **states, ormen=RUNS), at_end=True)} == {"drakar", "cheetah"}
    # It did not: its ssh is gone, or --limit left it out.
    lost = here(of, failed="ormen", **states)
    assert {*let_in(lost, at_end=True)} == {"drakar", "cheetah", "ormen"}
    assert {*let_in(here(of, **states), at_end=True)} == {"drakar", "cheetah", "ormen"}


def test_where_no_server_tells_it_stays_as_it_was() -> None:
    admits = {"drakar": ("10.9.0.1",), "ormen": ("10.9.0.8",), "cheetah": ("10.9.0.2", "10.9.0.7")}
    known = HostState(consul_running="x", admits=admits)
    # Of cheetah, which is not reached, what was seen of it before.
    assert let_in(here(fleet(), drakar=known)) == {name: {*its} for name, its in admits.items()}


def test_a_host_is_let_in_by_all_addresses_that_it_may_come_from() -> None:
    addresses = {"10.9.0.2": "eth1", "10.9.0.7": "eth1", "fd09::2": "eth1", "172.17.0.1": "docker0"}
    known = replace(RUNS, addresses=addresses, sources={"192.0.2.9", "2001:db8::9"})
    found = let_in(here(fleet(), drakar=server(OURS), cheetah=known))
    assert found["cheetah"] == {"10.9.0.2", "10.9.0.7", "192.0.2.9"}


LEFT = 3  # serf's status of a member that said goodbye


class Told(Consul):
    """A server whose two lists of members are these: of its datacenter, and of all servers."""

    def __init__(self, near: list[Any], servers: list[Any]) -> None:
        super().__init__(Access())
        self.lists = {"/v1/agent/members": near, "/v1/agent/members?wan=1": servers}

    def get(self, path: str) -> Any:
        return self.lists[path]


def of_serf(name: str, address: str, status: int, dc: str = "dc1") -> dict[str, Any]:
    tags = {"dc": dc, "role": "consul", "build": "1.8.7"}
    return {"Name": name, "Addr": address, "Status": status, "Tags": tags}


@pytest.mark.parametrize("remembered", [cluster.ALIVE, cluster.FAILED])
def test_who_has_left_is_no_member_though_it_was_a_server(remembered: int) -> None:
    """All servers still tell of it, as of a server of any datacenter, by a name of their own."""
    servers = [
        of_serf("drakar.dc1", "192.0.2.1", cluster.ALIVE),  # by another address than in its own
        of_serf("cheetah.dc1", "10.9.0.2", remembered),
        of_serf("longship.dc2", "10.8.0.1", cluster.ALIVE, "dc2"),
    ]
    stay = [
        ("drakar", "10.9.0.1", True, "1.8.7"),
        ("drakar.dc1", "192.0.2.1", True, "1.8.7"),
        ("longship.dc2", "10.8.0.1", True, "1.8.7"),
    ]
    drakar = of_serf("drakar", "10.9.0.1", cluster.ALIVE)

    def found(*near: dict[str, Any]) -> list[tuple[str, str, bool, str]]:
        return sorted(cluster._everybody(Told([drakar, *near], servers)))

    assert found() == stay
    assert found(of_serf("cheetah", "10.9.0.2", LEFT)) == stay
    assert found(of_serf("cheetah", "10.9.0.2", cluster.ALIVE)) == [
        ("cheetah", "10.9.0.2", True, "1.8.7"),
        *stay,
    ]


def test_what_a_member_says_of_itself_is_no_rule() -> None:
    """Whoever knows how to join gossip chooses a name, an address to be known by, and a version."""
    found = HostState()
    rule = "x\ntable inet y { }"
    told = [
        [rule, "10.9.0.8", True, "1.21.4:5a2c8e1f"],
        ["y", "10.9.0.9; drop", True, "1.8.7"],
        ["z", "::FFFF", False, "; drop"],
    ]
    note_consul(found, json.dumps({"members": told}))
    assert found.consul_members == {
        "x_table_inet_y____": Member(("10.9.0.8",), True, (1, 21, 4)),
        "z": Member(("::ffff",), False),
    }


def test_who_is_new() -> None:
    known = server(OURS)
    of = fleet(InventoryHost("ormen", frozenset({"app_servers"}), {**DEMO, "app_name": "shop"}))
    states = {"drakar": known, "cheetah": RUNS}
    new = firewall._around(here(of, **states, ormen=HostState()).run).new
    assert new == ("ormen",)
    assert firewall._around(here(of, **states, ormen=RUNS).run).new == ("ormen",), "moved"
    assert firewall._around(here(of, **states).run).new == ()


def test_those_that_limit_leaves_out_let_in_who_is_new(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    of = fleet(InventoryHost("ormen", frozenset({"app_servers"}), {**DEMO, "app_name": "shop"}))
    admits = {"drakar": ("10.9.0.1",), "skeid": ("10.9.0.8",)}
    looks = {"drakar": server(OURS, admits=admits), "cheetah": None}
    monkeypatch.setattr(left_out.state, "ask", lambda host: looks[host.name])
    sent: dict[str, str] = {}
    answers = iter(["", "no space left"])

    def tell(other: Any, words: str) -> str:
        sent[other.name] = shlex.split(words)[-1]
        return next(answers)

    monkeypatch.setattr(left_out, "tell", tell)
    run = here(of, "ormen", ormen=HostState()).run
    assert firewall._let_in(run) == ""
    new = {name: frozenset(its) for name, its in admits.items()} | {
        "ormen": frozenset({"10.9.0.3"})
    }
    assert sent == {"drakar": rules.of_fleet(new, consul=True)}
    assert "cheetah can't be reached, and does not let ormen in" in caplog.text
    told = "drakar does not let it into the cluster: no space left; deploy without --limit"
    assert firewall._let_in(run) == told
    # As before there was a filter: everybody is let in.
    looks["drakar"] = HostState()
    assert firewall._let_in(here(of, "ormen", ormen=HostState()).run) == ""


# --- What lies on a host ---


def test_ports_of_releases_that_one_may_go_back_to_are_guarded() -> None:
    known = server(OURS, applications={"shop": {2003}})
    known.apps["shop"] = replace(
        known.of("shop"), generations={"old": {"instances": [{"id": "a", "port": 2002}]}}
    )
    at = here(fleet(app_clients=["10.1.0.0/16"]), drakar=known, cheetah=RUNS)
    text = firewall._wanted(at, at_end=False)[rules.application("shop")]
    assert "tcp dport { 2001, 2002, 2003 } jump app_shop" in text
    assert "ip saddr { 10.1.0.0/16 } accept" in text


def test_what_another_inventory_put_there_stays() -> None:
    files = {
        f"{firewall.FOLDER}/{name}": FileState("644", "root", "root", "x")
        for name in (rules.FLEET, rules.application("blog"), rules.application("shop"))
    }
    at = here(fleet(), drakar=server(OURS, files=files), cheetah=RUNS)
    found = firewall._wanted(at, at_end=False)
    assert {*found} == {rules.FLEET, rules.application("shop")}
    assert found[rules.application("shop")] == "", "app_clients is not set any more"


def test_nothing_is_guarded_where_consul_is_not_ours() -> None:
    none: dict[str, Any] = {"consul_source": "none", "fleet": "f"}
    entry = InventoryHost("web", frozenset({"app_servers"}), {**DEMO, **none})
    of = build([entry], (), (), lambda _: "10.9.0.1")
    assert not any(firewall._wanted(here(of, "web", web=HostState()), at_end=False).values())
    entry = replace(entry, usual={**entry.data, "app_clients": []})
    of = build([entry], (), (), lambda _: "10.9.0.1")
    found = firewall._wanted(here(of, "web", web=HostState()), at_end=False)
    assert "8300" not in found[rules.FLEET] and "10.9.0.1" in found[rules.FLEET]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"app_clients": ["10.0.0.5/8"]}, "has host bits set"),
        ({"ssh_port": 2001}, "instances: a has port 2001, which is sshd's"),
        ({"ssh_port": 8300}, "ssh_port = 8300, which is Consul's"),
    ],
)
def test_what_would_lock_somebody_out_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InventoryError, match=problem):
        fleet(**settings)
