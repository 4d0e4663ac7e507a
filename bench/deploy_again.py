"""How long `pyinfra -y inventory.py deploy/` takes when there is nothing to change.

Starts eight lab machines, deploys to them, and then times runs over two of them and
over all eight in turns, so that both see the same noise. Needs a built plugin
(invoke build-plugin); leaves the machines up.

    python bench/deploy_again.py [--runs 10]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import figures
from acl_tokens import the_same
from shared_fleet import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NAMES = ["drakar", "cheetah", "ormen", "berserk", "skeid", "knarr", "karve", "busse"]


def inventory(count: int, data: Mapping[str, object]) -> Path:
    path = ROOT / ".lab" / f"bench_{count}.py"
    hosts = [(name, data) for name in NAMES[:count]]
    path.write_text(f'consul_servers = ["drakar"]\napp_servers = {hosts}\n')
    return path


def deploy(path: Path, *options: str) -> str:
    command = [str(BIN / "pyinfra"), "-y", *options, str(path), "deploy/"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stderr)
    return result.stdout


def timed(path: Path) -> float:
    begin = time.monotonic()
    deploy(path)
    return time.monotonic() - begin


def expect_no_changes(path: Path) -> None:
    totals = json.loads(deploy(path, "--json"))["results"]["totals"]
    if totals["success"] or totals["error"]:
        sys.exit(f"a run that should change nothing did: {totals}")
    print(f"nothing to change: {totals}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="timed runs over each (default 10)")
    options = figures.parse(parser, "one run over two hosts alone")
    counts = (2,) if options.once else (2, 8)
    names = NAMES[: counts[-1]]
    subprocess.run([str(BIN / "invoke"), "lab.up", *names], cwd=ROOT, check=True)
    # The suite's fleet is found as it is: nothing needs to be installed on it.
    data = SETTINGS if options.once else {}
    inventories = {count: inventory(count, data) for count in counts}
    many = inventories[counts[-1]]
    for count in counts[:-1]:
        the_same(inventories[count], many, NAMES[0])
    plugin = [str(BIN / "invoke"), "build-plugin", "--inventory", str(many)]
    subprocess.run(plugin, cwd=ROOT, check=True)
    deploy(many)
    expect_no_changes(many)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(1 if options.once else options.runs):
        for count, path in inventories.items():
            times[count].append(timed(path))
    for count, measured in times.items():
        low, middle, high = min(measured), statistics.median(measured), max(measured)
        print(f"{count} hosts: median {middle:.2f} s (min {low:.2f}, max {high:.2f})")
    if options.once:
        return
    ratio = statistics.median(times[8]) / statistics.median(times[2])
    print(f"8 hosts take {ratio:.2f} times as long as 2 (required: at most 1.5; 2 hosts in 2.0 s)")


if __name__ == "__main__":
    main()
