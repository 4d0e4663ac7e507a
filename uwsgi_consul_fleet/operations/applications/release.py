"""What is released: the application's source and its requirements, and what it is called."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from urllib.parse import quote

from pyinfra import logger

from uwsgi_consul_fleet.host.content import CALLED, TAKEN
from uwsgi_consul_fleet.host.store import content_of
from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.languages import LANGUAGES, PYTHON
from uwsgi_consul_fleet.operations.applications import (
    environment,
    loading,
    locked,
    repository,
    requirements,
    source,
    steps,
)
from uwsgi_consul_fleet.operations.applications.archive import Sources
from uwsgi_consul_fleet.operations.applications.requirements import Requirements
from uwsgi_consul_fleet.operations.applications.source import SOURCE
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.releases.rule import Content
from uwsgi_consul_fleet.repository import VARIABLE, is_url
from uwsgi_consul_fleet.shipped import shipped

INI = "app/uwsgi.ini.j2"


@dataclass(frozen=True)
class Release:
    """The application at one revision; it may have no ``requirements``. ``resolution`` is the id of
    what these are resolved to."""

    name: str
    sources: Sources
    requirements: Requirements | None
    template: Path
    resolution: str = ""

    @property
    def content(self) -> Content:
        """What it is, under its name."""
        fields = {"sources": self.sources.digest, "requirements": self.requirements_digest}
        return Content(self.name, content_of(fields))

    @property
    def requirements_digest(self) -> str:
        """Of the requirements as they are written; '' without any."""
        return self.requirements.digest if self.requirements else ""


def made_by(release: Release) -> str:
    """The id of the resolution that is made for a release, known before there is one; '' where it
    has no requirements. With all versions given it does not matter for which."""
    written = release.requirements
    if written is None:
        return ""
    parts = (written.digest, "" if written.are_pinned else release.name)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def described(settings: Settings) -> tuple[str | None, ...]:
    """The settings that say what is released: where they are the same, so is the release."""
    return (
        settings.app_source,
        settings.app_ref,
        settings.app_root,
        settings.app_requirements,
        settings.app_ini,
        settings.entry[0],
        settings.app_type,
    )


def read(settings: Settings) -> Release:
    """What these settings describe, under git's name for it.

    :raises DeployError: where the source, the requirements or the template is missing or wrong
    """
    _, _, *how = described(settings)
    with _one_at_a_time:
        release = _read(_folder(settings), *how)
    for mount, path in settings.app_static.items():
        where = f"{loading.folder(settings)}{path}"
        _expect_inside(release.sources, where, f"app_static: {mount}")
        if not steps.has_some(settings):
            _tell_static(release.sources, where, mount)
    for path in settings.app_shared:
        where = f"{loading.folder(settings)}{path}"
        _expect_inside(release.sources, where, "app_shared")
        _look_at_shared(release.sources, where)
    return release


# Hosts are prepared side by side: the first one reads, the others find it read.
_one_at_a_time = Lock()


def _folder(settings: Settings) -> Path:
    """:raises DeployError: where there is none, or it can't be fetched"""
    source, ref = settings.app_source, settings.app_ref
    if ref or is_url(source):
        secret = lambda found: quote(environment.secret(found[1], settings, "app_source"), safe="")  # noqa: E731
        return repository.fetch(VARIABLE.sub(secret, source), ref)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DeployError(f"app_source: no folder {folder}; nothing was changed")
    return folder.resolve()


@cache
def _read(
    folder: Path,
    root: str | None,
    requirements_file: str | None,
    template: str | None,
    entry_file: str,
    kind: str,
) -> Release:
    if folder.name in TAKEN and not root:
        raise DeployError(
            f"app_source: a folder {folder.name} can't be released: a release has one of that "
            "name already; nothing was changed"
        )
    ini = _file("app_ini", template) if template else shipped(INI)
    file, extras = locked.split(requirements_file or "")
    written = _file("app_requirements", file, folder if root else Path()) if file else None
    sources = Sources(source.read(folder, root))
    if entry_file and not _has(sources, f"{SOURCE}/{entry_file}" if root else entry_file):
        where = folder if root else f"the release, which has {folder.name}/ of app_source"
        raise DeployError(
            f"app_entry_point: {entry_file} is not sent: no such file in {where}; "
            "nothing was changed"
        )
    wanted = None
    if written and kind == PYTHON:
        wanted = requirements.read(written, extras)
    elif written:
        _refuse_what_is_brought(sources, kind)
        wanted = requirements.read_others(written, LANGUAGES[kind])
    return Release(source.name(folder, sources.digest), sources, wanted, ini)


def _refuse_what_is_brought(sources: Sources, kind: str) -> None:
    """:raises DeployError: where what is to be installed lies in the source already"""
    if kind == "php" and _has(sources, f"{SOURCE}/{CALLED}"):
        raise DeployError(
            f"app_requirements: app_source has a folder {CALLED} of its own, which Composer would "
            "make: take it out of the repository, or set app_requirements = None; "
            "nothing was changed"
        )


def _expect_inside(sources: Sources, path: str, key: str) -> None:
    """:raises DeployError: where a path is not in the source"""
    (top,) = {each.path.split("/")[0] for each in sources.entries}
    if path.split("/")[0] != top:
        raise DeployError(
            f"{key}: {path} is not in app_source, which lands as {top}/: write "
            f"{top}/{path}, or set app_root; nothing was changed"
        )


@cache
def _tell_static(sources: Sources, path: str, mount: str) -> None:
    if not any(f"{each.path}/".startswith(f"{path}/") for each in sources.entries):
        logger.warning(
            f"    Warning: app_static: {mount}: nothing is sent of {path}: the application answers"
        )


@cache
def _look_at_shared(sources: Sources, path: str) -> None:
    """:raises DeployError: where a link can't take its place"""
    kept = path.rstrip("/")
    for each in sources.entries:
        behind = kept.startswith(f"{each.path}/") or (each.path == kept and each.link)
        if behind or (each.path == kept and path.endswith("/")):
            what = "a link" if each.link else "a file"
            raise DeployError(
                f"app_shared: {path}: {each.place} is {what}; a folder ends with a slash, a file "
                "does not, and a link is neither; nothing was changed"
            )


def _has(sources: Sources, path: str) -> bool:
    return any(each.path == path or each.path.startswith(f"{path}/") for each in sources.entries)


def _file(key: str, name: str, folder: Path = Path()) -> Path:
    """:raises DeployError: where there is none"""
    path = folder / Path(name).expanduser()
    if not path.is_file():
        raise DeployError(f"{key}: no file {path}; nothing was changed")
    return path
