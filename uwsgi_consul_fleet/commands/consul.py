"""invoke consul, invoke ui"""

import re
import sys
from contextlib import suppress
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from invoke import Exit

from uwsgi_consul_fleet.commands.command import Fleet, command, expect
from uwsgi_consul_fleet.commands.execute import began, noted, typed
from uwsgi_consul_fleet.errors import FleetError

if TYPE_CHECKING:
    from uwsgi_consul_fleet.inventory.model import Host

# Commands that change nothing, help among them; all others are in the audit.
READING = {
    "",
    *("members", "info", "version", "validate", "monitor", "rtt", "debug", "catalog", "watch"),
    *("kv get", "kv export", "operator raft list-peers", "operator autopilot state"),
    *("snapshot save", "snapshot inspect"),
}


@command(
    failure=255,
    help={
        "host": "on this host, instead of the first server that is reached",
        "management": "with the token that may do everything, also with tokens; asks first, and is "
        "always in the audit",
        "yes": "do not ask",
    },
)
def run(fleet: Fleet, host: str = "", management: bool = False, yes: bool = False) -> None:
    """Run a command of Consul's on a server: invoke consul -- members."""
    from uwsgi_consul_fleet.consul import program
    from uwsgi_consul_fleet.ownership import hosts as ownership

    words = typed(sys.argv, "invoke consul [--host HOST] [--management]")
    name = subcommand(words)
    if management:
        expect_agreed(fleet, name, yes)
    with program.reached(chosen(fleet, host)) as (me, connection):
        # Refuses one of another fleet.
        identity = ownership.identity(fleet, [me])
        shown = program.token(connection, me, "management" if management else "deploy")
        if changes_nothing(name) and not management:
            raise Exit(code=program.run(connection, me, words, shown))
        as_whom = "as management" if management else ""
        entry = began(" ".join(filter(None, ("consul", name, as_whom))), [me], identity)
        raise Exit(code=noted(fleet, entry, lambda: program.run(connection, me, words, shown)))


def expect_agreed(fleet: Fleet, name: str, yes: bool) -> None:
    """:raises FleetError: where nobody can be asked, or it is not the fleet's Consul
    :raises Exit: where the answer is no"""
    if not fleet.brings_consul:
        raise FleetError(
            "--management: this Consul is not the fleet's, and neither is its management token"
        )
    if not yes:
        question = f"consul {name} as management, which may do everything? [yes/no]"
        expect(question, "yes", otherwise="nothing was run as management")


@command(
    failure=2,
    help={
        "host": "on this host, instead of the first server that is reached",
        "port": "of this machine, instead of a free one",
        "token": "print the token to log in with, too; it can only read",
    },
)
def ui(fleet: Fleet, host: str = "", port: str = "0", token: bool = False) -> None:
    """Open Consul's web UI in a tunnel, and say where it is; until Ctrl-C."""
    from uwsgi_consul_fleet.consul import program

    if not port.isdecimal() or int(port) > 65535:
        raise FleetError(f"--port {port}: is not a port")
    if token and not fleet.brings_consul:
        raise FleetError("--token: this Consul is not the fleet's: log in with a token of its own")
    with program.reached(chosen(fleet, host)) as (me, connection), suppress(KeyboardInterrupt):
        program.show(connection, me, int(port), lambda line: print(line, flush=True), token)


def chosen(fleet: Fleet, name: str) -> "list[Host]":
    """Those whose agent may be asked, in this order.

    :param name: of the only one; '' for any server
    """
    if not name:
        return list(fleet.asked)
    from uwsgi_consul_fleet.instances import choice

    there = {each.name: each for each in fleet.active}
    choice.expect("host", [name], there)
    return [there[name]]


def subcommand(words: list[str]) -> str:
    """What of a command says what it does; what follows may be secret."""
    is_a_word = re.compile(r"[a-z][a-z-]*").fullmatch
    return " ".join(islice(takewhile(is_a_word, words), 3 if words[0] == "operator" else 2))


def changes_nothing(name: str) -> bool:
    return not {name, name.partition(" ")[0]}.isdisjoint(READING)
