"""A release as it is on one host: everything that it runs with."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pyinfra import logger

from uwsgi_consul_fleet.build.identity import pypi_name
from uwsgi_consul_fleet.host import told
from uwsgi_consul_fleet.host.elsewhere import ELSEWHERE
from uwsgi_consul_fleet.host.store import SHARED
from uwsgi_consul_fleet.inventory import unit_options, uwsgi_options
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.languages import PYTHON
from uwsgi_consul_fleet.operations.applications import archive, environment, loading, steps
from uwsgi_consul_fleet.operations.applications.archive import File, Sources
from uwsgi_consul_fleet.operations.applications.release import INI, Release
from uwsgi_consul_fleet.operations.consul.existing import plugins_keys
from uwsgi_consul_fleet.operations.files import RemoteFile, render
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.uwsgi.uwsgi import START
from uwsgi_consul_fleet.releases.rule import Content

UNITS = Path(__file__).parent / "units"
ENVIRONMENT = "environment"
TRIAL = "RELEASE_TRIAL"
NOT_IN_A_TRIAL = re.compile(rf"^if-not-env = {TRIAL}$.*?^end-if", re.MULTILINE | re.DOTALL)
HOOKS = re.compile(r"^\s*((?:exec|hook|call)-[\w-]+|emperor|legion[\w-]*)\s*=", re.MULTILINE)
LOSING = re.compile(rf"^\s*({'|'.join(uwsgi_options.LOSING)})\s*=", re.MULTILINE)
PLUGINS = re.compile(r"^\s*(?:need-)?plugins?\s*=(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """A release for one host.

    ``files`` are those that it has beside the sources, by path; ``variables`` is the
    application's environment, which nobody may see; ``virtualenv`` says what is in its virtual
    environment, ``-`` for none. ``stays`` is the generation that the host is on, where it keeps
    the settings that it went back to. ``refused`` is what is released only where it is named;
    ``is_served`` says that hosts serve this release already.
    """

    release: Release
    files: dict[str, File] = field(repr=False)
    variables: str = field(repr=False)
    virtualenv: str
    stays: str = ""
    refused: tuple[Content, ...] = ()
    is_served: bool = False

    def generation(self, plugin: RemoteFile, python: str) -> str:
        """The name of the release together with everything it runs with on this host.

        A change of the plugin, an ini setting, a unit, the environment or the Python makes another
        generation, and is switched to like a change of the application.

        :param python: its kind, as the host says it
        """
        return self.stays or f"{self.release.name}-{self.digest(plugin.path, python)}"

    def environment(self, python: str) -> str:
        """The name of its virtual environment for a kind of Python; - for none."""
        return "-" if self.virtualenv == "-" else f"{self.virtualenv}-{python}"

    def digest(self, plugin: str = "", python: str = "") -> str:
        """A hash of everything that is in it, and of the plugin and the Python beside it."""
        parts = [
            *sorted(self.files.items()),
            ("sources", self.release.sources.digest),
            ("plugin", plugin),
            ("virtualenv", self.environment(python)),
            ("environment", environment.digest(self.variables) if self.variables else ""),
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]

    def archive(self) -> Iterator[bytes]:
        """A .tar.gz, in pieces; the same files give the same bytes.

        :raises DeployError: where the source is not any more what it was
        """
        variables = File(self.variables.encode(), 0o600)
        files = [*sorted(self.files.items()), (ENVIRONMENT, variables)]
        return archive.archive(self.release.sources, files)

    @property
    def uwsgi_plugins(self) -> set[str]:
        """Those that its ini files load by their names."""
        texts = [
            file.content.decode() for path, file in self.files.items() if path.endswith(".ini")
        ]
        lines = (match for text in texts for match in PLUGINS.findall(text))
        words = {word.strip().rpartition(":")[2] for line in lines for word in line.split(",")}
        return {word for word in words if re.fullmatch(r"\w+", word)}


def make(me: AppHost, release: Release) -> Package:
    """A release for this host, which has instances, from this machine's files.

    :raises DeployError: where something is missing or wrong
    """
    variables = environment.render(environment.variables(me.settings))
    virtualenv = _virtualenv(me, release)
    # What it runs with, but for what is different on each host.
    alone = {"settings_alone": settings_alone(me, release.template)}
    alike = Package(release, _files(_nowhere(me), release, alone), variables, virtualenv)
    files = _files(me, release, {"settings": alike.digest(), **alone})
    return Package(release, files, variables, virtualenv)


def settings_alone(me: AppHost, template: Path) -> str:
    """A hash of what a release runs with, whatever its name, its content and its host are.

    :raises DeployError: where something is missing or wrong
    """
    me, none = _nowhere(me), Release("", Sources(()), None, template)
    variables = environment.render(environment.variables(me.settings))
    inis = _inis(me, none)
    conduct = json.dumps({**_conduct(me), **_steps(me)})
    texts = {**inis, **_units(me, none, inis), "release.json": conduct}
    files = {path: File(text.encode()) for path, text in texts.items()}
    return Package(none, files, variables, _virtualenv(me, none)).digest()


def _nowhere(me: AppHost) -> AppHost:
    instances = tuple(replace(each, node="", address="") for each in me.instances)
    workers = me.settings.app_workers
    return replace(me, name="", address="", node="", instances=instances, workers=workers)


def _files(me: AppHost, release: Release, settings: Mapping[str, str]) -> dict[str, File]:
    manifest = _manifest(me, release, settings)
    inis = _inis(me, release)
    texts = {**inis, **_units(me, release, inis), "release.json": manifest}
    files = {path: File(text.encode()) for path, text in texts.items()}
    if release.requirements is not None:
        files |= {path: File(text) for path, text in release.requirements.files.items()}
    return files


def _has_virtualenv(me: AppHost, release: Release) -> bool:
    """For its requirements, or for its uWSGI."""
    if me.settings.app_type != PYTHON:
        return False
    return release.requirements is not None or me.settings.uwsgi_source == "pypi"


def _virtualenv(me: AppHost, release: Release) -> str:
    if not _has_virtualenv(me, release):
        return "-"
    settings = me.settings
    parts = [release.resolution, settings.app_python]
    if settings.uwsgi_source == "pypi":
        parts.append(pypi_name(settings))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _inis(me: AppHost, release: Release) -> dict[str, str]:
    found = {
        f"{instance.port}.ini": render(
            release.template,
            instance=instance,
            settings=me.settings,
            release=release.name,
            agent=plugins_keys(me),
            virtualenv=_has_virtualenv(me, release),
            folder=loading.folder(me.settings),
            plugins=loading.plugins(me.settings),
            loading=loading.loading(me.settings),
            options=loading.options(me.settings),
        )
        for instance in me.instances
    }
    for text in found.values():
        _refuse_without(loading.asked(me.settings), text, release.template)
    _tell_what_runs(release.template, "".join(found.values()))
    if any(f"if-not-env = {TRIAL}" not in text for text in found.values()):
        raise DeployError(
            f"app_ini: {release.template}: its `socket` and `consul-register` must stand between "
            f"`if-not-env = {TRIAL}` and `end-if =`, so that a release can be tried before it "
            "serves; nothing was changed"
        )
    return found


def _refuse_without(asked: Mapping[str, list[str]], ini: str, template: Path) -> None:
    """An operator's own template may be older than a setting, which would do nothing."""
    there = {line.strip() for line in ini.splitlines()}
    for setting, lines in asked.items():
        if lacking := [line for line in lines if line not in there]:
            raise DeployError(
                f"{setting}: app_ini: {template} does not write `{lacking[0]}`, without which it "
                f"does nothing: see how {INI} writes it, or leave app_ini out; nothing was changed"
            )


@cache
def _told(template: Path, options: tuple[str, ...]) -> None:
    logger.warning(
        f"    Warning: {template}: a trial of a release runs {', '.join(options)} too; what it "
        f"must not run belongs between `if-not-env = {TRIAL}` and `end-if =`"
    )


@cache
def _told_losing(options: tuple[str, ...]) -> None:
    logger.warning(
        f"    Warning: with {', '.join(options)} uWSGI does not wait for the requests that are "
        "under way when it ends: each release may lose some"
    )


def _tell_what_runs(template: Path, inis: str) -> None:
    """What the consul plugin can't hold back, and where a release may lose requests."""
    if losing := tuple(sorted({*LOSING.findall(inis)})):
        _told_losing(losing)
    if found := tuple(sorted({*HOOKS.findall(NOT_IN_A_TRIAL.sub("", inis))})):
        _told(template, found)


def _units(me: AppHost, release: Release, inis: dict[str, str]) -> dict[str, str]:
    settings = me.settings
    app = settings.app_name
    pypi = settings.uwsgi_source == "pypi"
    program = f"/srv/{app}/releases/%i/venv/bin/uwsgi" if pypi else "/usr/bin/uwsgi"
    values: dict[str, Any] = {"app": app, "settings": settings, "start": START, "uwsgi": program}
    values |= _allowed(me)
    first = me.instances[0].port
    found = {
        "units/app.target": render(UNITS / "target.j2", **values),
        "units/trial.service": render(UNITS / "trial.j2", port=first, **values),
    }
    for instance in me.instances:
        ini = inis[f"{instance.port}.ini"]
        # An ini that names the socket's address finds it among those that systemd lists.
        by_descriptor = told.takes_descriptor(ini)
        values["by_descriptor"] = by_descriptor
        values["address"] = _listens(settings, instance.address) if by_descriptor else "0.0.0.0"  # noqa: S104
        for kind in ("service", "socket"):
            text = render(UNITS / f"{kind}.j2", port=instance.port, **values)
            found[f"units/{instance.port}.{kind}"] = text
    return found | _worker_units(me, release, first, inis[f"{first}.ini"])


def _listens(settings: Settings, address: str) -> str:
    if settings.app_listen == "all":
        return "[::]" if ":" in address else "0.0.0.0"  # noqa: S104
    return f"[{address}]" if ":" in address else address


def _worker_units(me: AppHost, release: Release, port: int, ini: str) -> dict[str, str]:
    """They are told what uWSGI is told: where modules of other languages are, too."""
    folder = f"/srv/{me.app}/releases/%i"
    variables = told.read(ini, told.names(folder, port, "%H", "%i", "%%")).variables
    variables.pop("APP_PORT", None)
    if me.settings.app_type == PYTHON:
        variables["PYTHONPATH"] = f"{folder}/{loading.imports(me.settings)}"
    lines = [json.dumps(f"{k}={v}", ensure_ascii=False) for k, v in variables.items()]
    venv = f"{folder}/venv"
    before = f"export VIRTUAL_ENV={venv} PATH={venv}/bin:$PATH; "
    before = before if _has_virtualenv(me, release) else ""
    return {
        f"units/{name}.service": render(
            UNITS / "worker.j2",
            app=me.app,
            name=name,
            instances=me.instances,
            worker=me.workers[name.partition(".")[0]],
            command=_word(before, me.workers[name.partition(".")[0]].command),
            folder=loading.folder(me.settings),
            told=lines,
            settings=me.settings,
            **_allowed(me),
        )
        for name in me.worker_names
    }


def _allowed(me: AppHost) -> dict[str, Any]:
    """What its units have beside hardened.j2, and leave out."""
    settings, language = me.settings, me.settings.language
    shared = f"/srv/{me.app}/{SHARED}"
    lines = [f"ReadWritePaths=-{path}" for path in (shared, *language.writable)]
    lines += [f"ReadWritePaths={path}" for path in settings.app_writable or ()]
    if settings.app_writable is None:
        lines.append(ELSEWHERE)
    return {"compiles": language.compiles, "allowed": lines + unit_options.lines(settings.app_unit)}


def _word(before: str, command: str) -> str:
    """One word of a unit. In what stands before a command %i is systemd's; a shell that went on
    beside it would be asked to finish in its place."""
    text = f"{before}exec {command.replace('%', '%%')}".replace("$", "$$")
    return json.dumps(text, ensure_ascii=False)


def _manifest(me: AppHost, release: Release, settings: Mapping[str, str]) -> str:
    """What the program on the host reads (see host/store.py), and the deploy (see state.sh)."""
    fields = {
        "release": release.name,
        **settings,
        "sources": release.sources.digest,
        "requirements": release.requirements_digest,
        "requirements_file": release.requirements.main if release.requirements else "-",
        "resolution": release.resolution,
        "node": me.node,
        "instances": [{"id": each.id, "port": each.port} for each in me.instances],
        **_conduct(me),
        **_steps(me),
    }
    return json.dumps(fields, indent=2) + "\n"


def _steps(me: AppHost) -> dict[str, Any]:
    """What else is a part of it; nothing of what is not set, so that releases of before stay."""
    settings = me.settings
    found: dict[str, Any] = {}
    if settings.app_packages:
        found["packages"] = sorted(settings.app_packages)
    if steps.has_some(settings):
        found["steps"] = {"shared": settings.app_shared, "build": settings.app_build}
    return found


def _conduct(me: AppHost) -> dict[str, Any]:
    """What the program on the host has to know of its settings."""
    settings = me.settings
    workers = [
        {"name": name, "overlap": me.workers[name.partition(".")[0]].overlap}
        for name in me.worker_names
    ]
    return {
        # A release without any stays as versions before made it.
        **({"workers": workers} if workers else {}),
        "health_path": settings.health_path,
        "health_timeout": settings.health_timeout,
        "min_healthy_time": settings.min_healthy_time,
        "health_headers": settings.health_headers,
        "health_statuses": settings.health_statuses,
    }
