"""May these Consul servers come and go? Decided before anything is touched; no network here.

A change needs more than half of the servers alive, dead ones counted: a cluster that has lost
its quorum can't even remove the server that it has lost.
"""

from collections.abc import Iterable, Mapping

from uwsgi_consul_fleet.errors import FleetError


class QuorumError(FleetError):
    """The change would lose the quorum; the line says which step of it and what to do."""


def check(peers: Mapping[str, bool], joining: Iterable[str], leaving: Iterable[str]) -> None:
    """Go through the change in the order in which the deploy makes it: first those that join,
    then the dead, then the living, one at a time.

    :param peers: today's servers, and whether each is alive
    :param joining: new ones, all alive
    :param leaving: those to be removed
    :raises QuorumError: at the first step after which too few would be alive to agree
    """
    new = [name for name in joining if name not in peers]
    going = [name for name in leaving if name in peers]
    if not new and not going:
        return
    if not set(peers) - set(going):
        raise QuorumError(
            f"consul_servers: none of today's Consul servers ({_names(peers)}) is among them, and "
            "the catalog would go with the last; keep one of them, deploy, and take it out with "
            "the next deploy; nothing was changed"
        )
    if not _has_quorum(peers):
        raise QuorumError(
            f"consul_servers: no change is possible now: {_need(peers)}; start "
            f"{_names(_dead(peers))} first; nothing was changed"
        )
    voters = dict(peers) | dict.fromkeys(new, True)
    for name in sorted(going, key=lambda name: voters[name]):
        del voters[name]
        if not _has_quorum(voters):
            dead = _names(_dead(voters))
            raise QuorumError(
                f"{name}: can't be removed from the Consul servers while {dead} is down: of "
                f"{_names(voters)}, {_need(voters)}; start {dead} first, or move it to retired "
                "as well; nothing was changed"
            )


def check_restart(peers: Mapping[str, bool], name: str) -> None:
    """May this server be restarted? Where all are alive it may: one alone has no other way.

    :param peers: today's servers, and whether each is alive
    :raises QuorumError: where too few would be alive to agree meanwhile
    """
    dead = _dead(peers)
    if dead and _has_quorum(peers) and not _has_quorum({**peers, name: False}):
        raise QuorumError(
            "its Consul server can't be restarted while "
            f"{_names(dead)} is down: of "
            f"{_names(peers)}, {_need({**peers, name: False})}; start {_names(dead)} first, or "
            "move it to retired"
        )


def _has_quorum(voters: Mapping[str, bool]) -> bool:
    return sum(voters.values()) >= _majority(voters)


def _majority(voters: Mapping[str, bool]) -> int:
    return len(voters) // 2 + 1


def _need(voters: Mapping[str, bool]) -> str:
    alive = sum(voters.values())
    return f"{alive} of {len(voters)} alive, and it takes {_majority(voters)} to agree"


def _dead(voters: Mapping[str, bool]) -> list[str]:
    return [name for name, alive in voters.items() if not alive]


def _names(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
