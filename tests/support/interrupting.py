"""Deploys that are interrupted: roll-outs on a fleet under load, and first ones on bare hosts.

The suite has each kind once, bench/interruptions.py many moments of each.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from consul_processes import until
from fleet_commands import Fleet, finish, output
from lab_commands import Lab
from load import Load, instances
from releasing import Releases

KINDS = ("Ctrl-C", "kill -9", "no network")
REBOOTS = ("power cut", "systemctl reboot")
# What a host says when its part of the switch has come so far.
STAGES = ("tried on a socket of its own", "watched for")

# Everything that a deploy puts on a host, in a form that two hosts can be compared by.
FOOTPRINT = (
    "cd / && sudo find etc/uwsgi-consul-fleet/consul.d etc/systemd/system opt srv usr/local/bin "
    r"-not -name '*.pyc' -not -name __pycache__ -printf '%M %u %g %p %l\n' | sort; "
    "dpkg-query --show --showformat '${db:Status-Status} ${Package}\n'; "
    "systemctl list-units --plain --no-legend 'consul*' | awk '{print $1, $3, $4}'"
)


def interrupted(releases: Releases, load: Load, how: str, rng: random.Random) -> None:
    """A roll-out that ends at a random moment loses no request, and the next one finishes it.

    :param rng: chooses the moment and, for "no network", the host
    """
    host, moment = rng.choice(releases.hosts), rng.uniform(0, releases.seconds)
    print(f"\n{how} after {moment:.2f} of {releases.seconds:.2f} s ({host})")
    begin, end = time.time(), time.monotonic() + moment
    process, name, options = releases.start()
    with killed_at_the_end(process):
        said = _begun(process) if how == "Ctrl-C" else ""
        try:
            process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _interrupt(releases, process, how, host)
        said += output(finish(process, check=False))
    # What was under way on a host ends by itself, the one way or the other.
    until(releases.settled, f"one release on each host; it said: {said}", 60)
    releases.fleet.deploy(*options)
    releases.serves(name)
    window = load.window(begin)
    print(window)
    window.expect(passing=2 * len(releases.hosts), releases={releases.before, name})
    releases.expect_everywhere()


def rebooted(releases: Releases, load: Load, how: str, stage: str, rng: random.Random) -> None:
    """A host that goes down in the middle of its switch comes back on one release.

    The others go on serving, and the same deploy again finishes the roll-out.
    """
    *others, host = releases.hosts
    moment = rng.uniform(0, 3)
    print(f"\n{how} of {host} {moment:.2f} s after it was {stage}")
    begin = time.time()
    process, name, options = releases.start("--data", "min_healthy_time=3")
    with killed_at_the_end(process):
        assert process.stderr
        reached = any(f"[{host}]" in line and stage in line for line in process.stderr)
        assert reached, f"the deploy never said {stage!r} of {host}"
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if how == "power cut":
            releases.lab.kill(host)
            releases.lab.up(host)
        else:
            releases.lab.reboot(host)
        finish(process, check=False)
    until(releases.settled, "one release on each host", 60)
    releases.fleet.verify("--wait", "60", "--probe", check=False)
    releases.fleet.deploy(*options)
    releases.serves(name)
    window = load.window(begin)
    print(window)
    # The other hosts have had power all the time.
    powered = window.at(instances(releases.lab, *others))
    powered.expect(passing=2 * len(others), releases={releases.before, name})
    if how == "systemctl reboot":
        # Its instances leave the catalog before they stop.
        window.by("discovered").expect(passing=2 * len(others))
    releases.expect_everywhere()


def kill_deploys(fleet: Fleet, host: str, moments: Sequence[float]) -> None:
    """A deploy to one host again and again, each killed after so many seconds."""
    print(f"\nkilled after {', '.join(f'{moment:.1f}' for moment in moments)} s")
    for moment in moments:
        process = fleet.start_deploy("--limit", host)
        with killed_at_the_end(process), suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=moment)


def footprint(lab: Lab, name: str) -> str:
    """What of a deploy is on a host; the releases of two hosts differ only in their hash, as an
    ini file names its node."""
    return re.sub(r"-[0-9a-f]{8}(?=[./\s])", "-HASH", lab.ssh(name, FOOTPRINT).stdout)


@contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """No deploy goes on when a test has failed."""
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def killed_at(process: subprocess.Popen[str], *signs: str, delay: float = 0) -> tuple[bool, str]:
    """Kill a run when it has printed a line for each of these, one after the other.

    :param delay: seconds after the last of them
    :returns: whether it has, and what it said
    """
    assert process.stderr
    waits, said = list(signs), ""
    for line in process.stderr:
        said += line
        if re.search(waits[0], line):
            waits.pop(0)
        if not waits:
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            process.kill()
            break
    said += process.stderr.read()
    process.wait()
    return not waits, said


def _begun(process: subprocess.Popen[str]) -> str:
    """What a deploy has said when pyinfra runs. Until then Python loads it, which Ctrl-C ends
    with a traceback, and nothing of ours could help that."""
    assert process.stderr
    said = ""
    while "Loading config" not in said:
        # Not from the stream: what that reads ahead would be missing at the end.
        more = os.read(process.stderr.fileno(), 4096).decode(errors="replace")
        assert more, said
        said += more
    return said


def _interrupt(releases: Releases, process: subprocess.Popen[str], how: str, host: str) -> None:
    """End a deploy in the way that is named."""
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    elif how == "kill -9":
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        with releases.lab.cut(host):
            # It finds out by itself, and says so.
            process.wait(180)
