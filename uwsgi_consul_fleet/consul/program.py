"""A command of Consul's own on a host of the fleet, as if it were typed there."""

import os
import shlex
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Thread
from uuid import uuid4

from fabric import Connection

from uwsgi_consul_fleet.consul.access import access
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.ssh import terminal
from uwsgi_consul_fleet.ssh.through import Signals, Through, complain, feed

READY = "uwsgi-consul-fleet: which token?"
# A terminal would show the token.
UNSEEN = f"""\
stty -echo
echo {shlex.quote(READY)}
"""
# The token stands in no command line; and words may hold any bytes.
RUN = """\
IFS= read -r token
[ -z "$token" ] || export CONSUL_HTTP_TOKEN="$token"
[ ! -t 0 ] || stty echo
export CONSUL_HTTP_ADDR={address} {mark}
eval "exec consul $(echo {words} | base64 -d)"
"""
# It may not have begun; and it may have started others.
KILL = """\
for _ in 1 2 3 4 5 6 7 8 9; do
    found=$(grep -lsz '^{mark}$' /proc/[0-9]*/environ) && break
    sleep 0.5
done
for each in $found; do
    each=${{each%/environ}}
    kill -s "$signal" "${{each#/proc/}}"
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
    script = RUN.format(
        address=shlex.quote(access(host).address),
        mark=mark,
        words=b64encode(os.fsencode(shlex.join(words))).decode(),
    )
    first = f"{token(host)}\n".encode()
    if terminal.is_there():
        return terminal.attach(connection, UNSEEN + script, READY, first)
    with Signals() as signals, signals.reach(connection, KILL.format(mark=mark)):
        running = ssh.Running(connection, script, complain)
        running.begin()
        Thread(target=feed, args=(running.channel, first), daemon=True).start()
        return running.finish(None, Through()).exit_code
