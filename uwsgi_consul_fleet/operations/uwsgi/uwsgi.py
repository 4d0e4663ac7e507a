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
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations import packages
from uwsgi_consul_fleet.operations.files import RemoteFile, converge, fail
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import HostState

FOLDER = "/opt/uwsgi-consul-fleet"
START = f"{FOLDER}/start-uwsgi"
NEEDED = {
    "debian": ("uwsgi-core", "uwsgi-plugin-python3", "python3-venv"),
    "pypi": ("python3-venv",),
}
LIBCURL = ("libcurl4", "libcurl4t64")  # Debian 13 renamed it


@operation()
def install(here: Here, wanted: set[str]) -> Generator[Any, None, None]:
    """uWSGI, its Python plugin, and what an application's virtual environment needs.

    :param wanted: the plugins that the ini files load by their names
    """
    me, known = here.me, here.known
    source = me.settings.uwsgi_source
    # PyPI's has all that it can have.
    lacks = wanted - known.uwsgi_plugins - {"python3"} if source == "debian" else set()
    missing = [package for package in NEEDED[source] if package not in known.packages]
    if not known.packages.intersection(LIBCURL):
        missing.append(LIBCURL[0])
    if missing:
        yield packages.install(*missing)
    if lacks:
        yield packages.install_uwsgi_plugins(*sorted(lacks))
    if source == "pypi" and known.uwsgi is None:
        script = pypi_script(me.settings)
        text = QuoteString(script)
        yield StringCommand("env", StringCommand("SCRIPT=", text, _separator=""), "sh", "-c", text)
    elif not missing and not lacks:
        host.noop("uWSGI is installed")
        return
    here.changed()


def plugin_file(known: HostState) -> RemoteFile | None:
    """The plugin for the uWSGI of this host, as it lies there; None where none was built.

    A running uWSGI keeps the file that it has loaded: another build goes to another
    path and is never written over it.
    """
    path = available().get(known.uwsgi.fingerprint) if known.uwsgi else None
    return _read(path) if path else None


@cache
def _read(path: Path) -> RemoteFile:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return RemoteFile(f"{FOLDER}/plugins/{digest}/{PLUGIN}", content)


@operation()
def plugin(here: Here) -> Generator[Any, None, None]:
    """The consul plugin with the fingerprint of the uWSGI that is installed now, and what
    holds it against the uWSGI that is there whenever a service starts."""
    file = plugin_file(here.known)
    if file is None:
        yield fail(_no_plugin(here.me, here.known))
        return
    start = (Path(__file__).parent / "start.sh").read_text()
    yield from converge(here, [file, RemoteFile(START, f"#!/bin/sh\n{IDENTIFY}\n{start}", "755")])


def _no_plugin(me: Host, known: HostState) -> str:
    if known.uwsgi is None:
        return f"{me.name}: no uWSGI found after its installation"
    at_hand = ", ".join(sorted(available())) or "none"
    return (
        f"{me.name}: no consul plugin for its uWSGI {known.uwsgi.version} "
        f"(fingerprint {known.uwsgi.fingerprint}; built so far: {at_hand}): run invoke build-plugin"
    )
