"""The application leaves this host."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from . import app_token, ownership, store, systemd, units, workers
from .says import say


def stop(app: str, undo: bool = False) -> None:
    """Out of the catalog first, then out of service; requests in flight finish.

    A uWSGI server that is told to stop deregisters, goes on serving for its ``drain``
    seconds and then finishes. Its socket is closed before, else the next connection would
    start it again; it goes on listening by itself meanwhile.

    :param undo: what serves now was a mistake: this host forgets that it served
    """
    ownership.expect(app)
    mistake = store.current(app) if undo else None
    services, others = running(app), workers.running(app)
    # First: an interruption must not leave something that a boot starts again.
    store.pointer(app).unlink(missing_ok=True)
    units.close_sockets(app, units.all_ports(app))
    systemd.stop(services)
    workers.end(others)
    units.remove_target(app)
    units.remove_unused(app)
    systemd.systemctl("daemon-reload")
    (store.folder(app) / "current").unlink(missing_ok=True)
    if mistake:
        store.forget(mistake)
    more = f", {len(others)} workers" if others else ""
    say(f"{app}: out of service ({len(services)} instances{more} stopped)")


def running(app: str) -> list[str]:
    """The uWSGI servers of the application, whatever their release; no trials."""
    found = systemd.active(f"{app}-*@*.service")
    return [unit for unit in found if systemd.port_of(app, unit) is not None]


def remove(app: str, purge: bool) -> None:
    """Remove its user, its token and, where ``purge``, its releases; what they shared stays."""
    ownership.expect(app)
    folder = store.folder(app)
    shared = _close(folder / store.SHARED)
    if purge:
        _clear(folder)
    _close(folder)
    # Before its group: whoever gets its number next could read it.
    app_token.file(app).unlink(missing_ok=True)
    # By the user, and then by the record, the next deploy looks here again.
    ownership.remove_user(app)
    if not folder.exists():
        ownership.forget(app)
    left = "" if purge else str(folder)
    if shared:
        left = f"{left} and in it {shared} (app_shared)" if left else f"{shared} (app_shared)"
    say(f"{app}: removed" + (f", but for {left}" if left else ""))


def _close(folder: Path) -> Path | None:
    """Keep what is there from whoever gets the number of the application's user or group next; None
    where there is nothing."""
    with suppress(OSError):
        folder.rmdir()
    if not folder.exists():
        return None
    os.chown(folder, 0, 0)
    folder.chmod(0o700)
    return folder


def give_back(app: str) -> None:
    """Let the application's folder be open to its user and nobody else, and what releases shared be
    its user's, where it is root's since it retired or a user's who is gone."""
    with suppress(KeyError, FileNotFoundError):
        os.chown(store.folder(app), 0, pwd.getpwnam(app).pw_gid)
        store.folder(app).chmod(0o750)
    shared = store.folder(app) / store.SHARED
    if not shared.exists():
        return
    with suppress(KeyError):
        if (number := shared.stat().st_uid) != 0:
            pwd.getpwuid(number)
            return
    with suppress(KeyError):  # of a user that is gone the start tells
        user = pwd.getpwnam(app)
        shared.chmod(0o750)
        words = ["chown", "-hR", f"{user.pw_uid}:{user.pw_gid}", f"{shared}/"]
        subprocess.run(words, check=False)


def _clear(folder: Path) -> None:
    """Remove an application's folder, but for what releases shared."""
    for each in folder.glob("*") if folder.exists() else ():
        if each.name == store.SHARED:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink()
    with suppress(OSError):
        folder.rmdir()
