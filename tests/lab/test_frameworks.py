"""Projects as their teams have them, by settings alone: docs/frameworks.md says which.

Each is an application of one fleet, beside the one that all files use. The tests run in the order
in which they stand here, each from what the one before it left.
"""

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
from described import HOSTS, Described
from fleet_commands import finish, output
from lab_commands import Lab
from releasing import UNITS
from shared_fleet import SharedFleet
from uv import find_uv_bin

pytestmark = pytest.mark.takes(310)

FASTAPI = {
    "shop/wsgi.py": """
import asyncio
from a2wsgi import ASGIMiddleware
from fastapi import FastAPI

api = FastAPI()

@api.get("/{path:path}")
async def answer(path: str) -> str:
    await asyncio.sleep(0.01)
    return "made by FastAPI"

application = ASGIMiddleware(api)
""",
    "requirements.txt": "a2wsgi\nfastapi\n",
}
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
import logging, time
from pyramid.config import Configurator
from pyramid.response import Response

def main(global_config, **settings):
    level = logging.getLogger("myproject").level
    with Configurator(settings=settings) as config:
        config.add_route("all", "/{path:.*}")
        text = f"Pyramid, {settings['greeting']}, {level}"

        def view(request):
            time.sleep(0.5 * (request.path == "/"))
            return Response(text)

        config.add_view(view, route_name="all")
        return config.make_wsgi_app()
""",
    "pyproject.toml": """
[project]
version = "0.0"
name = "myproject"
dependencies = ["gevent", "plaster_pastedeploy", "pyramid"]
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


PORTS = {"api": 3001, "flask": 3101, "pyramid": 3201, "celery": 3301}


@pytest.fixture(scope="module")
def own(fleet: SharedFleet, tmp_path_factory: pytest.TempPathFactory) -> Described:
    return Described(tmp_path_factory.mktemp("own"), fleet)


def project(own: Described, name: str, files: dict[str, str], **settings: Any) -> Path:
    """An application with these files and settings."""
    source = own.folder / f"a-{name}-project"
    for path, text in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    settings = {"app_root": ".", "app_ini": None, "instances": {"web": PORTS[name]}, **settings}
    own.describe(name, settings.pop("app_source", source), **settings)
    return source


def fetch(address: str, app: str, path: str = "") -> str:
    url = f"http://{address}:{PORTS[app]}/{path}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def installed(lab: Lab, host: str, app: str) -> list[str]:
    python = f"/srv/{app}/current/venv/bin/python"
    return str(lab.ssh(host, f"sudo {python} -m pip freeze").stdout).splitlines()


def test_fastapi_flask_and_pyramid_in_one_run(own: Described, lab: Lab) -> None:
    project(
        own,
        "api",
        FASTAPI,
        app_root=None,
        app_source=own.folder / "a-api-project/shop",
        app_entry_point="shop.wsgi:application",
        app_lazy=True,
        app_requirements=str(own.folder / "a-api-project/requirements.txt"),
    )
    flask = project(
        own,
        "flask",
        FLASK,
        app_root="src",
        app_entry_point="shop:create_app()",
        app_requirements="pyproject.toml",
        app_uwsgi={"threads": 4, "harakiri": 20},
        app_static={"/static": "public"},
    )
    subprocess.run([find_uv_bin(), "lock", "--quiet"], cwd=flask, check=True)
    commit(flask)
    project(
        own,
        "pyramid",
        PYRAMID,
        app_entry_point="production.ini",
        app_requirements="pyproject.toml",
        app_uwsgi={"gevent": 100, "gevent-monkey-patch": True},
    )
    own.groups |= {"api": [*HOSTS], "flask": ["cheetah"], "pyramid": ["drakar"]}
    # That of the api is resolved once for both hosts.
    assert output(own.deploy()).count("resolving its requirements") == 3
    assert installed(lab, "drakar", "api") == installed(lab, "cheetah", "api")
    own.run("invoke", "verify", "--wait", "30", "--probe")
    assert own.changes() == {}
    drakar, cheetah = map(lab.address, HOSTS)
    assert fetch(drakar, "api") == fetch(cheetah, "api") == '"made by FastAPI"'
    said = fetch(cheetah, "flask")
    assert said == "Flask, shop 1.5, True, ['public', 'pyproject.toml', 'src', 'uv.lock']"
    with urllib.request.urlopen(f"http://{cheetah}:{PORTS['flask']}/static/a.css") as answer:
        assert answer.read() == b"body {}"
        modified = parsedate_to_datetime(answer.headers["Last-Modified"])
    assert time.time() - modified.timestamp() < 600
    locked = {line.split("==")[0] for line in installed(lab, "cheetah", "flask")}
    assert {"Flask", "Werkzeug"} <= locked and "iniconfig" not in locked
    begin = time.monotonic()
    # Many more than there are processes, at the same time: in turn they would take 15 s.
    with ThreadPoolExecutor(60) as pool:
        answers = {*pool.map(lambda _: fetch(drakar, "pyramid"), range(60))}
    assert answers == {"Pyramid, ahoy, 40"}
    assert time.monotonic() - begin < 10


CELERY = {
    "shop/__init__.py": "",
    "shop/tasks.py": """
import os, time
from celery import Celery
from celery.signals import worker_shutting_down

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.beat_schedule = {"tick": {"task": "shop.tasks.tick", "schedule": 1}}

def note(*words):
    with open("notes/all", "a") as file:
        print(*words, os.environ["APP_RELEASE"], file=file)

@app.task
def slow(number):
    note("began", number)
    time.sleep(1)
    note("ended", number)

@app.task
def tick():
    note("ticked")

@worker_shutting_down.connect
def stopping(**_):
    note("stopping")
""",
    "shop/wsgi.py": """
from shop.tasks import slow

def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/add/"):
        slow.delay(environ["PATH_INFO"][5:])
    start_response("200 OK", [])
    try:
        notes = open("notes/all").read()
    except FileNotFoundError:
        notes = ""
    return [notes.encode()]
""",
    "requirements.txt": "celery[redis]",
}
REDIS = """sudo apt-get -qq -y --no-install-recommends install redis-server >/dev/null
sudo systemctl stop redis-server
sudo systemd-run --quiet --unit=broker redis-server --protected-mode no --save ''"""
# A second one would end with 42, and be started again and again.
BEAT = "flock --no-fork --nonblock --conflict-exit-code 42 notes/lock celery -A shop.tasks beat"
WORKERS: dict[str, dict[str, Any]] = {
    "celery": {"command": "celery -A shop.tasks worker -c 1 -n $APP_WORKER@%h", "count": 2},
    "beat": {"command": f"{BEAT} --schedule notes/schedule", "overlap": False},
}
AT_ONCE = 8  # tasks that are added before some have ended


def celery_project(own: Described, lab: Lab, **workers: dict[str, Any]) -> None:
    project(
        own,
        "celery",
        CELERY,
        app_entry_point="shop.wsgi:application",
        app_requirements="requirements.txt",
        app_env={"BROKER": f"redis://{lab.address('drakar')}/0"},
        app_shared=["notes/"],
        app_workers={**WORKERS, **workers},
    )


def test_celery_ends_its_tasks_and_none_runs_twice(own: Described, lab: Lab) -> None:
    """Tasks that run when a release takes over; nor are there two of beat then."""
    celery_project(own, lab)
    own.groups["celery"] = ["cheetah"]
    lab.ssh("drakar", REDIS)
    address = lab.address("cheetah")
    own.deploy("--data", "app=celery", "--data", "release=one")
    deploy = own.start_deploy("--data", "app=celery", "--data", "release=two")
    added = 0
    while deploy.poll() is None:  # no process is ever idle
        if added - len(notes(fetch(address, "celery"), "ended")) < AT_ONCE:
            fetch(address, "celery", f"add/{added}")
            added += 1
        time.sleep(0.1)
    finish(deploy, check=True)
    assert workers(lab) == ["two"] * 3
    until(lambda: len(notes(fetch(address, "celery"), "ended")) == added, "they have ended", 60)
    said = fetch(address, "celery")
    began, ended = notes(said, "began"), notes(said, "ended")
    assert sorted(began) == sorted(ended)
    assert sorted(number for number, _ in began) == sorted(map(str, range(added)))
    assert {release for _, release in began} == {"one", "two"}
    _, _, after = said.partition("stopping one\n")
    assert {release for _, release in notes(after, "ended")} == {"one", "two"}
    assert notes(said, "ticked")


def test_a_worker_that_is_missing_is_seen_and_one_that_fails_is_put_back(
    own: Described, lab: Lab
) -> None:
    lab.ssh("cheetah", "sudo systemctl stop 'celery.celery.2@*'")
    verified = own.run("invoke", "verify", "--app", "celery", check=False)
    assert verified.returncode == 1
    assert "missing: celery celery.2 on cheetah" in output(verified)
    celery_project(own, lab, celery={"command": "sh -c 'echo no sails; exit 3'"})
    said = output(own.deploy("--data", "app=celery", check=False))
    assert "no sails" in said and "two still serves" in said, said
    celery_project(own, lab)
    assert own.changes("--data", "app=celery") == {}
    lab.ssh("cheetah", "sudo systemctl stop celery.target")
    until(lambda: not workers(lab), "they have ended")
    lab.ssh("cheetah", "sudo systemctl start celery.target")
    verified = own.run("invoke", "verify", "--json", "--wait", "30", "--app", "celery")
    states = {row["id"]: row["state"] for row in json.loads(verified.stdout)["rows"]}
    assert states == {
        "celery-web": "passing",
        **dict.fromkeys(("celery.1", "celery.2", "beat.1"), "running"),
    }
    journal = "sudo journalctl -o cat -u 'celery.beat.1@*'"
    assert "status=42" not in lab.ssh("cheetah", journal).stdout


def test_where_an_application_leaves_its_workers_do(own: Described, lab: Lab) -> None:
    own.groups |= {app: [] for app in PORTS}
    own.deploy()
    assert workers(lab) == []


def notes(said: str, kind: str) -> list[list[str]]:
    """What tasks wrote down, of one kind."""
    return [line.split()[1:] for line in said.splitlines() if line.startswith(kind)]


def workers(lab: Lab) -> list[str]:
    """The release of each worker that runs, or is on its way."""
    units = lab.ssh("cheetah", f"{UNITS} 'celery.*@*' | cut -d' ' -f1").stdout.splitlines()
    return [unit.split("@")[1].rpartition("-")[0] for unit in units]
