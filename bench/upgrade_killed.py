"""A fleet of the version before, taken through the rounds by deploys that are killed in each.

Starts five lab machines: three Consul servers, two of them with the application as well, a host
with it, and one outside of the fleet. The version before builds and deploys; then this one does
under load, and is killed at each of the moments below. Then the same fleet, made anew, while first
a server and then the host is without power. Leaves the machines up; what the deploys said is in
.lab/upgrade_killed.log.

    python bench/upgrade_killed.py [--only killed|down]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import checkout  # noqa: E402
import figures  # noqa: E402
from fleet_commands import Fleet, output  # noqa: E402
from interrupting import killed_at, killed_at_the_end  # noqa: E402
from lab_commands import Lab  # noqa: E402
from load import CLOSE, Load, instances  # noqa: E402
from versions import before, rounds  # noqa: E402

SERVERS = ("drakar", "cheetah", "ormen")
HOST = "skeid"
SERVING = ("drakar", "cheetah", HOST)
WATCHES, OUTSIDE = "ormen", "knarr"  # where clients are
LOG = ROOT / ".lab/upgrade_killed.log"

BEGINS = r"Starting (serial )?operation: Consul, round"
DONE = r"\]\s+Success"
# Of a server with the application, which is not the leader.
SERVES = r"\[(drakar|cheetah)\]\s+Success"
SWITCHED = "while the first host is switched"
# After which lines of a deploy it is killed, within a second, and when it is given again: at once,
# or when an operator has come back.
MOMENTS = (
    ("while files come, round 1", 0, (f"{BEGINS} 1 of 3: configure", DONE)),
    ("a server restarted, round 1", 90, (f"{BEGINS} 1 of 3: run the servers", SERVES)),
    ("while tokens are made", 0, (f"{BEGINS} 1 of 3: make tokens",)),
    ("the first server restarted, round 2", 20, (f"{BEGINS} 2 of 3: run the servers", DONE)),
    ("the host restarted, round 2", 0, (f"{BEGINS} 2 of 3: run the client agents", DONE)),
    (SWITCHED, 0, ("Application: switch the canary", "tried on")),
    ("at the gate", 0, ("Consul: see that all that is registered",)),
    ("the first server restarted, round 3", 20, (f"{BEGINS} 3 of 3: run the servers", DONE)),
    ("the leader restarted, round 3", 0, (f"{BEGINS} 3 of 3: run the leader", DONE)),
)


class Upgrade:
    """A fleet of the version before, on new machines, and what becomes of it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.fleet = Fleet(folder / "fleet.py")
        self.fine = True
        lab.rebuild(*SERVERS, HOST)
        self.fleet.hosts([*SERVERS], [*SERVING])
        old = before(folder)
        old.run("invoke", "build-plugin", "--inventory", str(self.fleet.path))
        old.run("pyinfra", "-y", *release("old"), str(self.fleet.path), "deploy/")
        self.fleet.build()

    def expect(self, what: str, is_so: bool) -> None:
        self.fine &= is_so
        print(f"{'fine' if is_so else 'FAILED'}: {what}", flush=True)

    def deploy(self, title: str, name: str, code: int = 0, says: str = "") -> None:
        """Deploy to the end.

        :param code: the exit status that is expected
        :param says: what has to be in what it says
        """
        begin = time.monotonic()
        result = self.fleet.deploy(*release(name), check=False)
        said = note(title, output(result))
        took = f"exit status {result.returncode}, {time.monotonic() - begin:.0f} s"
        self.expect(f"{title}: {took}", result.returncode == code)
        if says:
            self.expect(f"it says: {says}", says in said)

    def kill(self, title: str, name: str, signs: Sequence[str]) -> None:
        """Deploy until it has printed these, and less than a second more."""
        process, delay = self.fleet.start_deploy(*release(name)), random.random()
        with killed_at_the_end(process):
            found, said = killed_at(process, *signs, delay=delay)
        note(title, said)
        self.expect(f"killed {delay:.2f} s after: {title}", found)

    def verify(self, code: int = 0) -> None:
        """What an operator sees who looks at it now.

        :param code: the exit status that is expected: 1 where hosts have different releases
        """
        result = self.fleet.verify("--wait", "10", check=False)
        note("verify", output(result))
        notes = [line for line in output(result).splitlines() if line.startswith("note: access")]
        told = "\n  ".join([f"verify: {result.returncode}", *notes])
        self.expect(told, result.returncode == code)

    def is_in(self, *expected: int) -> None:
        """In which rounds it is; in no others than these, where some are named."""
        its = rounds(self.lab, (*SERVERS, HOST))
        told = "rounds: " + ", ".join(f"{host} {number}" for host, number in its.items())
        self.expect(told, not expected or {*its.values()} == {*expected})

    @contextmanager
    def load(self) -> Iterator[tuple[Load, Load]]:
        """Clients of all that serve, on a member and outside."""
        fixed = instances(self.lab, *SERVING)
        with (
            Load(self.lab, fixed, on=WATCHES, pause=CLOSE) as near,
            Load(self.lab, fixed, on=OUTSIDE, pause=CLOSE) as far,
        ):
            yield near, far

    def unnoticed(self, loads: tuple[Load, Load], hosts: Iterable[str], passing: int) -> None:
        """What came to the hosts that had power in the stretch that ends now."""
        served = instances(self.lab, *hosts)
        begin, end = list(loads[0].marks)[-1], time.time()
        for load in loads:
            window = load.window(begin, end).at(served)
            seen = f"{window.count} requests from {load.on}, {len(window.failed)} failed"
            fine = bool(window.count) and not window.failed
            if load.on == WATCHES:  # the other one has no agent
                fine &= window.blind < 5 and window.least_passing >= passing
                seen += f", {window.least_passing} passing or more, blind for {window.blind:.1f} s"
            self.expect(seen, fine)


def release(name: str) -> tuple[str, ...]:
    return ("--data", f"release={name}", "--data", "min_healthy_time=1")


def mark(loads: Iterable[Load], title: str) -> None:
    for load in loads:
        load.mark(title)


def note(title: str, said: str) -> str:
    with LOG.open("a") as log:
        log.write(f"\n===== {title} =====\n{said}\n")
    return said


def killed(upgrade: Upgrade) -> None:
    """Each deploy but the last is killed, and given again."""
    with upgrade.load() as loads:
        for title, pause, signs in MOMENTS:
            mark(loads, title)
            upgrade.kill(title, "new", signs)
            time.sleep(pause)
            upgrade.is_in()
            upgrade.verify(code=int(title == SWITCHED))
            upgrade.unnoticed(loads, SERVING, 6)
        mark(loads, "through")
        upgrade.deploy("once more", "new")
        upgrade.is_in(3)
        time.sleep(12)  # a question that waits is answered in ten
        upgrade.unnoticed(loads, SERVING, 6)
    changes = upgrade.fleet.changes(*release("new"))
    upgrade.expect(f"a deploy after that changes {changes or 'nothing'}", not changes)
    upgrade.verify()


def down(upgrade: Upgrade) -> None:
    """It stops while a host is without power, and goes on when that is back, or retired."""
    lab, fleet = upgrade.lab, upgrade.fleet
    server = "cheetah"
    with upgrade.load() as loads:
        lab.kill(server)
        mark(loads, "a server is down")
        # A fleet of that version has no identity yet, which all servers are to be asked for.
        told = f"{server} can't be reached; nothing was changed"
        upgrade.deploy("while a server is down", "one", 1, told)
        upgrade.is_in(0)
        lab.up(server)
        mark(loads, "it is back")
        upgrade.kill("it is back", "one", MOMENTS[3][2])
        upgrade.is_in()
        for name, others, which in (
            (server, ("drakar", HOST), "two"),
            (HOST, ("drakar", server), "three"),
        ):
            lab.kill(name)
            mark(loads, f"{name} is down")
            upgrade.deploy(f"while {name} is down", which, 1, f"{name} can't be reached")
            upgrade.unnoticed(loads, others, 4)
            upgrade.is_in()
            served = fleet.releases(check=False)
            upgrade.expect(f"releases: {served}", served == dict.fromkeys(others, which))
            if name == server:
                lab.up(server)
                mark(loads, f"{name} is back")
        fleet.hosts([*SERVERS], ["drakar", server], [HOST])
        mark(loads, "it is retired")
        upgrade.deploy("it is retired", "four", 0, f"{HOST} has to leave first; deploy again")
        upgrade.deploy("once more", "four")
        upgrade.unnoticed(loads, ("drakar", server), 4)
        upgrade.is_in(0, 3)
    upgrade.verify()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["killed", "down"], help="one half of it")
    options = figures.parse(parser, "the same")
    checkout.enter()
    LOG.unlink(missing_ok=True)
    lab = Lab(ROOT)
    lab.up(*SERVERS, HOST, OUTSIDE)
    fine = True
    for part in (killed, down):
        if options.only in (None, part.__name__):
            with tempfile.TemporaryDirectory(prefix="upgrade-") as folder:
                part(upgrade := Upgrade(lab, Path(folder)))
                fine &= upgrade.fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
