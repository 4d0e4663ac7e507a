"""Logs, commands beside the instances, and hooks: on a fleet under load.

The tests run in the order in which they stand here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import acl_tokens
import pytest
from browser import browser
from checkout import BIN, ROOT
from consul_processes import until
from fleet_commands import finish, output, run, start
from interrupting import killed_at_the_end
from lab_commands import Lab
from load import SERVICE, Load
from releasing import Releases
from shared_fleet import HOSTS
from terminal import Terminal

pytestmark = pytest.mark.takes(160)

# Of each request, which the example's ini does not log.
LOGGING = """
answer_quietly = application

def application(environ, start_response):
    print("request", environ["PATH_INFO"], flush=True)
    return answer_quietly(environ, start_response)
"""
ENVIRONMENT = {"GREETING": 'good day, $USER: 100% "of" it\'s'}
WORDS = ["a  b", "", "$HOME", "it's", '"', "x\ny", "*", "%i", "ü", "\\n", "--", "--once"]
LOOK = """
import hashlib, json, os, pwd, sys
names = ("GREETING", "PATH", "VIRTUAL_ENV")
known = {name: os.environ.get(name) for name in names}
user = pwd.getpwuid(os.getuid()).pw_name
seen = [os.stat("/tmp").st_ino, os.access("/home", os.R_OK)]
given = hashlib.md5(sys.stdin.buffer.read()).hexdigest()
print(json.dumps([sys.argv[1:], os.getcwd(), user, known, seen, given]))
sys.stderr.write("said aside\\n")
sys.exit(7)
"""
# A shell that is killed says where it was; one that ends by itself says that.
CATCHES = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
LEFT = "systemctl list-units --all --plain --no-legend 'uwsgi-consul-fleet-exec-*'"


@pytest.fixture(scope="module")
def release(releases: Releases) -> str:
    """The one that logs and has an environment."""
    return releases.deploy(LOGGING, "--data", f"app_env={json.dumps(ENVIRONMENT)}")


@pytest.fixture
def words(releases: Releases, release: str) -> Callable[..., list[str]]:
    """A command over this fleet; what follows -- comes last."""

    def make(*words: str) -> list[str]:
        name, *rest = words
        return ["invoke", name, "--inventory", str(releases.fleet.path), *rest]

    return make


Words = Callable[..., list[str]]


# --- Commands ---


def test_a_command_runs_as_the_instances_do(lab: Lab, release: str, words: Words) -> None:
    told = words("exec", "--host", "cheetah", "--", "python3", "-c", LOOK, *WORDS)
    given = os.urandom(300_000)
    result = subprocess.run(
        [str(BIN / told[0]), *told[1:]], cwd=ROOT, input=given, capture_output=True, check=False
    )
    assert result.returncode == 7, result.stderr
    assert b"said aside\n" in result.stderr
    typed, folder, user, known, (tmp, homes), received = json.loads(result.stdout)
    assert received == hashlib.md5(given).hexdigest()
    assert typed == WORDS
    assert re.fullmatch(rf"/srv/{SERVICE}/releases/{release}-[0-9a-f]{{8}}", folder)
    assert user == SERVICE
    assert known["GREETING"] == ENVIRONMENT["GREETING"]
    assert not known["VIRTUAL_ENV"]  # without requirements it has none
    unit = f"{SERVICE}-2001@{Path(folder).name}.service"
    its = f"/proc/$(systemctl show --property MainPID --value {unit})/root/tmp"
    assert tmp == int(lab.ssh("cheetah", f"sudo stat --format %i {its}").stdout)
    assert not homes
    assert not lab.ssh("cheetah", LEFT).stdout
    [entry] = json.loads(run(*words("audit", "--json", "--last", "1")).stdout)
    assert (entry["what"], entry["outcome"], entry["changed"]) == ("exec", "failed", ["cheetah"])
    assert entry["detail"] == "exit status 7"
    assert "said" not in json.dumps(entry)
    # Neither a host's journal has the words: they may be secrets.
    assert not lab.ssh(
        "cheetah", "sudo journalctl --quiet --grep 'said asid[e]'", check=False
    ).stdout


def labelled(releases: Releases, text: str) -> list[str]:
    """A line that each host says, in the order of their names."""
    width = max(map(len, releases.hosts)) + 2
    return [f"{f'[{name}]':{width}} {text}" for name in sorted(releases.hosts)]


def test_ctrl_c_reaches_each_host_and_the_worst_end_counts(
    lab: Lab, releases: Releases, words: Words
) -> None:
    dies = '[ "$(hostname)" != cheetah ] || trap "echo caught; kill -KILL $$" INT'
    script = CATCHES.replace("echo ready", f"{dies}; echo ready")
    process = start(*words("exec", "--", "sh", "-c", script), own_group=True)
    with killed_at_the_end(process):
        assert process.stdout
        ready = {process.stdout.readline().rstrip("\n") for _ in releases.hosts}
        assert ready == {*labelled(releases, "ready")}
        os.killpg(process.pid, signal.SIGINT)
        result = finish(process, check=False)
    assert result.returncode == 128 + signal.SIGKILL
    assert sorted(result.stdout.splitlines()) == labelled(releases, "caught")
    assert "[cheetah] exit status 137" in result.stderr
    assert "[drakar]  exit status 5" in result.stderr
    for name in releases.hosts:
        assert not lab.ssh(name, LEFT).stdout


def test_it_ends_when_nobody_reads_it_any_more(lab: Lab, releases: Releases, words: Words) -> None:
    process = start(*words("exec", "--", "yes"), own_group=True)
    with killed_at_the_end(process):
        assert process.stdout and process.stdout.readline().endswith(" y\n")
        process.stdout.close()
        assert process.stderr and not process.stderr.read()
        assert process.wait(30) == 141
    for name in releases.hosts:
        until(lambda name=name: not lab.ssh(name, LEFT).stdout, "it is gone")


def test_with_a_terminal_it_is_interactive(words: Words) -> None:
    resized = "trap 'stty size' WINCH; stty size; until stty size | grep -q ^7; do sleep 0.1; done"
    # On a busy machine systemd-run does not wait for what the kernel has yet to pass on.
    catches = CATCHES.replace("exit 5", "sleep 0.3; exit 5")
    script = f'echo go; read line; echo "<$line>"; {resized}; {catches}'
    told = words("exec", "--once", "--", "sh", "-c", script)
    with Terminal(*told) as terminal:
        terminal.until_said(b"go\r\n")
        terminal.type(b"typed\n")
        terminal.until_said(b"<typed>\r\n24 80\r\n")
        fcntl.ioctl(terminal.end, termios.TIOCSWINSZ, struct.pack("HHHH", 7, 70, 0, 0))
        terminal.until_said(b"\r\n7 70\r\n")
        terminal.until_said(b"ready\r\n")
        terminal.type(b"\x03")
        terminal.until_said(b"caught")
        assert terminal.exit_code() == 5
        assert terminal.said.count(b"typed") == 2  # once by the terminal, which shows it
        assert b"command?" not in terminal.said


# --- Consul's own commands, and its UI ---


def test_a_command_of_consuls_is_as_typed_there(lab: Lab, words: Words) -> None:
    def consul(*typed: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        told = words("consul", "--", *typed)
        command = [str(BIN / told[0]), *told[1:]]
        return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, check=False)

    members = consul("members", "-status=alive")
    assert members.returncode == 0, members.stderr
    assert {"drakar", "cheetah"} <= {
        line.split()[0] for line in members.stdout.decode().split("\n")[1:-1]
    }
    # Consul itself takes no line break in a key.
    odd, content = """uwsgi-consul-fleet/a  b$HOME*%i'ü\\n\"""", os.urandom(300_000)
    assert consul("kv", "put", odd, "-", given=content).returncode == 0
    assert consul("kv", "get", odd).stdout == content + b"\n"
    assert consul("kv", "delete", odd).returncode == 0
    missing = consul("kv", "get", odd)
    assert missing.returncode == 1 and b"No key exists at" in missing.stderr
    # Another's key is not the deploy's to write, and who reads it as management is written down.
    refused = consul("kv", "put", "greeting", "hello")
    assert refused.returncode == 1 and b"Permission denied" in refused.stderr
    told = words("consul", "--management", "--yes", "--", "kv", "get", "-keys")
    listed = subprocess.run(
        [str(BIN / told[0]), *told[1:]], cwd=ROOT, capture_output=True, check=True
    )
    assert b"uwsgi-consul-fleet/" in listed.stdout
    # Who changed something, and nothing of what it was changed to.
    entries = json.loads(run(*words("audit", "--json", "--last", "4")).stdout)
    assert [each["what"] for each in entries] == [
        "consul kv put",
        "consul kv delete",
        "consul kv put",
        "consul kv get as management",
    ]
    assert entries.pop(2)["outcome"] == "failed"
    assert {(each["outcome"], *each["changed"]) for each in entries} == {("ok", "drakar")}
    assert "HOME" not in json.dumps(entries)
    # Nor what sudo logs: kv put 'u.
    look = "sudo journalctl --quiet --grep 'a3YgcHV0ICd[1]|kv pu[t]'"
    assert not lab.ssh("drakar", look, check=False).stdout


RUNS = "pgrep -cf 'consul watc[h]'"


def test_ctrl_c_ends_a_command_of_consuls(lab: Lab, words: Words) -> None:
    told = words("consul", "--host", "cheetah", "--", "watch", "-type=services", "cat; echo")
    with Terminal(*told) as terminal:
        terminal.until_said(SERVICE.encode())
        assert lab.ssh("cheetah", RUNS).stdout == "1\n"
        terminal.type(b"\x03")
        terminal.exit_code()
        assert b"which command" not in terminal.said
    assert lab.ssh("cheetah", RUNS, check=False).stdout == "0\n"
    process = start(*told, own_group=True)
    with killed_at_the_end(process):
        assert process.stdout and SERVICE in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        finish(process, check=False)
    assert lab.ssh("cheetah", RUNS, check=False).stdout == "0\n"


def test_the_ui_shows_what_is_registered(words: Words, tmp_path: Path) -> None:
    process = start(*words("ui", "--token"), own_group=True)
    with killed_at_the_end(process):
        assert process.stdout
        said = process.stdout.readline() + process.stdout.readline()
        found = re.fullmatch(
            r"drakar: log in with this token, which can only read: (?P<token>[0-9a-f-]{36})\n"
            r"drakar: Consul is at (?P<url>http://127\.0\.0\.1:(?P<port>\d+))/ui/ until Ctrl-C\n",
            said,
        )
        assert found, said + process.stderr.read() if process.stderr else said
        with browser(tmp_path) as it:
            it.open(f"{found['url']}/ui/dc1/services")
            it.until_shown("Log in")
            it.click("label[for=login-toggle]")
            it.type("input[type=password]", found["token"])
            it.click("form button[type=submit]")
            it.until_shown("Logout")
            it.open(f"{found['url']}/ui/dc1/services/{SERVICE}")
            for shown in ("cheetah", "drakar", "server2"):
                it.until_shown(shown)
        taken = run(*words("ui", "--host", "cheetah", "--port", found["port"]), check=False)
        assert (taken.returncode, taken.stderr) == (
            2,
            f"--port {found['port']}: Address already in use\n",
        )
        os.killpg(process.pid, signal.SIGINT)
        assert finish(process, check=True).stderr == ""


# --- Logs ---

PREFIX = re.compile(
    rf"(\d\d:\d\d:\d\d\.\d{{3}}) ({'|'.join(HOSTS)}) +(server\d|trial) +(\S+) +\| (.*)"
)


def told(text: str) -> list[tuple[str, ...]]:
    """Time, host, instance, release and what it says, of each line."""
    found = [PREFIX.fullmatch(line) for line in text.splitlines()]
    assert found
    return [match.groups() for match in found if match]


def test_the_journals_of_all_in_the_order_of_time(
    releases: Releases, release: str, clients: Load, tmp_path: Path
) -> None:
    """Also where one of the hosts is down."""
    inventory = tmp_path / "fleet.py"
    ghost = ("ghost", {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "address": "10.9.9.9"})
    inventory.write_text(releases.fleet.path.read_text())
    acl_tokens.the_same(inventory, releases.fleet.path, "drakar")
    with inventory.open("a") as file:
        file.write(f"app_servers += [{ghost!r}]\n")
    options = ["--since", "5s", "--grep", "^request /$"]
    result = run("invoke", "logs", *options, "--inventory", str(inventory), check=False)
    assert result.returncode == 1
    assert "ghost (127.0.0.1): no SSH connection" in result.stderr
    lines = told(result.stdout)
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)
    servers = {(host, name) for host in releases.hosts for name in ("server1", "server2")}
    assert {line[1:3] for line in lines} == servers
    assert {line[3] for line in lines} == {release}
    assert "\x1b" not in result.stdout
    # So with a command: it runs where it can, and the end says that this was not everywhere.
    told_all = run("invoke", "exec", "--inventory", str(inventory), "--", "hostname", check=False)
    assert told_all.returncode == 255
    assert "ghost (127.0.0.1): no SSH connection" in told_all.stderr
    said = sorted(line.split() for line in told_all.stdout.splitlines())
    assert said == [[f"[{name}]", name] for name in sorted(releases.hosts)]


# --- Hooks ---


@pytest.fixture
def hook(releases: Releases) -> Iterator[Callable[..., None]]:
    """Writes hooks, which are gone when the test ends."""
    folder = releases.fleet.path.parent / "hooks"
    folder.mkdir()

    def write(name: str, *lines: str) -> None:
        path = folder / name
        path.unlink(missing_ok=True)  # a shell may be reading it
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)

    yield write
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


Hook = Callable[..., None]
RECORD = 'echo "$FLEET_HOOK $FLEET_APP=$FLEET_RELEASE $FLEET_HOSTS $FLEET_OUTCOME" >>{}'
ALL = ("before-deploy", "after-deploy", "after-failure", "before-switch", "after-switch")


@pytest.fixture
def recorded(hook: Hook, tmp_path: Path) -> Callable[[], list[str]]:
    """All hooks write down what they are run for; returns that, and forgets it."""
    path = tmp_path / "recorded"
    for name in ALL:
        hook(name, RECORD.format(path))

    def read() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.replace(f"{SERVICE}=", "").strip() for line in lines]

    return read


def gone(pid: Path) -> bool:
    return not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_hooks_frame_a_run_and_each_switch(
    lab: Lab,
    releases: Releases,
    load: Load,
    words: Words,
    hook: Hook,
    recorded: Callable[[], list[str]],
    tmp_path: Path,
) -> None:
    """Another run waits for its end, and then finds nothing to do; logs go on over both."""
    before, begin = releases.serving, time.time()
    go, record = tmp_path / "go", RECORD.format(tmp_path / "recorded")
    hook("before-deploy", record, f"until [ -e {go} ]; do sleep 0.1; done")
    hook("after-deploy", record, "sleep 60 & echo all done; exit 3")
    follow = start(*words("logs", "--follow", "--since", "1s"), own_group=True)
    first, name, deploy = releases.start()
    with ThreadPoolExecutor(1) as pool, killed_at_the_end(follow), killed_at_the_end(first):
        following = pool.submit(finish, follow, check=False)  # else its pipe would be full
        until((tmp_path / "recorded").exists, "the first has begun", 60)
        second = releases.fleet.start_deploy(*deploy, "--data", "wait=60s")
        with killed_at_the_end(second):
            assert second.stderr
            assert any("runs a deploy" in x and "waits for it" in x for x in second.stderr)
            go.touch()
            said = output(finish(first, check=True))
            assert "stays on" in output(finish(second, check=True))
        releases.serves(name)
        os.killpg(follow.pid, signal.SIGINT)
        followed = following.result()
    assert recorded() == framed(name, releases.hosts)
    assert "after-deploy: all done" in said
    assert "after-deploy: exit status 3" in said
    assert followed.returncode == 130
    assert {line[3] for line in told(followed.stdout)} >= {before, name}
    left = "pgrep -x journalctl"
    until(
        lambda: all(lab.ssh(host, left, check=False).returncode for host in releases.hosts),
        "no journalctl is left on a host",
    )
    load.window(begin).expect(passing=2 * len(releases.hosts), releases={before, name})


def framed(name: str, hosts: Sequence[str]) -> list[str]:
    """What hooks around a good run are told, which goes from host to host."""
    about = f"{name} {' '.join(hosts)}"
    switches = [
        line
        for host in hosts
        for line in (f"before-switch {name} {host}", f"after-switch {name} {host} ok")
    ]
    return [f"before-deploy {about}", *switches, f"after-deploy {about} ok"]


def test_a_hook_that_refuses_ends_the_run_before_it_begins(
    releases: Releases, load: Load, hook: Hook, recorded: Callable[[], list[str]], words: Words
) -> None:
    hook("before-deploy", "echo not on a Friday; exit 3")
    said = releases.refused("")
    assert "before-deploy: not on a Friday" in said
    assert "before-deploy: exit status 3. Nothing was touched" in said
    [entry] = json.loads(run(*words("audit", "--json", "--last", "1")).stdout)
    assert (entry["outcome"], entry["changed"]) == ("failed", [])
    assert not recorded()
    assert releases.names() == {host: {releases.serving} for host in releases.hosts}


def test_a_refused_switch_puts_the_others_back(
    releases: Releases, load: Load, hook: Hook, recorded: Callable[[], list[str]], tmp_path: Path
) -> None:
    record = RECORD.format(tmp_path / "recorded")
    hook("before-switch", record, '[ "$FLEET_HOSTS" = drakar ] || exec sleep 60')
    begin = time.time()
    said = releases.refused("", "--data", "hook_timeout=2")
    assert "before-switch: did not end within 2 s (hook_timeout): not switched" in said
    new, old = recorded()[0].split()[1], releases.serving
    load.window(begin).expect(passing=2 * len(releases.hosts), releases={old, new})
    releases.expect_everywhere()


def test_ctrl_c_in_a_hook_ends_it_and_the_run(
    releases: Releases, load: Load, hook: Hook, recorded: Callable[[], list[str]], tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    hook("before-switch", f"echo $$ >{pid}.part", f"mv {pid}.part {pid}", "exec sleep 60")
    process, name, _ = releases.start()
    with killed_at_the_end(process):
        until(pid.exists, "the hook runs", 60)
        os.killpg(process.pid, signal.SIGINT)
        result = finish(process, check=False)
    assert result.returncode == 130
    assert gone(pid)
    assert recorded() == [
        f"before-deploy {name} {' '.join(releases.hosts)}",
        f"after-failure {name} {' '.join(releases.hosts)} interrupted",
    ]
    assert releases.names() == {host: {releases.serving} for host in releases.hosts}


def test_a_roll_back_has_them_too(
    releases: Releases, load: Load, recorded: Callable[[], list[str]], hook: Hook, tmp_path: Path
) -> None:
    """One is interrupted in a hook; another has waited for its end."""
    pid = tmp_path / "pid"
    hook("before-deploy", f"echo $$ >{pid}.part", f"mv {pid}.part {pid}", "exec sleep 60")
    told = ["invoke", "rollback", releases.before, "--inventory", str(releases.fleet.path)]
    first = start(*told, own_group=True)
    with killed_at_the_end(first):
        until(pid.exists, "the hook runs", 60)
        hook("before-deploy", RECORD.format(tmp_path / "recorded"))
        second = start(*told, "--wait", "60s", own_group=True)
        with killed_at_the_end(second):
            assert second.stdout
            assert any("runs a rollback" in x and "waits for it" in x for x in second.stdout)
            os.killpg(first.pid, signal.SIGINT)
            assert finish(first, check=False).returncode == 130
            assert gone(pid)
            finish(second, check=True)
    assert recorded() == framed(releases.before, releases.hosts)
