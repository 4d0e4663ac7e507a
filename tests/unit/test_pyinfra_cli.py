"""`pyinfra inventory.py deploy/` is understood by the stock command."""

import sys
from pathlib import Path

import pytest

from uwsgi_consul_fleet.pyinfra_cli import accept_folders


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", list(words))
    accept_folders(None)
    return sys.argv


@pytest.fixture(autouse=True)
def deploy_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "__main__.py").touch()
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("folder", ["deploy/", "deploy", "./deploy"])
def test_a_folder_becomes_its_main(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    found = arguments(monkeypatch, "/x/bin/pyinfra", "-y", "inventory.py", folder, "--dry")
    assert found == ["/x/bin/pyinfra", "-y", "inventory.py", "deploy/__main__.py", "--dry"]


def test_a_folder_without_main_is_left_to_pyinfra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(monkeypatch, "pyinfra", "inventory.py", "plain")[-1] == "plain"


def test_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(monkeypatch, "/x/bin/locust", "deploy")[-1] == "deploy"
