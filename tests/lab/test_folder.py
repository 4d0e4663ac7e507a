"""A folder of an operator's own, made by the wheel for applications as their teams have them."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import prepared
import pytest
import wheel
from checkout import BIN
from lab_commands import Lab

pytestmark = pytest.mark.takes(90)

SHOP = """
from flask import Flask

def create_app():
    app = Flask(__name__)
    app.add_url_rule("/", "home", lambda: "made by a factory")
    app.add_url_rule("/healthz", "health", lambda: "well")
    return app
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "wheel").mkdir()
    with wheel.installed(wheel.build(tmp_path / "wheel"), tmp_path / "environment") as found:
        yield found


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """The URL of a repository: Flask by a factory, below src/."""
    found = tmp_path / "my-shop"
    (found / "src/shop").mkdir(parents=True)
    (found / "src/shop/__init__.py").write_text(SHOP)
    (found / "requirements.txt").write_text("flask\n")
    git = ["git", "-C", str(found), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    return found.as_uri()


@pytest.fixture
def blog(tmp_path: Path) -> str:
    """A folder: a project as Django's own command makes it."""
    uv, modules = BIN / "uv", tmp_path / "modules"
    install = [uv, "--system-certs", "pip", "install", "--quiet", "--target", modules, "django"]
    subprocess.run([*install, "--python", sys.executable], check=True)
    (tmp_path / "blog").mkdir()
    words = [sys.executable, "-m", "django", "startproject", "site1", str(tmp_path / "blog")]
    subprocess.run(words, check=True, env={"PYTHONPATH": str(modules)})
    (tmp_path / "blog/requirements.txt").write_text("django\n")
    return "blog"


def test_from_the_wheel_to_applications_that_are_verified(
    environment: Path, shop: str, blog: str, tmp_path: Path
) -> None:
    def said(folder: Path, *words: str) -> str:
        result = wheel.run(environment, folder, *words, **prepared.environment())
        assert result.returncode == 0, f"{words}:\n{result.stdout}{result.stderr}"
        return result.stdout

    said(tmp_path, "uwsgi-consul-fleet", "new", "fleet", "--app", shop, "--app", blog)
    place = tmp_path / "fleet"
    # Two names are edited.
    inventory = (place / "inventory.py").read_text()
    names = inventory.replace('["drakar", "cheetah"]', '["shop1"]').replace('"drakar"]', '"shop1"]')
    (place / "inventory.py").write_text(names)
    lab = Lab(place, **prepared.environment())
    try:
        said(place, "invoke", "lab.up", "shop1")
        assert "built: plugin_build/dist/" in said(place, "invoke", "build-plugin")
        said(place, "pyinfra", "-y", "inventory.py", "deploy/")
        assert "The catalog agrees" in said(place, "invoke", "verify", "--wait", "10", "--probe")
        assert get(lab, 2001) == "made by a factory"
        # With DEBUG, which its file has a TODO about.
        assert "The install worked successfully!" in get(lab, 2011)
        migrated = ("python", "manage.py", "migrate", "--check")
        said(place, "invoke", "exec", "--app", "blog", "--", *migrated)
        # All that was made lies in the folder.
        assert {path.name for path in place.iterdir()} >= {".lab", "plugin_build"}
    finally:
        lab.down()


def get(lab: Lab, port: int) -> str:
    """What the machine answers to somebody who takes it for this one."""
    asked = urllib.request.Request(f"http://{lab.address('shop1')}:{port}/")
    asked.add_header("Host", "localhost")
    with urllib.request.urlopen(asked, timeout=5) as answer:
        return str(answer.read().decode())
