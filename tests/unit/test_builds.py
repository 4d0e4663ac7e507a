"""Which machine compiles, what is compiled, and what verify makes of a host's answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from uwsgi_consul_fleet.build import builder, dist, identity, source
from uwsgi_consul_fleet.build.builder import Build
from uwsgi_consul_fleet.build.identity import Uwsgi, parse_identity
from uwsgi_consul_fleet.build.source import Source
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Host, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.ssh.connection import Result
from uwsgi_consul_fleet.verify import plugins

IDENTITY = """fingerprint {}
uwsgi /usr/bin/uwsgi 2.0.21-debian
part version 2.0.21-debian
part libc glibc 2.36
"""
PLUGIN = b"\x7fELF plugin"


def host(name: str, **data: Any) -> Host:
    listed = InventoryHost(name, frozenset({"consul_servers"}), {**DEMO, **data})
    return build([listed], (), (), lambda _: "10.0.0.1").host(name)


class Answering:
    """A machine that has a uWSGI with this fingerprint, and compiles at once."""

    settings = None

    def __init__(self, name: str, fingerprint: str, log: list[str]) -> None:
        self.name = name
        self.is_builder = name.startswith("builder")
        self.fingerprint = fingerprint
        self.log = log

    def run(self, script: str, stdin: bytes = b"", on_line: Any = None) -> Result:
        if "use_compiler gcc libc6-dev binutils" in script:
            self.log.append(self.name)
            return Result(PLUGIN, "## compiler gcc 12\n", 0)
        if not self.fingerprint:
            raise FleetError(f"{self.name}: no SSH connection")
        return Result(IDENTITY.format(self.fingerprint).encode(), "", 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dist, "DIST", tmp_path)
    return tmp_path


def places(log: list[str], **fingerprints: str) -> list[Answering]:
    return [Answering(name, fingerprint, log) for name, fingerprint in fingerprints.items()]


def outcomes(found: list[Answering]) -> dict[str, str]:
    how = Build(source.own(), lambda *_: None)
    return {outcome.host: outcome.error for outcome in builder.build(found, how)}


def test_each_kind_is_compiled_once_and_on_a_builder_if_there_is_one(folder: Path) -> None:
    log: list[str] = []
    hosts = places(log, web1="a", web2="b", web3="a", builder1="c", builder2="a")
    assert outcomes(hosts) == {"web1": "", "web2": "", "web3": ""}
    assert sorted(log) == ["builder2", "web2"]
    assert {path.name for path in folder.iterdir()} == {"a", "b"}
    outcomes(hosts)
    assert len(log) == 2


def test_a_host_that_fails_does_not_keep_the_others_from_theirs(folder: Path) -> None:
    log: list[str] = []
    found = outcomes(places(log, web1="", web2="b"))
    assert found == {"web1": "web1: no SSH connection", "web2": ""}
    assert log == ["web2"]


def test_the_manifest_tells_what_the_plugin_is_for(folder: Path) -> None:
    outcomes(places([], web1="a"))
    manifest = json.loads((folder / "a/manifest.json").read_text())
    assert manifest["parts"] == {"version": "2.0.21-debian", "libc": "glibc 2.36"}
    assert (manifest["built_on"], manifest["compiler"]) == ("web1", "gcc 12")
    assert manifest["sources"] == source.own().digest


@pytest.mark.parametrize("damage", ["plugin", "manifest"])
def test_what_was_damaged_is_built_again(folder: Path, damage: str) -> None:
    log: list[str] = []
    hosts = places(log, web1="a")
    outcomes(hosts)
    name = "consul_plugin.so" if damage == "plugin" else "manifest.json"
    (folder / "a" / name).write_bytes(b"half")
    outcomes(hosts)
    assert log == ["web1", "web1"]


def test_our_plugin_is_its_sources_and_nothing_of_the_builder() -> None:
    files = source.own().files
    assert "src/plugin.c" in files
    assert not [name for name in files if name.endswith((".sh", ".so")) or "builder" in name]


def test_another_source_is_known_by_its_description(tmp_path: Path) -> None:
    (tmp_path / "uwsgiplugin.py").write_text("NAME='hello'\n")
    with source.find(str(tmp_path)) as found:
        assert found == Source("hello", tmp_path)
        assert found.plugin == "hello_plugin.so"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "neither a folder nor a URL that git can clone"),
        ("file:///nowhere.git", "git can't clone it: "),
    ],
)
def test_what_is_no_source(place: str, said: str) -> None:
    with pytest.raises(FleetError, match=f"--source {place}: .*{said}"), source.find(place):
        pass


def test_which_uwsgi_the_settings_mean() -> None:
    assert identity.binary(host("a").settings) == ""
    found = identity.binary(host("a", uwsgi_source="pypi", uwsgi_version="2.0.30").settings)
    assert found == "/opt/uwsgi-consul-fleet/uwsgi/2.0.30-usr-bin-python3/uwsgi"


def test_an_identity_is_read() -> None:
    assert parse_identity(IDENTITY.format("abc")) == Uwsgi("abc", "/usr/bin/uwsgi", "2.0.21-debian")
    assert parse_identity("") is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (IDENTITY.format("abc") + "plugin abc\n", []),
        (IDENTITY.format("abc"), []),  # nothing deployed: its instances are missing
        ("plugin abc\n", ["has no uWSGI; deploy to it"]),
        (IDENTITY.format("abc") + "plugin def\n", ["its uWSGI is 2.0.21-debian now"]),
        (IDENTITY.format("abc") + "plugin another's\n", ["its plugin is for another's"]),
    ],
)
def test_what_verify_makes_of_a_hosts_answer(answer: str, said: list[str]) -> None:
    found = plugins._differences(host("web1"), answer)
    assert len(found) == len(said)
    for difference, text in zip(found, said, strict=True):
        assert (difference.kind, difference.subject) == ("wrong plugin", "node web1")
        assert text in difference.detail
