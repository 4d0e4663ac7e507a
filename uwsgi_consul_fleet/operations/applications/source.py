"""What is sent of the application's source: files and links, each as it is here."""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from uwsgi_consul_fleet.git import git
from uwsgi_consul_fleet.host.content import Entry, entry_of, header
from uwsgi_consul_fleet.operations.applications.listing import paths, refusal

# What stands in a file of git-lfs before it was fetched.
POINTER = b"version https://git-lfs.github.com/"


def read(folder: Path) -> tuple[Entry, ...]:
    """What is sent of a folder, under the folder's own name: its modules keep the names they
    have here.

    :raises DeployError: where there is nothing, or something that can't be sent as it is
    """
    found = [each for path in paths(folder) if (each := _entry(folder, path))]
    if not found:
        raise refusal(f"there is no file in {folder}")
    _check_links(folder, found)
    return tuple(sorted(found, key=lambda each: each.place))


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
                    raise refusal(f"{entry.place} was not fetched by git-lfs yet: git lfs pull")
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


def _entry(folder: Path, path: Path) -> Entry | None:
    """None for what git tracks and the operator has removed."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(status.st_mode) or stat.S_ISREG(status.st_mode):
        return entry_of(str(path.relative_to(folder.parent)), path, status)
    if stat.S_ISDIR(status.st_mode):
        raise refusal(
            f"{path} is a repository of its own, and no submodule that is checked out: "
            f"git -C {folder} submodule update --init --recursive"
        )
    raise refusal(f"{path} is neither a file nor a folder nor a link: ignore or remove it")


def _check_links(folder: Path, entries: Sequence[Entry]) -> None:
    """What a link leads to here it must lead to there. One that leads nowhere may."""
    sent = {os.fspath(entry.place) for entry in entries}
    folders = {os.fspath(parent) for entry in entries for parent in entry.place.parents}
    for entry in entries:
        real = os.path.realpath(entry.place)
        if entry.link:
            said = os.path.normpath(entry.place.parent / entry.link)
            if entry.link.startswith("/") or not (_within(folder, said) and _within(folder, real)):
                raise refusal(
                    f"{entry.place} is a link to {entry.link}, which is not in {folder} on the "
                    "hosts: only relative links within it are sent"
                )
            if real not in sent | folders and Path(real).exists():
                raise refusal(f"{entry.place} is a link to {real}, which is not sent")
        elif real != os.fspath(entry.place):
            # What git tracks in a folder that has become a link since.
            raise refusal(f"{entry.place} lies behind a link, in {real}")


def _within(folder: Path, path: str) -> bool:
    return Path(path).is_relative_to(folder)
