"""The requirements as they are written, with the files that they include."""

import os
import re
import shlex
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uwsgi_consul_fleet.host.content import ALONE, FOLDER, digest_of
from uwsgi_consul_fleet.languages import LANGUAGES, Language
from uwsgi_consul_fleet.operations.applications import locked
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.repository import VARIABLE  # as pip has them

MANIFESTS = {each.manifest for each in LANGUAGES.values() if each.manifest}
# In a lock file of Bundler's or Composer's.
ELSEWHERE = re.compile(r'^PATH$|"type": "path"', re.MULTILINE)
COMMENT = re.compile(r"(^|\s+)#.*$", re.MULTILINE)
# What stands before the @ of a URL is a password or a token, unless it is a variable.
PASSWORD = re.compile(r"https?://(?:[^/@\s:]*:)?(?!\$\{)[^/@\s:]+@")
# A path below the file's own folder; what is elsewhere may be there on the hosts.
RELATIVE = re.compile(r"\.|file:(?!/)|[^/$:@ ;]+/")
VARIABLES = (
    ": write ${NAME} in its place, and let this machine's environment or app_secrets_file have the "
    "value"
)
_options = ArgumentParser(add_help=False, exit_on_error=False)
_options.add_argument("-r", "--requirement", action="append", default=[])
_options.add_argument("-c", "--constraint", action="append", default=[])
_options.add_argument("-e", "--editable", action="append", default=[])
_options.add_argument("-f", "--find-links", action="append", default=[])


@dataclass(frozen=True)
class Requirements:
    """``files`` are by their path in the release: alone, or as here below what they have in common;
    ``main`` is the one that pip is given."""

    main: str
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """Changes with any of them."""
        return digest_of(self.files)

    @property
    def are_pythons(self) -> bool:
        """Whether pip reads them."""
        return self.main.rpartition("/")[2] not in MANIFESTS

    @property
    def variables(self) -> set[str]:
        """The names of those that stand in them; in comments they do not count."""
        texts = self.files.values() if self.are_pythons else ()
        plain = (COMMENT.sub("", text.decode("utf-8-sig")) for text in texts)
        return {name for text in plain for name in VARIABLE.findall(text)}

    @property
    def are_pinned(self) -> bool:
        """Whether each has its version: pip then wants hashes for all of them."""
        if not self.are_pythons:
            return len(self.files) > 1
        return any(re.search(rb"(^|\s)--hash[= ]", text) for text in self.files.values())


def read(main: Path, extras: Sequence[str] = ()) -> Requirements:
    """The requirements in a file and in those that it includes; or a project's, as its
    pyproject.toml and its lock file say them.

    :param extras: of the project
    :raises DeployError: where one is missing, includes itself, or has a password or a path in it
    """
    found: dict[Path, bytes] = {}
    if exported := locked.export(main, extras):
        _check(*exported, found, (), "")
        return Requirements(ALONE, {ALONE: exported[1]})
    _follow(Path(os.path.normpath(Path.cwd() / main)), found, (), f"app_requirements: {main}")
    if len(found) == 1:
        return Requirements(ALONE, {ALONE: found.popitem()[1]})
    above = os.path.commonpath([path.parent for path in found])
    files = {f"{FOLDER}/{path.relative_to(above)}": text for path, text in found.items()}
    return Requirements(next(iter(files)), files)


def read_others(main: Path, language: Language) -> Requirements:
    """Those of another language than Python, with what its lock file has.

    :raises DeployError: where one is missing, or has a password or a path in it
    """
    files = {}
    for path in (main, main.with_name(language.lock)):
        if not path.exists() and path != main and not language.is_locked:
            continue
        try:
            files[f"{FOLDER}/{path.name}"] = content = path.read_bytes()
            text = content.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DeployError(f"app_requirements: {path}: {error}; nothing was changed") from error
        _refuse_passwords(
            path, text, ", which would lie on each host: name a registry that needs none"
        )
        if ELSEWHERE.search(text):
            raise DeployError(
                f"app_requirements: {path}: has a package that is a path, which the hosts do not "
                "have: name a version of it, or put it into app_source; nothing was changed"
            )
        if path.name == "Gemfile.lock" and not re.search(r"^    rack \(", text, re.MULTILINE):
            raise DeployError(
                f"app_requirements: {path}: has no rack, which uWSGI loads and Bundler would hide: "
                'write gem "rack" into Gemfile, and bundle lock; nothing was changed'
            )
    return Requirements(next(iter(files)), files)


def _refuse_passwords(path: Path, text: str, instead: str) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        if PASSWORD.search(COMMENT.sub("", line)):
            raise DeployError(
                f"app_requirements: {path}:{number}: has a password or a token in a URL{instead}; "
                "nothing was changed"
            )


def _follow(path: Path, found: dict[Path, bytes], including: tuple[Path, ...], where: str) -> None:
    if path in including:
        raise DeployError(f"{where}: {path} includes itself; nothing was changed")
    if path in found:
        return
    try:
        found[path] = path.read_bytes()
    except OSError as error:
        raise DeployError(f"{where}: {path}: {error.strerror}; nothing was changed") from error
    _check(path, found[path], found, including, where)


def _check(
    path: Path, content: bytes, found: dict[Path, bytes], including: tuple[Path, ...], where: str
) -> None:
    """Look through it, and follow what it includes."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DeployError(f"{where}: {path}: is not UTF-8; nothing was changed") from error
    _refuse_passwords(path, text, VARIABLES)
    for line, number in _lines(text):
        here = f"app_requirements: {path}:{number}"
        included, places = _named(line) if line.startswith("-") else ([], [line])
        for name in filter(RELATIVE.match, places):
            raise DeployError(
                f"{here}: {name} is a path, which the hosts do not have: name a version that an "
                "index has, or a URL, or put it into app_source; nothing was changed"
            )
        for name in included:
            if "://" in name:
                continue  # the hosts fetch it
            if name.startswith("/"):
                raise DeployError(
                    f"{here}: {name} is not there on the hosts: write it relative to {path.name}, "
                    "and it is sent too; nothing was changed"
                )
            _follow(Path(os.path.normpath(path.parent / name)), found, (*including, path), here)


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """As pip reads them, and where they begin."""
    begun, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        first = first if begun else number
        begun += COMMENT.sub("", line)
        if begun.endswith("\\"):
            begun = begun[:-1] + " "
            continue
        yield begun.strip(), first
        begun = ""


def _named(line: str) -> tuple[list[str], list[str]]:
    """The files that an option includes, and the places where packages are."""
    try:
        options, _ = _options.parse_known_args(shlex.split(line))
    except (ArgumentError, ValueError):
        return [], []  # pip will say what is wrong with it
    places = [f"{place}/" for place in (*options.editable, *options.find_links)]
    return [*options.requirement, *options.constraint], places
