"""Which files of a source without git are sent: those that a .gitignore does not leave out."""

import os
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec
from pyinfra import logger

from uwsgi_consul_fleet.operations.applications.listing import few, refusal

IGNORE = ".gitignore"
# Unless it has a line for them.
IGNORED = """
    .git .hg/ .svn/ .fleet/ .venv/ venv/ node_modules/ __pycache__/ *.py[co] .*_cache/ .tox/
    .DS_Store
"""
DELICATE = """
    .env .env.* !.env.example !.env.sample !.env.template id_rsa id_dsa id_ecdsa id_ed25519
    *.pem *.key *.p12 *.pfx *.jks *.kdbx .netrc .pgpass .pypirc .htpasswd .git-credentials
"""
_ignored, _delicate = (GitIgnoreSpec.from_lines(words.split()) for words in (IGNORED, DELICATE))

# Lines of the ignore files on the way to a folder, each with where it lies.
Rules = tuple[tuple[Path, GitIgnoreSpec], ...]


def paths(folder: Path) -> list[Path]:
    """What is to be sent, and says how much that is.

    :raises DeployError: where it has the name that secrets usually have
    """
    secrets: list[str] = []
    try:
        found = list(_walk(folder, (), folder, secrets))
    except OSError as error:
        raise refusal(f"{error.filename}: {error.strerror}") from error
    if secrets:
        raise refusal(
            f"{folder} would be sent with {few(secrets)}, where secrets usually are (app_secrets "
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
