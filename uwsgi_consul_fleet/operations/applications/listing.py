"""Which files of the source are sent: those that git tracks; without git, see unversioned.py."""

import os
from collections.abc import Sequence
from pathlib import Path

from pyinfra import logger

from uwsgi_consul_fleet.git import git
from uwsgi_consul_fleet.operations.plan import DeployError


def refusal(reason: str) -> DeployError:
    """The error of a source that can't be released."""
    return DeployError(f"app_source: {reason}; nothing was changed")


def is_in_a_repository(folder: Path) -> bool:
    """Whether it is in git's, although git may not be able to read it."""
    return any((parent / ".git").exists() for parent in (folder, *folder.parents))


def paths(folder: Path) -> list[Path]:
    """Files, links and whatever else is to be sent, submodules' too; says what is not obvious.

    :raises DeployError: where that is nothing, or can't be known, or has a secret's usual name
    """
    listing = git(folder, "ls-files", "--recurse-submodules", "-z")
    if listing is None:
        if is_in_a_repository(folder):
            # What is ignored there must not be sent because git is missing or mistrusts the owner.
            raise refusal(
                f"{folder} is in a git repository that git can't read; try: "
                f"git -C {folder} ls-files --recurse-submodules"
            )
        # Here, because few need it and it takes time to load.
        from uwsgi_consul_fleet.operations.applications import unversioned

        return unversioned.paths(folder)
    if not listing:
        raise refusal(f"git tracks nothing in {folder}: git add what is to be sent")
    asked = ("--others", "--exclude-standard", "--exclude=__pycache__/", "--directory", "-z")
    others = git(folder, "ls-files", *asked) or b""
    if names := _names(others):
        logger.warning(f"    Warning: {folder}: git does not track, so not sent: {few(names)}")
    return [folder / each for each in _without_ignored(folder, _names(listing))]


def _without_ignored(folder: Path, names: Sequence[str]) -> list[str]:
    """Without what .gitattributes leaves out of archives (export-ignore), folders as a whole."""
    above = {str(parent) for name in names for parent in Path(name).parents}
    asked = os.fsencode("\0".join([*names, *(above - {"."})]))
    said = git(folder, "check-attr", "-z", "--stdin", "export-ignore", given=asked) or b""
    parts = _names(said)
    ignored = {name for name, value in zip(parts[::3], parts[2::3], strict=True) if value == "set"}
    if not ignored:
        return list(names)
    return [
        name
        for name in names
        if name not in ignored and ignored.isdisjoint(map(str, Path(name).parents))
    ]


def _names(listing: bytes) -> list[str]:
    return [os.fsdecode(each) for each in listing.split(b"\0") if each]


def few(names: Sequence[str]) -> str:
    """The first ones, and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
