"""Whose the hosts are, asked over ssh."""

import json
import shlex
from collections.abc import Sequence

from uwsgi_consul_fleet.errors import FleetError, UnreachableError
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.ownership.belongings import CONSUL, LOOK, Belongings, parse, wanted
from uwsgi_consul_fleet.ownership.identity import FILE, Identity, agreed
from uwsgi_consul_fleet.ssh import connection as ssh


def identity(fleet: Fleet, hosts: Sequence[Host] | None = None) -> Identity | None:
    """The fleet that hosts are of; None where none says so. Those out of reach do not count.

    :param hosts: None for all that are not retired
    :raises ForeignError: where they are of several, or not what the inventory says
    """
    if hosts is None:
        hosts = [host for host in fleet.hosts if not host.is_retired]
    with ssh.side_by_side(len(hosts)) as pool:
        found = zip((host.name for host in hosts), pool.map(_record, hosts), strict=True)
        return agreed(dict(found), fleet.name)


def _record(host: Host) -> Identity | None:
    try:
        with ssh.connect(host) as connection:
            found = ssh.run_script(connection, f"cat {FILE} 2>/dev/null || true")
    except UnreachableError:
        return None
    return Identity.parse(found.stdout.decode(errors="replace").strip())


def look(host: Host) -> Belongings:
    """What is on a host; :raises UnreachableError: where it can't be asked"""
    script = f"{LOOK}look_around\n"
    for its in host.applications:
        ports = " ".join(str(instance.port) for instance in its.instances)
        script += f"look_for {shlex.join([its.app, ports])}\n"
    with ssh.connect(host) as connection:
        said = ssh.run_script(connection, script)
    found = parse(said.stdout.decode(errors="replace").splitlines())
    if not host.brings_consul:  # a Consul there is in nobody's way
        found.strangers.pop(CONSUL, None)
    return found


# An agent that remembers its cluster would join it with the one that it is to be of.
FORGET_CLUSTER = """\
systemctl --quiet disable --now consul 2>/dev/null
running() {
    for process in /proc/[0-9]*; do
        read -r name 2>/dev/null <"$process/comm" && [ "$name" = consul ] && return
    done
    false
}
for _ in $(seq 50); do running && sleep 0.2; done # it takes a moment to be gone
if running; then
    echo "consul still runs as process ${process#/proc/}: stop it first" >&2
    exit 1
fi
rm -rf /var/lib/consul/raft /var/lib/consul/serf
"""


def stops_consul(host: Host, found: Belongings) -> bool:
    """Whether a host's Consul changes hands with it; one that is only used does not."""
    return host.brings_consul and CONSUL in found.ours | {*found.strangers}


def adopt(host: Host, found: Belongings) -> None:
    """Hand the host over to the fleet that deploys to it next, with what is in its way there. A
    Consul that changes hands is stopped, and forgets its cluster.

    :raises FleetError: where that can't be done
    """
    made = sorted(found.ours | (wanted(host) & {*found.strangers}))
    record = shlex.quote(json.dumps({"made": made}))
    forget = FORGET_CLUSTER if stops_consul(host, found) else ""
    write = f"mkdir -p {FILE.rpartition('/')[0]} && echo {record} >{FILE}.part"
    script = f"{forget}{write} && mv {FILE}.part {FILE}"
    with ssh.connect(host) as connection:
        done = ssh.run_script(connection, script)
    if done.exit_code:
        raise FleetError(f"{host.name}: {done.stderr.strip()}")
