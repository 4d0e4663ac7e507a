"""A deploy with nothing to change, and verify, by this version and by the one before it, in turns.

Each has eight lab machines of its own, so that both see the same noise and neither the other's
files. Makes the version before out of git; removes the machines in the end.

    python bench/deploy_before.py [--runs 10]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import acl_tokens  # noqa: E402
import checkout  # noqa: E402
import figures  # noqa: E402
from fleet_commands import run  # noqa: E402
from lab_commands import Lab  # noqa: E402
from versions import before  # noqa: E402

# What is timed, with {} for the inventory.
WHAT = {
    "deploy": ("pyinfra", "-y", "{}", "deploy/"),
    "verify": ("invoke", "verify", "--inventory", "{}"),
}
# Runs pyinfra or invoke.
Run = Callable[..., subprocess.CompletedProcess[str]]


class Fleet:
    """Hosts that one version deploys to."""

    def __init__(self, name: str, count: int, folder: Path, commands: Run) -> None:
        self.name = name
        self.hosts = [f"{name}{number}" for number in range(1, count + 1)]
        self.times: dict[tuple[str, int], list[float]] = {}
        self._folder = folder
        self._commands = commands

    def inventory(self, count: int) -> str:
        path = self._folder / f"{self.name}_{count}.py"
        hosts = [(host, {"app_requirements": None}) for host in self.hosts[:count]]
        path.write_text(f"consul_servers = {self.hosts[:1]}\napp_servers = {hosts}\n")
        if count < len(self.hosts):
            every = self._folder / f"{self.name}_{len(self.hosts)}.py"
            acl_tokens.the_same(path, every, self.hosts[0])
        return str(path)

    def make(self) -> None:
        inventory = self.inventory(len(self.hosts))
        self._commands("invoke", "build-plugin", "--inventory", inventory)
        self._commands("pyinfra", "-y", inventory, "deploy/")
        said = self._commands("pyinfra", "-y", "--json", inventory, "deploy/").stdout
        if changed := json.loads(said)["results"]["totals"]["success"]:
            sys.exit(f"{self.name}: a run that should change nothing did, {changed} times")

    def time(self, what: str, count: int) -> None:
        inventory = self.inventory(count)
        words = [word.format(inventory) for word in WHAT[what]]
        begin = time.monotonic()
        self._commands(*words)
        self.times.setdefault((what, count), []).append(time.monotonic() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="timed runs of each (10)")
    options = figures.parse(parser, "one run of each, over two hosts")
    checkout.enter()
    counts = (2,) if options.once else (2, 8)
    # To an inventory of two the other six would be unexpected.
    timed = [*(("deploy", count) for count in counts), ("verify", counts[-1])]
    lab = Lab(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        version = before(there)
        fleets = [
            Fleet("before", counts[-1], there, version.run),
            Fleet("now", counts[-1], there, run),
        ]
        hosts = [host for fleet in fleets for host in fleet.hosts]
        lab.up(*hosts)
        try:
            for fleet in fleets:
                fleet.make()
            for _ in range(1 if options.once else options.runs):
                for each in timed:
                    for fleet in fleets:
                        fleet.time(*each)
        finally:
            lab.down(*hosts)
    for what, count in timed:
        old, new = (fleet.times[what, count] for fleet in fleets)
        ratio = statistics.median(b / a for a, b in zip(old, new, strict=True))
        print(
            f"{what}, {count} hosts: before {statistics.median(old):.2f} s, now "
            f"{statistics.median(new):.2f} s, {ratio:.2f} times (required: at most 1.2)"
        )


if __name__ == "__main__":
    main()
