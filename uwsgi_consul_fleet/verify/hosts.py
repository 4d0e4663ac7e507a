"""What each host says of itself: its Consul agent, and the plugin of each of its applications."""

from dataclasses import dataclass

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify import agents, plugins
from uwsgi_consul_fleet.verify.agents import Agent
from uwsgi_consul_fleet.verify.comparison import Difference


@dataclass(frozen=True)
class Found:
    """Of all hosts: what is wrong with them, the agents that are the fleet's own, and the names of
    hosts that could not be asked."""

    differences: tuple[Difference, ...]
    agents: tuple[Agent, ...]
    unreachable: tuple[str, ...]


def ask(fleet: Fleet) -> Found:
    """Ask all hosts, side by side, each by one connection; of a part of the fleet only its own."""
    hosts = [
        each
        for each in fleet.active
        if each.applications or (each.brings_consul and not fleet.is_part)
    ]
    with ssh.side_by_side(len(hosts)) as pool:
        found = pool.map(_ask, hosts)
    return Found(
        # Applications of one host have the same to say.
        tuple(dict.fromkeys(each for one in found for each in one.differences)),
        tuple(each for one in found for each in one.agents),
        tuple(each for one in found for each in one.unreachable),
    )


def _ask(host: Host) -> Found:
    found: list[Difference] = []
    its: list[Agent] = []
    try:
        with ssh.connect(host) as connection:
            if host.brings_consul:
                its.append(agents.ask(connection, host))
                found += agents.differences(its[0])
            for each in host.applications:
                found += plugins.check(connection, each)
    except FleetError as error:
        # What it has to say of its Consul is told by the others, too.
        if host.applications:
            found.append(Difference("unreachable", f"node {host.name}", str(error)))
        return Found(tuple(found), tuple(its), (host.name,))
    return Found(tuple(found), tuple(its), ())
