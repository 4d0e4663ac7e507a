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
from uwsgi_consul_fleet.consul.access import access
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
# Neither token nor words stand in what sudo logs, and words may hold any bytes.
RUN = """\
IFS= read -r token
IFS= read -r words
[ -z "${{before-}}" ] || stty "$before"
[ -z "$token" ] || export CONSUL_HTTP_TOKEN="$token"
export CONSUL_HTTP_ADDR={address} {mark}
eval "exec consul $(echo "$words" | base64 -d)"
"""
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


def token(host: Host) -> str:
    """What a command shows to the agent of a host; '' for nothing."""
    return access(host).token


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


def run(connection: Connection, host: Host, words: Sequence[str]) -> int:
    """With this terminal where there is one, else with this process's standard input and output;
    returns its exit status.

    :raises UnreachableError: where the connection is lost
    """
    mark = f"UWSGI_CONSUL_FLEET_COMMAND={uuid4().hex}"
    script = RUN.format(address=shlex.quote(access(host).address), mark=mark)
    line = b64encode(os.fsencode(shlex.join(words))).decode()
    first = f"{token(host)}\n{line}\n".encode()
    if terminal.is_there():
        return terminal.attach(connection, UNSEEN + script, READY, first)
    with Signals() as signals, signals.reach(connection, KILL.format(mark=mark)):
        running = ssh.Running(connection, script, complain)
        running.begin()
        Thread(target=feed, args=(running.channel, first), daemon=True).start()
        return running.finish(None, Through()).exit_code


def show(connection: Connection, host: Host, port: int, say: Callable[[str], object]) -> None:
    """Lead a port of this machine to Consul's web UI, until somebody interrupts.

    :param port: 0 for one that is free
    :param say: is told where it is
    :raises UnreachableError: where Consul does not answer, or the connection is lost
    :raises FleetError: where the port is taken, or Consul has no UI
    """
    shown = access(host)
    at, remote_port = shown.place
    try:
        with ssh.tunnel(connection, remote_port, at, port) as ours:
            way = catalog.Way(host.name, ours, shown)
            _expect_ui(way)
            say(f"{host.name}: Consul is at {way.url}/ui/ until Ctrl-C")
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
