"""The application on a host: its releases, its units, and which release serves."""

import hashlib
from collections.abc import Generator
from io import BytesIO
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FileUploadCommand, StringCommand, operation
from pyinfra.api.command import QuoteString

from deploy.app import release as release
from deploy.app.release import REQUIREMENTS, Release, has_environment
from deploy.files import RemoteFile, converge, fail, render
from deploy.state import HostState, UnitState, current, forget
from deploy.users import system_user
from deploy.uwsgi import START, plugin_file
from fleet.model import Host, Instance
from plugin_build.identity import binary, pypi_name

HERE = Path(__file__).parent
UNITS = "/etc/systemd/system"
RUNNING = UnitState("active", "enabled")

__all__ = ["install", "release", "retire", "switch", "units"]


def generation(me: Host, release: Release) -> str | None:
    """The name of a release together with everything it runs with on this host.

    A change of the plugin, an ini setting or a unit makes another generation, and
    is switched to like a change of the application. None where there is no plugin.
    """
    plugin = plugin_file(current())
    if plugin is None:
        return None
    parts = [
        *sorted(release.files(me).items()),
        ("plugin", plugin.path),
        ("environment", _environment(me, release)),
        ("service", _service(me, me.instances[0])),
    ]
    return f"{release.name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def _environment(me: Host, release: Release) -> str:
    """Names the virtual environment; ``-`` for a release without one."""
    if not has_environment(release, me):
        return "-"
    settings = me.settings
    parts = [release.requirements_digest, settings.app_python]
    if settings.uwsgi_source == "pypi":
        parts.append(pypi_name(settings))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@operation()
def install(me: Host, release: Release) -> Generator[Any, None, None]:
    """The release in a folder of its own, with its virtual environment and ini files."""
    known = current()
    plugin = plugin_file(known)
    name = generation(me, release)
    if plugin is None or name is None:
        yield fail(f"{me.name}: without its plugin no release can be installed")
        return
    if name in known.releases:
        host.noop(f"release {name} is installed")
        return
    app_name = me.settings.app_name
    yield from system_user(app_name)
    # A name of its own: a run that was killed may still be reading what it sent.
    upload = host.get_temp_filename()
    archive = BytesIO(release.archive(me))
    wheel = binary(me.settings).rpartition("/")[0]
    yield FileUploadCommand(archive, upload, host.get_temp_filename())
    yield StringCommand(
        "sh", "-c", QuoteString((HERE / "install.sh").read_text()), "install",
        app_name, name, upload, _environment(me, release), REQUIREMENTS,
        plugin.path, me.settings.app_python, QuoteString(wheel),
    )  # fmt: skip
    forget()


@operation()
def units(me: Host, release: Release) -> Generator[Any, None, None]:
    """A target for the application; a socket and a service template for each instance."""
    known = current()
    name = generation(me, release) or ""
    wanted = _unit_files(me, name)
    yield from _remove_stale(me, known, wanted)
    yield from converge(wanted)
    names = [unit.path.rpartition("/")[2] for unit in wanted]
    # The target and the sockets; the services are the switch's.
    started = [name for name in names if not name.endswith("@.service")]
    known = current()
    if any(known.units.get(name) != RUNNING for name in started):
        yield StringCommand(
            "systemctl", "daemon-reload", "&&", "systemctl", "--quiet", "enable", "--now", *started
        )
        forget()


def _unit_files(me: Host, name: str) -> list[RemoteFile]:
    app_name = me.settings.app_name
    files = [RemoteFile(f"{UNITS}/{app_name}.target", render(HERE / "target.j2", app=app_name))]
    for instance in me.instances:
        base = f"{UNITS}/{app_name}-{instance.port}"
        socket = render(HERE / "socket.j2", instance=instance, generation=name)
        files.append(RemoteFile(f"{base}.socket", socket))
        files.append(RemoteFile(f"{base}@.service", _service(me, instance)))
    return files


def _service(me: Host, instance: Instance) -> str:
    app_name = me.settings.app_name
    pypi = me.settings.uwsgi_source == "pypi"
    program = f"/srv/{app_name}/releases/%i/venv/bin/uwsgi" if pypi else "/usr/bin/uwsgi"
    return render(HERE / "service.j2", instance=instance, app=app_name, start=START, uwsgi=program)


def _remove_stale(
    me: Host, known: HostState, wanted: list[RemoteFile]
) -> Generator[Any, None, None]:
    """Units of instances that are no longer in the inventory."""
    app_name = me.settings.app_name
    paths = {file.path for file in wanted}
    for path in sorted(set(known.files) - paths):
        if path.startswith(f"{UNITS}/{app_name}-") and path.endswith(".socket"):
            base = path.removesuffix(".socket")
            unit = base.rpartition("/")[2]
            yield StringCommand(
                f"systemctl --quiet disable --now {unit}.socket;"
                f" systemctl --quiet stop '{unit}@*.service';"
                f" rm -f {path} {base}@.service {UNITS}/{app_name}.target.wants/{unit}@*.service"
            )
            forget()


@operation()
def switch(me: Host, release: Release) -> Generator[Any, None, None]:
    """Let each instance serve this release: start it beside the old one on the same socket,
    and stop the old one when the new one is ready."""
    known = current()
    name = generation(me, release)
    if name is None:
        yield fail(f"{me.name}: without its plugin no release can be started")
        return
    if known.current_release == name and all(_serves(known, i, name) for i in me.instances):
        host.noop(f"release {name} serves")
        return
    yield StringCommand(
        "sh", "-c", QuoteString((HERE / "switch.sh").read_text()), "switch",
        me.settings.app_name, name, *(str(instance.port) for instance in me.instances),
    )  # fmt: skip
    forget()


def _serves(known: HostState, instance: Instance, name: str) -> bool:
    base = f"{instance.service}-{instance.port}"
    service = f"{base}@{name}.service"
    return (
        known.units.get(f"{base}.socket") == RUNNING
        and known.units.get(service) == RUNNING
        and known.active_units(f"{base}@", ".service") == {service}
    )


@operation()
def retire(me: Host) -> Generator[Any, None, None]:
    """Stop the application; its plugin takes the instances out of the catalog first."""
    app_name = me.settings.app_name
    known = current()
    if not any(path.startswith(f"{UNITS}/{app_name}") for path in known.files):
        host.noop("the application is not here")
        return
    yield StringCommand(
        f"systemctl --quiet disable --now {app_name}.target;"
        f" rm -rf {UNITS}/{app_name}.target {UNITS}/{app_name}.target.wants"
        f" {UNITS}/{app_name}-*.socket {UNITS}/{app_name}-*@.service;"
        " systemctl daemon-reload"
    )
    forget()
