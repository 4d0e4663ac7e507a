"""Which consul binary a host gets, and how it is sent."""

import gzip
import hashlib
import random
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from uwsgi_consul_fleet.inventory.model import InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.consul import source
from uwsgi_consul_fleet.operations.consul.source import DEBIAN, Source
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.state import HostState


class Run:
    """As far as it is asked."""

    def __init__(self, **settings: str) -> None:
        groups = frozenset({"consul_servers"})
        hosts = [InventoryHost(name, groups, {**DEMO, **settings}) for name in ("a", "b", "c")]
        self.fleet = build(hosts, (), (), lambda host: f"10.0.0.{ord(host.name)}")
        self.pyinfra = SimpleNamespace(connected=frozenset({"a", "b", "c"}))
        self.made: dict[Any, Any] = {}

    def once(self, make: Callable[[Any], Any]) -> Any:
        if make not in self.made:
            self.made[make] = make(self)
        return self.made[make]

    def choose(self, name: str, **known: str) -> Source:
        here = SimpleNamespace(run=self, me=self.fleet.host(name), known=HostState(**known))
        return source.choose(here)  # type: ignore[arg-type]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the operator reads; no site is asked."""
    lines: list[str] = []
    logger = SimpleNamespace(info=lines.append, warning=lines.append)
    monkeypatch.setattr(source, "logger", logger)
    monkeypatch.delattr(requests.Session, "request")
    return lines


def test_auto_does_not_stay_with_debians_in_silence(said: list[str]) -> None:
    run = Run()
    for name in ("a", "b", "c"):
        assert run.choose(name, consul_in_use=DEBIAN).label == DEBIAN
    (line,) = said  # once, for all hosts
    assert '"auto" stays with Debian\'s 1.8.7' in line
    assert 'consul_source = "release" takes 1.21.4' in line


def test_who_said_debian_hears_nothing(said: list[str]) -> None:
    assert Run(consul_source="debian").choose("a", consul_in_use=DEBIAN).label == DEBIAN
    assert said == []


def test_it_is_sent_packed_and_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(source, "BLOCK", 1000)
    monkeypatch.setattr(source, "TELL", 0)
    binary = tmp_path / "consul"
    content = random.Random(1).randbytes(20_000)
    binary.write_bytes(content)
    sent = Source("file-1", "a file", binary, tmp_path / "cache")
    progress: list[str] = []
    assert gzip.decompress(b"".join(sent.packed(progress.append))) == content
    assert len(progress) > 1
    assert progress[-1].startswith("Consul: ") and progress[-1].endswith(" MB sent")
    # It is packed once.
    binary.unlink()
    assert gzip.decompress(b"".join(sent.packed(progress.append))) == content
    assert len(said) == 1


# --- A release site, and who signed what is on it --------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of gpg's with two keys, and each as ours.asc, ours.gpg, others.asc."""
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    for name in ("ours", "others"):
        gpg(home, "--passphrase", "", "--quick-generate-key", name, "ed25519", "sign")
        (home / f"{name}.asc").write_bytes(gpg(home, "--armor", "--export", name))
    (home / "ours.gpg").write_bytes(gpg(home, "--export", "ours"))
    (home / "both.asc").write_bytes(gpg(home, "--armor", "--export"))
    yield home
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)


def gpg(home: Path, *words: str) -> bytes:
    return subprocess.run(
        ["gpg", "--homedir", str(home), "--batch", *words], check=True, capture_output=True
    ).stdout


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a version, behind the URL in its file url."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source._from_release.cache_clear()
    folder = tmp_path / "site/1.2.3"
    folder.mkdir(parents=True)
    archive = folder / "consul_1.2.3_linux_amd64.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("consul", "\x7fELF")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (folder / "consul_1.2.3_SHA256SUMS").write_text(f"{digest}  {archive.name}\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (folder / "url").write_text(f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


def sign(site: Path, keys: Path, *names: str) -> None:
    users = [word for name in names for word in ("--local-user", name)]
    sums = str(site / "consul_1.2.3_SHA256SUMS")
    gpg(keys, *users, "--yes", "--output", f"{sums}.sig", "--detach-sign", sums)


def fetched(site: Path, key: Path) -> Source:
    return source._from_release((site / "url").read_text(), "1.2.3", "amd64", None, str(key))


@pytest.mark.parametrize("key", ["ours.asc", "ours.gpg", "both.asc"])
@pytest.mark.parametrize("by", [["ours"], ["others", "ours"]], ids=["alone", "beside another"])
def test_checksums_that_are_signed_are_believed(
    site: Path, keys: Path, key: str, by: list[str]
) -> None:
    sign(site, keys, *by)
    assert fetched(site, keys / key).label == "release-1.2.3"


def test_checksums_that_are_not_are_refused(site: Path, keys: Path, tmp_path: Path) -> None:
    ours, sums = keys / "ours.asc", site / "consul_1.2.3_SHA256SUMS"
    no_key = tmp_path / "no key"

    def refusal(key: Path) -> str:
        with pytest.raises(DeployError) as error:
            fetched(site, key)
        assert str(error.value).endswith("; nothing was changed"), error.value
        return str(error.value)

    with pytest.raises(DeployError, match=r"SHA256SUMS\.sig: 404"):
        fetched(site, ours)
    sign(site, keys, "others")
    assert f"SHA256SUMS is not signed by consul_release_key ({ours}): gpgv: Can't" in refusal(ours)
    sign(site, keys, "ours")
    no_key.write_text("hello")
    assert f"({no_key}): gpgv: " in refusal(no_key)
    assert refusal(tmp_path / "none").startswith(
        f"consul_release_key: {tmp_path / 'none'}: No such"
    )
    signed = sums.read_text()
    sums.write_text(signed.replace("amd64", "arm64"))
    assert "gpgv: BAD signature" in refusal(ours)
    sums.write_text(signed)
    assert fetched(site, ours).path
