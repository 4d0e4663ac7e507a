"""What processes say of themselves to others while something runs: command lines of all, and
environments of the lab's machines and of what the tests start.

    with Sampled(lab) as processes:
        ...
        processes.stop(): list[Seen]

Processes of the lab's machines are processes of this one, too. Run as a program it is what looks,
as root, until its standard input ends: sampled.py GROUP MARK; it prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

MARK = "UWSGI_CONSUL_FLEET_SAMPLED"  # in the environment of what the tests start
PAUSE = 0.02  # seconds between two looks
# One that was looked at so often and is as it was is looked at now and then.
OLD, EACH = 10, 50


class Seen(NamedTuple):
    """``what`` is cmdline or environ; ``user`` has a name in a machine of the lab, and is there
    the owner of the process; ``group`` is its control group."""

    what: str
    user: int
    group: str
    text: str


class Sampled:
    """Over when the block ends."""

    def __init__(self, lab: object) -> None:
        from lab_commands import SUDO, Lab

        assert isinstance(lab, Lab)
        self.group = f"uwsgi-consul-fleet-{lab.clone}-"
        self.mark = f"{MARK}={os.getpid()}"
        self.words = [*SUDO, sys.executable, __file__, self.group, self.mark]
        self.seen: list[Seen] = []

    def __enter__(self) -> Self:
        os.environ[MARK] = str(os.getpid())
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.words, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "looks\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> list[Seen]:
        """All that was seen; nothing is looked at any more."""
        if os.environ.pop(MARK, None):
            said, _ = self.process.communicate()
            self.seen = [Seen(*each) for each in json.loads(said)]
        return self.seen


class Looks:
    """At all processes, again and again."""

    def __init__(self, group: bytes, mark: bytes) -> None:
        self.group, self.mark = group, mark
        self.found: dict[tuple[str, int, bytes, bytes], None] = {}
        self.known: dict[str, tuple[bytes, int]] = {}  # command lines, and how often they were seen
        self.count = 0

    def look(self) -> None:
        self.count += 1
        there = {entry.name for entry in os.scandir("/proc") if entry.name.isdigit()}
        for name in self.known.keys() - there:
            del self.known[name]
        # Those that are new may end soon.
        for name in (*(there - self.known.keys()), *self.known):
            before, times = self.known.get(name, (b"", 0))
            if times < OLD or (self.count + int(name)) % EACH == 0:
                with suppress(OSError):  # it has ended
                    self.known[name] = self.at(f"/proc/{name}", before, times)

    def at(self, folder: str, before: bytes, times: int) -> tuple[bytes, int]:
        line = read(f"{folder}/cmdline")
        if line == before and times:
            return line, times + 1
        groups = [each for each in read(f"{folder}/cgroup").splitlines() if self.group in each]
        group = groups[0].rpartition(b":")[2] if groups else b""
        user = Path(folder).stat().st_uid
        self.found["cmdline", user, group, line] = None
        environment = read(f"{folder}/environ")
        if group or self.mark in environment.split(b"\0"):
            self.found["environ", user, group, environment] = None
        return line, 1


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def main(group: str, mark: str) -> None:
    os.nice(-10)  # it is to see what others do, however busy the machine is
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    looks = Looks(group.encode(), mark.encode())
    looks.look()
    print("looks", flush=True)
    while not over.wait(PAUSE):
        looks.look()
    print(
        json.dumps(
            [
                (what, user, place.decode(), text.decode("latin-1"))
                for what, user, place, text in looks.found
            ]
        )
    )
    print(f"{looks.count} looks, {time.process_time():.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
