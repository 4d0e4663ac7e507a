"""In how many rounds a living cluster gets access control and encryption, and which comes next.

What agents refuse must be understood by all of them before the first one refuses it, so each round
is one restart of every agent: in the first they can speak encrypted and know tokens, in the second
they do, in the third they take nothing else. A new cluster begins with the third. The round of a
cluster is read off its agents, never from a file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra import logger

from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations import left_out
from uwsgi_consul_fleet.operations.consul.cluster import UNIT
from uwsgi_consul_fleet.operations.run import Here, Run
from uwsgi_consul_fleet.operations.state import HostState, Member

LAST = 3
CA = "/etc/uwsgi-consul-fleet/tls/ca.pem"
# With its key: to replace one of two files would leave an agent with halves of two.
NODE = "/etc/uwsgi-consul-fleet/tls/node.pem"


def settings(me: Host, number: int) -> dict[str, Any]:
    """What an agent's configuration has of it in a round; keys that Consul 1.8 and today's take."""
    if not number:
        return {}
    return {
        # A second datacenter then restarts nothing.
        "primary_datacenter": me.settings.datacenter,
        "acl": {
            "enabled": True,
            "default_policy": "deny" if number == LAST else "allow",
            # What is known goes on while no server answers.
            "down_policy": "extend-cache",
        },
        "ca_file": CA,
        "cert_file": NODE,
        "key_file": NODE,
        "verify_outgoing": number >= 2,
        "verify_server_hostname": number >= 2,
        "verify_incoming_rpc": number == LAST,
        "encrypt_verify_outgoing": number >= 2,
        "encrypt_verify_incoming": number == LAST,
    }


@dataclass
class Rounds:
    """Through which a run takes the cluster: ``before`` the applications, and ``after`` them.

    ``first`` is the one in which it was. ``stopped`` says why the next one does not begin, once
    that is known.
    """

    first: int
    before: tuple[int, ...]
    after: tuple[int, ...] = ()
    stopped: str = ""

    @property
    def begins(self) -> bool:
        """Whether the cluster is new, or has been through all of them."""
        return self.first == LAST


def of(run: Run) -> Rounds:
    """The same for each host of a run."""
    return run.once(_rounds)


def _rounds(run: Run) -> Rounds:
    first = min((its.consul_round for its in _states(run) if UNIT in its.files), default=LAST)
    if first == LAST:
        return Rounds(LAST, (LAST,))
    if why_not := why_not_all(run):
        logger.warning(
            f"    Warning: Consul stays in round {first} of {LAST} to access control and "
            f"encryption: {why_not}"
        )
        return Rounds(first, (first,), stopped=why_not)
    return Rounds(first, tuple(range(first + 1, LAST)) or (first,), (LAST,))


def _states(run: Run) -> Iterable[HostState]:
    """Of the hosts that may be in the cluster; of those that --limit leaves out, where none of the
    others is."""
    reached = [
        run.state_of(each.name) for each in run.fleet.hosts if each.name in run.pyinfra.connected
    ]
    if any(UNIT in its.files for its in reached):
        return reached
    return [*reached, *filter(None, run.once(left_out.ask).values())]


def why_not_all(run: Run) -> str:
    """Why not every member can be told of something, or ''."""
    pyinfra, fleet = run.pyinfra, run.fleet
    active = {each.name for each in fleet.active}
    if others := active - pyinfra.about:
        return f"--limit leaves out {', '.join(sorted(others))}; deploy without it"
    if lost := active & pyinfra.failed:
        return f"{', '.join(sorted(lost))} can't be reached; mend that, or move it to retired"
    members = _members(run)
    known = {each.address for each in fleet.active}
    strange = {name for name, its in members.items() if not known & {*its.addresses}}
    retired = strange & {each.name for each in fleet.retired}
    if stays := strange - retired:
        return (
            f"{', '.join(sorted(stays))} is in the cluster and not in this inventory; add it, or "
            "let it leave (consul leave), and deploy again"
        )
    if retired:
        return f"{', '.join(sorted(retired))} has to leave first; deploy again"
    return ""


def down(run: Run) -> list[str]:
    """Whose agents do not answer, as a server says."""
    members = _members(run)
    alive = {address for its in members.values() if its.alive for address in its.addresses}
    found = {name for name, its in members.items() if not its.alive}
    # Newer versions of Consul call a server that fails one that has left, within seconds.
    for each in run.fleet.active if members else ():
        known = run.state_of(each.name) if each.name in run.pyinfra.connected else None
        if known and UNIT in known.files and each.address not in alive:
            found.add(each.name)
    return sorted(found)


def versions(run: Run) -> set[tuple[int, ...]]:
    """Of Consul, that members have, as a server says."""
    return {its.version for its in _members(run).values()}


def _members(run: Run) -> Mapping[str, Member]:
    reached = [each.name for each in run.fleet.hosts if each.name in run.pyinfra.connected]
    told = (run.state_of(name).consul_members for name in reached)
    return {name: member for each in told for name, member in each.items()}


def number(here: Here, wanted: int) -> int:
    """In which round a host's agent is to run, where that is the turn of ``wanted``: it never goes
    back, and does not go on while others are behind."""
    known = here.known
    there = known.consul_round if UNIT in known.files else 0
    if there < wanted and why_not_yet(here.run, wanted):
        return max(there, of(here.run).first)
    return max(there, wanted)


def why_not_yet(run: Run, wanted: int) -> str:
    """Why this round can't begin, or ''; what went wrong in the one before is known by now."""
    rounds = of(run)
    if not run.pyinfra.is_executing or wanted <= rounds.first:
        return ""
    if not rounds.stopped:
        stop(run, _behind(run, wanted - 1))
    return rounds.stopped


def _behind(run: Run, wanted: int) -> str:
    active = {each.name for each in run.fleet.active}
    if failed := active & run.pyinfra.failed:
        return f"{', '.join(sorted(failed))} failed"
    behind = [name for name in sorted(active) if run.state_of(name).consul_round < wanted]
    return f"{', '.join(behind)} is not in round {wanted} yet" if behind else ""


def stop(run: Run, why: str) -> None:
    """No further round begins in this run; '' for no reason to."""
    rounds = of(run)
    if why and not rounds.stopped:
        rounds.stopped = why
        logger.warning(
            f"--> Consul: access control and encryption are not complete: {why}; the next deploy "
            "goes on with them"
        )
