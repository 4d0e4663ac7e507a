"""An HTTP request to each instance, made on the host that it runs on."""

from collections.abc import Iterable
from contextlib import closing
from http.client import HTTPConnection, HTTPException

from fabric import Connection
from paramiko import Channel

from uwsgi_consul_fleet.errors import FleetError, UnreachableError
from uwsgi_consul_fleet.host.health import wrong_with
from uwsgi_consul_fleet.inventory.model import Fleet, Host, Instance
from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify.comparison import Difference

TIMEOUT = 5  # seconds


def probe(fleet: Fleet) -> list[Difference]:
    """A difference for each instance that does not answer its health check as it should."""
    hosts = [host for host in fleet.active if host.instances]
    with ssh.side_by_side(len(hosts)) as pool:
        return [difference for found in pool.map(_probe_host, hosts) for difference in found]


def _probe_host(host: Host) -> Iterable[Difference]:
    try:
        with ssh.connect(host) as connection:
            return [
                Difference("failing", f"{i.service} {i.id} on {i.node} port {i.port}", reason)
                for its in host.applications
                for i in its.instances
                if (reason := _ask(connection, i, its.settings))
            ]
    except FleetError as error:
        return [Difference("failing", f"node {host.name}", str(error))]


def _ask(connection: Connection, instance: Instance, settings: Settings) -> str:
    """Why the instance is not well, or ''. Asked on its own host: its port may be firewalled."""
    client = HTTPConnection("127.0.0.1", instance.port)
    try:
        with closing(_open(connection, instance)) as channel:
            channel.settimeout(TIMEOUT)
            client.sock = channel
            headers = {"Connection": "close", **settings.health_headers}
            client.request("GET", settings.health_path, headers=headers)
            return wrong_with(client.getresponse(), settings.health_path, settings.health_statuses)
    except UnreachableError:
        return "nothing listens on this port"
    except (OSError, HTTPException) as error:
        return f"does not answer over HTTP: {error or type(error).__name__}"


def _open(connection: Connection, instance: Instance) -> Channel:
    try:
        return ssh.open_channel(connection, instance.port, instance.address)
    except UnreachableError:  # an address that is translated on the way is not the host's own
        return ssh.open_channel(connection, instance.port)
