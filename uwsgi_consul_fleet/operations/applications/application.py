"""The application on a host: its releases, and which of them serves."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.build.identity import binary
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host import systemd
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.operations import packages as debian
from uwsgi_consul_fleet.operations.applications import decided, resolution, steps
from uwsgi_consul_fleet.operations.applications.decided import mistaken
from uwsgi_consul_fleet.operations.applications.dependencies import GIVE_WAY, VENV, bring
from uwsgi_consul_fleet.operations.applications.once import Once
from uwsgi_consul_fleet.operations.applications.package import Package
from uwsgi_consul_fleet.operations.applications.step import of_one, step
from uwsgi_consul_fleet.operations.files import Base64, fail
from uwsgi_consul_fleet.operations.lock import missing, rolled_out
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.program import command
from uwsgi_consul_fleet.operations.run import AppHere, Here, Run
from uwsgi_consul_fleet.operations.state import RUNNING
from uwsgi_consul_fleet.operations.users import system_user
from uwsgi_consul_fleet.operations.uwsgi.uwsgi import FOLDER, START, no_plugin, plugin_file
from uwsgi_consul_fleet.releases.rollout import Step
from uwsgi_consul_fleet.ssh.client import LOST

HERE = Path(__file__).parent
INSTALL = GIVE_WAY + VENV + (HERE / "install.sh").read_text()

__all__ = [
    "bring",
    "conclude",
    "install",
    "mistaken",
    "packages",
    "prepare",
    "refuse_what_is_taken",
    "retire",
    "run_once",
    "settle",
    "switch",
]


def refuse_what_is_taken(here: Here) -> None:
    """:raises DeployError: where another application of this host has the ports of its own, or its
    ids in Consul and goes on serving"""
    for its in here.me.applications:
        _refuse_what_is_taken(here, its)
    fleet = here.run.fleet
    strange = sorted({*here.known.applications} - {*fleet.services})
    if strange and fleet.is_described and not fleet.is_part and not here.me.is_retired:
        logger.warning(
            f"    Warning: {here.me.name}: applications/ has no file for {', '.join(strange)}, "
            "which stays as it is; one whose group in the inventory is empty is taken away"
        )


def _refuse_what_is_taken(here: Here, me: AppHost) -> None:
    for name, ids in here.known.ids.items():
        same = sorted(ids & {instance.id for instance in me.instances})
        if name not in here.run.fleet.services and same:
            raise DeployError(
                f"{me.name}: {name} is registered in Consul as {', '.join(same)} of this host, "
                f"which {me.app} would take from it: give instances other names "
                '(or ids: {"server1": {"port": 2001, "id": "shop-1"}}); nothing was changed'
            )
    for name, ports in here.known.applications.items():
        taken = sorted(ports & {instance.port for instance in me.instances})
        if name != me.app and taken:
            before = "once with the host out of app_servers"
            if me.is_described:
                before = f"first with a file for {name} and {me.name} out of its group"
            raise DeployError(
                f"{me.name}: {name} serves on port {', '.join(map(str, taken))}, which "
                f"{me.app} needs: give it other ports (instances), or deploy {before}; "
                "nothing was changed"
            )


@dataclass(frozen=True)
class Prepared:
    """What of an application is released on a host, and where."""

    here: AppHere
    package: Package


def prepare(here: Here) -> dict[str, Prepared]:
    """What is released on this host of each of its applications.

    :raises DeployError: where something is missing or wrong, before any host is touched
    """
    return {each.me.app: Prepared(each, decided.prepare(each)) for each in here.applications}


@of_one
@operation()
def packages(here: AppHere) -> Generator[Any, None, None]:
    """The Debian packages that an application runs with (app_packages)."""
    lacking = [x for x in here.me.settings.app_packages if x not in here.known.packages]
    if not lacking:
        host.noop("its Debian packages are installed")
        return
    yield debian.install(*lacking)
    here.changed()


@of_one
@operation()
def user(here: AppHere) -> Generator[Any, None, None]:
    """Who an application runs as, and what its dependencies are made by; also where the release
    is there: a host that was retired may have kept it."""
    yield from system_user(here, here.me.app)
    if here.me.app in here.known.users:
        host.noop("its user is there")


@of_one
@operation()
def install(here: AppHere, package: Package) -> Generator[Any, None, None]:
    """The release in a folder of its own, with its virtual environment, ini and unit files."""
    me, its = here.me, here.its
    if here.run.has_failed(me):
        host.noop(f"{me.app} failed before, and stays as it was")
        return
    plugin = plugin_file(its)
    if plugin is None:
        yield fail(no_plugin(me, its))
        return
    name = package.generation(plugin, its.python)
    if name in its.generations:
        host.noop(f"release {name} is installed")
        return
    if here.run.pyinfra.is_executing:
        try:
            package.release.sources.packed()
        except DeployError as error:
            yield fail(f"{me.name}: {error}")
            return
    wheels = binary(me.settings).rpartition("/")[0]
    yield StringCommand(
        "sh", "-c", QuoteString(INSTALL), "install",
        me.app, name, package.environment(its.python),
        QuoteString(resolution.place(package.release.resolution, its.python)),
        plugin.path, me.settings.app_python, QuoteString(wheels), steps.manifest(me.settings),
        _stdin=Base64(package.archive),
    )  # fmt: skip
    yield from steps.finish(here, name)
    here.changed()


@of_one
@operation()
def run_once(here: AppHere, package: Package) -> Generator[Any, None, None]:
    """What a release does once for all hosts (app_release), on the first that is to be switched."""
    me, its = here.me, here.its
    plugin = plugin_file(its)
    if here.run.has_failed(me) or plugin is None:
        host.noop(f"{me.app} failed before, and stays as it was")
        return
    if _serves(here, package.generation(plugin, its.python)):
        host.noop("what it is about serves")
        return
    yield FunctionCommand(_run_once, (here, package), {})


@of_one
@operation()
def switch(here: AppHere, package: Package) -> Generator[Any, None, None]:
    """Let this host serve the release, if its turn comes: it is tried, started beside the old
    one on the same sockets, and the old one is stopped when Consul is to report the new."""
    me, its, run = here.me, here.its, here.run
    if run.has_failed(me):
        host.noop(f"{me.app} failed before, and stays as it was")
        return
    plugin = plugin_file(its)
    if plugin is None:
        # It had one when the release was installed.
        yield FunctionCommand(_lost, (here,), {})
        return
    name = package.generation(plugin, its.python)
    if _serves(here, name):
        host.noop(f"release {name} serves")
        return
    if run.pyinfra.is_executing and (reason := _blocked(run, me.app)):
        host.log(f"stays on {its.current_generation or 'nothing'}: {reason}")
        return
    next_step = step(here, package.release.name, its.current_generation, name)
    yield FunctionCommand(_switch, (run, next_step), {})
    here.changed()


def _blocked(run: Run, app: str) -> str:
    """Why the roll-out of an application does not go on, or ''."""
    if stopped := run.rollouts[app].stopped:
        return f"the roll-out stopped {stopped}"
    missed, serving = _count_missed(run, app), run.fleet.serving(app)
    if len(missed) <= (serving[0].settings.max_failed_hosts if serving else 0):
        return ""
    return f"no roll-out begins while a host fails: {', '.join(sorted(missed))}"


def _count_missed(run: Run, app: str) -> set[str]:
    """The application's hosts that were reached and failed then, whatever they failed at: there is
    one budget for them all, that of its roll-out."""
    missed = run.rollouts[app].missed
    missed |= run.pyinfra.failed_since & {each.name for each in run.fleet.serving(app)}
    missed |= run.failed(app)
    return missed


# pyinfra passes these two to a function that has arguments of these names.
def _run_once(state: Any, host: Any, here: AppHere, package: Package) -> bool:
    if _blocked(here.run, here.me.app):
        return True
    try:
        return here.run.once(Once).went_well(here, package)
    except (DeployError, FleetError) as error:
        host.log_styled(str(error), fg="red")
        here.run.rollouts[here.me.app].stop(f"at app_release on {here.me.name}", here.me)
        return False


def _switch(state: Any, host: Any, run: Run, step: Step) -> bool:
    return run.rollouts[step.app].run(step)


def _show(state: Any, host: Any, here: Here, command: StringCommand) -> bool:
    """Run it with all that it says on the screen."""
    try:
        return here.run.pyinfra.executor(here.me.name)(command, True)[0]
    except LOST as error:
        host.log_styled(f"connection lost: {error}", fg="red")
        return False


def _lost(state: Any, host: Any, here: AppHere) -> bool:
    host.log_styled("can't be reached any more, or lost its plugin: not switched", fg="red")
    _count_missed(here.run, here.me.app)
    here.run.rollouts[here.me.app].miss(here.me)
    return False


def _serves(here: AppHere, generation: str) -> bool:
    me, known = here.me, here.known
    sockets = {f"{me.app}-{instance.port}.socket" for instance in me.instances}
    services = {f"{me.app}-{i.port}@{generation}.service" for i in me.instances}
    services |= {f"{me.app}.{name}@{generation}.service" for name in me.worker_names}
    return (
        here.its.current_generation == generation
        and all(known.units.get(name) == RUNNING for name in sockets)
        and known.active_units(systemd.services(me.app)) == services
        and all(known.units[name].active == "active" for name in services)
    )


@operation()
def settle(here: Here, apps: Mapping[str, Prepared]) -> Generator[Any, None, None]:
    """Write down which release the fleet is on, of each of these applications.

    Every host takes part in this one, so that what comes after it in the order of the deploy
    also comes after it in time: pyinfra begins with whatever no host waits for.
    """
    me, run = here.me, here.run
    executing = run.pyinfra.is_executing
    for app, each in apps.items() if executing else ():
        # What is new here is written down by a host that is on it.
        if _blocked(run, app) or me.name in _behind(run, app):
            continue
        _tell_behind(each.here, each.package)
        try:
            if _is_whole(run, app):
                rolled_out(each.here)
        except FleetError as error:
            yield fail(f"{me.name}: the release serves, but it was not written down: {error}")
    names = _to_go(here) if executing else []
    if names and (why_not := _not_taken_over(here, names) or missing(here)):
        yield fail(f"{me.name}: {', '.join(names)} stays on it: {why_not}")
    host.noop("nothing to do")


def _tell_behind(here: AppHere, package: Package) -> None:
    """Name the hosts that were left as they are; by one of the others."""
    hosts, left = here.run.fleet.serving(here.me.app), _behind(here.run, here.me.app)
    behind = [each.name for each in hosts if each.name in left]
    if behind and here.me == next((each for each in hosts if each.name not in left), None):
        logger.warning(
            f"--> {here.me.app}: {', '.join(behind)} stayed as it was; the others "
            f"are on {package.release.name}. Mend what failed there, and deploy again"
        )


def _behind(run: Run, app: str) -> set[str]:
    """The application's hosts that this run could not reach or left as they were, also where they
    go on with their other applications."""
    mine = {each.name for each in run.fleet.serving(app)}
    return mine & (run.pyinfra.failed | _count_missed(run, app))


def _not_taken_over(here: Here, names: list[str]) -> str:
    """Why what is to take over from these applications may not serve, or ''."""
    run = here.run
    apps = [name for name in names if run.fleet.serving(name)]
    if len(apps) < len(names):
        # One that nobody serves any more may have got another name.
        mine = [its.app for its in here.me.applications]
        apps = [*apps, *mine] if run.fleet.is_described else [*run.fleet.services]
    reasons = (_blocked(run, app) or _may_not_serve(here, app) for app in apps)
    return next(filter(None, reasons), "")


def _may_not_serve(here: Here, app: str) -> str:
    """Which hosts that are to serve it may not do so by now, or ''."""
    pyinfra, behind = here.run.pyinfra, _behind(here.run, app)
    if not behind:
        return ""
    names = ", ".join(sorted(behind))
    if behind <= pyinfra.failed - pyinfra.failed_since:
        return (
            f"{names} can't be reached, and may be what is to take over; mend that, "
            f"or leave it out of this run: --limit {here.me.name}"
        )
    return (
        f"{names} stayed as it was, and may be what is to take over; mend what failed there, "
        "and deploy again"
    )


def _to_go(here: Here) -> list[str]:
    """The applications on this host that it should not have. It may have its name from a group
    that it is not in any more: what counts is what is there. Of a host that stays in the cluster
    only what is the fleet's goes."""
    # Without it only what was to be kept is left.
    me, known, fleet = here.me, here.known, here.run.fleet
    there = {*known.applications} if START in known.files else set()
    if me.is_retired:
        there |= known.kept if me.settings.purge else set()
        return sorted(there & {*fleet.services} if fleet.is_part else there)
    mine = {its.app for its in me.applications}
    return sorted(there & {*fleet.services} - mine)


@operation()
def conclude(here: Here) -> Generator[Any, None, None]:
    """Fail the host where one of its applications did, now that the others are through."""
    failed = [each.app for each in here.me.applications if here.run.has_failed(each)]
    if failed and here.run.pyinfra.is_executing:
        yield fail(f"{here.me.name}: failed: {', '.join(failed)}; see above")
    host.noop("every roll-out went well here")


def _is_whole(run: Run, app: str) -> bool:
    """Whether this run is about every host; with --limit the fleet is not on its release. One that
    can't be reached gets it when it can."""
    return {each.name for each in run.fleet.serving(app)} <= run.pyinfra.about


@operation()
def retire(here: Here) -> Generator[Any, None, None]:
    """Out of the catalog, then out of service, and then gone from a host that is not to have
    it: one that is retired, or stays for Consul alone, or has got another application."""
    me, known, names = here.me, here.known, _to_go(here)
    keep = () if me.settings.purge else ("--keep-data",)
    for name in names:
        yield command(here, "stop", name)
        # It says what it leaves there.
        yield FunctionCommand(_show, (here, command(here, "remove", *keep, name)), {})
    if not me.instances and START in known.files and {*known.applications} <= {*names}:
        yield StringCommand("rm", "-rf", f"{FOLDER}/plugins", f"{FOLDER}/uwsgi", START)
    elif not names:
        host.noop("no application is to be removed here")
        return
    here.changed()
