"""What a deploy has still to do for a fleet to be closed. None of it is a difference."""

from collections.abc import Callable, Iterator, Sequence

from uwsgi_consul_fleet.consul.catalog import Node
from uwsgi_consul_fleet.inventory.model import Fleet
from uwsgi_consul_fleet.secrets import store
from uwsgi_consul_fleet.verify.hosts import Found

LAST = 3  # the round in which agents take nothing else any more: see operations/consul/rounds.py


def of(
    fleet: Fleet, found: Found, nodes: Sequence[Node], is_open: Callable[[], bool]
) -> Iterator[str]:
    """A line for each; nothing for a part of a fleet, and where Consul is not the fleet's.

    :param found: what its hosts said
    :param nodes: those in the catalog
    :param is_open: whether services can be looked up without a token
    """
    if fleet.is_part or not fleet.brings_consul:
        return
    rounds = {each.host.name: each.round for each in found.agents if each.round is not None}
    reached = min(rounds.values(), default=LAST)
    if reached < LAST:
        yield _not_closed(fleet, rounds, reached, found, nodes)
    elif rounds and is_open():
        yield _looked_up(fleet)
    if owed := _owed(fleet):
        yield f"not replaced everywhere yet: {', '.join(owed)}; the next deploy goes on with that"


def _not_closed(
    fleet: Fleet, rounds: dict[str, int], reached: int, found: Found, nodes: Sequence[Node]
) -> str:
    behind = sorted(name for name, its in rounds.items() if its == reached)
    where = f" on {', '.join(behind)}" if len(behind) < len(rounds) else ""
    mine = {each.node for each in fleet.hosts}
    reasons = [
        ("can't be reached", found.unreachable),
        ("does not answer", [each.name for each in nodes if each.name in mine and not each.alive]),
        ("is in no inventory here", [each.name for each in nodes if each.name not in mine]),
    ]
    why = [f"{', '.join(sorted(them))} {what}" for what, them in reasons if them]
    told = f"{'; '.join(why)}, which must be mended first; then deploy" if why else "deploy"
    return (
        f"access control and encryption are not complete: round {reached} of {LAST}{where}; {told} "
        "again"
    )


def _looked_up(fleet: Fleet) -> str:
    said = "programs without a token may look up services"
    missing = fleet.unlisted
    listed = f"until each application sets app_discovers: missing in {', '.join(missing)}"
    if fleet.dns:
        said += ", since dns = True; from Consul 1.17 on a deploy ends that"
        return f"{said}; where a version before 0.5 served, also {listed}" if missing else said
    return f"{said} {listed}" if missing else f"{said}; the next deploy ends that"


def _owed(fleet: Fleet) -> list[str]:
    secrets = next(filter(None, map(store.load, fleet.hosts)), None)
    if secrets is None:
        return []
    before = {
        "the gossip key": secrets.gossip_before,
        "tokens": secrets.seed_before,
        "the tokens of the secrets that were lost": secrets.recovering,
        "the certificate authority": secrets.ca_before,
    }
    return [what for what, value in before.items() if value]
