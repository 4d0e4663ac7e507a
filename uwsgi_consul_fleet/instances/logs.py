"""The journals of instances, from their hosts, in the order of time."""

import heapq
import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import Any

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.instances.choice import Chosen
from uwsgi_consul_fleet.inventory.model import Host, Instance
from uwsgi_consul_fleet.ssh import connection as ssh

AHEAD = 1000  # lines of a host that wait for those of others
# Seconds for which a line of a journal that goes on waits for an earlier one of another host.
PATIENCE = 0.5
TRIAL = "trial"
SYSTEMD = "init.scope"  # the unit that it is in itself
# journalctl ends when nobody is at the other end any more: that may be noticed nowhere else.
SCRIPT = """\
exec 3<&0
journalctl --quiet --no-pager --all --output=json --output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT \
    {options} </dev/null &
journal=$!
{{ cat <&3; kill $journal; }} >/dev/null 2>&1 &
wait $journal
"""


@dataclass(frozen=True)
class Line:
    """What an instance said, or systemd about it: ``moment`` in microseconds since 1970, by the
    host's clock."""

    moment: int
    host: str
    instance: str
    release: str
    generation: str
    text: str


Problem = Callable[[str], None]


def read(chosen: Chosen, since: int, follow: bool, problem: Problem) -> Iterator[Line]:
    """Every line of these instances, and of trials and workers where all of a host's are meant.

    :param since: seconds ago at which to begin, by each host's clock
    :param follow: go on for ever
    :param problem: is told of a host that can't be asked, or not any more
    """
    several = len({each.service for _, instances in chosen for each in instances}) > 1
    sources = {
        host.name: _read(host, _labels(host, instances, several), since, follow)
        for host, instances in chosen
    }
    return merged(sources, PATIENCE if follow else None, problem)


def _labels(host: Host, instances: Iterable[Instance], several: bool) -> dict[str, str]:
    """What to call the instances, by the name of their units."""
    found: dict[str, str] = {}
    listed = list(instances)
    workers = {its.app: its.worker_names for its in host.applications}
    for each in listed:
        app = f"{each.service}/" if several else ""
        found[f"{each.service}-{each.port}"] = f"{app}{each.name}"
        if {one for one in host.instances if one.service == each.service} <= {*listed}:
            found[f"{each.service}-{TRIAL}"] = f"{app}{TRIAL}"
            found |= {f"{each.service}.{name}": f"{app}{name}" for name in workers[each.service]}
    return found


def _read(host: Host, labels: Mapping[str, str], since: int, follow: bool) -> Iterator[Line | None]:
    """Those of one host; None first, when its journal begins to come."""
    with ssh.connect(host) as connection:
        running = ssh.Running(connection, script(labels, since, follow))
        running.begin()
        yield None
        for raw in running.output():
            if line := parsed(raw, host.name, labels):
                yield line


def script(units: Iterable[str], since: int, follow: bool) -> str:
    """What prints the journal of these units on a host.

    They are found by the slice that systemd makes for all instances of a template: so releases
    that come while it goes on are among them. What systemd itself says has to be sorted out.
    """
    options = [f"--since=-{since}s", *["--follow", "--no-tail"] * follow]
    for unit in units:
        options += [f"_SYSTEMD_SLICE=system-{unit.replace('-', chr(92) + 'x2d')}.slice", "+"]
    return SCRIPT.format(options=shlex.join([*options, "_PID=1"]))


def parsed(raw: bytes, host: str, labels: Mapping[str, str]) -> Line | None:
    """A line of journalctl's JSON; None where it is not about one of these instances, or only the
    beginning of one, because the connection was lost."""
    if not raw.endswith(b"\n"):
        return None
    entry: dict[str, Any] = json.loads(raw)
    unit = _text(entry.get("_SYSTEMD_UNIT"))
    if unit == SYSTEMD:  # nobody else may say whom it speaks of
        unit = _text(entry.get("UNIT"))
    name, _, generation = unit.removesuffix(".service").partition("@")
    if name not in labels:
        return None
    release = generation.rpartition("-")[0]
    moment = int(entry["__REALTIME_TIMESTAMP"])
    return Line(moment, host, labels[name], release, generation, _text(entry.get("MESSAGE")))


def _text(value: Any) -> str:
    """A field as journalctl has it: a text, bytes that are none, or several of these."""
    if not isinstance(value, list):
        return value or ""
    if all(isinstance(each, int) for each in value):
        return bytes(value).decode(errors="replace")
    return "\n".join(map(_text, value))


def merged(
    sources: Mapping[str, Iterable[Line | None]], patience: float | None, problem: Problem
) -> Iterator[Line]:
    """The lines of all, the earliest first.

    :param patience: seconds for which a line waits for those of others; None for until they end
    """
    arrived: SimpleQueue[tuple[str, Line | None, bool]] = SimpleQueue()
    ahead = {name: Semaphore(AHEAD) for name in sources}

    def fetch(name: str, lines: Iterable[Line | None]) -> None:
        try:
            for line in lines:
                ahead[name].acquire()
                arrived.put((name, line, True))
        except UnreachableError as error:
            problem(str(error))
        finally:
            arrived.put((name, None, False))

    for name, lines in sources.items():
        Thread(target=fetch, args=(name, lines), daemon=True).start()
    # Of those that have not ended, how many of their lines wait; -1 before they begin.
    waiting = dict.fromkeys(sources, -1)
    heap: list[tuple[int, int, Line, float]] = []
    numbers = count()
    while waiting or heap:
        left = None
        if heap and min(waiting.values(), default=1) > 0:
            left = 0.0
        elif heap and patience is not None and min(waiting.values()) >= 0:
            left = heap[0][-1] + patience - time.monotonic()
        if left is not None and left <= 0:
            line = heapq.heappop(heap)[2]
            if line.host in waiting:
                waiting[line.host] -= 1
            ahead[line.host].release()
            yield line
            continue
        try:
            name, received, goes_on = arrived.get(timeout=left)
        except Empty:
            continue
        if not goes_on:
            del waiting[name]
        elif received is None:
            waiting[name] = 0
            ahead[name].release()
        else:
            waiting[name] += 1
            heapq.heappush(heap, (received.moment, next(numbers), received, time.monotonic()))
