"""Consul on a host: the binary, its configuration, and an agent that runs with both."""

import hashlib
import json
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.inventory import unit_options
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.operations import program
from uwsgi_consul_fleet.operations.consul import acl as acl
from uwsgi_consul_fleet.operations.consul import cluster as cluster
from uwsgi_consul_fleet.operations.consul import existing as existing
from uwsgi_consul_fleet.operations.consul import expiry
from uwsgi_consul_fleet.operations.consul import replacing as replacing
from uwsgi_consul_fleet.operations.consul import rounds as rounds
from uwsgi_consul_fleet.operations.consul import secrets as secrets
from uwsgi_consul_fleet.operations.consul import source as source
from uwsgi_consul_fleet.operations.consul.cluster import UNIT
from uwsgi_consul_fleet.operations.consul.source import Source
from uwsgi_consul_fleet.operations.files import Base64, RemoteFile, converge, fail, render, secretly
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import RUNNING
from uwsgi_consul_fleet.operations.users import system_user
from uwsgi_consul_fleet.ownership.belongings import CONSUL

HERE = Path(__file__).parent
BINARIES = "/opt/uwsgi-consul-fleet/consul"
CONFIGURATION = "/etc/uwsgi-consul-fleet/consul.d"
CONFIG = f"{CONFIGURATION}/consul.json"
# Until 0.3 they were here, which is where HashiCorp's package has its data and configuration.
BINARIES_BEFORE = "/opt/consul"
CONFIG_BEFORE = "/etc/consul.d/consul.json"
# What an agent needs to find the others when it starts. Another list of servers is no reason to
# restart one that has found them.
TO_START = ("bootstrap_expect", "retry_join", "retry_interval")
VOTE = 60  # seconds for a new server to get its vote


@operation()
def install(here: Here, source: Source) -> Generator[Any, None, None]:
    """Put the binary in a folder of its own; the one in use stays where it is."""
    yield from program.python(here)
    if source.label in here.known.consul_binaries:
        host.noop(f"Consul {source.label} is installed")
        return
    folder = f"{BINARIES}/{source.label}"
    part = f"{folder}/.consul.part"
    yield StringCommand("mkdir", "-p", folder)
    if source.label in here.known.consul_before:
        yield StringCommand("cp", f"{BINARIES_BEFORE}/{source.label}/consul", part)
    elif source.path:
        host.log(f"Consul from {source.description}")
        # Not pyinfra's `host`, which is whichever one is in context when it is asked.
        say = here.run.pyinfra.host(here.me.name).log
        unpack = f"base64 -d | gunzip >{part}"
        yield StringCommand(
            "sh", "-c", QuoteString(unpack), _stdin=Base64(partial(source.packed, say))
        )
    else:
        host.log(f"Consul from {source.description}")
        script = (HERE / "debian.sh").read_text()
        yield StringCommand("sh", "-c", QuoteString(script), "debian", part)
    yield StringCommand(
        "chmod", "755", part, "&&", part, "version", "&&", "mv", part, f"{folder}/consul"
    )
    here.changed()


@operation()
def configure(here: Here, source: Source, number: int) -> Generator[Any, None, None]:
    """The consul user, the agent's configuration and its unit, and the program that asks it.

    :param number: the round whose turn it is
    """
    try:
        if here.run.pyinfra.is_executing:
            secrets.kept(here.run).keep()
    except FleetError as error:
        yield fail(f"{here.me.name}: left as it was: {error}")
        return
    yield from system_user(here, "consul")
    # Before the unit, which reads them from then on.
    for path in sorted(_not_ours(here)):
        host.log(f"{path}: the agent reads a copy of it in {CONFIGURATION} from now on")
        folder = StringCommand("mkdir", "-p", CONFIGURATION)
        yield StringCommand(folder, "&&", "cp", "--preserve", QuoteString(path), CONFIGURATION)
    number = rounds.number(here, number)
    told = [*secretly(here, secrets.of_tls(here))] if number else []
    yield from told
    wanted = files(here.me, here.run.fleet, source.label, number)
    yield from converge(here, [*wanted, program.program()])
    if number:
        yield from expiry.watch(here)
        told += (last := [*secretly(here, secrets.of_agent(here))])
        yield from last
    if told and here.known.consul_round and not _must_restart(here, source.label, number):
        yield program.command(here, "consul", "reload")


def _not_ours(here: Here) -> set[str]:
    """What the agent reads today from the place of before, and others have put there."""
    return {path for path in here.known.consul_before if path.startswith("/")} - {CONFIG_BEFORE}


def files(me: Host, fleet: Fleet, label: str, number: int) -> list[RemoteFile]:
    """The agent's configuration and its unit, as they should be on a host in a round."""
    config = json.dumps(agent_config(me, fleet, number), indent=2) + "\n"
    return [
        RemoteFile(CONFIG, config, "640", "root", "consul"),
        RemoteFile(UNIT, _unit(me, label, number, digest(me, fleet, label, number))),
    ]


def _unit(me: Host, label: str, number: int, digest: str) -> str:
    return render(
        HERE / "consul.service.j2",
        binary=f"{BINARIES}/{label}/consul",
        configuration=CONFIGURATION,
        digest=digest,
        number=number,
        compiles=False,
        allowed=unit_options.lines(me.settings.consul_unit),
    )


def digest(me: Host, fleet: Fleet, label: str, number: int) -> str:
    """Of everything an agent must be restarted for; the running one has it in its environment.
    Secrets are not in it: they are told to an agent that runs."""
    known = agent_config(me, fleet, number).items()
    config = {key: value for key, value in known if key not in TO_START}
    return hashlib.sha256((repr(config) + _unit(me, label, number, "")).encode()).hexdigest()[:16]


def agent_config(me: Host, fleet: Fleet, number: int) -> dict[str, Any]:
    """The agent's configuration, with keys that mean the same from Consul 1.8 to today's."""
    servers = fleet.consul_servers
    config: dict[str, Any] = {
        "node_name": me.name,
        "datacenter": me.settings.datacenter,
        "data_dir": "/var/lib/consul",
        "bind_addr": me.address,
        # Whoever has a token asks it on the host itself, or through ssh.
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
            # What `invoke ui` shows.
            "ui": True,
        }
    return config | rounds.settings(me, number)


def run(here: Here, source: Source, number: int) -> None:
    """All agents with the configuration of a round: the servers first, their leader last of these.

    :param number: the round
    """
    me = here.me
    told: dict[str, Any] = {"here": here, "source": source, "number": number}
    it = "Consul" if rounds.of(here.run).begins else f"Consul, round {number} of {rounds.LAST}"
    if number == rounds.LAST and not rounds.of(here.run).begins:
        # While everybody may: who looks services up without a token is never told of none.
        acl.make_tokens(name=f"{it}: let look-ups go on", here=here, number=number)
    configure(name=f"{it}: configure the agent", **told)
    if me.is_consul_server:
        run_server(name=f"{it}: run the servers", _serial=True, **told)
        if me.name == cluster.change(here.run).leader:
            run_server(name=f"{it}: run the leader", leads=True, **told)
    if number:
        acl.make_tokens(name=f"{it}: make tokens", here=here, number=number)
    let_vote(name=f"{it}: let new servers vote", here=here)
    expel(name=f"{it}: remove retired hosts that are gone", here=here)
    if here.known.consul_raft and not me.is_consul_server:
        demote(name=f"{it}: make clients of former servers", here=here, source=source, _serial=True)
    run_client(name=f"{it}: run the client agents", _parallel=at_a_time(here), **told)
    if number and (me.settings.dns or secrets.DNS in here.known.files):
        replacing.tell_agent(name=f"{it}: let DNS answer", here=here)
        # Which of them have a token for it is known by now.
        acl.make_tokens(name=f"{it}: see who may look up", here=here, number=number)


@operation()
def run_server(
    here: Here, source: Source, number: int, leads: bool = False
) -> Generator[Any, None, None]:
    """A Consul server that runs with the configuration it has.

    :param leads: whether it is the turn of the leader, without whom nobody gets an answer: last
    """
    if (cluster.change(here.run).leader == here.me.name) == leads:
        yield from _run(here, source.label, number)
    else:
        host.noop("it is not its turn")


@operation()
def run_client(here: Here, source: Source, number: int) -> Generator[Any, None, None]:
    """A Consul client agent that runs with the configuration it has."""
    if not here.me.is_consul_server:
        yield from _run(here, source.label, number)


def at_a_time(here: Here) -> int:
    """How many client agents may be restarted side by side: a quarter of the hosts."""
    return max(1, len(here.run.fleet.active) // 4)


def _run(here: Here, label: str, number: int) -> Generator[Any, None, None]:
    """Restart where the running agent was started with something else than it has now.

    Not where a file was changed in this run: a run that was interrupted between the
    change and the restart would never restart it.
    """
    known, change = here.known, cluster.change(here.run)
    if _must_restart(here, label, rounds.number(here, number)):
        why_not = "" if _why_not_restart(here) else _why_not_agree(here)
        if why_not and rounds.of(here.run).stopped:
            host.log_styled(f"{here.me.name}: {why_not}; the next deploy does it", fg="yellow")
            host.noop("Consul goes on with the configuration it has")
        elif why_not:
            yield fail(f"{here.me.name}: {why_not}")
        else:
            yield from _restart(here, label)
    elif known.units["consul.service"] != RUNNING:
        # As after a change that was taken back before it was made.
        yield StringCommand("systemctl daemon-reload && systemctl --quiet enable consul")
        here.changed()
    elif here.me.name in change.silent:
        yield fail(
            f"{here.me.name}: {change.not_asked()}; look at it with: systemctl status consul"
        )
    elif not change.peers and not change.silent:
        # No server that it knew is left, and the new ones are yet to be found.
        addresses = (server.address for server in here.run.fleet.consul_servers)
        yield program.command(here, "consul", "join", *addresses)
    elif known.consul_before:  # the run that started it from the new place was killed
        yield from _leave_places_of_before(here)
    else:
        host.noop("Consul runs with this configuration")


def _must_restart(here: Here, label: str, number: int) -> bool:
    unit = here.known.units.get("consul.service")
    wanted = digest(here.me, here.run.fleet, label, number)
    return unit is None or unit.active != "active" or here.known.consul_running != wanted


def refuse_restart(here: Here, source: Source) -> None:
    """Where a host that is down stops the rounds a restart is put off instead, for applications are
    deployed all the same.

    :raises DeployError: where a server must be restarted that the others can't do without
    """
    number = rounds.number(here, rounds.of(here.run).before[0])
    restarts = here.me.is_consul_server and _must_restart(here, source.label, number)
    stays = rounds.of(here.run).stopped or not restarts
    if not stays and (why_not := _why_not_agree(here)):
        raise DeployError(f"{here.me.name}: {why_not}; nothing was changed")


def _restart(here: Here, label: str) -> Generator[Any, None, None]:
    """Start the agent anew, unless that has just gone wrong on another host: what it did there
    it would do here, to one server after the other."""
    me, before = here.me, here.known.consul_before
    if why_not := _why_not_restart(here):
        yield fail(f"{me.name}: {why_not}")
        return
    try:
        yield program.command(here, "consul", "start", f"{BINARIES}/{label}/consul", *_how(here))
    except GeneratorExit:  # it failed; or it was only looked at
        if here.run.pyinfra.is_executing:
            here.run.lost_agents.add(me.name)
        raise
    here.changed()
    if before:
        yield from _leave_places_of_before(here)


def _leave_places_of_before(here: Here) -> Generator[Any, None, None]:
    """Nothing of ours stays there; what others put there does."""
    script = (HERE / "before.sh").read_text()
    yield StringCommand("sh", "-c", QuoteString(script), "before")
    here.changed()


def _why_not_agree(here: Here) -> str:
    """Why the servers would have no majority while this one restarts, or ''."""
    running = here.me.name in cluster.change(here.run).peers and here.known.consul_running
    return cluster.why_not_restart(here.run, here.me) if running else ""


def _why_not_restart(here: Here) -> str:
    """Why it would do harm, or ''."""
    change, known, lost = cluster.change(here.run), here.known, here.run.lost_agents
    if known.consul_running and change.hung:
        return f"Consul was not restarted, because {change.not_asked()}; mend that and deploy again"
    if known.consul_running and lost:
        return (
            "Consul was not restarted, because it did not come back on "
            f"{', '.join(sorted(lost))}; mend it there and deploy again"
        )
    if here.me.is_consul_server and change.silent and not known.consul_raft:
        return (
            f"no Consul server was started, because {change.not_asked()}, and a new one could "
            "begin another; deploy again when it answers"
        )
    return ""


def _how(here: Here) -> tuple[str, ...]:
    """What becomes of the servers that it knew, and whether the next one may be restarted when
    it is back: in a cluster that is being made, or all of which is down, there is no leader."""
    peers = cluster.change(here.run).peers
    if not here.me.is_consul_server or (peers and here.me.name not in peers):
        return ("--new",)
    first = here.known.consul_running and not here.known.consul_round
    return (*(("--wait",) if peers else ()), *(("--first",) if first else ()))


@operation()
def let_vote(here: Here) -> Generator[Any, None, None]:
    """New servers have their vote before any other is removed."""
    if here.me.name not in cluster.change(here.run).joining:
        host.noop("it is not a new Consul server")
        return
    yield program.command(here, "consul", "vote", here.me.name, str(VOTE))


@operation()
def expel(here: Here) -> Generator[Any, None, None]:
    """On one server: remove retired hosts that are gone from the servers and the catalog."""
    me, run = here.me, here.run
    retired = cluster.retired_in_run(run) if cluster.remover(run) == me.name else []
    seen = cluster.seen_by(run, me.name) if retired else cluster.Cluster()
    if seen.problem:
        yield fail(f"{me.name}: retired hosts were not looked for: {seen.problem}; deploy again")
        return
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
            words = (gone.name, me.settings.datacenter, *([peer.id] if peer else []))
            yield from replacing.owe_key(here)
            yield program.command(here, "consul", "expel", *words)
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
        yield program.command(here, "consul", "start", source.label, "--new")
        return
    remover = cluster.remover(run)
    if not remover:
        yield fail(f"{me.name}: no Consul server that stays can be reached, to remove it")
        return
    peer = cluster.seen_by(run, remover).peer(me)
    if peer:
        why_not = cluster.why_not(run, me, remover) or program.on(
            run, remover, "consul", "demote", peer.id, peer.address
        )
        if why_not:
            yield fail(why_not)
            return
    if rounds.NODE in here.known.files:
        yield from secretly(here, secrets.of_tls(here, demoted=True))
    yield from _restart(here, source.label)
    words = ("consul", "tidy", me.name, peer.id, me.settings.datacenter) if peer else ()
    if words and (failed := program.on(run, remover, *words)):
        yield fail(failed)


@operation()
def leave(here: Here, servers: bool) -> Generator[Any, None, None]:
    """Let a retired host leave the cluster gracefully, so that the catalog forgets it at once.

    :param servers: whether it is the turn of the servers, who go one at a time, or of the others
    """
    me, known, run = here.me, here.known, here.run
    unit = known.units.get("consul.service")
    runs = unit is not None and unit.active in ("active", "activating")
    ours = CONSUL in known.belongings.ours and UNIT in known.files
    if not me.is_retired or not ours or not runs or bool(known.consul_raft) != servers:
        host.noop("this host does not leave now")
        return
    remover = cluster.remover(run)
    if servers and (why_not := _why_not_leave(here, remover)):
        yield fail(why_not)
        return
    yield from program.python(here)
    yield from replacing.owe_key(here)
    yield program.command(here, "consul", "leave")
    here.changed()
    # An agent may tell the servers about itself once more while it leaves, and be listed again.
    words = ("consul", "expel", me.name, me.settings.datacenter)
    if remover and (failed := program.on(run, remover, *words)):
        yield fail(failed)


def _why_not_leave(here: Here, remover: str) -> str | None:
    me, run, change = here.me, here.run, cluster.change(here.run)
    if change.silent:
        return f"{me.name}: still a Consul server, because {change.not_asked()}; deploy again"
    return cluster.why_not(run, me, remover) if remover and run.pyinfra.is_executing else None


@operation()
def remove(here: Here) -> Generator[Any, None, None]:
    """Remove everything that was put here for Consul and what asks it, and its data with ``purge``;
    of an agent that was here before us, nothing."""
    me, known, purge = here.me, here.known, here.me.settings.purge
    ours = CONSUL in known.belongings.ours
    if ours:
        left_over = purge and (known.consul_data or known.belongings.made)
        there = bool({UNIT, PROGRAM} & {*known.files} or known.consul_binaries or left_over)
    else:
        there = bool(known.belongings.identity) and (purge or PROGRAM in known.files)
    if not me.is_retired or not there:
        host.noop("nothing of Consul is to be removed here")
        return
    if ours and known.consul_before:  # what an agent of others has there is its own
        yield from _leave_places_of_before(here)
    script = (HERE / "remove.sh").read_text()
    words = ("purge" if purge else "keep", "ours" if ours else "theirs")
    yield StringCommand("sh", "-c", QuoteString(script), "remove", *words)
    here.changed()
