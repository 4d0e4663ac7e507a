"""A cluster that could not be asked is not a new one, and a host without Python gets it.

The tests run in the order in which they stand here, on one lab.
"""

import json
from collections.abc import Iterator
from typing import Any

import acl_tokens
import pytest
from consul_processes import until
from fleet_commands import Fleet, output, run

pytestmark = pytest.mark.takes(230)

PID = "$(systemctl show --property MainPID --value consul)"
STARTED = "systemctl show --property MainPID,ActiveEnterTimestamp consul"
PROGRAM = "/opt/uwsgi-consul-fleet/release"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, lab: Any) -> Fleet:
    lab.up("drakar", "cheetah")
    lab.rebuild("drakar", "cheetah")
    found = Fleet(tmp_path_factory.mktemp("fleet") / "fleet.py")
    # No application: what is here needs none, and no plugin.
    found.hosts(["drakar"], [])
    return found


def installed(lab: Any, host: str) -> str:
    return str(lab.ssh(host, "dpkg --list").stdout)


def agent(lab: Any, host: str) -> str:
    return str(lab.ssh(host, STARTED).stdout)


# --- A host without Python -----------------------------------------------------------


def test_a_dry_run_on_a_host_without_python_installs_nothing(fleet: Fleet, lab: Any) -> None:
    lab.ssh("drakar", "sudo apt-get -qq purge --autoremove -y python3 python3-minimal")
    assert lab.ssh("drakar", "command -v python3", check=False).returncode
    before = installed(lab, "drakar")
    said = output(run("pyinfra", "--dry", str(fleet.path), "deploy/"))
    assert "Python is missing: it is installed first" in said
    assert installed(lab, "drakar") == before


def test_the_deploy_brings_it(fleet: Fleet, lab: Any) -> None:
    fleet.deploy()
    token = json.dumps({"token": acl_tokens.management(lab, "drakar")})
    asked = f"echo '{token}' | sudo {PROGRAM} --access-stdin consul status"
    # The first server of a cluster elects itself when it has started.
    until(lambda: lab.ssh("drakar", asked).stdout.startswith('{"leader": "10.'), "a leader")
    assert fleet.changes() == {}


# --- The program is missing, or another version's ------------------------------------


@pytest.mark.parametrize("break_it", [f"rm {PROGRAM}", f"cp /bin/false {PROGRAM}"])
def test_without_its_program_a_server_is_asked_all_the_same(
    fleet: Fleet, lab: Any, break_it: str
) -> None:
    before = agent(lab, "drakar")
    lab.ssh("drakar", f"sudo {break_it}")
    assert fleet.changes() == {"Consul: configure the agent": ["drakar"]}
    assert agent(lab, "drakar") == before
    assert fleet.changes() == {}


# --- Agents that do not answer -------------------------------------------------------


def test_a_server_that_was_stopped_goes_on_with_its_data(fleet: Fleet, lab: Any) -> None:
    lab.consul("drakar", "kv put kept yes && sudo systemctl stop consul")
    assert fleet.changes() == {"Consul: run the servers": ["drakar"]}
    assert lab.consul("drakar", "kv get kept").stdout == "yes\n"
    assert fleet.changes() == {}


@pytest.fixture
def hung(lab: Any) -> Iterator[str]:
    """What is told while drakar's agent does not answer; it is the same afterwards."""
    before = agent(lab, "drakar")
    lab.ssh("drakar", f"sudo kill -STOP {PID}")
    yield "its cluster could not be asked (drakar: Consul at http://127.0.0.1:8500 does not answer"
    lab.ssh("drakar", f"sudo kill -CONT {PID}")
    assert agent(lab, "drakar") == before
    assert lab.consul("drakar", "kv get kept").stdout == "yes\n"


def test_one_that_hangs_is_told(fleet: Fleet, hung: str) -> None:
    result = fleet.deploy(check=False)
    assert result.returncode == 1
    assert f"drakar: {hung}" in output(result)


def test_one_that_hangs_is_not_restarted(fleet: Fleet, lab: Any, hung: str) -> None:
    """For another binary it would have to be."""
    result = fleet.deploy("--data", "consul_source=file", *binary(lab), check=False)
    assert result.returncode == 1
    assert f"drakar: Consul was not restarted, because {hung}" in output(result)


def test_beside_one_that_hangs_no_server_is_started(fleet: Fleet, lab: Any, hung: str) -> None:
    """It would begin a cluster of its own."""
    fleet.hosts(["drakar", "cheetah"], [])
    result = fleet.deploy(check=False)
    assert result.returncode == 1
    assert f"cheetah: no Consul server was started, because {hung}" in output(result)
    assert lab.ssh("cheetah", "sudo ls /var/lib/consul/raft", check=False).returncode


def test_one_that_answers_again_is_deployed_to(fleet: Fleet) -> None:
    fleet.hosts(["drakar"], [])
    fleet.deploy()


def binary(lab: Any) -> tuple[str, ...]:
    """Consul from a file: the same program under another name."""
    path = lab.checkout / ".venv/bin/consul"
    return ("--data", f"consul_file={path}")


def test_the_next_server_is_asked_where_one_follows_no_leader(fleet: Fleet, lab: Any) -> None:
    # The binary is there since the last test; the agent waits for another that never comes.
    lone = "-server -bootstrap-expect 2 -data-dir /tmp/lone -bind 127.0.0.1 -node lone"
    lab.ssh(
        "cheetah",
        f"sudo systemd-run --unit lone $(ls /opt/uwsgi-consul-fleet/consul/*/consul) agent {lone}",
    )
    status = f"{WAIT} && sudo {PROGRAM} consul status"
    assert '"leader": ""' in lab.ssh("cheetah", status).stdout
    fleet.hosts(["cheetah", "drakar"], [])
    said = run("invoke", "audit", "--last", "1", "--inventory", str(fleet.path)).stdout
    assert " deploy " in said
    fleet.hosts(["cheetah"], [])
    alone = run("invoke", "audit", "--inventory", str(fleet.path), check=False)
    assert alone.returncode == 2
    assert "cheetah: its Consul agent does not follow a leader" in output(alone)


WAIT = "until ss -Hltn 'sport = :8500' | grep -q .; do sleep 0.1; done"
