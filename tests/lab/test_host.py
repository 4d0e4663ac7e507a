"""What happens on one host: a slow boot, a port's socket, timers."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import acl_tokens
import pytest
from checkout import ROOT
from consul_processes import until
from fleet_commands import output, start
from lab_commands import Lab
from load import SERVICE, Load
from releasing import Releases
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(160)

SOON = ("--data", "health_timeout=10")

SLOW = """
import time
if not os.environ.get("RELEASE_TRIAL") and os.path.exists("/srv/busy"):
    time.sleep(13)
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
        releases.fleet.verify("--wait", "40", "--probe")
        assert time.monotonic() - begin > 13
        said = releases.refused(SLOW, *SOON)
        assert "is not ready after 10 s" in said, said
        assert f"{releases.serving} still serves" in said, said
    finally:
        for host in releases.hosts:
            lab.ssh(host, "sudo rm /srv/busy")
    releases.expect_everywhere()


def test_an_id_in_consul_is_taken_from_no_other_application(
    releases: Releases, lab: Lab, tmp_path: Path
) -> None:
    """Of another inventory, which has never heard of it."""
    other = SharedFleet(tmp_path / "shop.py", lab)
    acl_tokens.the_same(other.path, releases.fleet.path, "drakar")
    other.hosts(["drakar"], [("drakar", {"app_name": "shop", "instances": {"server1": 2005}})])
    result = other.deploy(check=False)
    assert result.returncode != 0
    said = "drakar: consul-demo-server is registered in Consul as server1 of this host"
    assert said in output(result), output(result)
    assert releases.fleet.verify("--wait", "30", check=False).stdout.count("✓ passing") == 4


TICKS = """
import json
import os
import time
import uwsgi

def tick(number):
    said = [time.time(), os.environ["APP_RELEASE"], bool(os.environ.get("RELEASE_TRIAL"))]
    with open("/srv/ticks/" + os.environ["APP_PORT"], "a") as file:
        file.write(json.dumps(said) + "\\n")

uwsgi.register_signal(17, "", tick)
uwsgi.add_timer(17, 1)
"""


@dataclass(frozen=True)
class TakenOver:
    """Releases under load, with a timer: one that takes its sockets by name, and its successor."""

    began: float
    first: str
    named: str
    successor: str


@pytest.fixture(scope="module")
def taken_over(
    releases: Releases, clients: Load, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TakenOver]:
    releases.ensure()
    began, first = time.time(), releases.serving
    ini = by_name(tmp_path_factory.mktemp("named"))
    ticks = ("--data", 'app_writable=["/srv/ticks"]')
    named = releases.deploy(TICKS, *ticks, "--data", f"app_ini={ini}")
    yield TakenOver(began, first, named, releases.deploy(TICKS, *ticks))
    for host in releases.hosts:
        lab.ssh(host, "sudo rm -r /srv/ticks")


def by_name(folder: Path) -> Path:
    """The template as it was before sockets were taken by their descriptors."""
    text = (ROOT / "app/uwsgi.ini.j2").read_text()
    path = folder / "own.ini.j2"
    # At the address where it was opened.
    name = "{{ instance.address }}:{{ instance.port }}"
    path.write_text(text.replace("socket = fd://3", f"socket = {name}"))
    assert path.read_text() != text
    return path


def test_a_timer_ticks_once_and_in_no_trial(taken_over: TakenOver, lab: Lab) -> None:
    first, second = taken_over.named, taken_over.successor

    def ticks() -> list[tuple[float, str, bool]]:
        lines = lab.ssh("cheetah", "sudo cat /srv/ticks/2001").stdout.splitlines()
        return [json.loads(line) for line in lines]

    until(lambda: any(release == second for _, release, _ in ticks()), "the second one ticks")
    assert not any(is_trial for _, _, is_trial in ticks())
    assert max(at for at, release, _ in ticks() if release == first) < min(
        at for at, release, _ in ticks() if release == second
    )


def test_a_socket_is_taken_by_name_and_by_descriptor(
    taken_over: TakenOver, releases: Releases, clients: Load, lab: Lab
) -> None:
    successor = f"{SERVICE}-2001@{taken_over.successor}*"
    journal = f"sudo journalctl -o cat -u '{successor}' | grep -c 'uwsgi socket . '"
    # The port, and where the instance is asked for its health: nothing twice.
    assert lab.ssh("cheetah", journal).stdout == "2\n"
    releases.fleet.rollback()
    window = clients.window(taken_over.began)
    print(f"\n{window}")
    window.expect(passing=4, releases=(taken_over.first, taken_over.named, taken_over.successor))
    releases.serves(taken_over.named)
    releases.expect_everywhere()


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
