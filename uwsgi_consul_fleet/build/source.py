"""What is compiled: our plugin, or any other uWSGI plugin's sources."""

import hashlib
import io
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from uwsgi_consul_fleet.build.identity import HERE, PLUGIN_FOLDER
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.git import environment, git

# How a plugin is compiled is part of what it is compiled from.
RECIPE = ("scratch.sh", "compile.sh")


@dataclass(frozen=True)
class Source:
    """A folder with a uwsgiplugin.py.

    :param name: the plugin's, as in ``plugins = NAME``
    :param option: an option by which a uWSGI that has loaded it is known; '' if none is known
    :param patterns: which of the folder's files are its sources
    """

    name: str
    folder: Path
    option: str = ""
    patterns: tuple[str, ...] = ("**/*",)

    @property
    def plugin(self) -> str:
        """The name of its file."""
        return f"{self.name}_plugin.so"

    @cached_property
    def files(self) -> dict[str, bytes]:
        """By path in the folder, in a fixed order."""
        paths = [path for each in self.patterns for path in sorted(self.folder.glob(each))]
        named = {path.relative_to(self.folder): path for path in paths if path.is_file()}
        others = {".git", "__pycache__", "dist"}
        return {
            str(n): p.read_bytes() for n, p in named.items() if not others.intersection(n.parts)
        }

    @cached_property
    def digest(self) -> str:
        """Changes with any of the files and with how they are compiled."""
        digest = hashlib.sha256()
        for name in RECIPE:
            digest.update((HERE / name).read_bytes())
        for path, content in self.files.items():
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    @property
    def revision(self) -> str:
        """The git revision, with ``-dirty`` where files have changed since; '' without git."""
        revision = git(self.folder, "log", "-1", "--format=%h", "--abbrev=10", "--", ".") or b""
        changed = git(self.folder, "status", "--porcelain", "--", ".")
        return revision.decode().strip() + "-dirty" * bool(revision and changed)

    def archive(self) -> bytes:
        """The files as a .tar.gz."""
        return packed(self.files, "w:gz")


def packed(files: Mapping[str, bytes], mode: Literal["w", "w:gz"]) -> bytes:
    """An archive of them, by their paths.

    :param mode: of :func:`tarfile.open`
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def own() -> Source:
    """The consul plugin."""
    return Source("consul", PLUGIN_FOLDER, "consul-register", ("uwsgiplugin.py", "src/*.[ch]"))


@contextmanager
def find(place: str) -> Iterator[Source]:
    """Sources of another plugin, for as long as they are needed.

    :param place: a folder, or where git can clone one from
    :raises FleetError: where there is no uWSGI plugin
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        yield _other(folder, place)
        return
    if not re.match(r"[a-z+]+://|[\w.-]+@[\w.-]+:|.*\.git$", place):
        raise FleetError(f"--source {place}: is neither a folder nor a URL that git can clone")
    with tempfile.TemporaryDirectory(prefix="uwsgi-plugin-") as temporary:
        clone = Path(temporary) / "clone"
        command = ["git", "clone", "--quiet", "--depth", "1", "--", place, str(clone)]
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, env=environment(), check=False
            )
        except FileNotFoundError:
            raise FleetError(f"--source {place}: git is missing on this machine") from None
        if result.returncode != 0:
            raise FleetError(f"--source {place}: git can't clone it: {result.stderr.strip()}")
        yield _other(clone, place)


def _other(folder: Path, place: str) -> Source:
    description = folder / "uwsgiplugin.py"
    if not description.is_file():
        raise FleetError(f"--source {place}: has no uwsgiplugin.py, so it is not a uWSGI plugin")
    match = re.search(r"^NAME\s*=\s*[\"'](\w+)[\"']", description.read_text(), re.MULTILINE)
    if not match:
        raise FleetError(f"--source {place}: its uwsgiplugin.py has no line NAME = '...'")
    return Source(match[1], folder)
