"""Which changes of the Consul servers are refused, and how an agent's answers are read."""

import json

import pytest

from uwsgi_consul_fleet.operations.consul import cluster
from uwsgi_consul_fleet.operations.consul.quorum import QuorumError, check, check_restart


def alive(*names: str, dead: tuple[str, ...] = ()) -> dict[str, bool]:
    return dict.fromkeys(names, True) | dict.fromkeys(dead, False)


def refusal(peers: dict[str, bool], joining: list[str], leaving: list[str]) -> str:
    with pytest.raises(QuorumError) as caught:
        check(peers, joining, leaving)
    return str(caught.value)


@pytest.mark.parametrize(
    ("peers", "joining", "leaving"),
    [
        (alive("a"), ["b", "c"], []),
        (alive("a", "b", "c"), [], ["b", "c"]),
        (alive("a", "b"), [], ["a"]),
        # A dead one is replaced: by one that joins first, or just taken out.
        (alive("a", "b", dead=("c",)), ["d"], ["c"]),
        (alive("a", "b", dead=("c",)), [], ["c"]),
        # The dead go first, and so the living may follow.
        (alive("a", "b", dead=("c",)), [], ["b", "c"]),
        # All but one are replaced, while one is dead.
        (alive("a", "b", dead=("c",)), ["d", "e"], ["b", "c"]),
        (alive("a", "b", "c", "d", dead=("e",)), [], ["d"]),
        # Nothing changes: a dead server is not this run's business.
        (alive("a", dead=("b", "c")), [], []),
        (alive("a", dead=("b", "c")), ["a"], ["gone before"]),
    ],
)
def test_what_keeps_the_quorum_is_allowed(
    peers: dict[str, bool], joining: list[str], leaving: list[str]
) -> None:
    check(peers, joining, leaving)


@pytest.mark.parametrize("joining", [[], ["d", "e", "f"]])
def test_replacing_all_at_once(joining: list[str]) -> None:
    line = refusal(alive("a", "b", "c"), joining, ["c", "a", "b"])
    assert line.startswith("consul_servers: none of today's Consul servers (a, b and c)")
    assert "keep one of them, deploy" in line


def test_replacing_the_only_one() -> None:
    assert "(a)" in refusal(alive("a"), ["b"], ["a"])


def test_a_living_one_while_another_is_dead() -> None:
    line = refusal(alive("a", "b", dead=("c",)), [], ["b"])
    assert line.startswith("b: can't be removed from the Consul servers while c is down")
    assert "of a and c, 1 of 2 alive, and it takes 2 to agree" in line
    assert "start c first, or move it to retired as well" in line


def test_the_second_of_two_steps() -> None:
    # Two of three alive are enough, one of two is not.
    peers = alive("a", "b", "c", "d", dead=("e",))
    check(peers, [], ["d"])
    assert refusal(peers, [], ["c", "d", "b"]).startswith("b: can't be removed")


def test_an_even_split() -> None:
    assert "1 of 2 alive" in refusal(alive("a", "b", dead=("c",)), [], ["a"])


@pytest.mark.parametrize(("joining", "leaving"), [(["d"], []), ([], ["b"]), ([], ["a"])])
def test_nothing_goes_without_a_quorum_now(joining: list[str], leaving: list[str]) -> None:
    line = refusal(alive("a", dead=("b", "c")), joining, leaving)
    assert "no change is possible now: 1 of 3 alive, and it takes 2 to agree" in line
    assert "start b and c first" in line


@pytest.mark.parametrize(
    "peers",
    [
        alive("a"),
        alive("a", "b"),
        alive("a", "b", "c"),
        alive("a", "b", "c", "d", dead=("e",)),
        # There is none to be lost.
        alive("a", dead=("b", "c")),
    ],
)
def test_restarts_that_the_others_can_do_without(peers: dict[str, bool]) -> None:
    check_restart(peers, "a")


@pytest.mark.parametrize(
    ("peers", "need"),
    [
        (alive("a", "b", dead=("c",)), "1 of 3 alive, and it takes 2 to agree"),
        (alive("a", "b", "c", dead=("d", "e")), "2 of 5 alive, and it takes 3 to agree"),
        (alive("a", "b", "c", dead=("d",)), "2 of 4 alive, and it takes 3 to agree"),
    ],
)
def test_a_restart_that_would_lose_the_quorum(peers: dict[str, bool], need: str) -> None:
    with pytest.raises(QuorumError) as caught:
        check_restart(peers, "a")
    assert str(caught.value).startswith("its Consul server can't be restarted while ")
    assert need in str(caught.value)


# --- An agent's answers ---


def seen(**answer: object) -> cluster.Cluster:
    """As the host program tells it."""
    told = {"servers": [], "members": {}, "nodes": [], **answer}
    return cluster.parse(json.dumps(told))


def test_the_cluster_is_read_from_an_agents_answers() -> None:
    server = {"ID": "1a", "Node": "a", "Address": "10.0.0.1:8300", "Leader": True, "Voter": True}
    found = seen(servers=[server], members={"a": True, "b": False}, nodes=["a", "b"])
    assert found.peers == (cluster.Peer("1a", "a", "10.0.0.1:8300", True, True),)
    assert (found.is_alive("a"), found.is_alive("b"), found.is_alive("c")) == (True, False, False)
    assert found.knows("b")
    assert not found.problem


def test_an_agent_that_could_not_say_everything() -> None:
    assert seen(members={"a": True}, problem="no leader").problem == "no leader"
    assert cluster.parse("").problem
