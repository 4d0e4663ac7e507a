"""What Consul knows, asked of a server through an SSH tunnel."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import consul
import requests

from uwsgi_consul_fleet.consul.access import Access, access
from uwsgi_consul_fleet.errors import RefusedError, UnreachableError
from uwsgi_consul_fleet.host.consul import FLEET
from uwsgi_consul_fleet.host.lock_session import RELEASES
from uwsgi_consul_fleet.inventory.model import Fleet
from uwsgi_consul_fleet.ownership import hosts
from uwsgi_consul_fleet.ownership.identity import Identity, agreed
from uwsgi_consul_fleet.ssh import connection as ssh

TIMEOUT = 10  # seconds for an answer
# They are about another Consul, and python-consul2 would let them override what it is told.
ENVIRONMENT = (
    "CONSUL_HTTP_ADDR",
    "CONSUL_HTTP_SSL",
    "CONSUL_HTTP_SSL_VERIFY",
    "CONSUL_HTTP_TOKEN",
)


class Way(NamedTuple):
    """To the API of a host's agent: the host's name, a port on this machine, and what is shown."""

    name: str
    port: int
    access: Access = Access()

    @property
    def url(self) -> str:
        return f"{'https' if self.access.is_https else 'http'}://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Node:
    """A member of the cluster; alive as far as Consul's own failure detection knows.

    `alive` is None where it has said nothing yet: the leader takes the join of an agent that was
    removed by force for a leave as long as its gossip remembers that, five minutes, and finds it
    at its next look at all members, each minute.
    """

    name: str
    address: str
    alive: bool | None


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
def api(fleet: Fleet) -> Iterator[Way]:
    """The HTTP API of the first Consul server that can be reached and follows a leader; of the
    first agent, where the fleet brings no servers.

    :raises UnreachableError: where none can, with each one's reason
    """
    reasons = []
    for server in fleet.asked:
        shown = access(server)
        at, remote_port = shown.place
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(ssh.connect(server))
                port = stack.enter_context(ssh.tunnel(connection, remote_port, at))
                way = Way(server.name, port, shown)
                _expect_leader(way)
            except UnreachableError as error:
                reasons.append(str(error))
                continue
            yield way
            return
    listing = "\n".join(f"  - {reason}" for reason in reasons)
    what = "server" if fleet.brings_consul else "agent"
    never = "If Consul was never deployed: pyinfra inventory.py deploy/"
    raise UnreachableError(
        f"no Consul {what} can be asked:\n{listing}\n{never if fleet.brings_consul else ''}".strip()
    )


def _expect_leader(way: Way) -> None:
    with client(way) as asked:
        if not asked.status.leader():
            raise UnreachableError(
                f"{way.name}: its Consul agent does not follow a leader; look at it with: "
                f"systemctl status consul, on {way.name}"
            )


def read(way: Way, services: Iterable[str], whole: bool = False) -> Catalog:
    """Ask for the nodes and for these services.

    :param whole: and for all others that were ever rolled out
    :raises UnreachableError: where the API does not answer, or not as it should
    :raises RefusedError: where it may not be asked
    """
    with client(way) as asked:
        keys = way.access.keys
        releases = expected_releases(asked, keys)
        registrations = tuple(
            _registration(entry)
            for service in dict.fromkeys((*services, *(releases if whole else ())))
            for entry in asked.health.service(service)[1] or ()
        )
        return Catalog(_nodes(asked), registrations, way.name, releases, identity(asked, keys))


@contextmanager
def client(way: Way) -> Iterator[consul.Consul]:
    """Requests to the API.

    :raises UnreachableError: where one of them is not answered as it should be
    :raises RefusedError: where it may not be asked
    """
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    shown = way.access
    made = consul.Consul(
        host="127.0.0.1",
        port=way.port,
        token=shown.token or None,
        scheme="https" if shown.is_https else "http",
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
    except consul.ACLPermissionDenied as error:
        raise RefusedError(
            f"{way.name}: its Consul refuses (403): {error}; docs/operations.md says what "
            "the token (consul_token) needs"
        ) from error
    except (requests.RequestException, consul.ConsulException) as error:
        raise UnreachableError(
            f"{way.name}: the Consul API does not answer: {error}; look at it with: "
            f"systemctl status consul, on {way.name}"
        ) from error


def identity(asked: consul.Consul, keys: str) -> Identity | None:
    """Whose what lies behind ``keys`` is; None where nobody wrote it down."""
    _, entry = asked.kv.get(keys + FLEET)
    return Identity.parse((entry["Value"] or b"").decode()) if entry else None


def refuse_other(fleet: Fleet, asked: consul.Consul) -> None:
    """:raises ForeignError: where the cluster is not that of the inventory and its hosts"""
    agreed(
        {"its Consul": identity(asked, fleet.keys), "its hosts": hosts.identity(fleet)}, fleet.name
    )


def expected_releases(asked: consul.Consul, keys: str) -> dict[str, str]:
    """The release that each service should be on: that of its last complete roll-out."""
    _, entries = asked.kv.get(keys + RELEASES, recurse=True)
    return {
        entry["Key"].removeprefix(keys + RELEASES): (entry["Value"] or b"").decode()
        for entry in entries or ()
    }


def _nodes(asked: consul.Consul) -> tuple[Node, ...]:
    """Nodes with their serfHealth check: the catalog alone does not say who is alive."""
    _, checks = asked.health.state("any")
    alive = {
        check["Node"]: check["Status"] == "passing"
        for check in checks
        if check["CheckID"] == "serfHealth"
    }
    _, nodes = asked.catalog.nodes()
    return tuple(Node(node["Node"], node["Address"], alive.get(node["Node"])) for node in nodes)


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
