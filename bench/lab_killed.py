"""Whether the lab is whole again after `lab.up` was killed, at many random moments.

On a host within this one, which nothing else sees. Each kill takes about six seconds; the first
difference from the state before ends it.

    python bench/lab_killed.py [--kills 100] [--seed N] [--once]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
from lab_host import Host, kill_up  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    options = figures.parse(parser, "four kills, one of each kind")
    kills = 4 if options.once else options.kills
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        try:
            _kill_often(host, kills, rng)
        finally:
            host.off()
    print(f"{kills} kills: no trace left")


def _kill_often(host: Host, kills: int, rng: random.Random) -> None:
    with tempfile.TemporaryDirectory() as copied:
        checkout.copy(Path(copied) / "checkout")
        lab = host.lab(Path(copied) / "checkout")
        before = host.traces(lab)
        for number in range(kills):
            moment, group, up = rng.uniform(0.05, 4), number % 2 == 0, number // 2 % 2 == 0
            kill_up(lab, moment, group=group, mended_by_up=up)
            assert host.traces(lab) == before, f"kill {number} after {moment:.3f} s"
            print(f"{number + 1}: {moment:.2f} s", flush=True)


if __name__ == "__main__":
    main()
