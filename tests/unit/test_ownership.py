"""Whose a host is, decided without one."""

import json
import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from folders import Machine

from uwsgi_consul_fleet.inventory.model import InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations import ownership
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.state import parse as state
from uwsgi_consul_fleet.ownership.belongings import LOOK, parse
from uwsgi_consul_fleet.ownership.identity import LAYOUT, ForeignError, Identity, agreed

SHOP = Identity("shop", "1" * 32)
BLOG = Identity("blog", "2" * 32)


def test_the_one_that_all_carry() -> None:
    assert agreed({"drakar": SHOP, "cheetah": None, "the Consul of drakar": SHOP}, None) == SHOP
    assert agreed({"drakar": SHOP}, "shop") == SHOP
    assert agreed({"drakar": None}, "shop") is None


def test_hosts_of_two_fleets() -> None:
    with pytest.raises(ForeignError) as refused:
        agreed({"drakar": SHOP, "cheetah": SHOP, "ormen": BLOG}, None)
    assert "shop (11111111): cheetah, drakar; blog (22222222): ormen" in str(refused.value)
    assert "invoke adopt" in str(refused.value)


@pytest.mark.parametrize("meant", ["consul_servers", "app_servers", "retired"])
def test_a_host_of_another_fleet_whatever_it_is_meant_for(meant: str) -> None:
    groups = {"drakar": {"consul_servers", "app_servers"}, "cheetah": {meant}}
    addresses = {"drakar": "10.0.3.11", "cheetah": "10.0.3.12"}
    hosts = [InventoryHost(name, frozenset(its), {**DEMO}) for name, its in groups.items()]
    fleet = build(hosts, set(), {"all"}, lambda host: addresses[host.name])
    known = {name: state([]) for name in groups}
    for name, its in (("drakar", SHOP), ("cheetah", BLOG)):
        record = {"fleet": its.fleet, "id": its.id, "layout": its.layout}
        known[name].belongings.record = json.dumps(record)
    pyinfra = SimpleNamespace(connected=frozenset(known), about=frozenset(known))
    run: Any = SimpleNamespace(fleet=fleet, pyinfra=pyinfra, state_of=known.__getitem__)
    with pytest.raises(DeployError, match=r"shop \(11111111\): drakar; blog \(22222222\): cheetah"):
        ownership._settle(run)


def test_an_inventory_of_another_name() -> None:
    with pytest.raises(ForeignError, match=r"drakar: belongs to the fleet shop \(11111111\)"):
        agreed({"drakar": SHOP}, "shop-staging")


def test_a_newer_layout() -> None:
    newer = Identity("shop", "1" * 32, LAYOUT + 1)
    with pytest.raises(ForeignError, match="drakar: was deployed to by a newer version"):
        agreed({"drakar": newer}, None)


@pytest.mark.parametrize(("layout", "marked"), [(LAYOUT - 1, True), (LAYOUT, False)])
def test_a_host_of_an_older_layout_gets_this_one(layout: int, marked: bool) -> None:
    """A version that does not know it would remove what it does not know."""
    host = InventoryHost("drakar", frozenset({"consul_servers", "app_servers"}), {**DEMO})
    fleet = build([host], set(), {"all"}, lambda host: "10.0.3.11")
    made = ["consul", f"app:{DEMO['app_name']}"]
    record = {"fleet": "shop", "id": SHOP.id, "layout": layout, "made": made}
    known = state(["python 3.11", "guard 2001", "guard 2002", f"fleet {json.dumps(record)}"])
    pyinfra = SimpleNamespace(
        connected={"drakar"}, about={"drakar"}, failed=frozenset(), is_executing=True
    )
    run: Any = SimpleNamespace(
        fleet=fleet,
        pyinfra=pyinfra,
        state_of=lambda name: known,
        once=lambda made: made(run),
    )
    me = fleet.host("drakar")
    assert ownership._settle(run).unmarked == ({"drakar"} if marked else frozenset())
    if marked:
        here = SimpleNamespace(me=me, run=run, known=known, changed=lambda: None)
        (command,) = ownership.mark._inner(here, True)
        assert f" mark shop {SHOP.id} {LAYOUT} " in command.get_raw_value()


def test_a_damaged_record() -> None:
    for text in ("{", "[]", '{"id": "1"}', "7"):
        with pytest.raises(ForeignError, match="damaged"):
            parse([f"fleet {text}"]).identity  # noqa: B018 - it is asked for


def test_what_lies_on_a_host() -> None:
    found = parse(
        [
            'fleet {"fleet": "shop", "id": "1", "layout": 2, "made": ["consul"], "later": 1}',
            "mark app:old",
            "joins 10.0.0.1 10.0.0.2",
            "stranger app:shop /srv/shop",
            "stranger app:shop the user shop",
            "stranger port:2001 nginx (process 7)",
            "",
            "of another script",
        ]
    )
    assert found.identity == Identity("shop", "1", 2)
    assert (found.made, found.ours) == ({"consul"}, {"consul", "app:old"})
    assert found.joins == {"10.0.0.1", "10.0.0.2"}
    assert found.strangers == {
        "app:shop": ["/srv/shop", "the user shop"],
        "port:2001": ["nginx (process 7)"],
    }


@pytest.mark.parametrize(
    ("folder", "mode", "more", "is_ours"),
    [
        ("shared", 0o700, "", True),
        ("shared", 0o755, "", False),
        ("shared", 0o700, "notes", False),
        ("data", 0o700, "", False),
    ],
)
def test_what_a_host_that_retired_kept_is_no_strangers(
    tmp_path: Path, folder: str, mode: int, more: str, is_ours: bool
) -> None:
    machine = Machine(tmp_path)
    machine.put(f"/srv/shop/{folder}/db.sqlite3")
    (tmp_path / "srv/shop" / folder).chmod(mode)
    if more:
        machine.put(f"/srv/shop/{more}")
    found = parse(machine.run(f"{LOOK}look_around\nlook_for shop ''").splitlines())
    assert found.strangers.get("app:shop") == (None if is_ours else ["/srv/shop"])


def test_who_listens_on_a_port_is_seen_by_either_protocol() -> None:
    ends = [
        socket.create_server(("127.0.0.1", 0)),
        socket.create_server(("::1", 0), family=socket.AF_INET6),
    ]
    ports = [str(end.getsockname()[1]) for end in ends]
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    asked = [*ports, str(free.getsockname()[1])]
    words = ["sh", "-c", f'{LOOK}listening "$@"', "look", *asked]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    for end in [*ends, free]:
        end.close()
    assert [line.split()[0] for line in told] == ports
    assert all(f"(process {os.getpid()})" in line for line in told)


def test_one_that_is_handed_over_is_no_fleets_yet() -> None:
    found = parse(['fleet {"made": ["consul"]}'])
    assert found.identity is None
    assert found.made == {"consul"}


def test_a_first_deploy_that_no_agent_answers_is_told_what_to_do() -> None:
    """It can't tell whether another fleet of its name is there."""
    known = {name: state(["consul_agent yes"]) for name in ("web1", "web2")}
    hosts = [SimpleNamespace(name=name) for name in known]
    fleet = SimpleNamespace(asked=hosts, name="shop")
    pyinfra = SimpleNamespace(connected=frozenset(known))
    run: Any = SimpleNamespace(fleet=fleet, pyinfra=pyinfra, state_of=known.__getitem__)
    with pytest.raises(DeployError, match=r"on one of them \(apt install python3\); nothing was"):
        ownership._expect_one_answer(run)
    known["web2"].consul_problem = ""
    ownership._expect_one_answer(run)


def test_an_identity_is_made_only_where_every_consul_server_was_asked() -> None:
    """Who can't be reached, or is left out, may know that the fleet has one."""
    hosts = [SimpleNamespace(name=name) for name in ("drakar", "cheetah", "ormen")]
    fleet = SimpleNamespace(
        hosts=hosts, consul_servers=hosts[:2], name="shop", services=("shop",), brings_consul=True
    )
    pyinfra = SimpleNamespace(about={each.name for each in hosts}, connected=frozenset({"cheetah"}))
    run: Any = SimpleNamespace(fleet=fleet, pyinfra=pyinfra)
    with pytest.raises(DeployError, match="no --limit: drakar can't be reached; nothing was"):
        ownership._new(run)
    pyinfra.connected = frozenset({"drakar", "cheetah"})
    assert ownership._new(run).fleet == "shop"
    pyinfra.about = {"drakar", "cheetah"}
    with pytest.raises(DeployError, match="--limit leaves out others; nothing was changed"):
        ownership._new(run)
