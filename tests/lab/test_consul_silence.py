"""A cluster that could not be asked is not a new one, and a host without Python gets it.

The tests run in the order in which they stand here, on one lab.
"""

from typing import Any

import pytest
from consul_processes import until
from fleet_commands import Fleet, output, run

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
    asked = f"sudo {PROGRAM} consul status"
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
    lab.ssh("drakar", "consul kv put kept yes && sudo systemctl stop consul")
    assert fleet.changes() == {"Consul: run the servers": ["drakar"]}
    assert lab.ssh("drakar", "consul kv get kept").stdout == "yes\n"
    assert fleet.changes() == {}


def test_one_that_hangs_is_told_and_nobody_is_restarted(fleet: Fleet, lab: Any) -> None:
    before = agent(lab, "drakar")
    lab.ssh("drakar", f"sudo kill -STOP {PID}")
    try:
        same = fleet.deploy(check=False)
        # Something that the agent would have to be restarted for.
        other = fleet.deploy("--data", "consul_source=file", *binary(lab), check=False)
        # A new server would begin a cluster of its own.
        fleet.hosts(["drakar", "cheetah"], [])
        joining = fleet.deploy(check=False)
    finally:
        lab.ssh("drakar", f"sudo kill -CONT {PID}")
    why = "its cluster could not be asked (drakar: Consul at http://127.0.0.1:8500 does not answer"
    assert [result.returncode for result in (same, other, joining)] == [1, 1, 1]
    assert f"drakar: {why}" in output(same)
    assert f"drakar: Consul was not restarted, because {why}" in output(other)
    assert f"cheetah: no Consul server was started, because {why}" in output(joining)
    assert agent(lab, "drakar") == before
    assert lab.ssh("cheetah", "sudo ls /var/lib/consul/raft", check=False).returncode
    assert lab.ssh("drakar", "consul kv get kept").stdout == "yes\n"
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
    assert "cheetah: its Consul server does not follow a leader" in output(alone)


WAIT = "until ss -Hltn 'sport = :8500' | grep -q .; do sleep 0.1; done"
