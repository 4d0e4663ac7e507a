"""`pyinfra inventory.py deploy/` is understood by the stock command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import BIN
from leading import leading_to

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


# What is typed behind --data, and what comes of it.
DATA: list[tuple[str, object]] = [
    ("release=1.10", "1.10"),
    ("release=007", "007"),
    ("release=null", "null"),
    ("release=1234e56", "1234e56"),
    ("release=true", "true"),
    ("release=spring", "spring"),
    ('release="1.10"', "1.10"),
    ("consul_version=1.10", "1.10"),
    ("_sudo_password=0123", "0123"),
    ("app_requirements=null", None),
    ("check_ttl=9", 9),
    ("purge=false", False),
    ("batch=2", 2),
    ("batch=25%", "25%"),
    ('instances={"server1": 2001}', {"server1": 2001}),
    ("ssh_port=22", 22),
    ("nothing=1", 1),
]


def test_a_text_is_taken_as_it_is_typed_and_the_rest_as_pyinfra_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [arguments(monkeypatch, "pyinfra", "--data", typed)[2] for typed, _ in DATA]
    # In a process of its own: importing this would patch the standard library of ours.
    reads = "json.dumps([parse_cli_arg(word.partition('=')[2]) for word in sys.argv[1:]])"
    program = f"import json, sys; from pyinfra_cli.util import parse_cli_arg; print({reads})"
    result = subprocess.run(
        [sys.executable, "-c", program, *found], check=True, capture_output=True
    )
    assert json.loads(result.stdout) == [value for _, value in DATA]


@pytest.mark.parametrize("words", [["--data", "release=1.10"], ["--data=release=1.10"]])
def test_pyinfra_itself_has_it_as_it_was_typed(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "inventory.py").write_text('app_servers = ["drakar"]\n')
    command = [str(Path(sys.executable).with_name("pyinfra")), *words, "inventory.py"]
    command += ["debug-inventory", "--json"]
    result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (host,) = json.loads(result.stdout)
    assert host["data"]["release"] == "1.10"


@pytest.mark.parametrize(("name", "most"), [("pyinfra", 2), ("locust", None)])
def test_installed_packages_are_looked_through_once(name: str, most: int | None) -> None:
    """By gevent, for the modules that it patches. It looks itself when it begins."""
    program = """
import sys
from importlib import metadata
looks, look = [], metadata.entry_points
metadata.entry_points = lambda **group: looks.append(group) or look(**group)
sys.argv = sys.argv[1:]
import pyinfra_cli.main
print(len(looks))
"""
    words = [sys.executable, "-c", program, name]
    found = int(subprocess.run(words, check=True, capture_output=True).stdout)
    assert found <= most if most else found > 10


def test_one_host_is_asked_by_many_one_after_the_other(tmp_path: Path) -> None:
    """In a process of its own, patched as pyinfra's is. Two at a time would fail on the file."""
    program = """
import sys
import pyinfra_cli.main
import gevent
from pyinfra.api import Config, Inventory, State, StringCommand
from pyinfra.api.connect import connect_all
from uwsgi_consul_fleet.operations.pyinfra_run import PyinfraRun

state = State(Inventory((["@local"], {})), Config())
connect_all(state)
ask = PyinfraRun(state).executor("@local")
command = StringCommand("flock --nonblock", sys.argv[1], "sleep 0.2")
asked = [gevent.spawn(ask, command, False) for _ in range(3)]
print([each.get()[0] for each in asked])
"""
    words = [sys.executable, "-c", program, str(tmp_path / "lock")]
    result = subprocess.run(words, check=True, capture_output=True, text=True)
    assert result.stdout == "[True, True, True]\n"


def test_a_host_that_breaks_off_is_one_line(tmp_path: Path) -> None:
    """Of who does not even say that it speaks ssh, paramiko would print how that was noticed."""
    inventory = """
data = {"ssh_hostname": "127.0.0.1", "ssh_port": PORT, "ssh_strict_host_key_checking": "off"}
hosts = [("web", data)]
"""
    words = [BIN / "pyinfra", "-y", "inventory.py", "exec", "--", "true"]
    with leading_to(("127.0.0.1", 9), lambda _: False) as port:
        (tmp_path / "inventory.py").write_text(inventory.replace("PORT", str(port)))
        result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode
    assert "web (127.0.0.1): no SSH connection: " in result.stderr
    assert not re.search("Traceback|Exception", result.stderr), result.stderr
