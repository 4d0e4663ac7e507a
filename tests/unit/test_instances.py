"""Which instances are meant, the order of their logs, and words on their way to a host."""

import base64
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from uwsgi_consul_fleet.commands import execute, logs
from uwsgi_consul_fleet.errors import FleetError, UnreachableError
from uwsgi_consul_fleet.host import execution, store
from uwsgi_consul_fleet.instances import execution as commands
from uwsgi_consul_fleet.instances.choice import choose
from uwsgi_consul_fleet.instances.execution import Command, _Lines
from uwsgi_consul_fleet.instances.logs import AHEAD, Line, merged, parsed, script
from uwsgi_consul_fleet.inventory.model import Fleet, Host, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.applications.package import make
from uwsgi_consul_fleet.operations.applications.release import read


def fleet() -> Fleet:
    blog = {**DEMO, "app_name": "blog", "instances": {"one": {"port": 3001, "id": "blog-one"}}}
    listed = {"web1": DEMO, "web2": DEMO, "web3": blog}
    hosts = [
        InventoryHost(name, frozenset({"app_servers", "consul_servers"}), data)
        for name, data in listed.items()
    ]
    addresses = {name: f"10.0.0.{number}" for number, name in enumerate(listed, 1)}
    return build(hosts, (), (), lambda host: addresses[host.name])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["web1/server1", "web1/server2", "web2/server1", "web2/server2", "web3/one"]),
        ({"hosts": ["web2"]}, ["web2/server1", "web2/server2"]),
        ({"instance": "server2"}, ["web1/server2", "web2/server2"]),
        ({"instance": "blog-one"}, ["web3/one"]),
        ({"hosts": ["web1"], "instance": "server1"}, ["web1/server1"]),
    ],
)
def test_some_are_meant(wanted: dict[str, str], found: list[str]) -> None:
    chosen = choose(fleet(), **wanted)  # type: ignore[arg-type]
    assert [f"{host.name}/{each.name}" for host, its in chosen for each in its] == found


def test_of_one_application() -> None:
    [(host, its)] = choose(fleet().only("blog"))
    assert (host.name, [each.name for each in its]) == ("web3", ["one"])


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"hosts": ["web9"]}, "--host web9: is not in the inventory; there is: web1, web2, web3"),
        ({"instance": "two"}, "there is: blog-one, one, server1, server2"),
        ({"hosts": ["web1"], "instance": "one"}, "no instance is all of that"),
    ],
)
def test_what_there_is_not_is_told_with_what_there_is(wanted: dict[str, str], said: str) -> None:
    with pytest.raises(FleetError, match=said):
        choose(fleet(), **wanted)  # type: ignore[arg-type]


# --- Logs ---


def line(moment: int, host: str = "web1", text: str = "") -> Line:
    return Line(moment, host, "server1", "r1", "r1-1a2b3c4d", text)


def entry(**fields: object) -> bytes:
    return json.dumps({"__REALTIME_TIMESTAMP": "1700000000123456", **fields}).encode() + b"\n"


LABELS = {"shop-web-2001": "server1", "shop-web-trial": "trial"}


def test_a_line_of_an_instance() -> None:
    raw = entry(MESSAGE="hello", _SYSTEMD_UNIT="shop-web-2001@spring-2-1a2b3c4d.service")
    found = parsed(raw, "web1", LABELS)
    generation = "spring-2-1a2b3c4d"
    assert found == Line(1700000000123456, "web1", "server1", "spring-2", generation, "hello")


def test_what_systemd_says_of_it_is_of_it_too() -> None:
    unit = "shop-web-trial@r1-1a2b3c4d.service"
    found = parsed(entry(MESSAGE="Started", _SYSTEMD_UNIT="init.scope", UNIT=unit), "web1", LABELS)
    assert found
    assert (found.instance, found.release) == ("trial", "r1")


@pytest.mark.parametrize("unit", ["shop-web-2002@r1-1a2b3c4d.service", "ssh.service", "", None])
def test_what_is_not_about_them_is_none(unit: str | None) -> None:
    assert parsed(entry(MESSAGE="x", UNIT=unit, _SYSTEMD_UNIT="init.scope"), "web1", LABELS) is None


@pytest.mark.parametrize(
    ("message", "text"),
    [([104, 255, 105], "h\ufffdi"), (["a", [104, 105]], "a\nhi"), (None, "")],
    ids=["bytes that are no text", "several", "none"],
)
def test_what_is_no_text_is_shown_as_one(message: object, text: str) -> None:
    raw = entry(MESSAGE=message, _SYSTEMD_UNIT="shop-web-2001@r1-1a2b3c4d.service")
    found = parsed(raw, "web1", LABELS)
    assert found
    assert found.text == text


def test_an_application_can_not_speak_for_another() -> None:
    raw = entry(MESSAGE="x", _SYSTEMD_UNIT="blog-1@r1-1.service", UNIT="shop-web-2001@r1-1.service")
    assert parsed(raw, "web1", LABELS) is None


def test_what_the_connection_cut_off_is_left_out() -> None:
    raw = entry(MESSAGE="hello", _SYSTEMD_UNIT="shop-web-2001@spring-2-1a2b3c4d.service")
    assert parsed(raw[:40], "web1", LABELS) is None


def test_units_are_found_by_their_slices() -> None:
    text = script(["shop-web-2001"], 600, follow=True)
    assert r"'_SYSTEMD_SLICE=system-shop\x2dweb\x2d2001.slice' + _PID=1" in text
    assert "--since=-600s --follow --no-tail" in text
    assert "--follow" not in script(["shop-web-2001"], 600, follow=False)


def problems(_text: str) -> None:
    raise AssertionError(_text)


def test_they_are_merged_by_time() -> None:
    def slow() -> Iterator[Line | None]:
        yield None
        time.sleep(0.2)
        yield from (line(moment, "web2") for moment in range(1, 4000, 2))

    def quick() -> Iterator[Line | None]:
        yield None
        yield from (line(moment) for moment in range(0, 4000, 2))

    found = merged({"web1": quick(), "web2": slow()}, None, problems)
    assert [each.moment for each in found] == [*range(4000)]


def test_one_that_goes_on_does_not_wait_for_one_that_is_silent() -> None:
    def silent() -> Iterator[Line | None]:
        yield None
        time.sleep(60)

    def goes_on() -> Iterator[Line | None]:
        yield None
        yield from map(line, itertools.count())

    found = merged({"web1": goes_on(), "web2": silent()}, 0.1, problems)
    assert [next(found).moment for _ in range(3 * AHEAD)] == [*range(3 * AHEAD)]


def test_a_host_that_is_down_is_told_and_the_others_go_on() -> None:
    def down() -> Iterator[Line | None]:
        raise UnreachableError("web2: no SSH connection")
        yield None

    said: list[str] = []
    found = merged({"web1": iter([None, line(1), line(2)]), "web2": down()}, None, said.append)
    assert [each.moment for each in found] == [1, 2]
    assert said == ["web2: no SSH connection"]


def test_what_is_no_pattern_is_told() -> None:
    with pytest.raises(FleetError, match=r"--grep \(: is no regular expression: "):
        logs._pattern("(")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("a\tb", "a\tb"),
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("a\rb", r"a\rb"),
    ],
)
def test_a_log_does_not_command_the_terminal(text: str, shown: str) -> None:
    assert logs.printable(text) == shown


def lines(end: int, count: int) -> list[str]:
    """So many, from a terminal's other end, or a pipe's."""
    heard = b""
    while heard.count(b"\n") < count:
        assert select.select([end], [], [], 10)[0], heard
        heard += os.read(end, 4096)
    return heard.decode().splitlines()


SHOW = (
    "from uwsgi_consul_fleet.commands.logs import Screen; "
    "from uwsgi_consul_fleet.instances.logs import Line; "
    "Screen()(Line(0, 'web1', 'server1', 'r1', 'r1-1', 'hello\\nagain'), True)"
)


@pytest.mark.parametrize(
    ("is_terminal", "environment", "coloured"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (False, {}, False)],
)
def test_colours_are_for_people(
    is_terminal: bool, environment: dict[str, str], coloured: bool
) -> None:
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    words = ["python", "-c", SHOW]
    known = {**os.environ, "TERM": "xterm", "TZ": "UTC", **environment}
    subprocess.run(words, stdout=theirs, env=known, check=True)
    said = lines(ours, 2)
    os.close(ours)
    os.close(theirs)
    prefix = "00:00:00.000 web1 server1 r1 |"
    prefix = f"\x1b[36m{prefix}\x1b[0m" if coloured else prefix
    assert said == [f"{prefix} hello", f"{prefix} again"]


TABLE = (
    "from uwsgi_consul_fleet.commands import tables; made = tables.table('node', 'address'); "
    "made.add_row('n' * 70, '10.213.64.15:2001'); tables.console().print(made)"
)


def test_a_narrow_terminal_loses_nothing_of_a_table() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", TABLE], stdin=theirs, stdout=theirs, check=True)
    *_, row = lines(ours, 3)
    os.close(ours)
    os.close(theirs)
    assert row.rstrip() == f"{'n' * 70}   10.213.64.15:2001"


# --- Commands ---


def test_lines_of_several_hosts_keep_their_bytes(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    _Lines("[web1] ").writelines([b"a", b"b\xff\r\n\nlo", b"ng" * 500_000, b"er\nthe ", b"end"])
    said = capsysbinary.readouterr().out.split(b"\n")
    assert said[:2] == [b"[web1] ab\xff\r", b"[web1] "]
    assert said[2] == b"[web1] lo" + b"ng" * 500_000 + b"er"
    assert said[3:] == [b"[web1] the end", b""]


# The signal comes to the other thread, as one that comes just before a select does not end it.
RAW = """
import signal, socket, threading, time
from uwsgi_consul_fleet.ssh import terminal
threading.Thread(target=time.sleep, args=[60], daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
channel, host = socket.socketpair()
with terminal._raw():
    print("raw", flush=True)
    terminal._shuttle(channel, "")
"""


def test_who_is_ended_leaves_a_terminal_that_shows_what_is_typed() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(
        [sys.executable, "-c", RAW], stdin=theirs, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == b"raw\n"
        assert termios.tcgetattr(theirs) != before
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


WORDS = ["a  b", "", "$HOME", "it's", '"', "x\ny", "*", "%i", "ü", "\\n", "--", "--once"]


def test_words_are_those_that_were_typed() -> None:
    arguments = ["invoke", "exec", "--once", "--", "printf", *WORDS]
    assert execute.typed(arguments, "invoke exec") == ["printf", *WORDS]


@pytest.mark.parametrize("arguments", [["invoke", "exec", "--once"], ["invoke", "exec", "--"]])
def test_a_command_is_needed(arguments: list[str]) -> None:
    with pytest.raises(FleetError, match="no command: invoke exec"):
        execute.typed(arguments, "invoke exec")


def test_words_reach_a_shell_byte_by_byte(tmp_path: Path) -> None:
    words = [*WORDS, os.fsdecode(b"\xff")]
    line = Command("shop", ["printf", r"%s\0", *words], "anna").line
    assert b"\n" not in line[:-1]
    said = subprocess.run(
        ["sh", "-c", base64.b64decode(line)], capture_output=True, cwd=tmp_path, check=True
    ).stdout
    assert said.split(b"\0")[:-1] == [os.fsencode(word) for word in words]


def test_once_is_on_the_first_host_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointers = {name: tmp_path / name for name in ("web2", "web3")}  # web1 is down

    def connect(host: Host) -> Any:
        if host.name not in pointers:
            raise UnreachableError(f"{host.name}: down")
        return nullcontext(pointers[host.name])

    def run_script(place: Path, script: str) -> Any:
        words = script.replace(str(store.POINTERS), str(place))
        code = subprocess.run(["sh", "-c", words], check=False).returncode
        return SimpleNamespace(exit_code=code)

    monkeypatch.setattr(commands.ssh, "connect", connect)
    monkeypatch.setattr(commands.ssh, "run_script", run_script)
    hosts = fleet().hosts
    with pytest.raises(UnreachableError) as caught:
        commands.first(hosts, "shop")
    missing = [f"{name}: shop: no release serves on it" for name in pointers]
    assert str(caught.value).splitlines() == ["web1: down", *missing]
    pointers["web3"].mkdir()
    (pointers["web3"] / "shop.conf").touch()
    assert commands.first(hosts, "shop").name == "web3"


class TestOnTheHost:
    """What the program there makes of it, with a release as the deploy makes them."""

    @pytest.fixture
    def release(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.Release:
        monkeypatch.setattr(store, "ROOT", tmp_path)
        host = fleet().applications[0]
        host = replace(host, settings=host.settings.model_copy(update={"app_requirements": None}))
        folder = tmp_path / "consul-demo-server/releases/r1-1a2b3c4d"
        for name, file in make(host, read(host.settings)).files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(file.content)
        return store.load("consul-demo-server", "r1-1a2b3c4d")

    def test_its_unit_is_as_an_instances(self, release: store.Release) -> None:
        *found, name = execution._properties(release)
        assert name.startswith("--setenv=APP_RELEASE=")
        text = (release.folder / "units/2001.service").read_text()
        hardened = re.findall(
            r"^[A-Z]\w+=.*$", text[text.index("NoNewPrivileges=") :], re.MULTILINE
        )
        assert "ProtectSystem=strict" in hardened
        assert found == [
            f"--property={each}"
            for each in (
                "User=consul-demo-server",
                "EnvironmentFile=/srv/consul-demo-server/releases/r1-1a2b3c4d/environment",
                *hardened,
                f"WorkingDirectory={release.folder}/",
                "JoinsNamespaceOf=consul-demo-server-2001@r1-1a2b3c4d.service",
            )
        ] + [
            f"--setenv=APP_{each}"
            for each in ("SERVICE=consul-demo-server", "NODE=web1", "PORT=2001")
        ]

    def test_it_is_told_of_the_applications_token(
        self, release: store.Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "POINTERS", tmp_path / "etc")
        token = tmp_path / "etc/tokens" / release.app
        said = f"--setenv=CONSUL_HTTP_TOKEN_FILE={token}"
        assert said not in execution._properties(release)
        token.parent.mkdir(parents=True)
        token.touch()
        assert execution._properties(release).count(said) == 1

    def test_it_works_where_the_application_does_and_finds_what_that_finds(
        self, release: store.Release
    ) -> None:
        with (release.folder / "2001.ini").open("a") as file:
            file.write("chdir = %dsource/\npythonpath = %dsource/src\n")
            file.write("env=WHO=%c on %n: 7 %%, %x\nenv = BUNDLE_PATH=%dvendor.d\n")
        found, place = execution._properties(release), release.folder
        assert f"--property=WorkingDirectory={place}/source/" in found
        assert found[-3:] == [
            "--setenv=APP_RELEASE=" + release.release,
            "--setenv=WHO=r1-1a2b3c4d on 2001: 7 %, %x",
            f"--setenv=BUNDLE_PATH={place}/vendor.d",
        ]
        assert f"--setenv=PYTHONPATH={place}/source/src" in found

    @pytest.mark.parametrize("has_venv", [True, False])
    def test_a_virtual_environment_comes_first(
        self, release: store.Release, has_venv: bool
    ) -> None:
        venv = release.folder / "venv"
        program = (venv if has_venv else release.folder / "bin") / "bin/whose"
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/sh\necho "${VIRTUAL_ENV-none} $1"\n')
        program.chmod(0o755)
        path = f"{release.folder}/bin/bin:{os.environ['PATH']}"
        line = Command("shop", ["whose", "$x"], "anna").line.decode().strip()
        # systemd replaces each $$ by one.
        words = [word.replace("$$", "$") for word in execution._shell(release, line)]
        said = subprocess.run(words, env={"PATH": path}, capture_output=True, text=True, check=True)
        assert said.stdout == f"{venv if has_venv else 'none'} $x\n"
