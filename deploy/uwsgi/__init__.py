"""uWSGI on a host: Debian's packages, and the plugin that was built for exactly this uWSGI."""

import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import operation
from pyinfra.operations import apt

from deploy.files import RemoteFile, converge, fail
from deploy.state import HostState, current, forget
from fleet.model import Host
from plugin_build.identity import PLUGIN, available

FOLDER = "/opt/uwsgi-consul-fleet/plugins"
PACKAGES = ("uwsgi-core", "uwsgi-plugin-python3", "python3-venv")
LIBCURL = ("libcurl4", "libcurl4t64")  # Debian 13 renamed it


@operation()
def install(me: Host) -> Generator[Any, None, None]:
    """uWSGI, its Python plugin, and what an application's virtual environment needs."""
    known = current()
    missing = [package for package in PACKAGES if package not in known.packages]
    if not known.packages.intersection(LIBCURL):
        missing.append(LIBCURL[0])
    if not missing:
        host.noop("uWSGI is installed")
        return
    yield from apt.packages._inner(
        packages=missing,
        update=True,
        cache_time=3600,
        no_recommends=True,
        extra_install_args="-o DPkg::Lock::Timeout=120",
    )
    forget()


def local_plugin(known: HostState) -> Path | None:
    """The plugin in dist/ for this host's uWSGI."""
    return available().get(known.uwsgi.fingerprint) if known.uwsgi else None


def remote_plugin(content: bytes) -> str:
    """Where a plugin lies on a host. A running uWSGI keeps the file that it has loaded:
    another build goes to another path and is never written over it."""
    return f"{FOLDER}/{hashlib.sha256(content).hexdigest()[:16]}/{PLUGIN}"


@operation()
def plugin(me: Host) -> Generator[Any, None, None]:
    """The consul plugin with the fingerprint of the uWSGI that is installed now."""
    known = current()
    path = local_plugin(known)
    if path is None:
        yield fail(_no_plugin(me, known))
        return
    content = path.read_bytes()
    yield from converge([RemoteFile(remote_plugin(content), content)])


def _no_plugin(me: Host, known: HostState) -> str:
    if known.uwsgi is None:
        return f"{me.name}: no uWSGI found after its installation"
    at_hand = ", ".join(sorted(available())) or "none"
    return (
        f"{me.name}: no consul plugin for its uWSGI {known.uwsgi.version} "
        f"(fingerprint {known.uwsgi.fingerprint}; built so far: {at_hand}): run invoke build-plugin"
    )
