"""From two hosts to six and back under load: nobody loses a request, nobody else is touched.

Starts six lab machines, builds the plugin and deploys to two of them first. Removes the other
four in the end.

    python bench/scaling.py [--times 3]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
from growing import grow_and_shrink  # noqa: E402
from lab_commands import Lab  # noqa: E402
from shared_fleet import HOSTS, SharedFleet  # noqa: E402

MORE = ("ormen", "skeid", "knarr", "busse")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3, help="up and down (3)")
    options = figures.parse(parser, "one host more, once")
    more = MORE[:1] if options.once else MORE
    checkout.enter()
    lab = Lab(ROOT)
    fleet = SharedFleet(ROOT / ".lab/bench/fleet.py", lab)
    fleet.reset()
    lab.up(*more)
    lab.rebuild(*more)
    for _ in range(1 if options.once else options.times):
        begin = time.monotonic()
        grow_and_shrink(fleet, lab, HOSTS, more)
        count = len(HOSTS) + len(more)
        print(f"2 to {count} to 2 hosts: no request lost, {time.monotonic() - begin:.0f} s")
    lab.down(*more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
