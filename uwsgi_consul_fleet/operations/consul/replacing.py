"""Secrets that are replaced while everything runs.

What is to be replaced has a `before` in the document (secrets/document.py). Until every member
knows the new one, both hold; a run that finds them so goes on with it, whoever began it.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any, get_args

from pyinfra import host, logger
from pyinfra.api import operation

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations import program
from uwsgi_consul_fleet.operations.consul import acl, rounds, secrets
from uwsgi_consul_fleet.operations.consul.secrets import authorities
from uwsgi_consul_fleet.operations.files import RemoteFile, fail
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Here, Run
from uwsgi_consul_fleet.operations.state import Acl
from uwsgi_consul_fleet.secrets import certificates, tokens
from uwsgi_consul_fleet.secrets.document import Kind, Secrets, fingerprint

ENDS = 60.0  # seconds for what serves to register itself with another token


def expect(here: Here) -> None:
    """:raises DeployError: where secrets can't be replaced now, or are not here"""
    run = here.run
    lost = _wanted(run) == RECOVER
    if not lost:
        secrets.expect(here)
    if why_not := _why_not_now(run):
        goes_on = "then, invoke secrets.recover once more" if lost else "nothing was changed"
        raise DeployError(f"secrets are not replaced now: {why_not}; {goes_on}")
    if not secrets.speaker(run):
        raise DeployError("no Consul server with access control can be asked; deploy first")


RECOVER = "recover"


def _wanted(run: Run) -> str:
    """Which secrets were asked for, as `invoke secrets.rotate` says it."""
    return str(run.pyinfra.typed.get("rotate") or "")


def intend(here: Here) -> None:
    """Have this run's document say what is to be replaced: before the run's first operation, since
    the lock is to be held with what holds at the end."""
    here.run.once(_intend)


def _intend(run: Run) -> bool:
    its, asked = secrets.kept(run), _wanted(run).split(",")
    made = its.secrets
    for kind in get_args(Kind):
        made = made.rotated(kind) if kind in asked and not its.is_new else made
    its.intend(made)
    return True


@operation()
def begin(here: Here) -> Generator[Any, None, None]:
    """Keep the document that says it: what comes next is safe to be interrupted."""
    if here.me.name == secrets.speaker(here.run) and here.run.pyinfra.is_executing:
        try:
            secrets.kept(here.run).keep()
        except FleetError as error:
            yield fail(str(error))
    host.noop("the document says it")


def owe_key(here: Here) -> Generator[Any, None, None]:
    """Who retires knows the key of the gossip: it is replaced, in this run or the next one."""
    if here.run.pyinfra.is_executing and secrets.acl(here.run):
        its = secrets.kept(here.run)
        try:
            its.become(its.secrets.rotated("gossip"))
        except FleetError as error:
            yield fail(f"{here.me.name}: still in the cluster: {error}")


def _why_not_now(run: Run) -> str:
    """Why not every member can be told of a new secret, or ''."""
    if run.pyinfra.is_executing:
        secrets.ask_again(run)  # who has left since
    if down := rounds.down(run):
        return f"the agent of {', '.join(down)} is down; start it, or move it to retired"
    return rounds.why_not_all(run)


def replace(here: Here) -> None:
    """Whatever is to be replaced, and can be; of agents that run, without a restart."""
    trust(name="Consul: believe the new certificate authority", here=here)
    rekey(name="Consul: replace the key of the gossip", here=here)
    number = rounds.of(here.run).first
    acl.make_tokens(name="Consul: make tokens", here=here, number=number)
    tell_agent(name="Consul: tell the agent its secrets", here=here)
    apps = {each.me.app: each for each in here.applications}
    for service in host.loop(here.run.fleet.services):  # type: ignore[no-untyped-call]
        if service in apps:
            name = f"{here.run.title(service)}: bring its token"
            secrets.bring_token(name=name, here=apps[service])


@operation()
def trust(here: Here) -> Generator[Any, None, None]:
    """The new authority is believed beside the one that it replaces, before anybody shows it."""
    yield from _told(here, [authorities(here.run)] if _has_secrets(here) else [])


def _has_secrets(here: Here) -> bool:
    return here.me.is_member and here.known.consul_round > 0


def _told(here: Here, files: Iterable[RemoteFile]) -> Generator[Any, None, None]:
    """Write these and tell the agent, where one of them is not there so, or not read yet."""
    unread = _has_secrets(here) and secrets.UNREAD in here.known.files
    commands = secrets.to_read(here, files)
    yield from commands
    if commands or unread:
        yield program.command(here, "consul", "reload")
        here.changed()
    else:
        host.noop("it knows them")


@operation()
def rekey(here: Here) -> Generator[Any, None, None]:
    """Let the cluster's gossip take the new key, and forget the one before."""
    run, its = here.run, secrets.kept(here.run).secrets
    if here.me.name != secrets.speaker(run) or not its.gossip_before:
        host.noop("no key is to be replaced by it")
        return
    if why_not := _why_not_now(run):
        logger.warning(f"    Warning: the key of the gossip stays as it is: {why_not}")
        return
    said = {"key": its.gossip, "before": its.gossip_before}
    yield acl.telling(here, said, "consul", "rekey")
    secrets.ask_again(run)


@operation()
def tell_agent(here: Here) -> Generator[Any, None, None]:
    """What was replaced, to the agent of each host; nothing is restarted."""
    wanted = (secrets.of_tls, secrets.of_agent, secrets.of_dns) if _has_secrets(here) else ()
    yield from _told(here, [file for each in wanted for file in each(here)])


# --- What nobody uses any more -------------------------------------------------------


def is_owed(run: Run) -> bool:
    """Whether something is being replaced, or is to be when hosts retire in this run; the same for
    all hosts."""
    return run.once(_is_owed)


def _is_owed(run: Run) -> bool:
    its = secrets.kept(run).secrets
    replaced = its.gossip_before or its.seed_before or its.recovering or its.ca_before
    return bool(replaced or run.fleet.retired or _gone(run))


def _gone(run: Run) -> list[str]:
    """The accessors of tokens that were ours and are nobody's any more. What somebody else made for
    other hosts, with these secrets or others, is not among them."""
    known, its = secrets.acl(run), secrets.kept(run).secrets
    if known is None:
        return []
    stays = {each.accessor for each in acl.wanted(run, rounds.LAST).tokens}
    if its.recovering:  # what was made with the secrets that were lost
        apps, hosts = map(tokens.app_of, known.policies), run.fleet.whole.hosts
        others = [f"app/{host.node}/{app}" for app in apps if app for host in hosts]
        stays |= {tokens.accessor(its.seed, name) for name in others}  # of another inventory here
        return sorted(known.made - stays)
    seeds = [*filter(None, (its.seed, its.seed_before))]
    names = [*tokens.OF_FLEET, *_names_of_hosts(run, known)]
    found = {tokens.accessor(seed, name) for seed in seeds for name in names}
    return sorted(found & {*known.tokens} - stays)


def _names_of_hosts(run: Run, known: Acl) -> Iterator[str]:
    """What tokens of hosts are called that this run can tell something about; not those of an
    application that is there and in no inventory here."""
    listed = {*run.fleet.whole.services}
    apps = listed | {*map(tokens.app_of, known.policies)} - {""}
    for each in acl.reached(run):
        yield f"node/{each.node}"
        strange = {*run.state_of(each.name).applications} - listed
        yield from (f"app/{each.node}/{app}" for app in apps - strange)
    lost = run.pyinfra.failed | run.pyinfra.forgiven
    for each in run.fleet.retired:
        if each.name in lost:
            yield from (f"node/{each.node}", *(f"app/{each.node}/{app}" for app in apps))


def conclude(here: Here) -> None:
    """What nobody uses any more holds no more."""
    settle(name="Consul: forget secrets that nobody uses", here=here)
    tell_agent(name="Consul: tell the agent which secrets are left", here=here)


@operation()
def settle(here: Here) -> Generator[Any, None, None]:
    """Forget what nobody uses any more."""
    run, its = here.run, secrets.kept(here.run)
    if here.me.name != secrets.speaker(run) or not run.pyinfra.is_executing:
        host.noop("another server forgets")
        return
    why_not = _why_not_now(run)
    if gone := _gone(run):
        if why_not := why_not or _still_used(run, gone):
            logger.warning(f"    Warning: tokens that were replaced still hold: {why_not}")
        else:
            policies = [tokens.node_policy(each.node) for each in run.fleet.retired]
            said = {"gone": gone, "gone_policies": policies}
            yield acl.telling(here, {**acl.NOTHING, **said}, "consul", "acl")
            secrets.ask_again(run)
    try:
        its.become(_settled(run, its.secrets))
    except FleetError as error:
        yield fail(str(error))


def _still_used(run: Run, gone: Iterable[str]) -> str:
    """By whom, or ''."""
    deadline = time.monotonic() + ENDS
    while users := [each.name for each in run.fleet.active if _uses(run, each, {*gone})]:
        if time.monotonic() > deadline:
            return f"{', '.join(users)} has services that were registered with them"
        time.sleep(1)
    return ""


def _uses(run: Run, me: Host, gone: set[str]) -> bool:
    """Whether something of a host is stored with one of these, or its agent has one."""
    return not secrets.has_its_own(Here(run, me)) or bool(
        {*acl.stored(run, me)["accessors"]} & gone
    )


def _settled(run: Run, its: Secrets) -> Secrets:
    """Without what was replaced everywhere."""
    keys = {server.consul_keys for _, server in secrets.servers(run)}
    if its.gossip_before and keys == {(fingerprint(its.gossip),)}:
        its = its.settled("gossip")
    if (its.seed_before or its.recovering) and secrets.acl(run) and not _gone(run):
        its = its.settled("tokens")
    if its.ca_before and _all_show(run, its.ca):
        its = its.settled("ca")
    return its


def _all_show(run: Run, authority: str) -> bool:
    active = {each.name for each in run.fleet.active}
    shown = [run.state_of(name).certificate for name in active & run.pyinfra.connected]
    return len(shown) == len(active) and all(
        each and certificates.is_by(each, authority) for each in shown
    )
