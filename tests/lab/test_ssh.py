"""Every way to a host and to root on it: the deploy and the commands go it alike.

One machine is reached under many names, by way of the other where a name says so.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from consul_processes import until
from fleet_commands import Fleet, output, run
from lab_commands import Lab
from leading import leading_to
from terminal import Terminal

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.inventory.reading import read
from uwsgi_consul_fleet.ssh import client, options
from uwsgi_consul_fleet.ssh import config as ssh_config
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify import hosts as verified

pytestmark = pytest.mark.takes(100)

GATE, TARGET = "gate", "target"
PASSWORD = "corr€ct horse ' battery"
WRONG = "battery staple"
SETUP = """
set -e
keys=~debian/.ssh/authorized_keys
for user in carol dave; do
    useradd --create-home --shell /bin/bash "$user"
    echo "$user:$PASSWORD" | chpasswd
    install -D -m 600 -o "$user" "$keys" "/home/$user/.ssh/authorized_keys"
done
echo 'carol ALL=(ALL) ALL' >/etc/sudoers.d/carol
install -D -m 600 "$keys" /root/.ssh/authorized_keys
echo "root:$PASSWORD" | chpasswd
# Sixty at once; by itself it drops some of more than ten.
printf '%s\\n' 'Port 22' 'Port 2222' 'MaxStartups 200' 'PermitRootLogin prohibit-password' \
    'PasswordAuthentication yes' >/etc/ssh/sshd_config.d/10-test.conf
systemctl reload ssh
"""

Hosts = dict[str, dict[str, Any]]


class Ways:
    """Names for the target, each with what the ssh configuration and the inventory say of it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.folder = folder
        self.lab_commands = lab
        self.lab = lab.checkout / ".lab"
        self.addresses = {name: lab.address(name) for name in (GATE, TARGET)}
        self.known_hosts = self.lab / "known_hosts"
        names = [line.split()[0].split(",") for line in self.known_hosts.read_text().splitlines()]
        self.ipv6 = next(address for name, _, address in names if name == TARGET)
        self.config = folder / "ssh_config"
        self.fleet = Fleet(folder / "inventory.py")

    def section(self, name: str, *lines: str, to: str = TARGET) -> str:
        known = "" if any("UserKnownHostsFile" in line for line in lines) else self.known_hosts
        said = [
            *lines,
            f"HostName {self.addresses[to]}",
            *([f"UserKnownHostsFile {known}"] if known else []),
            "StrictHostKeyChecking yes",
            "User debian",
            *(
                []
                if "IdentityFile" in " ".join(lines)
                else [f"IdentityFile {self.lab / 'id_ed25519'}"]
            ),
            "IdentitiesOnly yes",
        ]
        return f"Host {name}\n" + "".join(f"    {line}\n" for line in said)

    def use(self, config: str, hosts: Hosts) -> None:
        """Write both files; each host has an address of its own, as if it were another."""
        self.config.write_text(config)
        ssh_config.read.cache_clear()  # for what asks in this process
        common = {"ssh_config_file": str(self.config)}
        listed = [
            (name, {**common, "address": f"10.255.0.{number}", **data})
            for number, (name, data) in enumerate(hosts.items(), start=1)
        ]
        self.fleet.hosts(listed[:1], listed)

    def fingerprint(self, name: str) -> str:
        """As the machine itself says it."""
        look = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
        return self.lab_commands.ssh(name, look).stdout.split()[1]

    def problems(self) -> dict[str, str]:
        """What `invoke releases` says of each host."""
        command = ("invoke", "releases", "--json", "--inventory", str(self.fleet.path))
        found = json.loads(run(*command, check=False).stdout)
        return {each["node"]: each["problem"] for each in found}


@pytest.fixture(scope="module")
def ways(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    Lab(ROOT).up(GATE, TARGET)  # of which nothing was installed on any
    quoted = PASSWORD.replace("'", "'\\''")
    script = (f"PASSWORD='{quoted}'" + SETUP).replace("'", "'\\''")
    lab.ssh(TARGET, f"sudo bash -c '{script}'")
    yield Ways(lab, tmp_path_factory.mktemp("ways"))
    lab.down(GATE, TARGET)


@contextmanager
def agent(path: Path, key: Path) -> Iterator[None]:
    """An ssh agent that holds this key."""
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        until(path.is_socket, "the agent is there", 10)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True)
        yield
    finally:
        process.terminate()
        process.wait()


def as_reached(ways: Ways, hosts: Hosts) -> None:
    """The deploy reads each host's state, and the commands ask it."""
    deploy = ways.fleet.deploy("--dry")
    for name in hosts:
        assert re.search(rf"\[{name}\] +Ready", output(deploy)), output(deploy)
    assert ways.problems() == {name: f"{name}: nothing was deployed to it" for name in hosts}
    (told,) = {
        each.detail for each in verified.ask(read(ways.fleet.path, options.address)).differences
    }
    assert told == "has no uWSGI; deploy to it"
    for name in ("carol", "dave", "twice", "ported"):
        command = ("invoke", "consul", "--host", name, "--inventory", str(ways.fleet.path))
        found = run(*command, "--", "version", check=False)
        assert (found.returncode, "consul: not found" in found.stderr) == (127, True), found.stderr


def test_every_way_leads_there(ways: Ways) -> None:
    (ways.folder / "more.d").mkdir()
    (ways.folder / "more.d/one.conf").write_text(ways.section("included"))
    public, locked = ways.folder / "public", ways.folder / "locked"
    shutil.copy(ways.lab / "id_ed25519.pub", public)
    shutil.copy(ways.lab / "id_ed25519", locked)
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(locked)]
    subprocess.run(command, check=True)
    gate = ways.section("gate", to=GATE)
    through = f"ssh -F {ways.config} -W %h:%p gate"
    config = (
        "Include more.d/*.conf\n"
        + gate
        + ways.section("jumped", "ProxyJump gate")
        + ways.section("twice", "ProxyJump gate,jumped", to=GATE)
        + ways.section("commanded", f"ProxyCommand {through}")
        + ways.section("held", f"IdentityAgent {ways.folder / 'agent'}", f"IdentityFile {public}")
        + ways.section("spoken", "IdentityFile none")
        + ways.section("newer", f"HostName {ways.ipv6}")
        + ways.section("ported", "HostKeyAlias target")
        + ways.section("carol dave root locked")
    )
    hosts: Hosts = {
        "jumped": {},
        "twice": {},
        "commanded": {},
        "included": {},
        "carol": CAROL,
        "dave": DAVE,
        "root": {"ssh_user": "root"},
        "spoken": {**DAVE, "ssh_password": PASSWORD},
        "locked": {"ssh_key": str(locked), "ssh_key_password": "open sesame"},
        "held": {},
        "newer": {},
        "ported": {"ssh_port": 2222},
    }
    ways.use(config, hosts)
    with agent(ways.folder / "agent", ways.lab / "id_ed25519"):
        as_reached(ways, hosts)


CAROL = {"ssh_user": "carol", "_sudo": True, "_sudo_password": PASSWORD}
DAVE = {"ssh_user": "dave", "_sudo": False, "_su_user": "root", "_su_password": PASSWORD}
# The password comes in as what is looked for, so that looking for it does not show it.
SEARCH = """
cd /proc
grep -alFf /dev/stdin [0-9]*/cmdline [0-9]*/environ
[ $? = 1 ] && echo "nobody shows it"
id -u
"""


@pytest.mark.parametrize(
    "data",
    [CAROL, DAVE, {"_sudo": True}, {"_sudo": True, "_use_sudo_login": True}, {"ssh_user": "root"}],
    ids=["sudo's password", "su's password", "sudo", "a login", "root"],
)
def test_a_script_reads_what_it_is_sent_and_nobody_the_password(
    ways: Ways, data: dict[str, Any]
) -> None:
    ways.use(ways.section("*"), {"web": data})
    (host,) = read(ways.fleet.path, options.address).hosts
    with ssh.connect(host) as connection:
        found = ssh.run_script(connection, SEARCH, PASSWORD.encode())
        assert (found.stdout.decode(), found.stderr) == ("nobody shows it\n0\n", "")
        sent = os.urandom(3_000_000)
        assert ssh.run_script(connection, "cat\nexit 3", sent) == ssh.Result(sent, "", 3)


LISTEN = """
systemd-run --quiet --collect --unit=listener python3 -m http.server --bind 127.0.0.1 8123
until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8123))' 2>/dev/null; do
    sleep 0.1
done
"""


@pytest.mark.parametrize(
    "says", [b"", b"Not allowed at this time\r\n", b"SSH-2.0-x\r\n\0\0\0\0\0\0\0\0"]
)
def test_who_is_dropped_tries_once_more(
    ways: Ways, says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an sshd that has more of them at the same time than it takes."""
    monkeypatch.setattr(client, "AT_ONCE", 30)  # also on a machine that has much to do
    ways.use(ways.section("web", "HostName 127.0.0.1", "HostKeyAlias target"), {})
    met = []

    def drop_the_first(caller: socket.socket) -> bool:
        met.append(caller)
        if len(met) == 1:
            caller.sendall(says)
        return len(met) > 1

    with leading_to((ways.addresses[TARGET], 22), drop_the_first) as port:
        data = {"ssh_config_file": str(ways.config), "ssh_port": port}
        client.connect(options.of("web", data)).close()
    assert len(met) == 2


def test_a_tunnel_outlives_a_restart_of_what_it_leads_to(ways: Ways) -> None:
    ways.use(ways.section("*"), {"web": {}})
    (host,) = read(ways.fleet.path, options.address).hosts

    def status(port: int) -> int:
        asked = HTTPConnection("127.0.0.1", port, timeout=5)
        asked.request("GET", "/")
        return asked.getresponse().status

    with ssh.connect(host) as connection:
        with pytest.raises(UnreachableError, match="web: nothing listens on its port 8123"):
            ssh.tunnel(connection, 8123).__enter__()
        assert ssh.run_script(connection, LISTEN).exit_code == 0
        with ssh.tunnel(connection, 8123) as port:
            assert status(port) == 200
            ssh.run_script(connection, "systemctl stop listener")
            with pytest.raises((OSError, HTTPException)):
                status(port)
            assert ssh.run_script(connection, LISTEN).exit_code == 0
            assert status(port) == status(port) == 200
            ssh.run_script(connection, "systemctl stop listener")


def test_what_can_not_be_is_told_with_its_reason(ways: Ways) -> None:
    other = ways.folder / "other_hosts"
    keys = dict(line.split(" ", 1) for line in ways.known_hosts.read_text().splitlines())
    of_gate = next(key for names, key in keys.items() if ways.addresses[GATE] in names.split(","))
    other.write_text(f"# a comment\n{ways.addresses[TARGET]} {of_gate}\n")
    nobody = ways.folder / "no_hosts"
    config = (
        ways.section("gate", f"UserKnownHostsFile {nobody}", to=GATE)
        + ways.section("jumped", "ProxyJump gate")
        + ways.section("changed", f"UserKnownHostsFile {other}")
        + ways.section("failing", "ProxyCommand echo no way >&2; false")
        + ways.section("away", "Port 9")
        + ways.section("*")
    )
    without = {"ssh_user": "dave", "_sudo": False}
    hosts: Hosts = {
        "wrong": {"ssh_user": "carol", "_sudo_password": WRONG},
        "missing": {"ssh_user": "carol"},
        "su-wrong": {**without, "_su_user": "root", "_su_password": WRONG},
        "su-missing": {**without, "_su_user": "root"},
        "nobody": without,
        "no-sudoer": {"ssh_user": "dave", "_sudo_password": PASSWORD},
        "stranger": {"ssh_user": "eve"},
        "jumped": {},
        "changed": {"ssh_strict_host_key_checking": "no"},
        "failing": {},
        "away": {},
    }
    ways.use(config, hosts)
    before = other.read_text()
    problems = ways.problems()
    reasons = {
        "wrong": "sudo: wrong password: _sudo_password for wrong is not right",
        "missing": "sudo: a password is required: set _sudo_password for missing",
        "su-wrong": "su: Authentication failure; is _su_password for su-wrong right?",
        "su-missing": "su: a password is required: set _su_password for su-missing",
        "nobody": "commands run as dave (uid 1002), who is not root: set _sudo = True for nobody",
        "no-sudoer": "dave is not in the sudoers file",
        "stranger": f"it does not let eve in; tried: {ways.lab / 'id_ed25519'}",
        "jumped": "by way of gate",
        "changed": f"its host key has changed: {other} line 2 has another one",
        "failing": "its ProxyCommand says: no way",
        "away": "Connection refused",
    }
    for name, reason in reasons.items():
        assert reason in problems[name], problems[name]
        assert f"{name} ({ways.addresses[TARGET]})" in problems[name]
        assert PASSWORD not in problems[name] and WRONG not in problems[name]
    assert "is in no known_hosts file" in problems["jumped"]
    assert f"try: ssh -F {ways.config} changed" in problems["changed"]
    assert other.read_text() == before and not nobody.exists()
    for found in verified.ask(read(ways.fleet.path, options.address)).differences:
        name = found.subject.removeprefix("node ")
        assert found.kind == "unreachable" and reasons[name] in found.detail, found
    listed = output(ways.fleet.build("--list", check=False))
    for name in ("wrong", "missing", "nobody", "changed"):
        assert problems[name] in listed


def test_the_deploy_says_the_same(ways: Ways) -> None:
    """About connections; becoming root is pyinfra's own there, and it asks for a password."""
    hosts: Hosts = {"stranger": {"ssh_user": "eve"}, "away": {"ssh_port": 9}}
    ways.use(ways.section("*"), hosts)
    deploy = output(ways.fleet.deploy("--dry", check=False))
    for name, problem in ways.problems().items():
        assert re.search(rf"\[{name}\] +{re.escape(problem)}", deploy), deploy


def test_strangers_are_shown_at_once_and_asked_about_once(ways: Ways) -> None:
    """A jump host, two that lie behind it, one that does not, and one that is away."""
    known = ways.folder / "known_none"
    lines = (f"UserKnownHostsFile {known}", "StrictHostKeyChecking ask", "HashKnownHosts no")
    config = ways.section("gate", *lines, to=GATE)
    config += ways.section("near", *lines, "HostKeyAlias near")
    for name in ("far1", "far2"):
        config += ways.section(name, *lines, f"HostKeyAlias {name}", "ProxyJump gate")
    config += ways.section("away", *lines, "Port 9")
    names = ("near", "far1", "far2", "away")
    ways.use(config, {name: {} for name in names})
    print_of = {name: ways.fingerprint(name) for name in (GATE, TARGET)}
    shown = {"near": TARGET, "gate": GATE}
    first = "\n".join(
        f"  {name} ({ways.addresses[machine]})  ssh-ed25519 {print_of[machine]}"
        for name, machine in shown.items()
    )

    trusts = ("invoke", "ssh.trust", "--inventory", str(ways.fleet.path))
    shows = ("invoke", "releases", "--inventory", str(ways.fleet.path))
    deploys = ("pyinfra", str(ways.fleet.path), "exec", "--", "true")
    unasked = ("pyinfra", "-y", *deploys[1:])
    for command in (deploys, unasked, shows, trusts):
        refused = run(*command, check=False)
        assert refused.returncode and "Connected" not in output(refused)
        assert first in output(refused), output(refused)
        assert ("say --yes" if command is trusts else " ".join(trusts)) in output(refused)
    with Terminal(*shows) as terminal:
        terminal.until_said(b"[yes/no] ")
        terminal.type(b"no\n")
        assert terminal.exit_code() == 2
        assert b"you said no; nothing was touched" in terminal.said
    with Terminal(*unasked) as terminal:
        assert terminal.exit_code() == 1
        assert b"[yes/no]" not in terminal.said
    assert not known.exists()

    with Terminal(*deploys) as terminal:
        for question in (1, 2):
            terminal.until_said(b"[yes/no] ")
            assert terminal.said.count(b"far1") == question - 1
            terminal.said = terminal.said.replace(b"[yes/no] ", b"")
            terminal.type(b"yes\n")
        terminal.until_said(b"away (")  # and pyinfra asks whether to go on without it
        terminal.type(b"\n")
        terminal.exit_code()
        assert terminal.said.count(b"Connected") == 3 and b"[yes/no]" not in terminal.said
    met = known.read_text()
    assert len(met.splitlines()) == 4

    known.unlink()
    trusted = run(*trusts, "--yes", check=False)
    assert trusted.returncode == 2 and "away (" in trusted.stderr
    assert first in trusted.stdout and "4 remembered" in trusted.stdout
    assert sorted(known.read_text().splitlines()) == sorted(met.splitlines())
    said = output(run(*shows, check=False))
    assert "never met" not in said and said.count("nothing was deployed to it") == 3

    known.unlink()
    ways.use(config, {name: {"ssh_host_keys": "first"} for name in names})
    said = output(run(*shows, check=False))
    told = f"its host key, ssh-ed25519 {print_of[TARGET]}, is trusted as the first that it shows"
    assert said.count(told) == 3 and print_of[GATE] in said
    assert sorted(known.read_text().splitlines()) == sorted(met.splitlines())


@pytest.mark.parametrize(("program", "hashed"), [("invoke", "yes"), ("pyinfra", "no")])
def test_sixty_first_contacts_are_all_remembered(ways: Ways, program: str, hashed: str) -> None:
    known = ways.folder / f"known_{program}"
    before = "# mine\nnot a line that can be understood\n|1|broken|hash ssh-ed25519 AAAA\nlast a b"
    known.write_text(before)
    hosts: Hosts = {f"host{number:02}": {} for number in range(60)}
    # All sixty exchange keys at the same time, each within this.
    lines = (f"UserKnownHostsFile {known}", f"HashKnownHosts {hashed}", "ConnectTimeout 60")
    config = "".join(ways.section(name, f"HostKeyAlias {name}", *lines) for name in hosts)
    for mode, some in (("accept-new", list(hosts)), ("yes", list(hosts)[:9])):
        ways.use(config, {name: {"ssh_strict_host_key_checking": mode} for name in some})
        command = ["invoke", "releases", "--inventory", str(ways.fleet.path)]
        if program == "pyinfra":
            command = ["pyinfra", str(ways.fleet.path), "exec", "--", "true"]
        said = output(run(*command, check=False))
        assert "connection lost" not in said and "no SSH connection" not in said, said
        text = known.read_text()
        assert text.startswith(before + "\n")
        assert len(text.removeprefix(before + "\n").splitlines()) == len(hosts)
    for name in hosts:
        found = subprocess.run(["ssh-keygen", "-F", name, "-f", str(known)], capture_output=True)
        assert b"ssh-ed25519" in found.stdout
