"""Consul on a host: the binary, its configuration, and an agent that runs with both."""

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.operations import program
from uwsgi_consul_fleet.operations.consul import acl as acl
from uwsgi_consul_fleet.operations.consul import cluster as cluster
from uwsgi_consul_fleet.operations.consul import configuration, expiry
from uwsgi_consul_fleet.operations.consul import existing as existing
from uwsgi_consul_fleet.operations.consul import leaving as leaving
from uwsgi_consul_fleet.operations.consul import replacing as replacing
from uwsgi_consul_fleet.operations.consul import rounds as rounds
from uwsgi_consul_fleet.operations.consul import running as running
from uwsgi_consul_fleet.operations.consul import secrets as secrets
from uwsgi_consul_fleet.operations.consul import source as source
from uwsgi_consul_fleet.operations.consul.configuration import BINARIES, CONFIGURATION
from uwsgi_consul_fleet.operations.consul.source import Source
from uwsgi_consul_fleet.operations.files import Base64, converge, fail
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.users import system_user

HERE = Path(__file__).parent
# Until 0.3 they were here, which is where HashiCorp's package has its data and configuration.
BINARIES_BEFORE = "/opt/consul"
CONFIG_BEFORE = "/etc/consul.d/consul.json"
VOTE = 60  # seconds for a new server to get its vote


@operation()
def install(here: Here, source: Source) -> Generator[Any, None, None]:
    """Put the binary in a folder of its own; the one in use stays where it is."""
    yield from program.python(here)
    if source.label in here.known.consul_binaries:
        host.noop(f"Consul {source.label} is installed")
        return
    folder = f"{BINARIES}/{source.label}"
    part = f"{folder}/.consul.part"
    yield StringCommand("mkdir", "-p", folder)
    if source.label in here.known.consul_before:
        yield StringCommand("cp", f"{BINARIES_BEFORE}/{source.label}/consul", part)
    elif source.path:
        host.log(f"Consul from {source.description}")
        # Not pyinfra's `host`, which is whichever one is in context when it is asked.
        say = here.run.pyinfra.host(here.me.name).log
        unpack = f"base64 -d | gunzip >{part}"
        yield StringCommand(
            "sh", "-c", QuoteString(unpack), _stdin=Base64(partial(source.packed, say))
        )
    else:
        host.log(f"Consul from {source.description}")
        script = (HERE / "debian.sh").read_text()
        yield StringCommand("sh", "-c", QuoteString(script), "debian", part)
    yield StringCommand(
        "chmod", "755", part, "&&", part, "version", "&&", "mv", part, f"{folder}/consul"
    )
    here.changed()


@operation()
def configure(here: Here, source: Source, number: int) -> Generator[Any, None, None]:
    """The consul user, the agent's configuration and its unit, and the program that asks it.

    :param number: the round whose turn it is
    """
    try:
        if here.run.pyinfra.is_executing:
            secrets.kept(here.run).keep()
    except FleetError as error:
        yield fail(f"{here.me.name}: left as it was: {error}")
        return
    if why_not := secrets.why_not_serve(here):  # somebody was not told of it in this run
        yield fail(f"{here.me.name}: left as it was: {why_not}")
        return
    number = rounds.number(here, number)
    with here.run.together(here.me.name):
        told = yield from _configure(here, source, number)
    if not here.known.consul_round or not (told or secrets.UNREAD in here.known.files):
        return
    if running.must_restart(here, source.label, number):
        yield StringCommand("rm", "-f", secrets.UNREAD)  # its start reads them, whenever that is
    else:
        yield program.command(here, "consul", "reload")
    here.changed()


def _configure(here: Here, source: Source, number: int) -> Generator[Any, None, bool]:
    """Piece by piece, of which none has to know what another one has changed; returns whether a
    running agent has to read its files."""
    yield from system_user(here, "consul")
    # Before the unit, which reads them from then on.
    for path in sorted(_not_ours(here)):
        host.log(f"{path}: the agent reads a copy of it in {CONFIGURATION} from now on")
        folder = StringCommand("mkdir", "-p", CONFIGURATION)
        yield StringCommand(folder, "&&", "cp", "--preserve", QuoteString(path), CONFIGURATION)
    told = secrets.to_read(here, secrets.of_tls(here)) if number else []
    yield from told
    wanted = configuration.files(here.me, here.run.fleet, source.label, number)
    yield from converge(here, [*wanted, program.program()])
    if number:
        yield from expiry.watch(here)
        told += (last := secrets.to_read(here, secrets.of_agent(here)))
        yield from last
    return bool(told)


def _not_ours(here: Here) -> set[str]:
    """What the agent reads today from the place of before, and others have put there."""
    return {path for path in here.known.consul_before if path.startswith("/")} - {CONFIG_BEFORE}


def run(here: Here, source: Source, number: int) -> None:
    """All agents with the configuration of a round: the servers first, their leader last of these.

    :param number: the round
    """
    me = here.me
    told: dict[str, Any] = {"here": here, "source": source, "number": number}
    it = "Consul" if rounds.of(here.run).begins else f"Consul, round {number} of {rounds.LAST}"
    if number == rounds.LAST and not rounds.of(here.run).begins:
        # While everybody may: who looks services up without a token is never told of none.
        acl.make_tokens(name=f"{it}: let look-ups go on", here=here, number=number)
    configure(name=f"{it}: configure the agent", **told)
    if me.is_consul_server:
        running.run_server(name=f"{it}: run the servers", _serial=True, **told)
        if me.name == cluster.change(here.run).leader:
            running.run_server(name=f"{it}: run the leader", leads=True, **told)
    if number:
        acl.make_tokens(name=f"{it}: make tokens", here=here, number=number)
    let_vote(name=f"{it}: let new servers vote", here=here)
    leaving.expel(name=f"{it}: remove retired hosts that are gone", here=here)
    if here.known.consul_raft and not me.is_consul_server:
        leaving.demote(
            name=f"{it}: make clients of former servers", here=here, source=source, _serial=True
        )
    running.run_client(
        name=f"{it}: run the client agents", _parallel=running.at_a_time(here), **told
    )
    if number and (me.settings.dns or secrets.DNS in here.known.files):
        replacing.tell_agent(name=f"{it}: let DNS answer", here=here)
        # Which of them have a token for it is known by now.
        acl.make_tokens(name=f"{it}: see who may look up", here=here, number=number)


@operation()
def let_vote(here: Here) -> Generator[Any, None, None]:
    """New servers have their vote before any other is removed."""
    if here.me.name not in cluster.change(here.run).joining:
        host.noop("it is not a new Consul server")
        return
    yield program.command(here, "consul", "vote", here.me.name, str(VOTE))
