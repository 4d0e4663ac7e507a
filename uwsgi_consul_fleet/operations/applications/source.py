"""What is sent of the application's source: files and links, each as it is here."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uwsgi_consul_fleet.git import git
from uwsgi_consul_fleet.host.content import Entry, entry_of, header
from uwsgi_consul_fleet.inventory import vault
from uwsgi_consul_fleet.operations.applications import metadata
from uwsgi_consul_fleet.operations.applications.listing import paths, refusal
from uwsgi_consul_fleet.operations.plan import DeployError

# Where a source lies in a release whose modules do not begin with the source's name (app_root).
SOURCE = "source"
# What stands in a file of git-lfs before it was fetched.
POINTER = b"version https://git-lfs.github.com/"


def read(folder: Path, root: str | None = None) -> tuple[Entry, ...]:
    """What is sent of a folder.

    :param root: the folder of it that modules are imported from. Without one it is sent under its
        own name: its modules keep the names that they have here
    :raises DeployError: where there is nothing, or something that can't be sent as it is
    """
    top = SOURCE if root else folder.name
    # Whatever git tracks or an ignore file says, secrets are not sent.
    sent = (path for path in paths(folder) if vault.FOLDER not in path.relative_to(folder).parts)
    found = [each for path in sent if (each := _entry(folder, path, top))]
    if not found:
        raise refusal(f"there is no file in {folder}")
    _check_links(folder, top, found)
    if root:
        if not any(each.place.is_relative_to(folder / root) for each in found):
            raise DeployError(
                f"app_root: {folder} has no folder {root} to send; nothing was changed"
            )
        found += _about(folder, root)
    return tuple(sorted(found, key=lambda each: each.path.split("/")))


@dataclass(frozen=True)
class Made(Entry):
    """A file of the sources that is made here."""

    content: bytes = b""

    def blocks(self) -> Iterator[bytes]:
        yield self.content


def _about(folder: Path, root: str) -> Iterator[Entry]:
    """The project's metadata, beside its modules."""
    try:
        project = metadata.of(folder)
    except (OSError, ValueError, SyntaxError) as error:
        raise refusal(
            f"{folder}: what the project says of itself can't be read: {error}"
        ) from error
    for path, content in project.files.items() if project else ():
        path = os.path.normpath(f"{SOURCE}/{root}/{path}")
        yield Made(path, Path(), 0o644, len(content), content=content)


def digest(entries: Sequence[Entry]) -> str:
    """Of everything in them.

    :raises DeployError: where one can't be read, or is not what was meant
    """
    found = hashlib.sha256()
    for entry in entries:
        found.update(header(entry))
        try:
            for block in entry.blocks():
                if entry.size < 1024 and block.startswith(POINTER):
                    raise refusal(
                        f"{entry.place} was not fetched by git-lfs yet: "
                        f"git -C {entry.place.parent} lfs pull"
                    )
                found.update(block)
        except OSError as error:
            raise refusal(f"{entry.place}: {error.strerror}") from error
    return found.hexdigest()


def name(folder: Path, content: str) -> str:
    """What git calls the folder's content as of the last commit, which is the same in every
    clone; what has changed since as a hash behind it.

    :param content: the digest
    """
    tree = (git(folder, "rev-parse", "--verify", "--quiet", "HEAD:./") or b"").decode()[:10]
    if not tree:
        return content[:8]
    changed = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{tree}-dirty-{content[:8]}" if changed else tree


def _entry(folder: Path, path: Path, top: str) -> Entry | None:
    """None for what git tracks and the operator has removed."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(status.st_mode) or stat.S_ISREG(status.st_mode):
        return entry_of(f"{top}/{path.relative_to(folder)}", path, status)
    if stat.S_ISDIR(status.st_mode):
        raise refusal(
            f"{path} is a repository of its own, and no submodule that is checked out: "
            f"git -C {folder} submodule update --init --recursive"
        )
    raise refusal(f"{path} is neither a file nor a folder nor a link: ignore or remove it")


def _check_links(folder: Path, top: str, entries: Sequence[Entry]) -> None:
    """What a link leads to here it must lead to there. One that leads nowhere may."""
    sent = {os.fspath(entry.place) for entry in entries}
    sent |= {os.fspath(parent) for entry in entries for parent in entry.place.parents}
    for entry in entries:
        real = os.path.realpath(entry.place)
        if entry.link:
            # As it is there, where the folder may have another name.
            said = os.path.normpath(Path(entry.path).parent / entry.link)
            inside = Path(said).is_relative_to(top) and Path(real).is_relative_to(folder)
            if entry.link.startswith("/") or not inside:
                raise refusal(
                    f"{entry.place} is a link to {entry.link}, which is not in {folder} on the "
                    "hosts: only relative links within it are sent"
                )
            if real not in sent and Path(real).exists():
                raise refusal(f"{entry.place} is a link to {real}, which is not sent")
        elif real != os.fspath(entry.place):
            # What git tracks in a folder that has become a link since.
            raise refusal(f"{entry.place} lies behind a link, in {real}")
