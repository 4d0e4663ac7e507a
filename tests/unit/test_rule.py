"""What a plain deploy releases: the rule, case by case."""

import json
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api import Config, Inventory, State

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host.lock_session import REFUSED, merged
from uwsgi_consul_fleet.inventory.model import AppHost, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.applications import application, decided, kept, resolution
from uwsgi_consul_fleet.operations.applications.archive import Sources
from uwsgi_consul_fleet.operations.applications.decided import Source, is_meant
from uwsgi_consul_fleet.operations.applications.release import Release, read
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.pyinfra_run import PyinfraRun
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import AppState, HostState
from uwsgi_consul_fleet.releases.rule import Content, Record, Served, decide, served

APP_INI = Path(__file__).resolve().parents[2] / "app/uwsgi.ini.j2"
# Names with the content that they have; a prime is the same content under another name.
NAMES = ("a", "b", "c", "b'")
A, B, C, B_AGAIN = (Content(name, name.rstrip("'") * 8) for name in NAMES)
EARLY, LATE = "2026-01-01T00:00:00.000001Z", "2026-02-02T00:00:00+00:00"


def on(*contents: Content, refused: tuple[Content, ...] = ()) -> Record:
    return Record(contents, refused, EARLY)


def back(content: Content, *left: Content, since: str = LATE) -> Served:
    """A host that was rolled back to this."""
    return Served(content, left, since)


HOSTS = {"drakar": Served(A), "cheetah": Served(A)}
MIXED = {"drakar": Served(A), "cheetah": Served(C)}


@pytest.mark.parametrize(
    ("head", "record", "serving", "how", "expected", "says"),
    [
        # Nothing serves yet.
        (B, None, {}, {}, B, "releases b (app_source)"),
        # The content is compared, whatever its name is.
        (B, on(A), HOSTS, {}, B, "releases b (app_source) over a"),
        (B, on(B), {"drakar": Served(B)}, {}, B, "stays on b: app_source is what it serves"),
        (B_AGAIN, on(B), {"drakar": Served(B)}, {}, B, "stays on b: app_source is what it serves"),
        # A roll-out that was interrupted goes on, or back where it was never meant.
        (C, on(A), MIXED, {}, C, "releases c (app_source) over a"),
        (A, on(A), MIXED, {}, A, "stays on a: app_source is what it serves"),
        # Machines that were all made anew.
        (A, on(A), {}, {}, A, "stays on a: app_source is what it serves"),
        # A name that is typed is a release, with the same content too; also the name that it has.
        (B_AGAIN, on(B), {}, {"named": True}, B_AGAIN, "releases b' (app_source) over b"),
        (B, on(B), {}, {"named": True}, B, "stays on b: it is what was named"),
        # What was rolled back from takes its name.
        (
            B,
            on(A, refused=(B,)),
            HOSTS,
            {},
            A,
            "stays on a: app_source is b, which was rolled back from; "
            "pyinfra … --data release=b releases it",
        ),
        (B_AGAIN, on(A, refused=(B,)), HOSTS, {}, A, "stays on a: app_source is b', which was"),
        (B, on(A, refused=(B,)), HOSTS, {"typed": "1f2e"}, A, "--data release=1f2e releases it"),
        (B, on(A, refused=(B,)), HOSTS, {"named": True}, B, "releases b (app_source) over a"),
        (C, on(A, refused=(B,)), HOSTS, {}, C, "releases c (app_source) over a"),
        # A version before 0.3 made it: git gives the same content the same name.
        (B, on(A, refused=(Content("b", ""),)), HOSTS, {}, A, "stays on a: app_source is b, which"),
        (B, on(Content("a", "")), HOSTS, {}, B, "releases b (app_source) over a"),
        (A, on(Content("a", "")), HOSTS, {}, A, "stays on a: app_source is what it serves"),
        # A roll-back that Consul was not told of; and one from before what it knows.
        (B, on(B), {"drakar": back(A, B)}, {}, A, "stays on a: app_source is b, which was rolled"),
        (C, on(B), {"drakar": back(A, B)}, {}, C, "releases c (app_source) over a"),
        (B, on(B), {"drakar": back(A, B, since=EARLY)}, {}, B, "stays on b: app_source is what"),
        (B, on(C), {"drakar": back(A, B)}, {}, B, "releases b (app_source) over c"),
        # Nothing in Consul: the hosts decide, where they agree.
        (B, None, {"drakar": Served(A), "cheetah": Served(A)}, {}, B, "releases b (app_source) ov"),
        (A, None, {"drakar": Served(A), "cheetah": Served(A)}, {}, A, "stays on a: app_source is"),
        (B, None, {"drakar": back(A, B)}, {}, A, "stays on a: app_source is b, which was rolled"),
        (B, None, MIXED, {}, B, "releases b (app_source) (cheetah is on c, drakar is on a)"),
        # Settings that were rolled back from, and no content.
        (B, None, {"drakar": back(B, B), "cheetah": Served(C)}, {}, B, "releases b (app_source)"),
        # To keep the content.
        (B, on(A), HOSTS, {"stay": True}, A, "stays on a: app_source is b; pyinfra … --data rel"),
        (A, on(A), HOSTS, {"stay": True}, A, "stays on a: app_source is what it serves"),
        # Hosts with a source of their own.
        (B, on(A, B), MIXED, {}, B, "stays on b: app_source is what it serves"),
        (C, on(A, B), HOSTS, {}, C, "releases c (app_source) over a"),
        (C, on(A, B), {"drakar": Served(B)}, {"stay": True}, B, "stays on b: app_source is c;"),
    ],
)
def test_the_rule(
    head: Content,
    record: Record | None,
    serving: dict[str, Served],
    how: dict[str, Any],
    expected: Content,
    says: str,
) -> None:
    found = decide(head, record, serving, **how)
    assert found.content == expected, found.told
    assert says in found.told


@pytest.mark.parametrize(
    ("record", "serving", "how"),
    [
        (None, {}, {"stay": True}),
        (None, MIXED, {"stay": True}),
        (None, {"drakar": back(A, B), "cheetah": Served(C)}, {}),
        # One host missed the roll-back, or that it was released again.
        (None, {"drakar": back(A, B), "cheetah": Served(B)}, {}),
    ],
)
def test_where_nobody_knows_on_what_to_stay_it_is_to_be_named(
    record: Record | None, serving: dict[str, Served], how: dict[str, Any]
) -> None:
    with pytest.raises(FleetError, match=r"name what it is to be.*--data release=b; nothing was"):
        decide(B, record, serving, **how)


# --- What Consul keeps -----------------------------------------------------------------


def record_of(*steps: tuple[Content, tuple[Content, ...]]) -> Record:
    """What is known after a fleet was put to these, one after the other, from those."""
    value: dict[str, Any] = {}
    for to, refused in steps:
        value = merged(value, [to.as_dict()], [each.as_dict() for each in refused])
    found = Record.parse(json.dumps(value))
    assert found
    return found


def test_what_was_rolled_back_from_is_kept_until_it_is_released() -> None:
    assert record_of((B, ()), (A, (B,))).refused == (B,)
    assert record_of((B, ()), (A, (B,)), (C, ()), (A, (C,))).refused == (B, C)
    assert record_of((B, ()), (A, (B,)), (B_AGAIN, ())).refused == ()
    assert record_of((B, ()), (A, (B,)), (A, ())).on == (A,)


def test_settings_alone_that_were_rolled_back_refuse_no_content() -> None:
    assert record_of((B, ()), (B, (B,))).refused == ()


def test_a_roll_back_that_failed_is_over_whatever_a_host_is_left_on() -> None:
    hosts = {"drakar": back(A, B), "cheetah": Served(B), "ormen": Served(B)}
    assert decide(B, on(B, refused=(C,)), hosts).content == A
    value = merged({"on": [B.as_dict()], "refused": [C.as_dict()], "since": EARLY}, [], [])
    found = Record.parse(json.dumps(value))
    assert found
    assert found.since > LATE
    assert (found.on, found.refused) == ((B,), (C,))
    assert decide(B, found, hosts).content == B


def test_it_counts_when_a_roll_back_began() -> None:
    """On a host that was lost in the middle of it, it may end long after the others."""
    a = {"release": "a", "sources": "x", "requirements": ""}
    switch = {"generation": "a-1", "began": EARLY, "since": LATE, "left": [B.as_dict()]}
    found = served("a-1", a, switch)
    assert found
    assert (found.since, found.left) == (EARLY, (B,))


def test_the_latest_are_kept() -> None:
    many = [Content(str(number), f"{number}.") for number in range(REFUSED + 5)]
    found = record_of(*[(A, (each,)) for each in many])
    assert found.refused == tuple(many[5:])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"on": [1], "refused": [], "since": ""}', "{"])
def test_what_somebody_else_wrote_there_says_nothing(text: str) -> None:
    assert Record.parse(text) is None


@pytest.mark.parametrize(
    ("connected", "failed", "whole"),
    [({"a", "b"}, set(), True), ({"a"}, {"b"}, True), ({"a"}, set(), False)],
)
def test_a_host_that_is_down_changes_nothing_about_what_the_fleet_was_put_to(
    connected: set[str], failed: set[str], whole: bool
) -> None:
    """One that --limit leaves out does: the fleet is not on it."""
    hosts = [SimpleNamespace(name=name) for name in ("a", "b")]
    run: Any = SimpleNamespace(
        fleet=SimpleNamespace(serving=lambda app: hosts),
        pyinfra=SimpleNamespace(connected=connected, failed=failed, about=connected | failed),
    )
    assert application._is_whole(run, "shop") == whole


# --- What a run asks --------------------------------------------------------------------


class Run:
    """A run over the hosts of a fleet, each of which looks as it is said here; ``out`` are those
    that --limit leaves out, ``blog`` those with another application than the shop."""

    def __init__(
        self,
        folder: Path,
        states: Mapping[str, HostState],
        out: Set[str] = frozenset(),
        blog: Set[str] = frozenset(),
        typed: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        data = {**DEMO, "app_ini": str(APP_INI), "app_requirements": None, "instances": {"a": 1}}
        hosts = []
        for name in states:
            app = "blog" if name in blog else "shop"
            (folder / app).mkdir(exist_ok=True)
            (folder / app / "server.py").write_text(app)
            its = {**data, "app_name": app, "app_source": str(folder / app), **settings}
            groups = frozenset({"consul_servers", "app_servers"})
            hosts.append(InventoryHost(name, groups, its, typed or {}))
        addresses = {name: f"10.0.0.{number}" for number, name in enumerate(states, 1)}
        self.fleet = build(hosts, (), (), lambda host: addresses[host.name])
        inside = {*states} - out
        self.pyinfra: Any = SimpleNamespace(connected=inside, about=inside, typed=typed or {})
        self.state_of = states.__getitem__
        self._out = out
        self._made: dict[Any, Any] = {}

    @property
    def head(self) -> Content:
        return read(self.fleet.applications[0].settings).content

    def once(self, make: Callable[[Any], Any]) -> Any:
        if make is resolution.ask_left_out:
            return {name: self.state_of(name) for name in self._out}
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def its_state(self, its: AppHost) -> AppState:
        return self.state_of(its.name).of(its.app)

    def of(self, name: str) -> Here:
        run: Any = self
        return Here(run, self.fleet.host(name))


def on_a_server(content: Content, **known: Any) -> HostState:
    """A host with a Consul server that has data."""
    made = {"release": content.release, "sources": content.digest, "requirements": ""}
    its = AppState(current_generation="g", generations={"g": made})
    found = HostState(consul_raft="yes", apps={"shop": its, "blog": its})
    return replace(found, **known)


def text(record: Record) -> str:
    on, refused = ([each.as_dict() for each in all_] for all_ in (record.on, record.refused))
    return json.dumps({"on": on, "refused": refused, "since": record.since})


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (lambda head: {}, ""),
        (lambda head: {"shop": text(on(A))}, ""),
        (lambda head: {"shop": text(on(A, refused=(head,)))}, "the same command again"),
        (lambda head: None, "no Consul server can say"),
    ],
)
def test_a_consul_that_could_not_be_asked_before_is_asked_again(
    now: Callable[[Content], Any],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(tmp_path, {name: on_a_server(A) for name in ("drakar", "cheetah")})
    monkeypatch.setattr(kept, "contents", lambda hosts: now(run.head))
    monkeypatch.setattr(kept, "find", lambda *_: SimpleNamespace(content=A))
    assert run.once(decided._decide)
    found = decided.mistaken(run.of("drakar"))
    assert expected in found if expected else not found


@pytest.mark.parametrize(
    "known", [{"consul_raft": ""}, {"consul_contents": {}}, {"consul_contents": {"shop": "?"}}]
)
def test_one_that_could_or_is_new_is_not(
    known: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, {name: on_a_server(A, **known) for name in ("drakar", "cheetah")})
    monkeypatch.delattr(kept, "contents")
    assert not decided.mistaken(run.of("drakar"))


def test_a_roll_back_that_consul_was_not_told_of_is_known_to_hosts_that_limit_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: dict[str, HostState] = {"drakar": HostState(), "cheetah": HostState()}
    run = Run(tmp_path, states, out={"drakar"})
    left = {"generation": "g", "since": LATE, "left": [run.head.as_dict()]}
    states["drakar"] = on_a_server(A)
    states["drakar"].of("shop").last_switch = left
    states["cheetah"] = HostState(consul_contents={"shop": text(on(run.head))})
    monkeypatch.setattr(kept, "find", lambda *_: SimpleNamespace(content=A))
    (found,) = run.once(decided._decide).values()
    assert found.release.content == A
    assert found.told.startswith("stays on a: app_source is ")
    assert found.is_served


# --- Several applications ------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("current", "stays on a: "),
        ("spring", "releases spring (app_source) over a"),
        (None, "releases {head} (app_source) over a"),
    ],
)
def test_a_name_that_is_typed_for_one_is_no_label_of_another(
    label: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {name: on_a_server(A) for name in ("drakar", "cheetah")}
    shop = Run(tmp_path, states).head.release
    typed = {"release": shop}
    run = Run(tmp_path, states, blog={"cheetah"}, typed=typed, release=label)
    monkeypatch.setattr(kept, "find", lambda *_: SimpleNamespace(content=A))
    found = {source[0]: each.told for source, each in run.once(decided._decide).items()}
    assert found["shop"].startswith(f"releases {shop} (app_source) over a")
    assert not any(
        each.is_served for each in run.once(decided._decide).values() if "over" in each.told
    )
    head = read(run.fleet.serving("blog")[0].settings).name
    assert found["blog"].startswith(says.format(head=head))


@pytest.mark.parametrize("several", [True, False])
def test_a_mistake_names_the_application_where_there_are_several(
    several: bool, tmp_path: Path
) -> None:
    def says(**settings: Any) -> str:
        run = Run(tmp_path, states, blog={"cheetah"} if several else frozenset(), **settings)
        here: Any = run.of("cheetah")
        with pytest.raises(DeployError) as caught:
            decided.prepare(next(here.applications))
        return str(caught.value)

    states = {name: HostState() for name in ("drakar", "cheetah")}
    app = "blog: " if several else ""
    assert says(app_secrets=["NO_SUCH"]).startswith(f"{app}app_secrets: no value for NO_SUCH")
    app = "shop: " if several else ""  # which is read first, whoever asks
    assert says(app_root="lost").startswith(f"{app}app_root: {tmp_path}/shop has no folder lost")


def test_what_is_typed_is_told_from_the_data_of_hosts_and_groups() -> None:
    hosts, typed = (["drakar", ("cheetah", {"b": "own"})], {"a": "all", "b": "all"}), {"a": "typed"}
    inventory = Inventory(hosts, override_data=typed, app_servers=(["drakar"], {"b": "group"}))
    run = PyinfraRun(State(inventory, Config()))
    assert run.untyped("drakar") == {"a": "all", "b": "group"}
    assert run.untyped("cheetah") == {"a": "all", "b": "own"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("spring", ["blog", "shop"]), ("1f2e", ["shop"]), ("3a4b", ["blog"]), ("5c6d", ["shop"])],
)
def test_what_git_calls_an_application_names_that_alone(typed: str, meant: list[str]) -> None:
    def source(app: str, folder: str) -> Source:
        return app, folder, None, "", None

    called = {("shop", "a"): "1f2e", ("shop", "b"): "5c6d", ("blog", "c"): "3a4b"}
    heads = {source(*key): Release(name, Sources(()), None, Path()) for key, name in called.items()}
    assert [app for app in ("blog", "shop") if is_meant(typed, app, heads)] == meant
