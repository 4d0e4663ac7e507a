"""The packet filter of each host, as it should be before anything new listens or joins."""

import shlex
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.inventory.model import AppHost, Host
from uwsgi_consul_fleet.operations import left_out, packages
from uwsgi_consul_fleet.operations.files import RemoteFile, fail
from uwsgi_consul_fleet.operations.firewall import rules
from uwsgi_consul_fleet.operations.firewall.rules import FLEET
from uwsgi_consul_fleet.operations.run import Here, Run
from uwsgi_consul_fleet.operations.state import RUNNING, HostState, Member

HERE = Path(__file__).parent
CLOSE, OPEN = ((HERE / name).read_text() for name in ("firewall.sh", "open.sh"))
SERVICE = "uwsgi-consul-fleet-firewall.service"
UNIT = RemoteFile(f"/etc/systemd/system/{SERVICE}", (HERE / "firewall.service.j2").read_text())
FOLDER = "/etc/uwsgi-consul-fleet/firewall"


@operation()
def guard(here: Here, at_end: bool = False) -> Generator[Any, None, None]:
    """Let in who should be, and nobody else.

    :param at_end: whether hosts that retire have left; before that they are let in
    """
    me, known = here.me, here.known
    is_new = here.run.pyinfra.is_executing and me.name in here.run.once(_around).new
    if is_new and (why_not := here.run.once(_let_in)):
        yield fail(f"{me.name}: left as it was: {why_not}")
        return
    wanted = _wanted(here, at_end) if me.is_member and me.settings.firewall else {}
    if not wanted.get(FLEET):
        goes = me.is_member or (at_end and me.is_retired and not here.run.fleet.is_part)
        if goes and (UNIT.path in known.files or known.filters):
            yield StringCommand("sh", "-c", QuoteString(OPEN), "open")
            here.changed()
        host.noop("nothing is guarded on this host")
        return
    if _is_so(known, wanted):
        host.noop("the packet filter is as it should be")
        return
    if "nftables" not in known.packages:
        yield packages.install("nftables")
    yield StringCommand(*map(QuoteString, _words(wanted)))
    here.changed()


def _words(files: Mapping[str, str]) -> list[str]:
    pairs = (word for pair in sorted(files.items()) for word in pair)
    return ["sh", "-c", CLOSE, "firewall", str(UNIT.content), *pairs]


def _there(known: HostState) -> set[str]:
    """The files of the packet filter that a host has, by their names."""
    paths = (path.rpartition("/") for path in known.files)
    return {name for folder, _, name in paths if folder == FOLDER and name.endswith(".nft")}


def _is_so(known: HostState, wanted: Mapping[str, str]) -> bool:
    files = [RemoteFile(f"{FOLDER}/{name}", text) for name, text in wanted.items() if text]
    gone = {name for name, text in wanted.items() if not text}
    return (
        all(known.files.get(file.path) == file.state for file in [UNIT, *files])
        and not gone & _there(known)
        and f"{FOLDER}/all" in known.files
        and known.units.get(SERVICE) == RUNNING
        and {rules.mark(text) for text in wanted.values() if text} <= known.filters
    )


def _wanted(here: Here, at_end: bool) -> dict[str, str]:
    """The files of a host, '' for one that is to go. What another inventory has put there for an
    application that this one does not know is not among them, and stays."""
    me, known, fleet = here.me, here.known, here.run.fleet
    found = {rules.application(its.app): _of_application(its, here) for its in me.applications}
    there = _there(known) - {FLEET}
    for app in {*fleet.services} - {*known.applications}:  # those that are there serve
        if rules.application(app) in there:
            found.setdefault(rules.application(app), "")
    if me.brings_consul or any(found.values()) or there - {*found}:
        found[FLEET] = rules.of_fleet(_hosts(here, at_end), me.brings_consul)
    return found


def _of_application(its: AppHost, here: Here) -> str:
    """Its ports are also those of releases that one may go back to, as long as no other application
    has them."""
    clients, known = its.settings.app_clients, here.known
    if clients is None:
        return ""
    others = {each.port for each in here.me.instances if each.service != its.app}
    kept = known.applications.get(its.app, set()) | {
        each["port"]
        for generation in known.of(its.app).generations.values()
        for each in generation.get("instances", ())
    }
    ports = {each.port for each in its.instances} | kept - others
    return rules.of_application(its.app, ports, clients)


# --- Who is let in -------------------------------------------------------------------


@dataclass(frozen=True)
class Around:
    """What a run knows of all hosts: ``addresses`` of those that it reached, by their names;
    ``members`` of the cluster, as its servers say; ``new`` hosts, which these do not know, or not
    by their address; and of those that --limit leaves out where there is somebody new, how they
    look, None where they can't be asked."""

    addresses: Mapping[str, frozenset[str]]
    members: Mapping[str, Member]
    new: tuple[str, ...]
    left_out: Mapping[str, HostState | None]


def _around(run: Run) -> Around:
    reached = [each for each in run.fleet.hosts if each.name in run.pyinfra.connected]
    states = {each.name: run.state_of(each.name) for each in reached}
    members = _members(states.values())
    at = {address for member in members.values() for address in member.addresses}
    new = tuple(
        each.name
        for each in reached
        if each.is_member and each.brings_consul
        if not states[each.name].consul_running or (at and each.address not in at)
    )
    others = run.once(left_out.ask) if new else {}
    return Around(
        {each.name: _addresses(each, states[each.name]) for each in reached},
        {**_members(filter(None, others.values())), **members},
        new,
        others,
    )


def _members(states: Iterable[HostState]) -> dict[str, Member]:
    return {name: member for its in states for name, member in its.consul_members.items()}


def _addresses(me: Host, known: HostState) -> frozenset[str]:
    """From which a host may come: what its agent sends need not come from the address to which it
    is bound, where its interface has others, or the way to the other host is not by that."""
    device, version = known.addresses.get(me.address), ip_address(me.address).version
    same = {each for each, its in known.addresses.items() if its == device} | known.sources
    return frozenset({me.address} | {each for each in same if ip_address(each).version == version})


def _hosts(here: Here, at_end: bool) -> dict[str, frozenset[str]]:
    """The addresses of those who may speak to a host, by their names: hosts of the inventory, in
    reach or not, and whoever else is in the cluster."""
    run, admits, around = here.run, here.known.admits, here.run.once(_around)
    found = {
        each.name: around.addresses.get(each.name)
        or frozenset({each.address, *admits.get(each.name, ())})
        for each in run.fleet.active
    }
    if not here.me.brings_consul:
        return found
    retired = {each.name for each in run.fleet.retired}
    left = retired & run.pyinfra.about - run.pyinfra.failed if at_end else set()
    # Where no server told who is in the cluster, it is whoever was.
    before = {name: Member(its, alive=True) for name, its in admits.items() if name not in found}
    for name, member in (around.members or before).items():
        moved = name in found and not at_end
        stays = name not in retired or (member.alive and name not in left)
        if moved or (name not in found and stays):
            found[name] = found.get(name, frozenset()) | {*member.addresses}
    return found


def _let_in(run: Run) -> str:
    """Have those that --limit leaves out let in who is new; why one does not, or ''."""
    around = run.once(_around)
    new = {name: around.addresses[name] for name in around.new}
    lost = run.pyinfra.failed & {each.name for each in run.fleet.active}
    for name, known in around.left_out.items():
        if known is None:
            lost |= {name}
        elif known.admits:  # those of a version before let everybody in
            hosts = {
                each: frozenset(its) | new.get(each, set()) for each, its in known.admits.items()
            }
            text = rules.of_fleet({**new, **hosts}, consul=True)
            if not _is_so(known, {FLEET: text}) and (
                why_not := left_out.tell(run.fleet.host(name), shlex.join(_words({FLEET: text})))
            ):
                return f"{name} does not let it into the cluster: {why_not}; deploy without --limit"
    if lost and around.members:  # on a first deploy they let in everybody
        logger.warning(
            f"    Warning: {', '.join(sorted(lost))} can't be reached, and does not let "
            f"{', '.join(new)} in before a deploy reaches it"
        )
    return ""
