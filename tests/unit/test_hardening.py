"""What an application's units let it do, and what a setting adds."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sources import host

from uwsgi_consul_fleet.errors import InventoryError
from uwsgi_consul_fleet.host import elsewhere, store
from uwsgi_consul_fleet.host.says import ReleaseError
from uwsgi_consul_fleet.operations.applications.package import make
from uwsgi_consul_fleet.operations.applications.release import read

APP = "consul-demo-server"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "app.lua").touch()
    (folder / "index.php").touch()
    return folder


def units(folder: Path, **settings: Any) -> dict[str, str]:
    said = {"app_type": "lua", "app_entry_point": "app.lua", "app_root": ".", **settings}
    me = host(folder, app_workers={"mail": "send"}, **said)
    files = make(me, read(me.settings)).files
    return {path: file.content.decode() for path, file in files.items() if ".service" in path}


def test_all_units_of_an_application_have_the_same_lines(project: Path) -> None:
    more = {"MemoryMax": "512M", "SystemCallFilter": ["@mount", "bpf"], "RestrictNamespaces": False}
    found = units(project, app_unit=more, app_writable=["/var/lib/shop"])
    ends = {text[text.index("NoNewPrivileges=yes\n") :] for text in found.values()}
    assert {*found} > {"units/2001.service", "units/trial.service", "units/mail.1.service"}
    (end,) = ends
    assert end.endswith(
        f"SystemCallErrorNumber=EPERM\nReadWritePaths=-/srv/{APP}/shared\n"
        "ReadWritePaths=/var/lib/shop\nMemoryMax=512M\nSystemCallFilter=@mount\n"
        "SystemCallFilter=bpf\nRestrictNamespaces=false\n"
    )
    assert "MemoryDenyWriteExecute=yes\n" in end and elsewhere.ELSEWHERE not in end


def test_php_makes_code_as_it_runs_and_keeps_sessions(project: Path) -> None:
    text = units(project, app_type="php", app_entry_point="index.php")["units/2001.service"]
    assert "MemoryDenyWriteExecute" not in text and elsewhere.ELSEWHERE in text
    assert "ReadWritePaths=-/var/lib/php/sessions\n" in text


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"app_unit": {"ExecStart": "/bin/sh"}}, "ExecStart: a unit takes here what its process"),
        ({"app_unit": {"MemoryMaxx": "1G"}}, "MemoryMaxx: did you mean MemoryMax? a unit"),
        ({"app_unit": {"ReadWritePaths": "/x"}}, "ReadWritePaths: say app_writable"),
        ({"app_unit": {"MemoryMax": "1G\nUser=root"}}, "a value is one line"),
        ({"app_writable": ["uploads"]}, "app_writable.0 = 'uploads'"),
        ({"app_writable": ["/var/%i"]}, "app_writable.0 = '/var/%i'"),
    ],
)
def test_what_else_a_unit_has_is_not_the_operators(
    project: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InventoryError) as caught:
        units(project, **settings)
    assert says in str(caught.value)


class TestOnTheHost:
    """A release of the version before, and one that takes over from it."""

    @pytest.fixture
    def releases(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[store.Release]:
        monkeypatch.setattr(store, "ROOT", tmp_path)
        texts = {"old": "[Service]\nProtectSystem=full\n"}
        texts["new"] = f"[Service]\n{elsewhere.HARDENED}\n{elsewhere.ELSEWHERE}\n"
        one = store.Release(
            *(APP, "", "r", "", "drakar", (store.Instance("server1", 2001),)),
            *("/", 5, 1, {}, "200", "", ""),
        )
        for name, text in texts.items():
            unit = replace(one, generation=name).folder / "units/2001.service"
            unit.parent.mkdir(parents=True)
            unit.write_text(text)
        return [replace(one, generation=name) for name in texts]

    def test_what_it_could_write_to_is_looked_for_once(
        self, releases: list[store.Release], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old, new = releases
        looked: list[str] = []
        monkeypatch.setattr(elsewhere, "_look", lambda app: looked.append(app) or ["/var/a"])
        for before in (None, new, old):
            elsewhere.prepare(new, before)
            assert looked == ([APP] if before is old else [])
        assert elsewhere.unit(new, "2001.service").endswith("\nReadWritePaths=-/var/a\n")
        assert elsewhere.unit(old, "2001.service") == "[Service]\nProtectSystem=full\n"

    @pytest.mark.parametrize("found", [subprocess.TimeoutExpired([], 1), 51, "a path"])
    def test_where_that_is_not_to_be_said_the_setting_is_asked_for(
        self, found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(*_: object, **__: object) -> Any:
            if isinstance(found, Exception):
                raise found
            paths = [f"/{n}" for n in range(found)] if isinstance(found, int) else [f"/{found}"]
            return subprocess.CompletedProcess([], 0, b"".join(f"{x}\0".encode() for x in paths))

        monkeypatch.setattr(elsewhere.subprocess, "run", run)
        monkeypatch.setattr(elsewhere, "_is_its", lambda *_: True)
        with pytest.raises(ReleaseError, match="list what it needs in app_writable"):
            elsewhere._look("daemon")

    def test_what_everybody_can_write_to_is_its_where_it_did(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o1777)
        assert not elsewhere._is_its(str(tmp_path), 54321)
        assert elsewhere._is_its(str(tmp_path), os.getuid())
        (tmp_path / "lock").touch()
        tmp_path.chmod(0o755)
        assert elsewhere._is_its(str(tmp_path), 54321)  # by its group, or a list

    @pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
    def test_root_follows_no_link_of_its(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("/etc")
        with pytest.raises(ReleaseError, match="a link leads out of it"):
            elsewhere._make("daemon", tmp_path / "link/cron.d.of-nobody")
        elsewhere._make("daemon", tmp_path / "a/b")
        state = (tmp_path / "a/b").stat()
        assert (state.st_mode & 0o777, state.st_uid) == (0o750, 1)
