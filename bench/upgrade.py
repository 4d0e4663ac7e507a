"""A fleet that an earlier version made, upgraded by this one under load.

Starts two lab machines and makes them anew. The earlier version, out of git, builds and deploys;
then this one does, while sixteen clients ask. Leaves the machines up.

    python bench/upgrade.py [--before COMMIT]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
from fleet_commands import Fleet  # noqa: E402
from lab_commands import Lab  # noqa: E402
from load import CLOSE, Load, instances  # noqa: E402
from releasing import starts  # noqa: E402
from versions import Version  # noqa: E402

HOSTS = ("drakar", "cheetah")
# The last one with a single application, of Python's.
BEFORE = "309c9f4"
ENTRY_POINT = "uwsgi_consul_fleet.pyinfra_cli:accept_folders"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help=f"the earlier version ({BEFORE})")
    options = figures.parse(parser, "the same")
    checkout.enter()
    lab = Lab(ROOT)
    lab.up(*HOSTS)
    lab.rebuild(*HOSTS)
    with tempfile.TemporaryDirectory(prefix="upgrade-") as folder:
        fleet = Fleet(ROOT / ".lab/bench_upgrade.py")
        fleet.hosts([HOSTS[0]], list(HOSTS))
        version = Version(options.before, Path(folder), ENTRY_POINT)
        version.run("invoke", "build-plugin", "--inventory", str(fleet.path))
        version.run("pyinfra", "-y", "--data", "release=before", str(fleet.path), "deploy/")
    fleet.build()
    before = starts(lab, HOSTS)
    with Load(lab, instances(lab, *HOSTS), pause=CLOSE) as load:
        load.mark(f"from {options.before}")
        fleet.deploy("--data", "release=now")
        fleet.verify("--wait", "10", "--probe")
        changes = fleet.changes("--data", "release=now")
        load.mark("end")
        window = load.windows()[0]
    switches = {host: count - before[host] for host, count in starts(lab, HOSTS).items()}
    print(window)
    print(f"instances started, of two on each host: {switches}; a second deploy changes {changes}")
    once = all(count <= 2 for count in switches.values())
    return 0 if once and not window.failed and not changes else 1


if __name__ == "__main__":
    sys.exit(main())
