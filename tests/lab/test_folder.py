"""A folder of an operator's own, made by the wheel for an application as its team has it."""

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import prepared
import pytest
import wheel
from lab_commands import Lab

pytestmark = pytest.mark.takes(60)

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
def shop(tmp_path: Path) -> Path:
    """A repository of its own."""
    found = tmp_path / "my-shop"
    (found / "src/shop").mkdir(parents=True)
    (found / "src/shop/__init__.py").write_text(SHOP)
    (found / "requirements.txt").write_text("flask\n")
    git = ["git", "-C", str(found), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    return found


def test_from_the_wheel_to_an_application_that_is_verified(
    environment: Path, shop: Path, tmp_path: Path
) -> None:
    def said(folder: Path, *words: str) -> str:
        result = wheel.run(environment, folder, *words, **prepared.environment())
        assert result.returncode == 0, f"{words}:\n{result.stdout}{result.stderr}"
        return result.stdout

    said(tmp_path, "uwsgi-consul-fleet", "new", "fleet", "--app", shop.name)
    place = tmp_path / "fleet"
    # Two names are edited, and nothing was left open.
    inventory = (place / "inventory.py").read_text()
    names = inventory.replace('["drakar", "cheetah"]', '["shop1"]').replace('"drakar"]', '"shop1"]')
    (place / "inventory.py").write_text(names)
    assert "TODO: " not in (place / "applications/my_shop.py").read_text()
    lab = Lab(place, **prepared.environment())
    try:
        said(place, "invoke", "lab.up", "shop1")
        assert "built: plugin_build/dist/" in said(place, "invoke", "build-plugin")
        said(place, "pyinfra", "-y", "inventory.py", "deploy/")
        assert "The catalog agrees" in said(place, "invoke", "verify", "--wait", "10", "--probe")
        with urllib.request.urlopen(f"http://{lab.address('shop1')}:2001/", timeout=5) as answer:
            assert answer.read() == b"made by a factory"
        # All that was made lies in the folder.
        assert {path.name for path in place.iterdir()} >= {".lab", "plugin_build"}
    finally:
        lab.down()
