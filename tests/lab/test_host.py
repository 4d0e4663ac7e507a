"""What happens on one host: its first release, a slow boot, a port's socket, timers."""

import json
import os
import signal
import time
import urllib.request
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from applications import BAD_RELEASES, application
from checkout import ROOT
from consul_processes import until
from fleet_commands import output, start
from lab_commands import Lab
from load import SERVICE, Load
from releasing import Releases
from shared_fleet import SharedFleet

from uwsgi_consul_fleet.lab.network import ipv6

pytestmark = pytest.mark.takes(180)

SOON = ("--data", "health_timeout=4")
# Every node that Consul has ever listed with the service, passing or not.
WATCH = f"""
import json, time, urllib.request
while True:
    url = "http://127.0.0.1:8500/v1/catalog/service/{SERVICE}"
    print(*{{each["Node"] for each in json.load(urllib.request.urlopen(url))}}, flush=True)
    time.sleep(0.02)
"""


def test_a_new_host_that_is_not_well_never_joins_the_service(
    releases: Releases, lab: Lab, tmp_path: Path
) -> None:
    releases.fleet.more("ormen")
    source = application(tmp_path, BAD_RELEASES["fails its health check"].code)
    host = ("ormen", {"app_source": str(source)})
    releases.fleet.hosts(["drakar"], [*releases.hosts, host])
    run = "nohup python3 watch.py >seen.txt 2>&1 & echo $! >watch.pid"
    lab.ssh("drakar", f"cat >watch.py <<'X'\n{WATCH}\nX\n{run}")
    try:
        result = releases.fleet.deploy(*SOON, check=False)
    finally:
        lab.ssh("drakar", "kill $(cat watch.pid)")
    releases.fleet.hosts(["drakar"], [*releases.hosts], ["ormen"])
    assert result.returncode != 0
    said = output(result)
    assert "is not fit to serve: not healthy after 4 s: GET /healthz: 500" in said, said
    assert "nothing serves, as before" in said, said
    seen = set(lab.ssh("drakar", "cat seen.txt").stdout.split())
    assert seen == set(releases.hosts)


SLOW = """
import time
import urllib.request
from ipaddress import IPv4Address
if not os.environ.get("RELEASE_TRIAL") and os.path.exists("/srv/busy"):
    time.sleep(7)
"""


def test_a_boot_may_take_longer_than_a_release(releases: Releases, lab: Lab) -> None:
    """The host is busy from the moment in which there is this file."""
    releases.deploy(SLOW, *SOON)
    for host in releases.hosts:
        lab.ssh(host, "sudo touch /srv/busy")
    try:
        lab.ssh("cheetah", f"sudo systemctl stop {SERVICE}.target")
        begin = time.monotonic()
        lab.ssh("cheetah", f"sudo systemctl start {SERVICE}.target '{SERVICE}-*.socket'")
        releases.fleet.verify("--wait", "20", "--probe")
        assert time.monotonic() - begin > 7
        said = releases.refused(SLOW, *SOON)
        assert "is not ready after 4 s" in said, said
        assert f"{releases.serving} still serves" in said, said
    finally:
        for host in releases.hosts:
            lab.ssh(host, "sudo rm /srv/busy")
    releases.expect_everywhere()


def by_name(folder: Path) -> Path:
    """The template as it was before sockets were taken by their descriptors."""
    text = (ROOT / "app/uwsgi.ini.j2").read_text()
    path = folder / "own.ini.j2"
    path.write_text(text.replace("socket = fd://3", "socket = :{{ instance.port }}"))
    assert path.read_text() != text
    return path


def test_a_socket_is_taken_by_name_and_by_descriptor(
    releases: Releases, load: Load, lab: Lab, tmp_path: Path
) -> None:
    begin, first = time.time(), releases.serving
    named = releases.deploy("", "--data", f"app_ini={by_name(tmp_path)}")
    taken = releases.deploy()
    journal = f"sudo journalctl -o cat -u '{SERVICE}-2001@{taken}*' | grep -c 'uwsgi socket . '"
    # The port, and where the instance is asked for its health: nothing twice.
    assert lab.ssh("cheetah", journal).stdout == "2\n"
    releases.fleet.rollback()
    window = load.window(begin)
    print(f"\n{window}")
    window.expect(passing=4, releases=(first, named, taken))
    releases.serves(named)
    releases.expect_everywhere()


def test_an_id_in_consul_is_taken_from_no_other_application(
    releases: Releases, lab: Lab, tmp_path: Path
) -> None:
    """Of another inventory, which has never heard of it."""
    other = SharedFleet(tmp_path / "shop.py", lab)
    other.hosts(["drakar"], [("drakar", {"app_name": "shop", "instances": {"server1": 2005}})])
    result = other.deploy(check=False)
    assert result.returncode != 0
    said = "drakar: consul-demo-server is registered in Consul as server1 of this host"
    assert said in output(result), output(result)
    assert releases.fleet.verify(check=False).stdout.count("✓ passing") == 4


TICKS = """
import json
import os
import signal
import time
import urllib.request
from ipaddress import IPv4Address
import uwsgi

def tick(number):
    said = [time.time(), os.environ["APP_RELEASE"], bool(os.environ.get("RELEASE_TRIAL"))]
    with open("/srv/ticks/" + os.environ["APP_PORT"], "a") as file:
        file.write(json.dumps(said) + "\\n")

uwsgi.register_signal(17, "", tick)
uwsgi.add_timer(17, 1)
"""


def test_a_timer_ticks_once_and_in_no_trial(releases: Releases, lab: Lab) -> None:
    for host in releases.hosts:
        lab.ssh(host, f"sudo install -d -o {SERVICE} /srv/ticks")
    try:
        first = releases.deploy(TICKS)
        second = releases.deploy(TICKS)

        def ticks() -> list[tuple[float, str, bool]]:
            lines = lab.ssh("cheetah", "cat /srv/ticks/2001").stdout.splitlines()
            return [json.loads(line) for line in lines]

        until(lambda: any(release == second for _, release, _ in ticks()), "the second one ticks")
        assert not any(is_trial for _, _, is_trial in ticks())
        assert max(at for at, release, _ in ticks() if release == first) < min(
            at for at, release, _ in ticks() if release == second
        )
    finally:
        for host in releases.hosts:
            lab.ssh(host, "sudo rm -r /srv/ticks")


def test_a_host_that_others_reach_by_ipv6(releases: Releases, lab: Lab, tmp_path: Path) -> None:
    """A fleet of its own, on a machine on which nothing is yet."""
    releases.fleet.more("ormen")
    lab.rebuild("ormen")
    address = str(ipv6(IPv4Address(lab.address("ormen"))))
    own = SharedFleet(tmp_path / "fleet.py", lab)
    own.hosts(["ormen"], [("ormen", {"address": address})])
    own.build_once()
    own.deploy()
    own.verify("--wait", "10", "--probe")
    assert own.changes() == {}
    for at in (f"[{address}]", lab.address("ormen")):
        url = f"http://{at}:2001/healthz"
        assert urllib.request.urlopen(url, timeout=5).read() == b"ok\n"
    lab.reboot("ormen")
    own.verify("--wait", "30", "--probe")


def test_a_client_says_that_its_server_answers_again(releases: Releases, lab: Lab) -> None:
    process = start("invoke", "client", "--inventory", str(releases.fleet.path), own_group=True)
    assert process.stdout and process.stderr
    assert " found on node " in process.stdout.readline()
    lab.ssh("drakar", "sudo systemctl restart consul")
    said = [process.stderr.readline(), process.stderr.readline()]
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert "asking again until it answers" in said[0]
    assert "answers again" in said[1]
