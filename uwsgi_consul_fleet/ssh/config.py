"""The operator's ssh configuration, read as ssh reads it: see ssh_config(5).

Paramiko has a reader of its own, which knows no Include, stops at what it does not understand,
and takes 40 ms for each look-up where 500 hosts are listed.
"""

import getpass
import os
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cache, cached_property
from glob import glob
from pathlib import Path

from uwsgi_consul_fleet.errors import FleetError

SYSTEM = Path("/etc/ssh/ssh_config")
DEPTH = 16  # of files that include each other
# What is a command takes the rest of its line as it is.
COMMANDS = ("proxycommand", "localcommand", "remotecommand", "knownhostscommand")
# May be said several times; of the others the first counts.
REPEATED = ("identityfile", "certificatefile")
# Of these two, the one that is said first.
WAYS = {"proxycommand": "proxyjump", "proxyjump": "proxycommand"}
WITHOUT_ARGUMENT = ("all", "canonical", "final")
# Part of a word; within quotes a backslash protects what follows.
QUOTED = re.compile(r""""((?:\\.|[^"\\])*)(?:"|$)|'((?:\\.|[^'\\])*)(?:'|$)""")
WORD = re.compile(rf"(?:[^\s\"']|{QUOTED.pattern})+")

Words = tuple[str, ...]


@dataclass(frozen=True)
class Criterion:
    """One condition of a Host or Match line, such as ``user=root,admin``."""

    kind: str
    argument: str = ""
    negated: bool = False


@dataclass(frozen=True)
class Section:
    """Settings, and all that must hold for them: an Include adds to what is around it."""

    conditions: tuple[Criterion, ...]
    settings: tuple[tuple[str, Words], ...]

    @cached_property
    def names(self) -> frozenset[str] | None:
        """Those that it can be about, where that is a list; most sections of a long file are."""
        for each in self.conditions:
            if each.kind == "originalhost" and not (
                each.negated or set(each.argument) & set("*?!")
            ):
                return frozenset(each.argument.split(","))
        return None


class Found:
    """What holds for one host; each value is the words of its line."""

    def __init__(self, name: str, given: Mapping[str, str]) -> None:
        """:param given: what was said outside the configuration, and wins"""
        self.name = name
        self.values: dict[str, Words] = {key: (value,) for key, value in given.items() if value}

    def words(self, key: str) -> Words:
        return self.values.get(key, ())

    def first(self, key: str, default: str = "") -> str:
        return next(iter(self.words(key)), default)

    def yes(self, key: str) -> bool:
        return self.first(key).lower() in ("yes", "true")

    def number(self, key: str, default: int) -> int:
        """A number, or seconds in ssh's notation, such as ``1m30``."""
        value = self.first(key).lower()
        units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
        parts = re.findall(r"(\d+)([smhdw]?)", value)
        return sum(int(number) * units[unit] for number, unit in parts) if value else default

    def add(self, settings: Iterable[tuple[str, Words]]) -> None:
        for key, words in settings:
            if key not in REPEATED:
                if WAYS.get(key) not in self.values:
                    self.values.setdefault(key, words)
            elif words[0] not in self.words(key):
                self.values[key] = (*self.words(key), words[0])

    @property
    def host_name(self) -> str:
        """Where the host is; its own name where nothing else was said."""
        return self.first("hostname", "%h").replace("%h", self.name).replace("%%", "%")

    @property
    def user(self) -> str:
        return self.first("user") or getpass.getuser()

    @property
    def port(self) -> str:
        return self.first("port", "22")

    def expand(self, text: str) -> str:
        """With what ssh puts in the place of ``%h`` and the like."""
        if "%" not in text:
            return text
        here = socket.gethostname()
        tokens = {
            "%": "%",
            "d": str(Path.home()),
            "h": self.host_name,
            "i": str(os.getuid()),
            "k": self.first("hostkeyalias") or self.host_name,
            "L": here.partition(".")[0],
            "l": here,
            "n": self.name,
            "p": self.port,
            "r": self.user,
            "u": getpass.getuser(),
        }
        return re.sub(r"%(\w|%)", lambda found: tokens.get(found[1], found[0]), text)


@dataclass(frozen=True)
class Config:
    """Some files, the first one first, as ssh reads its user's and then the system's."""

    sections: tuple[Section, ...]

    def lookup(self, name: str, **given: str) -> Found:
        """What holds for a host under the name that ssh would be told."""
        found = Found(name, given)
        for final in (False, True) if self._has_final else (False,):
            for section in self.sections:
                if section.names is not None and name not in section.names:
                    continue
                if all(_is_met(each, found, final) != each.negated for each in section.conditions):
                    found.add(section.settings)
        return found

    @cached_property
    def _has_final(self) -> bool:
        return any(each.kind == "final" for section in self.sections for each in section.conditions)


@cache
def read(files: tuple[Path, ...]) -> Config:
    """Read once in a process; a file that does not exist holds nothing.

    :raises FleetError: naming the file and the line that ssh would refuse as well
    """
    return Config(tuple(section for file in files for section in _parse(file, (), DEPTH)))


def _parse(file: Path, around: tuple[Criterion, ...], depth: int) -> Iterator[Section]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:  # as ssh does
        return
    conditions, settings = around, list[tuple[str, Words]]()
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        key, words = _split(line, where)
        if key in ("host", "match", "include"):
            yield Section(conditions, tuple(settings))
            settings = []
        if key == "include":
            if not depth:
                raise FleetError(f"{where}: files include each other")
            for included in _included(words, file):
                yield from _parse(included, conditions, depth - 1)
        elif key == "host":
            conditions = (*around, Criterion("originalhost", ",".join(words)))
        elif key == "match":
            conditions = (*around, *_criteria(words, where))
        elif key:
            settings.append((key, words))
    yield Section(conditions, tuple(settings))


def _included(words: Words, file: Path) -> Iterator[Path]:
    """Relative to ~/.ssh, or to /etc/ssh in the system's; also beside the file that says it."""
    homes = [] if SYSTEM.parent in file.parents else [Path("~/.ssh").expanduser()]
    for word in words:
        for home in (*homes, file.parent):
            # An absolute one stays what it is, which Path's own glob does not take.
            if found := sorted(glob(str(home / Path(word).expanduser()))):  # noqa: PTH207
                yield from map(Path, found)
                break


def _split(line: str, where: str) -> tuple[str, Words]:
    """A line's keyword in lower case and its words; neither for a comment.

    :raises FleetError: where the keyword stands alone
    """
    text = line.strip()
    if not text or text.startswith("#"):
        return "", ()
    found = re.match(r"(\w+)\s*=?\s*(.*)", text)
    key, rest = (found[1].lower(), found[2]) if found else (text, "")
    words = (rest,) if key in COMMANDS and rest else tuple(_words(rest))
    if not words:
        raise FleetError(f"{where}: {text!r} lacks its value")
    return key, words


def _words(text: str) -> Iterator[str]:
    """Split at blanks outside of quotes, up to a comment."""
    for word in WORD.finditer(text):
        if word[0].startswith("#"):
            return
        yield QUOTED.sub(lambda part: re.sub(r"\\(.)", r"\1", part[1] or part[2] or ""), word[0])


def _criteria(words: Words, where: str) -> Iterator[Criterion]:
    rest = list(words)
    while rest:
        kind, equals, argument = rest.pop(0).partition("=")
        negated, kind = kind.startswith("!"), kind.removeprefix("!").lower()
        if kind not in WITHOUT_ARGUMENT and not equals:
            if not rest:
                raise FleetError(f"{where}: Match {kind} lacks its value")
            argument = rest.pop(0)
        yield Criterion(kind, argument, negated)


def _is_met(criterion: Criterion, found: Found, final: bool) -> bool:
    """Whether it is as said; what is not understood (``canonical``, ``localnetwork``) is not."""
    kind, argument = criterion.kind, criterion.argument
    if kind == "originalhost":
        return matches(found.name, argument)
    if kind == "host":
        return matches(found.host_name, argument)
    if kind == "user":
        return matches(found.user, argument)
    if kind == "localuser":
        return matches(getpass.getuser(), argument)
    if kind == "exec":
        # The operator's own file says so, and ssh runs it just like that.
        words, nothing = ["/bin/sh", "-c", found.expand(argument)], subprocess.DEVNULL
        return not subprocess.run(words, stdin=nothing, stdout=nothing, check=False).returncode
    return kind == "all" or (kind == "final" and final)


def matches(name: str, patterns: str) -> bool:
    """Whether one of the patterns, with ``*`` and ``?``, is the name's, and none with a ``!`` is.

    :param patterns: parted by commas
    """
    met = [each for each in patterns.split(",") if _is_like(name, each.removeprefix("!"))]
    return bool(met) and not any(each.startswith("!") for each in met)


def _is_like(name: str, pattern: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return name == pattern
    return _compiled(pattern).match(name) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[", "[[]")))
