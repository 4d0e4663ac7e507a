"""What was on a machine before a fleet came to it, after releases and after the fleet has gone.

Starts two lab machines: skeid is the server of a Consul cluster that is not the fleet's; ormen is a
member of it by HashiCorp's packaging of Consul, and has an owner with applications, units, users,
nftables rules and a uWSGI emperor. Releases the application to ormen again and again, retires it,
and compares what is there: byte by byte, and process by process. Leaves the machines up.

    python bench/beside_others.py [--releases 10]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from shlex import quote

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import figures  # noqa: E402
from lab_commands import Lab  # noqa: E402
from owned_machine import BESIDE, EMPEROR, PackagedConsul, missing, state  # noqa: E402
from releasing import Releases  # noqa: E402

SERVER, MEMBER = "skeid", "ormen"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=10)
    options = figures.parse(parser, once="one release")
    lab = Lab(ROOT)
    lab.up(SERVER, MEMBER)
    lab.rebuild(SERVER, MEMBER)
    for script in (BESIDE, EMPEROR):
        lab.ssh(MEMBER, f"sudo sh -ec {quote(script)}")
    with tempfile.TemporaryDirectory() as folder:
        return soak(lab, Path(folder), 1 if options.once else options.releases)


def soak(lab: Lab, folder: Path, count: int) -> int:
    theirs = PackagedConsul(lab, folder, SERVER, MEMBER, "guest")
    fleet = theirs.guest()
    fleet.hosts([], [theirs.host])
    fleet.build_once()
    before = state(lab, MEMBER)
    releases = Releases(fleet, lab, folder, [MEMBER])
    lost: set[str] = set()
    begin = time.monotonic()
    for _ in range(count):
        releases.deploy()
        fleet.verify("--wait", "10")
        lost |= missing(before, state(lab, MEMBER))
    fleet.hosts([], [], [theirs.host])
    fleet.deploy()
    after = state(lab, MEMBER)
    print(
        f"{count} releases in {time.monotonic() - begin:.0f} s, {len(before)} files, processes and "
        f"others watched: {len(lost)} changed meanwhile, "
        f"{len({*before} ^ {*after})} are not as before in the end"
    )
    for line in sorted(lost | ({*before} ^ {*after})):
        print(f"  {line}")
    return int(bool(lost) or before != after)


if __name__ == "__main__":
    sys.exit(main())
