"""A release's other processes: what is said of them, their units, and their part in a switch."""

import json
import re
import shlex
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from uwsgi_consul_fleet.commands import report
from uwsgi_consul_fleet.errors import FleetError, InventoryError
from uwsgi_consul_fleet.host import retire, store, switch, systemd, units
from uwsgi_consul_fleet.host.says import ReleaseError
from uwsgi_consul_fleet.instances import logs
from uwsgi_consul_fleet.inventory.applications import Described
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations import left_out
from uwsgi_consul_fleet.operations.applications import workers
from uwsgi_consul_fleet.operations.applications.package import Package, make
from uwsgi_consul_fleet.operations.applications.release import read
from uwsgi_consul_fleet.operations.files import RemoteFile
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import AppHere
from uwsgi_consul_fleet.operations.state import AppState, HostState
from uwsgi_consul_fleet.releases import releases
from uwsgi_consul_fleet.releases.releases import Generation, HostReleases
from uwsgi_consul_fleet.releases.rollback import targets
from uwsgi_consul_fleet.verify import workers as verification

CELERY = "celery -A shop worker"
BEAT = {"command": "celery -A shop beat", "overlap": False}
ROOT = Path(__file__).resolve().parents[2]


def fleet(*names: str, **given: Any) -> Fleet:
    data = {
        **DEMO,
        "app_name": "shop",
        "app_source": str(ROOT / "app"),
        "app_requirements": str(ROOT / "app/requirements.txt"),
        "app_ini": None,
        "app_workers": given,
    }
    groups = frozenset({"consul_servers", "app_servers"})
    hosts = [InventoryHost(name, groups, data) for name in names or ["drakar"]]
    return build(hosts, (), (), lambda entry: f"10.0.3.{len(entry.name)}")


def package_of(**given: Any) -> Package:
    host = fleet(**given).applications[0]
    return make(host, read(host.settings))


def generation_of(**given: Any) -> str:
    return package_of(**given).generation(RemoteFile("/plugin", b""), "cpython-311")


# --- What is said of them ------------------------------------------------------------


def test_each_host_has_those_that_are_to_run_there() -> None:
    beat = {**BEAT, "hosts": ["cheetah"]}
    celery, none = {"command": CELERY, "count": 2}, {**BEAT, "hosts": []}
    found = fleet("drakar", "cheetah", celery=celery, beat=beat, none=none)
    assert {each.name: each.worker_names for each in found.applications} == {
        "drakar": ["celery.1", "celery.2"],
        "cheetah": ["celery.1", "celery.2", "beat.1"],
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"beat": BEAT},
            "shop: app_workers: beat: with overlap = False it runs on one host, and these would "
            'have it: drakar, cheetah; name one of them: hosts = ["drakar"]',
        ),
        (
            {"a": {"command": "b", "hosts": ["drakkar"]}},
            "does not serve shop, did you mean 'drakar'?",
        ),
        ({"beat": {**BEAT, "count": 2}}, "with overlap = False there is one process"),
        ({"a": {"command": "b", "cuont": 2}}, "unknown key, did you mean 'count'?"),
        ({"a": {"command": "b\nc"}}, "a command is one line"),
        ({"a": ""}, "at least 1 character"),
        ({"a": "FOO='1 2' celery"}, "begins with a variable: put env before that"),
        ({"a": "cd src && celery"}, "one program is run, and nothing behind &&: sh -c "),
        ({"a": "celery; true"}, "nothing behind ;"),
        ({"a": "celery | tee 'x'"}, "nothing behind |"),
        ({"a": "celery&"}, "nothing behind &"),
        ({"a.b": "c"}, "should match pattern"),
        ({"a": {"command": "b", "stop_signal": "SIGKILL"}}, "'SIGTERM', 'SIGINT'"),
    ],
)
def test_what_can_not_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InventoryError) as caught:
        fleet("drakar", "cheetah", **given)
    assert any(said in each for each in caught.value.problems), caught.value


@pytest.mark.parametrize("others", [{}, {"cheetah": "r1"}, {"cheetah": "r2"}])
def test_what_must_never_run_twice_does_not_begin_on_a_second_host(others: dict[str, str]) -> None:
    """It is on cheetah as long as that is on r1."""
    generations = {"r1": {"workers": [{"name": "beat.1", "overlap": False}]}, "r2": {}}
    found = fleet("drakar", "cheetah", beat={**BEAT, "hosts": ["drakar"]})

    def state(name: str) -> Mock:
        return Mock(of=lambda _: AppState(generations=generations, current_generation=others[name]))

    run = Mock(fleet=found, pyinfra=Mock(connected={"drakar", *others}), state_of=state)
    run.once = lambda _: {}  # what --limit leaves out
    run.its_state = lambda _: AppState()
    here = AppHere(run, found.applications[0])
    said = "drakar: app_workers: beat runs on cheetah, and would begin here before it has ended"
    with pytest.raises(DeployError, match=said) if "r1" in others.values() else nullcontext():
        workers.refuse_a_move(here)


@pytest.mark.parametrize("groups", [{"blog"}, {"consul_servers"}, {"retired"}])
@pytest.mark.parametrize("overlap", [True, False])
def test_nor_where_limit_leaves_out_the_host_that_it_is_moved_from(
    overlap: bool, groups: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is cheetah, which is not to have this application any more."""
    given = {key: DEMO[key] for key in ("app_source", "app_entry_point", "app_requirements")}
    beat = {**BEAT, "overlap": overlap, "hosts": ["drakar"]}
    shop = {**given, "instances": {"web": 1}, "app_workers": {"beat": beat}}
    blog = {**given, "instances": {"web": 2}}
    hosts = {"drakar": {"consul_servers", "shop"}, "cheetah": groups, "smith": {"builders"}}
    found = build(
        [InventoryHost(name, frozenset(its), {}) for name, its in hosts.items()],
        (),
        (),
        lambda entry: f"10.0.3.{len(entry.name)}",
        [Described("shop.py", shop), Described("blog.py", blog)],
        {"shop", "blog"},
    )
    generations = {"r1": {"workers": [{"name": "beat.1", "overlap": overlap}]}}
    its = AppState(generations=generations, current_generation="r1")
    ask = Mock(return_value=HostState(apps={"shop": its}))
    monkeypatch.setattr(left_out.state, "ask", ask)
    run = Mock(fleet=found, pyinfra=Mock(connected={"drakar"}, about={"drakar"}))
    run.once = lambda make: make(run)
    run.its_state = lambda _: AppState()
    here = AppHere(run, found.serving("shop")[0])
    said = r"beat runs on cheetah, .* with hosts = \[\] for beat and without --limit; nothing"
    with nullcontext() if overlap else pytest.raises(DeployError, match=said):
        workers.refuse_a_move(here)
    assert [call.args[0].name for call in ask.mock_calls] == ([] if overlap else ["cheetah"])


# --- Their units ---------------------------------------------------------------------


def test_a_unit_for_each() -> None:
    beat = {**BEAT, "stop_signal": "SIGINT", "stop_timeout": 7}
    package = package_of(celery={"command": CELERY, "count": 2}, beat=beat)
    texts = {name: file.content.decode() for name, file in package.files.items()}
    found = {name for name in texts if re.fullmatch(r"units/[a-z]+\.\d\.service", name)}
    assert found == {f"units/{name}.service" for name in ("celery.1", "celery.2", "beat.1")}
    celery, last = texts["units/celery.2.service"], texts["units/beat.1.service"]
    assert "Environment=APP_WORKER=celery.2\n" in celery
    assert 'Environment="APP_NODE=drakar"\n' in celery and "APP_PORT" not in celery
    assert 'Environment="PYTHONPATH=/srv/shop/releases/%i/"\n' in celery
    assert "KillSignal=SIGTERM\n" in celery and "TimeoutStopSec=30\n" in celery
    assert "KillSignal=SIGINT\n" in last and "TimeoutStopSec=7\n" in last


@pytest.mark.parametrize(
    "command",
    [
        CELERY,
        """a "b c" '$HOME' $X %n \\\\ 100% é""",
        """env X=1 a --x=';' "y\\" && b" z\\;z -c "$(a | b)" -d $(a; b) 2>&1""",
    ],
)
def test_a_shell_gets_the_command_as_it_was_written(command: str) -> None:
    package = package_of(a=command)
    (line,) = re.findall(
        "^ExecStart=(.*)$", package.files["units/a.1.service"].content.decode(), re.M
    )
    shell, option, text = shlex.split(line)  # which reads such a word as systemd does
    assert (shell, option) == ("/bin/sh", "-c")
    assert text.replace("%%", "%").replace("$$", "$").endswith(f"; exec {command}")


def test_they_make_another_generation_and_none_change_nothing() -> None:
    given = [{}, {"a": "b"}, {"a": {"command": "b", "count": 2}}]
    given.append({"a": {"command": "b", "overlap": False}})
    assert len({generation_of(**each) for each in given}) == 4
    assert b"workers" not in package_of().files["release.json"].content


def test_the_settings_of_a_release_have_one_name_on_all_hosts() -> None:
    found = fleet("drakar", "cheetah", a="b", beat={**BEAT, "hosts": ["cheetah"]})
    made = [make(each, read(each.settings)) for each in found.applications]
    one, other = (json.loads(each.files["release.json"].content) for each in made)
    for key in ("settings", "settings_alone"):
        assert one[key] == other[key]
    assert [each["name"] for each in other["workers"]] == ["a.1", "beat.1"] != one["workers"]


# --- Their part in a switch ----------------------------------------------------------


class Killed(BaseException):
    """Not an error that anybody handles."""


class Host:
    """What systemd runs, and what was asked of it; `left` calls until the program is killed."""

    def __init__(self) -> None:
        self.runs: set[str] = set()
        self.failing: set[str] = set()
        self.told: list[str] = []
        self.left = 10**6

    def _call(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def start(
        self, names: Iterable[str], seconds: float | None = None, alone: bool = False
    ) -> None:
        for name in names:
            self._call()
            if name.endswith(".socket") and not alone:
                self.runs |= self.wanted()
            if name not in self.runs:
                self.told.append(f"+{name}")
            self.runs.add(name)
            self.expect_one_beat()
        self.runs -= self.failing

    def stop(self, names: Iterable[str]) -> None:
        for name in names:
            self._call()
            self.told.append(f"-{name}")
            self.runs.discard(name)

    def active(self, pattern: str) -> list[str]:
        kinds = re.compile(re.escape(pattern).replace(r"\*", ".*"))
        return sorted(filter(kinds.fullmatch, self.runs))

    def expect_one_beat(self) -> None:
        assert len(self.active("shop.beat.*@*.service")) <= 1

    def wanted(self) -> set[str]:
        """What the pointer says; nothing before the first release."""
        pointer = store.pointer("shop")
        text = pointer.read_text() if pointer.exists() else ""
        names = re.findall("^Wants=(.*)$", text, re.MULTILINE)
        return {name.replace("%N", "shop-2001") for line in names for name in line.split()}

    def boot(self) -> None:
        self.runs = self.wanted()


@pytest.fixture
def srv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "ROOT", tmp_path / "srv")
    monkeypatch.setattr(store, "POINTERS", tmp_path / "etc")
    return tmp_path / "srv/shop"


@pytest.fixture
def host(srv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host()
    for name in ("start", "stop", "active"):
        monkeypatch.setattr(systemd, name, getattr(found, name))
    monkeypatch.setattr(systemd, "is_active", lambda unit: unit in found.runs)
    monkeypatch.setattr(systemd, "systemctl", lambda *_: "")
    monkeypatch.setattr(systemd, "abandon", lambda _: None)
    monkeypatch.setattr(systemd, "timed_out", lambda _: [])
    monkeypatch.setattr(systemd, "journal", lambda _: "no broker")
    monkeypatch.setattr(switch, "health", Mock())
    monkeypatch.setattr(switch, "RUN", tmp_path)
    monkeypatch.setattr(units, "UNITS", tmp_path / "units")
    monkeypatch.setattr(units, "RUNTIME", tmp_path / "units")
    return found


OLD = {"celery.1": True, "celery.2": True, "beat.1": False}


def release(srv: Path, generation: str, names: dict[str, bool], alive: int = 0) -> store.Release:
    folder = srv / "releases" / generation
    (folder / "units").mkdir(parents=True, exist_ok=True)
    for name in ("trial.service", "2001.service", "2001.socket", "app.target"):
        (folder / "units" / name).touch()
    for name in names:
        (folder / "units" / f"{name}.service").touch()
    fields = {
        "release": generation.rpartition("-")[0],
        "node": "drakar",
        "instances": [{"id": "server1", "port": 2001}],
        "health_path": "/",
        "health_timeout": 5,
        "min_healthy_time": alive,
        "workers": [{"name": name, "overlap": overlap} for name, overlap in names.items()],
    }
    (folder / "release.json").write_text(json.dumps(fields))
    return store.load("shop", generation)


def take_over(generation: str, **options: bool) -> None:
    switch.switch(Mock(), "shop", generation, keep=2, **options)


def exactly(made: store.Release) -> set[str]:
    return {*made.services, *made.worker_units, "shop-2001.socket", "shop.target"}


def test_new_ones_begin_before_the_old_ones_end_but_for_what_must_never_run_twice(
    srv: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    release(srv, "r1-a", OLD)
    take_over("r1-a")
    new = release(srv, "r2-a", {"celery.1": True, "beat.1": False})
    host.told.clear()
    capsys.readouterr()
    take_over("r2-a")
    said = capsys.readouterr().out
    for ended in ("1 workers have finished: shop.beat", "2 workers have finished: shop.celery"):
        assert f"waits until {ended}\n" in said
    assert [each for each in host.told if "trial" not in each] == [
        "+shop-2001@r2-a.service",
        "-shop.beat.1@r1-a.service",
        "+shop.celery.1@r2-a.service",
        "+shop.beat.1@r2-a.service",
        "-shop-2001@r1-a.service",
        "-shop.celery.1@r1-a.service",
        "-shop.celery.2@r1-a.service",
    ]
    assert host.runs == exactly(new)
    host.boot()
    assert host.runs == {*new.services, *new.worker_units}
    take_over("r1-a", back=True)
    assert host.runs == exactly(store.load("shop", "r1-a"))
    assert not list(units.UNITS.glob("*@r2-a*"))


def test_one_that_does_not_stay_up_is_a_switch_that_failed(srv: Path, host: Host) -> None:
    old = release(srv, "r1-a", OLD)
    take_over("r1-a")
    release(srv, "r2-a", OLD, alive=1)
    host.failing = {"shop.celery.2@r2-a.service"}
    with pytest.raises(ReleaseError, match=r"(?s)no broker.*celery.2@r2-a.*r1 still serves"):
        take_over("r2-a")
    assert host.runs == exactly(old)
    assert store.generations("shop") == ["r1-a"]


@pytest.mark.parametrize("fails", [False, True])
def test_one_that_ended_since_is_started_by_the_next_deploy(
    srv: Path, host: Host, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    """Which goes well, whatever ails it: another release is not to blame."""
    old, one = release(srv, "r1-a", OLD, alive=1), "shop.celery.2@r1-a.service"
    take_over("r1-a")
    host.runs -= {one}
    host.failing = {one} if fails else set()
    take_over("r1-a")
    assert host.runs == exactly(old) - host.failing
    assert capsys.readouterr().err == f"Warning: {one} did not run: started again\n"


@pytest.mark.parametrize("then", ["r1-a", "r2-a"])
@pytest.mark.parametrize("boots", [False, True])
def test_a_switch_that_is_killed_is_completed_or_taken_back(
    srv: Path, host: Host, then: str, boots: bool
) -> None:
    for killed_after in range(30):
        host.left = 10**6
        release(srv, "r1-a", OLD)
        take_over("r1-a")
        release(srv, "r2-a", OLD)
        host.left = killed_after
        try:
            take_over("r2-a")
        except Killed:
            host.left = 10**6
            if boots:
                current = store.current("shop")
                assert current
                host.boot()
                assert host.runs == {*current.services, *current.worker_units}
            take_over(then)
            assert host.runs == exactly(store.load("shop", then))
        else:
            assert killed_after > 8, killed_after
            return
    raise AssertionError("it never ended")


def test_they_leave_with_the_application(
    srv: Path, host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retire.ownership, "expect", lambda _: None)
    monkeypatch.setattr(systemd, "timed_out", lambda units: units[:1])
    release(srv, "r1-a", OLD)
    take_over("r1-a")
    host.told.clear()
    retire.stop("shop")
    assert host.told[0] == "-shop-2001@r1-a.service"
    assert "shop.beat.1@r1-a.service did not finish" in capsys.readouterr().err
    assert not host.active("*.service")
    assert not list(units.UNITS.glob("*.service"))


@pytest.mark.parametrize("left", [{}, {"celery.1": True}, {"celery.1": False}])
def test_those_that_a_release_has_no_more_end_and_come_back_with_the_one_before(
    srv: Path, host: Host, left: dict[str, bool]
) -> None:
    for generation, names, back in (
        ("r1-a", OLD, False),
        ("r2-a", left, False),
        ("r1-a", OLD, True),
    ):
        made = release(srv, generation, names)
        take_over(generation, back=back)
        assert host.runs == exactly(made)


@pytest.mark.parametrize("fails", [False, True])
def test_where_nothing_runs_the_release_before_does_not_start_beside_the_new_one(
    srv: Path, host: Host, fails: bool
) -> None:
    release(srv, "r1-a", OLD)
    take_over("r1-a")
    host.runs.clear()  # by `systemctl stop shop.target`
    new = release(srv, "r2-a", OLD, alive=1)
    host.failing = {"shop.celery.2@r2-a.service"} if fails else set()
    with pytest.raises(ReleaseError) if fails else nullcontext():
        take_over("r2-a")
    assert host.runs == (set() if fails else exactly(new))


def test_those_of_another_application_are_its_own(srv: Path, host: Host) -> None:
    others = {"shop-x.celery.1@r0-a.service", "blog.celery.1@r0-a.service"}
    host.runs |= others
    for generation, names in (("r1-a", OLD), ("r2-a", {})):
        made = release(srv, generation, names)
        take_over(generation)
        assert host.runs == exactly(made) | others


# --- Which releases have them ---------------------------------------------------------


def test_the_list_of_releases_says_which_they_have(
    srv: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    for generation, names in (("r1-a", {}), ("r2-a", OLD)):
        release(srv, generation, names)
        take_over(generation)
    capsys.readouterr()
    store.show("shop")
    listed = tuple(map(releases._generation, json.loads(capsys.readouterr().out)))
    assert [len(each.workers) for each in listed] == [3, 0]
    report.show_releases([HostReleases(fleet().applications[0], listed)], ["shop"])
    heading, _, latest, _ = capsys.readouterr().out.splitlines()
    assert heading.split()[-1] == "workers"
    assert latest.endswith("2 celery, beat")


def had(name: str, *kinds_of: str) -> HostReleases:
    """The workers that each release had there, the latest first."""
    host = next(each for each in fleet("drakar", "cheetah").applications if each.name == name)
    found = [
        Generation(
            f"r{number}-{name}",
            f"r{number}",
            "0",
            ("server1",),
            number == len(kinds_of),
            "2026-01-01T00:00:00+00:00",
            previous=number == len(kinds_of) - 1,
            workers=tuple(store.Worker(f"{kind}.1", kind != "beat") for kind in kinds.split()),
        )
        for number, kinds in zip(range(len(kinds_of), 0, -1), kinds_of, strict=True)
    ]
    return HostReleases(host, tuple(found))


def test_no_roll_back_begins_a_second_one_of_what_must_never_run_twice() -> None:
    """It went from one host to the other, as a deploy wants that: by a release without it."""
    moved = (
        had("drakar", "celery", "celery", "celery beat"),
        had("cheetah", "celery beat", "celery", "celery"),
    )
    with pytest.raises(FleetError) as caught:
        targets(moved, "r1")
    assert "drakar: app_workers: beat runs on cheetah, and would begin here before" in str(
        caught.value
    )
    for found, name in (
        (moved, ""),
        ((had("drakar", "celery", "celery"), had("cheetah", "beat", "beat")), ""),
        ((had("drakar", "", "beat"), had("cheetah", "celery", "celery")), "r1"),
    ):
        assert len(targets(found, name)) == 2


# --- What verify says ----------------------------------------------------------------


def test_verify_names_what_does_not_run() -> None:
    host = fleet(celery={"command": CELERY, "count": 4}).applications[0]

    def unit(name: str, generation: str = "r1-a", **more: str) -> str:
        state = {"ActiveState": "active", "SubState": "running", "NRestarts": "0"}
        state |= {"Id": f"shop.{name}@{generation}.service"}
        state |= {"ActiveEnterTimestampMonotonic": "95000000", **more}
        return "".join(f"{key}={value}\n" for key, value in state.items())

    said = [
        "Serves=r1-a\nUptime=100.5\n",
        unit("celery.1"),
        unit("celery.2", ActiveState="activating", SubState="auto-restart"),
        unit("celery.4", NRestarts="3"),
        unit("celery.1", "r0-a"),
    ]
    rows, differences = zip(*verification.compare(host, "\n".join(said)), strict=True)
    assert [(row.id, row.release, row.state) for row in rows] == [
        ("celery.1", "r1", "running"),
        ("celery.2", "r1", "failing"),
        ("celery.3", "r1", "missing"),
        ("celery.4", "r1", "failing"),
        ("celery.1", "r0", "unexpected"),
    ]
    prefix, r1 = "shop", "@r1-a.service"
    assert [str(each) for each in differences if each] == [
        f"failing: {prefix} celery.2 on drakar: activating (auto-restart): "
        f"journalctl -u {prefix}.celery.2{r1} there says why",
        f"missing: {prefix} celery.3 on drakar: {prefix}.celery.3{r1} does not run; deploy again",
        f"failing: {prefix} celery.4 on drakar: ends again and again, and was started 6 s ago: "
        f"journalctl -u {prefix}.celery.4{r1} there says why",
        f"unexpected: {prefix} celery.1 on drakar: {prefix}.celery.1@r0-a.service is not meant to "
        "run; deploy again, which ends it",
    ]


def test_their_journals_are_with_those_of_all_instances() -> None:
    host = fleet(celery=CELERY).hosts[0]
    every = {"shop-2001": "server1", "shop-2002": "server2", "shop-trial": "trial"}
    labels = logs._labels(host, host.instances, several=False)
    assert labels == {**every, "shop.celery.1": "celery.1"}
    assert logs._labels(host, host.instances[:1], several=False) == {"shop-2001": "server1"}
    assert "_SYSTEMD_SLICE=system-shop.celery.1.slice" in logs.script(labels, 1, False)
