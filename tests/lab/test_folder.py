"""What the README begins with, as a stranger types it: from a clone to what is verified.

A second application lies beside the README's: a project as Django's own command makes it.
"""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import prepared
import pytest
import wheel
from applications import commit
from checkout import BIN, ROOT
from fleet_commands import changed
from lab_commands import Lab

pytestmark = pytest.mark.takes(140)

SHOP = """
from flask import Flask

def create_app():
    app = Flask(__name__)
    app.add_url_rule("/", "home", lambda: "made by a factory")
    app.add_url_rule("/healthz", "health", lambda: "well")
    return app
"""


def commands(page: str, title: str) -> list[str]:
    """Those of a section."""
    text = (ROOT / page).read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


class Stranger:
    """Somebody with a shell, Python with pip and pipx, and nothing of ours."""

    def __init__(self, home: Path) -> None:
        self.place = home
        uv = [BIN / "uv", "--system-certs"]
        subprocess.run([*uv, "venv", "--quiet", "--seed", "--python", sys.executable, home / "py"])
        install = [*uv, "pip", "install", "--quiet", "--python", home / "py"]
        subprocess.run([*install, "pipx", "django", "setuptools"], check=True)
        ours = os.environ.keys() - {"PYTHONPATH", "VIRTUAL_ENV"}
        self.environment = {
            **{key: os.environ[key] for key in ours},
            **prepared.environment(),
            "PATH": f"{home}/bin:{home}/py/bin:{os.environ['PATH']}",
            "PIP_NO_BUILD_ISOLATION": "1",  # what it would fetch is there
            "PIPX_HOME": str(home / "pipx"),
            "PIPX_BIN_DIR": str(home / "bin"),
        }

    def types(self, command: str) -> subprocess.CompletedProcess[str]:
        """One that has to succeed."""
        folder = self.place
        if command.startswith("cd "):
            self.place, command = (folder / command.removeprefix("cd ")).resolve(), "true"
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}:\n{result.stdout}{result.stderr}"
        return result


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    """In a clone, with a repository (Flask by a factory, below src/) and a folder beside it."""
    shop, blog = tmp_path / "shop", tmp_path / "blog"
    (shop / "src/shop").mkdir(parents=True)
    (shop / "src/shop/__init__.py").write_text(SHOP)
    (shop / "requirements.txt").write_text("flask\n")
    commit(shop)
    found = Stranger(tmp_path)
    blog.mkdir()
    found.types("django-admin startproject site1 blog")
    (blog / "requirements.txt").write_text("django\n")
    found.place = wheel.clone(tmp_path / "clone")
    return found


def test_from_the_wheel_to_applications_that_are_verified(stranger: Stranger) -> None:
    *before, build, deploy, verify = commands("README.md", "Your application in ten minutes")
    said = [stranger.types(f"{word} --app ../blog" if "--app" in word else word) for word in before]
    shown = re.findall(r"^```text\n(.*?)^made ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert shown[0] in said[2].stdout
    place = stranger.place
    # Two names are edited.
    inventory = (place / "inventory.py").read_text()
    names = inventory.replace('["drakar", "cheetah"]', '["shop1"]').replace('"drakar"]', '"shop1"]')
    (place / "inventory.py").write_text(names)
    lab = Lab(place, **prepared.environment())
    try:
        stranger.types("invoke lab.up shop1")
        assert "built: plugin_build/dist/" in stranger.types(build).stdout
        stranger.types(deploy)
        assert "The catalog agrees" in stranger.types(f"{verify} --probe").stdout
        assert get(lab, 2001) == "made by a factory"
        # With DEBUG, which its file has a TODO about.
        assert "The install worked successfully!" in get(lab, 2011)
        stranger.types("invoke exec --app blog -- python manage.py migrate --check")
        # All that was made lies in the folder.
        assert {path.name for path in place.iterdir()} >= {".lab", "plugin_build"}
        upgrade(stranger, place)
        assert changed(stranger.types(f"{deploy} --json")) == {}
    finally:
        lab.down()


def upgrade(stranger: Stranger, folder: Path) -> None:
    """To a wheel of the next version, built where the one before was."""
    stranger.types("cd ../clone")
    project = stranger.place / "pyproject.toml"
    text, count = re.subn('(?m)^version = ".*"$', 'version = "100.0"', project.read_text())
    assert count == 1
    project.write_text(text)
    clear, build, install = commands("docs/folder.md", "Upgrading")
    stranger.types(clear)
    # As the command does that was typed before, in a third of the time.
    assert build == commands("README.md", "Your application in ten minutes")[0]
    wheel.pack(stranger.place, stranger.place / "dist")
    stranger.types(install)
    stranger.types(f"cd {folder}")
    assert stranger.types("uwsgi-consul-fleet --version").stdout == "uwsgi-consul-fleet 100.0\n"


def get(lab: Lab, port: int) -> str:
    """What the machine answers to somebody who takes it for this one."""
    asked = urllib.request.Request(f"http://{lab.address('shop1')}:{port}/")
    asked.add_header("Host", "localhost")
    with urllib.request.urlopen(asked, timeout=5) as answer:
        assert answer.headers["Connection"] == "close"
        said = str(answer.read().decode())
    # What becomes a WebSocket must not be told so.
    asked.add_header("Upgrade", "websocket")
    with urllib.request.urlopen(asked, timeout=5) as answer:
        assert answer.headers["Connection"] is None
    return said
