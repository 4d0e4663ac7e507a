"""What the commands share: the inventory, JSON, errors."""

import json
import os
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from checkout import BIN
from invoke import Context, Exit, Task

from uwsgi_consul_fleet.commands import command as commands
from uwsgi_consul_fleet.commands import consul, report
from uwsgi_consul_fleet.commands.command import Answer, command, expect
from uwsgi_consul_fleet.consul import program
from uwsgi_consul_fleet.consul.audit import Entry
from uwsgi_consul_fleet.errors import FleetError, LockedError
from uwsgi_consul_fleet.inventory.model import Fleet, Host, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO

FLEET = Fleet(hosts=())


@pytest.fixture(autouse=True)
def inventories(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that were read."""
    read: list[str] = []

    def note(name: str) -> Fleet:
        read.append(name)
        return FLEET

    monkeypatch.setattr(commands, "read", note)
    return read


def ends(task: Task[Any], **given: Any) -> tuple[str, int]:
    with pytest.raises(Exit) as raised:
        task(Context(), **given)
    return raised.value.message or "", raised.value.code


def test_a_body_gets_the_fleet_of_the_inventory_and_its_own_options(inventories: list[str]) -> None:
    seen = []

    @command()
    def look(fleet: Fleet, far: bool = False) -> None:
        seen.append((fleet, far))

    look(Context(), far=True, inventory="other.py")
    look(Context())
    assert seen == [(FLEET, True), (FLEET, False)]
    assert inventories == ["other.py", "inventory.py"]
    assert {argument.name for argument in look.get_arguments()} == {"far", "inventory"}


def test_a_body_without_a_fleet_reads_no_inventory(inventories: list[str]) -> None:
    @command()
    def plain(names: list[str]) -> None:
        assert names == ["a"]

    plain(Context(), names=["a"])
    assert inventories == []
    assert [argument.name for argument in plain.get_arguments()] == ["names"]


def test_an_answer_is_for_people_or_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    @command(json="as JSON")
    def ask(fleet: Fleet) -> Answer:
        return Answer({"fine": False}, lambda: print("not fine"), 1)

    assert ends(ask) == ("", 1)
    assert capsys.readouterr().out == "not fine\n"
    assert ends(ask, json=True) == ("", 1)
    assert json.loads(capsys.readouterr().out) == {"fine": False}


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (FleetError("web1: no"), "web1: no", 2),
        (LockedError("locked"), "locked", 75),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_an_error_ends_a_command_with_its_words_and_status(
    error: BaseException, message: str, code: int
) -> None:
    @command(failure=2)
    def fail() -> None:
        raise error

    assert ends(fail) == (message, code)


def test_a_reader_that_goes_away_ends_a_command(tmp_path: Path) -> None:
    body = '    while True:\n        print("more")'
    start = "from uwsgi_consul_fleet.commands.command import command\n\n\n@command()\n"
    (tmp_path / "tasks.py").write_text(f"{start}def many():\n{body}\n")
    with subprocess.Popen(
        [str(BIN / "invoke"), "many"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"more\n"
        process.stdout.close()
        assert not process.stderr.read()
    assert process.returncode == 141


def test_what_a_terminal_can_not_show_ends_no_command(tmp_path: Path) -> None:
    start = "from uwsgi_consul_fleet.commands.command import command\n\n\n@command()\n"
    (tmp_path / "tasks.py").write_text(f"{start}def say():\n    print('naïve ✓')\n")
    said = subprocess.run(
        [str(BIN / "invoke"), "say"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    ).stdout
    assert said == "naïve \\u2713\n".encode("latin-1")


@pytest.mark.parametrize(
    "words", [("lab.ssh", "--help"), ("adopt", "--help"), ("lab.up", "--help")]
)
def test_help_is_no_name(words: tuple[str, ...]) -> None:
    result = subprocess.run(
        [str(BIN / "invoke"), *words], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f"[--core-opts] {words[0]} [--options]" in result.stdout


def test_the_audit_of_several_applications_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    names = ("blog", "intranet", "shop", "wiki")
    released = {name: f"696c3fe399-dirty-{name}" for name in names}
    when = {"since": "2026-11-26T15:53:51.123456Z", "outcome": "ok"}
    report.show_audit([Entry(who="anna", machine="desk", what="deploy", releases=released, **when)])
    said = capsys.readouterr().out
    assert "anna@desk" in said and "…" not in said
    assert all(f"{name} {release}" in said for name, release in released.items())


@pytest.mark.parametrize(
    ("words", "name", "changes"),
    [
        (["members", "-status=alive"], "members", False),
        (["kv", "get", "key"], "kv get", False),
        (["kv", "put", "key", "secret"], "kv put", True),
        (["kv", "Put"], "kv", True),
        (["operator", "raft", "list-peers", "-stale"], "operator raft list-peers", False),
        (["operator", "raft", "remove-peer", "web1"], "operator raft remove-peer", True),
        (["acl", "token", "create", "-secret=s"], "acl token", True),
        (["snapshot", "restore", "-"], "snapshot restore", True),
        (["leave"], "leave", True),
        (["keyring", "-install=secret"], "keyring", True),
        (["--help"], "", False),
    ],
)
def test_what_of_a_consul_command_the_audit_has(words: list[str], name: str, changes: bool) -> None:
    assert consul.subcommand(words) == name
    assert consul.changes_nothing(name) != changes


def one_server(**data: str) -> Fleet:
    listed = [InventoryHost("a", frozenset({"consul_servers"}), {**DEMO, **data})]
    return build(listed, (), (), lambda _: "10.0.0.1")


@pytest.mark.parametrize(
    ("typed", "says_yes", "goes_on"),
    [("yes\n", False, True), ("y\n", False, False), ("\n", False, False), ("", True, True)],
)
def test_management_is_asked_about(
    typed: str,
    says_yes: bool,
    goes_on: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", typed_at_a_terminal(typed))
    if goes_on:
        consul.expect_agreed(one_server(), "acl token", says_yes)
    else:
        with pytest.raises(Exit, match="nothing was run"):
            consul.expect_agreed(one_server(), "acl token", says_yes)
    asked = "" if says_yes else "consul acl token as management, which may do everything? [yes/no] "
    assert capsys.readouterr().out == asked


def typed_at_a_terminal(text: str) -> StringIO:
    stream = StringIO(text)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    return stream


@pytest.mark.parametrize(
    ("typed", "exactly", "goes_on"),
    [
        ("web1\n", True, True),
        ("Web1\n", True, False),
        ("Web1\n", False, True),
        ("yes\n", True, False),
        ("", True, False),
    ],
)
def test_who_is_asked_for_a_name_has_to_type_it(
    typed: str, exactly: bool, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", typed_at_a_terminal(typed))
    with nullcontext() if goes_on else pytest.raises(Exit, match="nothing was changed"):
        expect("Which one?", "web1", otherwise="nothing was changed", exactly=exactly)


def test_management_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("yes\n"))
    with pytest.raises(FleetError, match="without a terminal to ask at, say --yes"):
        consul.expect_agreed(one_server(), "acl token", False)


def test_management_of_a_consul_of_others() -> None:
    listed = InventoryHost(
        "a", frozenset({"app_servers"}), {**DEMO, "consul_source": "none", "fleet": "shop"}
    )
    theirs = build([listed], (), (), lambda _: "10.0.0.1")
    with pytest.raises(FleetError, match="this Consul is not the fleet's"):
        consul.expect_agreed(theirs, "acl token", True)


@pytest.mark.parametrize(
    ("words", "management", "noted"),
    [
        (["members"], False, None),
        (["kv", "put", "key", "secret"], False, "consul kv put"),
        (["members"], True, "consul members as management"),
        (["kv", "get", "key"], True, "consul kv get as management"),
    ],
)
def test_whatever_management_did_is_in_the_audit(
    words: list[str], management: bool, noted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[str] = []
    ran: list[tuple[list[str], str]] = []

    def begun(what: str, *_: object) -> dict[str, str]:
        entries.append(what)
        return {}

    @contextmanager
    def reached(hosts: list[Host]) -> Iterator[tuple[Host, None]]:
        yield hosts[0], None

    def run(_connection: None, _host: Host, words: list[str], shown: str) -> int:
        ran.append((words, shown))
        return 7

    monkeypatch.setattr("sys.argv", ["invoke", "consul", "--", *words])
    monkeypatch.setattr(program, "reached", reached)
    monkeypatch.setattr(program, "token", lambda _connection, _host, role: f"{role}'s token")
    monkeypatch.setattr(program, "run", run)
    monkeypatch.setattr("uwsgi_consul_fleet.ownership.hosts.identity", lambda *_: None)
    monkeypatch.setattr(consul, "began", begun)
    monkeypatch.setattr(consul, "noted", lambda _fleet, _entry, run: run())
    monkeypatch.setattr(commands, "read", lambda _inventory: one_server())
    with pytest.raises(Exit) as ended:
        consul.run(Context(), management=management, yes=management, inventory="inventory.py")
    assert ended.value.code == 7
    assert ran == [(words, f"{'management' if management else 'deploy'}'s token")]
    assert entries == ([noted] if noted else [])


def test_what_a_hosts_environment_says_of_consul_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "consul").write_text('#!/bin/sh\nenv | grep -a CONSUL_ | sort\necho "$@"\n')
    (tmp_path / "consul").chmod(0o755)
    before = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CONSUL_HTTP_TOKEN_FILE": "/etc/another",
        "CONSUL_HTTP_TOKEN": "another",
        "CONSUL_CACERT": "/etc/ca.pem",
        "CONSUL_NAMESPACE": "two\nlines CONSUL_X=1",
    }
    words = b64encode(b"kv put 'a  b' c").decode()

    def said(theirs: str, token: str) -> list[str]:
        script = program.RUN.format(address="http://127.0.0.1:8500", mark="MARK=1", theirs=theirs)
        run = subprocess.run(
            ["sh", "-c", script],
            input=f"{token}\n{words}\n",
            env=before,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stderr == ""
        return run.stdout.splitlines()

    address, command = "CONSUL_HTTP_ADDR=http://127.0.0.1:8500", "kv put a  b c"
    assert said(program.OURS, "ours") == [address, "CONSUL_HTTP_TOKEN=ours", command]
    assert said(program.OURS, "") == [address, command]
    # Of an agent of others root knows more than we do, but which token.
    found = said(program.THEIRS, "ours")
    assert "CONSUL_HTTP_TOKEN=ours" in found and "CONSUL_CACERT=/etc/ca.pem" in found
    assert not any("TOKEN_FILE" in line for line in found)


def test_a_host_to_ask_is_one_of_the_fleet() -> None:
    listed = {"a": "consul_servers", "b": "app_servers", "c": "retired"}
    hosts = [InventoryHost(name, frozenset({group}), DEMO) for name, group in listed.items()]
    fleet = build(hosts, (), (), lambda host: f"10.0.0.{ord(host.name)}")
    assert [each.name for each in consul.chosen(fleet, "")] == ["a"]
    assert [each.name for each in consul.chosen(fleet, "b")] == ["b"]
    with pytest.raises(FleetError, match="--host c: is not in the inventory; there is: a, b"):
        consul.chosen(fleet, "c")
