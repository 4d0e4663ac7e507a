"""The timer by which a host has Consul warn of its certificates, and what else looks at them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from folders import Machine

from uwsgi_consul_fleet.host import expiry as on_host
from uwsgi_consul_fleet.operations.consul import expiry
from uwsgi_consul_fleet.operations.consul.expiry import TIMER
from uwsgi_consul_fleet.operations.files import RemoteFile
from uwsgi_consul_fleet.operations.state import HostState, State, UnitState

FILES = {file.path: file for file in expiry._units()}
RUNS = UnitState("active", "enabled")


def watched(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, RemoteFile], timer: UnitState
) -> tuple[list[str], list[str]]:
    """The files that are brought, and the commands, where a host has these."""
    brought: list[str] = []

    def converge(here: Any, wanted: list[RemoteFile]) -> list[str]:
        there = here.known.files
        brought.extend(each.path for each in wanted if there.get(each.path) != each.state)
        return []

    monkeypatch.setattr(expiry, "converge", converge)
    known = HostState(files={path: file.state for path, file in files.items()})
    known.units[TIMER] = timer
    here: Any = SimpleNamespace(known=known, changed=lambda: None)
    return brought, [each.get_raw_value() for each in expiry.watch(here)]


def test_where_the_timer_runs_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, FILES, RUNS) == ([], [])


@pytest.mark.parametrize(
    "timer",
    [UnitState("inactive", ""), UnitState("inactive", "enabled"), UnitState("active", "disabled")],
)
def test_one_that_does_not_run_is_started(
    timer: UnitState, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought, (command,) = watched(monkeypatch, FILES, timer)
    assert brought == []
    assert command.endswith(
        f"enable {TIMER} && systemctl daemon-reload && systemctl restart {TIMER}"
    )


def test_what_a_run_that_was_killed_left_is_read_by_systemd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brought, (command,) = watched(monkeypatch, FILES, UnitState("active", "enabled", stale=True))
    assert brought == [] and " && systemctl daemon-reload && " in command


@pytest.mark.parametrize("path", [*FILES])
def test_a_unit_that_is_missing_is_brought(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {each: file for each, file in FILES.items() if each != path}
    brought, commands = watched(monkeypatch, others, RUNS)
    assert brought == [path] and len(commands) == 1


def test_the_state_of_a_host_has_what_is_compared(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for path, file in FILES.items():
        machine.put(path, str(file.content))
    command = State().command("", ())
    known = State().process(machine.run(command).splitlines())
    assert {path: known.files[path].sha256 for path in FILES} == {
        path: file.state.sha256 for path, file in FILES.items()
    }
    assert f" {TIMER}\n" in command


def test_a_host_looks_again_where_it_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is registered has the agent's token of before."""
    said = tmp_path / "said"
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$@" >>{said}\nexit 1\n')
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    services = tmp_path / "data/services"
    services.mkdir(parents=True)
    on_host.look_again(tmp_path / "data")
    (services / "a").write_text(json.dumps({"Token": "", "Service": {"ID": "shop-2001"}}))
    on_host.look_again(tmp_path / "data")
    assert not said.exists()
    (services / "b").write_text(json.dumps({"Token": "", "Service": {"ID": on_host.SERVICE}}))
    on_host.look_again(tmp_path / "data")
    assert said.read_text() == f"start {on_host.UNIT}\n"
