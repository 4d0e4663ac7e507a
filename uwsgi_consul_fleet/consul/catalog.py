"""What Consul knows, asked of a server through an SSH tunnel."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import consul
import requests

from uwsgi_consul_fleet.consul.access import access
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.host.consul import FLEET
from uwsgi_consul_fleet.host.lock_session import RELEASES
from uwsgi_consul_fleet.inventory.model import Fleet
from uwsgi_consul_fleet.ownership import hosts
from uwsgi_consul_fleet.ownership.identity import Identity, agreed
from uwsgi_consul_fleet.ssh import connection as ssh

HTTP_PORT = 8500
TIMEOUT = 10  # seconds for an answer
# They are about another Consul, and python-consul2 would let them override what it is told.
ENVIRONMENT = (
    "CONSUL_HTTP_ADDR",
    "CONSUL_HTTP_SSL",
    "CONSUL_HTTP_SSL_VERIFY",
    "CONSUL_HTTP_TOKEN",
)


@dataclass(frozen=True)
class Node:
    """A member of the cluster; alive as far as Consul's own failure detection knows."""

    name: str
    address: str
    alive: bool


@dataclass(frozen=True)
class Registration:
    """A service instance in the catalog, with the worst of its checks."""

    node: str
    service: str
    id: str
    address: str
    port: int
    release: str
    status: str
    output: str


@dataclass(frozen=True)
class Catalog:
    """One look at the catalog: every node, every instance of the services asked for, the release
    that each service was rolled out with last, and whose it is."""

    nodes: tuple[Node, ...]
    registrations: tuple[Registration, ...]
    asked: str
    expected_releases: Mapping[str, str] = field(default_factory=dict)
    identity: Identity | None = None


@contextmanager
def api(fleet: Fleet) -> Iterator[tuple[str, int]]:
    """The HTTP API of the first Consul server that can be reached and follows a leader: its name
    and a local port.

    :raises UnreachableError: where none can, with each one's reason
    """
    reasons = []
    for server in fleet.consul_servers:
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(ssh.connect(server))
                port = stack.enter_context(ssh.tunnel(connection, HTTP_PORT))
                _expect_leader(server.name, port)
            except UnreachableError as error:
                reasons.append(str(error))
                continue
            yield server.name, port
            return
    listing = "\n".join(f"  - {reason}" for reason in reasons)
    raise UnreachableError(
        f"no Consul server can be asked:\n{listing}\n"
        "If Consul was never deployed: pyinfra inventory.py deploy/"
    )


def _expect_leader(server: str, port: int) -> None:
    with client(server, port) as asked:
        if not asked.status.leader():
            raise UnreachableError(
                f"{server}: its Consul server does not follow a leader; look at it with: "
                f"systemctl status consul, on {server}"
            )


def read(server: str, port: int, services: Iterable[str]) -> Catalog:
    """Ask the API on a local port for the nodes and for these services.

    :raises UnreachableError: where the API does not answer, or not as it should
    """
    with client(server, port) as asked:
        registrations = tuple(
            _registration(entry)
            for service in services
            for entry in asked.health.service(service)[1] or ()
        )
        releases = expected_releases(asked)
        return Catalog(_nodes(asked), registrations, server, releases, identity(asked))


@contextmanager
def client(server: str, port: int) -> Iterator[consul.Consul]:
    """Requests to the API on a local port.

    :raises UnreachableError: where one of them is not answered as it should be
    """
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    shown = access()
    made = consul.Consul(
        host="127.0.0.1",
        port=port,
        token=shown.token or None,
        scheme="https" if shown.ca_file else "http",
        verify=shown.ca_file or True,
        cert=(shown.cert_file, shown.key_file) if shown.cert_file else None,
        timeout=TIMEOUT,
        # A server that has just started may know only some of its services yet; a consistent
        # answer is one that its leader has confirmed.
        consistency="consistent",
    )
    made.http.session.trust_env = False  # nor is a proxy asked
    try:
        yield made
    except (requests.RequestException, consul.ConsulException) as error:
        raise UnreachableError(
            f"{server}: the Consul API does not answer: {error}; look at it with: "
            f"systemctl status consul, on {server}"
        ) from error


def identity(asked: consul.Consul) -> Identity | None:
    """Whose the cluster is; None where nobody wrote it down."""
    _, entry = asked.kv.get(FLEET)
    return Identity.parse((entry["Value"] or b"").decode()) if entry else None


def refuse_other(fleet: Fleet, asked: consul.Consul) -> None:
    """:raises ForeignError: where the cluster is not that of the inventory and its hosts"""
    agreed({"its Consul": identity(asked), "its hosts": hosts.identity(fleet)}, fleet.name)


def expected_releases(asked: consul.Consul) -> dict[str, str]:
    """The release that each service should be on: that of its last complete roll-out."""
    _, entries = asked.kv.get(RELEASES, recurse=True)
    return {
        entry["Key"].removeprefix(RELEASES): (entry["Value"] or b"").decode()
        for entry in entries or ()
    }


def _nodes(asked: consul.Consul) -> tuple[Node, ...]:
    """Nodes with their serfHealth check: the catalog alone does not say who is alive."""
    _, checks = asked.health.state("any")
    alive = {check["Node"]: check["Status"] for check in checks if check["CheckID"] == "serfHealth"}
    _, nodes = asked.catalog.nodes()
    return tuple(
        Node(node["Node"], node["Address"], alive.get(node["Node"]) == "passing") for node in nodes
    )


STATUSES = ("passing", "warning", "critical")


def _registration(entry: dict[str, Any]) -> Registration:
    node, service = entry["Node"], entry["Service"]
    checks = [check for check in entry["Checks"] if check["CheckID"] != "serfHealth"]
    worst = max(checks, key=lambda check: STATUSES.index(check["Status"]), default=None)
    return Registration(
        node=node["Node"],
        service=service["Service"],
        id=service["ID"],
        address=service["Address"] or node["Address"],
        port=service["Port"],
        release=(service.get("Meta") or {}).get("release", ""),
        status=worst["Status"] if worst else "passing",
        output=worst["Output"].strip() if worst else "",
    )
