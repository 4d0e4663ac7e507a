"""Servers that become clients, hosts that leave the cluster, and what goes from those."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.operations import program
from uwsgi_consul_fleet.operations.consul import cluster, replacing, rounds, running, secrets
from uwsgi_consul_fleet.operations.consul.cluster import UNIT
from uwsgi_consul_fleet.operations.consul.source import Source
from uwsgi_consul_fleet.operations.files import fail, secretly
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.ownership.belongings import CONSUL

HERE = Path(__file__).parent


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
    if harm := running.harm_of_restart(here):
        yield fail(f"{me.name}: still a Consul server: {harm}")
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
    yield from running.restart(here, source.label)
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
    # Where none that stays is in reach it looks itself whether the others can do without it: the
    # one through which it was to be removed may have failed in this run.
    return cluster.why_not(run, me, remover or me.name) if run.pyinfra.is_executing else None


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
        yield from running.leave_places_of_before(here)
    script = (HERE / "remove.sh").read_text()
    words = ("purge" if purge else "keep", "ours" if ours else "theirs")
    yield StringCommand("sh", "-c", QuoteString(script), "remove", *words)
    here.changed()
