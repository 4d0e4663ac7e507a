"""New secrets for a cluster whose own are lost, as far as root on its servers is needed for them.

Consul lets whoever can write into its leader's data make the first token again (its file
acl-bootstrap-reset); the host program does that where the marker that is written here asks for it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from uwsgi_consul_fleet.errors import FleetError, UnreachableError
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.secrets import store, tokens
from uwsgi_consul_fleet.secrets.document import Secrets
from uwsgi_consul_fleet.ssh import connection as ssh

KNOWN = "cat /var/lib/consul/serf/local.keyring && cat /etc/uwsgi-consul-fleet/tls/ca.pem"
# Nobody else's from its beginning; see host/acl.py.
MARK = "umask 077 && cat >/etc/uwsgi-consul-fleet/bootstrap"


def begin(fleet: Fleet) -> None:
    """Make a document of secrets, with what is known of the old ones, and let the servers take it.

    :raises UnreachableError: where a Consul server can't be reached
    :raises FleetError: where one has no secrets, or the document can't be kept
    """
    servers = fleet.consul_servers
    with ssh.side_by_side(len(servers)) as pool:
        ring, authorities = _agreed(servers, pool.map(_known, servers))
        vault = fleet.hosts[0].vault
        made = replace(Secrets.new(vault.name), gossip=ring, ca_before=authorities, recovering=True)
        store.save(vault, made, store.load(vault))
        mark = tokens.accessor(made.seed, "management")
        pool.map(lambda server: _mark(server, mark), servers)


def _agreed(servers: Sequence[Host], found: Sequence[str]) -> tuple[str, str]:
    """The key of their gossip, and whom they believe."""
    for text in found:
        ring, _, authorities = text.partition("]")
        try:
            keys = json.loads(f"{ring}]")
        except ValueError:
            keys = []
        if keys and authorities.strip():
            return str(keys[0]), authorities.strip() + "\n"
    raise FleetError(
        f"{', '.join(each.name for each in servers)}: there is no cluster with secrets to recover; "
        "deploy instead: pyinfra inventory.py deploy/"
    )


def _known(server: Host) -> str:
    with ssh.connect(server) as connection:
        return ssh.run_script(connection, KNOWN).stdout.decode(errors="replace")


def _mark(server: Host, text: str) -> None:
    with ssh.connect(server) as connection:
        done = ssh.run_script(connection, MARK, f"{text}\n".encode())
    if done.exit_code:
        raise UnreachableError(f"{server.name}: {done.stderr.strip()}")
