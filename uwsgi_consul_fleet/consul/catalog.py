"""What Consul knows, asked of a server through an SSH tunnel."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import consul
import requests

from uwsgi_consul_fleet.consul.access import Access, Role, access
from uwsgi_consul_fleet.errors import RefusedError, UnreachableError
from uwsgi_consul_fleet.host.consul import FLEET
from uwsgi_consul_fleet.host.lock_session import RELEASES
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.ownership import hosts
from uwsgi_consul_fleet.ownership.identity import Identity, agreed
from uwsgi_consul_fleet.secrets import store
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
def api(fleet: Fleet, role: Role = "read") -> Iterator[Way]:
    """The HTTP API of the first Consul server that can be reached and follows a leader; of the
    first agent, where the fleet brings no servers.

    :param role: which token is shown to a Consul of the fleet's own
    :raises UnreachableError: where none can, with each one's reason
    :raises RefusedError: where the fleet's secrets are not here
    """
    reasons = []
    for server in fleet.asked:
        shown = access(server, role)
        at, remote_port = shown.place
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(ssh.connect(server))
                port = stack.enter_context(ssh.tunnel(connection, remote_port, at))
                way = Way(server.name, port, shown)
                _expect_leader(way)
                try:
                    way = known(server, way)
                except RefusedError:
                    hosts.identity(fleet, [server])  # where it is another fleet's, that says more
                    raise
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


def known(server: Host, way: Way) -> Way:
    """The way with the token that this Consul knows: that of the fleet's secrets, the one before,
    or none while it makes no difference. An agent that is not the fleet's is not asked.

    :raises UnreachableError: where it can't say so now
    :raises RefusedError: where it wants a token, and the fleet's secrets are not here. Who shows
        none would be told that there are no nodes and no services
    """
    if not server.brings_consul:
        return way
    first, other = way.access.token, way.access.other
    for token in filter(None, (first, other)):
        if _knows(way, token):
            return way._replace(access=way.access._replace(token=token))
    place = store.place(server.vault)
    if other is None:
        if _has_acls(way):
            raise RefusedError(NOT_HERE.format(name=way.name, place=place))
    elif not _refuses_nobody(way):
        raise RefusedError(OTHERS.format(name=way.name, place=place))
    return _anonymous(way)


NOT_HERE = (
    "{name}: this fleet has secrets, and they are not here: {place}. Get them from whoever "
    "deployed last (.fleet/, or what secrets_load and secrets_save are set to); where nobody has "
    "them any more: invoke secrets.recover"
)
OTHERS = (
    "{name}: its Consul knows none of the tokens that come from the secrets here: {place}. Are "
    "they this fleet's, and the latest? Get them from whoever deployed last; where nobody has them "
    "any more: invoke secrets.recover"
)


def is_open(way: Way) -> bool:
    """Whether who shows no token may look up what there is."""
    with client(_anonymous(way)) as asked:
        return bool(asked.catalog.nodes()[1])


def _anonymous(way: Way) -> Way:
    return way._replace(access=way.access._replace(token=""))


def _knows(way: Way, token: str) -> bool:
    """Whether a token is one of this Consul's; where it has no access control, each is."""
    try:
        with client(way) as asked:
            with suppress(consul.ACLDisabled):
                asked.acl.self(token)
            return True
    except RefusedError:
        return False


def _has_acls(way: Way) -> bool:
    """Whether it has access control."""
    with client(way) as asked:
        try:
            asked.acl.self()
        except consul.ACLDisabled:
            return False
        except consul.ACLPermissionDenied:
            pass
        return True


def _refuses_nobody(way: Way) -> bool:
    """Whether it answers to who shows no token: a list would be an empty one, a key is refused."""
    try:
        with client(_anonymous(way)) as asked:
            asked.kv.get(way.access.keys + FLEET)
            return True
    except RefusedError:
        return False


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


OWN = (
    "it was shown a token that comes from the fleet's secrets; the next deploy makes its tokens "
    "and what they may anew: pyinfra inventory.py deploy/"
)
THEIRS = "docs/operations.md says what the token (consul_token) needs"


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
        hint = OWN if shown.other is not None else THEIRS
        raise RefusedError(f"{way.name}: its Consul refuses (403): {error}; {hint}") from error
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
