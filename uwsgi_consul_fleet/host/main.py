"""What the program does for each of its commands; arguments.py has what they are."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .consul import CONFIG, Access, Consul
from .says import ReleaseError, say

# install.sh takes the same one.
LOCK = Path("/run/uwsgi-consul-fleet.lock")


def main() -> int:
    told = sys.argv[1:2] == ["--access-stdin"]
    is_status = sys.argv[1 + told :] == ["consul", "status"]
    options = {**STATUS, "access_stdin": told} if is_status else _parsed()
    os.umask(0o022)  # whatever the session's: applications read what is written here
    # A lost connection must not end what is half done.
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    said = sys.stdin.readline() if options.pop("access_stdin") else ""
    try:
        access, token = Access.read(options.pop("agent_file")).told(said)
        _run(access, token, **options)
    except (ReleaseError, OSError) as error:
        say(str(error), error=True)
        return 1
    return 0


# What a command does not need is not loaded. A deploy with nothing to change waits for each
# server's `consul status`, and to make the parser takes longer than to ask.
STATUS: dict[str, Any] = {
    "agent_file": CONFIG,
    "command": "consul",
    "action": "status",
}


def _parsed() -> dict[str, Any]:
    from . import arguments

    return vars(arguments.parser().parse_args())


def _run(access: Access, token: str, command: str, **options: Any) -> None:
    if command == "consul":
        _ask(Consul(access, token), **options)
    elif command == "lock-session":
        from . import lock_session

        lock_session.run(access, token)
    elif command == "unwritten":
        from . import unwritten

        unwritten.keep(**options)
    elif command == "list":
        from . import store

        store.show(**options)
    elif command == "exec":
        from . import execution

        execution.run(**options)
    elif command in ("describe", "pack"):
        from . import content

        getattr(content, command)(**options)
    else:
        what = {"finish": "app_build", "once": "app_release"}.get(command, command)
        with _alone(" of ".join(filter(None, (what, options.get("app"))))):
            _change(Consul(access, token), command, **options)


@contextmanager
def _alone(doing: str) -> Iterator[None]:
    """Wait until nobody else changes anything on this host; :param doing: who waits is told"""
    LOCK.touch(0o600)  # who can read it can hold it, and stop every deploy
    LOCK.chmod(0o600)
    with LOCK.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parts = ("waits for what an interrupted run began here", lock.read().strip())
            say(": ".join(filter(None, parts)))  # versions before 0.3 write nothing into it
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        lock.truncate()
        print(doing, file=lock, flush=True)
        yield


def _ask(consul: Consul, action: str, **options: Any) -> None:
    found = None
    if action in ("start", "reload", "leave", "vote"):
        from . import agent

        getattr(agent, action)(consul, **options)
    elif action == "acl":
        from . import acl

        found = acl.converge(consul, _told())
    elif action == "stored":
        from . import stored

        found = stored.look(consul, _told()["may"])
    elif action == "expiry":
        from . import expiry

        expiry.look(consul)
    elif action == "rekey":
        from . import keyring

        keyring.rotate(consul, **_told())
    else:
        from . import cluster

        found = getattr(cluster, action)(consul, **options)
    if found is not None:
        print(json.dumps(found))


def _told() -> Any:
    """What is told behind the access, and must stand in no list of processes."""
    return json.loads(sys.stdin.readline())


def _change(consul: Consul, command: str, **options: Any) -> None:
    from . import ownership, retire, steps, switch

    if command == "mark":
        ownership.mark(**options)
    elif command == "switch":
        switch.switch(consul, **options)
    elif command == "passing":
        switch.expect_passing(consul, **options)
    elif command in ("finish", "once"):
        getattr(steps, command)(**options)
    elif command == "stop":
        retire.stop(**options)
    elif command == "remove":
        retire.remove(**options)
