"""The operator's ssh configuration, read as ssh reads it: see ssh_config(5).

Paramiko has a reader of its own, which knows no Include, stops at what it does not understand,
and takes 40 ms for each look-up where 500 hosts are listed.
"""

import getpass
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cache, cached_property
from pathlib import Path

from uwsgi_consul_fleet.errors import FleetError

SYSTEM = Path("/etc/ssh/ssh_config")
DEPTH = 16  # of files that include each other
# What is a command takes the rest of its line as it is.
COMMANDS = ("proxycommand", "localcommand", "remotecommand", "knownhostscommand")
# May be said several times; of the others the first counts.
REPEATED = ("identityfile", "certificatefile")
WITHOUT_ARGUMENT = ("all", "canonical", "final")

Words = tuple[str, ...]


@dataclass(frozen=True)
class Criterion:
    """One condition of a Host or Match line, such as ``user=root,admin``."""

    kind: str
    argument: str = ""
    negated: bool = False


@dataclass(frozen=True)
class Section:
    """Settings with the lines that must all hold for them: an Include adds to those around it."""

    conditions: tuple[tuple[Criterion, ...], ...]
    settings: tuple[tuple[str, Words], ...]

    @cached_property
    def names(self) -> frozenset[str] | None:
        """Those that it can be about, where that is a list; most sections of a long file are."""
        first = self.conditions[-1][0] if self.conditions else Criterion("all")
        if first.kind != "originalhost" or first.negated or set(first.argument) & set("*?!"):
            return None
        return frozenset(first.argument.split(","))


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

    def yes(self, key: str, default: bool = False) -> bool:
        value = self.first(key).lower()
        return value in ("yes", "true") if value else default

    def number(self, key: str, default: int) -> int:
        """A number, or seconds in ssh's notation, such as ``1m30``."""
        value = self.first(key)
        return _seconds(value) if value else default

    def add(self, settings: Iterable[tuple[str, Words]]) -> None:
        for key, words in settings:
            if key not in REPEATED:
                self.values.setdefault(key, words)
            elif words[0] not in self.words(key):
                self.values[key] = (*self.words(key), words[0])

    @property
    def host_name(self) -> str:
        """Where the host is; its own name where nothing else was said."""
        return self.first("hostname", "%h").replace("%h", self.name).replace("%%", "%")


@dataclass(frozen=True)
class Config:
    """Some files, the first one first, as ssh reads its user's and then the system's."""

    sections: tuple[Section, ...]

    def lookup(self, name: str, **given: str) -> Found:
        """What holds for a host under the name that ssh would be told."""
        found = Found(name, given)
        self._apply(found, final=False)
        if self._has_final:
            self._apply(found, final=True)
        return found

    @cached_property
    def _has_final(self) -> bool:
        lines = [line for section in self.sections for line in section.conditions]
        return any(criterion.kind == "final" for line in lines for criterion in line)

    def _apply(self, found: Found, final: bool) -> None:
        for section in self.sections:
            names = section.names
            if names is not None and found.name not in names:
                continue
            if all(_holds(line, found, final) for line in section.conditions):
                found.add(section.settings)


@cache
def read(files: tuple[Path, ...]) -> Config:
    """Read once in a process; a file that does not exist holds nothing.

    :raises FleetError: naming the file and the line that ssh would refuse as well
    """
    return Config(tuple(section for file in files for section in _parse(file, (), DEPTH)))


def _parse(file: Path, around: tuple[tuple[Criterion, ...], ...], depth: int) -> Iterator[Section]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:  # as ssh does
        return
    conditions, settings = around, list[tuple[str, Words]]()
    for number, line in enumerate(lines, start=1):
        key, words = _split(line, f"{file}, line {number}")
        if key in ("host", "match", "include"):
            yield Section(conditions, tuple(settings))
            settings = []
        if key == "include":
            if not depth:
                raise FleetError(f"{file}, line {number}: files include each other")
            for included in _included(words, file):
                yield from _parse(included, conditions, depth - 1)
        elif key == "host":
            conditions = (*around, (Criterion("originalhost", ",".join(words)),))
        elif key == "match":
            conditions = (*around, tuple(_criteria(words, f"{file}, line {number}")))
        elif key:
            settings.append((key, words))
    yield Section(conditions, tuple(settings))


def _included(words: Words, file: Path) -> Iterator[Path]:
    """Relative to ~/.ssh, or to /etc/ssh in the system's; also beside the file that says it."""
    for word in words:
        pattern = Path(word).expanduser()
        homes = [] if SYSTEM.parent in file.parents else [Path("~/.ssh").expanduser()]
        for home in (*homes, file.parent):
            anchored = home.absolute() / pattern  # an absolute pattern stays what it is
            if found := sorted(Path(anchored.anchor).glob(str(anchored.relative_to("/")))):
                yield from found
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
    word, quote, escaped = "", "", False
    begun = False
    for char in text:
        if escaped:
            word, escaped = word + char, False
        elif char == "\\" and quote:
            escaped = True
        elif quote:
            word, quote = (word, "") if char == quote else (word + char, quote)
        elif char in "\"'":
            quote, begun = char, True
        elif char.isspace():
            if begun:
                yield word
            word, begun = "", False
        elif char == "#" and not begun:
            return
        else:
            word, begun = word + char, True
    if begun:
        yield word


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


def _holds(line: tuple[Criterion, ...], found: Found, final: bool) -> bool:
    return all(_is_met(criterion, found, final) != criterion.negated for criterion in line)


def _is_met(criterion: Criterion, found: Found, final: bool) -> bool:
    """Whether it is as said; what is not understood (``canonical``, ``localnetwork``) is not."""
    kind, argument = criterion.kind, criterion.argument
    if kind == "originalhost":
        return _matches(found.name, argument)
    if kind == "host":
        return _matches(found.host_name, argument)
    if kind == "user":
        return _matches(found.first("user") or getpass.getuser(), argument)
    if kind == "localuser":
        return _matches(getpass.getuser(), argument)
    if kind == "exec":
        return _succeeds(argument, found)
    return kind == "all" or (kind == "final" and final)


def _succeeds(command: str, found: Found) -> bool:
    user = found.first("user") or getpass.getuser()
    values = {"h": found.host_name, "n": found.name, "r": user, "p": found.first("port", "22")}
    values |= {"u": getpass.getuser(), "d": str(Path.home()), "%": "%"}
    text = re.sub(r"%(\w|%)", lambda m: values.get(m[1], m[0]), command)
    # The operator's own file says so, and ssh runs it just like that.
    words = ["/bin/sh", "-c", text]
    result = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    return result.returncode == 0


def _matches(name: str, patterns: str) -> bool:
    """Whether one of the patterns is the name's, and none with a ``!`` is."""
    found = False
    for pattern in patterns.split(","):
        if pattern.startswith("!"):
            if matches(name, pattern[1:]):
                return False
        elif matches(name, pattern):
            found = True
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern with ``*`` and ``?`` is the name's."""
    if "*" not in pattern and "?" not in pattern:
        return name == pattern
    return _compiled(pattern).match(name) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[", "[[]")))


def _seconds(value: str) -> int:
    if value.lower() in ("none", "no"):
        return 0
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    parts = re.findall(r"(\d+)([smhdw]?)", value.lower())
    return sum(int(number) * units[unit] for number, unit in parts)
