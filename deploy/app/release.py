"""What is released: the application's source, its requirements and its ini files."""

import gzip
import hashlib
import io
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

from deploy.files import render
from deploy.plan import DeployError
from fleet.model import Host
from fleet.settings import Settings

REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True)
class Release:
    """The application at one revision; ``sources`` are (path in the release, content)."""

    name: str
    sources: tuple[tuple[str, bytes], ...]
    requirements: bytes | None
    template: Path

    @property
    def requirements_digest(self) -> str:
        """Changes with the requirements; ``-`` where the application has none."""
        if self.requirements is None:
            return "-"
        return hashlib.sha256(self.requirements).hexdigest()[:16]

    def files(self, me: Host) -> dict[str, bytes]:
        """Every file of the release on this host by its path inside it."""
        files = dict(self.sources)
        if self.requirements is not None:
            files[REQUIREMENTS] = self.requirements
        for instance in me.instances:
            files[f"{instance.port}.ini"] = render(
                self.template,
                instance=instance,
                settings=me.settings,
                release=self.name,
                virtualenv=has_environment(self, me),
            ).encode()
        return files

    def archive(self, me: Host) -> bytes:
        """The release as a .tar.gz; the same files give the same bytes."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path, content in sorted(self.files(me).items()):
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return gzip.compress(buffer.getvalue(), mtime=0)


def has_environment(release: Release, me: Host) -> bool:
    """Whether the release has a virtual environment: for its requirements, or for its uWSGI."""
    return release.requirements is not None or me.settings.uwsgi_source == "pypi"


def prepare(me: Host) -> Release | None:
    """The release for this host, read from this machine; None for a host without instances.

    :raises DeployError: where the source, the requirements or the template is missing
    """
    if not me.instances:
        return None
    settings: Settings = me.settings
    with _one_at_a_time:
        return _read(settings.app_source, settings.app_requirements, settings.app_ini)


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
    sources = tuple(
        (str(path.relative_to(parent)), path.read_bytes()) for path in _tracked(folder.resolve())
    )
    content = Path(requirements).expanduser().read_bytes() if requirements else None
    return Release(_name(folder, sources), sources, content, Path(template).expanduser())


def _tracked(folder: Path) -> list[Path]:
    """What git tracks below the folder; without git everything but caches."""
    listing = _git(folder, "ls-files", "-z")
    if listing is None:
        found = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    else:
        found = [folder / name for name in listing.split("\0") if name]
    return sorted(path for path in found if path.is_file())


def _name(folder: Path, sources: tuple[tuple[str, bytes], ...]) -> str:
    """The last git revision that changed the source; a change since then as a hash behind it."""
    content = hashlib.sha256(repr(sources).encode()).hexdigest()[:8]
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
