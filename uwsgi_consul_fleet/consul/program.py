"""A command of Consul's own on a host of the fleet, as if it were typed there."""

import os
import shlex
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Thread
from uuid import uuid4

from fabric import Connection

from uwsgi_consul_fleet.consul import catalog
from uwsgi_consul_fleet.consul.access import Role, access
from uwsgi_consul_fleet.errors import FleetError, UnreachableError
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.ssh import terminal
from uwsgi_consul_fleet.ssh.through import Signals, Through, complain, feed

READY = "uwsgi-consul-fleet: which command?"
# A terminal would show them, and cut long ones.
UNSEEN = f"""\
before=$(stty -g)
stty raw -echo
echo {shlex.quote(READY)}
"""
# What root's own environment there says of Consul, and is not to count: of an agent of the fleet's
# all of it, of another one what would count more than the token.
OURS, THEIRS = "CONSUL_[A-Z_]*", "CONSUL_HTTP_TOKEN_FILE"
# Neither token nor words stand in what sudo logs, and words may hold any bytes.
RUN = """\
IFS= read -r token
IFS= read -r words
[ -z "${{before-}}" ] || stty "$before"
for name in $(env | sed -n 's/^\\({theirs}\\)=.*/\\1/p'); do unset "$name"; done
[ -z "$token" ] || export CONSUL_HTTP_TOKEN="$token"
export CONSUL_HTTP_ADDR={address} {mark}
eval "exec consul $(echo "$words" | base64 -d)"
"""
LOG_IN = "log in with this token, which can only read: "
# It may not have begun; and it may have started others.
KILL = """\
for _ in 1 2 3 4 5 6 7 8 9; do
    found=$(grep -lsz '^{mark}$' /proc/[0-9]*/environ) && break
    sleep 0.5
done
for each in $found; do
    each=${{each%/environ}}
    kill -s "${{signal#SIG}}" "${{each#/proc/}}"
done
"""


def token(connection: Connection, host: Host, role: Role) -> str:
    """What a command shows to the agent of a host; '' for nothing.

    :raises RefusedError: where the fleet's secrets are not here
    """
    shown = access(host, role)
    try:
        with _way(connection, host, role) as way:
            return catalog.known(host, way).access.token
    except UnreachableError:  # a command may be what tells why it does not answer
        return shown.token


@contextmanager
def _way(connection: Connection, host: Host, role: Role, port: int = 0) -> Iterator[catalog.Way]:
    shown = access(host, role)
    at, remote_port = shown.place
    with ssh.tunnel(connection, remote_port, at, port) as ours:
        yield catalog.Way(host.name, ours, shown)


@contextmanager
def reached(hosts: Sequence[Host]) -> Iterator[tuple[Host, Connection]]:
    """The first of these that can be reached.

    :raises UnreachableError: where none can, with each one's reason
    """
    reasons = []
    for host in hosts:
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(ssh.connect(host))
            except UnreachableError as error:
                reasons.append(str(error))
                continue
            yield host, connection
            return
    raise UnreachableError("\n".join(reasons))


def run(connection: Connection, host: Host, words: Sequence[str], shown: str) -> int:
    """With this terminal where there is one, else with this process's standard input and output;
    returns its exit status.

    :param shown: the :func:`token`
    :raises UnreachableError: where the connection is lost
    """
    mark = f"UWSGI_CONSUL_FLEET_COMMAND={uuid4().hex}"
    theirs = OURS if host.brings_consul else THEIRS
    address = shlex.quote(access(host).address)
    script = RUN.format(address=address, mark=mark, theirs=theirs)
    line = b64encode(os.fsencode(shlex.join(words))).decode()
    first = f"{shown}\n{line}\n".encode()
    if terminal.is_there():
        return terminal.attach(connection, UNSEEN + script, READY, first)
    with Signals() as signals, signals.reach(connection, KILL.format(mark=mark)):
        running = ssh.Running(connection, script, complain)
        running.begin()
        Thread(target=feed, args=(running.channel, first), daemon=True).start()
        return running.finish(None, Through()).exit_code


def show(
    connection: Connection,
    host: Host,
    port: int,
    say: Callable[[str], object],
    with_token: bool = False,
) -> None:
    """Lead a port of this machine to Consul's web UI, until somebody interrupts.

    :param port: 0 for one that is free
    :param say: is told where it is
    :param with_token: and what to log in with
    :raises UnreachableError: where Consul does not answer, or the connection is lost
    :raises FleetError: where the port is taken, or Consul has no UI
    """
    try:
        with _way(connection, host, "read", port) as way:
            _expect_ui(way)
            found = catalog.known(host, way).access.token
            if with_token:
                say(f"{host.name}: {LOG_IN + found if found else 'its Consul wants no token yet'}")
            hint = "; --token prints what to log in with" if found and not with_token else ""
            say(f"{host.name}: Consul is at {way.url}/ui/ until Ctrl-C{hint}")
            while connection.transport.is_active():
                time.sleep(0.5)
    except OSError as error:
        raise FleetError(f"--port {port}: {os.strerror(error.errno or 0)}") from error
    raise UnreachableError(f"{host.name}: connection lost")


def _expect_ui(way: catalog.Way) -> None:
    with catalog.client(way) as asked:
        asked.status.leader()  # or it says why not
        session = asked.http.session
        answer = session.get(f"{way.url}/ui/", timeout=catalog.TIMEOUT, verify=asked.http.verify)
    if not answer.ok:
        raise FleetError(
            f"{way.name}: its Consul has no web UI ({answer.status_code}); "
            "deploy once more, and it has: pyinfra inventory.py deploy/"
        )
