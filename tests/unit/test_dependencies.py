"""Which dependencies a release has, and what they are resolved with; the hosts are in
tests/lab/test_dependencies.py."""

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from uwsgi_consul_fleet.inventory.model import AppHost, Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.applications import decided, dependencies, resolution
from uwsgi_consul_fleet.operations.applications.release import Release, made_by
from uwsgi_consul_fleet.operations.applications.requirements import Requirements, read
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import AppHere
from uwsgi_consul_fleet.operations.state import AppState, HostState, parse

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "cpython-311-x86_64-linux-gnu-2.36"


def fleet_of(*names: str, **settings: object) -> Fleet:
    data = {
        **DEMO,
        "app_source": str(ROOT / "app"),
        "app_requirements": str(ROOT / "app/requirements.txt"),
        "app_ini": str(ROOT / "app/uwsgi.ini.j2"),
        **settings,
    }
    groups = frozenset({"consul_servers", "app_servers"})
    hosts = [InventoryHost(name, groups, data) for name in names]
    return build(hosts, (), (), lambda host: f"10.0.3.{names.index(host.name) + 1}")


class Run:
    """A run over some hosts of a fleet, of which each looks as it is said here."""

    def __init__(
        self,
        inside: Mapping[str, HostState],
        left_out: Mapping[str, HostState],
        typed: str = "",
    ) -> None:
        self.fleet = fleet_of(*inside, *left_out)
        there, named = {*inside}, {"release": typed}
        self.pyinfra = SimpleNamespace(connected=there, about=there, typed=named)
        self.asked = 0
        self.state_of = inside.__getitem__
        self._left_out = left_out
        self._made: dict[Any, Any] = {}

    def once(self, make: Callable[[Any], Any]) -> Any:
        if make is resolution.ask_left_out:
            self.asked += 1
            return self._left_out
        return self._made.setdefault(make, make(self))

    def its_state(self, its: AppHost) -> AppState:
        return self.state_of(its.name).of(its.app)

    def here(self, name: str) -> AppHere:
        run: Any = self
        return AppHere(run, self.fleet.host(name).applications[0])


def state(*lines: str) -> HostState:
    """A host of which these are what state.sh says of the application."""
    return parse([f"of consul-demo-server {line}" for line in lines])


def on(release: str, requirements: str = "", resolved: str = "") -> HostState:
    """A host that a release serves, and that has one before it."""
    made = {"release": release}
    if resolved:
        made |= {"requirements": requirements, "resolution": resolved}
    old = {"release": "r0", "requirements": requirements, "resolution": "old"}
    return state(
        f"generation {release}-1a2b3c4d {json.dumps(made)}",
        f"generation r0-00000000 {json.dumps(old)}",
        f"current_generation {release}-1a2b3c4d",
    )


def release_of(name: str, text: bytes = b"flask\n") -> Release:
    written = Requirements("requirements.txt", {"requirements.txt": text})
    return Release(name, None, written, Path())  # type: ignore[arg-type]


def chosen(
    what: Release,
    inside: Mapping[str, HostState],
    left_out: Mapping[str, HostState] | None = None,
    typed: str = "",
) -> str:
    run = Run(inside, left_out or {}, typed)
    return resolution.choose(run.here(next(iter(inside))), what)


# --- Which resolution ---


def test_requirements_that_are_written_as_before_stay_what_they_were_resolved_to() -> None:
    second = release_of("r2")
    assert second.requirements
    same = on("r1", second.requirements.digest, "theirs")
    assert chosen(second, {"a": same, "b": on("x"), "c": same}) == "theirs"
    assert chosen(release_of("r2", b"flask<4\n"), {"a": same}) != "theirs"


def test_a_release_resolves_what_it_is_the_first_to_have() -> None:
    found = chosen(release_of("r2"), {"a": on("r1")})
    assert found == made_by(release_of("r2"))
    assert found != made_by(release_of("r3"))
    assert found != made_by(release_of("r2", b"flask<4\n"))
    assert chosen(Release("r2", None, None, Path()), {"a": on("r1")}) == ""  # type: ignore[arg-type]


def test_most_hosts_decide_where_they_differ() -> None:
    release = release_of("r2")
    assert release.requirements
    digest = release.requirements.digest
    states = {name: on("r1", digest, name) for name in "ab"}
    assert chosen(release, {**states, "c": on("r1", digest, "b")}) == "b"


def test_a_release_that_is_named_and_new_resolves_anew() -> None:
    release = release_of("spring")
    assert release.requirements
    digest = release.requirements.digest
    before = {"a": on("r1", digest, "theirs")}
    assert chosen(release, before) == "theirs"
    assert chosen(release, before, typed="spring") == made_by(release)
    # One that is there is what it was, wherever that is, also where the run was cut short.
    there = {"b": on("spring", digest, "own")}
    assert chosen(release, there, typed="spring") == "own"
    assert chosen(release, before, there, typed="spring") == "own"


def test_a_host_that_is_behind_gets_what_the_others_have() -> None:
    release = release_of("r2")
    assert release.requirements
    digest = release.requirements.digest
    behind, others = {"a": on("r1", digest, "older")}, {"b": on("r2", digest, "theirs")}
    assert chosen(release, behind, others) == "theirs"
    assert chosen(release, {**behind, **others}) == "theirs"


def test_a_release_that_is_gone_back_to_has_what_it_had() -> None:
    release = release_of("r0")
    assert release.requirements
    digest = release.requirements.digest
    assert chosen(release, {"a": on("r1", digest, "theirs")}) == "old"
    assert chosen(release, {"a": HostState()}, {"b": on("r1", digest, "theirs")}) == "old"


def test_a_host_with_versions_of_before_resolves_before_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = release_of("r2")
    assert release.requirements
    made = json.dumps({"release": "r1", "requirements": release.requirements.digest})
    before = state(f"generation r1-1a2b3c4d {made}", "current_generation r1-1a2b3c4d")
    run: Any = Run({"new": HostState(), "a": before}, {})
    supply = dependencies.Supply(run)
    monkeypatch.setattr(supply, "_make", lambda *_: SimpleNamespace(exit_code=0))
    found = supply._made(run.fleet.applications, PYTHON, release, {})
    assert found.name == "a"


def test_requirements_with_hashes_are_the_same_for_all_releases() -> None:
    text = b"flask==3.0 \\\n    --hash=sha256:00\n"
    assert made_by(release_of("r1", text)) == made_by(release_of("r2", text))


def test_a_new_host_alone_gets_what_the_others_have() -> None:
    release = release_of("r2")
    assert release.requirements
    others = {"b": on("r2", release.requirements.digest, "theirs")}
    assert chosen(release, {"a": HostState()}, others) == "theirs"


# --- With which variables, and for which Python ---


def refusal(file: Path, line: str) -> str:
    """Why requirements with this second line are refused."""
    file.write_text(f"flask\n{line}\n")
    with pytest.raises(DeployError) as caught:
        read(file)
    return str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://me:hush@example.org/simple",
        "x @ git+https://token@example.org/x.git",
        "--extra-index-url http://${USER}:hush@example.org/  # ${PASSWORD}",
    ],
)
def test_a_password_in_requirements_is_refused_and_not_told(tmp_path: Path, line: str) -> None:
    file = tmp_path / "requirements.txt"
    said = refusal(file, line)
    assert f"{file}:2: has a password or a token in a URL: write ${{NAME}}" in said
    assert "hush" not in said


@pytest.mark.parametrize(
    "line",
    [
        "./shared",
        "../shared[all]",
        "shared/",
        "wheels/x.whl ; python_version > '3'",
        "file:shared",
        "-e .",
        "--editable=shared",
        "-f wheels",
        "--find-links ./wheels",
    ],
)
def test_a_path_that_hosts_do_not_have_is_refused(tmp_path: Path, line: str) -> None:
    said = refusal(tmp_path / "requirements.txt", line)
    assert re.search(r"requirements.txt:2: .* is a path, which the hosts", said)


def test_what_hosts_may_have_is_left_to_them(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(
        "-e git+https://example.org/x.git#egg=x\n-f https://example.org/x/\n-f /opt/wheels\n"
        "-f ${WHEELS}\n/opt/wheels/x.whl\nx @ file:///opt/x.zip\nhttps://example.org/x.zip\n"
        "# ./no\nflask>=1 ; python_version > '3'  # a/b\nflask[a,b]==1.0 \\\n  --hash=sha256:0/1\n"
    )
    read(file)


def test_variables_of_requirements_are_pips(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(
        "--index-url https://${USER}:${PASSWORD}@example.org/  # https://me:it@example.org ${NOT}\n"
        "x @ git+ssh://git@example.org/x.git\ny @ https://example.org/y@1.zip\n$NOT ${not}\n"
    )
    assert read(file).variables == {"USER", "PASSWORD"}


def test_what_pip_is_given_is_no_file_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "it's $1")
    written = release_of("r1", b"-i https://me:${PASSWORD}@example.org/\nx\n").requirements
    assert written
    given = dependencies._given(fleet_of("a").applications[0], written, b"x==1\n")
    lines, _, archive = given.partition(b"\n\n")
    assert lines == b"PASSWORD=it's $1"
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert opened.getnames() == ["requirements.txt", "resolved.txt"]
    assert b"it's" not in archive


def test_a_variable_without_a_value_is_refused_before_anything_is_touched() -> None:
    written = release_of("r1", b"-i https://me:${NO_SUCH_ONE}@example.org/\n").requirements
    assert written
    with pytest.raises(DeployError, match="app_requirements: no value for NO_SUCH_ONE"):
        dependencies._variables(fleet_of("a").applications[0], written)


def test_older_pythons_come_first() -> None:
    kinds = ["cpython-313-x86_64-linux-gnu-2.41", PYTHON, "cpython-39-x86_64-linux-gnu-2.31"]
    assert sorted(kinds, key=dependencies._age) == kinds[::-1]


def test_a_python_in_a_home_folder_is_refused() -> None:
    its = "of consul-demo-server app_python_at /opt/python"
    told = ["app_python_closed /opt/python /home/me/.pyenv/bin/python"]
    run = Run({"a": parse([its, f"app_python /opt/python {PYTHON}", *told])}, {})
    with pytest.raises(DeployError, match=r"a: app_python: /home/me/.* install it elsewhere"):
        decided.prepare(run.here("a"))
