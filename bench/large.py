"""A release with 300 MB of assets on ten hosts: what it takes of the operator's machine, how it is
sent, and how long `scp` takes for the same to the same hosts.

Starts as many lab machines, and deploys the application to them before it is large. Then it is
released, by the whole command, whose memory is that of its process and of all that it has started,
looked at five times a second. How it was sent is what the hosts say: when each began to unpack it,
and when it had all of it. In the end `scp -r` copies the folder to all of them, side by side. All
but two of the machines are removed again.

    python bench/large.py [--hosts 10] [--megabytes 300]
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import figures
import prepared
from applications import application, released
from lab_commands import Lab
from load import SERVICE
from shared_fleet import HOSTS, SharedFleet

ROOT = Path(__file__).resolve().parent.parent
FILE = 5  # MB
REQUIRED = 300  # MB of memory
PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch:
    """What a process and those below it take, at the worst: ``memory`` in MB, and ``packed``, how
    many large files without a name they had open, which is what is packed."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.memory = 0.0
        packed: set[int] = set()
        while process.poll() is None:
            below = _below(process.pid)
            self.memory = max(self.memory, sum(map(_resident, below)))
            packed |= {each for pid in below for each in _without_a_name(pid)}
            time.sleep(0.2)
        self.packed = len(packed)


def _below(pid: int) -> list[int]:
    """It and all that it has started, and that they have."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children[each]
    return found


def _resident(pid: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
    return 0


def _without_a_name(pid: int) -> set[int]:
    """The large ones, by their inodes."""
    found = set()
    with suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                status = each.stat()
                if not status.st_nlink and status.st_size > 2**20:
                    found.add(status.st_ino)
    return found


def release(fleet: SharedFleet, source: Path) -> str:
    """Release it as an operator does, say what that took here, and return its name."""
    name = f"large{time.time_ns():x}"
    words = fleet.words(*released(source, name))
    begin = time.monotonic()
    with (fleet.path.parent / "said").open("w+") as said:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        watch = Watch(process)
        if process.returncode:
            said.seek(0)
            sys.exit(said.read())
    print(
        f"released: {time.monotonic() - begin:.1f} s, at most {watch.memory:.0f} MB of memory "
        f"(required: less than {REQUIRED}), packed {watch.packed} times",
        flush=True,
    )
    return name


def sent(lab: Lab, names: Sequence[str], release_name: str) -> None:
    """Say how the hosts got it, by the folder's birth and what is made behind it."""
    folder = f"/srv/{SERVICE}/releases/{release_name}-*"
    born, made = f"stat --format %.3W {folder}", f"stat --format %.3Y {folder}/consul_plugin.so"
    asked = f"sudo sh -c '{born}; {made}'"
    times = [list(map(float, lab.ssh(name, asked).stdout.split())) for name in names]
    moments = sorted([(begin, 1) for begin, _ in times] + [(end, -1) for _, end in times])
    at_once = [sum(way for _, way in moments[: each + 1]) for each in range(len(moments))]
    print(
        f"of that sent: {moments[-1][0] - moments[0][0]:.1f} s, to {max(at_once)} of {len(names)} "
        "at once",
        flush=True,
    )


def copied(lab: Lab, names: Sequence[str], source: Path) -> None:
    """Say how long scp takes for the same."""
    begin = time.monotonic()
    copies = [
        subprocess.Popen(
            ["scp", "-q", "-r", "-F", str(lab.config), str(source), f"{name}:/var/tmp/large"]
        )
        for name in names
    ]
    codes = [each.wait() for each in copies]
    if any(codes):
        sys.exit("scp failed")
    print(f"scp -r of the same to all at once: {time.monotonic() - begin:.1f} s", flush=True)
    for name in names:
        lab.ssh(name, "rm -r /var/tmp/large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=300)
    options = figures.parse(parser, "20 MB to two hosts")
    if options.once:
        options.hosts, options.megabytes = 2, 20
    lab = Lab(ROOT, **prepared.environment())
    more = [f"more{number:02}" for number in range(1, options.hosts - 1)]
    names = [*HOSTS, *more]
    lab.up(*names)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        fleet = SharedFleet(Path(name) / "fleet.py", lab)
        fleet.hosts(names[:1], names)
        fleet.build_once()
        fleet.deploy()
        source = application(Path(name))
        for number in range(options.megabytes // FILE):
            (source / f"{number}.bin").write_bytes(random.randbytes(FILE * 1_000_000))
        print(f"{options.megabytes} MB, {options.hosts} hosts", flush=True)
        sent(lab, names, release(fleet, source))
        copied(lab, names, source)
    if more:
        lab.down(*more)


if __name__ == "__main__":
    main()
