"""The Consul cluster as it is now, and what this run changes about its servers."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations import program
from uwsgi_consul_fleet.operations.consul import quorum
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Run

UNIT = "/etc/systemd/system/consul.service"
SEEN = 5.0  # seconds for an agent that is back to be seen by the others


def host_of(address: str) -> str:
    """Of HOST:PORT, where IPv6 has brackets."""
    return address.rpartition(":")[0].strip("[]")


@dataclass(frozen=True)
class Peer:
    """A Consul server as Raft knows it; ``address`` is HOST:PORT."""

    id: str
    node: str
    address: str
    leader: bool
    voter: bool

    def is_on(self, host: Host) -> bool:
        return self.node == host.name or host_of(self.address) == host.address


@dataclass(frozen=True)
class Cluster:
    """How one agent sees the cluster; ``members`` are nodes and whether each is alive. Where it
    could not say everything, ``problem`` says why: what is missing then is not gone."""

    peers: tuple[Peer, ...] = ()
    members: Mapping[str, bool] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()
    problem: str = ""

    def is_alive(self, name: str) -> bool:
        return self.members.get(name, False)

    def knows(self, name: str) -> bool:
        """Whether the catalog has this node."""
        return name in self.nodes

    def peer(self, host: Host) -> Peer | None:
        """This host's server; by its address too, for a node that serf has forgotten."""
        return next((peer for peer in self.peers if peer.is_on(host)), None)


def seen_by(run: Run, name: str) -> Cluster:
    """How the agent of a host that was reached sees the cluster now, in one round trip."""
    return parse(program.said(run, run.fleet.host(name), "cluster"))


def parse(answer: str) -> Cluster:
    """
    :param answer: the host program's; '' where it has none
    """
    if not answer:
        return Cluster(problem="it could not be asked")
    found = json.loads(answer)
    peers = tuple(
        Peer(each["ID"], each["Node"], each["Address"], each["Leader"], each["Voter"])
        for each in found.pop("servers")
    )
    return Cluster(peers, nodes=frozenset(found.pop("nodes")), **found)


@dataclass(frozen=True)
class Change:
    """What this run does about the servers.

    ``peers`` are those of today, by name; none where Consul was never deployed, or where nobody
    who knows them could be asked: then ``silent`` names the servers with data of a cluster, and
    why each could not. ``hung`` are those of them that run. ``leader`` is a peer, or ''.
    ``remover`` is one that stays, through which others are removed; it may be out of reach.
    """

    peers: frozenset[str] = frozenset()
    leader: str = ""
    joining: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    remover: str = ""
    silent: Mapping[str, str] = field(default_factory=dict)
    hung: frozenset[str] = frozenset()

    def not_asked(self) -> str:
        """Which servers could not be asked, and why, for the operator."""
        told = [f"{name}: {reason}" for name, reason in self.silent.items()]
        return f"its cluster could not be asked ({'; '.join(told)})"


def change(run: Run) -> Change:
    """Today's servers against those of the inventory; the same for each host of a run.

    :raises DeployError: for a change that would lose the quorum, or the catalog
    """
    return run.once(_change) if run.fleet.brings_consul else Change()


def _change(run: Run) -> Change:
    addresses, asked, led = _ask_a_server(run)
    peers = frozenset(_name(run, address) for address in addresses)
    if not peers:
        return _silent(run)
    _refuse_moved(run, peers)
    wanted = frozenset(host.name for host in run.fleet.consul_servers)
    former = [host for host in run.fleet.hosts if host.name in peers - wanted]
    leader = run.state_of(asked).consul_leader
    found = Change(
        peers,
        _name(run, leader) if leader else "",
        joining=(wanted - peers) & run.pyinfra.connected,
        # A host that is not reached and not retired stays what it is until it is reached again.
        leaving=frozenset(
            host.name
            for host in former
            if (host.is_member and host.name in run.pyinfra.connected)
            or host in retired_in_run(run)
        ),
        remover=asked if asked in wanted else "",
    )
    if found.joining or found.leaving:
        _refuse(run, found, asked, led)
    return found


def _silent(run: Run) -> Change:
    """Nobody knows the servers: there may have been none, or they can't be asked now."""
    silent, hung = {}, set()
    for host in run.fleet.hosts:
        if host.name not in run.pyinfra.connected:
            continue
        known = run.state_of(host.name)
        # A host that was retired may have kept its data; it is no server of this fleet.
        ours = (host.is_consul_server and host.is_member) or UNIT in known.files
        if known.consul_problem and ours:
            silent[host.name] = known.consul_problem
            if known.consul_running:
                hung.add(host.name)
    return Change(silent=silent, hung=frozenset(hung))


def _refuse_moved(run: Run, peers: frozenset[str]) -> None:
    """A server under another address looks like a new one, which would begin without its data."""
    strangers = peers - {host.name for host in run.fleet.hosts}
    for server in run.fleet.consul_servers:
        if not strangers or server.name in peers or server.name not in run.pyinfra.connected:
            continue
        if run.state_of(server.name).consul_peers:
            raise DeployError(
                f"{server.name}: its Consul server is known as {', '.join(sorted(strangers))}, and "
                f"its address is {server.address} now: that can't be changed in place. Make "
                "another host a Consul server first, and take this one out; nothing was changed"
            )


def retired_in_run(run: Run) -> list[Host]:
    """Retired hosts, reached or not, that this run is about: not those that --limit leaves out."""
    about = run.pyinfra.about
    return [host for host in run.fleet.retired if host.name in about]


def _ask_a_server(run: Run) -> tuple[tuple[str, ...], str, bool]:
    """The servers by address, who said so, and whether they have a leader.

    Those that stay are asked first, and who follows a leader knows best: a server that was
    just removed still counts itself.
    """
    hosts = sorted(run.fleet.hosts, key=lambda host: not (host.is_consul_server and host.is_member))
    leaderless: tuple[tuple[str, ...], str, bool] = (), "", False
    agent = ""
    for name in (host.name for host in hosts if host.name in run.pyinfra.connected):
        known = run.state_of(name)
        if known.consul_peers and known.consul_leader:
            return known.consul_peers, name, True
        if known.consul_peers and not leaderless[0]:
            leaderless = known.consul_peers, name, False
        if known.consul_running and known.python and not known.consul_problem:
            agent = agent or name
    if agent and not leaderless[0]:
        # No server is among this run's hosts: a client agent knows them too.
        peers = seen_by(run, agent).peers
        return tuple(p.address for p in peers), agent, any(p.leader for p in peers)
    return leaderless


def _name(run: Run, address: str) -> str:
    """Whose address it is, as the inventory says; a server that is not in it keeps it as name."""
    found = host_of(address)
    return next((host.name for host in run.fleet.hosts if host.address == found), found)


def _refuse(run: Run, change: Change, asked: str, led: bool) -> None:
    seen = seen_by(run, asked)
    if not seen.peers:
        raise DeployError(
            f"consul_servers: no change is possible now: {asked}: {seen.problem}; "
            "nothing was changed"
        )
    try:
        quorum.check(_alive(run, change, seen), change.joining, change.leaving)
    except quorum.QuorumError as error:
        raise DeployError(str(error)) from error
    if not led:
        raise DeployError(
            f"consul_servers: no change is possible now, {asked} does not know a leader; look at "
            "it with: systemctl status consul; nothing was changed"
        )
    demoted = [name for name in sorted(change.leaving) if not run.fleet.host(name).is_retired]
    if demoted and not change.remover:
        raise DeployError(
            f"{demoted[0]}: only a Consul server that stays can remove it, and none of those is "
            "among this run's hosts; run without --limit, or look at why they can't be reached"
        )


def _alive(run: Run, change: Change, seen: Cluster) -> dict[str, bool]:
    nodes = {_name(run, peer.address): peer.node for peer in seen.peers}
    return {name: seen.is_alive(nodes.get(name, name)) for name in sorted(change.peers)}


def remover(run: Run) -> str:
    """The server through which others are removed; '' where there is none in reach."""
    name = change(run).remover
    return name if name in run.pyinfra.connected else ""


def why_not_restart(run: Run, me: Host) -> str:
    """Looks right before a server is restarted: why the others could not agree meanwhile, or ''.

    One that was just restarted may take a moment to be seen.
    """
    deadline = time.monotonic() + (SEEN if run.pyinfra.is_executing else 0)
    while True:
        seen = seen_by(run, me.name)
        voters = (peer for peer in seen.peers if peer.voter)
        peers = {_name(run, peer.address): seen.is_alive(peer.node) for peer in voters}
        try:
            quorum.check_restart(peers, me.name)
        except quorum.QuorumError as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(0.5)
        else:
            return ""


def why_not(run: Run, me: Host, by: str) -> str | None:
    """Looks again, right before a living server is removed: why that would not be safe.

    Servers that were to join must vote by now.

    :param by: whose agent is asked, a server
    """
    seen = seen_by(run, by)
    if not seen.peers:
        return f"{me.name}: still a Consul server: {by}: {seen.problem}; deploy again"
    for name in sorted(change(run).joining):
        peer = seen.peer(run.fleet.host(name))
        if peer is None or not peer.voter:
            return f"{me.name}: still a Consul server, because {name} has no vote yet; deploy again"
    peers = {_name(run, peer.address): seen.is_alive(peer.node) for peer in seen.peers}
    try:
        quorum.check(peers, (), [me.name])
    except quorum.QuorumError as error:
        return str(error)
    return None
