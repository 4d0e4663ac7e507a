"""uWSGI on a host, and the plugin that was built for exactly this uWSGI."""

import hashlib
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.build.builder import pypi_script
from uwsgi_consul_fleet.build.identity import IDENTIFY, PLUGIN, available
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.operations import packages
from uwsgi_consul_fleet.operations.files import RemoteFile, converge, fail
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import AppState

FOLDER = "/opt/uwsgi-consul-fleet"
START = f"{FOLDER}/start-uwsgi"
LIBCURL = ("libcurl4", "libcurl4t64")  # Debian 13 renamed it


@operation()
def install(here: Here, wanted: set[str]) -> Generator[Any, None, None]:
    """The uWSGI of each application, its Python plugin, and what virtual environments need.

    :param wanted: the plugins that the ini files load by their names
    """
    known, apps = here.known, list(here.applications)
    sources = {each.me.settings.uwsgi_source for each in apps}
    # PyPI's has all that it can have; Python's plugin comes with what else Python needs.
    lacks = wanted - known.uwsgi_plugins - {"python3"} if "debian" in sources else set()
    needed = [*dict.fromkeys(name for each in apps for name in _needed(each.me.settings))]
    missing = [package for package in needed if package not in known.packages]
    if not known.packages.intersection(LIBCURL):
        missing.append(LIBCURL[0])
    if missing:
        yield packages.install(*missing)
    if lacks:
        yield packages.install_uwsgi_plugins(*sorted(lacks))
    lacking = (each.me.settings for each in apps if each.its.uwsgi is None)
    scripts = {
        pypi_script(settings): None for settings in lacking if settings.uwsgi_source == "pypi"
    }
    for script in scripts:
        text = QuoteString(script)
        yield StringCommand("env", StringCommand("SCRIPT=", text, _separator=""), "sh", "-c", text)
    if not missing and not lacks and not scripts:
        host.noop("uWSGI is installed")
        return
    here.changed()


def _needed(settings: Settings) -> tuple[str, ...]:
    """Packages that an application of these settings takes."""
    if settings.uwsgi_source == "pypi":
        return ("python3-venv",)
    return ("uwsgi-core", *settings.language.packages)


def plugin_file(its: AppState) -> RemoteFile | None:
    """The plugin for an application's uWSGI, as it lies on the host; None where none was built.

    A running uWSGI keeps the file that it has loaded: another build goes to another
    path and is never written over it.
    """
    path = available().get(its.uwsgi.fingerprint) if its.uwsgi else None
    return _read(path) if path else None


@cache
def _read(path: Path) -> RemoteFile:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return RemoteFile(f"{FOLDER}/plugins/{digest}/{PLUGIN}", content)


@operation()
def plugin(here: Here) -> Generator[Any, None, None]:
    """The consul plugin with the fingerprint of the uWSGI that is installed now, and what
    holds it against the uWSGI that is there whenever a service starts. An application without one
    fails alone when it is to be installed, unless all of them have none."""
    apps = list(here.applications)
    files = dict.fromkeys(file for each in apps if (file := plugin_file(each.its)))
    if not files:
        yield fail(no_plugin(apps[0].me, apps[0].its))
        return
    start = (Path(__file__).parent / "start.sh").read_text()
    program = RemoteFile(START, f"#!/bin/sh\n{IDENTIFY}\n{start}", "755")
    yield from converge(here, [*files, program])


def no_plugin(me: AppHost, its: AppState) -> str:
    """Why an application has none, and what to do."""
    if its.uwsgi is None:
        return f"{me.name}: no uWSGI found after its installation"
    at_hand = ", ".join(sorted(available())) or "none"
    return (
        f"{me.name}: no consul plugin for its uWSGI {its.uwsgi.version} "
        f"(fingerprint {its.uwsgi.fingerprint}; built so far: {at_hand}): run invoke build-plugin"
    )
