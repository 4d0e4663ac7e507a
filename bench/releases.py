"""What releases cost the clients of a fleet, and how long they and a roll-back take.

Starts two lab machines, builds the plugin and deploys. Then, on two hosts and on one, releases
the application again and again under load: sixteen clients, half of them discovering through
Consul before each request, half on fixed addresses. Leaves the machines up.

    python bench/releases.py [--releases 10] [--slow-releases 3]

Before each release comes a stretch without one, as long as the release before took: so both see
the same machine, with what else it does, and "slowest" is the slowest of about as many requests.
The stretch of a release is the whole command, from Python's start to its end. The clients'
program runs ahead of others and notes when it was woken late itself: what a request waited for
then is the client's own lag and no instance's, and is taken off in a second figure. What an
instance waits for a processor stays in: on two cores that everybody shares, it makes "slowest"
a matter of luck on some days. Therefore the percentiles as well.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
from applications import application, released, slow_requests, slow_start  # noqa: E402
from fleet_commands import Fleet, output, run  # noqa: E402
from lab_commands import BIN, Lab  # noqa: E402
from load import Load, Window, instances, milliseconds  # noqa: E402
from shared_fleet import SharedFleet  # noqa: E402

REQUIRED_RATIO = 3
REQUIRED_ROLLBACK = 3  # seconds
SLOW_START = slow_start(5)
SLOW_REQUESTS = slow_requests(5)
PAUSE = 0.05  # seconds from one request of a client to its next
SHORTEST = 12  # seconds of a stretch in which requests of five seconds begin
PROCESSES = ["--data", "app_processes=6"]  # more than clients may meet at one of four instances


@dataclass(frozen=True)
class Stretches:
    """All stretches of one kind, taken together."""

    windows: list[Window]

    @property
    def times(self) -> list[float]:
        return sorted(moment for window in self.windows for moment in window.times)

    @property
    def slowest_served(self) -> float:
        return max(window.slowest_served for window in self.windows)

    def show(self, name: str) -> None:
        times = self.times
        shares = {p: times[min(len(times) - 1, int(len(times) * p / 100))] for p in (99, 99.9)}
        failed = sum(len(window.failed) for window in self.windows)
        print(
            f"  {name:16} {len(times) + failed:6} requests, {failed} failed; median "
            f"{milliseconds(statistics.median(times))}, 99 % {milliseconds(shares[99])}, 99.9 % "
            f"{milliseconds(shares[99.9])}, slowest {milliseconds(times[-1])} "
            f"({milliseconds(self.slowest_served)} without own lag); at least "
            f"{min(window.least_passing for window in self.windows)} passing"
        )


def revisions(folder: Path, code: str) -> Iterator[Path]:
    """The application again and again, each time as it never was: a release that has served
    before is not tried again."""
    while True:
        now = str(time.time_ns())
        (folder / now).mkdir()
        yield application(folder / now, f"{code}\n# {now}\n")


def timed(fleet: Fleet, source: Path, release: str, *options: str) -> float:
    begin = time.monotonic()
    fleet.deploy(*released(source, release), *options)
    return time.monotonic() - begin


def measure(lab: Lab, fleet: Fleet, names: list[str], code: str, count: int, title: str) -> bool:
    """Release `count` times under load; whether no request failed and none was too slow.

    Of one release alone the slowest request says nothing: with less load it only shows whether one
    was lost.
    """
    options, shortest = (PROCESSES, SHORTEST) if code == SLOW_REQUESTS else ([], 0)
    took = []
    with tempfile.TemporaryDirectory(prefix="releases-") as folder:
        sources = revisions(Path(folder), code)
        pause = timed(fleet, next(sources), "r0", *options)
        if count > 1:  # of the second of its kind: the first one also installs what others have
            pause = timed(fleet, next(sources), "r1", *options)
        with Load(lab, instances(lab, *names), pause=PAUSE if count > 1 else 5 * PAUSE) as load:
            for number in range(2, count + 2):
                load.mark(f"before r{number}")
                time.sleep(max(pause, shortest))
                load.mark(f"r{number}")
                pause = timed(fleet, next(sources), f"r{number}", *options)
                took.append(pause)
            load.mark("end")
            windows = load.windows()[:-1]
    without, during = Stretches(windows[::2]), Stretches(windows[1::2])
    ratio = during.times[-1] / without.times[-1]
    ratio_served = during.slowest_served / without.slowest_served
    print(f"{title}, {len(names)} host{'s' * (len(names) > 1)}: {count} releases")
    without.show("without a switch")
    during.show("during releases")
    print(
        f"  slowest to slowest: {ratio:.1f}, without own lag {ratio_served:.1f} (required: at most "
        f"{REQUIRED_RATIO}); a deploy takes "
        f"{statistics.median(took):.1f} s (median; slowest {max(took):.1f} s)",
        flush=True,
    )
    failed = [window for window in windows if window.failed]
    for window in failed:
        print(f"  {window}")
    return not failed and (count == 1 or ratio_served <= REQUIRED_RATIO)


def measure_rollback(fleet: Fleet, times: int) -> bool:
    """Back and forth between the last two releases, on a fleet of one."""
    took = []
    for _ in range(times):
        begin = time.monotonic()
        result = run("invoke", "rollback", "--inventory", str(fleet.path), check=False)
        took.append(time.monotonic() - begin)
        if result.returncode:
            print(f"invoke rollback: exit {result.returncode}\n{output(result)}")
            return False
    print(
        f"invoke rollback on a host: {statistics.median(took):.2f} s (median of {times}; slowest "
        f"{max(took):.2f} s, required: at most {REQUIRED_ROLLBACK} s and the application's start)"
    )
    return max(took) <= REQUIRED_ROLLBACK


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=10, help="of the shipped application (10)")
    parser.add_argument("--slow-releases", type=int, default=3, help="of each slow one (3)")
    options = figures.parse(parser, "one release of the shipped application on two hosts")
    if options.once:
        options.releases, options.slow_releases = 1, 0
    checkout.enter()
    lab = Lab(ROOT)
    subprocess.run([str(BIN / "invoke"), "lab.up", "drakar", "cheetah"], cwd=ROOT, check=True)
    # With the settings as they are shipped; once, with those that make nobody wait.
    path = ROOT / ".lab/bench_releases.py"
    fleet = SharedFleet(ROOT / ".lab/bench/fleet.py", lab) if options.once else Fleet(path)
    fine = True
    for names in [["drakar", "cheetah"], ["drakar"]][: 1 if options.once else None]:
        gone = [] if "cheetah" in names else ["cheetah"]
        fleet.hosts(["drakar"], names, gone)
        fleet.build()
        rounds = [("slow start", SLOW_START), ("slow requests", SLOW_REQUESTS)]
        for title, code in rounds if options.slow_releases else []:
            fine &= measure(lab, fleet, names, code, options.slow_releases, title)
        fine &= measure(lab, fleet, names, "", options.releases, "the shipped application")
    if not options.once:
        fine &= measure_rollback(fleet, 5)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
