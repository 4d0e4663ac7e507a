"""Which files of the source are sent: those that git tracks, or without git those that a .gitignore
does not leave out."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec
from pyinfra import logger

from uwsgi_consul_fleet.git import git
from uwsgi_consul_fleet.operations.plan import DeployError

IGNORE = ".gitignore"
# Unless it has a line for them.
IGNORED = """
    .git/ .hg/ .svn/ .venv/ venv/ node_modules/ __pycache__/ *.py[co] .*_cache/ .tox/ .DS_Store
"""
DELICATE = """
    .env .env.* !.env.example !.env.sample !.env.template id_rsa id_dsa id_ecdsa id_ed25519
    *.pem *.key *.p12 *.pfx *.jks *.kdbx .netrc .pgpass .pypirc .htpasswd .git-credentials
"""
_ignored, _delicate = (GitIgnoreSpec.from_lines(words.split()) for words in (IGNORED, DELICATE))

# Lines of the ignore files on the way to a folder, each with where it lies.
Rules = tuple[tuple[Path, GitIgnoreSpec], ...]


def refusal(reason: str) -> DeployError:
    """The error of a source that can't be released."""
    return DeployError(f"app_source: {reason}; nothing was changed")


def paths(folder: Path) -> list[Path]:
    """Files, links and whatever else is to be sent, submodules' too; says what is not obvious.

    :raises DeployError: where that is nothing, or can't be known, or has a secret's usual name
    """
    listing = git(folder, "ls-files", "--recurse-submodules", "-z")
    if listing is None:
        if any((parent / ".git").exists() for parent in (folder, *folder.parents)):
            # What is ignored there must not be sent because git is missing or mistrusts the owner.
            raise refusal(
                f"{folder} is in a git repository that git can't read; try: "
                f"git -C {folder} ls-files"
            )
        return _unversioned(folder)
    if not listing:
        raise refusal(f"git tracks nothing in {folder}: git add what is to be sent")
    others = git(folder, "ls-files", "--others", "--exclude-standard", "--directory", "-z") or b""
    if names := _names(others):
        logger.warning(f"    Warning: {folder}: git does not track, so not sent: {_few(names)}")
    return [folder / each for each in _names(listing)]


def _names(listing: bytes) -> list[str]:
    return [os.fsdecode(each) for each in listing.split(b"\0") if each]


def _few(names: Sequence[str]) -> str:
    """The first ones, and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


# --- Without git ----------------------------------------------------------------------


def _unversioned(folder: Path) -> list[Path]:
    secrets: list[str] = []
    found = list(_walk(folder, (), folder, secrets))
    if secrets:
        raise refusal(
            f"{folder} would be sent with {_few(secrets)}, where secrets usually are (app_secrets "
            f"is for them): leave such files out by lines in {folder / IGNORE}, or send them by "
            f"lines like !/{secrets[0]}"
        )
    size = sum(path.lstat().st_size for path in found)
    logger.info(
        f"    {folder} is in no git repository: {len(found)} files with {size:,} bytes are sent"
    )
    return found


def _walk(folder: Path, above: Rules, root: Path, secrets: list[str]) -> Iterator[Path]:
    own = folder / IGNORE
    rules = (*above, (folder, _read(own))) if own.is_file() else above
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
        said = _said(path, is_folder, rules)
        name = entry.name + "/" * is_folder
        if said or (said is None and _ignored.match_file(name)):
            continue
        if is_folder:
            yield from _walk(path, rules, root, secrets)
            continue
        if said is None and _delicate.match_file(name):
            secrets.append(str(path.relative_to(root)))
        yield path


def _said(path: Path, is_folder: bool, rules: Rules) -> bool | None:
    """Whether the operator wants it to be left out; None where no line is about it."""
    for base, spec in reversed(rules):
        said = spec.check_file(str(path.relative_to(base)) + "/" * is_folder).include
        if said is not None:
            return said
    return None


def _read(file: Path) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(file.read_text().splitlines())
    except (OSError, ValueError) as error:
        raise refusal(f"{file}: {error}") from error
