"""Where the consul binary comes from: decided and checked before any host is changed."""

import hashlib
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Literal

from pyinfra import host, logger

from uwsgi_consul_fleet.operations.consul import signature
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Here, Run
from uwsgi_consul_fleet.operations.state import HostState

TIMEOUT = (5, 60)  # seconds to connect, and between two packets
DEBIAN = "debian-bullseye"
BLOCK = 2**18  # bytes
TELL = 3  # seconds between two lines about what takes long
# ELF's e_machine for Debian's architecture names (elf.h).
MACHINES = {"amd64": 62, "arm64": 183, "i386": 3, "armhf": 40}


@dataclass(frozen=True)
class Source:
    """A consul binary; ``path`` is None where the host fetches it from Debian itself. ``folder`` is
    for what is made of it."""

    label: str
    description: str
    path: Path | None
    folder: Path = Path()

    def packed(self, say: Callable[[str], object]) -> Iterator[bytes]:
        """The binary as gzip, in pieces.

        :param say: is told how much of it has gone, where it takes long
        """
        file = self._packed()
        size, gone, told = file.stat().st_size, 0, time.monotonic()
        with file.open("rb") as opened:
            while block := opened.read(BLOCK):
                yield block
                gone += len(block)
                if time.monotonic() - told > TELL:
                    told = time.monotonic()
                    say(f"Consul: {gone / 1e6:.0f} of {size / 1e6:.0f} MB sent")

    def _packed(self) -> Path:
        """Made once, for this run and those to come."""
        assert self.path
        file = self.folder / "consul.gz"
        with _one_at_a_time:
            if not file.is_file():
                logger.info(f"--> Consul: {self.path} is packed")
                self.folder.mkdir(parents=True, exist_ok=True)
                part = file.with_name(".consul.gz")
                packer = zlib.compressobj(6, wbits=zlib.MAX_WBITS + 16)  # with gzip's frame
                with self.path.open("rb") as source, part.open("wb") as target:
                    while block := source.read(BLOCK):
                        target.write(packer.compress(block))
                        time.sleep(0)  # other hosts' turn
                    target.write(packer.flush())
                part.replace(file)
        return file


_one_at_a_time = Lock()


def choose(here: Here) -> Source:
    """The source for this host; what has to be downloaded is downloaded and checked by now.

    :raises DeployError: where the archive or file is missing, truncated or not the right one
    """
    settings, known = here.me.settings, here.known
    with _one_at_a_time:
        kind = settings.consul_source
        if kind == "auto":
            kind = _kind(known) or _auto(here.run, settings.consul_release_url)
            if kind == "debian":
                here.run.once(_say_what_auto_has)
        if kind == "debian":
            return Source(DEBIAN, "Debian's archive", None)
        if kind == "file":
            return _from_file(settings.consul_file, known.architecture)
        release = f"release-{settings.consul_version}"
        if release in known.consul_binaries | known.consul_before:
            return Source(release, f"the release archive, version {settings.consul_version}", None)
        return _from_release(
            settings.consul_release_url,
            settings.consul_version,
            known.architecture,
            settings.consul_sha256.get(known.architecture),
            settings.consul_release_key,
        )


def _kind(known: HostState) -> Literal["debian", "release"] | None:
    """What a host got when it was installed; the site may answer today and not tomorrow."""
    if known.consul_in_use == DEBIAN:
        return "debian"
    return "release" if known.consul_in_use.startswith("release-") else None


@cache
def _auto(run: Run, url: str) -> Literal["debian", "release"]:
    """For a new host: what the others have, and on a new fleet whether the site answers."""
    for other in sorted(run.pyinfra.connected):
        if kind := _kind(run.state_of(other)):
            return kind
    import requests  # only the first installation needs it: 0.1 s of every other run

    try:
        requests.head(url, timeout=TIMEOUT[0])
    except requests.RequestException as error:
        logger.warning(f"    Consul: {url} does not answer ({type(error).__name__})")
        return "debian"
    logger.info(f'--> Consul: {url} answers, so "auto" takes the release from there')
    return "release"


def _say_what_auto_has(run: Run) -> None:
    """In each run, since it stays so until somebody decides."""
    version = run.fleet.hosts[0].settings.consul_version
    logger.warning(
        '    Consul: "auto" stays with Debian\'s 1.8.7 (2020), since the release site did not '
        "answer at the first deploy; "
        f'consul_source = "release" takes {version}, "debian" confirms it'
    )


@cache
def _from_release(
    url: str, version: str, architecture: str, pin: str | None = None, key: str | None = None
) -> Source:
    archive = f"consul_{version}_linux_{architecture}.zip"
    place = f"{url}/{version}/consul_{version}_SHA256SUMS"
    sums = _download(place)
    if key:
        signature.check(place, sums, _download(f"{place}.sig"), Path(key).expanduser())
    lines = sums.decode(errors="replace").splitlines()
    published = {name: digest for digest, _, name in map(_split_sum, lines)}
    expected = published.get(archive)
    if expected is None:
        raise DeployError(f"consul: {url}/{version} has no checksum for {archive}")
    if pin not in (None, expected):
        raise DeployError(
            f"consul: {archive} is published with SHA-256 {expected}, but consul_sha256 "
            f"pins {pin}; nothing was changed"
        )
    folder = _cache() / expected
    if not (folder / "consul").is_file():
        content = _download(f"{url}/{version}/{archive}")
        _check_sum(archive, content, expected)
        _unpack(content, folder, archive)
    description = f"the release archive, version {version}"
    return Source(f"release-{version}", description, folder / "consul", folder)


def _split_sum(line: str) -> tuple[str, str, str]:
    digest, space, name = line.partition("  ")
    return digest, space, name.strip()


def _check_sum(archive: str, content: bytes, expected: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise DeployError(
            f"consul: {archive} is damaged or not what was published: SHA-256 {digest} "
            f"({len(content)} bytes) instead of {expected}; nothing was changed"
        )


@cache
def _from_file(name: str | None, architecture: str) -> Source:
    if not name:
        raise DeployError("consul_source is 'file', but consul_file is not set")
    path = Path(name).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DeployError(f"consul_file: {path}: {error.strerror}; nothing was changed") from error
    digest = hashlib.sha256(content).hexdigest()
    folder = _cache() / f"file-{digest[:16]}"
    if zipfile.is_zipfile(path) or path.suffix == ".zip":
        _unpack(content, folder, str(path))
        path = folder / "consul"
    _check_machine(path, architecture)
    return Source(f"file-{digest[:16]}", f"{name} (SHA-256 {digest[:16]}…)", path, folder)


def _check_machine(path: Path, architecture: str) -> None:
    with path.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or not header.startswith(b"\x7fELF"):
        raise DeployError(f"consul_file: {path} is not a Linux program; nothing was changed")
    machine = struct.unpack("<H", header[18:20])[0]
    if machine != MACHINES.get(architecture, machine):
        raise DeployError(
            f"consul_file: {path} is for another machine than {host.name} "
            f"({architecture}); nothing was changed"
        )


def _download(url: str) -> bytes:
    import requests  # as above

    try:
        response = requests.get(url, timeout=TIMEOUT)
        response.raise_for_status()
    except requests.RequestException as error:
        raise DeployError(
            f"consul: can't download {url}: {error}; nothing was changed "
            "(consul_source in group_data/all.py names the other ways)"
        ) from error
    return response.content


def _unpack(content: bytes, folder: Path, archive: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / ".archive.zip"
    stored.write_bytes(content)
    part = folder / ".consul.part"
    try:
        with zipfile.ZipFile(stored) as opened, opened.open("consul") as source:
            part.write_bytes(source.read())
    except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise DeployError(
            f"consul: {archive} is damaged or does not contain consul: {error}; nothing was changed"
        ) from error
    finally:
        stored.unlink(missing_ok=True)
    part.chmod(0o755)
    part.replace(folder / "consul")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "uwsgi-consul-fleet" / "consul"
