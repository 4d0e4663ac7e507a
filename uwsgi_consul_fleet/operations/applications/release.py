"""What is released: the application's source and its requirements, and what it is called."""

import hashlib
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.operations.plan import DeployError


class File(NamedTuple):
    """A file of a release."""

    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Release:
    """The application at one revision; ``sources`` are by their path in the release, and
    ``digest`` is a hash of them."""

    name: str
    sources: tuple[tuple[str, File], ...]
    digest: str
    requirements: bytes | None
    template: Path

    @property
    def requirements_digest(self) -> str:
        """Changes with the requirements; ``-`` where the application has none."""
        if self.requirements is None:
            return "-"
        return hashlib.sha256(self.requirements).hexdigest()[:16]


def read(settings: Settings) -> Release:
    """The release that these settings describe.

    :raises DeployError: where the source, the requirements or the template is missing
    """
    with _one_at_a_time:
        found = _read(settings.app_source, settings.app_requirements, settings.app_ini)
    return replace(found, name=settings.release) if settings.release else found


# Beside the source in a release.
TAKEN = {"units", "venv"}

# Hosts are prepared side by side: the first one reads, the others find it read.
_one_at_a_time = Lock()


@cache
def _read(source: str, requirements: str | None, template: str) -> Release:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DeployError(f"app_source: no folder {folder}; nothing was changed")
    for key, name in (("app_requirements", requirements), ("app_ini", template)):
        if name and not Path(name).expanduser().is_file():
            raise DeployError(f"{key}: no file {name}; nothing was changed")
    # Under the folder's own name, so that its modules keep the names they have here.
    parent = folder.resolve().parent
    if folder.resolve().name in TAKEN:
        raise DeployError(
            f"app_source: a folder {folder.name} can't be released: a release has one of that "
            "name already; nothing was changed"
        )
    sources = tuple(
        (str(path.relative_to(parent)), _file(path)) for path in _tracked(folder.resolve())
    )
    content = Path(requirements).expanduser().read_bytes() if requirements else None
    digest = _digest(sources)
    name = _name(folder, digest)
    return Release(name, sources, digest, content, Path(template).expanduser())


def _file(path: Path) -> File:
    """As git keeps it: what it holds, and whether it can be executed."""
    return File(path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644)


def _tracked(folder: Path) -> list[Path]:
    """What git tracks below the folder; without git everything but caches."""
    listing = _git(folder, "ls-files", "-z")
    if listing is None and any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        # What is ignored there must not be sent because git is missing or mistrusts the owner.
        raise DeployError(
            f"app_source: {folder} is in a git repository that git can't read; try: "
            f"git -C {folder} ls-files; nothing was changed"
        )
    if listing is None:
        found = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    else:
        found = [folder / name for name in listing.split("\0") if name]
    return sorted(path for path in found if path.is_file())


def _digest(sources: tuple[tuple[str, File], ...]) -> str:
    digest = hashlib.sha256()
    for path, file in sources:
        digest.update(f"{path}\0{file.mode:o} {len(file.content)}\0".encode())
        digest.update(file.content)
    return digest.hexdigest()


def _name(folder: Path, digest: str) -> str:
    """The last git revision that changed the source; a change since then as a hash behind it."""
    content = digest[:8]
    revision = (_git(folder, "log", "-1", "--format=%h", "--abbrev=10", "--", ".") or "").strip()
    if not revision:
        return content
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{revision}-dirty-{content}" if changed else revision


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None
