"""The ssh configuration is read as ssh itself reads it: ssh is asked (`ssh -G`)."""

import getpass
import subprocess
import time
from pathlib import Path

import pytest

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.ssh import config, options

# Settings of ssh's own, by what `ssh -G` calls them, and those of ours that hold the same.
CASES = {
    "the first value counts": """
        Host web
            Port 2201
            User first
        Host *
            User second
            Port 2202
        """,
    "patterns, negated and with several names": """
        Host *.example !web.example
            User wild
        Host db we?
            User matched
        Host [w]eb
            Port 99
        """,
    "an equals sign, quotes, comments, case and blanks": """
        HOST   web   # that one
            port=2203
            USER = "some body"
            HostName	10.0.0.1 # a comment
            UserKnownHostsFile "/tmp/known hosts" /tmp/more#hosts
        """,
    "tokens": """
        Host web
            HostName %h.example.net
            IdentityFile ~/.ssh/%r-%h
            IdentityFile /keys/%n
            User deploy
            Port 2204
        """,
    "Match by name, user and more": """
        Match originalhost web
            HostName 10.0.0.2
        Match host 10.0.0.2 user nobody
            Port 1
        Match host 10.0.0.*
            Port 2205
        Match !host web,db
            User other
        Match !originalhost web,db
            ServerAliveCountMax 4
        Match localuser *
            ConnectTimeout 7
        Match exec "test %n = web"
            ServerAliveInterval 1m
        Match exec false
            ServerAliveCountMax 9
        Match all
            ServerAliveCountMax 5
        """,
    "Match final comes last": """
        Match final host 10.0.0.3
            Port 2206
        Host web
            HostName 10.0.0.3
            User early
        Match final
            User late
        """,
    "includes, by pattern and within sections": """
        Include more/*.conf
        Host web
            Include only-web
            User afterwards
        Host db
            Include only-web
        Host *
            Port 2207
        """,
    "a jump host": """
        Host web
            ProxyJump deploy@gate:2222,other
        """,
    "a command": """
        Host web
            ProxyCommand nc "%h" %p # not a comment
            HostName web.internal
        """,
    "what counts of both": """
        Host web
            ProxyCommand none
        Host *
            ProxyJump gate
        """,
    "keys and their checks": """
        Host web
            StrictHostKeyChecking accept-new
            HostKeyAlias front
            HashKnownHosts yes
            IdentitiesOnly yes
            IdentityAgent none
            AddressFamily inet6
            ForwardAgent yes
        """,
}
INCLUDED = {
    "more/10.conf": "Host db\n    User included\n",
    "more/20.conf": "Host web\n    User second\nHost *\n    ConnectTimeout 3\n",
    "only-web": "Port 2208\nHost web\n    HostName 10.0.0.4\n",
}
ANSWERS = {
    "port": lambda found: str(found.port),
    "user": lambda found: found.user,
    "hostname": lambda found: found.host,
    "connecttimeout": lambda found: str(int(found.timeout)) if found.timeout != 99 else "none",
    "serveraliveinterval": lambda found: str(found.alive_interval),
    "serveralivecountmax": lambda found: str(found.alive_count),
    "identitiesonly": lambda found: "yes" if found.only_identities else "no",
    "forwardagent": lambda found: "yes" if found.forward_agent else "no",
    "hashknownhosts": lambda found: "yes" if found.hash_names else "no",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without the configurations of whoever runs the tests, and of their machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(config, "SYSTEM", tmp_path / "none")
    config.read.cache_clear()
    return tmp_path


def written(folder: Path, text: str) -> Path:
    for name, content in INCLUDED.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    file = folder / "ssh_config"
    # Where ssh looks is the home of the account, whatever the environment says.
    text = text.replace("Include ", f"Include {folder}/")
    file.write_text(text)
    return file


def ask_ssh(file: Path, name: str) -> dict[str, list[str]]:
    command = ["ssh", "-G", "-F", str(file), name]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", ["web", "db", "web.example", "app.example", "else"])
@pytest.mark.parametrize("case", CASES)
def test_as_ssh_reads_it(home: Path, case: str, name: str) -> None:
    file = written(home, CASES[case])
    theirs = ask_ssh(file, name)
    ours = options.of(name, {"ssh_config_file": str(file)}, timeout=99)
    assert {key: [of(ours)] for key, of in ANSWERS.items()} == {key: theirs[key] for key in ANSWERS}
    if case == "tokens" and name == "web":
        # `ssh -G` shows them as they were written.
        assert ours.identities == (f"{home}/.ssh/deploy-web.example.net", "/keys/web")
    if case.startswith("an equals") and name == "web":
        assert ours.known_hosts == ("/tmp/known hosts", "/tmp/more#hosts")
    command = theirs.get("proxycommand", ["none"])
    assert bool(ours.proxy_command) == (command != ["none"])
    assert (ours.jump is not None) == ("proxyjump" in theirs)


def test_a_way_through_several_hosts(home: Path) -> None:
    file = written(home, CASES["a jump host"] + "\nHost gate\n    HostName 10.9.9.9\n")
    last = options.of("web", {"ssh_config_file": str(file), "ssh_user": "me"}).jump
    assert last and last.jump and last.jump.jump is None
    assert (last.host, last.port, last.user) == ("other", 22, getpass.getuser())
    assert (last.jump.host, last.jump.port, last.jump.user) == ("10.9.9.9", 2222, "deploy")


@pytest.mark.parametrize(
    ("hop", "host", "port", "user"),
    [
        ("gate", "gate", 22, ""),
        ("me@gate", "gate", 22, "me"),
        ("ssh://me@gate:2222", "gate", 2222, "me"),
        ("[fd00::1]:2222", "fd00::1", 2222, ""),
        ("me@fd00::1", "fd00::1", 22, "me"),
    ],
)
def test_jump_hosts(home: Path, hop: str, host: str, port: int, user: str) -> None:
    file = written(home, f"Host web\n    ProxyJump {hop}\n")
    jump = options.of("web", {"ssh_config_file": str(file)}).jump
    assert jump and (jump.host, jump.port, jump.user) == (host, port, user or getpass.getuser())


def test_a_jump_host_that_everything_goes_through_is_reached_itself(home: Path) -> None:
    file = written(home, "Host *\n    ProxyJump gate\n")
    jump = options.of("web", {"ssh_config_file": str(file)}).jump
    assert jump and jump.host == "gate" and jump.jump is None


def test_jump_hosts_in_a_circle_are_told(home: Path) -> None:
    file = written(home, "Host web\n    ProxyJump gate\nHost gate\n    ProxyJump web\n")
    with pytest.raises(FleetError, match="web: ProxyJump leads in a circle, through web"):
        options.of("web", {"ssh_config_file": str(file)})


def test_a_command_gets_what_it_names(home: Path) -> None:
    file = written(home, CASES["a command"])
    found = options.of("web", {"ssh_config_file": str(file), "ssh_port": 2222})
    assert found.proxy_command == 'nc "web.internal" 2222 # not a comment'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Host web\n    Port\n", "line 2: 'Port' lacks its value"),
        ("Match user\n", "line 1: Match user lacks its value"),
        ("Host web\n    Port many\n", "web: 'many' is not a port for ssh"),
        ("Host web\n    StrictHostKeyChecking maybe\n", "'maybe' is none of yes, no"),
    ],
)
def test_mistakes_are_told_with_their_place(home: Path, text: str, said: str) -> None:
    file = written(home, text)
    with pytest.raises(FleetError, match=said):
        options.of("web", {"ssh_config_file": str(file)})


def test_files_that_include_each_other_are_told(home: Path) -> None:
    file = written(home, "Include ssh_config\n")
    with pytest.raises(FleetError, match="files include each other"):
        options.of("web", {"ssh_config_file": str(file)})


def test_includes_are_looked_for_in_the_users_folder(home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text("Include here\n")
    (home / ".ssh/here").write_text("Host web\n    HostName 10.1.1.1\n")
    assert options.address("web", {}) == "10.1.1.1"


def test_five_hundred_hosts_are_read_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"host{number:03}" for number in range(500)]
    sections = "".join(
        f"Host {name}\n    HostName 10.2.{number // 250}.{number % 250 + 1}\n    ProxyJump gate\n"
        for number, name in enumerate(names)
    )
    file = written(home, sections)
    reads = []
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **words: reads.append(self) or read_text(self, **words)
    )
    begin = time.process_time()
    found = [options.of(name, {"ssh_config_file": str(file)}) for name in names]
    assert time.process_time() - begin < 2
    assert reads.count(file) == 1
    assert found[499].host == "10.2.1.250"
