"""What pyinfra's keys mean for a connection, known_hosts files, and becoming root."""

import getpass
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import paramiko
import pytest
from consul_processes import until

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.ssh import client, config, hostkeys, options, root, transport
from uwsgi_consul_fleet.ssh.hostkeys import HostKeyError, Policy
from uwsgi_consul_fleet.ssh.options import Options


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setattr(config, "SYSTEM", tmp_path / "none")
    config.read.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, {"host": "web", "port": 22, "user": getpass.getuser(), "mode": "ask"}),
        ({"ssh_hostname": "10.0.0.1"}, {"host": "10.0.0.1", "name": "web"}),
        ({"ssh_user": "me", "ssh_port": 2222}, {"user": "me", "key_name": "[web]:2222"}),
        ({"ssh_port": "2222"}, {"port": 2222}),
        ({"ssh_password": "secret"}, {"password": "secret"}),
        ({"ssh_key": "~/k", "ssh_key_password": "p"}, {"key": "~/k", "identities": ()}),
        ({"ssh_allow_agent": False}, {"agent": ""}),
        ({}, {"agent": "/run/agent"}),
        ({"ssh_look_for_keys": False}, {"identities": ()}),
        ({"ssh_forward_agent": True}, {"forward_agent": True}),
        ({"ssh_known_hosts_file": "/k"}, {"known_hosts": ("/k",)}),
        ({"ssh_strict_host_key_checking": "yes"}, {"mode": "yes"}),
        ({"ssh_strict_host_key_checking": "off"}, {"mode": "no"}),
        ({"ssh_host_keys": "first"}, {"mode": "accept-new"}),
        ({"ssh_host_keys": "first", "ssh_strict_host_key_checking": "yes"}, {"mode": "yes"}),
        (
            {"ssh_connect_retries": 3, "ssh_connect_retry_max_delay": 9},
            {"retries": 3, "retry_delay": (0.1, 9.0)},
        ),
        (
            {
                "ssh_paramiko_connect_kwargs": {
                    "transport_factory": "<function nodelay_transport at 0x7>",
                    "passphrase": "p",
                    "allow_agent": False,
                    "banner_timeout": 60,
                }
            },
            {"key_password": "p", "agent": "", "more": {"banner_timeout": 60}},
        ),
        (
            {"_sudo": True, "_sudo_user": "admin", "_if": 1, "app_name": "x", "ssh_user": "me"},
            {"root": {"_sudo": True, "_sudo_user": "admin"}},
        ),
        ({"_sudo": True, "ssh_user": "root", "_env": {"A": 1}}, {"root": {"_env": {"A": 1}}}),
    ],
)
def test_what_the_inventory_says(data: dict[str, Any], expected: dict[str, Any]) -> None:
    found = options.of("web", data)
    assert {key: getattr(found, key) for key in expected} == expected


def test_the_inventory_wins_over_the_configuration(home: Path) -> None:
    file = home / "conf"
    file.write_text(
        "Host web\n  User a\n  Port 1\n  StrictHostKeyChecking yes\n  HostName 10.0.0.1\n"
    )
    said = {"ssh_config_file": str(file), "ssh_user": "b", "ssh_strict_host_key_checking": "no"}
    found = options.of("web", said)
    assert (found.user, found.port, found.mode, found.host) == ("b", 1, "no", "10.0.0.1")
    assert found.command_line == f"ssh -F {file} web"


def test_secrets_are_not_shown() -> None:
    said = {"ssh_password": "pss", "ssh_key_password": "kss", "_sudo_password": "sss"}
    shown = repr(options.of("web", {**said, "_su_password": "uss"}))
    assert "ss'" not in shown


def test_what_another_process_is_told_holds_no_functions() -> None:
    kwargs = {"transport_factory": print, "banner_timeout": 3}
    data = {"ssh_paramiko_connect_kwargs": kwargs, "_sudo": True, "_if": print, "app_name": "x"}
    assert options.plain(data) == {
        "ssh_paramiko_connect_kwargs": {"banner_timeout": 3},
        "_sudo": True,
    }


@pytest.mark.parametrize("address", ["::1", "fd00::5"])
def test_a_host_may_have_an_ipv6_address_alone(address: str) -> None:
    assert options.address("web", {"ssh_hostname": address}) == address


def test_of_both_kinds_of_addresses_the_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(10, 1, 6, "", ("fd00::5", 0, 0, 0)), (2, 1, 6, "", ("10.0.0.5", 0))]
    monkeypatch.setattr(options.socket, "getaddrinfo", lambda *_: both)
    assert options.address("web", {}) == "10.0.0.5"


# --- known_hosts -----------------------------------------------------------------------------

KEY, OTHER = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
RSA = paramiko.RSAKey.generate(1024)


def known_as(folder: Path, *lines: str, **more: Any) -> Options:
    file = folder / "known_hosts"
    if lines:
        file.write_text("".join(f"{line}\n" for line in lines))
    said = {"known_hosts": (str(file),), "key_name": "web", **more}
    return Options("web", "web", 22, "me", **said)


def meet(said: Options, key: paramiko.PKey = KEY) -> None:
    Policy(said).missing_host_key(paramiko.SSHClient(), "ignored", key)


def line(names: str, key: paramiko.PKey = KEY, marker: str = "") -> str:
    return f"{marker}{names} {key.get_name()} {key.get_base64()}"


@pytest.mark.parametrize(
    "names",
    ["web", "db,web,10.0.0.1", "w*", "we?", paramiko.hostkeys.HostKeys.hash_host("web")],
    ids=["alone", "among others", "star", "question mark", "hashed"],
)
@pytest.mark.parametrize("mode", ["yes", "no", "accept-new", "ask"])
def test_a_known_host_is_let_pass_and_a_changed_one_never(
    tmp_path: Path, names: str, mode: str
) -> None:
    said = known_as(tmp_path, "# mine", "rubbish", "web AAA", line(names), mode=mode)
    before = Path(said.known_hosts[0]).read_text()
    meet(said)
    for changed in (OTHER, RSA):
        with pytest.raises(HostKeyError, match=rf"has changed: {said.known_hosts[0]} line 4"):
            meet(said, changed)
    assert Path(said.known_hosts[0]).read_text() == before


def test_what_is_said_of_a_changed_key_mends_it(tmp_path: Path) -> None:
    said = known_as(tmp_path, "# mine", line("web"), line("db"), mode="ask")
    with pytest.raises(HostKeyError) as error:
        meet(said, OTHER)
    mends = str(error.value).partition("made anew: ")[2]
    subprocess.run(mends, shell=True, check=True, capture_output=True)
    assert Path(said.known_hosts[0]).read_text() == f"# mine\n{line('db')}\n"
    meet(replace(said, mode="accept-new"), OTHER)
    meet(said, OTHER)


@pytest.mark.parametrize("names", ["db", "!web,w*", "[web]:2222", "|1|x|y", "|2|a|b"])
def test_others_lines_are_others(tmp_path: Path, names: str) -> None:
    with pytest.raises(HostKeyError, match="is in no known_hosts file"):
        meet(known_as(tmp_path, line(names), mode="yes"))


def test_markers(tmp_path: Path) -> None:
    with pytest.raises(HostKeyError, match=r"is revoked, by .*known_hosts line 2"):
        meet(known_as(tmp_path, line("web"), line("*", marker="@revoked ")))
    with pytest.raises(HostKeyError, match="is in no known_hosts file"):
        meet(known_as(tmp_path, line("web", marker="@cert-authority "), mode="yes"))


@pytest.mark.parametrize("mode", ["yes", "ask"])
def test_a_stranger_is_refused_with_what_to_do(tmp_path: Path, mode: str) -> None:
    with pytest.raises(HostKeyError) as error:
        meet(known_as(tmp_path, mode=mode))
    (tmp_path / "key.pub").write_text(f"{KEY.get_name()} {KEY.get_base64()}")
    command = ["ssh-keygen", "-l", "-f", str(tmp_path / "key.pub")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1]
    assert shown in str(error.value) and str(error.value).endswith("trust it: invoke ssh.trust")
    assert not Path(known_as(tmp_path).known_hosts[0]).exists()


@pytest.mark.parametrize("mode", ["no", "accept-new"])
def test_a_stranger_is_added_and_nothing_else_is_touched(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = known_as(tmp_path, mode=mode)
    file = Path(said.known_hosts[0])
    file.write_text("# mine\nrubbish without an end")
    meet(said)
    meet(said)
    assert file.read_text() == f"# mine\nrubbish without an end\n{line('web')}\n"
    assert capsys.readouterr().err == (
        f"web (web): its host key, {hostkeys.shown(KEY)}, is trusted as the first that it shows\n"
    )


def test_a_hashed_name_is_one_that_ssh_finds(tmp_path: Path) -> None:
    said = known_as(tmp_path / "new" / "folder", mode="accept-new", hash_names=True)
    meet(said)
    file = said.known_hosts[0]
    assert "web" not in Path(file).read_text()
    found = subprocess.run(["ssh-keygen", "-F", "web", "-f", file], capture_output=True, text=True)
    assert KEY.get_base64() in found.stdout
    meet(replace(said, mode="yes"))


def test_many_at_once_keep_all_and_one_name_once(tmp_path: Path) -> None:
    said = known_as(tmp_path, "# mine", mode="accept-new")
    names = [f"host{number}" for number in range(60)] * 2
    with ThreadPoolExecutor(60) as pool:
        list(pool.map(lambda name: meet(replace(said, key_name=name)), names))
    lines = Path(said.known_hosts[0]).read_text().splitlines()
    assert lines[0] == "# mine" and sorted(lines[1:]) == sorted(line(name) for name in set(names))


def test_where_nothing_can_be_written_the_host_is_still_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = replace(known_as(tmp_path), known_hosts=(str(tmp_path),), mode="ask")
    hostkeys.trust(said, RSA)
    assert "the host key of web is not remembered" in capsys.readouterr().err
    meet(said, RSA)
    with pytest.raises(HostKeyError):
        meet(said, OTHER)


def test_a_host_shows_the_kind_of_key_that_is_known(tmp_path: Path) -> None:
    said = known_as(tmp_path, line("web", RSA))
    assert hostkeys.known_kinds(said) == {"ssh-rsa"}
    ours, theirs = transport.socket.socketpair()
    with ours, theirs:
        made = transport.Transport(said, ours)
        first = made.get_security_options().key_types[:3]
        made.close()
    assert set(first) <= {"rsa-sha2-256", "rsa-sha2-512", "ssh-rsa"}


# --- Becoming root -----------------------------------------------------------------------------


def run(found: dict[str, Any], script: str) -> subprocess.CompletedProcess[str]:
    """The command line as a login shell would run it, without what becomes root in it."""
    words = root.command(found, script)
    return subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False)


SCRIPT = "printf '%s|' \"$A\" 'it''s \\n\n'; echo \"${#SCRIPT}\"; exit 7"


@pytest.mark.skipif(os.geteuid() != 0, reason="runs the script, which is root's")
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_script_arrives_as_it_is(shell: str) -> None:
    found = run({"_shell_executable": shell, "_env": {"A": "a ' b"}}, SCRIPT)
    assert found.stdout == f"a ' b|its \\n\n|{len(SCRIPT)}\n"
    assert (found.stderr, found.returncode) == (f"{root.READY}0\n", 7)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_is_not_root_runs_nothing() -> None:
    words = root.command({}, "echo ran")
    command = ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", words]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("", f"{root.READY}65534\n")


SUDO, SU = {"_sudo": True}, {"_su_user": "root"}
MORE_SUDO = {"_sudo_user": "a b", "_preserve_sudo_env": True, "_use_sudo_login": True}
MORE_SU = {"_use_su_login": True, "_preserve_su_env": True, "_su_shell": "bash"}


@pytest.mark.parametrize(
    ("found", "begin"),
    [
        ({"_sudo": False, "_sudo_password": "p"}, "sh -c "),
        (SUDO, "sudo -H -n sh -c "),
        (SUDO | MORE_SUDO, "sudo -H -n -i -E -u 'a b' sh -c "),
        (SUDO | {"_sudo_password": "p"}, f"sudo -H -S -p {shlex.quote(root.PROMPT)} sh -c "),
        (SU | {"_su_password": "p"}, "su root -c "),
        (SU | MORE_SU, "su -l -m -s $(command -v bash) root -c "),
        ({"_doas": True, "_doas_user": "root"}, "doas -n -u root sh -c "),
        ({"_dzdo": True}, "dzdo -H -n sh -c "),
        (SUDO | SU, "sudo -H -n su root -c "),
    ],
)
def test_the_words_before_a_script(found: dict[str, Any], begin: str) -> None:
    words = root.command(found, "true")
    assert words.startswith(begin)
    assert "'p'" not in words and " p " not in words


def dialog(found: dict[str, Any]) -> root.Dialog:
    return root.Dialog(Options("web", "10.0.0.1", 22, "me", root=found))


def test_a_password_is_said_once_and_only_to_a_prompt() -> None:
    asked = dialog(SUDO | {"_sudo_password": "p"})
    assert asked.hear("sudo: ") == ("", "")
    assert asked.hear("unable to resolve host web: no such name\n") == ("", "")
    assert asked.hear(root.PROMPT[:9]) == ("", "")
    assert asked.hear(root.PROMPT[9:]) == ("p\n", "")
    assert asked.hear("\n" + root.READY + "0") == ("", "")
    assert not asked.begun
    assert asked.hear("\nfirst\nsec") == ("", "first\nsec")
    assert asked.begun


@pytest.mark.parametrize(
    ("found", "heard", "reason"),
    [
        (SUDO, ["sudo: a password is required\n"], "sudo: a password is required: set _"),
        (
            SUDO,
            ["sudo-rs: interactive authentication is required\n"],
            "sudo: a password is required: set _sudo_password for web",
        ),
        (
            SUDO | {"_sudo_password": "p"},
            [root.PROMPT, "\nSorry, try again.\n", root.PROMPT],
            "sudo: wrong password: _sudo_password for web is not right",
        ),
        (SUDO, ["me is not in the sudoers file.\n"], "me is not in the sudoers file."),
        ({}, [f"{root.READY}1000\n"], "commands run as me (uid 1000), who is not root"),
        (
            SU | {"_su_password": "p"},
            ["Passwort: ", "\nsu: ", "Legitimierungsfehler\n"],
            "su: Legitimierungsfehler; is _su_password for web right?",
        ),
        (SU, ["Password: "], "su: a password is required: set _su_password"),
        (SUDO, ["sh: 1: sudo: not found\n"], "sh: 1: sudo: not found"),
        ({}, [], "nothing was said"),
    ],
)
def test_the_reason_is_the_reason(found: dict[str, Any], heard: list[str], reason: str) -> None:
    asked = dialog(found)
    for text in heard:
        asked.hear(text)
    assert not asked.begun and asked.reason().startswith(reason)


# --- What is between us and a host ---------------------------------------------------------------


def test_a_command_that_ends_is_noticed() -> None:
    wire = transport.Command("sh -c 'echo gone >&2; printf SSH-2.0'")
    try:
        assert wire.recv(7) == b"SSH-2.0" and wire.recv(1) == b""
        assert wire.last_words() == "gone"
    finally:
        wire.close()


def test_a_command_ends_with_its_connection() -> None:
    wire = transport.Command("cat")
    wire.sendall(b"x")
    assert wire.recv(1) == b"x"
    process = wire._process
    wire.close()
    assert process.returncode is not None


RELAY = """
import select, socket, sys
far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
near = socket.socket(fileno=0)
while True:
    for ready in select.select([far, near], [], [])[0]:
        data = ready.recv(65536)
        if not data:
            sys.exit()
        (far if ready is near else near).sendall(data)
"""


def test_who_lets_in_and_says_nothing_timed_out() -> None:
    with transport.socket.create_server(("127.0.0.1", 0)) as listener:
        silent = Options("web", "127.0.0.1", listener.getsockname()[1], "me", timeout=0.3)
        with pytest.raises(UnreachableError, match=r"no SSH connection: timed out; try: ssh web"):
            client.connect(silent)


def test_a_connection_whose_other_end_is_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server of paramiko's behind a command that can be stopped."""
    listener = transport.socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    wire = transport.Command(f"{sys.executable} -c '{RELAY}' {port}")
    server = paramiko.Transport(listener.accept()[0])
    server.add_server_key(KEY)
    server.start_server(Event(), paramiko.ServerInterface())
    asking = transport.Transport(Options("web", "web", 22, "me"), wire)
    asking.start_client(timeout=10)
    answered: list[str] = []
    ask = asking.global_request

    def ask_and_note(kind: str) -> None:
        ask(kind)
        answered.append(kind)

    monkeypatch.setattr(asking, "global_request", ask_and_note)
    try:
        transport.watch(asking, interval=0.1, count=300)
        until(lambda: len(answered) > 5, "its questions are answered")
        assert asking.is_active()
        os.kill(wire._process.pid, signal.SIGSTOP)
        transport.watch(asking, interval=0.1, count=5)
        until(lambda: not asking.is_active(), "it is given up", 30)
    finally:
        os.kill(wire._process.pid, signal.SIGCONT)
        asking.close()
        server.close()
        listener.close()
