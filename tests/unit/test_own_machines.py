"""Settings on machines of one's own, where there is no lab: the shipped ones, and those of the
version before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "5ac7d59"  # the last commit whose settings import fleet.transport
PYINFRA = str(Path(sys.executable).with_name("pyinfra"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The lab is looked for in the folder, and a copy has none."""
    found = tmp_path / "checkout"
    for name in ("uwsgi_consul_fleet", "group_data"):
        shutil.copytree(ROOT / name, found / name)
    shutil.copy(ROOT / "inventory.py", found)
    return found


def read(checkout: Path, *options: str) -> subprocess.CompletedProcess[str]:
    home = str(checkout.parent)
    return subprocess.run(
        [PYINFRA, "inventory.py", "debug-inventory", *options],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "HOME": home},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_shipped_settings_can_be_read_without_a_lab(checkout: Path) -> None:
    result = read(checkout)
    assert result.returncode == 0, result.stderr
    assert f"{checkout.parent}/.ssh/config" in result.stdout + result.stderr


@pytest.mark.parametrize("left", [False, True], ids=["", "with an empty folder left"])
def test_those_of_the_version_before_still_can_and_say_what_to_delete(
    checkout: Path, left: bool
) -> None:
    show = ["git", "-C", str(ROOT), "show", f"{BEFORE}:group_data/all.py"]
    before = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    (checkout / "group_data/all.py").write_text(before)
    if left:  # by git, with compiled files in it
        (checkout / "fleet/__pycache__").mkdir(parents=True)
    result = read(checkout, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("delete these lines from it:") == 1
    for line in result.stderr.partition("from it:\n")[2].splitlines()[:2]:
        assert line.strip() in before
    data = json.loads(result.stdout)[0]["data"]
    assert data["ssh_config_file"] == f"{checkout.parent}/.ssh/config"


def test_without_those_lines_nothing_is_said(checkout: Path) -> None:
    shipped = checkout / "group_data/all.py"
    kept = [line for line in shipped.read_text().splitlines() if "ssh_config" not in line]
    shipped.write_text("\n".join(kept))
    result = read(checkout, "--json")
    assert result.returncode == 0 and "delete" not in result.stderr
    assert "ssh_config_file" not in json.loads(result.stdout)[0]["data"]
