"""The host program inside a pyinfra run."""

from collections.abc import Generator
from functools import cache
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.consul.access import Role, access
from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations import packages
from uwsgi_consul_fleet.operations.files import RemoteFile
from uwsgi_consul_fleet.operations.run import Here, Run
from uwsgi_consul_fleet.operations.state import HostState, Said
from uwsgi_consul_fleet.ssh.client import LOST


@cache
def program() -> RemoteFile:
    """The program as it should lie on a host."""
    return RemoteFile(PROGRAM, host_program.content(), "755")


def python(here: Here) -> Generator[Any, None, None]:
    """The command that brings the Python of the distribution, where there is none."""
    if not here.known.python:
        host.log("Python is missing: it is installed first")
        yield packages.install("python3")
        here.changed()


def command(here: Here, *words: str, role: Role = "deploy", more: str = "") -> StringCommand:
    """The program with these words, as a command of an operation.

    :param role: whose token it gets
    :param more: what it reads behind that
    """
    return _command(here.me, here.known, words, role, more)


def said(run: Run, me: Host, of: str, more: str = "") -> str:
    """What it answers now to a question about Consul on a host that was reached; '' where it can't.

    :param more: what it reads behind the token
    """
    shown = access(me)
    words = (*shown.words, "consul", of)
    return str(run.pyinfra.host(me.name).get_fact(Said, words, _stdin=shown.stdin + more))


def on(run: Run, name: str, *words: str) -> str | None:
    """Run it on another host than the one in context; why it failed, if it did."""
    try:
        done, output = run.pyinfra.executor(name)(
            _command(run.fleet.host(name), run.state_of(name), words), False
        )
    except LOST as error:
        return f"{name}: {error}"
    return None if done else f"{name}: {output.stderr or 'the connection was lost'}"


def _command(
    me: Host, known: HostState, words: tuple[str, ...], role: Role = "deploy", more: str = ""
) -> StringCommand:
    """Where the program is missing or another version's, it is brought along."""
    is_ours = known.files.get(PROGRAM) == program().state
    start = (PROGRAM,) if is_ours else host_program.carried()
    shown = access(me, role)
    every = map(QuoteString, (*start, *shown.words, *words))
    return StringCommand(*every, _stdin=shown.stdin + more)
