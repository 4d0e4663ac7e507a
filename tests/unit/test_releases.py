"""To which release a roll-back goes, and what a host keeps."""

import fcntl
import json
import os
import pwd
import socketserver
import subprocess
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from uwsgi_consul_fleet.errors import FleetError, RollbackError
from uwsgi_consul_fleet.hooks import Frame, Hooks
from uwsgi_consul_fleet.host import health, ownership, retire, store, switch, systemd, units
from uwsgi_consul_fleet.host.says import ReleaseError
from uwsgi_consul_fleet.inventory.model import AppHost, Host, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.releases import rollback
from uwsgi_consul_fleet.releases.releases import Generation, HostReleases
from uwsgi_consul_fleet.releases.rollback import targets


def host(name: str, app: str) -> AppHost:
    groups = frozenset({"consul_servers", "app_servers"})
    entry = InventoryHost(name, groups, {**DEMO, "app_name": app, "instances": {"a": 1}})
    return build([entry], (), (), lambda _: "10.0.0.1").host(name).applications[0]


def on(name: str, *releases: str, problem: str = "", app: str = "shop") -> HostReleases:
    """The first one serves; ``!x`` never did; ``x:1`` has the settings 1."""
    listed = [_generation(name, each, position == 0) for position, each in enumerate(releases)]
    served = [each.name for each in listed if each.since and not each.current]
    told = (replace(each, previous=each.name in served[:1]) for each in listed)
    return HostReleases(host(name, app), tuple(told), problem)


def _generation(host: str, each: str, current: bool) -> Generation:
    release, _, settings = each.lstrip("!").partition(":")
    since = None if each.startswith("!") else "2026-01-01T00:00:00+00:00"
    generation = f"{release}-{host}{settings}"
    return Generation(generation, release, settings or "0", ("a",), current, since)


def chosen(*found: HostReleases, name: str = "") -> list[str]:
    return [target.generation.name for target in targets(found, name)]


def test_the_one_before_is_the_latest_that_served() -> None:
    assert chosen(on("a", "r3", "!r9", "r2", "r1"), on("b", "r3", "r2")) == ["r2-a", "r2-b"]


def test_a_host_that_joined_since_holds_nobody_up() -> None:
    assert chosen(on("a", "r2", "r1"), on("b", "r2")) == ["r1-a"]


def test_a_named_one_also_where_it_serves_already() -> None:
    assert chosen(on("a", "r3", "r2", "r1"), on("b", "r1"), name="r1") == ["r1-a", "r1-b"]


def test_a_host_that_is_down_holds_nobody_up() -> None:
    assert chosen(on("a", "r2", "r1"), on("b", problem="b: gone")) == ["r1-a"]


def test_the_settings_tell_releases_of_one_name_apart() -> None:
    hosts = on("a", "r1:3", "r1:2", "r1:1"), on("b", "r1:3", "r1:2", "r1:1")
    assert chosen(*hosts, name="r1-1") == ["r1-a1", "r1-b1"]
    assert chosen(*hosts, name="r1") == ["r1-a3", "r1-b3"]
    assert chosen(*hosts) == ["r1-a2", "r1-b2"]


def test_a_host_with_settings_of_its_own_has_no_choice() -> None:
    assert chosen(on("a", "r2", "r1:1"), on("b", "r2", "r1:9"), name="r1-1") == ["r1-a1", "r1-b9"]


def test_each_application_goes_back_to_what_it_was() -> None:
    both = on("a", "r2", "r1"), on("b", "s2", "s1", app="blog")
    assert chosen(*both) == ["r1-a", "s1-b"]
    assert chosen(*both, name="s1") == ["s1-b"]
    alike = on("a", "r2", "r1:1"), on("b", "r2", "r1:9", app="blog")
    assert chosen(*alike, name="r1-1") == ["r1-a1"]


@pytest.mark.parametrize(
    ("found", "name", "says"),
    [
        ([on("a", "r2", "r1:1"), on("b", "r2", "r1:8", "r1:9")], "r1-1", "b: no release r1-1;"),
        ([on("a", "r2", "r1"), on("b", "r2", "r1")], "r1-typo", "a, b: no release r1-typo;"),
        ([on("a", "r2"), on("b", "s2", app="blog")], "r1", "a, b: no release r1; there is: r2, s2"),
        ([on("a", "r2", "r1"), on("b", "r2")], "r1", "b: no release r1; there is: r1, r2."),
        ([on("a", "r2"), on("b", "r2")], "", "a, b: no release before the one that serves"),
        (
            [on("a", "r3", "r2"), on("b", "r3", "r1")],
            "",
            "different releases: r2 on a, r1 on b; name one",
        ),
        ([], "", "no host is to serve it\nnothing was changed"),
        ([on("a", problem="a: gone"), on("b", problem="b: too")], "", "a: gone\nb: too\nnothing"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_touched(
    found: list[HostReleases], name: str, says: str
) -> None:
    with pytest.raises(FleetError) as caught:
        targets(found, name)
    assert says in str(caught.value)


# --- What the next deploy is told ------------------------------------------------------


@pytest.mark.parametrize(
    ("failing", "on_failure", "expected"),
    [
        ("", "rollback", {"on": ["r1"], "refused": ["r2"]}),
        ("b", "rollback", {"on": [], "refused": []}),
        ("b", "stop", None),
    ],
)
def test_what_a_roll_back_writes_down(
    failing: str,
    on_failure: str,
    expected: dict[str, list[str]] | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    names = ("a", "b", "c")
    data = {**DEMO, "app_name": "shop", "instances": {"a": 1}, "on_failure": on_failure}
    groups = frozenset({"consul_servers", "app_servers"})
    hosts = [InventoryHost(name, groups, data) for name in names]
    fleet = build(hosts, (), (), lambda host: f"10.0.0.{names.index(host.name) + 1}")
    found = [replace(on(name, "r2", "r1"), host=fleet.host(name).applications[0]) for name in names]
    written: list[dict[str, Any]] = []
    lock: Any = SimpleNamespace(
        held=True,
        check=lambda patience: None,
        expect=lambda releases, contents: written.append(contents),
        finish=lambda outcome, **told: None,
    )

    def execute(connection: None, host: Host, words: Sequence[str]) -> bool:
        return host.name != failing or words[0] != "switch"

    hooks = Hooks(tmp_path, 1, {})
    monkeypatch.setattr(rollback.ssh, "connect", lambda host: nullcontext())
    monkeypatch.setattr(rollback, "_execute", execute)
    with pytest.raises(RollbackError) if failing else nullcontext():
        rollback._switch_all(fleet, lock, targets(found, ""), False, Frame(hooks, print))
    (contents,) = written
    told = contents.get("shop")
    names_of = told and {key: [each["release"] for each in all_] for key, all_ in told.items()}
    assert names_of == expected


@pytest.mark.parametrize(("name", "began"), [("r2", True), ("r1", False)])
def test_a_hook_refuses_a_roll_back_that_would_change_something(
    tmp_path: Path, name: str, began: bool
) -> None:
    hook = tmp_path / "hooks/before-deploy"
    hook.parent.mkdir()
    hook.write_text('#!/bin/sh\necho "$FLEET_APP $FLEET_RELEASE $FLEET_HOSTS" >asked; exit 3\n')
    hook.chmod(0o755)
    found = [on("a", "r1", "r2")]
    refusal = pytest.raises(FleetError, match=r"exit status 3\. Nothing was changed")
    hooks = Hooks(tmp_path, 20, {})
    with refusal if began else nullcontext(), rollback._framed(hooks, targets(found, name)):
        assert not began
    assert (tmp_path / "asked").exists() == began
    if began:
        assert (tmp_path / "asked").read_text().split()[1:] == ["r2", "a"]


# --- On the host ---------------------------------------------------------------------


@pytest.fixture
def srv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "ROOT", tmp_path / "srv")
    monkeypatch.setattr(store, "POINTERS", tmp_path / "etc")
    return tmp_path / "srv/shop"


def installed(srv: Path, generation: str, venv: str = "v1") -> store.Release:
    folder = srv / "releases" / generation
    folder.mkdir(parents=True)
    fields = {
        "release": generation.rpartition("-")[0],
        "settings": "5e771465",
        "node": "drakar",
        "instances": [{"id": "server1", "port": 2001}],
        "health_path": "/",
        "health_timeout": 5,
        "min_healthy_time": 1,
        "resolution": f"resolved-{venv}",
    }
    (folder / "release.json").write_text(json.dumps(fields))
    (srv / "venvs" / venv).mkdir(parents=True, exist_ok=True)
    (srv / "resolutions" / f"resolved-{venv}").mkdir(parents=True, exist_ok=True)
    (folder / "venv").symlink_to(f"../../venvs/{venv}")
    return store.load("shop", generation)


def test_a_host_knows_which_one_serves(srv: Path) -> None:
    assert store.current("shop") is None
    for name in ("r1-a", "r2-a"):
        store.point_to(installed(srv, name))
    found = store.current("shop")
    assert found is not None
    assert found.generation == "r2-a"
    assert (srv / "current").resolve().name == "r2-a"
    assert "Service=%N@r2-a.service" in store.pointer("shop").read_text()


def test_a_rejected_release_begins_no_jobs_before_it_is_gone(
    srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "RUN", srv.parent.parent)
    lock, held = switch._side_by_side("shop"), []
    old, new = (installed(srv, name) for name in ("r1-a", "r2-a"))
    store.point_to(old)

    def is_held() -> bool:
        with lock.open() as file:
            return (
                subprocess.run(
                    ["flock", "-n", str(file.fileno())], pass_fds=[file.fileno()]
                ).returncode
                == 1
            )

    def start(units: list[str], seconds: float) -> None:
        held.append(("start", is_held()))
        if units == new.services:
            raise ReleaseError("not ready")

    monkeypatch.setattr(switch, "units", Mock(closed_ports=lambda _: []))
    monkeypatch.setattr(switch, "health", Mock())
    monkeypatch.setattr(switch, "workers", Mock(others=lambda _: []))
    monkeypatch.setattr(switch, "_try", Mock())
    monkeypatch.setattr(switch.retire, "running", lambda _: old.services)
    stopped = Mock(side_effect=lambda _: held.append(("stop", is_held())))
    monkeypatch.setattr(switch, "systemd", Mock(start=start, abandon=stopped, stop=stopped))
    with pytest.raises(ReleaseError, match="not ready"):
        switch.switch(Mock(), "shop", "r2-a", keep=2, without_consul=True)
    assert held == [
        ("stop", False),
        ("start", True),
        ("stop", True),
        ("start", True),
        ("stop", True),
    ]
    assert not is_held()


@pytest.mark.parametrize("fails", [False, True])
def test_ids_of_another_application_are_held_before_it_starts_and_given_back_when_it_is_gone(
    srv: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(switch, "RUN", srv.parent.parent)
    new, consul = installed(srv, "r2-a"), Mock()
    done: list[str] = []

    def replace_by(*_: Any, **__: Any) -> None:
        done.append("start")
        if fails:
            raise ReleaseError("not ready")

    def leave(_: Any, release: store.Release, held: list[str]) -> None:
        assert (release, held) == (new, ["shop-1"])
        done.append("leave")

    monkeypatch.setattr(switch, "units", Mock(closed_ports=lambda _: []))
    monkeypatch.setattr(switch, "systemd", Mock())
    monkeypatch.setattr(switch, "health", Mock(leave_places=leave))
    monkeypatch.setattr(
        switch.health, "hold_places", lambda *_: [done.append("hold"), "shop-1"][1:]
    )
    monkeypatch.setattr(switch, "_try", Mock())
    monkeypatch.setattr(switch, "_replace_by", replace_by)
    monkeypatch.setattr(switch, "_undo", lambda *_: done.append("stop") or "as before")
    monkeypatch.setattr(switch.retire, "running", lambda _: [])
    with pytest.raises(ReleaseError, match="as before") if fails else nullcontext():
        switch.switch(consul, "shop", "r2-a", keep=2)
    assert done == (["hold", "start", "stop", "leave"] if fails else ["hold", "start"])


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_no_other_application_can_read_the_lock_of_a_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "RUN", tmp_path)
    for app in ("daemon", "mail"):
        status = switch._side_by_side(app).stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o640, 0)
        assert status.st_gid == pwd.getpwnam(app).pw_gid
    assert len([*tmp_path.iterdir()]) == 2


def test_nobody_can_keep_a_host_from_its_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(switch, "HELD", 0.1)
    lock = tmp_path / "lock"
    with lock.open("w") as mine, lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        switch._hold(mine)
        assert "goes on without it" in "".join(capsys.readouterr())
        fcntl.flock(held, fcntl.LOCK_UN)
        switch._hold(mine)
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert "".join(capsys.readouterr()) == ""


def test_a_port_keeps_the_address_at_which_it_was_opened(tmp_path: Path) -> None:
    there = tmp_path / "there.socket"
    new = "[Socket]\nListenStream=[::]:2001\nBacklog=2048\n"
    there.write_text("[Socket]\nListenStream=0.0.0.0:2001\nBacklog=1024\n")
    assert units._put(new, there)
    assert there.read_text() == "[Socket]\nListenStream=0.0.0.0:2001\nBacklog=2048\n"
    assert not units._put(new, there)


def test_a_new_port_is_at_the_hosts_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.socket"
    done: list[tuple[str, ...]] = []
    monkeypatch.setattr(systemd, "systemctl", lambda *words: done.append(words))

    def opened(at: str) -> str:
        assert units._put(f"[Socket]\nListenStream={at}:2001\nFreeBind=yes\n", there)
        return there.read_text().splitlines()[1].partition("=")[2]

    assert opened("127.0.0.1") == "127.0.0.1:2001"
    assert not done
    assert opened("127.0.0.2") == "127.0.0.2:2001", "the host has got another address"
    assert done == [("stop", "there.socket")]
    # Where it is translated on the way.
    for at, every in (("192.0.2.7", "0.0.0.0:2001"), ("[2001:db8::7]", "[::]:2001")):
        there.unlink()
        assert opened(at) == every
        assert f"{at.strip('[]')} is no address of this host" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("ini", "fits"),
    [
        ("socket = fd://3\n", True),
        ("socket = 10.0.3.11:2001\n", True),
        ("; fd://3\nsocket = :2001\n", False),
        ("socket = fd://3 \n", True),
        ("socket = 0.0.0.0:2001\n", False),
    ],
)
@pytest.mark.parametrize("opened", ["10.0.3.11", "0.0.0.0"])
def test_an_ini_that_does_not_find_its_socket_is_refused(
    srv: Path, monkeypatch: pytest.MonkeyPatch, ini: str, fits: bool, opened: str
) -> None:
    release = installed(srv, "r1-a")
    port = release.instances[0].port
    monkeypatch.setattr(units, "UNITS", srv)
    (srv / f"shop-{port}.socket").write_text(f"[Socket]\nListenStream={opened}:{port}\n")
    (release.folder / f"{port}.ini").write_text(ini.replace("2001", str(port)))
    if fits or opened == "0.0.0.0":
        units._refuse_other_names(release, port)
    else:
        with pytest.raises(ReleaseError, match=f"open at 10.0.3.11 alone.*name 10.0.3.11:{port}"):
            units._refuse_other_names(release, port)


@pytest.fixture
def machine(srv: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Where systemd has units, what it is told and what runs."""
    place = srv.parent.parent
    found = SimpleNamespace(units=place / "units", runtime=place / "run", said=[], active=[])
    monkeypatch.setattr(units, "UNITS", found.units)
    monkeypatch.setattr(units, "RUNTIME", found.runtime)
    monkeypatch.setattr(systemd, "systemctl", lambda *words: found.said.append(words[0]))
    monkeypatch.setattr(
        systemd, "active", lambda pattern: [x for x in found.active if fnmatch(x, pattern)]
    )
    return found


def with_units(srv: Path, generation: str) -> store.Release:
    """An instance, and two workers of which one has a number of its own."""
    folder = installed(srv, generation).folder
    fields = json.loads((folder / "release.json").read_text())
    fields["workers"] = [{"name": f"jobs.{number}", "overlap": True} for number in (1, 2)]
    (folder / "release.json").write_text(json.dumps(fields))
    (folder / "units").mkdir()
    names = ("trial.service", "app.target", "2001.service", "jobs.1.service", "jobs.2.service")
    for name in names:
        (folder / "units" / name).write_text("[Service]\n")
    (folder / "units/2001.socket").write_text("[Socket]\nListenStream=127.0.0.1:2001\n")
    return store.load("shop", generation)


TOLD = ["run/shop-trial@", "units/shop-2001@", "units/shop.jobs.1@", "units/shop.jobs.2@"]


def told_of_token(machine: SimpleNamespace) -> list[str]:
    place = machine.units.parent
    found = (each.parent.relative_to(place) for each in place.glob("*/*.service.d/consul.conf"))
    return sorted(str(each).removesuffix(".service.d") for each in found)


def test_units_are_told_of_the_applications_token(srv: Path, machine: SimpleNamespace) -> None:
    token = store.POINTERS / "tokens/shop"
    old, new = (with_units(srv, name) for name in ("r1-a", "r2-a"))
    units.install(old)
    assert told_of_token(machine) == []
    assert machine.said == ["daemon-reload"]
    token.parent.mkdir(parents=True)
    token.touch()  # Consul has none yet
    units.install(old)
    assert told_of_token(machine) == TOLD
    assert machine.said == ["daemon-reload"] * 2
    text = (machine.units / "shop-2001@.service.d/consul.conf").read_text()
    assert text.endswith(f"\n[Service]\nEnvironment=CONSUL_HTTP_TOKEN_FILE={token}\n")
    token.write_text("a-token\n")
    units.install(old)
    assert machine.said == ["daemon-reload"] * 2, "nothing changed"
    units.install(new)  # the same are for all releases
    assert told_of_token(machine) == TOLD
    token.unlink()
    units.install(new)
    assert told_of_token(machine) == []
    assert not [*machine.units.glob("*.d")]
    assert machine.said == ["daemon-reload"] * 4


def test_what_tells_units_of_a_token_goes_with_the_last_of_them(
    srv: Path, machine: SimpleNamespace
) -> None:
    token = store.POINTERS / "tokens/shop"
    token.parent.mkdir(parents=True)
    token.touch()
    theirs = machine.units / "shop-2001@.service.d/memory.conf"
    others = [machine.units / f"{name}.service.d/consul.conf" for name in ("shop-eu-2001@", "shop")]
    for path in (theirs, *others):
        path.parent.mkdir(parents=True)
        path.touch()
    old, new = (with_units(srv, name) for name in ("r1-a", "r2-a"))
    units.install(old)
    store.point_to(old)
    units.install(new)
    units.remove_unused("shop")  # the new one did not come up
    kept = ["units/shop", "units/shop-2001@", "units/shop-eu-2001@", *TOLD[2:]]
    assert told_of_token(machine) == sorted(kept)
    machine.active.append(old.worker_units[0])
    store.pointer("shop").unlink()
    units.remove_unused("shop")
    assert told_of_token(machine) == ["units/shop", "units/shop-eu-2001@", "units/shop.jobs.1@"]
    machine.active.clear()
    units.remove_unused("shop")
    assert told_of_token(machine) == ["units/shop", "units/shop-eu-2001@"]
    assert theirs.exists()
    assert not (machine.units / "shop.jobs.1@.service.d").exists()


def test_a_pointer_to_what_is_gone_is_none(srv: Path) -> None:
    release = installed(srv, "r1-a")
    store.point_to(release)
    store.discard(release)
    assert store.current("shop") is None


def test_the_latest_that_served_are_kept_and_what_they_need(srv: Path) -> None:
    for number in range(1, 6):
        store.record(installed(srv, f"r{number}-a", venv=f"v{number}"))
    store.point_to(store.load("shop", "r4-a"))
    store.record(store.load("shop", "r2-a"))
    installed(srv, "failed-a", venv="v9")
    for path in (srv / "resolutions").iterdir():
        os.utime(path, (0, 0))
    (srv / "resolutions/of-a-deploy-that-goes-on").mkdir()
    store.prune("shop", keep=3)
    assert store.generations("shop") == ["r2-a", "r4-a", "r5-a"]
    assert sorted(path.name for path in (srv / "venvs").iterdir()) == ["v2", "v4", "v5"]
    resolved = sorted(path.name for path in (srv / "resolutions").iterdir())
    assert resolved.pop(0) == "of-a-deploy-that-goes-on"
    assert resolved == ["resolved-v2", "resolved-v4", "resolved-v5"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"release": 1, "node": "a", "instances": [1]}'])
def test_a_damaged_release_is_in_nobodys_way(
    srv: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("r1-a", "r2-a"):
        store.record(installed(srv, name))
    new = store.load("shop", "r2-a")
    store.point_to(new)
    (srv / "releases/r1-a/release.json").write_text(text)
    assert store.first_ids(new) == []
    store.prune("shop", keep=2)
    store.show("shop")
    assert [row["release"] for row in json.loads(capsys.readouterr().out)] == ["r2"]
    with pytest.raises(ReleaseError, match=r"r1-a/release.json can't be read"):
        store.load("shop", "r1-a")


def test_a_removal_that_is_cut_short_leaves_no_half_release(
    srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = installed(srv, "r1-a")

    def cut(path: Path, **_: bool) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(store.shutil, "rmtree", cut)
        store.discard(release)
    assert [*(srv / "releases").glob("[!.]*")] == []
    store.discard(installed(srv, "r1-a"))
    assert [*(srv / "releases").iterdir()] == []


def test_an_unknown_release_is_an_error_that_lists_what_is_there(srv: Path) -> None:
    installed(srv, "r1-a")
    with pytest.raises(Exception, match="no release r2 on this host; there is: r1-a"):
        store.load("shop", "r2")


def test_the_place_in_the_list_is_that_of_the_last_time(
    srv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("r1-a", "r2-a", "r3-a"):
        store.record(installed(srv, name))
    for name in ("r2-a", "r4-a"):
        store.record(store.load("shop", name) if name == "r2-a" else installed(srv, name))
    store.point_to(store.load("shop", "r4-a"))
    store.show("shop")
    rows = json.loads(capsys.readouterr().out)
    assert [row["release"] for row in rows] == ["r4", "r2", "r3", "r1"]


def test_what_was_a_mistake_never_served(srv: Path) -> None:
    for name in ("r1-a", "r2-a"):
        store.record(installed(srv, name))
    store.forget(store.load("shop", "r2-a"))
    assert store.generations("shop") == ["r1-a"]
    assert [entry["generation"] for entry in store.history("shop")] == ["r1-a"]


@pytest.mark.parametrize(("undo", "left"), [(True, []), (False, ["r1-a"])])
def test_one_that_is_put_out_of_service_again_never_served(
    srv: Path, monkeypatch: pytest.MonkeyPatch, undo: bool, left: list[str]
) -> None:
    store.record(installed(srv, "r1-a"))
    store.point_to(store.load("shop", "r1-a"))
    monkeypatch.setattr(ownership, "expect", lambda app: None)
    monkeypatch.setattr(systemd, "systemctl", lambda *words: "")
    monkeypatch.setattr(systemd, "active", lambda pattern: [])
    monkeypatch.setattr(units, "UNITS", srv)
    retire.stop("shop", undo=undo)
    assert store.current("shop") is None
    assert [entry["generation"] for entry in store.history("shop")] == left
    assert store.generations("shop") == left


def test_one_that_served_well_before_stays(srv: Path) -> None:
    for name in ("r1-a", "r2-a"):
        store.record(installed(srv, name))
    store.record(store.load("shop", "r1-a"))
    store.forget(store.load("shop", "r1-a"))
    assert store.generations("shop") == ["r1-a", "r2-a"]


def test_the_list_has_the_one_that_serves_first(
    srv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("r1-a", "r2-a", "r3-a"):
        store.record(installed(srv, name))
    installed(srv, "r4-a")
    store.point_to(store.load("shop", "r1-a"))
    store.show("shop")
    rows = json.loads(capsys.readouterr().out)
    assert [row["release"] for row in rows] == ["r1", "r3", "r2", "r4"]
    assert [row["since"] is None for row in rows] == [False, False, False, True]


# --- To which release a roll-back goes -------------------------------------------------


def back_to(srv: Path, *steps: str) -> str:
    """Of a host on which these served one after the other; ``<x`` by a roll-back."""
    for step in steps:
        name = step.lstrip("<")
        there = srv / "releases" / name
        release = store.load("shop", name) if there.exists() else installed(srv, name)
        store.record(release, back=step.startswith("<"))
    return store.previous("shop", steps[-1].lstrip("<"))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("r1-a",), ""),
        (("r1-a", "r2-a"), "r1-a"),
        (("r1-a", "r2-a", "r3-a", "<r2-a"), "r1-a"),  # not to the bad one
        (("r1-a", "r2-a", "r3-a", "<r2-a", "<r1-a"), ""),
        (("r1-a", "r2-a", "r3-a", "<r1-a"), ""),
        (("r1-a", "r2-a", "<r1-a", "r3-a"), "r1-a"),
        (("r1-a", "r2-a", "<r1-a", "r2-a"), "r1-a"),
        (("r1-a", "r2-a", "r1-a"), "r2-a"),  # released once more, on purpose
        (("r1-a", "r2-a", "r3-a", "<r2-a", "<r3-a"), "r2-a"),  # forward again, by its name
    ],
)
def test_a_roll_back_goes_further_back(srv: Path, steps: tuple[str, ...], expected: str) -> None:
    assert back_to(srv, *steps) == expected


def test_a_roll_back_is_noted_with_when_it_began(srv: Path) -> None:
    store.record(installed(srv, "r2-a"))
    store.record(installed(srv, "r1-a"), back=True, began="2026-01-01T00:00:00+00:00")
    assert store.history("shop")[-1]["began"] < store.history("shop")[-1]["since"]


def test_a_content_that_was_gone_back_to_keeps_what_it_left(srv: Path) -> None:
    began = "2026-01-01T00:00:00+00:00"
    store.record(installed(srv, "r2-a"))
    store.record(installed(srv, "r1-a"), back=True, began=began)
    store.record(installed(srv, "r1-b"))  # with another setting
    last = store.history("shop")[-1]
    assert ([each["release"] for each in last["left"]], last["began"]) == (["r2"], began)
    assert last["left"][0]["settings"] == ""
    store.record(installed(srv, "r3-a"))
    assert "left" not in store.history("shop")[-1]


def test_a_release_that_is_gone_is_passed_over(srv: Path) -> None:
    assert back_to(srv, "r1-a", "r2-a", "r3-a") == "r2-a"
    store.discard(store.load("shop", "r2-a"))
    assert store.previous("shop", "r3-a") == "r1-a"


# --- What counts as healthy -----------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "healthy", "not_healthy"),
    [
        ("200-299", (200, 204, 299), (199, 300, 301, 401, 500)),
        ("200,301-302", (200, 301, 302), (201, 303)),
    ],
)
def test_the_statuses_of_a_healthy_answer(
    statuses: str, healthy: tuple[int, ...], not_healthy: tuple[int, ...]
) -> None:
    assert all(health.is_healthy(status, statuses) for status in healthy)
    assert not any(health.is_healthy(status, statuses) for status in not_healthy)


class Picky(BaseHTTPRequestHandler):
    """Answers to its own name over https alone, as Django does where it is told to."""

    def do_GET(self) -> None:
        fine = (
            self.headers["Host"] == "sea.example" and self.headers["X-Forwarded-Proto"] == "https"
        )
        self.send_response(200 if fine else 301)
        self.send_header("Location", "https://sea.example/")
        self.end_headers()

    def address_string(self) -> str:
        return "unix"


def test_an_application_that_answers_to_its_own_name(
    srv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "SOCKETS", tmp_path)
    release = installed(srv, "v1-aaaa")
    path = health.private_socket(release, 2001)
    path.parent.mkdir()
    with socketserver.UnixStreamServer(str(path), Picky) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        found = health._problem(replace(release, health_statuses="200-299"), 2001)
        assert found == "GET /: 301 Moved Permanently: a redirect to https://sea.example/"
        # What was released before there were such settings.
        assert health._problem(release, 2001) == ""
        headers = {"Host": "sea.example", "X-Forwarded-Proto": "https"}
        told = replace(release, health_statuses="200-299", health_headers=headers)
        assert health._problem(told, 2001) == ""
        server.shutdown()
