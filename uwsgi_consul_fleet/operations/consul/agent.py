"""Consul on a host: the binary, its configuration, and an agent that runs with both."""

import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FileUploadCommand, StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.operations import packages
from uwsgi_consul_fleet.operations.consul import cluster
from uwsgi_consul_fleet.operations.consul import source as source
from uwsgi_consul_fleet.operations.consul.source import Source
from uwsgi_consul_fleet.operations.files import RemoteFile, converge, fail, render
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import UnitState
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
def install(here: Here, source: Source) -> Generator[Any, None, None]:
    """Put the binary in a folder of its own; the one in use stays where it is."""
    # What keeps the lock runs on a server; see lock/session.py.
    if here.me.is_consul_server and "python3" not in here.known.packages:
        yield packages.install("python3")
    if source.label in here.known.consul_binaries:
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
    here.changed()


@operation()
def configure(here: Here, source: Source) -> Generator[Any, None, None]:
    """The consul user, the agent's configuration and its unit."""
    yield from system_user(here, "consul")
    yield from converge(here, _files(here, source.label))


def _files(here: Here, label: str) -> list[RemoteFile]:
    return [
        RemoteFile(CONFIG, _config(here), "640", "root", "consul"),
        RemoteFile(UNIT, _unit(here.me, label, _digest(here, label))),
    ]


def _config(here: Here) -> str:
    return json.dumps(agent_config(here.me, here.run.fleet), indent=2) + "\n"


def _unit(me: Host, label: str, digest: str) -> str:
    return render(HERE / "consul.service.j2", binary=f"{BINARIES}/{label}/consul", digest=digest)


def _digest(here: Here, label: str) -> str:
    """Of everything an agent must be restarted for; the running one has it in its environment."""
    config = {
        key: value
        for key, value in agent_config(here.me, here.run.fleet).items()
        if key not in TO_START
    }
    return hashlib.sha256((repr(config) + _unit(here.me, label, "")).encode()).hexdigest()[:16]


def agent_config(me: Host, fleet: Fleet) -> dict[str, Any]:
    """The agent's configuration, with keys that mean the same from Consul 1.8 to today's."""
    servers = fleet.consul_servers
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
def run_server(here: Here, source: Source) -> Generator[Any, None, None]:
    """A Consul server that runs with the configuration it has."""
    if here.me.is_consul_server:
        yield from _run(here, source.label)


@operation()
def run_client(here: Here, source: Source) -> Generator[Any, None, None]:
    """A Consul client agent that runs with the configuration it has."""
    if not here.me.is_consul_server:
        yield from _run(here, source.label)


def at_a_time(here: Here) -> int:
    """How many client agents may be restarted side by side: a quarter of the hosts."""
    return max(1, len(here.run.fleet.active) // 4)


def _run(here: Here, label: str) -> Generator[Any, None, None]:
    """Restart where the running agent was started with something else than it has now.

    Not where a file was changed in this run: a run that was interrupted between the
    change and the restart would never restart it.
    """
    known = here.known
    unit = known.units.get("consul.service")
    if unit is None or unit.active != "active" or known.consul_running != _digest(here, label):
        yield from _restart(here, label)
    elif unit != RUNNING:  # as after a change that was taken back before it was made
        yield StringCommand("systemctl daemon-reload && systemctl --quiet enable consul")
        here.changed()
    elif not cluster.change(here.run).peers:
        # No server that it knew is left, and the new ones are yet to be found.
        yield StringCommand(
            "consul", "join", *(server.address for server in here.run.fleet.consul_servers)
        )
    else:
        host.noop("Consul runs with this configuration")


def _restart(here: Here, label: str) -> Generator[Any, None, None]:
    """Start the agent anew, unless that has just gone wrong on another host: what it did there
    it would do here, to one server after the other."""
    me, lost = here.me, here.run.lost_agents
    if lost and here.known.consul_running:
        yield fail(
            f"{me.name}: Consul was not restarted, because it did not come back on "
            f"{', '.join(sorted(lost))}; mend it there and deploy again"
        )
        return
    try:
        yield cluster.command("run.sh", f"{BINARIES}/{label}/consul", _role(here))
    except GeneratorExit:  # it failed; or it was only looked at
        if here.run.pyinfra.is_executing:
            lost.add(me.name)
        raise
    here.changed()


def _role(here: Here) -> str:
    if not here.me.is_consul_server:
        return "client"
    peers = cluster.change(here.run).peers
    if not peers:
        return "first"
    return "member" if here.me.name in peers else "joining"


@operation()
def let_vote(here: Here) -> Generator[Any, None, None]:
    """New servers have their vote before any other is removed."""
    if here.me.name not in cluster.change(here.run).joining:
        host.noop("it is not a new Consul server")
        return
    yield cluster.command("vote.sh", here.me.name, str(VOTE))


@operation()
def expel(here: Here) -> Generator[Any, None, None]:
    """On one server: remove retired hosts that are gone from the servers and the catalog."""
    me, run = here.me, here.run
    keeper = cluster.keeper(run)
    retired = cluster.retired_in_run(run) if keeper and keeper.name == me.name else []
    seen = host.get_fact(cluster.ClusterFact) if retired else cluster.Cluster()
    for gone in retired:
        lost = gone.name in run.pyinfra.failed
        if seen.is_alive(gone.name):
            if lost:
                host.log(
                    f"{gone.name} can't be reached, but its Consul agent is alive: it was not "
                    "removed; mend its ssh or switch it off, and deploy again"
                )
            continue
        peer = seen.peer(gone)
        if peer or seen.knows(gone.name):
            why = "can't be reached" if lost else "runs no Consul agent"
            host.log(f"{gone.name} {why}: removed from the catalog by {me.name}")
            yield cluster.command(
                "expel.sh", gone.name, me.settings.datacenter, peer.id if peer else ""
            )
        # Nobody waits for it any more: that it can't be reached is no failure of this run.
        if run.pyinfra.is_executing:
            run.pyinfra.forgive(gone.name)
    if not retired:
        host.noop("no retired host to look for")


@operation()
def demote(here: Here, source: Source) -> Generator[Any, None, None]:
    """Make a client agent of a host that is not a Consul server any more.

    It stays in the catalog with its services: its vote is taken away by a server that
    stays, and then its agent is restarted.
    """
    me, run = here.me, here.run
    if me.is_consul_server or not here.known.consul_raft:
        host.noop("it was not a Consul server")
        return
    if not run.pyinfra.is_executing:
        yield cluster.command("run.sh", source.label, "client")
        return
    keeper = cluster.keeper(run)
    if keeper is None:
        yield fail(f"{me.name}: no Consul server that stays can be reached, to remove it")
        return
    peer = keeper.get_fact(cluster.ClusterFact).peer(me)
    if peer:
        why_not = cluster.why_not(run, me, keeper) or cluster.on(
            run, keeper, "take_out.sh", peer.id, peer.address
        )
        if why_not:
            yield fail(why_not)
            return
    yield from _restart(here, source.label)
    if peer and (
        failed := cluster.on(run, keeper, "tidy.sh", me.name, peer.id, me.settings.datacenter)
    ):
        yield fail(failed)


@operation()
def leave(here: Here, servers: bool) -> Generator[Any, None, None]:
    """Let a retired host leave the cluster gracefully, so that the catalog forgets it at once.

    :param servers: whether it is the turn of the servers, who go one at a time, or of the others
    """
    me, known, run = here.me, here.known, here.run
    unit = known.units.get("consul.service")
    runs = unit is not None and unit.active in ("active", "activating")
    if not me.is_retired or not runs or bool(known.consul_raft) != servers:
        host.noop("this host does not leave now")
        return
    keeper = cluster.keeper(run)
    if (
        servers
        and keeper
        and run.pyinfra.is_executing
        and (why_not := cluster.why_not(run, me, keeper))
    ):
        yield fail(why_not)
        return
    # One that never came up is in no cluster that it could leave.
    ask = "consul leave >/dev/null && " if unit and unit.active == "active" else ""
    yield StringCommand(f"{ask}systemctl --quiet disable --now consul")
    here.changed()
    # An agent may tell the servers about itself once more while it leaves, and be listed again.
    datacenter = me.settings.datacenter
    if keeper and (failed := cluster.on(run, keeper, "expel.sh", me.name, datacenter, "")):
        yield fail(failed)


@operation()
def remove(here: Here) -> Generator[Any, None, None]:
    """Remove everything that was put here for Consul, and its data with ``purge``."""
    me, known = here.me, here.known
    there = "consul" in known.users or UNIT in known.files or known.consul_binaries
    left_over = me.settings.purge and known.consul_data
    if not me.is_retired or not (there or left_over):
        host.noop("nothing of Consul is to be removed here")
        return
    yield cluster.command("remove.sh", "purge" if me.settings.purge else "keep")
    here.changed()
