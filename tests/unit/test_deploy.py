"""What the deploy decides and renders, without a host."""

import configparser
import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from deploy.app import _unit_files
from deploy.app.release import Release, _name, _read, _tracked
from deploy.plan import inventory_file
from deploy.state import FileState, UnitState, parse
from fleet.model import Host, InventoryHost, build
from plugin_build import builder, identity
from plugin_build.source import Source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def host() -> Host:
    groups = frozenset({"consul_servers", "app_servers"})
    data = {"instances": {"server1": 2001, "server2": {"port": 2002, "id": "two"}}}
    fleet = build([InventoryHost("drakar", groups, data)], (), (), lambda _: "10.0.3.11")
    return fleet.host("drakar")


@pytest.fixture
def release() -> Release:
    _read.cache_clear()
    return _read(
        str(ROOT / "app"), str(ROOT / "app/requirements.txt"), str(ROOT / "app/uwsgi.ini.j2")
    )


def git(folder: Path, *words: str) -> None:
    identity_words = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity_words, *words], check=True)


# --- The state of a host ---


def test_state_is_read_from_its_lines() -> None:
    found = parse(
        [
            "architecture amd64",
            "fingerprint 0123456789abcdef",
            "uwsgi /usr/bin/uwsgi 2.0.21-debian",
            "user consul",
            "package uwsgi-core",
            "file 640 root consul /etc/consul.d/consul.json",
            f"sum {'a' * 64} /etc/consul.d/consul.json",
            "consul_binary debian-bullseye",
            "consul_in_use debian-bullseye",
            "consul_running 77aa",
            "consul_raft yes",
            "consul_leader 10.0.0.1:8300",
            "consul_peers 10.0.0.1:8300 10.0.0.2:8300 ",
            "release abc-123",
            "unit consul.service active no enabled",
            "unit demo-2001@abc-123.service inactive no ",
            "unit demo-2001@abc-124.service activating yes disabled",
        ]
    )
    assert found.uwsgi == identity.Uwsgi("0123456789abcdef", "/usr/bin/uwsgi", "2.0.21-debian")
    config = found.files["/etc/consul.d/consul.json"]
    assert config == FileState("640", "root", "consul", "a" * 64)
    assert found.units["consul.service"] == UnitState("active", "enabled")
    assert found.units["demo-2001@abc-124.service"].stale
    assert found.active_units("demo-2001@", ".service") == {"demo-2001@abc-124.service"}
    assert (found.consul_in_use, found.consul_running) == ("debian-bullseye", "77aa")
    assert (found.consul_raft, found.consul_leader) == ("yes", "10.0.0.1:8300")
    assert found.consul_peers == ("10.0.0.1:8300", "10.0.0.2:8300")


def test_a_host_without_anything() -> None:
    found = parse(["architecture arm64", "unit consul.service inactive no "])
    assert found.uwsgi is None
    assert not found.files
    assert found.architecture == "arm64"


# --- What is rendered ---


def test_each_instance_has_an_ini_that_registers_it(release: Release, host: Host) -> None:
    files = release.files(host)
    for port, name in ((2001, "server1"), (2002, "two")):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(files[f"{port}.ini"].decode())
        ini = parser["uwsgi"]
        assert ini["socket"] == f":{port}"
        assert ini["plugins"] == "python3,%dconsul_plugin.so"
        pairs = dict(pair.split("=", 1) for pair in ini["consul-register"].split(","))
        assert (pairs["id"], pairs["port"]) == (name, str(port))
        assert (pairs["name"], pairs["address"]) == ("consul-demo-server", "10.0.3.11")
        assert pairs["meta"] == f"release:{release.name}"


def test_units_belong_together(host: Host) -> None:
    files = {file.path.rpartition("/")[2]: file.content for file in _unit_files(host, "abc-123")}
    assert sorted(files) == [
        "consul-demo-server-2001.socket",
        "consul-demo-server-2001@.service",
        "consul-demo-server-2002.socket",
        "consul-demo-server-2002@.service",
        "consul-demo-server.target",
    ]
    socket = str(files["consul-demo-server-2001.socket"])
    service = str(files["consul-demo-server-2001@.service"])
    assert "ListenStream=0.0.0.0:2001\n" in socket
    assert "Service=consul-demo-server-2001@abc-123.service\n" in socket
    assert "Sockets=consul-demo-server-2001.socket\n" in service
    assert "KillSignal=SIGHUP\n" in service


def test_the_archive_holds_the_release_and_is_reproducible(release: Release, host: Host) -> None:
    archive = release.archive(host)
    assert archive == release.archive(host)
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        names = opened.getnames()
    assert {"app/server.py", "app/client.py", "requirements.txt", "2001.ini"} <= set(names)


# --- The name of a release ---


def test_a_release_is_named_after_the_last_change_of_its_source(tmp_path: Path) -> None:
    source = tmp_path / "shop"
    source.mkdir()
    (source / "a.py").write_text("1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    clean = _name(source, ())
    assert len(clean) == 10
    (tmp_path / "elsewhere").write_text("x")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "two")
    assert _name(source, ()) == clean
    (source / "a.py").write_text("2\n")
    sources = (("shop/a.py", b"2\n"),)
    changed = hashlib.sha256(repr(sources).encode()).hexdigest()[:8]
    assert _name(source, sources) == f"{clean}-dirty-{changed}"


def test_only_what_git_tracks_is_sent(tmp_path: Path) -> None:
    for name in ("a.py", "secret.env", "new.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("*.env\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "a.py", ".gitignore")
    assert {path.name for path in _tracked(tmp_path)} == {"a.py", ".gitignore"}


# --- Arguments, and what a failed build shows ---


@pytest.mark.parametrize("words", [["-y", "fleet.py", "deploy/"], ["fleet.py", "-y", "deploy.py"]])
def test_the_inventory_is_the_first_file_on_the_command_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fleet.py", "deploy.py"):
        (tmp_path / name).touch()
    assert inventory_file(["pyinfra", *words]) == Path("fleet.py")


def test_a_failed_build_shows_its_first_error() -> None:
    lines = ["gcc ...", "x.c:1:1: error: one", *[f"note {n}" for n in range(50)]]
    shown = builder._excerpt(lines).splitlines()
    assert shown[0] == "    x.c:1:1: error: one"
    assert shown[-1] == "    ... and 21 lines more"


def test_a_changed_source_is_another_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest() -> str:
        return Source("x", tmp_path).digest

    (tmp_path / "plugin.c").write_text("int a;\n")
    before = digest()
    assert digest() == before
    (tmp_path / "plugin.c").write_text("int b;\n")
    assert digest() != before
