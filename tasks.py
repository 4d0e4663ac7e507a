"""The commands of the operator: `invoke --list` shows them."""

import json as json_module
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

from invoke import Collection, Context, Exit, task

from uwsgi_consul_fleet.commands.names import NamesTask
from uwsgi_consul_fleet.errors import FleetError

INVENTORY = "inventory.py"
INVENTORY_HELP = {"inventory": f"another inventory file than {INVENTORY}"}


def errors_exit(code: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """End a task with the error's text and this exit code, and without a traceback."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except FleetError as error:
                raise Exit(str(error), error.exit_code or code) from error
            except KeyboardInterrupt as error:
                raise Exit("interrupted", 130) from error

        return wrapper

    return decorate


@task(
    iterable=["host", "package"],
    help={
        "list": "show which uWSGI each host has and whether its plugin is built; build nothing",
        "host": "only for this host (may be given several times)",
        "local": "for the uWSGI of this machine instead of the fleet's",
        "source": "another uWSGI plugin's sources: a folder, or a URL that git can clone",
        "package": "a Debian package that these sources need (may be given several times)",
        "keep-toolchain": "leave the compiler installed where it is needed",
        "force": "compile also where nothing has changed",
        **INVENTORY_HELP,
    },
)
@errors_exit(1)
def build_plugin(
    _context: Context,
    host: list[str],
    package: list[str],
    list: bool = False,  # noqa: A002 - an option's name
    local: bool = False,
    source: str = "",
    keep_toolchain: bool = False,
    force: bool = False,
    inventory: str = INVENTORY,
) -> None:
    """Compile the consul plugin for each different uWSGI on the fleet."""
    from uwsgi_consul_fleet.build import places, progress
    from uwsgi_consul_fleet.build import source as sources

    where = places.local(host) if local else places.of_fleet(inventory, host)
    with sources.find(source) if source else nullcontext(sources.own()) as found:
        if list:
            fine = progress.show(where, found)
        else:
            fine = progress.build(
                where,
                found,
                force=force,
                keep_toolchain=keep_toolchain,
                packages=tuple(package),
            )
    if not fine:
        raise Exit(code=1)


def seconds(text: str) -> float:
    """Invoke itself answers a number that is none with a traceback."""
    try:
        return float(text)
    except ValueError:
        raise FleetError(f"--wait {text}: is no number of seconds") from None


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise FleetError(f"--last {text}: is no number of entries")
    return int(text)


@task(
    help={
        "json": "print the report as JSON",
        "wait": "ask again until the catalog agrees, for at most so many SECONDS",
        "probe": "also make an HTTP request to each instance",
        **INVENTORY_HELP,
    }
)
@errors_exit(2)
def verify(
    _context: Context,
    json: bool = False,
    wait: str = "0",
    probe: bool = False,
    inventory: str = INVENTORY,
) -> None:
    """Compare the catalog with the inventory. Exit 0: agree, 1: differ, 2: could not ask."""
    from uwsgi_consul_fleet.commands import report
    from uwsgi_consul_fleet.inventory.reading import read
    from uwsgi_consul_fleet.verify import inspection

    found = inspection.verify(read(inventory), seconds(wait), with_probe=probe)
    if json:
        print(json_module.dumps(found.as_dict(), indent=2))
    else:
        report.show(found)
    raise Exit(code=0 if found.agrees else 1)


@task(
    help={
        "service": "which service to look for (default: the inventory's application)",
        "once": "print once and exit",
        "json": "one JSON document for each change",
        "passing": "only instances whose checks pass",
        "datacenter": "ask about another datacenter",
        **INVENTORY_HELP,
    }
)
@errors_exit(2)
def client(
    _context: Context,
    service: str = "",
    once: bool = False,
    json: bool = False,
    passing: bool = False,
    datacenter: str = "",
    inventory: str = INVENTORY,
) -> None:
    """Print which servers a client finds, live, as seen from a Consul server of the fleet."""
    from uwsgi_consul_fleet.client import program
    from uwsgi_consul_fleet.consul import catalog
    from uwsgi_consul_fleet.inventory.reading import read

    fleet = read(inventory)
    arguments = ["--service", service or fleet.services[0]]
    arguments += ["--once"] * once + ["--json"] * json + ["--passing"] * passing
    arguments += ["--datacenter", datacenter] if datacenter else []
    with catalog.api(fleet) as (_server, port):
        raise Exit(code=program.run([*arguments, "--url", f"http://127.0.0.1:{port}"]))


@task(help={"json": "print them as JSON", **INVENTORY_HELP})
@errors_exit(2)
def releases(_context: Context, json: bool = False, inventory: str = INVENTORY) -> None:
    """Show which releases each host has, which one serves, and since when."""
    from uwsgi_consul_fleet.commands import report
    from uwsgi_consul_fleet.inventory.reading import read
    from uwsgi_consul_fleet.releases import releases as fleet_releases

    found = fleet_releases.read(read(inventory))
    if json:
        print(json_module.dumps([each.as_dict() for each in found], indent=2))
    else:
        report.show_releases(found)
    raise Exit(code=1 if any(each.problem for each in found) else 0)


@task(
    klass=NamesTask,
    help={
        "names": "a release as `invoke releases` shows it (default: the one before)",
        **INVENTORY_HELP,
    },
)
@errors_exit(2)
def rollback(_context: Context, names: list[str], inventory: str = INVENTORY) -> None:
    """Let the release before serve again, or another that is on the hosts. Sends nothing."""
    from uwsgi_consul_fleet.inventory.reading import read
    from uwsgi_consul_fleet.releases import releases as fleet_releases

    if len(names) > 1:
        raise FleetError(f"one release, not {len(names)}: {' '.join(names)}")
    fleet_releases.rollback(read(inventory), "".join(names))


@task(
    help={"json": "print it as JSON", "last": "only the last so many entries", **INVENTORY_HELP},
)
@errors_exit(2)
def audit(
    _context: Context, json: bool = False, last: str = "200", inventory: str = INVENTORY
) -> None:
    """Show who deployed what, when, and how it went."""
    from uwsgi_consul_fleet.commands import report
    from uwsgi_consul_fleet.consul import audit as fleet_audit
    from uwsgi_consul_fleet.inventory.reading import read

    entries = fleet_audit.read(read(inventory), count(last))
    if json:
        print(json_module.dumps([entry.as_dict() for entry in entries], indent=2))
    else:
        report.show_audit(entries)


@task(help={"yes": "do not ask", **INVENTORY_HELP})
@errors_exit(2)
def unlock(_context: Context, yes: bool = False, inventory: str = INVENTORY) -> None:
    """Remove the lock of a deploy that is gone, after showing whose it is."""
    from uwsgi_consul_fleet.inventory.reading import read
    from uwsgi_consul_fleet.lock import lock

    fleet = read(inventory)
    held = lock.holder(fleet)
    if held is None:
        print("There is no lock.")
        return
    print(lock.told(held))
    if not yes and not sys.stdin.isatty():
        raise FleetError("nothing removed: without a terminal to ask at, say --yes")
    if not yes:
        print("Remove it? If that run still goes on, it stops. [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Exit("nothing removed", 1)
    lock.unlock(fleet, held)
    print("removed")


def _lab(*arguments: str) -> None:
    code = subprocess.run(
        [sys.executable, "-m", "uwsgi_consul_fleet.lab", *arguments], check=False
    ).returncode
    if code:
        raise Exit(code=code)


@task(klass=NamesTask, help={"names": "machines to start, as NAME[:DEBIAN_RELEASE][@NETWORK]"})
def up(_context: Context, names: list[str]) -> None:
    """Start lab machines: drakar and cheetah, or those named (cheetah:13 for Debian 13)."""
    _lab("up", *names)


@task(
    klass=NamesTask,
    help={"names": "machines to remove (default: all)", "purge": "also remove what is cached"},
)
def down(_context: Context, names: list[str], purge: bool = False) -> None:
    """Remove lab machines with everything on them."""
    _lab("down", *names, *["--purge"] * purge)


@task(help={"json": "print it as JSON"})
def status(_context: Context, json: bool = False) -> None:
    """Show the lab machines."""
    _lab("status", *["--json"] * json)


@task(klass=NamesTask, help={"names": "machines to make anew (default: all)"})
def rebuild(_context: Context, names: list[str]) -> None:
    """Put lab machines back to the state in which they were first started."""
    _lab("rebuild", *names)


@task(help={"name": "the machine"})
@errors_exit(1)
def ssh(_context: Context, name: str) -> None:
    """Open a shell on a lab machine."""
    from uwsgi_consul_fleet.lab.access import shell

    raise Exit(code=subprocess.run(shell(name), check=False).returncode)


lab = Collection("lab", up, down, status, rebuild, ssh)
namespace = Collection(build_plugin, verify, client, releases, rollback, audit, unlock, lab)
