"""The application on a host: its releases, and which of them serves."""

from base64 import encodebytes
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.command import QuoteString
from pyinfra.context import state as run

from uwsgi_consul_fleet.build.identity import binary
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations.applications.package import REQUIREMENTS, Package
from uwsgi_consul_fleet.operations.applications.package import prepare as prepare
from uwsgi_consul_fleet.operations.applications.program_file import program
from uwsgi_consul_fleet.operations.applications.step import step
from uwsgi_consul_fleet.operations.files import converge, fail
from uwsgi_consul_fleet.operations.lock import missing, rolled_out
from uwsgi_consul_fleet.operations.plan import DeployError, fleet
from uwsgi_consul_fleet.operations.state import HostState, UnitState, current, forget
from uwsgi_consul_fleet.operations.users import system_user
from uwsgi_consul_fleet.operations.uwsgi.uwsgi import plugin_file
from uwsgi_consul_fleet.releases.releases import PROGRAM
from uwsgi_consul_fleet.releases.rollout import Rollout, Step

HERE = Path(__file__).parent
LISTENING = UnitState("active", "enabled")

__all__ = ["install", "prepare", "refuse_taken_ports", "retire", "settle", "switch"]

# Of this run.
rollout = Rollout()


def refuse_taken_ports(me: Host) -> None:
    """:raises DeployError: where another application of this host has the ports of its own"""
    for name, ports in current().applications.items():
        taken = sorted(ports & {instance.port for instance in me.instances})
        if name != me.settings.app_name and taken:
            raise DeployError(
                f"{me.name}: {name} serves on port {', '.join(map(str, taken))}, which "
                f"{me.settings.app_name} needs: give it other ports (instances), or deploy "
                "once with the host out of app_servers; nothing was changed"
            )


@operation()
def install(me: Host, package: Package) -> Generator[Any, None, None]:
    """The release in a folder of its own, with its virtual environment, ini and unit files."""
    known = current()
    plugin = plugin_file(known)
    if plugin is None:
        yield fail(f"{me.name}: without its plugin no release can be installed")
        return
    app_name = me.settings.app_name
    # Also where the release is there: a host that was retired may have kept it.
    yield from system_user(app_name)
    yield from converge([program()])
    name = package.generation(plugin)
    if name in known.releases:
        host.noop(f"release {name} is installed")
        return
    wheels = binary(me.settings).rpartition("/")[0]
    yield StringCommand(
        "sh", "-c", QuoteString((HERE / "install.sh").read_text()), "install",
        app_name, name, package.virtualenv, REQUIREMENTS,
        plugin.path, me.settings.app_python, QuoteString(wheels),
        _stdin=encodebytes(package.archive()).decode(),
    )  # fmt: skip
    forget()


@operation()
def switch(me: Host, package: Package) -> Generator[Any, None, None]:
    """Let this host serve the release, if its turn comes: it is tried, started beside the old
    one on the same sockets, and the old one is stopped when Consul is to report the new."""
    known = current()
    plugin = plugin_file(known)
    if plugin is None:
        # It had one when the release was installed.
        yield FunctionCommand(_lost, (me,), {})
        return
    name = package.generation(plugin)
    if _serves(me, name, known):
        host.noop(f"release {name} serves")
        return
    if run.is_executing and (reason := _blocked()):
        host.log(f"stays on {known.current_release or 'nothing'}: {reason}")
        return
    yield FunctionCommand(
        _switch, (step(me, package.release.name, known.current_release, name),), {}
    )
    forget()


def _blocked() -> str:
    """Why the roll-out does not go on, or ''."""
    if rollout.stopped:
        return f"the roll-out stopped {rollout.stopped}"
    ours = {each.name for each in fleet().app_servers}
    failed = sorted(
        each.name for each in run.failed_hosts & run.activated_hosts if each.name in ours
    )
    return f"no roll-out begins while a host fails: {', '.join(failed)}" if failed else ""


# pyinfra passes these two to a function that has arguments of these names.
def _switch(state: Any, host: Any, its: Step) -> bool:
    return rollout.run(its)


def _lost(state: Any, host: Any, me: Host) -> bool:
    host.log_styled("can't be reached any more, or lost its plugin: not switched", fg="red")
    rollout.stop(f"at {me.name}", me)
    return False


def _serves(me: Host, generation: str, known: HostState) -> bool:
    app_name = me.settings.app_name
    sockets = {f"{app_name}-{instance.port}.socket" for instance in me.instances}
    services = {f"{app_name}-{i.port}@{generation}.service" for i in me.instances}
    return (
        known.current_release == generation
        and all(known.units.get(name) == LISTENING for name in sockets)
        and known.active_units(f"{app_name}-", ".service") == services
        and all(known.units[name].active == "active" for name in services)
    )


@operation()
def settle(me: Host, package: Package | None) -> Generator[Any, None, None]:
    """Write down which release the fleet is on.

    Every host takes part in this one, so that what comes after it in the order of the deploy
    also comes after it in time: pyinfra begins with whatever no host waits for.
    """
    reason = _blocked() if run.is_executing else ""
    if run.is_executing and _to_go(me) and (why_not := reason or _unreachable(me) or missing()):
        yield fail(f"{me.name}: {', '.join(_to_go(me))} stays on it: {why_not}")
    elif run.is_executing and not reason and package and _whole_fleet():
        try:
            rolled_out(me.settings.app_name)
        except FleetError as error:
            yield fail(f"{me.name}: the release serves, but it was not written down: {error}")
    host.noop("nothing to do")


def _unreachable(me: Host) -> str:
    """Which hosts that are to serve this run can't tell anything about, or ''."""
    lost = {each.name for each in run.failed_hosts} & {each.name for each in fleet().app_servers}
    if not lost:
        return ""
    return (
        f"{', '.join(sorted(lost))} can't be reached, and may be what is to take over; mend that, "
        f"or leave it out of this run: --limit {me.name}"
    )


def _to_go(me: Host) -> list[str]:
    """The applications on this host that it should not have. It may have its name from a group
    that it is not in any more: what counts is what is there. Of a host that stays in the cluster
    only what is the fleet's goes."""
    # Without it only what was to be kept is left.
    here = {*current().applications} if PROGRAM in current().files else set()
    if me.is_retired:
        return sorted(here)
    mine = {me.settings.app_name} if me.instances else set()
    return sorted(here & {*fleet().services} - mine)


def _whole_fleet() -> bool:
    """Whether this run has every host; with --limit the fleet is not on its release."""
    return {each.name for each in fleet().app_servers} <= {each.name for each in run.active_hosts}


@operation()
def retire(me: Host) -> Generator[Any, None, None]:
    """Out of the catalog, then out of service, and then gone from a host that is not to have
    it: one that is retired, or stays for Consul alone, or has got another application."""
    names = _to_go(me)
    keep = "" if me.settings.purge else "--keep-data"
    for name in names:
        yield StringCommand(PROGRAM, "stop", name)
        yield StringCommand(PROGRAM, "remove", keep, name)
    if not me.instances and PROGRAM in current().files and {*current().applications} <= {*names}:
        yield StringCommand("rm", "-rf", "/opt/uwsgi-consul-fleet", "/etc/uwsgi-consul-fleet")
    elif not names:
        host.noop("no application is to be removed here")
        return
    forget()
