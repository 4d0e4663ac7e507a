"""Agents that run with the configuration they have, and what keeps one from a restart."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.operations import program
from uwsgi_consul_fleet.operations.consul import cluster, configuration, rounds
from uwsgi_consul_fleet.operations.consul.source import Source
from uwsgi_consul_fleet.operations.files import fail
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import RUNNING

HERE = Path(__file__).parent


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
    if must_restart(here, label, rounds.number(here, number)):
        yield from _restart_unless(here, label)
    elif known.units["consul.service"] != RUNNING:
        # As after a change that was taken back before it was made.
        yield StringCommand(
            "systemctl --quiet --no-reload enable consul && systemctl daemon-reload"
        )
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
        yield from leave_places_of_before(here)
    else:
        host.noop("Consul runs with this configuration")


def must_restart(here: Here, label: str, number: int) -> bool:
    """Whether an agent does not run, or was started with something else than it is to have.

    :param label: of the binary
    :param number: the round in which it is to run
    """
    unit = here.known.units.get("consul.service")
    wanted = configuration.digest(here.me, here.run.fleet, label, number)
    return unit is None or unit.active != "active" or here.known.consul_running != wanted


def refuse_restart(here: Here, source: Source) -> None:
    """Where a host that is down stops the rounds a restart is put off instead, for applications are
    deployed all the same.

    :raises DeployError: where a server must be restarted that the others can't do without
    """
    number = rounds.number(here, rounds.of(here.run).before[0])
    restarts = here.me.is_consul_server and must_restart(here, source.label, number)
    stays = rounds.of(here.run).stopped or not restarts
    if not stays and (why_not := _why_not_agree(here)):
        raise DeployError(f"{here.me.name}: {why_not}; nothing was changed")


def _restart_unless(here: Here, label: str) -> Generator[Any, None, None]:
    """Where a host that is down stops the rounds, what the others do not agree to is put off."""
    me = here.me
    if harm := harm_of_restart(here):
        yield fail(f"{me.name}: {harm}")
    elif not (alone := _why_not_agree(here)):
        yield from restart(here, label)
    elif rounds.of(here.run).stopped:
        host.log_styled(f"{me.name}: {alone}; the next deploy does it", fg="yellow")
        host.noop("Consul goes on with the configuration it has")
    else:
        yield fail(f"{me.name}: {alone}")


def restart(here: Here, label: str) -> Generator[Any, None, None]:
    """Start the agent anew; where it does not come back, no other is: see :func:`harm_of_restart`.

    :param label: of the binary
    """
    binary, before = f"{configuration.BINARIES}/{label}/consul", here.known.consul_before
    try:
        yield program.command(here, "consul", "start", binary, *_how(here))
    except GeneratorExit:  # it failed; or it was only looked at
        if here.run.pyinfra.is_executing:
            here.run.lost_agents.add(here.me.name)
        raise
    here.changed()
    if before:
        yield from leave_places_of_before(here)


def leave_places_of_before(here: Here) -> Generator[Any, None, None]:
    """Nothing of ours stays there; what others put there does."""
    script = (HERE / "before.sh").read_text()
    yield StringCommand("sh", "-c", QuoteString(script), "before")
    here.changed()


def _why_not_agree(here: Here) -> str:
    """Why the servers would have no majority while this one restarts, or ''."""
    running = here.me.name in cluster.change(here.run).peers and here.known.consul_running
    return cluster.why_not_restart(here.run, here.me) if running else ""


def harm_of_restart(here: Here) -> str:
    """What harm a restart would do, or ''. What has just gone wrong on another host would go wrong
    here, on one server after the other."""
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
