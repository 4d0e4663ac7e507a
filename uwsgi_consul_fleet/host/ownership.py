"""Whose this host is, and what on it was made for its fleet: nothing else is ever removed."""

from __future__ import annotations

import json
import pwd
import subprocess
from typing import Any

from . import store
from .says import ReleaseError
from .systemd import UNITS

FILE = store.POINTERS / "fleet.json"
# Versions before 0.3 know nothing of fleets. They would deploy here as if it were theirs, but stop
# at ports that another application has: this is one, by a name that tells the operator.
NEWER = "a-newer-uwsgi-consul-fleet"
WHY = "# Written by uwsgi-consul-fleet: versions before 0.3, which know no fleets, stop at this.\n"


def read() -> dict[str, Any]:
    """What the host carries; empty where it is no fleet's."""
    try:
        return dict(json.loads(FILE.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ReleaseError(f"{FILE}: {error}") from None


def mark(fleet: str, id: str, layout: int, made: list[str], ports: list[int]) -> None:  # noqa: A002
    """Make this host the fleet's, with what is made on it; :raises ReleaseError: where it is
    another one's by now"""
    there = read()
    if there.get("id", id) != id:
        raise ReleaseError(f"belongs to the fleet {there.get('fleet')} ({there['id'][:8]})")
    names = sorted({*made, *there.get("made", ())})
    layout = max(layout, there.get("layout", 0))  # a newer version may have been here
    _write({"fleet": fleet, "id": id, "layout": layout, "made": names})
    store.write(store.POINTERS / f"{NEWER}.conf", WHY)
    for port in ports:
        store.write(UNITS / f"{NEWER}-{port}.socket", WHY)


def _write(record: dict[str, Any]) -> None:
    store.write(FILE, json.dumps(record) + "\n")


def expect(app: str) -> None:
    """:raises ReleaseError: where the application was not made for the fleet"""
    if _word(app) not in read().get("made", ()):
        raise ReleaseError(f"{app}: was not put here by this fleet; nothing of it was touched")


def forget(app: str) -> None:
    """The application is gone from here."""
    record = read()
    record["made"] = [each for each in record.get("made", ()) if each != _word(app)]
    _write(record)


def _word(app: str) -> str:
    return f"app:{app}"


def remove_user(name: str) -> None:
    """Where it is one of ours: without a home and without a shell."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        return
    if user.pw_dir == "/nonexistent" and user.pw_shell.endswith("nologin"):
        subprocess.run(["userdel", name], capture_output=True, check=False)
