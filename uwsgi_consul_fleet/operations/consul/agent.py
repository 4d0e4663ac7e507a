"""Consul on a host: the binary, its configuration, and an agent that runs with both."""

import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra import host, inventory
from pyinfra.api import FileUploadCommand, StringCommand, operation
from pyinfra.api.command import QuoteString
from pyinfra.context import state as run

from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations import packages
from uwsgi_consul_fleet.operations.consul import cluster
from uwsgi_consul_fleet.operations.consul import source as source
from uwsgi_consul_fleet.operations.consul.source import Source
from uwsgi_consul_fleet.operations.files import RemoteFile, converge, fail, render
from uwsgi_consul_fleet.operations.plan import fleet
from uwsgi_consul_fleet.operations.state import UnitState, current, forget
from uwsgi_consul_fleet.operations.users import system_user

HERE = Path(__file__).parent
BINARIES = "/opt/consul"
CONFIG = "/etc/consul.d/consul.json"
UNIT = "/etc/systemd/system/consul.service"
RUNNING = UnitState("active", "enabled")
# What an agent needs to find the others when it starts. Another list of servers is no reason to
# restart one that has found them.
TO_START = ("bootstrap_expect", "retry_join", "retry_interval")
VOTE = 60  # seconds for a new server to get its vote

__all__ = [
    "at_a_time",
    "cluster",
    "configure",
    "demote",
    "expel",
    "install",
    "leave",
    "let_vote",
    "remove",
    "run_client",
    "run_server",
    "source",
]


@operation()
def install(me: Host, source: Source) -> Generator[Any, None, None]:
    """Put the binary in a folder of its own; the one in use stays where it is."""
    # What keeps the lock runs on a server; see lock/session.py.
    if me.is_consul_server and "python3" not in current().packages:
        yield packages.install("python3")
    if source.label in current().consul_binaries:
        host.noop(f"Consul {source.label} is installed")
        return
    host.log(f"Consul from {source.description}")
    folder = f"{BINARIES}/{source.label}"
    part = f"{folder}/.consul.part"
    yield StringCommand("mkdir", "-p", folder)
    if source.path:
        yield FileUploadCommand(str(source.path), part, host.get_temp_filename(part))
    else:
        script = (HERE / "debian.sh").read_text()
        yield StringCommand("sh", "-c", QuoteString(script), "debian", part)
    yield StringCommand(
        "chmod", "755", part, "&&", part, "version", "&&", "mv", part, f"{folder}/consul"
    )
    forget()


@operation()
def configure(me: Host, source: Source) -> Generator[Any, None, None]:
    """The consul user, the agent's configuration and its unit."""
    yield from system_user("consul")
    yield from converge(_files(me, source.label))


def _files(me: Host, label: str) -> list[RemoteFile]:
    return [
        RemoteFile(CONFIG, _config(me), "640", "root", "consul"),
        RemoteFile(UNIT, _unit(me, label, _digest(me, label))),
    ]


def _config(me: Host) -> str:
    return json.dumps(agent_config(me), indent=2) + "\n"


def _unit(me: Host, label: str, digest: str) -> str:
    return render(HERE / "consul.service.j2", binary=f"{BINARIES}/{label}/consul", digest=digest)


def _digest(me: Host, label: str) -> str:
    """Of everything an agent must be restarted for; the running one has it in its environment."""
    config = {key: value for key, value in agent_config(me).items() if key not in TO_START}
    return hashlib.sha256((repr(config) + _unit(me, label, "")).encode()).hexdigest()[:16]


def agent_config(me: Host) -> dict[str, Any]:
    """The agent's configuration, with keys that mean the same from Consul 1.8 to today's."""
    servers = fleet().consul_servers
    config: dict[str, Any] = {
        "node_name": me.name,
        "datacenter": me.settings.datacenter,
        "data_dir": "/var/lib/consul",
        "bind_addr": me.address,
        # The HTTP API has no access control yet: nobody but this host may reach it.
        "client_addr": "127.0.0.1",
        "retry_join": [other.address for other in servers],
        # Hosts are installed side by side: half a minute, the default, is a long
        # time to wait for a server that started a second later.
        "retry_interval": "1s",
        # A restart is no departure: the node and its services stay in the catalog. Who retires
        # says so (consul leave).
        "leave_on_terminate": False,
        "disable_update_check": True,
    }
    if me.is_consul_server:
        config |= {
            "server": True,
            "bootstrap_expect": len(servers),
            # The default suits the smallest machines and elects a leader five times slower.
            "performance": {"raft_multiplier": 1},
        }
    return config


@operation()
def run_server(me: Host, source: Source) -> Generator[Any, None, None]:
    """A Consul server that runs with the configuration it has."""
    if me.is_consul_server:
        yield from _run(me, source.label)


@operation()
def run_client(me: Host, source: Source) -> Generator[Any, None, None]:
    """A Consul client agent that runs with the configuration it has."""
    if not me.is_consul_server:
        yield from _run(me, source.label)


def at_a_time() -> int:
    """How many client agents may be restarted side by side: a quarter of the hosts."""
    return max(1, len(fleet().active) // 4)


def _run(me: Host, label: str) -> Generator[Any, None, None]:
    """Restart where the running agent was started with something else than it has now.

    Not where a file was changed in this run: a run that was interrupted between the
    change and the restart would never restart it.
    """
    known = current()
    unit = known.units.get("consul.service")
    if unit is None or unit.active != "active" or known.consul_running != _digest(me, label):
        yield from _restart(me, label)
    elif unit != RUNNING:  # as after a change that was taken back before it was made
        yield StringCommand("systemctl daemon-reload && systemctl --quiet enable consul")
        forget()
    elif not cluster.change().peers:
        # No server that it knew is left, and the new ones are yet to be found.
        yield StringCommand(
            "consul", "join", *(server.address for server in fleet().consul_servers)
        )
    else:
        host.noop("Consul runs with this configuration")


_lost: set[str] = set()  # hosts whose agent did not come back in this run


def _restart(me: Host, label: str) -> Generator[Any, None, None]:
    """Start the agent anew, unless that has just gone wrong on another host: what it did there
    it would do here, to one server after the other."""
    if _lost and current().consul_running:
        yield fail(
            f"{me.name}: Consul was not restarted, because it did not come back on "
            f"{', '.join(sorted(_lost))}; mend it there and deploy again"
        )
        return
    try:
        yield cluster.command("run.sh", f"{BINARIES}/{label}/consul", _role(me))
    except GeneratorExit:  # it failed; or it was only looked at
        if run.is_executing:
            _lost.add(me.name)
        raise
    forget()


def _role(me: Host) -> str:
    if not me.is_consul_server:
        return "client"
    peers = cluster.change().peers
    if not peers:
        return "first"
    return "member" if me.name in peers else "joining"


@operation()
def let_vote(me: Host) -> Generator[Any, None, None]:
    """New servers have their vote before any other is removed."""
    if me.name not in cluster.change().joining:
        host.noop("it is not a new Consul server")
        return
    yield cluster.command("vote.sh", me.name, str(VOTE))


@operation()
def expel(me: Host) -> Generator[Any, None, None]:
    """On one server: remove retired hosts that are gone from the servers and the catalog."""
    keeper = cluster.keeper()
    retired = cluster.retired_in_run() if keeper and keeper.name == me.name else []
    seen = host.get_fact(cluster.ClusterFact) if retired else cluster.Cluster()
    for gone in retired:
        lost = inventory.get_host(gone.name) in run.failed_hosts
        if seen.is_alive(gone.name):
            if lost:
                host.log(
                    f"{gone.name} can't be reached, but its Consul agent is alive: it was not "
                    "removed; mend its ssh or switch it off, and deploy again"
                )
            continue
        peer = seen.peer(gone.name)
        if peer or seen.knows(gone.name):
            why = "can't be reached" if lost else "runs no Consul agent"
            host.log(f"{gone.name} {why}: removed from the catalog by {me.name}")
            yield cluster.command(
                "expel.sh", gone.name, me.settings.datacenter, peer.id if peer else ""
            )
        # Nobody waits for it any more: that it can't be reached is no failure of this run.
        if run.is_executing:
            run.failed_hosts.discard(inventory.get_host(gone.name))
    if not retired:
        host.noop("no retired host to look for")


@operation()
def demote(me: Host, source: Source) -> Generator[Any, None, None]:
    """Make a client agent of a host that is not a Consul server any more.

    It stays in the catalog with its services: its vote is taken away by a server that
    stays, and then its agent is restarted.
    """
    if me.is_consul_server or not current().consul_raft:
        host.noop("it was not a Consul server")
        return
    if not run.is_executing:
        yield cluster.command("run.sh", source.label, "client")
        return
    keeper = cluster.keeper()
    if keeper is None:
        yield fail(f"{me.name}: no Consul server that stays can be reached, to remove it")
        return
    peer = keeper.get_fact(cluster.ClusterFact).peer(me.name)
    if peer:
        why_not = cluster.why_not(me, keeper) or cluster.on(
            keeper, "take_out.sh", peer.id, peer.address
        )
        if why_not:
            yield fail(why_not)
            return
    yield from _restart(me, source.label)
    if peer and (failed := cluster.on(keeper, "tidy.sh", me.name, peer.id, me.settings.datacenter)):
        yield fail(failed)


@operation()
def leave(me: Host, servers: bool) -> Generator[Any, None, None]:
    """Let a retired host leave the cluster gracefully, so that the catalog forgets it at once.

    :param servers: whether it is the turn of the servers, who go one at a time, or of the others
    """
    known = current()
    unit = known.units.get("consul.service")
    runs = unit is not None and unit.active in ("active", "activating")
    if not me.is_retired or not runs or bool(known.consul_raft) != servers:
        host.noop("this host does not leave now")
        return
    keeper = cluster.keeper()
    if servers and keeper and run.is_executing and (why_not := cluster.why_not(me, keeper)):
        yield fail(why_not)
        return
    # One that never came up is in no cluster that it could leave.
    ask = "consul leave >/dev/null && " if unit and unit.active == "active" else ""
    yield StringCommand(f"{ask}systemctl --quiet disable --now consul")
    forget()
    # An agent may tell the servers about itself once more while it leaves, and be listed again.
    datacenter = me.settings.datacenter
    if keeper and (failed := cluster.on(keeper, "expel.sh", me.name, datacenter, "")):
        yield fail(failed)


@operation()
def remove(me: Host) -> Generator[Any, None, None]:
    """Remove everything that was put here for Consul, and its data with ``purge``."""
    known = current()
    there = "consul" in known.users or UNIT in known.files or known.consul_binaries
    left_over = me.settings.purge and known.consul_data
    if not me.is_retired or not (there or left_over):
        host.noop("nothing of Consul is to be removed here")
        return
    yield cluster.command("remove.sh", "purge" if me.settings.purge else "keep")
    forget()
