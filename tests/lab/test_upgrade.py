"""A fleet that the version before made, in the hands of this one.

The tests run in the order in which they stand here.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import acl_tokens
import pytest
from consul_processes import until
from fleet_commands import Fleet, changed, finish, output, run
from interrupting import killed_at
from load import Load, instances
from releasing import starts
from versions import Version, before, last, rounds

pytestmark = pytest.mark.takes(380)

HOSTS = ("drakar", "cheetah")  # that serve it
SERVERS = ("drakar", "cheetah", "ormen")
APP = "consul-demo-server"
# Elsewhere, and known to no setting.
UPLOADS = "/var/lib/demo/uploads"
# What a deploy says in the middle of a round.
RESTARTS = "operation: Consul, round 1 of 3: run the servers"
RESTARTED = r"\]\s+Success"
# An operator's own, which the agent reads.
OWN = '{"service": {"name": "own", "port": 9}}'


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return before(tmp_path_factory.mktemp("version"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, lab: Any, old: Version) -> Fleet:
    """Of the version before, on a release of its own."""
    lab.fresh(*SERVERS)
    found = Fleet(tmp_path_factory.mktemp("fleet") / "fleet.py")
    found.hosts([*SERVERS], list(HOSTS))
    found.build_once()
    old.run("invoke", "build-plugin", "--inventory", str(found.path))
    old.run("pyinfra", "-y", *release("old"), str(found.path), "deploy/")
    old.run("invoke", "verify", "--wait", "30", "--inventory", str(found.path))
    lab.ssh("drakar", f"sudo install -d -o {APP} {UPLOADS}")
    lab.ssh("drakar", f"echo '{OWN}' | sudo tee /etc/consul.d/own.json && consul reload")
    return found


def release(name: str) -> tuple[str, ...]:
    return ("--data", f"release={name}", "--data", "min_healthy_time=1")


def test_its_fleet_is_verified_and_shown(fleet: Fleet) -> None:
    result = fleet.verify("--probe", "--json")
    rows = json.loads(result.stdout)["rows"]
    assert {row["release"] for row in rows if row["id"]} == {"old"}
    assert fleet.releases() == dict.fromkeys(HOSTS, "old")
    audit = run("invoke", "audit", "--json", "--inventory", str(fleet.path)).stdout
    assert [entry["what"] for entry in json.loads(audit)] == ["deploy"]


def test_what_it_released_is_known_by_its_content(fleet: Fleet, old: Version) -> None:
    """Of which that version wrote down nothing, on hosts or in Consul."""
    same = ("--dry", "--data", f"app_source={old.checkout / 'app'}")
    same += ("--data", f"app_requirements={old.checkout / 'app/requirements.txt'}")
    stays = "consul-demo-server: stays on old: app_source is what it serves"
    assert stays in output(fleet.deploy(*same))
    assert "(app_source) over old" in output(fleet.deploy("--dry"))


def held(process: subprocess.Popen[str], lab: Any) -> None:
    """Wait until that run has the lock."""

    def is_held() -> bool:
        assert process.poll() is None, process.communicate()
        found = lab.consul("drakar", "kv get uwsgi-consul-fleet/lock", check=False)
        return bool(found.returncode == 0)

    until(is_held, "the lock is held", 30)


def test_its_lock_is_understood(fleet: Fleet, lab: Any, old: Version) -> None:
    process = old.start("pyinfra", "-y", *release("other"), str(fleet.path), "deploy/")
    held(process, lab)
    refused = fleet.deploy(check=False)
    assert refused.returncode == 75, output(refused)
    assert "runs a deploy of other" in output(refused)
    finish(process, check=True)


def expect_uploads(fleet: Fleet, lab: Any) -> None:
    """What it could write to stays open until a setting says what it needs, and no more does."""
    again = fleet.deploy("--json", *release("new"))
    assert changed(again) == {}
    assert f"{APP} can still write to {UPLOADS}, since a version before 0.5 let it" in output(again)
    tried = f"touch {UPLOADS}/a; touch /var/lib/demo/a"
    words = ("--inventory", str(fleet.path), "--host", "drakar", "--", "sh", "-c", tried)
    said = output(run("invoke", "exec", *words, check=False))
    assert "touch: cannot touch '/var/lib/demo/a': Read-only file system" in said
    assert lab.ssh("drakar", f"ls {UPLOADS}").stdout == "a\n"


def test_it_is_taken_over_without_a_lost_request(fleet: Fleet, lab: Any, old: Version) -> None:
    """And meanwhile it understands our lock. Its agents restart in two rounds, with which the next
    deploy goes on where one is killed, and in one more that waits for what nobody gave a token."""
    before = starts(lab, HOSTS)
    with Load(lab, instances(lab, *HOSTS), on="ormen") as load:
        load.mark("killed")
        is_killed, said = killed_at(fleet.start_deploy(*release("new")), RESTARTS, RESTARTED)
        assert is_killed, said
        assert {*rounds(lab, SERVERS).values()} == {0, 1}, said
        run("invoke", "unlock", "--yes", "--inventory", str(fleet.path))
        load.mark("deployed to")
        process = fleet.start_deploy(*release("new"))
        held(process, lab)

        def is_told() -> bool:  # also where a server is just restarted
            unlock = old.run("invoke", "unlock", "--inventory", str(fleet.path), check=False)
            return "runs a deploy of new" in output(unlock)

        until(is_told, "the version before sees the run", 30)
        said = output(finish(process, check=True))
        assert f"{APP} can still write to {UPLOADS}: list what it needs in app_writable" in said
        assert "drakar: the service own (id own) is registered without a token; give it" in said
        assert "the next deploy goes on with them" in said
        assert {*rounds(lab, SERVERS).values()} == {2}
        report = output(fleet.verify("--probe"))
        assert (
            "access control and encryption are not complete: round 2 of 3; deploy again" in report
        )
        load.mark("there")
        said = output(fleet.deploy("--dry", "--limit", "drakar", *release("new")))
        told = "Consul stays in round 2 of 3 to access control and encryption: --limit leaves out"
        assert f"{told} cheetah, ormen; deploy without it" in said
        expect_uploads(fleet, lab)
        assert starts(lab, HOSTS) == {host: count + 2 for host, count in before.items()}
        fleet.rollback("other")  # which the version before has made
        assert fleet.releases() == dict.fromkeys(HOSTS, "other")
        load.mark("closed")
        give_token_to_own(lab)
        assert "not complete" not in output(fleet.deploy("--data", "release=current"))
        assert {*rounds(lab, SERVERS).values()} == {3}
        load.mark("end")
        for window in load.windows()[:-1]:
            assert {*window.releases} <= {"other", "new"} and not window.failed, window
            assert window.least_passing == 4, window
            assert window.blind < 20, window
    report = output(fleet.verify("--probe"))
    assert (
        f"may look up services until each application sets app_discovers: missing in {APP}"
        in report
    )


def give_token_to_own(lab: Any) -> None:
    """As its operator does it, told by the deploy."""
    made = "acl token create -format=json -service-identity=own"
    secret = json.loads(lab.consul("drakar", made).stdout)["SecretID"]
    text = json.dumps({"service": {"name": "own", "port": 9, "token": secret}})
    file = "/etc/uwsgi-consul-fleet/consul.d/own.json"
    lab.ssh("drakar", f"echo '{text}' | sudo tee {file} >/dev/null && sudo systemctl reload consul")


def test_versions_that_know_no_fleets_stop_before_they_touch_anything(
    fleet: Fleet, old: Version, tmp_path: Path
) -> None:
    for version in (old, last(tmp_path)):
        result = version.run(
            "pyinfra", "-y", *release("v"), str(fleet.path), "deploy/", check=False
        )
        assert result.returncode, output(result)
        assert "a-newer-uwsgi-consul-fleet serves on port 2001, 2002" in output(result)
    assert fleet.releases() == dict.fromkeys(HOSTS, "other")


def test_its_consul_moves_with_the_version_that_it_has(fleet: Fleet, lab: Any) -> None:
    """Out of the places in which HashiCorp's package has its own."""
    for host in HOSTS:
        binary = lab.ssh(host, "readlink /usr/local/bin/consul").stdout.strip()
        assert binary.startswith("/opt/uwsgi-consul-fleet/consul/")
        pid = "$(systemctl show --property MainPID --value consul)"
        assert lab.ssh(host, f"sudo readlink /proc/{pid}/exe").stdout.strip() == binary
        assert lab.ssh(host, "ls -d /opt/consul", check=False).stdout == ""
    assert lab.ssh("drakar", "ls /etc/consul.d").stdout == "own.json\n"
    assert lab.ssh("cheetah", "ls -d /etc/consul.d", check=False).stdout == ""
    assert "own" in lab.consul("cheetah", "catalog services").stdout.split()


def test_a_second_roll_back_goes_further_back(fleet: Fleet) -> None:
    """Not to the one from which the first came."""
    fleet.rollback()
    assert fleet.releases() == dict.fromkeys(HOSTS, "other")  # with the settings that it had then
    fleet.rollback()
    assert fleet.releases() == dict.fromkeys(HOSTS, "old")
    nothing_left = fleet.rollback(check=False)
    assert nothing_left.returncode == 2
    assert "no release before the one that serves" in output(nothing_left)


def test_what_it_released_gets_settings_from_now(fleet: Fleet, lab: Any) -> None:
    """Nothing of it is in `app_source`, and no host has it packed."""
    said = output(fleet.deploy("--data", "min_healthy_time=1", "--data", "app_processes=3"))
    assert "stays on old: app_source is " in said
    assert fleet.releases() == dict.fromkeys(HOSTS, "old")
    for host in HOSTS:
        look = "sudo grep ^processes /srv/consul-demo-server/current/2001.ini"
        assert lab.ssh(host, look).stdout == "processes = 3\n"
    fleet.verify("--probe")


def test_its_group_data_goes_on_working(fleet: Fleet, old: Version, tmp_path: Path) -> None:
    """In the words of the version before, which import from a package that is no more."""
    (tmp_path / "group_data").mkdir()
    text = (old.checkout / "group_data/all.py").read_text()
    (tmp_path / "group_data/all.py").write_text(text)
    path = tmp_path / "inventory.py"
    path.write_text(fleet.path.read_text())
    acl_tokens.the_same(path, fleet.path, "drakar")
    result = run("pyinfra", "--dry", str(path), "deploy/")
    assert "fleet.transport" in output(result)  # which line to delete
