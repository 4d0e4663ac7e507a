"""release COMMAND ...: what is on this host, which of it serves, and what its Consul agent says."""

from __future__ import annotations

import argparse
from typing import Any

from .consul import CONFIG


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="release", description=__doc__)
    made.add_argument(
        "--agent-file",
        metavar="FILE",
        default=CONFIG,
        help=f"how the Consul agent is spoken to (default: {CONFIG})",
    )
    made.add_argument(
        "--access-stdin",
        action="store_true",
        help="the first line of standard input says in JSON what is not as in FILE, and a token; "
        "an empty one, or none, is this host's own",
    )
    commands = made.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("app", metavar="APP", help="the application's name")
        return added

    command("list", "print the releases on this host as JSON")
    one = command("describe", "print what a release is made of, as JSON")
    one.add_argument("wanted", metavar="RELEASE", help="as `list` names it, or its content")
    one = command("pack", "write the sources of a release as the beginning of a .tar.gz")
    one.add_argument("generation", metavar="RELEASE", help="as `list` names it")
    one = command("switch", "let a release serve; the one before goes on if it does not come up")
    one.add_argument("generation", metavar="RELEASE", help="as `list` names it")
    one.add_argument("--keep", type=int, default=5, help="how many releases stay (default: 5)")
    undo = "what serves now was a mistake: forget that it did"
    one.add_argument("--undo", action="store_true", help=undo)
    one.add_argument("--back", action="store_true", help="what serves now is rolled back from")
    one.add_argument(
        "--without-consul", action="store_true", help="do not wait for what Consul reports"
    )
    one = command("passing", "fail where too many instances do not pass on a release")
    one.add_argument("release", metavar="RELEASE")
    one.add_argument("instances", metavar="NODE/ID", nargs="+")
    one.add_argument(
        "--missing",
        dest="allowed",
        metavar="N",
        type=int,
        default=0,
        help="so many are allowed to (default: 0)",
    )
    one = command("finish", "make a release complete that was unpacked: app_shared, app_build")
    one.add_argument("generation", metavar="RELEASE")
    one.add_argument("about", metavar="JSON", help="where and how its commands run")
    one = command("once", "run app_release, unless it went well here before")
    one.add_argument("generation", metavar="RELEASE", help="as `list` names it")
    one.add_argument("release", metavar="WHICH", help="its name and its content")
    one.add_argument("commands", metavar="COMMANDS", help="a list in JSON")
    one.add_argument("about", metavar="JSON", help="where and how its commands run")
    one = command("stop", "take the application out of service")
    one.add_argument("--undo", action="store_true", help=undo)
    one = command("remove", "remove what belongs to the application; it must be out of service")
    one.add_argument("--keep-data", dest="purge", action="store_false", help="keep its releases")
    text = "write down whose this host is, and what on it is the fleet's"
    one = commands.add_parser("mark", help=text, description=text)
    one.add_argument("fleet", metavar="FLEET")
    one.add_argument("id", metavar="ID")
    one.add_argument("layout", metavar="LAYOUT", type=int)
    one.add_argument("made", metavar="WHAT", nargs="*", help="consul or app:NAME")
    one.add_argument("--port", dest="ports", metavar="PORT", type=int, action="append", default=[])
    text = "keep what was done without Consul, for who holds the fleet's lock next"
    one = commands.add_parser("unwritten", help=text, description=text)
    one.add_argument("told", metavar="JSON")
    text = "run a command as the units do, whose words come at standard input"
    one = command("exec", text)
    one.add_argument("unit", metavar="UNIT", help="what the command's own unit is called")
    one.add_argument("who", metavar="WHO", help="for whom it is run")
    one.add_argument("--terminal", action="store_true", help="standard input is a terminal")
    commands.add_parser("lock-session", help="hold the fleet's lock for who is at the other end")
    about = "ask the Consul agent of this host, or change its cluster"
    consul = commands.add_parser("consul", help=about, description=about)
    _consul_commands(consul.add_subparsers(dest="action", required=True))
    return made


def _consul_commands(commands: Any) -> None:
    def command(name: str, text: str, *words: str) -> Any:
        added = commands.add_parser(name, help=text, description=text)
        for word in words:
            added.add_argument(word, metavar=word.upper())
        return added

    command("status", "print which leader this server follows, and the servers, as JSON")
    command("agent", "print whom this agent follows, and what it calls the host, as JSON")
    command("cluster", "print servers, members and nodes as this agent sees them, as JSON")
    one = command("start", "start the agent anew with what lies here now", "binary")
    one.add_argument("--new", action="store_true", help="forget the servers that it knew")
    one.add_argument("--wait", action="store_true", help="until it follows a leader")
    one.add_argument("--first", action="store_true", help="it has had no access control so far")
    command("reload", "let the agent read its configuration and certificate again")
    command("acl", "make tokens and policies as standard input says in JSON, in its second line")
    command("stored", "print which registrations would lapse under default_policy deny, as JSON")
    command("expiry", "have the catalog warn where a certificate of this host ends soon")
    command("rekey", "change the gossip key of all members to that in line 2 of standard input")
    command("join", "find the cluster").add_argument("addresses", metavar="ADDRESS", nargs="+")
    command("leave", "leave the cluster, and be started no more")
    command("vote", "wait until this host votes as a server", "node").add_argument(
        "seconds", metavar="SECONDS", type=float
    )
    command("demote", "take another server's vote away", "peer", "address")
    command("tidy", "forget what a host was that is a client now", "node", "peer", "datacenter")
    one = command("expel", "remove a node that is gone", "node", "datacenter")
    one.add_argument("peer", metavar="PEER", nargs="?", default="", help="its id as a server")
