"""The content of a release: the same here, on the way and on a host."""

import io
import json
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from uwsgi_consul_fleet.host import content, store
from uwsgi_consul_fleet.host.says import ReleaseError
from uwsgi_consul_fleet.operations.applications import kept, source
from uwsgi_consul_fleet.operations.applications.archive import File, Sources, archive
from uwsgi_consul_fleet.operations.applications.requirements import Requirements

SEVERAL = {"requirements.d/a.txt": b"-r b.txt\n", "requirements.d/b.txt": b"# \xc3\xa9\n"}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """With whatever a file can be."""
    folder = tmp_path / "shop"
    (folder / ("deep/" * 30)).mkdir(parents=True)
    for name in ("units", "b", "b.py", "b/environment", "ä 'x'\n", f"{'deep/' * 30}file"):
        if name == "b":
            (folder / name).mkdir()
        else:
            (folder / name).write_text(name)
    (folder / "empty").touch()
    (folder / "run").write_bytes(os.urandom(3 * 2**20))
    (folder / "run").chmod(0o700)
    (folder / "link").symlink_to("b")
    (folder / "nowhere").symlink_to("gone")
    return Sources(source.read(folder))


@pytest.fixture
def installed(tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder on a host, of a version before 0.3."""
    monkeypatch.setattr(store, "ROOT", tmp_path / "srv")
    monkeypatch.setattr("os.nice", lambda by: by)
    fields = {
        "release": "r1",
        "node": "drakar",
        "instances": [],
        "health_path": "/",
        "health_timeout": 1,
        "min_healthy_time": 1,
    }
    files = {
        "2001.ini": File(b"[uwsgi]"),
        "environment": File(b"SECRET=hush", 0o600),
        "release.json": File(json.dumps(fields).encode()),
        "units/app.target": File(b"[Unit]"),
        **{path: File(text) for path, text in SEVERAL.items()},
    }
    folder = tmp_path / "srv/shop/releases/r1-aaaa"
    packed = io.BytesIO(b"".join(archive(sources, sorted(files.items()))))
    with tarfile.open(fileobj=packed) as opened:
        opened.extractall(folder)
    (folder / "venv").symlink_to("/")
    return folder


def described(capsys: pytest.CaptureFixture[str], wanted: str) -> dict[str, Any]:
    content.describe("shop", wanted)
    return dict(json.loads(capsys.readouterr().out))


def test_a_host_knows_what_it_was_sent(
    installed: Path, sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = described(capsys, "r1-aaaa")
    assert fields["sources"] == sources.digest
    assert fields["requirements"] == Requirements("requirements.d/a.txt", SEVERAL).digest
    assert fields["files"] == {path: text.decode() for path, text in SEVERAL.items()}
    assert described(capsys, store.content_of(fields))["generation"] == "r1-aaaa"
    assert described(capsys, "r1-aaaa")["release"] == "r1"


def test_requirements_that_stand_alone_are_known_too(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in SEVERAL:
        (installed / path).unlink()
    (installed / "requirements.txt").write_bytes(b"flask\n")
    alone = Requirements("requirements.txt", {"requirements.txt": b"flask\n"})
    assert described(capsys, "r1-aaaa")["requirements"] == alone.digest
    (installed / "requirements.txt").unlink()
    assert described(capsys, "r1-aaaa")["requirements"] == ""


def test_what_takes_over_is_newer_than_what_served(installed: Path, sources: Sources) -> None:
    """Else a browser that has a file of before is told that it has not been modified."""
    began = time.time() - 1
    places = [installed / each.path for each in sources.entries if not each.link]
    assert {place.stat().st_mtime for place in places} == {0}
    content.touch(installed)
    assert all(place.stat().st_mtime > began for place in places)
    assert (installed / "2001.ini").stat().st_mtime == 0


def test_what_is_not_there_is_an_error(installed: Path) -> None:
    with pytest.raises(ReleaseError, match=r"no release here has the content beef\.f00d"):
        content.describe("shop", "beef.f00d")


def test_a_host_passes_on_what_it_was_sent_and_nothing_else(
    installed: Path, sources: Sources, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    content.pack("shop", "r1-aaaa")
    sys.stdout.flush()
    packed = capfdbinary.readouterr().out
    assert kept.digest(io.BytesIO(packed)) == sources.digest
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r|gz") as opened:
        assert {each.name.partition("/")[0] for each in opened} == {"shop"}


@pytest.mark.parametrize("damage", ["other", "mode", "more", "cut"])
def test_what_is_not_any_more_what_was_released_is_noticed(
    installed: Path, sources: Sources, capfdbinary: pytest.CaptureFixture[bytes], damage: str
) -> None:
    if damage == "other":
        (installed / "shop/b.py").write_text("b.pY")
    if damage == "mode":
        (installed / "shop/run").chmod(0o644)
    if damage == "more":
        (installed / "shop/c.py").touch()
    content.pack("shop", "r1-aaaa")
    sys.stdout.flush()
    packed = capfdbinary.readouterr().out
    packed = packed[:-20000] if damage == "cut" else packed
    assert kept.digest(io.BytesIO(packed)) != sources.digest
