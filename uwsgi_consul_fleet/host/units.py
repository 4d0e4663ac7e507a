"""The unit files of releases: copied out of a release when it is to run, removed afterwards."""

from __future__ import annotations

import re
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from . import app_token, elsewhere, store, systemd, told, workers
from .says import ReleaseError, say
from .store import Release
from .systemd import RUNTIME, UNITS

LISTEN = re.compile(r"^ListenStream=\[?(.*?)\]?:(\d+)$", re.MULTILINE)
EVERY = ("0.0.0.0", "::")  # noqa: S104
CONSUL = "consul.conf"  # the drop-in of services that says how Consul knows them


def install(release: Release, before: Release | None = None) -> None:
    """What it needs to run; nothing starts, and nothing that runs is changed.

    :param before: what it is to take over from
    """
    for port in _ports(release):
        _refuse_other_names(release, port)
    elsewhere.prepare(release, before)
    wanted = {"trial.service": RUNTIME / release.trial, "app.target": UNITS / _target(release)}
    for port in _ports(release):
        wanted[f"{port}.service"] = UNITS / release.service(port)
        wanted[f"{port}.socket"] = UNITS / _socket(release, port)
    for worker, unit in zip(release.workers, release.worker_units):
        wanted[f"{worker.name}.service"] = UNITS / unit
    copied = [_put(elsewhere.unit(release, name), path) for name, path in wanted.items()]
    said = app_token.drop_in(release.app)
    services = [path for path in wanted.values() if path.suffix == ".service"]
    copied += [_say(said, _template(path)) for path in services]
    # A reload takes systemd a good part of a second on a busy host.
    if any(copied):
        systemd.systemctl("daemon-reload")


def _target(release: Release) -> str:
    return f"{release.app}.target"


def _ports(release: Release) -> list[int]:
    return [instance.port for instance in release.instances]


def _put(text: str, target: Path) -> bool:
    """Whether that changed anything."""
    there = target.read_text() if target.is_file() else ""
    if target.suffix == ".socket":
        text = _at_its_address(text, there, target.name)
    if there == text:
        return False
    store.write(target, text)
    return True


def _template(service: Path) -> Path:
    """Where drop-ins are for all releases that this service has."""
    return service.with_name(f"{service.name.partition('@')[0]}@.service.d")


def _say(text: str, template: Path) -> bool:
    """Let a drop-in say so, or nothing; returns whether that changed anything."""
    path = template / CONSUL
    if text:
        return _put(text, path)
    if not path.exists():
        return False
    path.unlink()
    with suppress(OSError):  # somebody else's are in it too
        template.rmdir()
    return True


def _at_its_address(text: str, there: str, unit: str) -> str:
    """A socket keeps its address: releases before this one, to which one may go back, may find it
    by that alone, and none can change it while it is open. It follows its host to another one."""
    new, old = LISTEN.search(text), LISTEN.search(there)
    if new is None or new[1] in EVERY:
        return LISTEN.sub(old.group(), text) if new and old else text
    if old and old[1] not in EVERY and old[1] != new[1]:
        systemd.systemctl("stop", unit)  # what serves goes on listening as long as it runs
    elif old:
        return LISTEN.sub(old.group(), text)
    if _is_here(new[1]):
        return text
    say(f"{unit}: {new[1]} is no address of this host: port {new[2]} is open at all that it has")
    every = "[::]" if ":" in new[1] else "0.0.0.0"  # noqa: S104
    return LISTEN.sub(f"ListenStream={every}:{new[2]}", text)


def _refuse_other_names(release: Release, port: int) -> None:
    """uWSGI takes a socket that it is handed by its descriptor, or by the very address of it.

    :raises ReleaseError: where it would open the port beside the socket, and could not
    """
    unit, ini = UNITS / _socket(release, port), release.folder / f"{port}.ini"
    there = LISTEN.search(unit.read_text()) if unit.is_file() else None
    if not there or there[1] in EVERY or not ini.is_file():
        return
    text, name = ini.read_text(), there[0].partition("=")[2]
    if not told.takes_descriptor(text) and name not in text:
        raise ReleaseError(
            f"port {port} is open at {there[1]} alone: have the ini (app_ini) take the socket as "
            f"fd://3, or name {name}"
        )


def _is_here(address: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _drop_in(app: str, port: int) -> Path:
    return UNITS / f"{app}-{port}.socket.d" / "release.conf"


def closed_ports(release: Release) -> list[int]:
    """Its ports that nobody listens on."""
    return [port for port in _ports(release) if not systemd.is_active(_socket(release, port))]


def open_sockets(release: Release, ports: list[int]) -> None:
    """Listen on these ports; those that are new know this release alone until the switch."""
    for port in ports:
        if not _drop_in(release.app, port).is_symlink():
            text = store.drop_in(release, with_workers=False)  # whose turn has not come
            store.write(_drop_in(release.app, port), text)
    if ports:
        systemd.systemctl("daemon-reload")
        # Where nothing ran, what served last would start beside this release, with its workers.
        systemd.start([_socket(release, port) for port in ports], alone=True)


def _socket(release: Release, port: int) -> str:
    return f"{release.app}-{port}.socket"


def enable(release: Release) -> None:
    """Let a boot start what the pointer says."""
    for port in _ports(release):
        link = _drop_in(release.app, port)
        if not link.is_symlink():
            part = link.with_name(".release.conf")
            part.unlink(missing_ok=True)
            part.parent.mkdir(exist_ok=True)
            part.symlink_to(store.pointer(release.app))
            part.replace(link)
    sockets = [_socket(release, port) for port in _ports(release)]
    systemd.systemctl("enable", "--no-reload", _target(release), *sockets)
    systemd.systemctl("daemon-reload")
    systemd.start([_target(release)])


def other_ports(release: Release) -> list[int]:
    """Ports of the application that this release does not have."""
    return [port for port in all_ports(release.app) if port not in _ports(release)]


def all_ports(app: str) -> list[int]:
    found = (
        re.fullmatch(re.escape(app) + r"-(\d+)\.socket", path.name)
        for path in UNITS.glob(f"{app}-*.socket")
    )
    return sorted(int(match.group(1)) for match in found if match)


def close_sockets(app: str, ports: list[int]) -> None:
    """Close them for good. A uWSGI server that runs there goes on listening until it stops."""
    for port in ports:
        name = f"{app}-{port}.socket"
        systemd.systemctl("disable", "--now", name)
        shutil.rmtree(_drop_in(app, port).parent, ignore_errors=True)
        (UNITS / name).unlink(missing_ok=True)
    if ports:
        systemd.systemctl("daemon-reload")


def remove_unused(app: str) -> None:
    """The units of releases that neither run nor should, with drop-ins that are for no other; they
    come back from a release's folder when it is to run, and systemd reads that then."""
    current = store.current(app)
    kept = {*systemd.active(f"{app}-*@*.service"), *workers.running(app)}
    if current:
        kept |= {*current.services, *current.worker_units}
    for folder in (UNITS, RUNTIME):
        for path in folder.glob(f"{app}[-.]*@*.service"):
            if systemd.services(app).fullmatch(path.name) and path.name not in kept:
                path.unlink()
        for template in folder.glob(f"{app}[-.]*@.service.d"):
            name = template.name.removesuffix(".service.d")
            is_its = systemd.services(app).fullmatch(f"{name}_.service")
            if is_its and not any(folder.glob(f"{name}*.service")):
                _say("", template)


def remove_target(app: str) -> None:
    path = UNITS / f"{app}.target"
    if path.exists():
        systemd.systemctl("disable", "--now", path.name)
        path.unlink(missing_ok=True)
    shutil.rmtree(UNITS / f"{app}.target.wants", ignore_errors=True)
