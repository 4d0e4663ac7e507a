"""uWSGI on a host: Debian's packages, and the plugin that was built for exactly this uWSGI."""

import hashlib
from collections.abc import Generator
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import QuoteString

from deploy.files import RemoteFile, converge, fail
from deploy.state import HostState, current, forget
from fleet.model import Host
from plugin_build.identity import PACKAGES, PLUGIN, available

FOLDER = "/opt/uwsgi-consul-fleet/plugins"
NEEDED = ("uwsgi-core", "uwsgi-plugin-python3", "python3-venv")
LIBCURL = ("libcurl4", "libcurl4t64")  # Debian 13 renamed it


@operation()
def install(me: Host) -> Generator[Any, None, None]:
    """uWSGI, its Python plugin, and what an application's virtual environment needs."""
    known = current()
    missing = [package for package in NEEDED if package not in known.packages]
    if not known.packages.intersection(LIBCURL):
        missing.append(LIBCURL[0])
    if not missing:
        host.noop("uWSGI is installed")
        return
    script = f'{PACKAGES}install_packages "$@"'
    yield StringCommand("sh", "-euc", QuoteString(script), "packages", *missing)
    forget()


def plugin_file(known: HostState) -> RemoteFile | None:
    """The plugin for the uWSGI of this host, as it lies there; None where none was built.

    A running uWSGI keeps the file that it has loaded: another build goes to another
    path and is never written over it.
    """
    path = available().get(known.uwsgi.fingerprint) if known.uwsgi else None
    if path is None:
        return None
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return RemoteFile(f"{FOLDER}/{digest}/{PLUGIN}", content)


@operation()
def plugin(me: Host) -> Generator[Any, None, None]:
    """The consul plugin with the fingerprint of the uWSGI that is installed now."""
    file = plugin_file(current())
    if file is None:
        yield fail(_no_plugin(me, current()))
    else:
        yield from converge([file])


def _no_plugin(me: Host, known: HostState) -> str:
    if known.uwsgi is None:
        return f"{me.name}: no uWSGI found after its installation"
    at_hand = ", ".join(sorted(available())) or "none"
    return (
        f"{me.name}: no consul plugin for its uWSGI {known.uwsgi.version} "
        f"(fingerprint {known.uwsgi.fingerprint}; built so far: {at_hand}): run invoke build-plugin"
    )
