"""Does the catalog hold what the inventory says? Comparison only; no network, no printing."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from uwsgi_consul_fleet.consul.catalog import Catalog, Node, Registration
from uwsgi_consul_fleet.host.lock_session import AND
from uwsgi_consul_fleet.inventory.model import Fleet, Host, Instance
from uwsgi_consul_fleet.ownership.identity import agreed

Kind = Literal[
    "missing",
    "dead",
    "failing",
    "wrong address",
    "wrong port",
    "wrong release",
    "wrong plugin",
    "expiring",
    "unreachable",
    "unexpected",
]


@dataclass(frozen=True)
class Difference:
    """One thing that is not as expected; ``subject`` is what the operator looks for."""

    kind: Kind
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.detail}"


@dataclass(frozen=True)
class Row:
    """A line of the table: a node alone, or with one of its instances."""

    node: str
    service: str
    id: str
    address: str
    port: int
    release: str
    state: str
    agrees: bool


@dataclass(frozen=True)
class Report:
    """What was compared and what came of it; ``fleet`` is whose the catalog is, '' where nobody
    wrote it down. ``notes`` are what a deploy has still to do, and no differences."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    asked: str
    fleet: str = ""
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"agrees": self.agrees, **asdict(self)}


def compare(fleet: Fleet, catalog: Catalog) -> Report:
    """Hold the catalog against the fleet: nodes first, then instances, then what is too much.

    :raises ForeignError: where it is another fleet's
    """
    identity = agreed({"its Consul": catalog.identity}, fleet.name)
    nodes = {node.name: node for node in catalog.nodes}
    found = {(r.node, r.service, r.id): r for r in catalog.registrations}
    differences: list[Difference] = []
    rows: list[Row] = []
    for host in fleet.active:
        if fleet.is_part and not host.instances:
            continue
        differences += _node_differences(host, nodes.get(host.node))
        if not host.instances:
            rows.append(_node_row(host, nodes.get(host.node)))
        for instance in host.instances:
            registration = found.pop((instance.node, instance.service, instance.id), None)
            release = catalog.expected_releases.get(instance.service, "")
            problems = _instance_differences(instance, registration, release)
            differences += problems
            state = ", ".join(problem.kind for problem in problems) or "passing"
            release = registration.release if registration else ""
            rows.append(_row(instance, release, state, agrees=not problems))
    for registration in found.values():
        detail = f"{registration.status}, not in the inventory"
        differences.append(Difference("unexpected", _name(registration), detail))
        rows.append(_row(registration, registration.release, "unexpected", agrees=False))
    # Without a Consul of the fleet's a host that is retired stays what it was before.
    if fleet.brings_consul and not fleet.is_part:
        differences += _unexpected_nodes(fleet, catalog.nodes)
    return Report(tuple(rows), tuple(differences), catalog.asked, str(identity or ""))


def _node_differences(host: Host, node: Node | None) -> list[Difference]:
    if node is None:
        detail = "not in the catalog; deploy to it"
        if not host.brings_consul:
            detail = f"the catalog has no {host.node}; what does its agent call it (consul_node)?"
        return [Difference("missing", f"node {host.name}", detail)]
    if node.alive is None:
        detail = (
            "Consul does not count it as a member yet; one that was removed by force, less than "
            "five minutes ago, is counted within a minute"
        )
        return [Difference("missing", f"node {host.name}", detail)]
    if not node.alive:
        detail = (
            f"its Consul agent at {node.address} does not answer; start it, or move the host to "
            "retired if it is gone for good"
        )
        return [Difference("dead", f"node {host.name}", detail)]
    if host.brings_consul and node.address != host.address:
        detail = f"is {node.address}, expected {host.address}"
        return [Difference("wrong address", f"node {host.name}", detail)]
    return []


def _name(item: Instance | Registration) -> str:
    return f"{item.service} {item.id} on {item.node} port {item.port}"


def _instance_differences(
    expected: Instance, found: Registration | None, release: str
) -> list[Difference]:
    subject = _name(expected)
    if found is None:
        return [Difference("missing", subject, "not registered")]
    differences: list[Difference] = []

    def differs(kind: Kind, is_: object, should_be: object) -> None:
        differences.append(Difference(kind, subject, f"is {is_}, expected {should_be}"))

    if found.address != expected.address:
        differs("wrong address", found.address, expected.address)
    if found.port != expected.port:
        differs("wrong port", found.port, expected.port)
    # An ini of the operator's own may leave the release out of what it registers.
    if release and found.release and found.release not in release.split(AND):
        differs("wrong release", found.release, release)
    if found.status != "passing":
        detail = f"{found.status}: {found.output or 'its check says nothing'}"
        differences.append(Difference("failing", subject, detail))
    return differences


def _unexpected_nodes(fleet: Fleet, nodes: Iterable[Node]) -> list[Difference]:
    """Only retired hosts: other nodes in a shared Consul are none of our business."""
    retired = {host.name for host in fleet.retired}
    there = {True: "in the cluster", False: "in the catalog, though its agent does not answer"}
    told = "is retired, but still {}; the next deploy takes it out"
    return [
        Difference("unexpected", f"node {node.name}", told.format(there[bool(node.alive)]))
        for node in nodes
        if node.name in retired
    ]


def _row(item: Instance | Registration, release: str, state: str, agrees: bool) -> Row:
    place = (item.node, item.service, item.id, item.address, item.port)
    return Row(*place, release, state, agrees)


def _node_row(host: Host, node: Node | None) -> Row:
    states = {True: "alive", False: "dead", None: "missing"}
    state = states[node.alive if node else None]
    return Row(host.name, "(Consul only)", "", host.address, 0, "", state, state == "alive")
