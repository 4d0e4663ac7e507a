"""An application's own commands: what the settings say, and what becomes of them on a host."""

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sources

from uwsgi_consul_fleet.build.builder import assignments
from uwsgi_consul_fleet.errors import InventoryError
from uwsgi_consul_fleet.host import content, main, ownership, retire, steps, store, switch
from uwsgi_consul_fleet.host.says import ReleaseError
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.operations.applications import decided, once
from uwsgi_consul_fleet.operations.applications import steps as planned
from uwsgi_consul_fleet.operations.applications.environment import render
from uwsgi_consul_fleet.operations.applications.once import Once
from uwsgi_consul_fleet.operations.applications.package import Package, make, settings_alone
from uwsgi_consul_fleet.operations.applications.release import read
from uwsgi_consul_fleet.operations.files import RemoteFile
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.releases.rule import Content

PLUGIN = RemoteFile("/opt/plugins/1/consul_plugin.so", b"")
APP = "nobody"  # a user that each machine has

# --- What the settings say ---


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "media").mkdir(parents=True)
    (folder / "media/logo.svg").touch()
    (folder / "manage.py").touch()
    (folder / "link").symlink_to("media")
    return folder


def host(folder: Path, **settings: Any) -> AppHost:
    return sources.host(folder, **{"app_root": ".", "app_entry_point": "manage:x", **settings})


def package(folder: Path, **settings: Any) -> Package:
    me = host(folder, **settings)
    return make(me, read(me.settings))


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("app_shared", ["../media/"], "leads out of app_source"),
        ("app_shared", ["/srv/media/"], "leads out of app_source"),
        ("app_shared", ["./"], "would share the application itself"),
        ("app_shared", ["media/", "media/old/"], "media/old/ is in media/"),
        ("app_packages", ["libpq5=15"], "app_packages.0 = 'libpq5=15'"),
        ("app_build_packages", ["-y"], "app_build_packages.0 = '-y'"),
        ("app_build", ["make\nrm"], "app_build.0 = 'make\\nrm'"),
        ("app_release", [""], "app_release.0 = ''"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    project: Path, setting: str, value: list[str], says: str
) -> None:
    with pytest.raises(InventoryError) as caught:
        host(project, **{setting: value})
    assert "drakar: " in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize(
    ("shared", "says"),
    [
        ("manage.py/", "manage.py is a file"),
        ("manage.py/x", "manage.py is a file"),
        ("link", "link is a link"),
        ("link/", "link is a link"),
        ("link/x/", "link is a link"),
    ],
)
def test_what_a_link_can_not_take_the_place_of_is_refused(
    project: Path, shared: str, says: str
) -> None:
    with pytest.raises(DeployError) as caught:
        package(project, app_shared=[shared])
    assert says in str(caught.value) and "nothing was changed" in str(caught.value)


def test_without_a_root_what_is_shared_begins_with_the_sources_name(project: Path) -> None:
    assert package(project, app_root=None, app_shared=["shop/media/"])
    with pytest.raises(DeployError, match="media/ is not in app_source, which lands as shop/"):
        package(project, app_root=None, app_shared=["media/"])


def test_what_is_built_is_another_generation_and_what_runs_once_is_not(project: Path) -> None:
    def names(**settings: Any) -> tuple[str, str]:
        found, me = package(project, **settings), host(project, **settings)
        assert found.release.content == before.release.content
        return found.generation(PLUGIN, ""), settings_alone(me, found.release.template)

    before = package(project)
    usual = names()
    assert names(app_release=["python manage.py migrate"]) == usual
    assert names(app_build_packages=["nodejs"], app_step_timeout=1) == usual
    others = [
        names(app_build=["make"]),
        names(app_build=["make all"]),
        names(app_shared=["media/"]),
        names(app_packages=["libpq5"]),
    ]
    for found in zip(usual, *others, strict=True):
        assert len({*found}) == len(others) + 1


def test_static_files_that_are_built_are_not_missed(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    static = {"/static": "staticfiles"}
    package(project, app_static=static, app_build=["make"])
    assert "nothing is sent of" not in caplog.text
    package(project, app_static=static)
    assert "nothing is sent of source/staticfiles" in caplog.text


# --- On a host ---

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
INI = """[uwsgi]
chdir = %dsource/
pythonpath = %dsource/src
env = APP_NODE=drakar
env = BUNDLE_PATH=%dbrought
"""
VARIABLES = {"DATABASE_URL": 'sqlite://user:p"a$s`s\\w@db', "MODE": 'two\nlines="x"'}


class Place:
    """A host's folder of an application, with releases in it."""

    def __init__(self, root: Path) -> None:
        self.app = root / APP

    def unpack(self, name: str, build: list[str] = (), shared: list[str] = ()) -> Path:  # type: ignore[assignment]
        """As install.sh leaves it."""
        release = self.app / "releases" / name
        (release / "source/media").mkdir(parents=True)
        (release / "source/media/logo.svg").write_text(name)
        (release / "source/manage.py").write_text(name)
        (release / "venv/bin").mkdir(parents=True)
        (release / "venv/bin/python").symlink_to("/usr/bin/python3")
        (release / "2001.ini").write_text(INI)
        (release / "environment").write_text(render(VARIABLES))
        instances = [{"id": "server1", "port": 2001}]
        fields = {"steps": {"build": build, "shared": shared}, "instances": instances}
        (release / steps.UNFINISHED).write_text(json.dumps(fields))
        return release

    def finish(self, name: str, build: list[str] = (), shared: list[str] = (), **more: Any) -> Path:  # type: ignore[assignment]
        release = self.unpack(name, build, shared)
        steps.finish(APP, name, about(**more))
        return release

    def once(self, name: str, *commands: str) -> None:
        steps.once(APP, name, f"{name} 0123", json.dumps(commands), about())


def about(**more: Any) -> str:
    return json.dumps({"root": "source/", "secrets": ["DATABASE_URL"], "timeout": 20, **more})


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(dir="/var/tmp"))  # where its user may look
    root.chmod(0o755)
    monkeypatch.setattr(store, "ROOT", root)
    monkeypatch.setattr(store, "POINTERS", root / "etc")
    monkeypatch.setattr(os, "nice", lambda _: 0)
    yield Place(root)
    shutil.rmtree(root)


def owner(path: Path) -> str:
    return pwd.getpwuid(path.lstat().st_uid).pw_name


@as_root
def test_a_build_runs_as_the_user_in_the_releases_environment(place: Place) -> None:
    words = '"$(id -un)" "$MODE" "$DATABASE_URL" "$APP_NODE" "$BUNDLE_PATH" "$PYTHONPATH"'
    told = f'printf "%s|" {words} "$(command -v python)"'
    release = place.finish("r1", [f"mkdir built; {told} >built/told", "umask 077; echo >manage.py"])
    said = (release / "source/built/told").read_text().split("|")[:-1]
    ini = ["drakar", str(release / "brought"), str(release / "source/src")]
    python = str(release / "venv/bin/python")
    assert said == [APP, VARIABLES["MODE"], VARIABLES["DATABASE_URL"], *ini, python]
    # It serves what was built, and can't change it.
    for path in (release / "source", release / "source/built/told", release / "source/manage.py"):
        assert owner(path) == "root"
        assert path.stat().st_mode & 0o022 == 0
    assert (release / "source/manage.py").stat().st_mode & 0o040
    assert (release / "release.json").exists()
    # What a host that comes later gets is what was sent.
    sent = {each.path: each.place.read_text() for each in content.sources(release)}
    assert sent == {"source/manage.py": "r1", "source/media/logo.svg": "r1"}


@as_root
def test_a_command_is_told_of_the_applications_token_and_can_read_it(place: Place) -> None:
    told = 'echo "${CONSUL_HTTP_TOKEN_FILE-none} $(cat $CONSUL_HTTP_TOKEN_FILE </dev/null)" >told'
    assert (place.finish("r1", [told]) / "source/told").read_text() == "none \n"
    token = store.POINTERS / "tokens" / APP
    token.parent.mkdir(parents=True)
    token.write_text("s3cr3t\n")
    token.chmod(0o640)
    os.chown(token, 0, pwd.getpwnam(APP).pw_gid)
    assert (place.finish("r2", [told]) / "source/told").read_text() == f"{token} s3cr3t\n"


@as_root
def test_of_a_build_that_fails_nothing_stays_and_no_secret_is_told(place: Place) -> None:
    long = "seq 40; echo url: $DATABASE_URL >&2; exit 3"
    with pytest.raises(ReleaseError) as caught:
        place.finish("r1", ["touch made", long])
    said = str(caught.value)
    assert f"app_build: {long!r} ended with status 3 on {os.uname().nodename}" in said
    assert "nothing of the release was kept" in said
    assert "    40\n    url: [DATABASE_URL]\n" in said and "    21\n" not in said
    assert VARIABLES["DATABASE_URL"] not in said
    assert not [*(place.app / "releases").iterdir()]


@as_root
def test_a_command_that_hangs_is_ended_with_what_it_began(place: Place) -> None:
    began = time.monotonic()
    with pytest.raises(ReleaseError, match=r"took more than 0\.5 s \(app_step_timeout\)"):
        place.finish("r1", ["sleep 60 & echo $! >&1; sleep 60"], timeout=0.5)
    assert time.monotonic() - began < 30


@as_root
def test_what_is_shared_is_made_of_the_first_release_and_then_kept(place: Place) -> None:
    shared = ["media/", "db.sqlite3", "var/log/"]
    first = place.finish("r1", ["echo 1 >media/upload; echo 1 >db.sqlite3"], shared)
    second = place.finish("r2", ["echo 2 >>db.sqlite3; ls media >built"], shared)
    there = place.app / "shared"
    assert (there / "db.sqlite3").read_text() == "1\n2\n"
    assert (second / "source/built").read_text() == "logo.svg\nupload\n"
    assert (second / "source/media/logo.svg").read_text() == "r1"
    for release in (first, second):
        for name in ("media", "db.sqlite3", "var/log"):
            assert (release / "source" / name).resolve() == (there / name).resolve()
    assert there.stat().st_mode & 0o777 == 0o750
    assert {owner(each) for each in (there, *there.rglob("*"))} == {APP}
    assert not [each for each in there.rglob("*") if each.stat().st_mode & 0o022]


@as_root
@pytest.mark.parametrize("build", [[], ["echo r2 >manage.py"]])
def test_what_was_sent_takes_room_again_where_something_is_built(
    place: Place, build: list[str]
) -> None:
    release = place.finish("r1", build, ["media/"])
    sent = {each.path: each.place for each in content.sources(release)}
    assert {path: each.read_text() for path, each in sent.items()} == {
        "source/manage.py": "r1",
        "source/media/logo.svg": "r1",
    }
    its = sent["source/manage.py"]
    assert its.samefile(release / "source/manage.py") == (not build)


@as_root
def test_links_in_what_is_shared_lead_roots_hand_nowhere(place: Place, tmp_path: Path) -> None:
    place.finish("r1", shared=["media/"])
    (place.app / "shared/var").symlink_to(tmp_path)
    with pytest.raises(ReleaseError, match=r"app_shared: var/log/: .* can't be made"):
        place.finish("r2", shared=["var/log/"])
    assert not [*tmp_path.iterdir()]


@as_root
def test_app_release_does_not_run_again_where_it_went_well(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = place.finish("r1", shared=["media/"])
    its = SimpleNamespace(folder=release, instances=(store.Instance("server1", 2001),))
    monkeypatch.setattr(store, "load", lambda app, name: its)
    with pytest.raises(ReleaseError, match="app_release: 'false' ended with status 1"):
        place.once("r1", "echo x >>media/ran", "false")
    place.once("r1", "echo x >>media/ran", "echo $DATABASE_URL")
    place.once("r1", "echo x >>media/ran")
    assert (place.app / "shared/media/ran").read_text() == "x\nx\n"
    said = capfd.readouterr().out
    assert "[DATABASE_URL]\n" in said and VARIABLES["DATABASE_URL"] not in said
    assert "went well here before, and does not run again" in said


@as_root
@pytest.mark.parametrize("purge", [True, False])
def test_what_is_shared_outlives_the_application(
    place: Place, purge: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = {"made": [f"app:{APP}"]}
    monkeypatch.setattr(ownership, "read", lambda: made)
    monkeypatch.setattr(ownership, "_write", made.update)
    place.finish("r1", shared=["media/"])
    (place.app / "history").touch()
    token = store.POINTERS / "tokens" / APP
    token.parent.mkdir(parents=True)
    token.touch()
    retire.remove(APP, purge)
    assert not token.exists()
    assert f"{place.app}/shared (app_shared)" in capfd.readouterr().out
    assert [each.name for each in place.app.iterdir()] == ["shared"] or not purge
    assert (place.app / "shared/media/logo.svg").read_text() == "r1"
    # Its user is gone, and another one may get the number.
    assert owner(place.app / "shared") == "root"
    assert (place.app / "shared").stat().st_mode & 0o077 == 0
    assert made == {"made": [f"app:{APP}"]}
    # It is the user's again whatever comes first, who need not have the number of before.
    os.chown(place.app / "shared/media", 54321, 54321)
    place.finish("r2")
    assert {owner(each) for each in (place.app / "shared").rglob("*")} == {APP}
    assert (place.app / "shared").stat().st_mode & 0o777 == 0o750
    os.chown(place.app / "shared", 54321, 54321)
    for name in ("load", "current"):
        monkeypatch.setattr(store, name, lambda *_: None)
    monkeypatch.setattr(retire, "running", lambda app: 1 / 0)  # no further
    with pytest.raises(ZeroDivisionError):
        switch.switch(None, APP, "r2", keep=2, without_consul=True)  # type: ignore[arg-type]
    assert owner(place.app / "shared") == APP
    shutil.rmtree(place.app / "shared")
    retire.remove(APP, purge=True)
    assert made == {"made": []} and not place.app.exists()


def test_who_waits_for_another_run_says_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "LOCK", tmp_path / "lock")
    said: list[str] = []
    waits = threading.Event()
    monkeypatch.setattr(main, "say", lambda text: (said.append(text), waits.set()))

    def switch_too() -> None:
        with main._alone("switch of shop"):
            said.append(main.LOCK.read_text())

    other = threading.Thread(target=switch_too)
    with main._alone("app_release of shop"):
        other.start()
        assert waits.wait(10)
        assert said == ["waits for what an interrupted run began here: app_release of shop"]
    other.join(10)
    assert said[1:] == ["switch of shop\n"]


NO_OVERLAY = '#!/bin/sh\ncase $* in *overlay*) exit 1 ;; esac\nexec /bin/mount "$@"\n'


def test_packages_to_build_with_need_a_scratch_layer(tmp_path: Path) -> None:
    """Where none can be put, that is said before anything is installed or built."""
    (tmp_path / "mount").write_text(NO_OVERLAY)
    (tmp_path / "mount").chmod(0o755)
    about = {"app": APP, "name": "r1", "about": "{}", "packages": "nodejs"}
    where = {"keep_toolchain": "no", "program": "/nonexistent", "run": "raise SystemError"}
    text = assignments(**about, **where) + planned.BUILD
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SCRIPT": text}
    words = ["sh", "-c", text]
    result = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    refused = "no scratch layer can be put on this host: install them by app_packages"
    assert result.returncode == 1
    assert result.stderr == f"## failed: app_build_packages: {refused}\n"


# --- Once for all hosts ---

R1 = Content("r1", "0123")
RECORD = {**R1.as_dict(), "host": "cheetah", "since": "2026-11-26T10:00:00.1Z"}


class Fleet:
    """A run over drakar and, as far as it is said, cheetah; of what Consul knows this much."""

    def __init__(self, before: dict[str, str], connected: set[str], ends: Any = (True, ())) -> None:
        self.log: list[str] = []
        self.noted: list[str] = []
        self.ran: list[str] = []
        self._before, self._ends = before, ends
        hosts = tuple(self._host(name) for name in ("drakar", "cheetah"))
        self.fleet = SimpleNamespace(serving=lambda app: hosts)
        self.pyinfra = SimpleNamespace(
            connected=connected,
            failed=frozenset(),
            host=lambda name: SimpleNamespace(log=self.log.append),
            executor=self._executor,
        )
        self.lock = SimpleNamespace(
            begin=self._begin,
            ended=lambda app, release, host, state: self.noted.append(f"{host} {state}"),
        )

    def _begin(self, app: str, release: Any, host: str, state: str) -> dict[str, str]:
        self.noted += [] if self._before or state == "begun" else [f"{host} {state}"]
        return self._before

    def _host(self, name: str) -> Any:
        settings = SimpleNamespace(app_release=["migrate"])
        return SimpleNamespace(name=name, app="shop", settings=settings)

    def _executor(self, name: str) -> Any:
        def execute(words: Any, show: bool) -> Any:
            self.ran.append(name)
            if isinstance(self._ends, Exception):
                raise self._ends
            return self._ends[0], SimpleNamespace(stderr_lines=self._ends[1])

        return execute

    def its_state(self, its: Any) -> Any:
        return SimpleNamespace(python="cp311")


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Any:
    def went_well(fleet: Any, is_served: bool = False) -> bool:
        monkeypatch.setattr(once, "guard", lambda here: fleet)
        monkeypatch.setattr(once, "plugin_file", lambda its: PLUGIN)
        monkeypatch.setattr(once, "command", lambda here, *words: words)
        monkeypatch.setattr(planned, "about", lambda settings: "{}")
        prepared = SimpleNamespace(generation=lambda plugin, kind: "r1-1a2b3c4d")
        monkeypatch.setattr(decided, "prepare", lambda here: prepared)
        release: Any = SimpleNamespace(release=SimpleNamespace(content=R1), is_served=is_served)
        found, (first, second) = Once(fleet), fleet.fleet.serving("shop")
        here, other = once.AppHere(fleet, first), once.AppHere(fleet, second)
        try:
            found.went_well(here, release)
        except DeployError as error:
            # The other one was waiting for it.
            with pytest.raises(DeployError, match=re.escape(str(error))):
                found.went_well(other, release)
            raise
        return found.went_well(other, release)

    return went_well


BOTH = {"drakar", "cheetah"}


def test_it_runs_once_and_that_is_noted(go: Any) -> None:
    fleet = Fleet({}, BOTH)
    assert go(fleet)
    assert (fleet.ran, fleet.noted) == (["drakar"], ["drakar done"])


def test_what_ran_in_another_run_does_not_again(go: Any) -> None:
    fleet = Fleet({**RECORD, "state": "done"}, BOTH)
    assert go(fleet)
    assert not fleet.ran and not fleet.noted
    told = "app_release: ran for r1 on cheetah at 2026-11-26T10:00:00Z, and does not again"
    assert fleet.log == [told]


def test_for_what_served_before_it_was_set_it_does_not_run(go: Any) -> None:
    """A roll-back may have come back to that: then the database is ahead of it."""
    fleet = Fleet({}, BOTH)
    assert go(fleet, is_served=True)
    assert (fleet.ran, fleet.noted) == ([], ["drakar done"])
    assert fleet.log == ["app_release: hosts serve r1 already: it does not run for that"]


def test_where_it_was_begun_it_is_known_how_it_ended(go: Any) -> None:
    fleet = Fleet({**RECORD, "state": "begun"}, BOTH)
    assert go(fleet)
    assert (fleet.ran, fleet.noted) == (["cheetah"], ["cheetah done"])
    fleet = Fleet({**RECORD, "state": "begun"}, {"drakar"})
    with pytest.raises(DeployError, match=r"was begun on cheetah at .* --data release=NAME"):
        go(fleet)
    assert not fleet.ran and not fleet.noted


@pytest.mark.parametrize(
    ("ends", "noted", "says"),
    [
        ((False, ["app_release: 'migrate' ended with status 1"]), ["drakar failed"], "see above"),
        ((False, []), [], "connection lost: it may go on there"),
        (OSError("reset"), [], r"connection lost \(reset\): it may go on there"),
    ],
)
def test_one_that_fails_and_one_of_which_nobody_knows(
    go: Any, ends: Any, noted: list[str], says: str
) -> None:
    fleet = Fleet({}, BOTH, ends)
    with pytest.raises(DeployError, match=f"{says}; nothing was switched"):
        go(fleet)
    assert (fleet.ran, fleet.noted) == (["drakar"], noted)
