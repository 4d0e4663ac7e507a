"""The releases on this host, which of them serves, and what served before."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .says import ReleaseError

ROOT = Path("/srv")
# Not below /srv, which may be mounted late: systemd reads it early in a boot.
POINTERS = Path("/etc/uwsgi-consul-fleet")
# In an application's folder, what its releases share: it outlives all of them, and the application.
SHARED = "shared"


@dataclass(frozen=True)
class Instance:
    """A uWSGI server of the application on this host."""

    id: str
    port: int


@dataclass(frozen=True)
class Worker:
    """Another process of the application on this host; its name is KIND.NUMBER.

    ``overlap`` is whether two releases' may run side by side.
    """

    name: str
    overlap: bool

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Release:
    """A release in its folder; the fields are those of its release.json."""

    app: str
    generation: str
    release: str
    settings: str
    node: str
    instances: tuple[Instance, ...]
    health_path: str
    health_timeout: int  # seconds
    min_healthy_time: int  # seconds
    health_headers: dict[str, str]
    health_statuses: str
    content: str
    settings_alone: str
    resolution: str = ""
    workers: tuple[Worker, ...] = ()

    @property
    def folder(self) -> Path:
        return folder(self.app) / "releases" / self.generation

    def service(self, port: int) -> str:
        return f"{self.app}-{port}@{self.generation}.service"

    @property
    def services(self) -> list[str]:
        return [self.service(instance.port) for instance in self.instances]

    @property
    def worker_units(self) -> list[str]:
        # No application's name has a dot.
        return [f"{self.app}.{each.name}@{self.generation}.service" for each in self.workers]

    @property
    def trial(self) -> str:
        return f"{self.app}-trial@{self.generation}.service"


def folder(app: str) -> Path:
    return ROOT / app


def load(app: str, generation: str) -> Release:
    """:raises ReleaseError: where this host has no such release, or its file is damaged"""
    path = folder(app) / "releases" / generation / "release.json"
    try:
        return _made_of(app, generation, json.loads(path.read_text()))
    except FileNotFoundError:
        there = ", ".join(generations(app)) or "none"
        raise ReleaseError(f"no release {generation} on this host; there is: {there}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path} can't be read: {error!r}") from None


def _made_of(app: str, generation: str, fields: dict[str, Any]) -> Release:
    # By name: another version of this program may have written more than is known here.
    return Release(
        app=app,
        generation=generation,
        release=fields["release"],
        settings=fields.get("settings", ""),
        node=fields["node"],
        instances=tuple(Instance(each["id"], each["port"]) for each in fields["instances"]),
        health_path=fields["health_path"],
        health_timeout=fields["health_timeout"],
        min_healthy_time=fields["min_healthy_time"],
        # Versions before 0.3 had neither.
        health_headers=fields.get("health_headers", {}),
        health_statuses=fields.get("health_statuses", "200-399"),
        content=content_of(fields),
        settings_alone=fields.get("settings_alone", ""),
        resolution=fields.get("resolution") or "",
        workers=tuple(Worker(each["name"], each["overlap"]) for each in fields.get("workers", ())),
    )


def content_of(fields: Mapping[str, Any]) -> str:
    """The digest of the content, from the fields of a release.json: of its sources and of its
    requirements as they were written; '' where a version before 0.3 wrote it."""
    if "sources" not in fields:
        return ""
    return f"{fields['sources']}.{fields['requirements'] or ''}"


def generations(app: str) -> list[str]:
    """What is in the folder, an interrupted installation's leftovers aside."""
    found = (folder(app) / "releases").glob("[!.]*")
    return sorted(path.name for path in found if (path / "release.json").exists())


def _readable(app: str) -> Iterator[Release]:
    """All releases, but for those of which the file is damaged: what others do goes on."""
    for generation in generations(app):
        with suppress(ReleaseError):
            yield load(app, generation)


# --- Which one serves ----------------------------------------------------------------


def pointer(app: str) -> Path:
    """A drop-in of all sockets of the application: it decides what a boot and a connection
    start. It is one file, so that no moment and no power cut finds two answers."""
    return POINTERS / f"{app}.conf"


def drop_in(release: Release, with_workers: bool) -> str:
    units = [f"%N@{release.generation}.service", *(release.worker_units if with_workers else ())]
    return (
        "# Written by uwsgi-consul-fleet: which release a boot and a connection start.\n"
        f"[Unit]\nWants={' '.join(units)}\n\n[Socket]\nService={units[0]}\n"
    )


def current(app: str) -> Release | None:
    """The release that this host is on; None before the first."""
    try:
        found = re.search(r"^Service=%N@(.+)\.service$", pointer(app).read_text(), re.MULTILINE)
    except FileNotFoundError:
        return None
    return load(app, found.group(1)) if found and found.group(1) in generations(app) else None


def point_to(release: Release) -> None:
    """The moment of the switch."""
    text = drop_in(release, with_workers=True)
    path = pointer(release.app)
    if not path.exists() or path.read_text() != text:
        write(path, text)
    link = folder(release.app) / "current"
    part = link.with_name(".current")
    part.unlink(missing_ok=True)
    part.symlink_to(f"releases/{release.generation}")
    part.replace(link)


def write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


# --- What served before --------------------------------------------------------------


def history(app: str) -> list[dict[str, Any]]:
    """What served on this host, oldest first."""
    try:
        lines = (folder(app) / "history").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def record(release: Release, back: bool = False, began: str = "") -> None:
    """Note that this one serves now.

    :param back: the one before was rolled back from
    :param began: when that was asked for; a host that nobody reaches any more may end it late
    """
    entry: dict[str, Any] = {
        "generation": release.generation,
        "release": release.release,
        "since": now(),
    }
    before = history(release.app)
    if back:
        entry.update(back=True, began=began or entry["since"])
        entry["left"] = [
            each for each in _left(release.app, before) if each["generation"] != release.generation
        ]
    elif before and "left" in before[-1] and _has_content_of(release, before[-1]["generation"]):
        # With other settings it is still what was gone back to. Today's return with a change.
        entry["began"] = before[-1].get("began") or before[-1]["since"]
        entry["left"] = [{**each, "settings": ""} for each in before[-1]["left"]]
    _write_history(release.app, [*before, entry][-200:])


def _has_content_of(release: Release, generation: str) -> bool:
    if generation not in generations(release.app):
        return False
    other = load(release.app, generation)
    return (release.content or release.release) == (other.content or other.release)


def _left(app: str, entries: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What was rolled back from when the next entry is a roll-back: what served, and what that
    was rolled back from itself. A deploy looks at it when the releases are gone."""
    if not entries:
        return []
    last = entries[-1]
    found = list(last.get("left", []))
    if last["generation"] in generations(app):
        release = load(app, last["generation"])
        told = {"release": release.release, "content": release.content}
        told = {**told, "generation": release.generation, "settings": release.settings_alone}
        found.append(told)
    return found


def forget(release: Release) -> None:
    """Take back that it served just now, and remove it if it never did before."""
    entries = history(release.app)
    if entries and entries[-1]["generation"] == release.generation:
        entries.pop()
        _write_history(release.app, entries)
    if not has_served(release):
        discard(release)


def _write_history(app: str, entries: list[dict[str, Any]]) -> None:
    write(folder(app) / "history", "".join(json.dumps(entry) + "\n" for entry in entries))


def has_served(release: Release) -> bool:
    return any(entry["generation"] == release.generation for entry in history(release.app))


def first_ids(release: Release) -> list[str]:
    """The service ids of its instances that no release on this host ever had."""
    had = {each.id for one in _readable(release.app) if has_served(one) for each in one.instances}
    return [each.id for each in release.instances if each.id not in had]


def previous(app: str, current: str) -> str:
    """The generation to which a roll-back goes: the latest before ``current`` that is here still
    and was not rolled back from; '' where there is none."""
    line: list[str] = []
    for entry in history(app):
        generation = entry["generation"]
        if entry.get("back") and generation in line:
            del line[line.index(generation) :]
        line = [*(each for each in line if each != generation), generation]
    there = generations(app)
    before = (each for each in reversed(line) if each != current and each in there)
    return next(before, "")


def show(app: str) -> None:
    """Print every release here with what is known of it, the latest first."""
    now = current(app)
    served: dict[str, dict[str, Any]] = {}
    for entry in history(app):
        served.pop(entry["generation"], None)  # its place is that of the last time
        served[entry["generation"]] = entry
    order = list(served)
    before = previous(app, now.generation if now else "")
    found = []
    for release in _readable(app):
        generation = release.generation
        entry = served.get(generation, {})
        found.append(
            {
                "generation": generation,
                "release": release.release,
                "settings": release.settings,
                "content": release.content,
                "instances": [instance.id for instance in release.instances],
                "workers": [asdict(each) for each in release.workers],
                "current": now is not None and now.generation == generation,
                "previous": generation == before,
                "since": entry.get("since"),
                "order": order.index(generation) if entry else -1,
            }
        )
    found.sort(key=lambda row: (row["current"], row.pop("order")), reverse=True)
    print(json.dumps(found))


# --- Removal -------------------------------------------------------------------------

FRESH = 3600  # seconds in which a release may be on its way that needs the wheels


def discard(release: Release) -> None:
    """Remove a release that never served."""
    _remove(release.folder)
    _remove_unused(release.app)


def prune(app: str, keep: int) -> None:
    """Leave the one that serves and the latest before it, ``keep`` in all."""
    now = current(app)
    latest: dict[str, None] = {now.generation: None} if now else {}
    for entry in reversed(history(app)):
        latest.setdefault(entry["generation"])
    there = generations(app)
    kept = [generation for generation in latest if generation in there][:keep]
    for generation in there:
        if generation not in kept:
            _remove(folder(app) / "releases" / generation)
    _remove_unused(app)


def _remove(release: Path) -> None:
    """At once for everybody who looks: half of it would pass for an installed one. What is left
    where this is cut short goes with the next installation."""
    part = release.with_name(f".part-{release.name}")
    shutil.rmtree(part, ignore_errors=True)
    with suppress(FileNotFoundError):
        release.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def _remove_unused(app: str) -> None:
    """Virtual environments, and the wheels that they were made of."""
    links = (folder(app) / "releases").glob("*/venv")
    used = {link.resolve().name for link in links}
    used |= {release.resolution for release in _readable(app)}
    for kind in ("venvs", "resolutions"):
        for place in (folder(app) / kind).glob("[!.]*"):
            fresh = kind == "resolutions" and time.time() - place.stat().st_mtime < FRESH
            if place.name not in used and not fresh:
                shutil.rmtree(place, ignore_errors=True)
