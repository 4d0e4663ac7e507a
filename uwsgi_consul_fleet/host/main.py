"""release COMMAND APP ...: what is on this host, and which of it serves."""

from __future__ import annotations

import argparse
import fcntl
import signal
from pathlib import Path

from . import retire, store, switch
from .says import ReleaseError, say

# install.sh takes the same one.
LOCK = Path("/run/uwsgi-consul-fleet.lock")


def main() -> int:
    arguments = _parser().parse_args()
    # A lost connection must not end what is half done.
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        if arguments.command == "list":
            store.show(arguments.app)
            return 0
        with LOCK.open("w") as lock:  # /run is root's: nobody else can hold it
            fcntl.flock(lock, fcntl.LOCK_EX)
            _run(arguments)
    except (ReleaseError, OSError) as error:
        say(str(error), error=True)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "switch":
        switch.switch(arguments.app, arguments.generation, keep=arguments.keep, undo=arguments.undo)
    elif arguments.command == "passing":
        switch.expect_passing(
            arguments.app, arguments.release, arguments.missing, arguments.instances
        )
    elif arguments.command == "stop":
        retire.stop(arguments.app)
    elif arguments.command == "remove":
        retire.remove(arguments.app, purge=not arguments.keep_data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("app", metavar="APP", help="the application's name")
        return added

    command("list", "print the releases on this host as JSON")
    one = command("switch", "let a release serve; the one before goes on if it does not come up")
    one.add_argument("generation", metavar="RELEASE", help="as `list` names it")
    one.add_argument("--keep", type=int, default=5, help="how many releases stay (default: 5)")
    one.add_argument(
        "--undo", action="store_true", help="what serves now was a mistake: forget that it did"
    )
    one = command("passing", "fail where too many instances do not pass on a release")
    one.add_argument("release", metavar="RELEASE")
    one.add_argument("instances", metavar="NODE/ID", nargs="+")
    one.add_argument("--missing", type=int, default=0, help="so many are allowed to (default: 0)")
    command("stop", "take the application out of service")
    one = command("remove", "remove what belongs to the application; it must be out of service")
    one.add_argument("--keep-data", action="store_true", help="but keep its releases")
    return parser
