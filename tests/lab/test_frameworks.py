"""Projects as their teams have them, by settings alone: docs/frameworks.md says which."""

import json
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from applications import commit
from consul_processes import until
from fleet_commands import finish, output
from lab_commands import Lab
from load import SERVICE
from releasing import UNITS
from shared_fleet import SharedFleet
from uv import find_uv_bin

pytestmark = pytest.mark.takes(140)

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


def test_fastapi_and_gevent(fleet: SharedFleet, lab: Lab, tmp_path: Path) -> None:
    asgi = {**source(tmp_path / "api", API), "app_lazy": True}
    green = source(tmp_path / "green", SLEEPER)
    green |= {"app_ini": None, "app_uwsgi": {"gevent": 100, "gevent-monkey-patch": True}}
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


FLASK = {
    "src/shop/__init__.py": """
from importlib.metadata import version
from pathlib import Path
from flask import Flask, request

def create_app():
    app = Flask(__name__)
    names = sorted(path.name for path in Path().iterdir())
    about = lambda: f"Flask, shop {version('shop')}, {request.environ['wsgi.multithread']}, {names}"
    app.add_url_rule("/", view_func=about)
    app.add_url_rule("/healthz", endpoint="healthz", view_func=lambda: "well")
    return app
""",
    "pyproject.toml": """
[project]
name = "shop"
version = "1.5"
requires-python = ">=3.9"
dependencies = ["flask"]
[dependency-groups]
dev = ["iniconfig"]
""",
    "public/a.css": "body {}",
}
# As its cookiecutter makes it.
PYRAMID = {
    "myproject/__init__.py": """
import logging
from pyramid.config import Configurator
from pyramid.response import Response

def main(global_config, **settings):
    level = logging.getLogger("myproject").level
    with Configurator(settings=settings) as config:
        config.add_route("all", "/{path:.*}")
        text = f"Pyramid, {settings['greeting']}, {level}"
        config.add_view(lambda request: Response(text), route_name="all")
        return config.make_wsgi_app()
""",
    "pyproject.toml": """
[project]
version = "0.0"
name = "myproject"
dependencies = ["plaster_pastedeploy", "pyramid"]
[project.entry-points."paste.app_factory"]
main = "myproject:main"
""",
    "production.ini": """
[app:main]
use = egg:myproject
greeting = ahoy

[server:main]
use = egg:waitress#main
listen = *:6543

[uwsgi]
socket = :6543

[loggers]
keys = root, myproject
[handlers]
keys = console
[formatters]
keys = generic
[logger_root]
level = WARN
handlers = console
[logger_myproject]
level = ERROR
handlers =
qualname = myproject
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = generic
[formatter_generic]
format = %(asctime)s %(message)s
""",
}


def project(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_flask_and_pyramid(fleet: SharedFleet, lab: Lab, tmp_path: Path) -> None:
    flask = project(tmp_path / "a-flask-shop", FLASK)
    subprocess.run([find_uv_bin(), "lock", "--quiet"], cwd=flask, check=True)
    commit(flask)
    factory = {
        "app_source": str(flask),
        "app_root": "src",
        "app_entry_point": "shop:create_app()",
        "app_requirements": "pyproject.toml",
        "app_uwsgi": {"threads": 4, "harakiri": 20},
        "app_static": {"/static": "public"},
    }
    paste = {
        "app_source": str(project(tmp_path / "a-pyramid", PYRAMID)),
        "app_root": ".",
        "app_entry_point": "production.ini",
        "app_requirements": "pyproject.toml",
    }
    alike = {"app_ini": None}
    fleet.hosts(["drakar"], [("drakar", paste | alike), ("cheetah", factory | alike)])
    fleet.deploy()
    fleet.verify("--wait", "10", "--probe")
    assert fleet.changes() == {}
    assert fetch(lab.address("drakar")) == "Pyramid, ahoy, 40"
    said = fetch(lab.address("cheetah"))
    assert said == "Flask, shop 1.5, True, ['public', 'pyproject.toml', 'src', 'uv.lock']"
    with urllib.request.urlopen(f"http://{lab.address('cheetah')}:2001/static/a.css") as answer:
        assert answer.read() == b"body {}"
        modified = parsedate_to_datetime(answer.headers["Last-Modified"])
    assert time.time() - modified.timestamp() < 600
    locked = {line.split("==")[0] for line in installed(lab, "cheetah")}
    assert {"Flask", "Werkzeug"} <= locked and "iniconfig" not in locked


def installed(lab: Lab, host: str) -> list[str]:
    python = "/srv/consul-demo-server/current/venv/bin/python"
    return str(lab.ssh(host, f"{python} -m pip freeze").stdout).splitlines()


def fetch(address: str, path: str = "") -> str:
    with urllib.request.urlopen(f"http://{address}:2001/{path}", timeout=5) as answer:
        return str(answer.read().decode())


CELERY = {
    "shop/__init__.py": "",
    "shop/tasks.py": """
import os, time
from celery import Celery

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.beat_schedule = {"tick": {"task": "shop.tasks.tick", "schedule": 1}}

def note(*words):
    with open("/srv/notes/all", "a") as file:
        print(*words, os.environ["APP_RELEASE"], os.getpid(), file=file)

@app.task
def slow(number):
    note("began", number)
    time.sleep(1)
    note("ended", number)

@app.task
def tick():
    note("ticked")
""",
    "shop/wsgi.py": """
from shop.tasks import slow

def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/add/"):
        slow.delay(environ["PATH_INFO"][5:])
    start_response("200 OK", [])
    return [b"added"]
""",
    "requirements.txt": "celery[redis]",
}
REDIS = """sudo apt-get -qq -y --no-install-recommends install redis-server >/dev/null
sudo systemctl stop redis-server
sudo systemd-run --quiet --unit=broker redis-server --protected-mode no --save ''"""
# A second one ends with 42: so a switch with two would fail.
BEAT = (
    "flock --no-fork --nonblock --conflict-exit-code 42 /srv/notes/beat celery -A shop.tasks beat"
)
CHEETAH = ["cheetah"]
WORKERS = {
    "celery": {
        "command": "celery -A shop.tasks worker -c 1 -n $APP_WORKER@%h",
        "count": 2,
        "hosts": CHEETAH,
    },
    "beat": {"command": f"{BEAT} -s /tmp/schedule", "overlap": False, "hosts": CHEETAH},
}


def test_celery(fleet: SharedFleet, lab: Lab, tmp_path: Path) -> None:
    """A task that runs when a release takes over ends, and none runs twice; nor does beat."""
    celery = {
        "app_source": str(project(tmp_path / "a-celery-shop", CELERY)),
        "app_root": ".",
        "app_entry_point": "shop.wsgi:application",
        "app_requirements": "requirements.txt",
        "app_env": {"BROKER": f"redis://{lab.address('drakar')}/0"},
        "app_ini": None,
        "app_workers": WORKERS,
    }
    lab.ssh("drakar", REDIS)
    lab.ssh("cheetah", f"sudo install -d -o {SERVICE} /srv/notes")
    fleet.hosts(["drakar"], [(host, celery) for host in ("drakar", "cheetah")])
    fleet.deploy("--data", "release=one")
    numbers = []
    deploy = fleet.start_deploy("--data", "release=two")
    while deploy.poll() is None:  # two processes are seldom idle
        numbers.append(str(len(numbers)))
        fetch(lab.address("drakar"), f"add/{numbers[-1]}")
        time.sleep(0.7)
    finish(deploy, check=True)
    assert workers(lab, "drakar") == [] and workers(lab, "cheetah") == ["two"] * 3
    until(lambda: len(notes(lab, "ended")) == len(numbers), "they have ended")
    began, ended = notes(lab, "began"), notes(lab, "ended")
    assert sorted(began) == sorted(ended)
    assert sorted(number for number, *_ in began) == sorted(numbers)
    assert {release for _, release, _ in began} == {"one", "two"}
    useless = {"command": "sh -c 'echo no sails; exit 3'", "hosts": CHEETAH}
    broken = {**celery, "app_workers": {**WORKERS, "celery": useless}}
    fleet.hosts(["drakar"], [(host, broken) for host in ("drakar", "cheetah")])
    said = output(fleet.deploy(check=False))
    assert "no sails" in said and "two still serves" in said, said
    fleet.hosts(["drakar"], [(host, celery) for host in ("drakar", "cheetah")])
    lab.reboot("cheetah")
    rows = json.loads(fleet.verify("--json", "--wait", "30").stdout)["rows"]
    states = {row["state"] for row in rows if row["id"] in ("celery.1", "celery.2", "beat.1")}
    assert states == {"running"}
    assert workers(lab, "drakar") == [] and workers(lab, "cheetah") == ["two"] * 3
    assert fleet.changes() == {}
    journal = f"sudo journalctl -o cat -u '{SERVICE}.beat.1@*'"
    assert "status=42" not in lab.ssh("cheetah", journal).stdout
    assert notes(lab, "ticked")


def notes(lab: Lab, kind: str) -> list[list[str]]:
    """What tasks wrote down, of one kind."""
    lines = lab.ssh("cheetah", "cat /srv/notes/all").stdout.splitlines()
    return [line.split()[1:] for line in lines if line.startswith(kind)]


def workers(lab: Lab, host: str) -> list[str]:
    """The release of each worker that runs there, or is on its way."""
    units = lab.ssh(host, f"{UNITS} '{SERVICE}.*@*' | cut -d' ' -f1").stdout.splitlines()
    return [unit.split("@")[1].rpartition("-")[0] for unit in units]
