"""The lab's own command line, run as root by `invoke lab.up` and its kin."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from lab import access, base, host, machines, network, proxy
from lab.host import CLONE_ID, MACHINES, LabError
from lab.machines import Machine

DEFAULT = ("drakar", "cheetah")
DEFAULT_RELEASE = 12


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Run as root, alone, and with errors as one line."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            host.require_programs()
            if os.geteuid() != 0:
                arguments = [sys.executable, "-m", "lab", *sys.argv[1:]]
                sys.exit(subprocess.run(["sudo", "--", *arguments], check=False).returncode)
            with host.locked("lab"):
                function(*args, **kwargs)
        except LabError as error:
            raise click.ClickException(str(error)) from error

    return wrapper


@click.group(help="Disposable Debian machines on this host.")
def main() -> None:
    pass


@main.command(help="Start machines; those named, or drakar and cheetah. NAME:13 takes Debian 13.")
@click.argument("names", nargs=-1, metavar="[NAME[:RELEASE]]...")
@command
def up(names: tuple[str, ...]) -> None:
    _start([machines.parse(word) for word in names or DEFAULT])


def _start(wanted: list[tuple[str, int | None]]) -> None:
    begin = time.monotonic()
    gateway = network.up()
    url = proxy.up(str(gateway.ip))
    chosen = [_settle(name, release, gateway) for name, release in wanted]
    for release in sorted({machine.release for machine in chosen}):
        base.ensure(release, url)
    stopped = [machine for machine in chosen if not machine.pids()]
    for machine in stopped:
        machines.start(machine, gateway, url)
    for machine in chosen:
        machines.wait(machine)
        state = "started" if machine in stopped else "runs"
        print(f"{machine.name}: {state}, Debian {machine.release}, {machine.address}", flush=True)
    access.record(machine for machine in machines.known() if machine.pids())
    print(f"ready after {time.monotonic() - begin:.1f} s; next: invoke lab.ssh {chosen[0].name}")


def _settle(name: str, release: int | None, gateway: Any) -> Machine:
    """The machine as it is to be: what it was, or a new one with a free address.

    :raises LabError: where it is there with another release
    """
    everybody = machines.known("*")
    for machine in everybody:
        if (machine.clone, machine.name) == (CLONE_ID, name):
            if release not in (None, machine.release):
                raise LabError(
                    f"{name} is there with Debian {machine.release}; to change that: "
                    f"invoke lab.down {name}, then lab.up {name}:{release}"
                )
            if machine.pids() or _belongs(machine.address, gateway):
                return machine
            release = machine.release
    taken = {machine.address for machine in everybody}
    found = Machine(name, release or DEFAULT_RELEASE, machines.free_address(gateway.network, taken))
    machines.save(found)
    return found


def _belongs(address: str, gateway: Any) -> bool:
    return any(address == str(host) for host in gateway.network.hosts())


@main.command(help="Remove machines with their disks; those named, or all of this clone.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--purge", is_flag=True, help="Also remove base trees and stored packages.")
@command
def down(names: tuple[str, ...], purge: bool) -> None:
    for machine in _named(names):
        machines.remove(machine)
        print(f"{machine.name}: removed", flush=True)
    if not names:
        _clear_folder()
    access.record(machine for machine in machines.known() if machine.pids())
    if not any(machine.pids() for machine in machines.known("*")):
        _leave_host()
        if purge:
            base.purge()
    elif purge:
        raise LabError("machines of another clone run from the cached trees: they were kept")


def _named(names: tuple[str, ...]) -> list[Machine]:
    everything = {machine.name: machine for machine in machines.known()}
    unknown = [name for name in names if name not in everything]
    if unknown:
        there = ", ".join(everything) or "none"
        raise LabError(f"no machine {', '.join(unknown)}; there is: {there}")
    return [everything[name] for name in names] if names else list(everything.values())


def _clear_folder() -> None:
    """Remove what an interrupted command left of this clone's machines."""
    for folder in (MACHINES / CLONE_ID).glob("*"):
        machines.remove(Machine(folder.name, 0, ""))
    shutil.rmtree(MACHINES / CLONE_ID, ignore_errors=True)


def _leave_host() -> None:
    """Nobody runs: undo what machines share, and unmount what killed ones left."""
    for machine in machines.known("*"):
        machines.kill(machine)
    proxy.down()
    network.down()


@main.command(help="Make machines anew, with an empty disk; those named, or all of this clone.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@command
def rebuild(names: tuple[str, ...]) -> None:
    chosen = _named(names)
    for machine in chosen:
        machines.kill(machine)
        for layer in ("upper", "work"):
            shutil.rmtree(machine.folder / layer, ignore_errors=True)
    _start([(machine.name, machine.release) for machine in chosen])


@main.command(help="A power cut; lab.up starts the machine again with its disk.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@command
def kill(names: tuple[str, ...]) -> None:
    for machine in _named(names):
        machines.kill(machine)
        print(f"{machine.name}: killed", flush=True)


@main.command(help="Show this clone's machines.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(as_json: bool) -> None:
    rows = [
        {
            "name": machine.name,
            "release": machine.release,
            "address": machine.address,
            "state": "runs" if machine.pids() else "stopped",
        }
        for machine in machines.known()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
    for row in rows if not as_json else ():
        print(f"{row['name']}: {row['state']}, Debian {row['release']}, {row['address']}")
    if not rows and not as_json:
        print("no machines; start some with: invoke lab.up")


if __name__ == "__main__":
    main()
