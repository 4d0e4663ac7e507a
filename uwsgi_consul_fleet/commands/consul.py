"""invoke consul, invoke ui"""

import re
import sys
from contextlib import suppress
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from invoke import Exit

from uwsgi_consul_fleet.commands.command import Fleet, command
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


@command(failure=255, help={"host": "on this host, instead of the first server that is reached"})
def run(fleet: Fleet, host: str = "") -> None:
    """Run a command of Consul's on a server: invoke consul -- members."""
    from uwsgi_consul_fleet.consul import program
    from uwsgi_consul_fleet.ownership import hosts as ownership

    words = typed(sys.argv, "invoke consul [--host HOST]")
    name = subcommand(words)
    with program.reached(chosen(fleet, host)) as (me, connection):
        # Refuses one of another fleet.
        identity = ownership.identity(fleet, [me])
        if changes_nothing(name):
            raise Exit(code=program.run(connection, me, words))
        entry = began(f"consul {name}".strip(), [me], identity)
        raise Exit(code=noted(fleet, entry, lambda: program.run(connection, me, words)))


@command(
    failure=2,
    help={
        "host": "on this host, instead of the first server that is reached",
        "port": "of this machine, instead of a free one",
    },
)
def ui(fleet: Fleet, host: str = "", port: str = "0") -> None:
    """Open Consul's web UI in a tunnel, and say where it is; until Ctrl-C."""
    from uwsgi_consul_fleet.consul import program

    if not port.isdecimal() or int(port) > 65535:
        raise FleetError(f"--port {port}: is not a port")
    with program.reached(chosen(fleet, host)) as (me, connection), suppress(KeyboardInterrupt):
        program.show(connection, me, int(port), lambda line: print(line, flush=True))


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
