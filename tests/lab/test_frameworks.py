"""Applications that need more than a WSGI server that forks: docs/frameworks.md says what."""

import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from fleet_commands import output
from lab_commands import Lab
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(60)

API = """
import asyncio
from a2wsgi import ASGIMiddleware
from fastapi import FastAPI

api = FastAPI()

@api.get("/{path:path}")
async def answer(path: str) -> str:
    await asyncio.sleep(0.01)
    return "made by FastAPI"

application = ASGIMiddleware(api)
"""
SLEEPER = """
import time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/":
        time.sleep(0.5)
    start_response("200 OK", [])
    return [b"slept"]
"""


def source(folder: Path, code: str) -> dict[str, Any]:
    (folder / "shop").mkdir(parents=True)
    (folder / "shop/wsgi.py").write_text(code)
    return {"app_source": str(folder / "shop"), "app_entry_point": "shop.wsgi:application"}


def gevent_template(folder: Path) -> str:
    text = (ROOT / "app/uwsgi.ini.j2").read_text()
    own = text.replace("python3,", "python3,gevent_python3,").replace(
        "master = true", "master = true\ngevent = 100\ngevent-monkey-patch = true"
    )
    path = folder / "own.ini.j2"
    path.write_text(own)
    return str(path)


def test_fastapi_and_gevent(fleet: SharedFleet, lab: Lab, tmp_path: Path) -> None:
    asgi = {**source(tmp_path / "api", API), "app_lazy": True}
    green = source(tmp_path / "green", SLEEPER)
    green["app_ini"] = gevent_template(tmp_path)
    fleet.hosts(["drakar"], [("drakar", asgi), ("cheetah", green)])
    # One file and one name for both: it is resolved once.
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("a2wsgi\nfastapi\ngevent\n")
    settings = (f"app_requirements={requirements}", "release=both", "min_healthy_time=0")
    options = [word for each in settings for word in ("--data", each)]
    assert output(fleet.deploy(*options)).count("resolving its requirements") == 1
    look = "/srv/consul-demo-server/current/venv/bin/python -m pip freeze"
    assert lab.ssh("drakar", look).stdout == lab.ssh("cheetah", look).stdout
    fleet.verify("--wait", "10", "--probe")
    assert fleet.changes(*options) == {}
    assert fetch(lab.address("drakar")) == '"made by FastAPI"'
    green_address = lab.address("cheetah")
    begin = time.monotonic()
    # More than there are processes, at the same time.
    with ThreadPoolExecutor(10) as pool:
        assert {*pool.map(lambda _: fetch(green_address), range(10))} == {"slept"}
    assert time.monotonic() - begin < 2.5


def fetch(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}:2001/", timeout=5) as answer:
        return str(answer.read().decode())
