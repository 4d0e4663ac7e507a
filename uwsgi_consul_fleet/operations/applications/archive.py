"""What is sent to a host: the sources, packed once for all, and behind them what is its own."""

import gzip
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import IO, NamedTuple

from uwsgi_consul_fleet.host.content import TAR_BLOCK, Entry, header, member
from uwsgi_consul_fleet.operations.applications import source
from uwsgi_consul_fleet.operations.plan import DeployError

# Not /tmp, which is memory on many machines.
LARGE = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - the file there has no name
BLOCK = 64 * 1024  # bytes


class File(NamedTuple):
    """A file of a release that is made here."""

    content: bytes
    mode: int = 0o644


class Sources:
    """The application's source; ``digest`` is a hash of everything in it."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        """:raises DeployError: where one can't be read"""
        self.entries = entries
        self.digest = source.digest(entries)
        self._packed: IO[bytes] | None = None
        self._mutex = Lock()

    def packed(self) -> IO[bytes]:
        """The beginning of a .tar.gz, made at the first call, in a file without a name.

        :raises DeployError: where the source is not any more what it was
        """
        with self._mutex:  # hosts come here side by side
            if self._packed is None:
                self._packed = self._pack()
            return self._packed

    def _pack(self) -> IO[bytes]:
        seen = hashlib.sha256()
        try:
            found = temporary()
            with gzip.GzipFile("", "wb", 6, found, mtime=0) as archive:
                for entry in self.entries:
                    seen.update(header(entry))
                    for block in member(entry, _seen(entry.blocks(), seen.update)):
                        archive.write(block)
            found.flush()
        except OSError as error:
            raise DeployError(f"app_source: can't be packed: {error}; run it again") from error
        if seen.hexdigest() != self.digest:
            raise DeployError("app_source: it has changed since this run began; run it again")
        return found


def _seen(blocks: Iterable[bytes], see: Callable[[bytes], None]) -> Iterator[bytes]:
    for block in blocks:
        see(block)
        yield block


def archive(sources: Sources, files: Iterable[tuple[str, File]]) -> Iterator[bytes]:
    """A .tar.gz of the sources and these files, in pieces; the same give the same bytes."""
    yield from pieces(sources.packed())
    ours = bytearray()
    for path, file in files:
        entry = Entry(path, Path(), file.mode, len(file.content))
        ours += b"".join(member(entry, [file.content]))
    yield gzip.compress(ours + bytes(2 * TAR_BLOCK), mtime=0)


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """What is in a file, from its beginning; several may read it side by side."""
    offset = 0
    while block := os.pread(file.fileno(), BLOCK, offset):
        offset += len(block)
        yield block


def temporary() -> IO[bytes]:
    """A file without a name, for what is large; it goes with the process."""
    return tempfile.TemporaryFile(dir=LARGE)
