"""Where the consul binary comes from, and what stops a deploy before it starts.

The release site is played by a local web server that serves a real binary in a
release archive; nothing else is replaced.
"""

import hashlib
import io
import re
import shlex
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import consul_version
import pytest
from checkout import BIN, ROOT
from lab_commands import Lab

HOST = "knarr"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Site:
    """A release site with one version of Consul on it."""

    def __init__(self, folder: Path, url: str, content: bytes) -> None:
        self.version = consul_version.number()
        self.archive = f"consul_{self.version}_linux_amd64.zip"
        self.folder = folder / self.version
        self.folder.mkdir()
        self.url = url
        self.content = content
        self.digest = hashlib.sha256(self.content).hexdigest()
        self.publish(self.content, self.digest)

    def publish(self, content: bytes, digest: str) -> None:
        (self.folder / self.archive).write_bytes(content)
        (self.folder / f"consul_{self.version}_SHA256SUMS").write_text(
            f"{digest}  {self.archive}\n"
        )


@pytest.fixture(scope="module")
def consul_binary() -> Path:
    found = shutil.which("consul")
    assert found, "no consul: script/bootstrap --test installs it"
    return Path(found)


@pytest.fixture(scope="module")
def packed(consul_binary: Path) -> bytes:
    """The binary in a release archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(consul_binary, "consul")
    return buffer.getvalue()


@pytest.fixture
def site(tmp_path: Path, packed: bytes) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(folder, f"http://127.0.0.1:{server.server_port}", packed)
        server.shutdown()


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[str]:
    """Where nothing was deployed yet; in a cluster of its own in the end."""
    lab.up(HOST)
    lab.rebuild(HOST)
    yield HOST
    lab.down(HOST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the inventory, in which its secrets stay."""
    return tmp_path_factory.mktemp("alone")


@pytest.fixture
def deploy(machine: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Deploy Consul alone to a host of its own, with these settings; returns the result."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inventory = folder / "consul_alone.py"
    inventory.write_text(f"consul_servers = [{machine!r}]\n")

    def run(**settings: object) -> subprocess.CompletedProcess[str]:
        data = [word for key, value in settings.items() for word in ("--data", f"{key}={value}")]
        command = [str(BIN / "pyinfra"), "-y", *data, str(inventory), "deploy/"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    return run


def expect_refusal(lab: Lab, result: subprocess.CompletedProcess[str], *words: str) -> None:
    said = result.stdout + result.stderr
    assert result.returncode != 0, said
    assert "Traceback" not in said, said
    for word in (*words, "nothing was changed"):
        assert word in said, said
    assert (
        lab.ssh(HOST, "ls -d /opt/uwsgi-consul-fleet /etc/uwsgi-consul-fleet", check=False).stdout
        == ""
    )


def test_debians_package_is_looked_up_where_the_mirror_has_another(machine: str, lab: Lab) -> None:
    """As it is where the digest that the script knows is not that of the mirror's package."""
    script = (ROOT / "uwsgi_consul_fleet/operations/consul/debian.sh").read_text()
    other, replaced = re.subn("digest=[0-9a-f]{64}", f"digest={'0' * 64}", script)
    assert replaced == 4
    lab.ssh(machine, f"sudo sh -c {shlex.quote(other)} debian /tmp/consul")
    assert "Consul v1.8.7" in lab.ssh(machine, "/tmp/consul version").stdout


def test_a_wrong_checksum(site: Site, deploy: Any, lab: Lab) -> None:
    site.publish(site.content, "0" * 64)
    result = deploy(
        consul_source="release", consul_version=site.version, consul_release_url=site.url
    )
    expect_refusal(lab, result, site.archive, site.digest, "0" * 64)


def test_a_truncated_archive(site: Site, deploy: Any, lab: Lab) -> None:
    site.publish(site.content[:100_000], site.digest)
    result = deploy(
        consul_source="release", consul_version=site.version, consul_release_url=site.url
    )
    expect_refusal(lab, result, site.archive, "100000 bytes")


def test_a_pin_that_the_published_checksum_does_not_match(
    site: Site, deploy: Any, lab: Lab
) -> None:
    pin = f'{{"amd64": "{"a" * 64}"}}'
    result = deploy(
        consul_source="release",
        consul_version=site.version,
        consul_release_url=site.url,
        consul_sha256=pin,
    )
    expect_refusal(lab, result, "consul_sha256", "a" * 64, site.digest)


def test_a_version_that_is_not_there(site: Site, deploy: Any, lab: Lab) -> None:
    result = deploy(consul_source="release", consul_version="9.9.9", consul_release_url=site.url)
    expect_refusal(lab, result, f"{site.url}/9.9.9", "404")


def test_a_file_that_is_not_there(deploy: Any, lab: Lab, tmp_path: Path) -> None:
    result = deploy(consul_source="file", consul_file=tmp_path / "none")
    expect_refusal(lab, result, f"consul_file: {tmp_path / 'none'}: No such file")


def test_a_file_that_is_no_program(deploy: Any, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "consul").write_text("#!/bin/sh\n")
    result = deploy(consul_source="file", consul_file=tmp_path / "consul")
    expect_refusal(lab, result, "is not a Linux program")


def test_a_damaged_archive_as_file(site: Site, deploy: Any, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "consul.zip").write_bytes(site.content[:100_000])
    result = deploy(consul_source="file", consul_file=tmp_path / "consul.zip")
    expect_refusal(lab, result, "consul.zip is damaged")


def test_auto_takes_the_release_where_its_site_answers(site: Site, deploy: Any, lab: Lab) -> None:
    settings = {"consul_version": site.version, "consul_release_url": site.url}
    result = deploy(consul_source="auto", **settings)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"the release archive, version {site.version}" in result.stderr + result.stdout
    assert lab.ssh(HOST, "readlink /usr/local/bin/consul").stdout == (
        f"/opt/uwsgi-consul-fleet/consul/release-{site.version}/consul\n"
    )
    assert f"Consul v{site.version}" in lab.ssh(HOST, "consul version").stdout
    # Once installed, the site is not asked again: a run without it changes nothing.
    again = deploy(
        consul_source="auto", consul_version=site.version, consul_release_url="http://127.0.0.1:1"
    )
    assert again.returncode == 0
    total = re.search(r"Grand total +\d+ +(\S+)", again.stdout + again.stderr)
    assert total, again.stdout + again.stderr
    assert total[1] == "-"  # none with success: nothing was changed


def test_a_file_replaces_what_runs(deploy: Any, lab: Lab, site: Site, consul_binary: Path) -> None:
    result = deploy(consul_source="file", consul_file=consul_binary)
    assert result.returncode == 0, result.stdout + result.stderr
    assert lab.ssh(HOST, "readlink /usr/local/bin/consul").stdout.startswith(
        "/opt/uwsgi-consul-fleet/consul/file-"
    )
    pid = lab.ssh(HOST, "systemctl show --value --property MainPID consul").stdout.strip()
    running = lab.ssh(HOST, f"sudo readlink /proc/{pid}/exe").stdout
    assert running.startswith("/opt/uwsgi-consul-fleet/consul/file-")
