"""Where a token for a Consul of others comes from."""

from pathlib import Path

import pytest

from uwsgi_consul_fleet.consul.access import access, secret
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Host, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.consul.existing import plugins_keys


def guest(**settings: str) -> Host:
    data = {**DEMO, "consul_source": "none", "fleet": "shop", **settings}
    listed = InventoryHost("drakar", frozenset({"app_servers"}), data)
    return build([listed], (), (), lambda _: "10.0.3.11").host("drakar")


def test_a_token_in_a_file_or_in_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("open-sesame\n")
    file.chmod(0o600)
    monkeypatch.setenv("SHOP_TOKEN", "open-barley")
    host = guest(consul_token=str(file), consul_app_token="$SHOP_TOKEN")
    assert access(host).token == "open-sesame"
    assert "open-sesame" not in " ".join(access(host).words)
    assert secret(host.settings, "consul_app_token") == "open-barley"
    assert secret(guest().settings, "consul_app_token") == ""


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        (None, 0, "No such file"),
        ("open-sesame", 0o640, "others on this machine may read"),
        ("\n", 0o600, "there is no token in"),
        ("open sesame", 0o600, "there is no token in"),
    ],
)
def test_a_token_that_can_not_be_used(
    content: str | None, mode: int, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(FleetError, match=expected) as refused:
        access(guest(consul_token=str(file)))
    assert str(refused.value).startswith("consul_token: ")
    assert "nothing was changed" in str(refused.value)


def test_a_certificate_that_is_not_there_is_told_by_its_settings_name(tmp_path: Path) -> None:
    shown = access(guest(consul_ca_file=str(tmp_path / "ca.pem")))
    with pytest.raises(FleetError, match=rf"consul_ca_file: {tmp_path}/ca.pem: .*No such file"):
        assert shown.stdin


def test_a_variable_that_is_not_set() -> None:
    with pytest.raises(FleetError, match=r"consul_token: there is no token in \$NOWHERE"):
        access(guest(consul_token="$NOWHERE"))


def test_what_the_plugin_is_told_of_the_agent() -> None:
    own = InventoryHost("drakar", frozenset({"consul_servers"}), DEMO)
    (host,) = build([own], (), (), lambda _: "10.0.3.11").hosts
    assert plugins_keys(host) == "url=http://127.0.0.1:8500"
    theirs = guest(
        consul_address="https://127.0.0.1:8501", consul_app_token="$T", consul_ca_file="~/ca.pem"
    )
    folder = "/etc/uwsgi-consul-fleet/agent"
    assert plugins_keys(theirs) == (
        f"url=https://127.0.0.1:8501,token_file={folder}/token,ca_file={folder}/ca.pem"
    )
