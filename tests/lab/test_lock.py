"""One deploy at a time, on real machines: two operators, and ends of every kind.

The tests run in the order in which they stand here, on one fleet. That the loss of the server
that keeps the lock is none is in test_consul_scaling.py, where there are several servers.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from applications import application, released, slow_start
from checkout import BIN, ROOT
from consul_processes import until
from fleet_commands import Fleet, output, run
from lab_commands import Lab

from uwsgi_consul_fleet.commands.command import read
from uwsgi_consul_fleet.errors import LockedError
from uwsgi_consul_fleet.releases import releases, rollback

pytestmark = pytest.mark.takes(380)

SERVICE = "consul-demo-server"
LOCK = "kv get uwsgi-consul-fleet/lock"
# What a deploy could have changed on a host, and when its units were started.
FOOTPRINT = (
    "cd / && sudo find etc/uwsgi-consul-fleet/consul.d etc/systemd/system opt srv usr/local/bin "
    r"-not -name '*.pyc' -not -name __pycache__ -printf '%M %u %g %p %l %T@\n' | sort; "
    "systemctl show --property Id,MainPID,ActiveEnterTimestamp 'consul*'"
)


@pytest.fixture
def slow(tmp_path: Path) -> list[str]:
    """Something new to release each time, that takes some seconds to load."""
    source = application(tmp_path, f"{slow_start(5)}# {time.time_ns()}\n")
    return released(source, "next")


@pytest.fixture
def new(tmp_path: Path) -> list[str]:
    """Something new to release each time, that is there at once."""
    return released(application(tmp_path, f"# {time.time_ns()}\n"), "next")


class Deploy:
    """A deploy that goes on by itself."""

    def __init__(self, fleet: Fleet, folder: Path, *options: str) -> None:
        self.log = folder / f"deploy-{time.monotonic_ns()}.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(BIN / "pyinfra"), *fleet.words(*options)[1:]],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "200"},
                start_new_session=True,
            )

    def keeper(self) -> int:
        """The process beside it that keeps the lock."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for child in children.read_text().split():
            if b"uwsgi_consul_fleet.lock.keeper" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError("nobody keeps the lock")

    def send(self, number: signal.Signals) -> None:
        """As a terminal does: to the whole process group."""
        os.killpg(self.process.pid, number)

    def ends(self) -> tuple[int, str]:
        code = self.process.wait(60)
        said = self.log.read_text()
        assert not re.search("^Traceback", said, re.MULTILINE), said
        return code, said


@pytest.fixture
def deploy(fleet: Fleet, tmp_path: Path) -> Iterator[Callable[..., Deploy]]:
    started: list[Deploy] = []

    def start(*options: str) -> Deploy:
        started.append(Deploy(fleet, tmp_path, *options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.send(signal.SIGKILL)
            one.process.wait()


Start = Callable[..., Deploy]


def seconds_until_free(lab: Lab, at_most: float) -> float:
    begin = time.monotonic()
    until(lambda: not is_locked(lab), "the lock is free", at_most)
    return time.monotonic() - begin


def is_locked(lab: Lab) -> bool:
    return lab.consul("drakar", LOCK, check=False).returncode == 0


def locked(lab: Lab, one: Deploy) -> Deploy:
    until(lambda: is_locked(lab) or one.process.poll() is not None, "a deploy holds the lock", 30)
    assert one.process.poll() is None, one.ends()
    return one


def pyinfra(fleet: Fleet, *options: str) -> subprocess.Popen[str]:
    """A deploy that asks before it begins."""
    return subprocess.Popen(
        [str(BIN / "pyinfra"), *options, str(fleet.path), "deploy/"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def told(process: subprocess.Popen[str], words: str) -> None:
    """Wait until it has said that."""
    assert process.stdout
    said = ""
    while words not in said:
        letter = process.stdout.read(1)
        assert letter, said
        said += letter


def entered(process: subprocess.Popen[str]) -> str:
    """Press enter; what it says then, until it ends."""
    said, _ = process.communicate("\n", 60)
    return said


def footprints(lab: Lab) -> list[str]:
    return [lab.ssh(name, FOOTPRINT).stdout for name in ("drakar", "cheetah")]


def command(fleet: Fleet, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run("invoke", *words, "--inventory", str(fleet.path), check=check)


def last(fleet: Fleet) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(command(fleet, "audit", "--json", "--last", "1").stdout)[0]
    return entry


def test_a_deploy_with_nothing_to_do_leaves_no_trace(fleet: Fleet) -> None:
    before = last(fleet)
    assert fleet.changes() == {}
    assert last(fleet) == before


def test_of_two_at_the_same_time_one_is_told(
    fleet: Fleet, lab: Lab, deploy: Start, slow: list[str]
) -> None:
    first = locked(lab, deploy(*slow, "--limit", "drakar"))
    before = lab.ssh("cheetah", FOOTPRINT).stdout
    begin = time.monotonic()
    second = fleet.deploy("--data", "app_processes=3", "--limit", "cheetah", check=False)
    print(f"the second is told after {time.monotonic() - begin:.1f} s")
    assert second.returncode == 75, output(second)
    assert re.search(
        r"locked: \S+ on \S+ runs a deploy of \S+ to the fleet \S+, since 20", output(second)
    )
    assert "if it is stale: invoke unlock" in output(second)
    assert lab.ssh("cheetah", FOOTPRINT).stdout == before
    code, said = first.ends()
    assert code == 0, said
    entry = last(fleet)
    assert (entry["outcome"], entry["changed"]) == ("ok", ["drakar"])


def test_in_the_tail_of_another_it_stops_and_says_so(
    fleet: Fleet, lab: Lab, deploy: Start, slow: list[str]
) -> None:
    """One that looked at the hosts while another deploy went on, and acts when that is over."""
    first = locked(lab, deploy(*slow))
    second = pyinfra(fleet, "--data", "app_processes=3")
    told(second, "Detected changes displayed above")
    code, said = first.ends()
    assert code == 0, said
    before = footprints(lab), fleet.releases(), last(fleet)
    said = entered(second)
    assert second.returncode == 75, said
    assert re.search(r"changed while this run looked at it \(\S+ on \S+ ran a deploy of next", said)
    assert "Nothing was touched" in said
    assert (footprints(lab), fleet.releases(), last(fleet)) == before
    assert fleet.changes(*slow) == {}


def test_a_roll_back_stops_in_the_tail_of_another_run(
    fleet: Fleet, new: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That run goes on between its look at the hosts and its lock."""

    def looked(*arguments: Any, **named: Any) -> Any:
        found = releases.read(*arguments, **named)
        fleet.deploy(*new, "--data", "app_processes=3")
        return found

    monkeypatch.setattr(rollback, "read", looked)
    monkeypatch.chdir(ROOT)
    with pytest.raises(LockedError, match="changed while this run looked at it"):
        rollback.rollback(read(str(fleet.path)), "next")
    assert set(fleet.releases().values()) == {"next"}


def test_a_run_that_changes_nothing_is_in_nobodys_way(fleet: Fleet, new: list[str]) -> None:
    fleet.deploy(*new)
    waiting = pyinfra(fleet, "--data", "app_processes=3")
    told(waiting, "Detected changes displayed above")
    assert fleet.changes(*new) == {}
    said = entered(waiting)
    assert waiting.returncode == 0, said


def test_killed_it_is_free_for_the_next_at_once(
    fleet: Fleet, lab: Lab, deploy: Start, slow: list[str]
) -> None:
    killed = locked(lab, deploy(*slow, "--limit", "cheetah"))
    killed.send(signal.SIGKILL)
    killed.process.wait()
    # Without a word from the keeper it would be 13 s at least.
    free = seconds_until_free(lab, 12)
    print(f"free {free:.1f} s after kill -9")
    assert last(fleet)["outcome"] == "interrupted"
    assert fleet.deploy("--limit", "drakar", check=False).returncode == 0


def test_unheard_of_it_is_free_after_a_while(
    fleet: Fleet, lab: Lab, deploy: Start, slow: list[str]
) -> None:
    stopped = locked(lab, deploy(*slow, "--limit", "cheetah"))
    os.kill(stopped.keeper(), signal.SIGSTOP)
    stopped.process.send_signal(signal.SIGSTOP)
    free = seconds_until_free(lab, 40)
    print(f"free {free:.1f} s after the last sign of life")
    os.kill(stopped.keeper(), signal.SIGKILL)
    stopped.send(signal.SIGCONT)
    code, said = stopped.ends()
    assert code == 1, said
    assert "the lock was lost: " in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_says_so(
    fleet: Fleet, lab: Lab, deploy: Start, slow: list[str], number: signal.Signals
) -> None:
    one = locked(lab, deploy(*slow, "--limit", "cheetah"))
    one.send(number)
    code, said = one.ends()
    assert code == 128 + number, said
    assert "hosts finish what they are in the middle of" in said
    assert last(fleet)["outcome"] == "interrupted"
    assert not is_locked(lab)


def test_a_host_ends_what_it_is_in_the_middle_of_before_it_is_looked_at(
    fleet: Fleet, lab: Lab
) -> None:
    """As a switch goes on whose run was interrupted just now."""
    busy = "sudo systemd-run --quiet --unit=busy flock /run/uwsgi-consul-fleet.lock sleep 6"
    for look in (lambda: fleet.deploy("--dry"), lambda: fleet.rollback("no-such", check=False)):
        lab.ssh("cheetah", busy)
        look()
        assert lab.ssh("cheetah", "systemctl is-active busy", check=False).stdout == "inactive\n"


def test_unlocked_it_stops_before_the_next_host(
    fleet: Fleet, lab: Lab, deploy: Start, slow: list[str]
) -> None:
    fleet.deploy()
    one = locked(lab, deploy(*slow, "--parallel", "1"))
    refused = command(fleet, "unlock", check=False)
    assert refused.returncode == 2
    assert "locked: " in refused.stdout
    assert "--yes" in refused.stderr
    assert "removed" in command(fleet, "unlock", "--yes").stdout
    code, said = one.ends()
    assert code == 1, said
    assert "the lock was lost: " in said
    assert "There is no lock." in command(fleet, "unlock").stdout
    entries = json.loads(command(fleet, "audit", "--json").stdout)
    assert [(entry["what"], entry["outcome"]) for entry in entries[-2:]] == [
        ("deploy", "failed"),  # by when they began
        ("unlock", "ok"),
    ]
    fleet.deploy()


def test_without_consul_the_application_is_left_alone(fleet: Fleet, lab: Lab) -> None:
    look = f"sudo readlink /srv/{SERVICE}/current; systemctl show -p MainPID '{SERVICE}*'"
    before = lab.ssh("cheetah", look).stdout
    lab.ssh("drakar", "echo '{\"typo\": 1}' | sudo tee /etc/uwsgi-consul-fleet/consul.d/typo.json")
    try:
        lab.ssh("drakar", "sudo systemctl stop consul")
        result = fleet.deploy("--data", "app_processes=3", check=False)
        assert result.returncode == 1, output(result)
        # Depending on what cheetah's agent has noticed by then.
        why = "the application was left as it is: cannot acquire the lock|Failed to join any nodes"
        assert "typo.json" in output(result)
        assert re.search(rf"\[cheetah\] .*({why})", output(result)), output(result)
        assert lab.ssh("cheetah", look).stdout == before
    finally:
        lab.ssh("drakar", "sudo rm -f /etc/uwsgi-consul-fleet/consul.d/typo.json")
    fleet.deploy()
    assert "drakar" in last(fleet)["changed"]
    assert fleet.changes() == {}


def test_the_audit_as_a_table(fleet: Fleet) -> None:
    table = command(fleet, "audit").stdout
    assert re.search(r"^20\S+ \S+ +\S+@\S+ +deploy +\S+ +interrupted", table, re.MULTILINE)
    assert re.search(r" unlock .*locked: ", table)
