"""script/demo, killed in each of its steps, and started again.

    python bench/demo_killed.py [--seed 1]

Each step is killed at a random moment; the last run must come to its end. Leaves the machines up.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
from demo_runs import STEPS, kill, start  # noqa: E402
from lab_commands import Lab  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options = figures.parse(parser, "one step alone")
    checkout.enter()
    Lab(ROOT).down()
    for step, longest in [random.choice(STEPS)] if options.once else STEPS:
        kill(step, random.uniform(0, longest))
    begin = time.monotonic()
    process = start()
    said, _ = process.communicate()
    fine = process.returncode == 0 and said.count("✓ passing") == 4
    print(said if not fine else f"the last run ended well after {time.monotonic() - begin:.0f} s")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
