"""Releases under load: good ones, bad ones, interrupted ones.

Sixteen clients use every instance all the time, see ``tests/support/load.py``; each test prints
what they noticed. The tests can run in any order: each first brings the fleet to a release that
is known to be good, which costs nothing where it is there already.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from applications import (
    BAD_RELEASES,
    SLOW_REQUESTS,
    SLOW_START,
    SmallDisk,
    application,
    impossible_requirements,
    released,
)
from consul_processes import until
from fleet_commands import Fleet, finish, output, run
from load import SERVICE, Load, instances

HOSTS = ("drakar", "cheetah")
# What is not yet healthy after so long is bad: the default of 30 s would only be waited for.
SOON = ("--data", "health_timeout=15")
PROCESSES = ("--data", "app_processes=6")  # more than clients may meet at one instance
# Where it is not what is tested, a release is watched for less than the default of 3 s.
QUICK = ("--data", "min_healthy_time=1")

Revision = Callable[..., Path]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, lab: Any) -> Fleet:
    lab.up(*HOSTS)
    lab.rebuild(*HOSTS)
    found = Fleet(tmp_path_factory.mktemp("fleet") / "fleet.py")
    found.hosts(["drakar"], list(HOSTS))
    found.build()
    return found


@pytest.fixture(scope="module")
def revision(tmp_path_factory: pytest.TempPathFactory) -> Revision:
    """The application once more, with another content than ever before."""
    numbers = iter(range(10**6))

    def make(code: str = "") -> Path:
        folder = tmp_path_factory.mktemp("revision")
        return application(folder, f"{code}\n# revision {next(numbers)}\n")

    return make


@pytest.fixture(scope="module")
def good_source(revision: Revision) -> Path:
    return revision()


@pytest.fixture
def good(fleet: Fleet, good_source: Path) -> list[str]:
    """The options of a release that the fleet is on."""
    options = released(good_source, "good")
    fleet.deploy(*options)
    fleet.verify("--wait", "10")
    return options


@pytest.fixture
def load(lab: Any, good: list[str]) -> Iterator[Load]:
    with Load(lab, instances(lab, *HOSTS)) as found:
        yield found
        print(f"\n{found.summary()}")


def running(lab: Any, host: str) -> set[str]:
    """The units of the application's releases that run on a host, or are on their way."""
    states = "--state=active,activating,deactivating,reloading"
    listing = lab.ssh(
        host, f"systemctl list-units --plain --no-legend {states} '{SERVICE}-*@*.service'"
    ).stdout
    return {line.split()[0] for line in listing.splitlines()}


def generations(lab: Any, host: str) -> set[str]:
    """The releases that run on a host, a trial's as well; each with the hash behind it."""
    return {unit.partition("@")[2].removesuffix(".service") for unit in running(lab, host)}


def expect_on(release: str, fleet: Fleet, lab: Any, *hosts: str) -> None:
    """Every host says so, Consul says so, and nothing else runs."""
    chosen = hosts or HOSTS
    assert fleet.releases() == dict.fromkeys(chosen, release)
    report = json.loads(fleet.verify("--json", "--wait", "10").stdout)
    assert {row["release"] for row in report["rows"]} == {release}
    for host in chosen:
        assert [name.rpartition("-")[0] for name in generations(lab, host)] == [release]
        assert len(running(lab, host)) == 2


# --- Good releases -------------------------------------------------------------------


def release_often(
    fleet: Fleet, load: Load, sources: list[Path], passing: int, *options: str
) -> None:
    """Release after release, without a pause. How slow the slowest request is, compared with
    times without a release, is measured by bench/releases.py."""
    for number, source in enumerate(sources):
        load.mark(f"r{number}")
        fleet.deploy(*released(source, f"r{number}"), *QUICK, *options)
    load.mark("end")
    for window in load.windows()[:-1]:
        window.expect(passing)


@pytest.mark.timeout(2400)
def test_ten_releases_in_a_row_lose_no_request(
    fleet: Fleet, lab: Any, revision: Revision, load: Load
) -> None:
    release_often(fleet, load, [revision() for _ in range(10)], 4)
    expect_on("r9", fleet, lab)


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("code", "options"),
    [(SLOW_START, ()), (SLOW_REQUESTS, PROCESSES)],
    ids=["starts for 5 s", "answers for 5 s"],
)
def test_a_slow_application_loses_no_request(
    fleet: Fleet, lab: Any, revision: Revision, code: str, options: tuple[str, ...]
) -> None:
    fleet.deploy(*released(revision(code), "slow"), *options)
    with Load(lab, instances(lab, *HOSTS)) as load:
        release_often(fleet, load, [revision(code) for _ in range(2)], 4, *options)
        print(f"\n{load.summary()}")
    expect_on("r1", fleet, lab)


def test_going_back_loses_no_request(
    fleet: Fleet, lab: Any, revision: Revision, load: Load
) -> None:
    fleet.deploy(*released(revision(), "next"))
    begin = load.mark("roll-back")
    fleet.rollback()
    load.mark("end")
    print(f"\ninvoke rollback of two hosts: {time.time() - begin:.1f} s")
    load.window("roll-back", "end").expect(passing=4, releases={"good", "next"})
    expect_on("good", fleet, lab)


# --- Bad releases --------------------------------------------------------------------


def expect_refused(fleet: Fleet, lab: Any, load: Load, bad: Path, *options: str, says: str) -> str:
    """That a release changes nothing, for anybody, and that the operator is told why."""
    before = {host: running(lab, host) for host in HOSTS}
    load.mark("bad release")
    result = fleet.deploy(*released(bad, "bad"), *SOON, *options, check=False)
    load.mark("after")
    assert result.returncode != 0
    assert says in output(result), output(result)
    load.window("bad release").expect(passing=4, releases={"good"})
    expect_on("good", fleet, lab)
    assert {host: running(lab, host) for host in HOSTS} == before
    return output(result)


@pytest.mark.parametrize("kind", BAD_RELEASES)
def test_a_bad_release_hurts_nobody(
    fleet: Fleet, lab: Any, revision: Revision, load: Load, kind: str
) -> None:
    bad = BAD_RELEASES[kind]
    expect_refused(fleet, lab, load, revision(bad.code), says=bad.says)


def test_what_fails_on_the_second_host_is_taken_back_from_the_first(
    fleet: Fleet, lab: Any, revision: Revision, load: Load
) -> None:
    only = "\nif os.uname().nodename == 'cheetah':\n    raise RuntimeError('no wind')\n"
    load.mark("second host")
    result = fleet.deploy(*released(revision(only), "bad"), *SOON, check=False)
    load.mark("after")
    assert result.returncode != 0
    assert "RuntimeError: no wind" in output(result)
    assert re.search(r"\[drakar\] +back to good-", output(result)), output(result)
    load.window("second host", "after").expect(passing=4, releases={"good", "bad"})
    expect_on("good", fleet, lab)


def test_requirements_that_cannot_be_installed_hurt_nobody(
    fleet: Fleet, lab: Any, revision: Revision, load: Load, tmp_path: Path
) -> None:
    path = impossible_requirements(tmp_path)
    says = "No matching distribution found for uwsgi-consul-fleet"
    option = f"app_requirements={path}"
    expect_refused(fleet, lab, load, revision(), "--data", option, says=says)


@pytest.mark.parametrize("host", HOSTS)
def test_a_full_disk_hurts_nobody(
    fleet: Fleet, lab: Any, revision: Revision, load: Load, host: str
) -> None:
    disk = SmallDisk(lab, host)
    try:
        with disk.full():
            said = expect_refused(fleet, lab, load, revision(), says="No space left on device")
        assert host in said
    finally:
        disk.remove()


# --- Interruptions -------------------------------------------------------------------


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_deploy(fleet: Fleet) -> Iterator[Start]:
    """Deploys to be interrupted; none goes on when a test has failed."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        started.append(fleet.start_deploy(*options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def begun(process: subprocess.Popen[str]) -> str:
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


def interrupt(lab: Any, process: subprocess.Popen[str], how: str, host: str) -> None:
    """End a deploy in the way that is named."""
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    elif how == "kill -9":
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        with lab.cut(host):
            # It finds out by itself, and says so.
            process.wait(180)


def settled(lab: Any) -> Callable[[], bool]:
    """No host runs two releases, or tries one."""
    return lambda: all(
        len(generations(lab, host)) == 1 and len(running(lab, host)) == 2 for host in HOSTS
    )


@pytest.fixture(scope="module")
def seconds_of_a_deploy(fleet: Fleet, good_source: Path, revision: Revision) -> float:
    fleet.deploy(*released(good_source, "good"))
    begin = time.monotonic()
    fleet.deploy(*released(revision(), "timed"), *QUICK)
    return time.monotonic() - begin


@pytest.mark.parametrize("number", range(20))
def test_an_interrupted_roll_out_loses_no_request(
    fleet: Fleet,
    lab: Any,
    revision: Revision,
    seconds_of_a_deploy: float,
    start_deploy: Start,
    load: Load,
    number: int,
) -> None:
    how = ("Ctrl-C", "kill -9", "no network")[number % 3]
    host = random.choice(HOSTS)
    moment = random.uniform(0, seconds_of_a_deploy)
    print(f"\n{how} after {moment:.2f} of {seconds_of_a_deploy:.2f} s ({host})")
    options = [*released(revision(), "next"), *QUICK]
    load.mark("interrupted")
    end = time.monotonic() + moment
    process = start_deploy(*options)
    said = begun(process) if how == "Ctrl-C" else ""
    try:
        process.wait(max(0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        interrupt(lab, process, how, host)
    result = finish(process, check=False)
    # What was under way on a host ends by itself, the one way or the other.
    until(settled(lab), f"one release on each host; it said: {said}{output(result)}", 60)
    load.mark("again")
    fleet.deploy(*options)
    load.mark("end")
    load.window("interrupted", "end").expect(passing=4, releases={"good", "next"})
    expect_on("next", fleet, lab)


@pytest.mark.parametrize("how", ["power cut", "systemctl reboot"])
@pytest.mark.parametrize("line", ["tried on a socket of its own", "watched for"])
def test_a_reboot_in_the_middle_of_a_switch(
    fleet: Fleet,
    lab: Any,
    revision: Revision,
    start_deploy: Start,
    load: Load,
    how: str,
    line: str,
) -> None:
    options = released(revision(), "next")
    load.mark("rebooted")
    process = start_deploy(*options)
    assert process.stderr is not None
    for said in process.stderr:
        if "[cheetah]" in said and line in said:
            break
    else:
        pytest.fail(f"the deploy never said {line!r} of cheetah")
    time.sleep(random.uniform(0, 5))
    if how == "power cut":
        lab.kill("cheetah")
        lab.up("cheetah")
    else:
        lab.reboot("cheetah")
    finish(process, check=False)
    until(settled(lab), "one release on each host", 60)
    fleet.verify("--wait", "60", "--probe", check=False)
    load.mark("again")
    fleet.deploy(*options)
    load.mark("end")
    window = load.window("rebooted", "end")
    # The other host has had power all the time.
    window.at(instances(lab, "drakar")).expect(passing=2, releases={"good", "next"})
    if how == "systemctl reboot":
        # Its instances leave the catalog before they stop.
        window.by("discovered").expect(passing=2)
    expect_on("next", fleet, lab)


def test_where_consul_does_not_report_it_the_host_goes_back_with_its_ports(
    fleet: Fleet, lab: Any, good: list[str]
) -> None:
    """On the host itself, as after the connection to it was lost."""
    program = "sudo /opt/uwsgi-consul-fleet/release"
    other = {"instances": {"server1": 2001, "server3": 2003}}
    fleet.deploy(*good, *SOON)
    fleet.hosts(["drakar"], ["drakar", ("cheetah", other)])
    fleet.deploy(*good, *SOON)
    listed = json.loads(lab.ssh("cheetah", f"{program} list {SERVICE}").stdout)
    look = f"ss -Hltn | awk '{{print $4}}' | sort; systemctl list-units '{SERVICE}*' --plain | sort"
    before = lab.ssh("cheetah", look).stdout
    lab.ssh("cheetah", "sudo systemctl stop consul")
    result = lab.ssh(
        "cheetah", f"{program} switch {SERVICE} {listed[1]['generation']}", check=False
    )
    lab.ssh("cheetah", "sudo systemctl start consul")
    assert result.returncode == 1
    assert "Consul does not report good after" in result.stderr
    assert result.stderr.endswith(f"{listed[0]['release']} still serves\n")
    ports = [line for line in lab.ssh("cheetah", look).stdout.splitlines() if ":8" not in line]
    assert ports == [line for line in before.splitlines() if ":8" not in line]
    fleet.verify("--wait", "20", "--probe")
    assert fleet.changes(*good, *SOON) == {}
    fleet.hosts(["drakar"], list(HOSTS))
    fleet.deploy(*good)


# --- One host ------------------------------------------------------------------------


@pytest.mark.timeout(2400)
def test_ten_releases_in_a_row_on_a_fleet_of_one(
    fleet: Fleet, lab: Any, revision: Revision, tmp_path: Path
) -> None:
    # The other host goes on by itself, in a fleet of its own.
    lone = Fleet(tmp_path / "lone.py")
    lone.hosts(["knarr"], ["knarr"])
    lab.up("knarr")
    try:
        lone.build()
        lone.deploy(*released(revision(), "first"))
        with Load(lab, instances(lab, "knarr"), on="knarr") as load:
            release_often(lone, load, [revision() for _ in range(10)], 2)
            print(f"\n{load.summary()}")
        expect_on("r9", lone, lab, "knarr")
    finally:
        run("invoke", "lab.down", "knarr")
