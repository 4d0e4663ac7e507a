"""Each way in which the catalog can differ from the inventory gives its own line."""

from dataclasses import replace

import pytest

from uwsgi_consul_fleet.consul.catalog import Catalog, Node, Registration
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.verify.comparison import compare

ADDRESSES = {"drakar": "10.0.3.11", "cheetah": "10.0.3.12"}


def fleet(*retired: str) -> Fleet:
    data = {**DEMO, "app_name": "demo", "instances": {"server1": 2001}}
    groups = {"drakar": {"consul_servers", "app_servers"}, "cheetah": {"app_servers"}}
    return build(
        [
            InventoryHost(name, frozenset({"retired"} if name in retired else groups[name]), data)
            for name in groups
        ],
        (),
        (),
        lambda entry: ADDRESSES[entry.name],
    )


def registration(node: str) -> Registration:
    return Registration(
        node, "demo", "server1", ADDRESSES[node], 2001, "abc", "passing", "TTL passed"
    )


NODES = tuple(Node(name, address, True) for name, address in ADDRESSES.items())
GOOD = Catalog(NODES, (registration("drakar"), registration("cheetah")), "drakar")


def lines(catalog: Catalog, *retired: str) -> list[str]:
    return [str(difference) for difference in compare(fleet(*retired), catalog).differences]


def changed(**change: object) -> Catalog:
    cheetah = replace(registration("cheetah"), **change)  # type: ignore[arg-type]
    return replace(GOOD, registrations=(registration("drakar"), cheetah))


def test_agreement() -> None:
    report = compare(fleet(), GOOD)
    assert report.agrees
    assert [(row.node, row.port, row.release, row.state) for row in report.rows] == [
        ("drakar", 2001, "abc", "passing"),
        ("cheetah", 2001, "abc", "passing"),
    ]


def test_missing_instance() -> None:
    catalog = replace(GOOD, registrations=(registration("drakar"),))
    assert lines(catalog) == ["missing: demo server1 on cheetah port 2001: not registered"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"port": 9}, "wrong port: demo server1 on cheetah port 2001: is 9, expected 2001"),
        (
            {"address": "10.9.9.9"},
            "wrong address: demo server1 on cheetah port 2001: is 10.9.9.9, expected 10.0.3.12",
        ),
        (
            {"status": "critical", "output": "TTL expired"},
            "failing: demo server1 on cheetah port 2001: critical: TTL expired",
        ),
    ],
)
def test_wrong_instance(change: dict[str, object], expected: str) -> None:
    assert lines(changed(**change)) == [expected]


def test_another_release_than_was_rolled_out() -> None:
    catalog = replace(changed(release="old"), expected_releases={"demo": "abc", "other": "x"})
    assert lines(catalog) == [
        "wrong release: demo server1 on cheetah port 2001: is old, expected abc"
    ]


@pytest.mark.parametrize("expected", [{}, {"other": "x"}])
def test_any_release_is_right_before_the_first_roll_out(expected: dict[str, str]) -> None:
    assert lines(replace(changed(release="old"), expected_releases=expected)) == []


def test_an_instance_that_does_not_say_its_release_is_taken_as_it_is() -> None:
    several = {"demo": "abc, old"}
    assert lines(replace(changed(release="old"), expected_releases=several)) == []
    assert lines(replace(changed(release=""), expected_releases={"demo": "abc"})) == []


def test_unexpected_instance() -> None:
    extra = replace(registration("cheetah"), id="server9", port=2009)
    catalog = replace(GOOD, registrations=(*GOOD.registrations, extra))
    assert lines(catalog) == [
        "unexpected: demo server9 on cheetah port 2009: passing, not in the inventory"
    ]


def test_missing_node() -> None:
    catalog = Catalog(NODES[:1], GOOD.registrations[:1], "drakar")
    assert lines(catalog)[0] == "missing: node cheetah: not in the catalog; deploy to it"


def test_dead_node() -> None:
    catalog = replace(GOOD, nodes=(NODES[0], replace(NODES[1], alive=False)))
    assert lines(catalog) == [
        "dead: node cheetah: its Consul agent at 10.0.3.12 does not answer; start it, or move the "
        "host to retired if it is gone for good"
    ]


def test_a_node_that_consul_does_not_count_yet() -> None:
    """Measured on 1.8.7: an agent that comes back within five minutes of force-leave -prune."""
    catalog = replace(GOOD, nodes=(NODES[0], replace(NODES[1], alive=None)))
    assert lines(catalog) == [
        "missing: node cheetah: Consul does not count it as a member yet; one that was removed by "
        "force, less than five minutes ago, is counted within a minute"
    ]


def test_retired_host_that_still_serves() -> None:
    assert lines(GOOD, "cheetah") == [
        "unexpected: demo server1 on cheetah port 2001: passing, not in the inventory",
        "unexpected: node cheetah: is retired, but still in the cluster; the next deploy takes it "
        "out",
    ]


def test_retired_host_that_is_gone_but_not_from_the_catalog() -> None:
    nodes = (NODES[0], replace(NODES[1], alive=False))
    catalog = Catalog(nodes, GOOD.registrations[:1], "drakar")
    assert lines(catalog, "cheetah") == [
        "unexpected: node cheetah: is retired, but still in the catalog, though its agent does not "
        "answer; the next deploy takes it out",
    ]


def test_other_peoples_nodes_and_services_are_none_of_our_business() -> None:
    catalog = replace(GOOD, nodes=(*NODES, Node("stranger", "10.0.3.99", True)))
    assert lines(catalog) == []
