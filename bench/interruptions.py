"""Deploys that are interrupted at random moments, in every way, on a fleet under load.

Starts two lab machines, builds the plugin and deploys. Then releases again and again, each
interrupted by Ctrl-C, kill -9 or the loss of the network; then releases while a host loses its
power or reboots; then first deploys to a bare host, killed again and again. After each, the same
deploy once more must finish it, and no request may have been lost. Leaves the machines up.

    python bench/interruptions.py [--moments 20] [--reboots 4] [--kills 7] [--seed 1]
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
from fleet_commands import Fleet  # noqa: E402
from interrupting import (  # noqa: E402
    KINDS,
    REBOOTS,
    STAGES,
    footprint,
    interrupted,
    kill_deploys,
    rebooted,
)
from lab_commands import Lab  # noqa: E402
from load import CLOSE, Load, instances  # noqa: E402
from releasing import Releases  # noqa: E402
from shared_fleet import HOSTS, SharedFleet  # noqa: E402

LATEST = 12  # seconds after which a first deploy is killed, at most


def survived(what: str, act: Callable[..., None], *arguments: object) -> bool:
    """Whether it does what it should; says so, and why it did not."""
    begin = time.monotonic()
    try:
        act(*arguments)
    except AssertionError as error:
        print(f"{what}: FAILED: {error}", flush=True)
        return False
    print(f"{what}: fine, {time.monotonic() - begin:.0f} s", flush=True)
    return True


def killed_first_deploys(lab: Lab, kills: int) -> None:
    """On new machines, with all settings as they are shipped."""
    lab.rebuild(*HOSTS)
    fleet = Fleet(ROOT / ".lab/bench_interruptions.py")
    fleet.hosts(["drakar"], list(HOSTS))
    fleet.deploy("--limit", "drakar")
    kill_deploys(fleet, "cheetah", [random.uniform(0.8, LATEST) for _ in range(kills)])
    fleet.deploy()
    fleet.verify("--wait", "10", "--probe")
    assert fleet.changes() == {}, "a deploy after it changes something"
    assert footprint(lab, "cheetah") == footprint(lab, "drakar"), "something is left"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20, help="of interruption (20)")
    parser.add_argument("--reboots", type=int, default=4, help="and power cuts (4)")
    parser.add_argument("--kills", type=int, default=7, help="of first deploys (7)")
    options = figures.parse(parser, "one interruption")
    if options.once:
        options.moments, options.reboots, options.kills = 1, 0, 0
    checkout.enter()
    lab = Lab(ROOT)
    fleet = SharedFleet(ROOT / ".lab/bench/fleet.py", lab)
    fleet.reset()
    results = []
    kinds = itertools.cycle(random.sample(KINDS, len(KINDS)))
    downs = itertools.cycle(itertools.product(REBOOTS, STAGES))
    with tempfile.TemporaryDirectory(prefix="interruptions-") as folder:
        releases = Releases(fleet, lab, Path(folder))
        releases.deploy()
        with Load(lab, instances(lab, *HOSTS), pause=CLOSE) as load:
            rng = random.Random(options.seed)
            for how in itertools.islice(kinds, options.moments):
                releases.ensure()
                results.append(survived(how, interrupted, releases, load, how, rng))
            for how, stage in itertools.islice(downs, options.reboots):
                releases.ensure()
                where = (releases, load, how, stage, rng)
                results.append(survived(f"{how}, {stage}", rebooted, *where))
            whole = load.events.requests
        failed = [request for request in whole if request.problem]
    print(f"{len(whole)} requests, {len(failed)} failed (those to a host without power may)")
    if options.kills:
        what = f"first deploys, killed {options.kills} times"
        results.append(survived(what, killed_first_deploys, lab, options.kills))
    print(f"{results.count(True)} of {len(results)} fine")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
