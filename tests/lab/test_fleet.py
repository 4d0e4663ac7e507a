"""The whole way on real machines: build, deploy, verify, scale, break, repair.

The tests run in the order in which they stand here, from machines on which nothing is yet: each
starts from the fleet that the one before it left, as an operator's day would. A host that is taken
out again is in test_scaling.py, a release that does not start in test_releases.py, a compile error
in test_every_uwsgi.py.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import acl_tokens
import pytest
from applications import commit
from checkout import BIN, ROOT
from consul_processes import until
from fleet_commands import Fleet, output, run
from interrupting import FOOTPRINT, footprint, kill_deploys
from lab_commands import Lab

from uwsgi_consul_fleet.inventory import reading as inventory
from uwsgi_consul_fleet.ssh import options

pytestmark = pytest.mark.takes(300)

SERVICE = "consul-demo-server"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Fleet:
    """With all settings as they are shipped."""
    lab.up("drakar", "cheetah")
    lab.rebuild("drakar", "cheetah")
    found = Fleet(tmp_path_factory.mktemp("fleet") / "fleet.py")
    found.hosts(["drakar"], ["drakar"])
    return found


@pytest.fixture(scope="module")
def no_plugin_built() -> Iterator[None]:
    """As in a fresh clone."""
    shutil.rmtree(ROOT / "plugin_build/dist", ignore_errors=True)
    yield


class Client:
    """The seed's client, running on a host."""

    def __init__(self, host: str, folder: Path) -> None:
        words = f"cd /srv/{SERVICE}/current && exec ./venv/bin/python -m app.client --passing"
        command = f"exec sudo -u {SERVICE} sh -c '{words}'"
        self.file = folder / f"client-{host}.txt"
        with self.file.open("w") as stdout:
            self.process = subprocess.Popen(
                ["ssh", "-F", str(ROOT / ".lab/ssh_config"), "-tt", host, command],
                stdin=subprocess.PIPE,  # never written to: ssh -tt would else close the session
                stdout=stdout,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.file.read_text().replace("\r", "")

    def last_list(self) -> list[str]:
        return re.findall(r"^\S+ found .*$", self.text().split("\n\n")[-1], re.MULTILINE)

    def expect(self, *ends: str) -> None:
        def arrived() -> bool:
            lines = self.last_list()
            return len(lines) == len(ends) and all(
                line.endswith(end) for line, end in zip(lines, ends, strict=True)
            )

        try:
            until(arrived, f"the client sees {ends}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it printed:\n{self.text()}") from None


def addresses(lab: Lab, *names: str) -> list[str]:
    return [
        f"on node {name} ({lab.address(name)}) using port {port}"
        for name in names
        for port in (2001, 2002)
    ]


def fetch(lab: Lab, host: str, url: str, method: str = "GET") -> str:
    """What a URL answers on a host."""
    program = (
        "import os, sys, urllib.request as u; "
        'token = {"X-Consul-Token": os.environ["CONSUL_HTTP_TOKEN"]}; '
        "asked = u.Request(sys.argv[1], headers=token, method=sys.argv[2]); "
        "print(u.urlopen(asked).read().decode())"
    )
    asked = f"{lab.as_management(host)} python3 -c '{program}' '{url}' {method}"
    found: str = lab.ssh(host, asked).stdout
    return found.removesuffix("\n")


def secrets_of(fleet: Fleet) -> list[str]:
    return acl_tokens.secrets_of(inventory.read(fleet.path, options.address))


# --- Before anything is there --------------------------------------------------------


def test_verify_says_that_it_could_not_ask(fleet: Fleet) -> None:
    result = fleet.verify(check=False)
    assert result.returncode == 2
    assert "drakar: nothing listens on its port 8500" in result.stderr
    assert "pyinfra inventory.py deploy/" in result.stderr


def test_dry_run_on_machines_that_have_nothing(fleet: Fleet, lab: Lab) -> None:
    before = lab.ssh("drakar", FOOTPRINT).stdout
    result = run("pyinfra", "--dry", str(fleet.path), "deploy/")
    assert "Application: switch the canary: drakar" in output(result)
    assert lab.ssh("drakar", FOOTPRINT).stdout == before


def test_mistakes_are_told_all_at_once_and_nothing_is_touched(fleet: Fleet, lab: Lab) -> None:
    bad = Fleet(fleet.path.with_name("bad.py"))
    bad.hosts([], [("drakar", {"instances": {"a": 1, "b": 1}, "app_proceses": 3})], ["cheetah"])
    bad.path.write_text(bad.path.read_text() + "ap_servers = ['cheetah']\n")
    before = lab.ssh("drakar", FOOTPRINT).stdout
    expected = [
        "inventory.py: unknown group 'ap_servers', did you mean 'app_servers'?",
        "consul_servers: is empty",
        "drakar: unknown setting 'app_proceses', did you mean 'app_processes'?",
        "drakar: instances a and b have the same port 1",
    ]
    for result in (bad.deploy(check=False), bad.verify(check=False), bad.build(check=False)):
        assert result.returncode in (1, 2), output(result)
        for line in expected:
            assert line in output(result)
    assert lab.ssh("drakar", FOOTPRINT).stdout == before


@pytest.mark.usefixtures("no_plugin_built")
def test_deploy_without_a_plugin_says_what_to_do(fleet: Fleet) -> None:
    result = fleet.deploy(check=False)
    assert result.returncode != 0
    assert "drakar: no consul plugin for its uWSGI" in output(result)
    assert "run invoke build-plugin" in output(result)


# --- Building ------------------------------------------------------------------------


def test_build_leaves_the_host_as_it_was(fleet: Fleet, lab: Lab) -> None:
    look = "dpkg -l; ls -A /tmp /var/tmp /mnt /opt /root 2>/dev/null; mount | wc -l"
    before = lab.ssh("drakar", look).stdout
    result = fleet.build()
    (built,) = (ROOT / "plugin_build/dist").glob("*/consul_plugin.so")
    assert f"built: {built.relative_to(ROOT)} (uWSGI 2.0." in result.stdout
    assert lab.ssh("drakar", look).stdout == before


def test_a_second_build_compiles_nothing(fleet: Fleet) -> None:
    (plugin,) = (ROOT / "plugin_build/dist").glob("*/consul_plugin.so")
    before = plugin.stat().st_mtime_ns
    result = fleet.build()
    assert "up to date: " in result.stdout
    assert "compiling" not in result.stdout
    assert plugin.stat().st_mtime_ns == before


# --- The seed's story ----------------------------------------------------------------


def test_two_servers_on_drakar(fleet: Fleet, lab: Lab) -> None:
    said = output(fleet.deploy("-vvv", "--diff", "--debug"))
    assert not [secret for secret in secrets_of(fleet) if secret in said]
    fleet.verify("--probe")
    # It took the lock when Consul was there.
    audit = run("invoke", "audit", "--json", "--inventory", str(fleet.path))
    (entry,) = json.loads(audit.stdout)
    assert (entry["what"], entry["outcome"], entry["changed"]) == ("deploy", "ok", ["drakar"])
    assert lab.consul("drakar", "kv get uwsgi-consul-fleet/lock", check=False).returncode == 1


def test_a_deploy_that_is_killed(fleet: Fleet, rng: random.Random) -> None:
    """Twice, on a host on which nothing is yet; the next test finishes it."""
    fleet.hosts(["drakar"], ["drakar", "cheetah"])
    kill_deploys(fleet, "cheetah", [rng.uniform(0.8, 4), rng.uniform(2, 12)])


def test_scale_out_is_one_name_more(fleet: Fleet, lab: Lab, tmp_path: Path) -> None:
    watching = Client("drakar", tmp_path)
    watching.expect(*addresses(lab, "drakar"))
    fleet.hosts(["drakar"], ["drakar", "cheetah"])
    fleet.build()
    changes = fleet.changes()
    # Where the deploys that were killed had not come so far.
    changes.pop("Firewall: let in who may connect", None)
    assert changes.pop("Consul: make tokens", ["drakar"]) == ["drakar"]
    assert all(hosts == ["cheetah"] for hosts in changes.values()), changes
    watching.expect(*addresses(lab, "cheetah", "drakar"))
    result = fleet.verify("--probe")
    assert result.stdout.count("✓ passing") == 4
    watching.process.terminate()
    watching.process.wait()
    # Nothing is left of the deploys that were killed: both hosts have the same.
    assert footprint(lab, "cheetah") == footprint(lab, "drakar")


def test_again_changes_nothing_and_restarts_nothing(fleet: Fleet, lab: Lab) -> None:
    look = "systemctl show --property Id,MainPID,ActiveEnterTimestamp 'consul*'"
    before = [lab.ssh(name, look).stdout for name in ("drakar", "cheetah")]
    assert fleet.changes() == {}
    assert [lab.ssh(name, look).stdout for name in ("drakar", "cheetah")] == before


def test_the_servers_answer_with_who_they_are(fleet: Fleet, lab: Lab) -> None:
    answer = json.loads(fetch(lab, "cheetah", f"http://{lab.address('cheetah')}:2002/?format=json"))
    assert (answer["service"], answer["node"], answer["port"]) == (SERVICE, "cheetah", 2002)
    registered = json.loads(fleet.verify("--json").stdout)["rows"]
    assert {row["release"] for row in registered} == {answer["release"]}


def test_invoke_client_sees_the_same_from_outside(fleet: Fleet, lab: Lab) -> None:
    result = run("invoke", "client", "--once", "--inventory", str(fleet.path))
    lines = result.stdout.splitlines()
    assert lines == [f"{SERVICE} found {end}" for end in addresses(lab, "cheetah", "drakar")]


def test_consul_answers_only_on_loopback(fleet: Fleet, lab: Lab) -> None:
    listeners = lab.ssh("cheetah", "ss -Hltn 'sport = :8500'").stdout.split()
    assert listeners[3] == "127.0.0.1:8500"


# --- What differs is named -----------------------------------------------------------


def test_stopped_servers_leave_and_verify_names_them(
    fleet: Fleet, lab: Lab, tmp_path: Path
) -> None:
    watching = Client("drakar", tmp_path)
    watching.expect(*addresses(lab, "cheetah", "drakar"))
    lab.ssh("cheetah", f"sudo systemctl stop {SERVICE}.target")
    watching.expect(*addresses(lab, "drakar"))
    result = fleet.verify(check=False)
    assert result.returncode == 1
    for number in (1, 2):
        line = f"missing: {SERVICE} server{number} on cheetah port 200{number}: not registered"
        assert line in result.stdout.splitlines()
    report = fleet.verify("--json", check=False)
    assert report.returncode == 1
    assert [d["kind"] for d in json.loads(report.stdout)["differences"]] == ["missing"] * 2
    fleet.deploy()
    watching.expect(*addresses(lab, "cheetah", "drakar"))
    watching.process.terminate()
    watching.process.wait()


def test_an_agent_restart_is_survived(fleet: Fleet, lab: Lab, tmp_path: Path) -> None:
    watching = Client("cheetah", tmp_path)
    watching.expect(*addresses(lab, "cheetah", "drakar"))
    lab.ssh("cheetah", "sudo systemctl restart consul")
    watching.expect(*addresses(lab, "cheetah", "drakar"))
    until(lambda: "8500" in watching.text(), "the client mentions the agent")
    watching.process.terminate()
    watching.process.wait()


def test_what_nobody_expects_is_named(fleet: Fleet, lab: Lab) -> None:
    lab.consul("cheetah", f"services register -name={SERVICE} -id=stray -port=2999")
    result = fleet.verify(check=False)
    assert result.returncode == 1
    assert f"unexpected: {SERVICE} stray on cheetah port 2999: " in result.stdout
    lab.consul("cheetah", "services deregister -id=stray")
    fleet.verify()


def test_a_failing_check_is_shown_with_its_output(fleet: Fleet, lab: Lab) -> None:
    pid = lab.ssh(
        "cheetah", f"systemctl show --value -p MainPID '{SERVICE}-2001@*.service'"
    ).stdout.strip()
    failing = "http://127.0.0.1:8500/v1/agent/check/fail/service:server1?note=out+of+rum"
    lab.ssh("cheetah", f"sudo kill -STOP {pid}")
    try:
        fetch(lab, "cheetah", failing, "PUT")
        result = fleet.verify(check=False)
    finally:
        lab.ssh("cheetah", f"sudo kill -CONT {pid}")
    assert result.returncode == 1
    line = f"failing: {SERVICE} server1 on cheetah port 2001: critical: out of rum"
    assert line in result.stdout.splitlines()
    fleet.verify()


# --- Releases and settings -----------------------------------------------------------


def test_a_changed_setting_is_rolled_out_without_losing_the_registration(
    fleet: Fleet, lab: Lab
) -> None:
    token = lab.as_management("drakar")
    lab.ssh(
        "drakar",
        "cat > watch.py <<'X'\n"
        "import json, os, time, urllib.request as u\n"
        "u2 = 'http://127.0.0.1:8500/v1/health/service/consul-demo-server?passing'\n"
        "token = {'X-Consul-Token': os.environ['CONSUL_HTTP_TOKEN']}\n"
        "while True:\n"
        "    print(len(json.load(u.urlopen(u.Request(u2, headers=token)))), flush=True)\n"
        "    time.sleep(0.02)\n"
        "X\n"
        f"{token} nohup python3 watch.py > seen.txt 2>&1 & echo $! > watch.pid",
    )
    try:
        changes = fleet.changes("--data", "app_processes=3")
    finally:
        lab.ssh("drakar", "kill $(cat watch.pid)")
    assert changes["Application: switch the canary: drakar"] == ["drakar"]
    assert changes["Application: switch the batch 1 of 1: cheetah"] == ["cheetah"]
    seen = set(lab.ssh("drakar", "cat seen.txt").stdout.split())
    assert seen == {"4"}
    fleet.verify("--probe")


# --- Interruptions -------------------------------------------------------------------


def test_a_power_cut_is_survived(fleet: Fleet, lab: Lab) -> None:
    lab.kill("cheetah")
    result = fleet.verify("--wait", "0", check=False)
    assert result.returncode in (0, 1)  # Consul needs some seconds to notice
    lab.up("cheetah")
    fleet.verify("--wait", "60", "--probe")
    assert fleet.changes("--data", "app_processes=3") == {}


def interrupted(line: str, *command: str) -> tuple[int, str]:
    """Ctrl-C when a command has printed this; its exit status and its standard error."""
    process = subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    printed = []
    for printed_line in process.stdout:
        printed.append(printed_line)
        if line in printed_line:
            break
    else:
        pytest.fail(f"{' '.join(command)} never printed {line!r}:\n{''.join(printed)}")
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert "Traceback" not in stderr, stderr
    return process.returncode, stderr


def test_ctrl_c_ends_a_watching_client(fleet: Fleet) -> None:
    command = ("invoke", "client", "--inventory", str(fleet.path))
    assert interrupted(" found on node ", *command)[0] == 130


def test_ctrl_c_ends_a_build_and_leaves_the_host_as_it_was(fleet: Fleet, lab: Lab) -> None:
    before = lab.ssh("drakar", "dpkg -l").stdout
    command = ("invoke", "build-plugin", "--force", "--inventory", str(fleet.path))
    code, stderr = interrupted("installing the compiler", *command)
    assert (code, stderr.strip()) == (130, "interrupted")
    assert lab.ssh("drakar", "dpkg -l; ls -A /mnt").stdout == before
    # What was built before is still there and still good.
    assert "up to date: " in fleet.build().stdout


# --- Settings of one host, in the end: the next file puts the fleet back ---------------------


def test_secrets_arrive_and_are_shown_nowhere(
    fleet: Fleet, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "app"
    shutil.copytree(ROOT / "app", source)
    server = source / "server.py"
    shows = '"pid": os.getpid(), "found": [os.environ.get(n) for n in ("PORT_OF", "KEY", "PIN")],'
    server.write_text(server.read_text().replace('"pid": os.getpid(),', shows))
    monkeypatch.setenv("KEY", 'a "b" $c `d` \\e\nf')
    (tmp_path / "secrets").write_text("export PIN='48 15' # of the gate\n")
    settings = {
        "app_source": str(source),
        "app_env": {"PORT_OF": "call 1"},
        "app_secrets": ["KEY", "PIN"],
        "app_secrets_file": str(tmp_path / "secrets"),
    }
    fleet.hosts(["drakar"], [("drakar", settings), "cheetah"])
    said = output(fleet.deploy("-vvv", "--diff", "--debug"))
    found = json.loads(fetch(lab, "drakar", f"http://{lab.address('drakar')}:2001/?format=json"))[
        "found"
    ]
    assert found == ["call 1", 'a "b" $c `d` \\e\nf', "48 15"]
    # The archive that holds them is sent in base64, which begins like this.
    for secret in ("48 15", '"b"', "H4sIAA", *secrets_of(fleet)):
        assert secret not in said
    kept = f"/srv/{SERVICE}/current/environment"
    assert lab.ssh("drakar", f"sudo stat -c '%a %U' {kept}").stdout == "600 root\n"
    assert lab.ssh("drakar", f"cat {kept}", check=False).returncode != 0
    assert fleet.changes() == {}
    # A value that changed is rolled out, to the hosts that have it; one that is missing is told.
    monkeypatch.setenv("KEY", "other")
    assert {name for hosts in fleet.changes().values() for name in hosts} == {"drakar"}
    monkeypatch.delenv("KEY")
    refused = fleet.deploy(check=False)
    assert refused.returncode != 0
    assert "app_secrets: no value for KEY" in output(refused)


def shop(folder: Path) -> dict[str, object]:
    """The settings of another application: a git repository with links to files and folders, and
    with requirements that include others."""
    source = folder / "shop"
    (source / "parts" / "main").mkdir(parents=True)
    (source / "parts" / "main" / "wsgi.py").write_text(
        "import certifi\n"
        "def serve(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [b'ahoy ', certifi.__version__.encode()]\n"
    )
    (source / "current").symlink_to("parts/main")
    (source / "wsgi.py").symlink_to("current/wsgi.py")
    commit(source)
    (folder / "base").mkdir()
    (folder / "requirements.txt").write_text("-r base/all.txt\n-c limits.txt\n")
    (folder / "base" / "all.txt").write_text("certifi\n")
    (folder / "limits.txt").write_text("certifi==2025.1.31\n")
    return {
        "app_source": str(source),
        "app_entry_point": "shop.wsgi:serve",
        "app_requirements": str(folder / "requirements.txt"),
        "instances": {"till": {"port": 2005, "id": "shop-till"}},
    }


def test_another_application_is_a_matter_of_settings(
    fleet: Fleet, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = shop(tmp_path)
    # As in a hook of git, here of another repository.
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    fleet.hosts(["drakar"], ["drakar", ("cheetah", host)])
    fleet.deploy()
    fleet.verify("--probe")
    assert fetch(lab, "cheetah", f"http://{lab.address('cheetah')}:2005/") == "ahoy 2025.01.31"
    units = lab.ssh("cheetah", f"systemctl list-units --all --plain '{SERVICE}*'").stdout
    assert "2001" not in units, units
