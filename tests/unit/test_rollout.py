"""In which order hosts are switched, and what becomes of them when one fails."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.applications import application
from uwsgi_consul_fleet.operations.applications.step import step
from uwsgi_consul_fleet.releases.batches import batches
from uwsgi_consul_fleet.releases.rollout import Rollout, Step


def fleet_of(count: int, **settings: Any) -> Fleet:
    data = {**DEMO, "instances": {"a": 1, "b": 2}, **settings}
    hosts = [InventoryHost("c", frozenset({"consul_servers"}), DEMO)]
    hosts += [InventoryHost(f"h{n}", frozenset({"app_servers"}), data) for n in range(count)]
    addresses = {host.name: f"10.0.0.{number}" for number, host in enumerate(hosts, 1)}
    return build(hosts, (), (), lambda host: addresses[host.name])


@pytest.mark.parametrize(
    ("count", "settings", "expected"),
    [
        (0, {}, []),
        (1, {}, ["canary: h0"]),
        (2, {}, ["canary: h0", "batch 1 of 1: h1"]),
        (4, {"canary": 2, "batch": 5}, ["canary: h0, h1", "batch 1 of 1: h2, h3"]),
        (3, {"canary": 0, "batch": "100%"}, ["batch 1 of 1: h0, h1, h2"]),
        (3, {"batch": 1}, ["canary: h0", "batch 1 of 2: h1", "batch 2 of 2: h2"]),
        (5, {"batch": "50%"}, ["canary: h0", "batch 1 of 2: h1, h2", "batch 2 of 2: h3, h4"]),
        (3, {"batch": "1%"}, ["canary: h0", "batch 1 of 2: h1", "batch 2 of 2: h2"]),
    ],
)
def test_canaries_first_and_then_batches(
    count: int, settings: dict[str, Any], expected: list[str]
) -> None:
    found = batches(fleet_of(count, **settings).applications, count)
    assert [f"{batch.label}: {batch.names}" for batch in found] == expected


def test_a_percentage_is_of_all_that_serve() -> None:
    """Whatever --limit leaves out, or is down."""
    found = batches(fleet_of(8, batch="50%").app_servers[:5], 8)
    assert [batch.names for batch in found] == ["h0", "h1, h2, h3, h4"]


class Hosts:
    """Hosts that note what they are told, and fail where they should.

    ``takes`` is how long each command takes, in seconds: what is to wait for it would be heard.
    """

    takes = 0.0

    def __init__(self, **settings: Any) -> None:
        self.fleet = fleet_of(4, **settings)
        self.told: list[str] = []
        self.failing: set[str] = set()
        self.lost: set[str] = set()
        self.lines: list[str] = []
        self.rollout = Rollout(self.fleet.applications)

    def step(self, name: str, before: str = "old") -> Step:
        def execute(words: Sequence[str]) -> bool:
            if name in self.lost:
                raise UnreachableError(f"no connection to {name}")
            told = " ".join([words[0], *words[2:3]])
            self.told.append(f"{name}: {told}")
            time.sleep(self.takes)
            return f"{name} {told}" not in self.failing

        host = self.fleet.host(name).applications[0]
        return Step(host, before, "new", "r", ("a", "b"), execute, self.lines.append)


def test_each_host_is_switched_when_those_before_it_are_well() -> None:
    hosts = Hosts()
    rollout = hosts.rollout
    assert rollout.run(hosts.step("h0"))
    assert rollout.run(hosts.step("h1"))
    assert hosts.told == ["h0: switch new", "h1: passing r", "h1: switch new"]


def test_those_before_it_are_those_with_the_same_release() -> None:
    """Hosts of one application may have an app_source of their own."""
    hosts = Hosts()
    asked: list[Sequence[str]] = []

    def step(name: str, release: str, instances: tuple[str, ...]) -> Step:
        def execute(words: Sequence[str]) -> bool:
            asked.append(words)
            return True

        return replace(hosts.step(name), release=release, instances=instances, execute=execute)

    # The ids are those of the release that came, whatever the inventory has by now.
    for each in (("h0", "r1", ("x",)), ("h1", "r2", ("a",)), ("h2", "r1", ("a",))):
        assert hosts.rollout.run(step(*each))
    passing = [words for words in asked if words[0] == "passing"]
    assert passing == [["passing", "consul-demo-server", "r1", "--missing=0", "h0/x"]]


def test_a_failure_puts_the_others_back() -> None:
    hosts = Hosts()
    rollout = hosts.rollout
    hosts.failing = {"h2 switch new"}
    assert rollout.run(hosts.step("h0"))
    assert rollout.run(hosts.step("h1", before=""))
    assert not rollout.run(hosts.step("h2"))
    assert rollout.stopped == "at h2"
    # h2 has put itself back, and h1 did not serve before.
    assert sorted(hosts.told[-2:]) == ["h0: switch old", "h1: stop --undo"]


def test_a_failure_leaves_the_others_where_told_to() -> None:
    hosts = Hosts(on_failure="stop")
    rollout = hosts.rollout
    hosts.failing = {"h1 switch new"}
    assert rollout.run(hosts.step("h0"))
    assert not rollout.run(hosts.step("h1"))
    assert hosts.told[-1] == "h1: switch new"


def test_a_host_that_fell_ill_since_stops_the_roll_out_before_the_next() -> None:
    hosts = Hosts()
    rollout = hosts.rollout
    hosts.failing = {"h1 passing r"}
    assert rollout.run(hosts.step("h0"))
    assert not rollout.run(hosts.step("h1"))
    assert rollout.stopped == "before h1 was switched"
    assert hosts.told == ["h0: switch new", "h1: passing r", "h0: switch old"]


def test_a_host_that_can_not_be_put_back_is_named() -> None:
    hosts = Hosts()
    rollout = hosts.rollout
    hosts.failing = {"h0 switch old", "h1 switch new"}
    rollout.run(hosts.step("h0"))
    assert not rollout.run(hosts.step("h1"))
    assert "could not be put back: look at h0" in hosts.lines


def test_they_are_put_back_in_the_batches_in_which_they_came() -> None:
    hosts = Hosts(batch=2)
    hosts.failing = {"h3 switch new"}
    going: set[str] = set()
    together: list[set[str]] = []
    both = Barrier(2, timeout=30)
    batch = {"h0": Barrier(1), "h1": both, "h2": both}

    def step(name: str) -> Step:
        given = hosts.step(name)

        def execute(words: Sequence[str]) -> bool:
            if "--undo" in words:
                going.add(name)
                time.sleep(0.1)  # for one of another batch, who must not come
                batch[name].wait()
                together.append(set(going))
                batch[name].wait()
                going.discard(name)
            return given.execute(words)

        return replace(given, execute=execute)

    for name in ("h0", "h1", "h2"):
        assert hosts.rollout.run(step(name))
    assert not hosts.rollout.run(step("h3"))
    assert together == [{"h0"}, {"h1", "h2"}, {"h1", "h2"}]


# --- Canaries ------------------------------------------------------------------------


def side_by_side(hosts: Hosts, *names: str) -> list[bool]:
    hosts.takes = 0.1
    with ThreadPool(len(names)) as pool:
        return pool.map(lambda name: hosts.rollout.run(hosts.step(name)), names)


def test_the_first_that_is_switched_is_the_canary() -> None:
    """h0 has the release already, or could not be prepared."""
    hosts = Hosts(batch=3)
    hosts.failing = {f"{name} switch new" for name in ("h1", "h2", "h3")}
    assert side_by_side(hosts, "h1", "h2", "h3") == [False] * 3
    (tried,) = [line for line in hosts.told if "switch new" in line]
    canary = tried.partition(":")[0]
    assert hosts.rollout.stopped == f"at {canary}"
    assert hosts.lines.count(f"stays on old: it stopped at {canary}") == 2
    assert "goes first: it is the canary now" in hosts.lines


def test_the_others_go_side_by_side_when_the_canary_is_through() -> None:
    hosts = Hosts(batch=3)
    assert side_by_side(hosts, "h1", "h2", "h3") == [True] * 3
    switched = [line for line in hosts.told if "switch" in line]
    assert hosts.told[0] == switched[0]  # nobody was asked for before, and the others for it
    assert len([line for line in hosts.told if "passing" in line]) == 2


# --- Hosts that may fail before their switch -----------------------------------------


def test_a_host_that_is_lost_stops_it() -> None:
    hosts = Hosts()
    hosts.lost = {"h1"}
    assert hosts.rollout.run(hosts.step("h0"))
    assert not hosts.rollout.run(hosts.step("h1"))
    assert hosts.rollout.stopped == "at h1"
    assert hosts.told[-1] == "h0: switch old"


def test_so_many_may_be_lost_and_no_more() -> None:
    hosts = Hosts(max_failed_hosts=1)
    hosts.lost = {"h0"}
    assert hosts.rollout.run(hosts.step("h0"))
    assert hosts.rollout.run(hosts.step("h1"))
    assert not hosts.rollout.stopped
    assert hosts.rollout.missed == {"h0"}
    hosts.lost.add("h2")
    assert not hosts.rollout.run(hosts.step("h2"))
    assert hosts.rollout.stopped == "at h2"
    assert hosts.told[-1] == "h1: switch old"


def test_what_failed_before_its_switch_and_at_it_has_one_budget() -> None:
    """It is that of the application's hosts: a Consul server may have none."""
    hosts = Hosts(max_failed_hosts=1)
    app = DEMO["app_name"]
    pyinfra = SimpleNamespace(failed_since=frozenset({"h0", "c"}))
    run: Any = SimpleNamespace(
        fleet=hosts.fleet,
        rollouts={app: hosts.rollout},
        pyinfra=pyinfra,
        failed=lambda app: failed,
    )
    failed: set[str] = set()
    assert application._blocked(run, app) == ""
    failed = {"h2"}  # of which the others go on
    assert "a host fails: h0, h2" in application._blocked(run, app)
    hosts.rollout.missed.remove("h2")
    failed = set()
    hosts.lost = {"h1"}
    assert not hosts.rollout.run(hosts.step("h1"))
    assert application._blocked(run, app) == "the roll-out stopped at h1"


def stopped(_command: Any, _show: bool) -> tuple[bool, Any]:
    return False, SimpleNamespace(stderr_lines=[])


def disconnected(_command: Any, _show: bool) -> tuple[bool, Any]:
    raise EOFError


@pytest.mark.parametrize("run", [stopped, disconnected])
def test_a_host_that_is_lost_before_its_switch_is_as_it_was(run: Callable[..., Any]) -> None:
    """One that is lost at it may go on by itself."""
    host = SimpleNamespace(log=print, log_styled=lambda text, **_style: print(text))
    pyinfra = SimpleNamespace(host=lambda _name: host, executor=lambda _name: run)
    me = fleet_of(1).host("h0").applications[0]
    here: Any = SimpleNamespace(me=me, run=SimpleNamespace(pyinfra=pyinfra))
    its = step(here, "r", "old", "new")
    with pytest.raises(UnreachableError, match="not switched"):
        its.execute(["passing", its.app])
    assert not its.switch("new")


def test_where_a_canary_is_lost_another_is_one() -> None:
    hosts = Hosts(max_failed_hosts=1, batch=2)
    hosts.lost = {"h0"}
    hosts.failing = {"h1 switch new", "h2 switch new"}
    assert hosts.rollout.run(hosts.step("h0"))
    assert side_by_side(hosts, "h1", "h2") == [False, False]
    assert len(hosts.told) == 1


def test_in_an_emergency_consul_is_not_asked() -> None:
    hosts = Hosts()
    hosts.failing = {"h2 switch new"}
    asked: list[Sequence[str]] = []

    def step(name: str) -> Step:
        given = hosts.step(name)

        def execute(words: Sequence[str]) -> bool:
            asked.append(words)
            return given.execute(words)

        return replace(given, execute=execute, without_consul=True)

    assert hosts.rollout.run(step("h0"))
    assert hosts.rollout.run(step("h1"))
    assert not hosts.rollout.run(step("h2"))
    assert [words[0] for words in asked] == ["switch"] * 5
    assert all("--without-consul" in words for words in asked)


# --- Side by side --------------------------------------------------------------------


def test_one_that_comes_up_after_another_of_its_batch_failed_goes_back() -> None:
    hosts = Hosts(canary=2)
    rollout = hosts.rollout
    late = hosts.step("h1")

    def meanwhile(words: Sequence[str]) -> bool:
        if not rollout.stopped:
            hosts.failing = {"h2 switch new"}
            rollout.run(hosts.step("h2"))
        return late.execute(words)

    step = replace(late, execute=meanwhile)
    assert not rollout.run(step)
    assert hosts.told == ["h2: switch new", "h1: switch new", "h1: switch old"]
    assert not rollout.done


class TestHooks:
    """The operator's, around each switch."""

    @pytest.fixture
    def refusing(self) -> set[str]:
        return set()

    @pytest.fixture
    def step(self, refusing: set[str]) -> Callable[[Hosts, str], Step]:
        """A host that goes from old-1 to new; its hooks are in what it was told."""

        def make(hosts: Hosts, name: str) -> Step:
            def hook(which: str, outcome: str, release: str) -> str:
                hosts.told.append(f"{name}: {which} {outcome} {release}")
                return "exit status 1" if f"{name} {which}" in refusing else ""

            return replace(hosts.step(name, before="old-1"), hook=hook)

        return make

    def test_they_frame_a_switch(self, step: Callable[[Hosts, str], Step]) -> None:
        hosts = Hosts()
        assert hosts.rollout.run(step(hosts, "h0"))
        assert hosts.told == ["h0: before-switch  r", "h0: switch new", "h0: after-switch ok r"]

    def test_what_is_refused_is_not_begun(
        self, step: Callable[[Hosts, str], Step], refusing: set[str]
    ) -> None:
        hosts = Hosts()
        refusing.add("h0 before-switch")
        assert not hosts.rollout.run(step(hosts, "h0"))
        assert hosts.rollout.stopped == "before h0 was switched"
        assert not hosts.rollout.run(step(hosts, "h1"))
        assert hosts.told == ["h0: before-switch  r"]
        assert "exit status 1: not switched" in hosts.lines

    @pytest.mark.parametrize("on_failure", ["rollback", "stop"])
    def test_what_is_refused_later_puts_the_others_back(
        self, step: Callable[[Hosts, str], Step], refusing: set[str], on_failure: str
    ) -> None:
        hosts = Hosts(on_failure=on_failure)
        refusing.add("h1 before-switch")
        assert hosts.rollout.run(step(hosts, "h0"))
        hosts.told.clear()
        assert not hosts.rollout.run(step(hosts, "h1"))
        back = ["h0: switch old-1", "h0: after-switch back old"]
        expected = ["h1: passing r", "h1: before-switch  r"]
        assert hosts.told == expected + back * (on_failure == "rollback")

    def test_a_switch_that_fails_is_told_when_the_others_are_back(
        self, step: Callable[[Hosts, str], Step]
    ) -> None:
        hosts = Hosts()
        hosts.failing = {"h1 switch new"}
        assert hosts.rollout.run(step(hosts, "h0"))
        assert not hosts.rollout.run(step(hosts, "h1"))
        assert hosts.told[-3:] == [
            "h0: switch old-1",
            "h0: after-switch back old",
            "h1: after-switch failed old",
        ]

    def test_one_behind_a_switch_refuses_nothing(
        self, step: Callable[[Hosts, str], Step], refusing: set[str]
    ) -> None:
        hosts = Hosts()
        refusing.add("h0 after-switch")
        assert hosts.rollout.run(step(hosts, "h0"))
        assert not hosts.rollout.stopped
        assert "exit status 1" in hosts.lines
