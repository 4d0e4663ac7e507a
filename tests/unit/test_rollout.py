"""In which order hosts are switched, and what becomes of them when one fails."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.releases.batches import batches
from uwsgi_consul_fleet.releases.rollout import Rollout, Step


def fleet_of(count: int, **settings: Any) -> Fleet:
    data = {**DEMO, "instances": {"a": 1, "b": 2}, **settings}
    hosts = [InventoryHost("c", frozenset({"consul_servers"}), {**DEMO, **settings})]
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
    found = batches(fleet_of(count, **settings))
    assert [f"{batch.label}: {batch.names}" for batch in found] == expected


class Hosts:
    """Hosts that note what they are told, and fail where they should."""

    def __init__(self, **settings: Any) -> None:
        self.fleet = fleet_of(4, **settings)
        self.told: list[str] = []
        self.failing: set[str] = set()
        self.lines: list[str] = []

    def step(self, name: str, before: str = "old") -> Step:
        def execute(words: Sequence[str]) -> bool:
            told = " ".join([words[0], *words[2:3]])
            self.told.append(f"{name}: {told}")
            return f"{name} {told}" not in self.failing

        host = self.fleet.host(name)
        return Step(host, before, "new", "r", ("a", "b"), execute, self.lines.append)


def test_each_host_is_switched_when_those_before_it_are_well() -> None:
    hosts, rollout = Hosts(), Rollout()
    assert rollout.run(hosts.step("h0"))
    assert rollout.run(hosts.step("h1"))
    assert hosts.told == ["h0: switch new", "h1: passing r", "h1: switch new"]


def test_those_before_it_are_of_the_same_application() -> None:
    hosts, rollout = Hosts(), Rollout()
    asked: list[Sequence[str]] = []

    def step(name: str, app: str, instances: tuple[str, ...]) -> Step:
        given = hosts.step(name)
        settings = given.host.settings.model_copy(update={"app_name": app})
        host = replace(given.host, settings=settings)

        def execute(words: Sequence[str]) -> bool:
            asked.append(words)
            return True

        return replace(given, host=host, instances=instances, execute=execute)

    # The ids are those of the release that came, whatever the inventory has by now.
    for each in (("h0", "shop", ("x",)), ("h1", "blog", ("a",)), ("h2", "shop", ("a",))):
        assert rollout.run(step(*each))
    passing = [words for words in asked if words[0] == "passing"]
    assert passing == [["passing", "shop", "r", "--missing=0", "h0/x"]]


def test_a_failure_puts_the_others_back() -> None:
    hosts, rollout = Hosts(), Rollout()
    hosts.failing = {"h2 switch new"}
    assert rollout.run(hosts.step("h0"))
    assert rollout.run(hosts.step("h1", before=""))
    assert not rollout.run(hosts.step("h2"))
    assert rollout.stopped == "at h2"
    # h2 has put itself back, and h1 did not serve before.
    assert sorted(hosts.told[-2:]) == ["h0: switch old", "h1: stop"]


def test_a_failure_leaves_the_others_where_told_to() -> None:
    hosts, rollout = Hosts(on_failure="stop"), Rollout()
    hosts.failing = {"h1 switch new"}
    assert rollout.run(hosts.step("h0"))
    assert not rollout.run(hosts.step("h1"))
    assert hosts.told[-1] == "h1: switch new"


def test_a_host_that_fell_ill_since_stops_the_roll_out_before_the_next() -> None:
    hosts, rollout = Hosts(), Rollout()
    hosts.failing = {"h1 passing r"}
    assert rollout.run(hosts.step("h0"))
    assert not rollout.run(hosts.step("h1"))
    assert rollout.stopped == "before h1 was switched"
    assert hosts.told == ["h0: switch new", "h1: passing r", "h0: switch old"]


def test_a_host_that_can_not_be_put_back_is_named() -> None:
    hosts, rollout = Hosts(), Rollout()
    hosts.failing = {"h0 switch old", "h1 switch new"}
    rollout.run(hosts.step("h0"))
    assert not rollout.run(hosts.step("h1"))
    assert "could not be put back: look at h0" in hosts.lines


def test_one_that_comes_up_after_another_of_its_batch_failed_goes_back() -> None:
    hosts, rollout = Hosts(), Rollout()
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
