"""Who may do what in Consul: its tokens and policies, and whether what is registered has one."""

import json
import shlex
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.consul.access import access
from uwsgi_consul_fleet.host.consul import DNS_TOKEN
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.operations import left_out, program
from uwsgi_consul_fleet.operations.consul import rounds, secrets
from uwsgi_consul_fleet.operations.files import fail
from uwsgi_consul_fleet.operations.run import Here, Run
from uwsgi_consul_fleet.operations.state import Acl
from uwsgi_consul_fleet.secrets import tokens


def wanted(run: Run, number: int) -> tokens.Acl:
    """What Consul's access control should know.

    :param number: the round of the cluster
    """
    fleet = run.fleet.whole
    datacenter = fleet.hosts[0].settings.datacenter
    looks_up = _looks_up(run, fleet)
    names = _names(run, fleet)
    found = tokens.wanted(fleet, secrets.kept(run).secrets.seed, datacenter, looks_up, names)
    # Before that everybody may do everything, and who is allowed one thing may not do the others.
    # Nor is it taken back then: where the last round was interrupted, some agents deny.
    return found if number == rounds.LAST else found._replace(anonymous=None)


def _anonymous(run: Run) -> frozenset[str]:
    """The policies of who shows no token, as far as a server tells."""
    known = secrets.acl_beyond(run)
    return frozenset(known.anonymous if known else ())


def _looks_up(run: Run, fleet: Fleet) -> bool:
    """Whether programs that show no token may look services up: where that was so before there were
    tokens, until each application says what it looks up."""
    was_open = tokens.LOOKUPS in _anonymous(run) or not rounds.of(run).begins
    return was_open and bool(fleet.unlisted)


def _names(run: Run, fleet: Fleet) -> bool:
    """Whether DNS is to answer, and an agent has no token for it."""
    if not fleet.dns:
        return False
    versions = rounds.versions(run)
    still = tokens.NAMES in _anonymous(run) and not versions
    return still or any(each < DNS_TOKEN for each in versions)


# What `consul acl` is told where nothing is to be done.
NOTHING: Mapping[str, Any] = {
    "reset": False,
    "policies": {},
    "tokens": [],
    "anonymous": None,
    "gone": [],
    "gone_policies": [],
}


@operation()
def make_tokens(here: Here, number: int) -> Generator[Any, None, None]:
    """Whatever tokens and policies are missing or not as they should be.

    :param number: the round whose turn it is
    """
    me, run = here.me, here.run
    if why_not := rounds.why_not_yet(run, number):
        host.noop(why_not)
        return
    if not secrets.speaker(run):
        yield from _make_beyond(here)
        return
    if me.name != secrets.speaker(run):
        host.noop("another server is told of tokens")
        return
    # Made by a run whose answer got lost.
    mine = tokens.accessor(secrets.kept(run).secrets.seed, tokens.MANAGEMENT)
    lost = any(run.state_of(each.name).consul_bootstrap == mine for each in reached(run))
    should = wanted(run, number)
    if here.known.consul_acl is None:
        # Who may look services up today is told to who has one of these.
        first = _as_json(tokens.to_begin_with(should))
        yield telling(here, {**NOTHING, **first, "reset": lost}, "consul", "acl")
        secrets.ask_again(run)
        should = wanted(run, number)
    if _is_so(here.known.consul_acl, should):
        host.noop("Consul has every token")
        return
    yield telling(here, {**NOTHING, **_as_json(should), "reset": lost}, "consul", "acl")
    secrets.ask_again(run)


def _make_beyond(here: Here) -> Generator[Any, None, None]:
    """By a server that --limit leaves out, where hosts of this run have no tokens yet."""
    run = here.run
    mine = [each for each in reached(run) if each.is_member]
    others = [each for each in mine if not secrets.has_its_own(Here(run, each))]
    if not others or here.me != mine[0] or not (name := secrets.speaker(run, beyond=True)):
        host.noop("nobody is to be told of tokens")
        return
    known, should = run.once(left_out.servers)[name], wanted(run, rounds.of(run).first)
    if known and _is_so(known.consul_acl, should):
        host.noop("Consul has every token")
    elif run.pyinfra.is_executing:
        stdin = access(run.fleet.host(name), "management").stdin
        said = json.dumps({**NOTHING, **_as_json(should)}) + "\n"
        words = shlex.join([*host_program.carried(), "--access-stdin", "consul", "acl"])
        if why_not := left_out.tell(run.fleet.host(name), words, (stdin + said).encode()):
            yield fail(f"{here.me.name}: it gets no token: {why_not}")
        run.again(left_out.servers)


def reached(run: Run) -> list[Host]:
    return [each for each in run.fleet.hosts if each.name in run.pyinfra.connected]


def _as_json(should: tokens.Acl) -> dict[str, Any]:
    return {
        "policies": {name: its._asdict() for name, its in should.policies.items()},
        "tokens": [each._asdict() for each in should.tokens],
        "anonymous": should.anonymous,
    }


def _is_so(known: Acl | None, should: tokens.Acl) -> bool:
    return (
        known is not None
        and all(
            known.policies.get(name) == its.description for name, its in should.policies.items()
        )
        and all({*known.tokens.get(x.accessor, ())} == {*x.policies} for x in should.tokens)
        and (should.anonymous is None or _ours(known.anonymous) == {*should.anonymous})
    )


def _ours(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(tokens.PREFIX)}


def telling(here: Here, said: Mapping[str, Any], *words: str) -> StringCommand:
    """The program with the strongest token, which reads the rest behind it."""
    return program.command(here, *words, role="management", more=json.dumps(said) + "\n")


def stored(run: Run, me: Host) -> Mapping[str, Any]:
    """With which tokens the services and checks of an agent are stored (host/stored.py)."""
    its = secrets.kept(run).secrets
    may = {
        tokens.accessor(seed, f"app/{me.node}/{each.app}"): [each.app]
        for seed in filter(None, (its.seed, its.seed_before))
        for each in me.applications
    }
    answer = program.said(run, me, "stored", json.dumps({"may": may}) + "\n")
    if not answer:
        return {"problems": ["its agent could not be asked"], "accessors": []}
    found: Mapping[str, Any] = json.loads(answer)
    return found


@operation()
def gate(here: Here) -> Generator[Any, None, None]:
    """Let nothing be refused before all that is registered has a token that may: Consul would go on
    calling it healthy when it is dead."""
    run = here.run
    goes_on = run.pyinfra.is_executing and not rounds.why_not_yet(run, rounds.LAST)
    problems = stored(run, here.me)["problems"] if goes_on else []
    for problem in problems:
        host.log_styled(f"{here.me.name}: {problem}", fg="yellow")
        rounds.stop(run, f"{here.me.name}: {problem}")
    host.noop("looked at what is registered")
    yield from ()
