"""Releases under load: good ones and bad ones, each kind once.

Sixteen clients use every instance all the time, see ``tests/support/load.py``; each test prints
what they noticed. The tests can run in any order, also on a fleet that the one before it left
in pieces. What takes many releases to be seen is in bench/releases.py; roll-outs that are
interrupted are in test_interruptions.py.
"""

import json
import random
import re
import time
from pathlib import Path

import pytest
from applications import (
    BAD_RELEASES,
    SmallDisk,
    impossible_requirements,
    released,
    slow_requests,
    slow_start,
)
from consul_processes import until
from fleet_commands import output, run
from lab_commands import Lab
from load import SERVICE, Load, instances
from releasing import Releases

from uwsgi_consul_fleet.inventory import reading
from uwsgi_consul_fleet.lock.lock import Lock
from uwsgi_consul_fleet.ssh import options

pytestmark = pytest.mark.takes(460)

# What is not yet healthy after so long is bad: the default of 30 s would only be waited for.
SOON = ("--data", "health_timeout=10")
PROCESSES = ("--data", "app_processes=6")  # more than clients may meet at one instance


def expect_nothing_lost(load: Load, begin: float, *releases: str) -> None:
    """Since then every request was answered, by these releases."""
    window = load.window(begin)
    print(f"\n{window}")
    window.expect(passing=4, releases=releases)


# --- Good releases -------------------------------------------------------------------


def test_releases_in_a_row_lose_no_request(releases: Releases, load: Load) -> None:
    begin, first = time.time(), releases.serving
    names = [releases.deploy() for _ in range(2)]
    expect_nothing_lost(load, begin, first, *names)
    releases.expect_everywhere()


def test_an_application_that_starts_slowly_loses_no_request(releases: Releases, load: Load) -> None:
    begin = time.time()
    releases.deploy(slow_start(2))
    expect_nothing_lost(load, begin, releases.before, releases.serving)


def test_going_back_loses_no_request_however_long_they_take(releases: Releases, load: Load) -> None:
    """Of two seconds each: there are always some in flight when a release stops."""
    begin = time.time()
    releases.deploy(slow_requests(2), *PROCESSES)
    went_back = time.time()
    releases.fleet.rollback()
    print(f"\ninvoke rollback of two hosts: {time.time() - went_back:.1f} s")
    releases.serves(releases.before)
    expect_nothing_lost(load, begin, releases.before, releases.serving)
    slow = [one.seconds for one in load.window(begin).requests if one.release == releases.before]
    assert max(slow) > 2
    releases.expect_everywhere()


# --- Bad releases --------------------------------------------------------------------


# What is lost after two seconds must still be watched then.
WATCHED = ("--data", "min_healthy_time=3")


def expect_refused(releases: Releases, load: Load, code: str, *options: str, says: str) -> str:
    """That a release changes nothing, for anybody, and that the operator is told why."""
    begin, before = time.time(), releases.running()
    said = releases.refused(code, *SOON, *WATCHED, *options)
    assert says in said, said
    expect_nothing_lost(load, begin, releases.serving)
    assert releases.running() == before
    return said


@pytest.mark.parametrize("kind", BAD_RELEASES)
def test_a_bad_release_hurts_nobody(releases: Releases, load: Load, kind: str) -> None:
    bad = BAD_RELEASES[kind]
    said = expect_refused(releases, load, bad.code, says=bad.says)
    assert f"{releases.serving} still serves" in said


def test_what_fails_on_the_second_host_is_taken_back_from_the_first(
    releases: Releases, load: Load
) -> None:
    only = "\nif os.uname().nodename == 'cheetah':\n    raise RuntimeError('no wind')\n"
    begin, before = time.time(), releases.running()
    said = releases.refused(only)
    assert "RuntimeError: no wind" in said
    assert re.search(rf"\[drakar\] +back to {releases.serving}-", said), said
    window = load.window(begin)
    print(f"\n{window}")
    window.expect(passing=4)
    tried = set(window.at(instances(load.lab, "drakar")).releases)
    assert len(tried) == 2 and releases.serving in tried, tried
    assert set(window.at(instances(load.lab, "cheetah")).releases) == {releases.serving}
    assert releases.running() == before
    releases.expect_everywhere()


def test_requirements_that_cannot_be_installed_hurt_nobody(
    releases: Releases, load: Load, tmp_path: Path
) -> None:
    option = f"app_requirements={impossible_requirements(tmp_path)}"
    says = "No matching distribution found for uwsgi-consul-fleet"
    expect_refused(releases, load, "", "--data", option, says=says)
    for host in releases.hosts:
        half_done = f"sudo find /srv/{SERVICE} -maxdepth 3 -name '.part*'"
        assert load.lab.ssh(host, half_done).stdout == ""


def test_a_full_disk_hurts_nobody(
    releases: Releases, load: Load, lab: Lab, rng: random.Random
) -> None:
    host = rng.choice(releases.hosts)
    disk = SmallDisk(lab, host)
    try:
        with disk.full():
            said = expect_refused(releases, load, "", says="No space left on device")
        assert host in said
    finally:
        disk.remove()
    releases.expect_everywhere()


def test_one_host_may_fail_and_the_others_go_on(
    releases: Releases, load: Load, lab: Lab, rng: random.Random
) -> None:
    sick = rng.choice(releases.hosts)
    (well,) = set(releases.hosts) - {sick}
    source, name = releases.revision()
    may_fail = (*released(source, name), "--data", "max_failed_hosts=1")
    begin, before = time.time(), releases.serving
    disk = SmallDisk(lab, sick)
    try:
        with disk.full():
            result = releases.fleet.deploy(*may_fail, check=False)
        assert result.returncode == 1
        said = output(result)
        assert f"{sick} stayed as it was; the others are on {name}" in said
        assert releases.fleet.releases() == {sick: before, well: name}
        assert "wrong release" in releases.fleet.verify(check=False).stdout
        releases.fleet.deploy(*may_fail)
    finally:
        disk.remove()
    releases.serves(name)
    expect_nothing_lost(load, begin, before, name)
    releases.expect_everywhere()


def test_going_back_while_consul_does_not_answer(releases: Releases, load: Load, lab: Lab) -> None:
    fleet, good = releases.fleet, releases.serving
    begin = time.time()
    source, bad = releases.revision()
    fleet.deploy(*released(source, bad))
    servers = reading.read(fleet.path, options.address).consul_servers
    with Lock(servers) as held:
        held.take("test", {})
        refused = fleet.rollback("--without-consul", check=False)
        assert refused.returncode == 75, output(refused)
    lab.ssh("drakar", "sudo systemctl stop consul")
    try:
        refused = fleet.rollback(check=False)
        assert refused.returncode == 2, output(refused)
        assert "Nothing was changed. In an emergency: invoke rollback --without-consul" in output(
            refused
        )
        assert fleet.releases() == dict.fromkeys(releases.hosts, bad)
        said = fleet.rollback("--without-consul").stdout
        assert "WITHOUT CONSUL: no lock is held" in said
        assert fleet.releases() == dict.fromkeys(releases.hosts, good)
    finally:
        lab.ssh("drakar", "sudo systemctl start consul")
    releases.serves(good)
    until(lambda: fleet.verify("--wait", "5", check=False).returncode < 2, "Consul is back", 30)
    words = ("--data", f"app_source={source}")
    stays = f"stays on {good}: app_source is "
    assert stays in output(fleet.deploy("--dry", *words))  # of which Consul knows nothing yet
    with Lock(servers) as held:
        held.take("test", {}, wait=10)
    fleet.verify()
    assert stays in output(fleet.deploy("--dry", *words))
    audit = run("invoke", "audit", "--json", "--last", "2", "--inventory", str(fleet.path))
    told = [(entry["what"], entry["outcome"]) for entry in json.loads(audit.stdout)]
    assert told == [("rollback", "ok"), ("test", "ok")]
    # A server that has just started may tell of hosts of long ago, until it has read its log.
    window = load.window(begin).at(load.fixed)
    print(f"\n{window}")
    assert not window.failed


def test_where_consul_does_not_report_it_the_host_goes_back_with_its_ports(
    releases: Releases, lab: Lab
) -> None:
    """On the host itself, as after the connection to it was lost."""
    fleet, program = releases.fleet, "sudo /opt/uwsgi-consul-fleet/release"
    source, name = releases.revision()
    # Also what is good has to be there within this time, on a machine that has much to do.
    words = (*released(source, name), "--data", "health_timeout=10")
    fleet.deploy(*words)
    other = {"instances": {"server1": 2001, "server3": 2003}}
    fleet.hosts(["drakar"], ["drakar", ("cheetah", other)])
    fleet.deploy(*words)
    listed = json.loads(lab.ssh("cheetah", f"{program} list {SERVICE}").stdout)
    # A socket's own sub-state is "listening" until the first connection, and "running" from then.
    units = f"systemctl list-units '{SERVICE}*' --plain --no-legend | awk '{{print $1, $3}}'"
    look = f"ss -Hltn | awk '{{print $4}}' | sort; {units} | sort"
    before = lab.ssh("cheetah", look).stdout
    lab.ssh("cheetah", "sudo systemctl stop consul")
    result = lab.ssh(
        "cheetah", f"{program} switch {SERVICE} {listed[1]['generation']}", check=False
    )
    lab.ssh("cheetah", "sudo systemctl start consul")
    assert result.returncode == 1
    assert f"Consul does not report {name} after 10 s" in result.stderr
    assert result.stderr.endswith(f"{listed[0]['release']} still serves\n")
    ports = [line for line in lab.ssh("cheetah", look).stdout.splitlines() if ":8" not in line]
    assert ports == [line for line in before.splitlines() if ":8" not in line]
    fleet.verify("--probe")
    assert fleet.changes(*words) == {}
    fleet.hosts(["drakar"], ["drakar", "cheetah"])
