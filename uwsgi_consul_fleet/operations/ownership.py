"""Whose the hosts of a run are: decided before anything is touched, then marked on them."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from pyinfra import host, logger
from pyinfra.api import operation

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.operations import program
from uwsgi_consul_fleet.operations.consul.cluster import host_of
from uwsgi_consul_fleet.operations.files import fail
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Here, Run
from uwsgi_consul_fleet.operations.state import NOT_ASKED, HostState
from uwsgi_consul_fleet.ownership.belongings import CONSUL, told, wanted
from uwsgi_consul_fleet.ownership.identity import LAYOUT, Identity, agreed

States = Mapping[str, HostState]


@dataclass(frozen=True)
class Settled:
    """The fleet of this run; ``unmarked`` are hosts of it that do not say so yet."""

    identity: Identity
    is_new: bool
    unmarked: frozenset[str]


def settled(run: Run) -> Settled:
    """Which fleet this run is about; the same for each host.

    :raises DeployError: where something here is not this fleet's
    """
    return run.once(_settle)


def _settle(run: Run) -> Settled:
    ours = [each for each in run.fleet.hosts if each.is_member or each.is_retired]
    states = {
        each.name: run.state_of(each.name) for each in ours if each.name in run.pyinfra.connected
    }
    try:
        identity = agreed(_carried(states) | _carried_by_others(run), run.fleet.name)
    except FleetError as error:
        raise DeployError(str(error)) from error
    _refuse_other_clusters(run.fleet, states)
    for name, known in states.items():
        refuse_strangers(run.fleet.host(name), known)
        _refuse_agent(run.fleet.host(name), known)
    is_new = identity is None
    identity = identity or _new(run)
    unmarked = (name for name, each in states.items() if _lacks(run.fleet.host(name), each))
    logger.info(f"--> Fleet {identity}{': its first deploy' if is_new else ''}")
    return Settled(identity, is_new, frozenset(unmarked))


def _carried(states: States) -> dict[str, Identity | None]:
    found: dict[str, Identity | None] = {}
    for name, known in states.items():
        found[name] = known.belongings.identity
        found[f"the Consul of {name}"] = Identity.parse(known.consul_fleet)
    return found


def _carried_by_others(run: Run) -> dict[str, Identity | None]:
    """Of the Consul servers that --limit leaves out, who were marked first."""
    others = [each for each in run.fleet.consul_servers if each.name in left_out(run)]
    if not others:
        return {}
    # Only here: it takes as long to load as a host takes to tell of itself.
    from uwsgi_consul_fleet.ownership import hosts

    return {"the Consul servers": hosts.identity(run.fleet, others)}


def left_out(run: Run) -> list[str]:
    """Hosts that this run does not reach for, because of --limit."""
    about = run.pyinfra.about
    return [each.name for each in run.fleet.hosts if each.name not in about]


def _new(run: Run) -> Identity:
    """Made by a run that asked all Consul servers: others may know better than the rest."""
    others = left_out(run)
    servers = {each.name for each in run.fleet.consul_servers}
    missing = sorted(servers - run.pyinfra.connected)
    if others or missing:
        why = f"{', '.join(missing)} can't be reached" if missing else "--limit leaves out others"
        raise DeployError(
            "no host of this run says which fleet it is of, and a run that gives a fleet its "
            f"identity needs all Consul servers and no --limit: {why}; nothing was changed"
        )
    if not run.fleet.brings_consul:
        _expect_one_answer(run)
    name = run.fleet.name or next(iter(run.fleet.services), "fleet")
    return Identity(name, uuid4().hex, LAYOUT)


def _expect_one_answer(run: Run) -> None:
    """That nobody has written an identity into Consul is not said by one that does not answer."""
    asked = [each.name for each in run.fleet.asked if each.name in run.pyinfra.connected]
    problems = {name: run.state_of(name).consul_problem for name in asked}
    if all(problems.values()):
        told = "; ".join(f"{name}: {why}" for name, why in problems.items())
        needs = NOT_ASKED in problems.values()
        mend = ": install Python on one of them (apt install python3)" if needs else ""
        raise DeployError(
            f"no host's Consul agent could say whether there is a fleet {run.fleet.name} ({told})"
            f"{mend}; nothing was changed"
        )


def _refuse_other_clusters(fleet: Fleet, states: States) -> None:
    """A host from before identities is of this fleet where its Consul agent is."""
    asked = next((s for n, s in states.items() if s.consul_peers and _serves(fleet, n)), None)
    peers = _addresses(asked.consul_peers) if asked else set()
    servers = {each.address for each in fleet.consul_servers} | peers
    for name, known in states.items():
        its_peers = _addresses(known.consul_peers)
        knows = its_peers or known.belongings.joins
        if CONSUL not in known.belongings.marks or not knows:
            continue
        if its_peers and not asked:
            continue  # all servers are to be replaced, which is refused with what to do instead
        # A server in the inventory is by itself among those that are meant.
        if knows & (peers if its_peers and _serves(fleet, name) else servers):
            continue
        raise DeployError(
            f"{name}: its Consul agent is of the cluster of {', '.join(sorted(knows))}, and this "
            f"fleet's is that of {', '.join(sorted(peers or servers))}: take it out of the "
            "inventory; or, where it missed a change of this fleet's servers or is to be handed "
            f"over: invoke adopt {name}; nothing was changed"
        )


def _addresses(peers: tuple[str, ...]) -> set[str]:
    return {host_of(peer) for peer in peers}


def _serves(fleet: Fleet, name: str) -> bool:
    return fleet.host(name).is_consul_server and fleet.host(name).is_member


def refuse_strangers(me: Host, known: HostState) -> None:
    """:raises DeployError: where something lies on a host that a deploy would overwrite or use"""
    there = known.belongings.strangers
    needed = wanted(me) | {f"port:{instance.port}" for instance in me.instances}
    found = sorted(needed & {*there})
    if not found:
        return
    lines = "\n".join(f"    {told(what, text)}" for what in found for text in there[what])
    use = 'use the Consul that is there (consul_source = "none"), ' if CONSUL in found else ""
    raise DeployError(
        f"{me.name}: not everything that this fleet would put there is free:\n{lines}\n"
        f"    Take the host out of the inventory, {use}give the application another app_name or "
        "other ports (instances), or hand over what is there, which the deploy then overwrites, "
        f"with: invoke adopt {me.name}; nothing was changed"
    )


def _refuse_agent(me: Host, known: HostState) -> None:
    """:raises DeployError: where a host's agent is not what the inventory says of it"""
    if me.brings_consul or not me.is_member:
        return
    if CONSUL in known.belongings.ours:
        raise DeployError(
            f'{me.name}: consul_source = "none" is for an agent that others look after, and this '
            "one was put there by a deploy, and nobody would configure it any more: leave "
            "consul_source as it was, or retire the host first; nothing was changed"
        )
    if known.consul_refused:
        raise DeployError(f"{me.name}: {known.consul_problem} (consul_token); nothing was changed")
    if known.consul_node not in ("", me.node):
        raise DeployError(
            f"{me.name}: its Consul agent calls it {known.consul_node}, not {me.node}: set beside "
            f"it in the inventory: consul_node = {known.consul_node!r}; nothing was changed"
        )


def _record(me: Host, known: HostState) -> set[str]:
    """What the host's record should name; of a retired host what is there of ours."""
    return wanted(me) | known.belongings.ours


def _lacks(me: Host, known: HostState) -> bool:
    record, there = _record(me, known), known.belongings
    ports = {instance.port for instance in me.instances}
    is_known = there.identity is not None and there.identity.layout == LAYOUT
    fine = is_known and record <= there.made and ports <= there.guards
    return bool(record) and not fine


@operation()
def mark(here: Here, servers: bool) -> Generator[Any, None, None]:
    """Write on a host whose it is and what on it is the fleet's, before any of that is made.

    :param servers: whether it is the turn of the Consul servers, one after the other: of two first
        deploys at the same moment the second stops at the first of them
    """
    me, run = here.me, here.run
    ours = settled(run)
    if me.name not in ours.unmarked or _serves(run.fleet, me.name) != servers:
        host.noop("it says whose it is")
        return
    lost = sorted(run.pyinfra.failed & {each.name for each in run.fleet.consul_servers})
    if ours.is_new and lost and run.pyinfra.is_executing:
        yield fail(f"{me.name}: left alone, because the fleet has no {', '.join(lost)}")
        return
    yield from program.python(here)
    identity = ours.identity
    made = sorted(_record(me, here.known))
    ports = [f"--port={instance.port}" for instance in me.instances]
    words = (identity.fleet, identity.id, str(LAYOUT), *made, *ports)
    yield program.command(here, "mark", *words)
    here.changed()
