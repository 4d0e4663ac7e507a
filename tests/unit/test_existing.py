"""What lies on a host for whoever asks an agent of others."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from folders import Machine

from uwsgi_consul_fleet.host.consul import CONFIG
from uwsgi_consul_fleet.inventory.applications import Described
from uwsgi_consul_fleet.inventory.model import InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.consul import existing
from uwsgi_consul_fleet.operations.consul.existing import CA, TOKEN
from uwsgi_consul_fleet.operations.state import State, about


def test_what_a_release_that_is_kept_needs_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(existing, "system_user", lambda *_: ())
    monkeypatch.setattr(existing, "converge", lambda *_: ())
    data = {**DEMO, "consul_source": "none", "fleet": "shop", "instances": {"a": 2001}}
    listed = InventoryHost("drakar", frozenset({"app_servers"}), data)
    me = build([listed], (), (), lambda _: "10.0.3.11").host("drakar")
    machine = Machine(tmp_path)

    def removed() -> list[str]:
        """By a deploy of settings that name neither."""
        lines = machine.run(State().command(**about(me))).splitlines()
        here: Any = SimpleNamespace(me=me, known=State().process(lines), changed=lambda: None)
        return [command.get_raw_value() for command in existing.use._inner(here)]

    for path in (CA, TOKEN):
        machine.put(path)
    ini = f"/srv/{me.settings.app_name}/releases/r1-1/2001.ini"
    machine.put(ini, f"consul-register = url=http://127.0.0.1:8500,token_file={TOKEN},name=shop\n")
    assert removed() == [f"rm -f {CA}"]
    (tmp_path / ini[1:]).unlink()
    assert removed() == [f"rm -f {CA} {TOKEN}"]


def test_each_application_of_a_host_has_its_own_copy_of_the_token(tmp_path: Path) -> None:
    """A file has one owner; the program's own is root's, so that no application changes it."""
    token = tmp_path / "token"
    token.write_text("hush\n")
    token.chmod(0o600)
    given = {key: DEMO[key] for key in ("app_source", "app_entry_point", "app_ini")}
    apps = [
        Described(
            f"applications/{name}.py",
            {**given, "app_requirements": None, "instances": {"web": port}},
        )
        for name, port in (("blog", 3001), ("shop", 2001))
    ]
    data = {"consul_source": "none", "fleet": "x", "consul_app_token": str(token)}
    listed = InventoryHost("drakar", frozenset({"app_servers"}), data)
    me = build([listed], (), (), lambda _: "10.0.3.11", apps).host("drakar")
    secrets = {file.path: file.user for file in existing._files(me) if file.mode == "400"}
    folder = existing.FOLDER
    assert secrets == {
        f"{folder}/blog/token": "blog",
        f"{folder}/shop/token": "shop",
        TOKEN: "root",
    }
    (config,) = (file for file in existing._files(me) if file.path == CONFIG)
    assert json.loads(config.content)["token_file"] == TOKEN
    for its in me.applications:
        assert f"token_file={folder}/{its.app}/token" in existing.plugins_keys(its)
