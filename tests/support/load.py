"""Load on a fleet while something is done to it, and what its clients noticed.

    with Load(lab, instances(lab, "drakar", "cheetah")) as load:
        load.mark("release r2")
        fleet.deploy(...)
        load.mark("after")
        load.window("release r2", "after").expect(passing=4)
        print(load.summary())

The clients run on a host of the fleet, see :mod:`load_generator`: Consul's API listens on
loopback, and nothing but the fleet's own network lies between them and the instances. They go
on when the test's ssh does not. Lab machines and this one have the same clock.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import acl_tokens
import evidence
import seed
from lab_commands import Lab

SERVICE = "consul-demo-server"
GENERATOR = Path(__file__).with_name("load_generator.py")
FOLDER = "/var/tmp/load"
UNIT = "load.service"
# Seconds from one request of a client to its next: in the suite, and where benchmarks look closer.
PAUSE, CLOSE = 0.4, 0.25


def instances(lab: Lab, *names: str, ports: Iterable[int] = (2001, 2002)) -> list[str]:
    """HOST:PORT of the instances on these machines."""
    addresses = lab.addresses()
    return [f"{addresses[name]}:{port}" for name in names for port in ports]


class Request(NamedTuple):
    """One request of one client; without a problem it was answered well."""

    begin: float
    seconds: float
    connected: float | None
    kind: str
    address: str
    release: str | None
    problem: str | None


@dataclass(frozen=True)
class Window:
    """What began in a stretch of time, and what was in the catalog meanwhile.

    `passing` has the passing instances with their releases at its start and after each change;
    `late` is when the clients' own program was woken late, and by how much: also a client waited
    then for a processor, and the time counts as the request's.
    """

    name: str
    begin: float
    end: float
    requests: list[Request]
    lookups: list[tuple[float, str]]
    passing: list[tuple[float, dict[str, str]]]
    unwatched: list[tuple[float, str]]
    late: list[tuple[float, float]]

    @property
    def count(self) -> int:
        return len(self.requests)

    @property
    def failed(self) -> list[Request]:
        return [request for request in self.requests if request.problem]

    @property
    def times(self) -> list[float]:
        """Seconds of the requests that were answered, the shortest first."""
        return sorted(request.seconds for request in self.requests if not request.problem)

    @property
    def slowest(self) -> float:
        return max(self.times, default=0.0)

    @property
    def lag(self) -> float:
        return max((seconds for _moment, seconds in self.late), default=0.0)

    @property
    def slowest_served(self) -> float:
        """The slowest request, not counting what its client waited for a processor meanwhile."""
        answered = (request for request in self.requests if not request.problem)
        return max((one.seconds - self._waited(one) for one in answered), default=0.0)

    def _waited(self, request: Request) -> float:
        end = request.begin + request.seconds
        return sum(
            max(0.0, min(end, moment) - max(request.begin, moment - seconds))
            for moment, seconds in self.late
            if moment > request.begin and moment - seconds < end
        )

    @property
    def median(self) -> float:
        return statistics.median(self.times or [0.0])

    def percentile(self, percent: float) -> float:
        """Seconds within which so many of the requests were answered."""
        times = self.times or [0.0]
        return times[min(len(times) - 1, int(len(times) * percent / 100))]

    @property
    def releases(self) -> Counter[str]:
        return Counter(request.release for request in self.requests if request.release)

    @property
    def least_passing(self) -> int:
        return min((len(found) for _moment, found in self.passing), default=0)

    @property
    def blind(self) -> float:
        """For how many seconds at most look-ups went on failing."""
        longest = begin = last = 0.0
        for moment, _problem in self.lookups:  # those that failed
            begin = begin if moment - last < 2 else moment
            longest, last = max(longest, moment - begin), moment
        return longest

    def at(self, addresses: Iterable[str]) -> Window:
        """The same, with the requests to these addresses alone."""
        chosen = set(addresses)
        return replace(self, requests=[one for one in self.requests if one.address in chosen])

    def by(self, kind: str) -> Window:
        """The same, with the requests of one kind of client alone: discovered or fixed."""
        return replace(self, requests=[one for one in self.requests if one.kind == kind])

    def __str__(self) -> str:
        problems = Counter(request.problem for request in self.failed)
        failed = "".join(f", {count} {problem}" for problem, count in problems.items())
        parts = [
            f"{self.count} requests in {self.end - self.begin:.0f} s, {len(self.failed)} failed"
            f"{failed}",
            f"slowest {milliseconds(self.slowest)} ({milliseconds(self.slowest_served)} without "
            f"own lag of at most {milliseconds(self.lag)}), 99.9 % in "
            f"{milliseconds(self.percentile(99.9))}, 99 % in {milliseconds(self.percentile(99))}, "
            f"median {milliseconds(self.median)}",
            f"at least {self.least_passing} passing",
            "by " + ", ".join(f"{name} {count}" for name, count in self.releases.items()),
        ]
        if self.lookups:
            parts.append(f"{len(self.lookups)} lookups failed, first: {self.lookups[0][1]}")
        return f"{self.name}: {'; '.join(parts)}"

    def expect(self, passing: int = 0, releases: Iterable[str] | None = None) -> None:
        """That no request and no look-up failed, and no instance was missing.

        :param passing: how many instances passed at every moment, at least
        :param releases: that answered, and no others did
        """
        wrong = [self._describe(request) for request in self.failed]
        wrong += [f"{self._offset(moment)} look-up: {why}" for moment, why in self.lookups]
        wrong += [f"{self._offset(moment)} watcher: {why}" for moment, why in self.unwatched]
        wrong += [
            f"{self._offset(moment)} only {len(found)} passing: {', '.join(sorted(found))}"
            for moment, found in self.passing
            if len(found) < passing
        ]
        if releases is not None and set(self.releases) != set(releases):
            wrong.append(f"answered by {sorted(self.releases)}, expected {sorted(releases)}")
        if not self.count:
            wrong.append("there was not one request")
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        assert not wrong, f"{self}\n  " + "\n  ".join(wrong[:20]) + more

    def _offset(self, moment: float) -> str:
        return f"{moment - self.begin:+.3f} s"

    def _describe(self, request: Request) -> str:
        return (
            f"{self._offset(request.begin)} {request.address} ({request.kind}): "
            f"{request.problem} after {milliseconds(request.seconds)}"
        )


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


@dataclass
class Events:
    """What the generator has written so far, by kind."""

    requests: list[Request] = field(default_factory=list)
    lookups: list[tuple[float, str]] = field(default_factory=list)
    passing: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    unwatched: list[tuple[float, str]] = field(default_factory=list)
    fixed: list[tuple[float, list[str]]] = field(default_factory=list)
    late: list[tuple[float, float]] = field(default_factory=list)
    settled: float = 0.0  # everything that began before this moment is there
    ended: bool = False

    def add(self, line: str) -> None:
        kind, *rest = json.loads(line)
        if kind == "request":
            self.requests.append(Request(*rest))
        elif kind == "beat":
            self.settled = rest[0]
        elif kind == "end":
            self.ended = True
        else:
            lists: dict[str, list[Any]] = {
                "lookup": self.lookups,
                "passing": self.passing,
                "unwatched": self.unwatched,
                "fixed": self.fixed,
                "late": self.late,
            }
            lists[kind].append(tuple(rest))

    def window(self, name: str, begin: float, end: float) -> Window:
        def within(found: list[Any]) -> list[Any]:
            return [one for one in found if begin <= one[0] < end]

        before = [one for one in self.passing if one[0] < begin][-1:]
        return Window(
            name,
            begin,
            end,
            within(self.requests),
            within(self.lookups),
            [(max(moment, begin), found) for moment, found in before + within(self.passing)],
            within(self.unwatched),
            # Also what was noticed when the last request of the stretch had ended.
            [one for one in self.late if begin <= one[0] < end + 1],
        )


class Load:
    """The load, from `with` to its end."""

    def __init__(
        self,
        lab: Lab,
        fixed: Iterable[str],
        *,
        on: str = "drakar",
        service: str = SERVICE,
        clients: int = 16,
        pause: float = PAUSE,
        timeout: float = 30,
    ) -> None:
        """
        :param fixed: HOST:PORT, the addresses that every second client uses
        :param on: the machine that runs the clients, a member of the cluster
        :param pause: seconds from one request of a client to its next, at least
        :param timeout: seconds after which a request has failed
        """
        self.lab = lab
        self.on = on
        self.service = service
        self.clients = clients
        self.timeout = timeout
        self.options = (
            f"--clients {clients} --pause {pause} --timeout {timeout} --path '/?format=json' "
            f"--seed {seed.SEED}"
        )
        self.fixed = list(fixed)
        self.events = Events()
        self.marks: dict[str, float] = {}
        self.read = 0  # bytes of the generator's file
        self.lines: list[str] = []  # of that file
        evidence.loads.append(self)

    def __enter__(self) -> Self:
        self._ssh(
            f"sudo systemctl stop {UNIT} 2>/dev/null; rm -rf {FOLDER}; mkdir {FOLDER}; "
            f"{self._write_fixed()}"
        )
        target = f"{self.on}:{FOLDER}/generator.py"
        self.lab.run("scp", "-q", *self.lab.ssh_options, str(GENERATOR), target)
        token = acl_tokens.lookups(self.lab, self.on)
        # Ahead of what it measures: a client that waits for a processor finds everybody slow.
        self._ssh(
            f"sudo systemd-run --quiet --collect --unit={UNIT} --uid=debian --nice=-10 "
            f"--property=TimeoutStopSec={self.timeout + 5:.0f} --setenv=CONSUL_HTTP_TOKEN={token} "
            f"python3 {FOLDER}/generator.py {FOLDER} {shlex.quote(self.service)} {self.options}"
        )
        self._until(lambda: len(self.events.requests) >= 2 * self.clients, "the first answers")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ssh(f"sudo systemctl stop {UNIT}")
        self._fetch()
        assert self.events.ended, f"the load did not end by itself: {self._journal()}"

    def mark(self, name: str) -> float:
        """Name this moment: it ends the stretch before and begins the next."""
        assert name not in self.marks, f"two marks {name}"
        self.marks[name] = time.time()
        return self.marks[name]

    def window(self, begin: float | str, end: float | str | None = None) -> Window:
        """What began between two moments or marks, when all of that has ended.

        :param end: now, if there is none
        """
        name = begin if isinstance(begin, str) else ""
        first = self.marks[begin] if isinstance(begin, str) else begin
        last = time.time() if end is None else self.marks[end] if isinstance(end, str) else end
        self._until(
            lambda: self.events.settled >= last or self.events.ended, "the requests in flight"
        )
        return self.events.window(name, first, last)

    def windows(self) -> list[Window]:
        """The stretches between marks; the last one ends now."""
        ends = [*list(self.marks.values())[1:], time.time()]
        return [self.window(name, end) for name, end in zip(self.marks, ends, strict=False)]

    def summary(self) -> str:
        """A line for each stretch."""
        return "\n".join(map(str, self.windows()))

    def fix(self, addresses: Iterable[str]) -> None:
        """Use these addresses from now on; returns when no request to another is in flight."""
        self.fixed = list(addresses)
        asked = time.time()
        self._ssh(self._write_fixed())
        self._until(
            lambda: (
                self.events.fixed[-1][0] >= asked
                and self.events.settled >= self.events.fixed[-1][0]
            ),
            f"the addresses {self.fixed}",
        )

    def _write_fixed(self) -> str:
        words = shlex.quote(" ".join(self.fixed))
        return f"echo {words} >{FOLDER}/.fixed && mv {FOLDER}/.fixed {FOLDER}/fixed"

    def _ssh(self, command: str) -> str:
        return self.lab.ssh(self.on, command).stdout

    def _fetch(self) -> None:
        found = self._ssh(f"tail -c +{self.read + 1} {FOLDER}/events 2>/dev/null || true")
        complete = found[: found.rfind("\n") + 1]
        self.read += len(complete.encode())
        for line in complete.splitlines():
            self.lines.append(line)
            self.events.add(line)

    def _until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + self.timeout + 10
        self._fetch()
        while not condition():
            assert time.monotonic() < deadline, f"load: no {what}: {self._journal()}"
            time.sleep(0.25)  # as often as the generator writes
            self._fetch()

    def _journal(self) -> str:
        return self._ssh(f"sudo journalctl --no-pager --lines 20 --output cat --unit {UNIT}")
