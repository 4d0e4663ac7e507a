"""What applications/ describes: a file for each application, and a group for its hosts."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from uwsgi_consul_fleet.build.identity import Uwsgi
from uwsgi_consul_fleet.errors import FleetError, InventoryError
from uwsgi_consul_fleet.inventory import applications, reading
from uwsgi_consul_fleet.inventory.applications import Described
from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.applications import application
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import AppState, FileState, HostState
from uwsgi_consul_fleet.operations.uwsgi import uwsgi
from uwsgi_consul_fleet.operations.uwsgi.uwsgi import START
from uwsgi_consul_fleet.releases.rollout import Rollout

GIVEN = {key: DEMO[key] for key in ("app_source", "app_entry_point", "app_requirements", "app_ini")}


ADDRESSES = {"drakar": "10.0.3.11", "cheetah": "10.0.3.12", "ormen": "10.0.3.13"}


def resolve(entry: InventoryHost) -> str:
    return ADDRESSES[entry.name]


def described(name: str, **data: Any) -> Described:
    return Described(f"applications/{name}.py", {**GIVEN, "instances": {"web": 2001}, **data})


def on(name: str, *groups: str, own: tuple[str, ...] = (), **data: Any) -> InventoryHost:
    """A host without an application of its own; ``own`` is what its data, or a group, say."""
    return InventoryHost(name, frozenset(groups), data, own_keys=frozenset(own))


def fleet(
    hosts: list[InventoryHost], *apps: Described, groups: set[str] | None = None, files: Any = ()
) -> Fleet:
    return build(hosts, files, {"all", "inventory"}, resolve, apps, groups or set())


def problems(hosts: list[InventoryHost], *apps: Described, **more: Any) -> tuple[str, ...]:
    with pytest.raises(InventoryError) as caught:
        fleet(hosts, *apps, **more)
    return caught.value.problems


SHOP = described("shop")
BLOG = described("blog", instances={"web": 3001, "two": {"port": 3002, "id": "old-name"}})
DRAKAR = on("drakar", "consul_servers", "app_servers")


def ids(found: Fleet) -> set[tuple[str, str, int]]:
    return {(each.node, each.id, each.port) for each in found.instances}


def test_a_group_lists_an_applications_hosts_and_app_servers_those_of_all_others() -> None:
    hosts = [DRAKAR, on("cheetah", "app_servers"), on("ormen", "blog")]
    found = fleet(hosts, SHOP, BLOG)
    assert ids(found) == {
        ("drakar", "shop-web", 2001),
        ("cheetah", "shop-web", 2001),
        ("ormen", "blog-web", 3001),
        ("ormen", "old-name", 3002),
    }
    assert found.services == ("blog", "shop")
    assert found.host("ormen").is_member
    assert [each.app for each in found.host("drakar").applications] == ["shop"]


def test_several_on_one_host_have_settings_of_their_own() -> None:
    found = fleet([DRAKAR], SHOP, described("blog", instances={"web": 3001}, app_processes=7))
    (host,) = found.hosts
    assert [(its.app, its.settings.app_processes) for its in host.applications] == [
        ("shop", 2),
        ("blog", 7),
    ]
    assert host.instances == tuple(i for its in host.applications for i in its.instances)


def test_the_more_special_setting_wins() -> None:
    """all.py, the file, groups and the host, the host for this application, --data."""
    shop = described("shop", app_processes=2, health_timeout=20)
    everywhere = {"health_timeout": 10, "drain": 10, "stop_timeout": 10}
    small = {"app_processes": 1, "shop": {"instances": {"one": 9}}}
    hosts = [
        on("drakar", "consul_servers", "app_servers", **everywhere),
        on("cheetah", "app_servers", own=("app_processes", "shop"), **everywhere, **small),
    ]
    first, second = (each.settings for each in fleet(hosts, shop).applications)
    assert (first.app_processes, first.health_timeout, first.drain) == (2, 20, 10)
    assert (second.app_processes, second.health_timeout, second.drain) == (1, 20, 10)
    assert list(second.instances) == ["one"]
    typed = InventoryHost("drakar", frozenset({"app_servers", "consul_servers"}), {}, {"drain": 3})
    assert fleet([typed], described("shop", drain=9)).applications[0].settings.drain == 3


def test_a_release_that_is_typed_is_told_from_the_files() -> None:
    groups = frozenset({"app_servers", "consul_servers"})
    typed = InventoryHost("drakar", groups, {}, {"release": "spring"})
    (its,) = fleet([typed], described("shop", release="current")).applications
    assert (its.settings.release, its.usual_release) == ("spring", "current")


def test_an_application_is_taken_away_by_an_empty_group() -> None:
    found = fleet([DRAKAR], SHOP, BLOG, groups={"blog"})
    assert ids(found) == {("drakar", "shop-web", 2001)}
    assert found.services == ("blog", "shop")
    assert any("blog is taken from those that have it" in each for each in found.warnings)


CHEETAH = on("cheetah", "consul_servers")


@pytest.mark.parametrize(
    ("hosts", "apps", "expected"),
    [
        ([CHEETAH], [SHOP], ["applications/shop.py: has no hosts: list them in the inventory, as"]),
        (
            [CHEETAH, on("ormen", "blog"), on("drakar", "retired")],
            [SHOP, BLOG],
            ["applications/shop.py: has no hosts"],
        ),
        (
            [DRAKAR, on("ormen", "shpo")],
            [SHOP],
            ["inventory.py: unknown group 'shpo', did you mean 'shop'?", "ormen: has no role"],
        ),
        (
            [on("drakar", "consul_servers", "shop", "app_servers"), on("cheetah", "app_servers")],
            [SHOP],
            ["cheetah: is in app_servers, which are the hosts of applications without a group"],
        ),
        (
            [on("drakar", "consul_servers", "shop"), on("cheetah", "shop", "retired")],
            [SHOP],
            ["cheetah: is both in shop and retired"],
        ),
        (
            [DRAKAR],
            [SHOP, described("blog")],
            ["drakar: instances shop/web and blog/web have the same port 2001"],
        ),
        (
            [DRAKAR],
            [SHOP, described("blog", instances={"x": {"port": 3001, "id": "shop-web"}})],
            ["drakar: instances shop/web and blog/x have the same id 'shop-web'"],
        ),
        ([DRAKAR], [described("shop", instances={})], ["drakar: serves shop but `instances` is"]),
        (
            [DRAKAR, on("cheetah", "app_servers")],
            [described("shop", app_processes=0, drain="x")],
            ["applications/shop.py: app_processes = 0", "applications/shop.py: drain = 'x'"],
        ),
        (
            [on("drakar", "app_servers", "consul_servers", own=("drain",), drain=-1)],
            [SHOP],
            ["drakar (shop): drain = -1"],
        ),
        ([DRAKAR], [Described("applications/shop.py", {})], ["applications/shop.py: not set, and"]),
        (
            [DRAKAR],
            [described("shop", app_proceses=2, consul_version="1.20.0", _sudo=True, app_name="x")],
            [
                "applications/shop.py: unknown setting 'app_proceses', did you mean",
                "applications/shop.py: consul_version is for whole hosts",
                "applications/shop.py: _sudo is for whole hosts",
                "applications/shop.py: app_name = 'x': the application is called as the file is",
            ],
        ),
        (
            [on("drakar", "consul_servers", "app_servers", shop={"drian": 1})],
            [SHOP],
            ["drakar (shop): unknown setting 'drian', did you mean 'drain'?"],
        ),
        (
            [on("drakar", "consul_servers", "app_servers", shop=1)],
            [SHOP],
            ["drakar: shop = 1: settings of an application look like"],
        ),
        ([DRAKAR], [described("builders")], ["applications/builders.py: builders means something"]),
        (
            [DRAKAR],
            [described("old-shop"), described("old_shop")],
            ["applications/old_shop.py: describes old-shop, as applications/old-shop.py does"],
        ),
        ([DRAKAR], [described("Shop")], ["applications/Shop.py: app_name = 'Shop': "]),
        # Beside the file of an agent's own token lie folders called as applications are.
        ([DRAKAR], [described("token")], ["applications/token.py: app_name = 'token': Debian or"]),
    ],
)
def test_mistakes(hosts: list[InventoryHost], apps: list[Described], expected: list[str]) -> None:
    found = problems(hosts, *apps)
    for start in expected:
        assert any(each.startswith(start) for each in found), found
    # Each is told once, however many hosts there are.
    assert len(found) == len(set(found))


def test_a_file_in_group_data_for_an_application() -> None:
    hosts = [on("drakar", "consul_servers", "shop")]
    (found,) = problems(hosts, SHOP, files={"shop"})
    assert found.startswith("group_data/shop.py: shop is an application: its settings belong into")


def test_no_name_is_typed() -> None:
    """All hosts would lose what they have, and get one by that name."""
    hosts = [InventoryHost("drakar", DRAKAR.groups, {}, {"app_name": "x"})]
    (found,) = problems(hosts, SHOP)
    assert found.startswith("--data app_name=x: files name applications; of one: --data app=NAME")


def test_the_last_hosts_of_a_fleet_may_retire() -> None:
    found = fleet([CHEETAH, on("drakar", "retired")], SHOP)
    assert (found.services, found.applications) == (("shop",), ())


# --- One of them ---------------------------------------------------------------------


def test_one_of_them_is_all_that_a_part_knows() -> None:
    whole = fleet([DRAKAR, on("cheetah", "blog")], SHOP, BLOG)
    part = whole.only("shop")
    assert part.is_part and part.services == ("shop",)
    assert ids(part) == {("drakar", "shop-web", 2001)}
    assert [each.name for each in part.hosts] == ["drakar", "cheetah"]
    assert whole.only("") is whole
    with pytest.raises(FleetError, match=r"no application 'shp', did you mean 'shop'.* blog, shop"):
        whole.only("shp")


def test_the_only_one_is_no_part() -> None:
    alone = fleet([DRAKAR], SHOP)
    assert alone.only("shop") is alone


# --- What is on a host already -------------------------------------------------------


def here(found: Fleet, name: str, *, kept: tuple[str, ...] = (), **there: set[int]) -> Here:
    """A host with these applications on their ports."""
    ids = {app: {f"{app}-web"} for app in there}
    files = {START: FileState("755", "root", "root", "")} if there else {}
    known = HostState(applications=there, ids=ids, files=files, kept={*kept})
    run: Any = SimpleNamespace(fleet=found, state_of=lambda _: known)
    return Here(run, found.host(name))


def to_go(found: Fleet, name: str, **there: Any) -> list[str]:
    application.refuse_what_is_taken(here(found, name, **there))
    return application._to_go(here(found, name, **there))


def test_a_host_loses_what_another_group_has_and_keeps_the_others() -> None:
    hosts = [on("drakar", "consul_servers", "app_servers", "shop"), on("cheetah", "app_servers")]
    found = fleet(hosts, SHOP, BLOG)
    assert to_go(found, "drakar", shop={2001}, blog={3001}) == []
    assert to_go(found, "cheetah", shop={2001}, blog={3001}) == ["shop"]
    assert to_go(found.only("shop"), "cheetah", shop={2001}, blog={3001}) == ["shop"]
    assert to_go(found.only("blog"), "cheetah", shop={2001}, blog={3001}) == []


@pytest.mark.parametrize("purge", [True, False])
def test_a_host_that_retires_loses_all_of_them(purge: bool) -> None:
    hosts = [CHEETAH, on("drakar", "retired", purge=purge)]
    found = fleet(hosts, SHOP, BLOG)
    there: Any = {"shop": {2001}, "blog": {3001}, "other": {9}, "kept": ("old",)}
    assert to_go(found, "drakar", **there) == ["blog", *["old"] * purge, "other", "shop"]
    assert to_go(found.only("shop"), "drakar", **there) == ["shop"]


def test_one_that_goes_over_to_a_file_is_the_same_whatever_its_ids(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for app in (SHOP, described("shop", instances={"web": {"port": 2001, "id": "web"}})):
        assert to_go(fleet([DRAKAR], app), "drakar", shop={2001}) == []
    assert not caplog.records


def test_a_file_that_is_renamed_is_another_application(caplog: pytest.LogCaptureFixture) -> None:
    """Its ports are not taken from the one that serves, which is neither removed nor forgotten."""
    renamed = fleet([DRAKAR], described("store"))
    with pytest.raises(DeployError, match=r"on port 2001, .*a file for shop and drakar"):
        to_go(renamed, "drakar", shop={2001})
    assert to_go(renamed, "drakar", shop={2009}) == []
    assert "drakar: applications/ has no file for shop, which stays as it is" in caplog.text


@pytest.mark.parametrize("stopped", ["at drakar", ""])
def test_one_goes_when_what_its_host_has_instead_serves(stopped: str) -> None:
    """Whatever becomes of the applications of other hosts."""
    hosts = [on("drakar", "consul_servers", "store"), on("cheetah", "blog")]
    found = fleet(hosts, SHOP, described("store"), BLOG, groups={"shop"})
    its = here(found, "drakar", shop={2009}, store={2001})
    rollouts = {"store": stopped, "blog": "at cheetah"}
    run: Any = its.run
    run.rollouts = {app: SimpleNamespace(stopped=at, missed=set()) for app, at in rollouts.items()}
    run.pyinfra = SimpleNamespace(failed=set(), failed_since=set())
    run.failed = lambda _: set()
    assert application._to_go(its) == ["shop"]
    why = f"the roll-out stopped {stopped}" if stopped else ""
    assert application._not_taken_over(its, ["shop"]) == why


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("reached", ""),
        ("failed", "ormen stayed as it was, and may be what is to take over; mend what failed"),
        ("missed", "ormen stayed as it was, and may be what is to take over; mend what failed"),
        ("lost", "ormen can't be reached, .*: --limit drakar"),
    ],
)
@pytest.mark.parametrize("leaves", [True, False])
def test_none_goes_while_one_that_is_to_serve_is_behind(
    leaves: bool, how: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its hosts have other applications, and as many of them may fail."""
    shop = described("shop", max_failed_hosts=1)
    drakar = on("drakar", "consul_servers", *([] if leaves else ["shop"]))
    found = fleet([drakar, on("cheetah", "shop"), on("ormen", "shop", "blog")], shop, BLOG)
    run: Any = here(found, "drakar", shop={2001}).run
    run.pyinfra = SimpleNamespace(failed={"ormen"} if how == "lost" else set(), failed_since=set())
    run.pyinfra.is_executing, run.pyinfra.about = True, {*ADDRESSES}
    run.rollouts = {app: Rollout(found.serving(app)) for app in ("shop", "blog")}
    run.failed = lambda app: {"ormen"} if (how, app) == ("failed", "shop") else set()
    if how == "missed":
        assert run.rollouts["shop"].miss(found.serving("shop")[-1])
    written: list[tuple[str, str]] = []
    for name, instead in {
        "rolled_out": lambda its: written.append((its.me.name, its.me.app)),
        "missing": lambda _: "",
        "fail": str,
        "host": Mock(),
    }.items():
        monkeypatch.setattr(application, name, instead)
    told: list[str] = []
    for me in [each for each in found.hosts if each.name not in run.pyinfra.failed]:
        its, package = Here(run, me), Mock()
        apps = {each.me.app: application.Prepared(each, package) for each in its.applications}
        told += application.settle._inner(its, apps)
    if leaves and why:
        assert re.fullmatch(f"drakar: shop stays on it: {why}.*", "".join(told))
    else:
        assert told == []
    assert {name for name, app in written if app == "shop"} >= {"cheetah"}
    assert (("ormen", "shop") in written) == (how == "reached")


@pytest.mark.parametrize("built", [{"shop"}, set()])
def test_one_without_a_plugin_for_its_uwsgi_fails_alone(
    built: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin.so").touch()
    monkeypatch.setattr(uwsgi, "available", lambda: dict.fromkeys(built, tmp_path / "plugin.so"))
    monkeypatch.setattr(uwsgi, "converge", lambda here, files: [x.path for x in files])
    found = fleet([on("drakar", "consul_servers", "shop", "blog")], SHOP, BLOG)
    its = here(found, "drakar")
    uwsgis = {app: Uwsgi(app, "/usr/bin/uwsgi", "2.0.21") for app in ("shop", "blog")}
    its.known.apps |= {app: AppState(each) for app, each in uwsgis.items()}
    run: Any = its.run
    run.its_state = lambda me: its.known.of(me.app)
    run.has_failed = lambda me: False
    (blog,) = (each for each in its.applications if each.me.app == "blog")
    on_host = [str(each) for each in uwsgi.plugin._inner(its)]
    of_blog = str(next(application.install.__wrapped__._inner(blog, None)))  # type: ignore[attr-defined]
    says = "drakar: no consul plugin for its uWSGI 2.0.21 (fingerprint "
    assert says in on_host[0] if not built else START in on_host
    assert (f"{says}blog; built so far: shop): " in of_blog) == (built == {"shop"})


# --- The files -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "applications").mkdir()
    return tmp_path


def write(folder: Path, **files: str) -> list[Path]:
    for name, text in files.items():
        (folder / f"applications/{name}.py").write_text(text)
    return applications.files([folder])


def test_variables_of_a_file_are_its_settings(folder: Path) -> None:
    text = "import os\nfrom os.path import join as drain\n_base = 2000\ninstances = {'a': _base}\n"
    (found,) = applications.read(write(folder, shop=text, __init__="broken("))
    assert (found.name, found.file) == ("shop", "applications/shop.py")
    assert {*found.data} == {"instances", "drain"}


def test_a_file_that_fails_is_told_with_its_line(folder: Path) -> None:
    with pytest.raises(InventoryError) as caught:
        applications.read(write(folder, blog="a = 1\nb = 2 / 0\n", shop="\n\nx = (\n"))
    first, second = caught.value.problems
    assert first.startswith("applications/blog.py:2: ZeroDivisionError")
    assert second.startswith("applications/shop.py:3: SyntaxError")


def test_where_hosts_set_app_name_nothing_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, shop="broken(")
    monkeypatch.chdir(folder)
    told = {"name": "drakar", "groups": ["consul_servers", "app_servers"], "own": []}
    listed = [{**told, "data": {**DEMO, "address": "10.0.0.1"}, "all_groups": []}]
    found = reading.build(folder / "inventory.py", listed, lambda *_: "")
    assert found.services == ("consul-demo-server",)
    assert {each.id for each in found.instances} == {"server1", "server2"}
    assert found.notes == ("applications/ is not read: the data of hosts set app_name (drakar)",)
    assert not found.is_described
    listed[0]["groups"].append("shop")
    with pytest.raises(InventoryError) as caught:
        reading.build(folder / "inventory.py", listed, lambda *_: "")
    assert "unknown group 'shop'" in caught.value.problems[0]
    assert caught.value.problems[1:] == found.notes


def test_pyinfra_says_what_is_set_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is: groups without hosts, and what is of all hosts, are told apart."""
    monkeypatch.chdir(folder)
    own = {key: DEMO[key] for key in ("app_source", "app_entry_point", "app_ini")}
    lines = "".join(f"{key} = {value!r}\n" for key, value in own.items())
    write(folder, shop=f"{lines}app_requirements = None\ninstances = {{'web': 2001}}\ndrain = 2\n")
    (folder / "inventory.py").write_text(
        "consul_servers = ['drakar']\napp_servers = ['drakar', ('cheetah', {'drain': 3})]\n"
        "blog = []\n"
    )
    (folder / "group_data").mkdir()
    (folder / "group_data/all.py").write_text("drain = 1\nstop_timeout = 7\n")
    write(folder, blog=f"{lines}app_requirements = None\ninstances = {{'web': 2001}}\n")
    found = reading.read("inventory.py", lambda name, _: f"10.0.0.{len(name)}")
    assert [(its.name, its.app, its.settings.drain) for its in found.applications] == [
        ("drakar", "shop", 2),
        ("cheetah", "shop", 3),
    ]
    assert found.applications[0].settings.stop_timeout == 7
    assert found.services == ("blog", "shop")
