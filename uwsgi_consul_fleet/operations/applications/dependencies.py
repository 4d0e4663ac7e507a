"""The dependencies of releases: resolved once, on one host of each kind, for all of the fleet.

For each kind of Python that hosts have, a resolution is a folder of wheels (see resolution.sh),
which stays on each of them: a host that comes later has it from there.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import IO, Any

from pyinfra import host
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.build.builder import assignments, stages, why
from uwsgi_consul_fleet.build.identity import SCRATCH
from uwsgi_consul_fleet.build.places import Place
from uwsgi_consul_fleet.build.source import packed
from uwsgi_consul_fleet.errors import FleetError, UnreachableError
from uwsgi_consul_fleet.host.content import BROUGHT
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.languages import PYTHON
from uwsgi_consul_fleet.operations.applications import environment
from uwsgi_consul_fleet.operations.applications.archive import pieces, temporary
from uwsgi_consul_fleet.operations.applications.release import Release
from uwsgi_consul_fleet.operations.applications.requirements import Requirements
from uwsgi_consul_fleet.operations.applications.resolution import (
    States,
    connected,
    everywhere,
    inside,
    is_named,
)
from uwsgi_consul_fleet.operations.applications.step import of_one
from uwsgi_consul_fleet.operations.files import Base64
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import AppHere, Run
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.ssh.connection import Result

HERE = Path(__file__).parent
KEEP = (HERE / "resolution.sh").read_text()
RECEIVE = KEEP + (HERE / "receive.sh").read_text()
GIVE_WAY = (HERE / "give_way.sh").read_text()
VENV = (HERE / "venv.sh").read_text()
BRING = GIVE_WAY + SCRATCH + KEEP + (HERE / "bring.sh").read_text()
RESOLVE = GIVE_WAY + SCRATCH + KEEP + VENV + (HERE / "resolve.sh").read_text()
TRIED = 2  # hosts of a kind, where the first can't do it
RESOLVED = "resolved.txt"
REFUSED = 3  # how resolve.sh ends where another host would fare no better


@of_one
@operation()
def bring(here: AppHere, release: Release) -> Generator[Any, None, None]:
    """The wheels of its dependencies: made on one host of each kind, and sent to the others."""
    if (release.resolution, here.its.python) in here.its.resolutions:
        host.noop("its dependencies are here")
        return
    yield FunctionCommand(_bring, (here, release), {})
    here.changed()


# pyinfra passes these two to a function that has arguments of these names.
def _bring(state: Any, host: Any, here: AppHere, release: Release) -> bool:
    me = here.me
    try:
        if not here.its.python:
            raise DeployError(f"{me.name}: app_python: {me.settings.app_python} does not run there")
        if wheels := here.run.once(Supply).wheels(me, release):
            _send(here, release, wheels)
    except (DeployError, FleetError) as error:
        for line in str(error).splitlines():
            host.log_styled(line, fg="red")
        return False
    return True


def _send(here: AppHere, release: Release, wheels: IO[bytes]) -> None:
    words = (here.me.app, release.resolution, here.its.python)
    stdin = Base64(lambda: pieces(wheels))
    command = StringCommand("sh", "-c", QuoteString(RECEIVE), "receive", *words, _stdin=stdin)
    done, output = here.run.pyinfra.executor(here.me.name)(command, False)
    if not done:
        raise DeployError(output.stderr or f"{here.me.name}: the connection was lost")


class Supply:
    """From where the hosts of a run have the wheels; they come here side by side."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._mutex = Lock()
        self._wanted: dict[tuple[str, str], str] = {}
        # For each application and resolution, by kind: a host that has it, or why there is none.
        self._holders: dict[tuple[str, str], dict[str, AppHost | str]] = {}
        self._files: dict[tuple[str, str, str], IO[bytes]] = {}

    def want(self, me: AppHost, release: Release) -> None:
        """To be said of each host before the first one asks.

        :raises DeployError: where it will have to be resolved, and a variable of pip's is missing
        """
        self._wanted[me.app, me.name] = release.resolution
        written, run, app = release.requirements, self._run, me.app
        # Those that this run leaves out are asked only where the others don't have it.
        have = (self._there(app, how(run, app), release.resolution) for how in (inside, everywhere))
        if written and written.variables and not any(have):
            _variables(me, written)

    def wheels(self, me: AppHost, release: Release) -> IO[bytes] | None:
        """A .tar for this host; None where it has them by now, as they were made there.

        :raises UnreachableError: where a host can't be reached any more
        :raises DeployError: where there are none
        """
        app, kind = me.app, self._run.its_state(me).python
        key = (app, release.resolution)
        with self._mutex:
            if key not in self._holders:
                self._holders[key] = self._resolve(app, release)
            holder = self._holders[key][kind]
            if isinstance(holder, str):
                # One host says all of it.
                mine = holder.startswith(f"{me.name}:")
                raise DeployError(holder if mine else holder.splitlines()[0].rstrip(":"))
            if holder.name == me.name:
                return None
            if (*key, kind) not in self._files:
                self._files[*key, kind] = _fetch(holder, release, kind)
            return self._files[*key, kind]

    def _resolve(self, app: str, release: Release) -> dict[str, AppHost | str]:
        """For all kinds, one after the other."""
        run, resolution = self._run, release.resolution
        kinds: defaultdict[str, list[AppHost]] = defaultdict(list)
        for each in connected(run, app):
            if self._wanted.get((app, each.name)) == resolution:
                kinds[run.its_state(each).python].append(each)
        kinds.pop("", None)
        found = self._there(app, inside(run, app), resolution)
        if kinds.keys() - found.keys():
            found = self._there(app, everywhere(run, app), resolution)
        problems = {}
        # What there is for an old Python there is for newer ones, rather than the reverse.
        for kind in sorted(kinds.keys() - found.keys(), key=_age):
            try:
                found[kind] = self._made(kinds[kind], kind, release, found)
            except (DeployError, FleetError) as error:
                problems[kind] = str(error)
        return {**found, **problems}

    def _there(self, app: str, states: States, resolution: str) -> dict[str, AppHost]:
        found: dict[str, AppHost] = {}
        hosts = {each.name: each for each in self._run.fleet.serving(app)}
        for name, known in states.items():
            for each, kind in known.resolutions:
                if each == resolution:
                    found.setdefault(kind, hosts[name])
        return found

    def _made(
        self, hosts: Sequence[AppHost], kind: str, release: Release, others: Mapping[str, AppHost]
    ) -> AppHost:
        """Resolve the requirements on the first of these hosts where it can be done."""
        problem = ""
        # A host that has them comes first, so that a new one does not decide for the others.
        hosts = sorted(hosts, key=lambda each: not _frozen(self._run, each, release))
        for each in hosts[:TRIED]:
            try:
                result = self._make(each, kind, release, others)
            except UnreachableError as error:
                problem = str(error)
                continue
            if result.exit_code == 0:
                return each
            problem = f"{each.name}: {why(result, 'its requirements could not be resolved')}"
            if result.exit_code == REFUSED:
                break
        raise DeployError(problem)

    def _make(
        self, on: AppHost, kind: str, release: Release, others: Mapping[str, AppHost]
    ) -> Result:
        written = release.requirements
        assert written
        like, resolved = "", b""
        for other, holder in others.items():
            like, resolved = holder.name, _resolved(holder, release, other)
            break
        script = RESOLVE
        variables = assignments(
            keep_toolchain="no",
            app=on.app,
            id=release.resolution,
            kind=kind,
            python=on.settings.app_python,
            main=written.main,
            like=like,
            frozen="" if like else _frozen(self._run, on, release),
            build_packages=" ".join(on.settings.app_build_packages),
        )
        if on.settings.app_type != PYTHON:
            variables, script = _to_bring(on, release, kind), BRING
        log = self._run.pyinfra.host(on.name).log
        say = stages(on.name, lambda _, stage: log(stage))
        return Place(on).run(variables + script, _given(on, written, resolved), say)


def _to_bring(on: AppHost, release: Release, kind: str) -> str:
    """What bring.sh is told."""
    language = on.settings.language
    return assignments(
        keep_toolchain="no",
        app=on.app,
        id=release.resolution,
        kind=kind,
        type=on.settings.app_type,
        tools=" ".join(language.tools),
        compiler=" ".join((*language.compiler, *on.settings.app_build_packages)),
        folder=BROUGHT,
    )


def _frozen(run: Run, on: AppHost, release: Release) -> str:
    """The generation on a host whose versions are to stay, or '': one that serves with these
    requirements, and of which a version before 0.3 left to the host what they resolve to."""
    known, written = run.its_state(on), release.requirements
    its = known.generations.get(known.current_generation, {})
    stays = written and its.get("requirements") == written.digest and not its.get("resolution")
    return known.current_generation if stays and not is_named(run, release) else ""


def _age(kind: str) -> tuple[int, ...]:
    """Of a Python, by its version."""
    found = re.search(r"(\d)(\d+)", kind)
    return (int(found[1]), int(found[2])) if found else ()


def _variables(me: AppHost, written: Requirements) -> dict[str, str]:
    """Those that pip needs.

    :raises DeployError: where one has no value, or none that can be handed over
    """
    names = written.variables
    found = {name: environment.secret(name, me.settings, "app_requirements") for name in names}
    for name, value in found.items():
        if "\n" in value:
            raise DeployError(f"app_requirements: {name} has several lines; nothing was changed")
    return found


def _given(me: AppHost, written: Requirements, resolved: bytes) -> bytes:
    """What resolve.sh reads."""
    lines = [f"{name}={value}\n" for name, value in _variables(me, written).items()]
    archive = packed({**written.files, RESOLVED: resolved}, "w")
    return "".join([*lines, "\n"]).encode() + archive


def _resolved(holder: AppHost, release: Release, kind: str) -> bytes:
    """The names, versions and hashes that a host has of a resolution."""
    return _ask(holder, f"cat {_folder(holder, release, kind)}/requirements.txt").stdout


def _fetch(holder: AppHost, release: Release, kind: str) -> IO[bytes]:
    """A .tar of all that it has of a resolution."""
    file = temporary()
    _ask(holder, f"exec tar -cf - -C {_folder(holder, release, kind)} .", file)
    file.flush()
    return file


def _folder(holder: AppHost, release: Release, kind: str) -> str:
    return shlex.quote(f"/srv/{holder.app}/resolutions/{release.resolution}/{kind}")


def _ask(holder: AppHost, script: str, into: IO[bytes] | None = None) -> Result:
    with ssh.connect(holder) as connection:
        result = ssh.run_script(connection, script, into=into)
    if result.exit_code:
        raise DeployError(f"{holder.name}: its dependencies can't be read: {result.stderr.strip()}")
    return result
