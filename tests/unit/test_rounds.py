"""In which round of access control and encryption a cluster is, and whether it goes on."""

from dataclasses import replace
from typing import Any

import pytest
from runs import OURS, fleet, here, retired, server

from uwsgi_consul_fleet.inventory.model import InventoryHost
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations import left_out
from uwsgi_consul_fleet.operations.consul import acl, rounds
from uwsgi_consul_fleet.operations.consul.cluster import UNIT
from uwsgi_consul_fleet.operations.consul.rounds import Rounds
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import FileState, HostState
from uwsgi_consul_fleet.secrets.tokens import LOOKUPS

FILES = {UNIT: FileState("644", "root", "root", "x")}
APP = frozenset({"app_servers"})


def at(number: int, **more: Any) -> HostState:
    """A member that runs in a round."""
    return server(OURS, files=FILES, consul_round=number, **more)


def of(first: int, second: int | None = None) -> Here:
    return here(fleet(), drakar=at(first), cheetah=at(first if second is None else second))


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ((0, 0), Rounds(0, (1, 2), (3,))),
        ((0, 1), Rounds(0, (1, 2), (3,))),  # interrupted in the first
        ((1, 2), Rounds(1, (2,), (3,))),
        ((2, 3), Rounds(2, (2,), (3,))),
        ((3, 3), Rounds(3, (3,))),
    ],
)
def test_a_run_goes_on_from_the_lowest_round(there: tuple[int, int], found: Rounds) -> None:
    assert rounds.of(of(*there).run) == found


def test_a_new_cluster_begins_with_the_last() -> None:
    assert rounds.of(here(fleet(), drakar=HostState(), cheetah=HostState()).run).before == (3,)


def test_a_new_host_starts_in_the_round_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is alone in the run."""
    more = InventoryHost("ormen", APP, {**DEMO, "app_name": "shop"})
    members = OURS | {"ormen": ("10.9.0.3", True)}
    states = {"drakar": replace(at(0), consul_members=server(members).consul_members)}
    run = here(fleet(more), **states, cheetah=at(0), ormen=HostState()).run
    assert rounds.of(run).before == (1, 2)
    alone = here(fleet(more), "ormen", ormen=HostState())
    monkeypatch.setattr(left_out, "ask", lambda _run: {"drakar": at(0), "cheetah": None})
    assert rounds.of(alone.run).before == (0,)
    assert rounds.number(alone, 0) == 0


@pytest.mark.parametrize(
    ("why", "run"),
    [
        ("--limit leaves out cheetah; ", here(fleet(), drakar=at(0))),
        ("cheetah can't be reached; ", here(fleet(), failed="cheetah", drakar=at(0))),
        (
            "ormen is in the cluster and not in this inventory; ",
            here(
                fleet(),
                drakar=replace(
                    at(0),
                    consul_members=server({**OURS, "ormen": ("10.9.0.9", True)}).consul_members,
                ),
                cheetah=at(0),
            ),
        ),
        (
            "skeid has to leave first; ",
            here(
                fleet(retired("skeid")),
                drakar=replace(
                    at(0),
                    consul_members=server({**OURS, "skeid": ("10.9.0.3", True)}).consul_members,
                ),
                cheetah=at(0),
                skeid=at(0),
            ),
        ),
    ],
)
def test_what_stops_it_is_named(why: str, run: Here, caplog: pytest.LogCaptureFixture) -> None:
    found = rounds.of(run.run)
    assert (found.before, found.after) == ((0,), ())
    assert found.stopped.startswith(why)
    assert f"Consul stays in round 0 of 3 to access control and encryption: {why}" in caplog.text


def test_none_begins_while_a_host_is_behind(caplog: pytest.LogCaptureFixture) -> None:
    it = of(1)
    it.run.pyinfra.is_executing = True
    assert rounds.number(it, 2) == 2
    behind = here(fleet(), drakar=at(1), cheetah=at(0))
    behind.run.pyinfra.is_executing = True
    assert rounds.number(behind, 1) == 1
    assert rounds.number(behind, 2) == 1
    assert "cheetah is not in round 1 yet; the next deploy goes on" in caplog.text


def test_who_is_down() -> None:
    """Also a server that a newer Consul took out of the cluster, because it failed."""
    gone = {name: its for name, its in OURS.items() if name != "cheetah"}
    failed = gone | {"cheetah": ("10.9.0.2", False)}
    for members in (OURS, gone, failed):
        told = replace(at(3), consul_members=server(members).consul_members)
        its = here(fleet(), drakar=told, cheetah=HostState(files=FILES, consul_round=3))
        assert rounds.down(its.run) == ([] if members is OURS else ["cheetah"])
    new = replace(at(3), consul_members=server(gone).consul_members)
    assert rounds.down(here(fleet(), drakar=new, cheetah=HostState()).run) == []
    assert rounds.down(here(fleet(), drakar=HostState(files=FILES)).run) == []  # nobody tells


def test_no_host_goes_back() -> None:
    assert rounds.number(of(2), 1) == 2


def test_rounds_differ_in_what_agents_refuse() -> None:
    """As HashiCorp's procedures for a living cluster have it, all three at once."""
    me = fleet().host("drakar")
    none, first, second, last = (rounds.settings(me, number) for number in range(4))
    assert none == {}
    assert {key for key in second if second[key] != first[key]} == {
        "encrypt_verify_outgoing",
        "verify_outgoing",
        "verify_server_hostname",
    }
    assert {key for key in last if last[key] != second[key]} == {
        "encrypt_verify_incoming",
        "verify_incoming_rpc",
        "acl",
    }
    assert (first["acl"]["default_policy"], last["acl"]["default_policy"]) == ("allow", "deny")


def test_who_looks_up_without_a_token_goes_on_while_some_deny() -> None:
    """As in a run that follows one which was killed in the last round."""
    run = of(2, 3).run
    assert acl.wanted(run, 2).anonymous is None  # it is left as it is
    assert acl.wanted(run, 3).anonymous == (LOOKUPS,)
