"""Whose the hosts are, asked over ssh."""

import json
import shlex

from uwsgi_consul_fleet.errors import FleetError, UnreachableError
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.ownership.belongings import LOOK, Belongings, parse, wanted
from uwsgi_consul_fleet.ownership.identity import FILE, Identity, agreed
from uwsgi_consul_fleet.ssh import connection as ssh


def identity(fleet: Fleet) -> Identity | None:
    """The fleet that these hosts are of; None where none says so. Those out of reach do not count.

    :raises ForeignError: where they are of several, or not what the inventory says
    """
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
    ports = " ".join(str(instance.port) for instance in host.instances)
    script = f"{LOOK}look_around {shlex.join([host.settings.app_name, ports])}\n"
    with ssh.connect(host) as connection:
        found = ssh.run_script(connection, script)
    return parse(found.stdout.decode(errors="replace").splitlines())


def adopt(host: Host, found: Belongings) -> None:
    """Hand the host over to the fleet that deploys to it next, with what is in its way there.

    :raises FleetError: where it can't be written down
    """
    made = sorted(found.ours | (wanted(host) & {*found.strangers}))
    record = shlex.quote(json.dumps({"made": made}))
    script = (
        f"mkdir -p {FILE.rpartition('/')[0]} && echo {record} >{FILE}.part && mv {FILE}.part {FILE}"
    )
    with ssh.connect(host) as connection:
        done = ssh.run_script(connection, script)
    if done.exit_code:
        raise FleetError(f"{host.name}: {done.stderr.strip()}")
