"""The lab's own command line, run as root by `invoke lab.up` and its kin."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import click

from uwsgi_consul_fleet.lab import access, base, host, machines, network, proxy
from uwsgi_consul_fleet.lab.host import CLONE_ID, MACHINES, LabError
from uwsgi_consul_fleet.lab.machines import Machine
from uwsgi_consul_fleet.lab.network import DEFAULT as LAB

DEFAULT = ("drakar", "cheetah")
DEFAULT_RELEASE = 12


class Commands(click.Group):
    """Errors end a command with one line."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (LabError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted; the same command again goes on, lab.down undoes it", err=True)
            sys.exit(130)


@contextmanager
def change() -> Iterator[None]:
    """As root, while no other lab command changes anything."""
    host.require_programs()
    if os.geteuid() != 0:
        host.become_root()
    with host.locked("lab"):
        yield


@click.group(cls=Commands, help="Disposable Debian machines on this host.")
def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


@main.command(
    help="Start machines; those named, or drakar and cheetah. NAME:13 takes Debian 13, NAME@dc2 "
    "plugs it into another network."
)
@click.argument("names", nargs=-1, metavar="[NAME[:RELEASE][@NETWORK]]...")
def up(names: tuple[str, ...]) -> None:
    begin = time.monotonic()
    with change():
        started = _start(_wanted(names or DEFAULT))
    _wait(started, begin)


def _wanted(words: Iterable[str]) -> list[Machine]:
    """The named machines, as they are or as they are to be; new ones have no address yet.

    :raises LabError: where one is asked for in two ways, or is there in another
    """
    there = {machine.name: machine for machine in machines.known()}
    wanted: dict[str, Machine] = {}
    for name, asked in map(machines.parse, words):
        machine = wanted.get(name) or there.get(name)
        machine = machine or Machine(name, address="", **{"release": DEFAULT_RELEASE, **asked})
        for key, value in asked.items():
            if getattr(machine, key) != value:
                raise LabError(_other(machine, key, value))
        wanted[name] = machine
    return list(wanted.values())


def _other(machine: Machine, key: str, asked: object) -> str:
    what, mark = {"release": ("Debian", ":"), "network": ("network", "@")}[key]
    name, has = machine.name, getattr(machine, key)
    if not machine.address:
        return f"{name} is named with {what} {has} and with {what} {asked}"
    return (
        f"{name} is there with {what} {has}; to change that: "
        f"invoke lab.down {name}, then lab.up {name}{mark}{asked}"
    )


def _start(wanted: list[Machine]) -> tuple[list[Machine], list[Machine]]:
    """Start what does not run; returns all of them, and those that were started."""
    plugged = {machine.link: machine.network for machine in machines.known("*")}
    networks = network.up({machine.network for machine in wanted}, plugged)
    url = proxy.up(str(networks[LAB].gateway.ip))
    for release in sorted({machine.release for machine in wanted}):
        base.ensure(release, url)
    chosen = [_settle(machine, networks[machine.network].addresses) for machine in wanted]
    stopped = [machine for machine in chosen if not machine.pids()]
    for machine in stopped:
        machines.start(machine, networks[machine.network], url)
    return chosen, stopped


def _wait(started: tuple[list[Machine], list[Machine]], begin: float) -> None:
    """Until each of them answers. Nobody else has to wait for that."""
    chosen, stopped = started
    try:
        for machine in chosen:
            machines.wait(machine)
            state = "started" if machine in stopped else "runs"
            print(f"{machine.name}: {state}, Debian {machine.release}, {machine.address}")
    finally:
        with host.locked("lab"):
            access.record(machine for machine in machines.known() if machine.pids())
    print(f"ready after {time.monotonic() - begin:.1f} s; next: invoke lab.ssh {chosen[0].name}")


def _settle(wanted: Machine, addresses: IPv4Network) -> Machine:
    """The machine as it was, or a new one; with an address of its network."""
    if not wanted.address:
        machines.remove(wanted)  # what an interrupted removal left of its disk
    elif wanted.pids() or IPv4Address(wanted.address) in addresses:
        return wanted
    taken = {machine.address for machine in machines.known("*")}
    found = replace(wanted, address=machines.free_address(addresses, taken))
    machines.save(found)
    return found


@main.command(help="Remove machines with their disks; those named, or all of this clone.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--purge", is_flag=True, help="Also remove base trees and stored packages.")
@change()
def down(names: tuple[str, ...], purge: bool) -> None:
    if names and purge:
        raise LabError("--purge removes what all machines need: name none")
    chosen = _named(names)
    if not chosen:
        print("no machines")
    for machine in chosen:
        machines.remove(machine)
        print(f"{machine.name}: removed")
    if not names:
        _clear_folder()
        _remove_orphans()
    access.record(machine for machine in machines.known() if machine.pids())
    if not machines.anybody_runs():
        _leave_host()
    if purge and (others := machines.known("*")):
        places = ", ".join(sorted({str(machines.checkout(m) or m.clone) for m in others}))
        raise LabError(f"kept {host.CACHE}: there are machines of other clones: {places}")
    if purge:
        base.purge()


def _named(names: tuple[str, ...]) -> list[Machine]:
    everything = {machine.name: machine for machine in machines.known()}
    unknown = [name for name in names if name not in everything]
    if unknown:
        there = ", ".join(everything) or "none"
        raise LabError(f"no machine {', '.join(unknown)}; there is: {there}")
    return [everything[name] for name in dict.fromkeys(names or everything)]


def _clear_folder() -> None:
    """Remove what an interrupted command left of this clone's machines."""
    for folder in (MACHINES / CLONE_ID).glob("*"):
        machines.remove(Machine(folder.name, 0, ""))
    shutil.rmtree(MACHINES / CLONE_ID, ignore_errors=True)
    (machines.CHECKOUTS / CLONE_ID).unlink(missing_ok=True)


def _remove_orphans() -> None:
    """Nobody else can remove the machines of a clone that was deleted."""
    for machine in machines.known("*"):
        checkout = machines.checkout(machine)
        if checkout and not checkout.exists():
            machines.remove(machine)
            print(f"{machine.name} of {checkout}: removed, that clone is gone")
    for file in machines.CHECKOUTS.glob("*"):
        if not (MACHINES / file.name).exists() or not any((MACHINES / file.name).iterdir()):
            shutil.rmtree(MACHINES / file.name, ignore_errors=True)
            file.unlink()


def _leave_host() -> None:
    """Nobody runs: undo what machines share, and unmount what killed ones left."""
    for machine in machines.known("*"):
        machines.kill(machine)
    proxy.down()
    network.down()


@main.command(help="Make machines anew, with an empty disk; those named, or all of this clone.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def rebuild(names: tuple[str, ...]) -> None:
    begin = time.monotonic()
    with change():
        chosen = _named(names)
        if not chosen:
            print("no machines; start some with: invoke lab.up")
            return
        for machine in chosen:
            machines.clear(machine)
        started = _start(chosen)
    _wait(started, begin)


@main.command(help="A power cut; lab.up starts the machine again with its disk.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@change()
def kill(names: tuple[str, ...]) -> None:
    for machine in _named(names):
        machines.kill(machine)
        print(f"{machine.name}: killed")


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
        return
    for row in rows:
        print(f"{row['name']}: {row['state']}, Debian {row['release']}, {row['address']}")
    if not rows:
        print("no machines; start some with: invoke lab.up")


@main.command(help="Open a shell on a machine.")
@click.argument("name")
def ssh(name: str) -> None:
    host.require_programs()
    words = access.shell(name)
    os.execvp(words[0], words)  # noqa: S606 - a shell is what was asked for


if __name__ == "__main__":
    main()
