"""The content of a release: its sources, and its requirements as they were written.

Whatever else lies in its folder was made for one host. What is sent from an operator's machine and
what is taken from a host are one format, and have one digest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import store
from .says import ReleaseError

BLOCK = 2**20  # bytes
TAR_BLOCK = 512  # bytes
LINK = 0o120000  # as git calls it
# Where requirements lie in a release: alone, or if they are several.
ALONE, FOLDER = "requirements.txt", "requirements.d"
# Its sources as they were sent, where a release has something else beside or instead of them.
AS_SENT = "as-sent"
# Where what was installed for another language than Python lies, and how PHP calls it: a link among
# the sources, which is none of them.
BROUGHT, CALLED = "vendor.d", "vendor"
# What else a release has; the folder that is none of these holds its sources.
TAKEN = frozenset({"consul_plugin.so", "environment", "units", "venv", FOLDER, AS_SENT, BROUGHT})


@dataclass(frozen=True)
class Entry:
    """A file, or a link that says ``link``: its path in the release, and where it lies here."""

    path: str
    place: Path
    mode: int
    size: int
    link: str = ""

    def blocks(self) -> Iterator[bytes]:
        """What it holds."""
        if self.link:
            yield os.fsencode(self.link)
            return
        with self.place.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
                time.sleep(0)  # other hosts' turn


def entry_of(path: str, place: Path, status: os.stat_result) -> Entry:
    """Of a file or a link; of a file's mode counts what git keeps: whether it can be executed."""
    if stat.S_ISLNK(status.st_mode):
        link = os.readlink(place)  # noqa: PTH115 - its very text
        return Entry(path, place, LINK, len(os.fsencode(link)), link)
    return Entry(path, place, 0o755 if status.st_mode & 0o100 else 0o644, status.st_size)


def header(entry: Entry) -> bytes:
    """What stands before its content in a digest."""
    return os.fsencode(f"{entry.path}\0{entry.mode:o} {entry.size}\0")


def member(entry: Entry, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """It as a part of a .tar."""
    head = tarfile.TarInfo(entry.path)
    head.mode = entry.mode & 0o7777
    if entry.link:
        head.type, head.linkname = tarfile.SYMTYPE, entry.link
    else:
        head.size = entry.size
    yield head.tobuf()
    for block in blocks:
        if not entry.link:
            yield block
    yield bytes(-head.size % TAR_BLOCK)


def digest_of(requirements: Mapping[str, bytes]) -> str:
    """Of requirements, by their path in a release; '' where there are none."""
    if not requirements:
        return ""
    several = repr(sorted(requirements.items())).encode()
    text = several if len(requirements) > 1 else next(iter(requirements.values()))
    return hashlib.sha256(text).hexdigest()[:16]


# --- On a host -----------------------------------------------------------------------


def top(folder: Path) -> Path:
    """The folder with the sources, in that of a release."""
    tops = (x for x in folder.iterdir() if not x.is_symlink() and x.is_dir())
    return next(each for each in tops if each.name not in TAKEN)


def sources(folder: Path) -> list[Entry]:
    """Those in the folder of a release, in the order in which they were sent."""
    as_sent = folder / AS_SENT
    return _files(as_sent if as_sent.is_dir() else folder)


def _files(folder: Path) -> list[Entry]:
    found: list[Entry] = []
    for top in folder.iterdir():
        if top.name in TAKEN or top.is_symlink() or not top.is_dir():
            continue
        every = (each for each in top.rglob("*") if each.is_symlink() or each.is_file())
        places = (each for each in every if not _is_brought(each))
        found += [entry_of(str(each.relative_to(folder)), each, each.lstat()) for each in places]
    return sorted(found, key=lambda each: each.path.split("/"))


def _is_brought(place: Path) -> bool:
    """No source has such a link, which leads out of it."""
    return place.is_symlink() and os.readlink(place) == f"../{BROUGHT}"  # noqa: PTH115 - as above


def touch(folder: Path) -> None:
    """Make an application's files in the folder of a release new. In an archive they have no time,
    and whoever has a file of what served before asks for one that is newer; also where this is gone
    back to."""
    for each in _files(folder):
        os.utime(each.place, follow_symlinks=False)


def requirements(folder: Path) -> dict[str, bytes]:
    """Those in the folder of a release, by their path in it."""
    found = [folder / ALONE, *sorted((folder / FOLDER).rglob("*"))]
    return {str(each.relative_to(folder)): each.read_bytes() for each in found if each.is_file()}


def _fields(app: str, generation: str) -> dict[str, Any]:
    """The fields of its release.json, with those that versions before 0.3 did not write."""
    folder = store.folder(app) / "releases" / generation
    fields = json.loads((folder / "release.json").read_text())
    if "sources" not in fields:
        seen = hashlib.sha256()
        for each in sources(folder):
            seen.update(header(each))
            for block in each.blocks():
                seen.update(block)
        written = {
            "sources": seen.hexdigest(),
            "requirements": digest_of(requirements(folder)),
            "requirements_file": ALONE if (folder / ALONE).exists() else "-",
        }
        fields = {**fields, **written}
    return dict(fields)


def describe(app: str, wanted: str) -> None:
    """Print what is known of a release here, and its requirements, as JSON.

    :param wanted: a generation, or the digest of the content
    :raises ReleaseError: where there is none
    """
    there = store.generations(app)
    for generation in [wanted] if wanted in there else there:
        fields = _fields(app, generation)
        if wanted in (generation, store.content_of(fields)):
            texts = requirements(store.folder(app) / "releases" / generation)
            files = {path: text.decode() for path, text in texts.items()}
            print(json.dumps({**fields, "generation": generation, "files": files}))
            return
    raise ReleaseError(f"no release here has the content {wanted}")


def pack(app: str, generation: str) -> None:
    """Write the sources of a release to standard output: the beginning of a .tar.gz."""
    os.nice(10)  # what serves comes first
    folder = store.load(app, generation).folder
    with gzip.GzipFile("", "wb", 6, sys.stdout.buffer, mtime=0) as archive:
        for each in sources(folder):
            for block in member(each, each.blocks()):
                archive.write(block)
