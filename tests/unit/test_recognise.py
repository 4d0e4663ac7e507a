"""What is recognised in the folder of an application, of which nothing is run."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uwsgi_consul_fleet.inventory import written
from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.recognise import Recognised, recognise

# Each would leave a file behind if anything of it were run.
RUN = "import pathlib; pathlib.Path(__file__ + '.ran').touch()\n"
MANAGE = """\
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "{}")
"""
WSGI = (
    'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "{}")\napplication = get_wsgi_application()\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shop"


def look(folder: Path, **files: str) -> Recognised:
    """In a folder with these files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RUN + text if name.endswith(".py") else text)
    found = recognise(folder)
    assert not [*folder.rglob("*.ran")]
    return found


def entry(found: Recognised) -> tuple[str, str]:
    return found.settings["app_root"], found.settings["app_entry_point"]


# --- Django ---------------------------------------------------------------------------------


def django(settings: str, **more: str) -> dict[str, str]:
    return {
        "manage.py": MANAGE.format("mysite.settings"),
        "mysite/__init__.py": "",
        "mysite/settings.py": 'WSGI_APPLICATION = "mysite.wsgi.application"\n' + settings,
        "mysite/wsgi.py": WSGI.format("mysite.settings"),
        **more,
    }


def test_a_django_project_leads_from_manage_py_to_its_application(folder: Path) -> None:
    found = look(
        folder,
        **django(
            "from pathlib import Path\nBASE_DIR = Path(__file__).resolve().parent.parent\n"
            'ALLOWED_HOSTS = [".shop.example.com"]\nDEBUG = False\n'
            'STATIC_URL = "static/"\nSTATIC_ROOT = BASE_DIR / "var" / "static"\n'
            'SECURE_SSL_REDIRECT = True\nROOT_URLCONF = "mysite.urls"\n'
            'MEDIA_URL = "/uploads/"\nMEDIA_ROOT = BASE_DIR / "media"\n'
            'DATABASES = {"default": dj_database_url.config()}\n'
        ),
        **{"mysite/urls.py": 'urlpatterns = [path("healthz", well)]', "requirements.txt": ""},
    )
    assert found.said == [
        "Django: manage.py, mysite.wsgi:application, settings mysite.settings",
        "requirements: requirements.txt",
        "health: /healthz in mysite/urls.py",
    ]
    assert found.settings == {
        "app_root": ".",
        "app_entry_point": "mysite.wsgi:application",
        "app_requirements": "requirements.txt",
        "app_static": {"/static": "var/static", "/uploads": "media"},
        "app_build": ["python manage.py collectstatic --noinput"],
        "app_release": ["python manage.py migrate --noinput"],
        "app_shared": ["media/"],
        "health_path": "/healthz",
        "health_headers": {"Host": "shop.example.com", "X-Forwarded-Proto": "https"},
    }
    assert found.todo == {}


def test_what_a_django_project_leaves_open_is_left_to_its_operator(folder: Path) -> None:
    found = look(folder, **django('DEBUG = True\nSTATIC_URL = "/assets/"\nALLOWED_HOSTS = []\n'))
    assert "mysite.settings has DEBUG = True" in found.todo["app_env"]
    assert 'app_static = {"/assets": "staticfiles"}' in found.todo["app_static"]
    assert found.settings["health_path"] == "/"
    assert not {*found.settings} & {"app_build", "app_release", "app_shared"}
    assert {*found.todo} == {"app_env", "app_static", "health_path"}
    hidden = look(folder, **django('ALLOWED_HOSTS = os.environ["HOSTS"].split()\nDEBUG = False\n'))
    assert "is not known before it runs" in hidden.todo["health_headers"]
    sent = look(folder, **django('STATIC_URL = "/static/"\nSTATIC_ROOT = os.environ["ROOT"]\n'))
    assert "STATIC_ROOT is not known before it runs" in sent.todo["app_static"]
    noise = 'STATIC_URL = "s/"\nSTATIC_ROOT = "s"\nMIDDLEWARE.append("whitenoise.middleware.W")\n'
    by_itself = look(folder, **django(noise))
    assert "app_static" not in {**by_itself.settings, **by_itself.todo}
    assert by_itself.settings["app_build"] == ["python manage.py collectstatic --noinput"]


def test_settings_in_parts_below_a_folder_of_its_own(folder: Path) -> None:
    found = look(
        folder,
        **{
            "backend/manage.py": MANAGE.format("config.settings.local"),
            "backend/config/__init__.py": "",
            "backend/config/settings/__init__.py": "",
            "backend/config/settings/base.py": (
                'WSGI_APPLICATION = "config.wsgi.application"\nSTATIC_URL = "/static/"\n'
                'STATIC_ROOT = os.path.join(BASE_DIR, "static")\nALLOWED_HOSTS = ["*"]\n'
                'DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3",\n'
                ' "NAME": str(BASE_DIR / "var/db")}, "replica": {"NAME": env("DB")}}\n'
            ),
            "backend/config/settings/local.py": "from .base import *\nDEBUG = True\n",
            "backend/config/settings/production.py": "from .base import *\n",
            "backend/config/wsgi.py": WSGI.format("config.settings.production"),
            "backend/requirements/production.txt": "",
            "frontend/node_modules/x/wsgi.py": "application = None",
        },
    )
    assert entry(found) == ("backend", "config.wsgi:application")
    others = "(also there: config.settings.base, config.settings.local)"
    assert found.said[0].endswith(f"settings config.settings.production {others}")
    assert "app_env" not in {**found.settings, **found.todo}
    assert found.settings["app_requirements"] == "backend/requirements/production.txt"
    assert found.settings["app_static"] == {"/static": "backend/static"}
    assert found.settings["app_build"] == ["python backend/manage.py collectstatic --noinput"]
    assert found.settings["app_release"] == ["python backend/manage.py migrate --noinput"]
    assert found.settings["app_shared"] == ["backend/var/db"]
    assert "backend/var/db is a file of one host's" in found.todo["app_shared"]
    assert "health_headers" not in found.settings


def test_settings_for_production_are_named_where_wsgi_py_has_others(folder: Path) -> None:
    files = {
        "manage.py": MANAGE.format("shop.settings.dev"),
        "shop/settings/__init__.py": "",
        "shop/settings/dev.py": "DEBUG = True\n",
        "shop/settings/production.py": 'DEBUG = False\nALLOWED_HOSTS = ["shop.example.com"]\n',
    }
    found = look(folder, **files, **{"shop/wsgi.py": WSGI.format("shop.settings.dev")})
    assert entry(found) == (".", "shop.wsgi:application")
    assert found.settings["app_env"] == {"DJANGO_SETTINGS_MODULE": "shop.settings.production"}
    assert found.settings["health_headers"] == {"Host": "shop.example.com"}
    # Without a wsgi.py, as where there is an asgi.py alone.
    (folder / "shop/wsgi.py").unlink()
    found = look(folder, **files)
    assert entry(found) == (".", "django.core.wsgi:get_wsgi_application()")
    assert found.settings["app_env"] == {"DJANGO_SETTINGS_MODULE": "shop.settings.production"}


def test_a_project_of_startproject(tmp_path: Path) -> None:
    """As Django itself makes it today."""
    where = tmp_path / "environment"
    uv = Path(sys.executable).with_name("uv")
    install = [uv, "--system-certs", "pip", "install", "--quiet", "--target", where, "django"]
    subprocess.run([*install, "--python", sys.executable], check=True)
    make = [sys.executable, "-m", "django", "startproject", "mysite", tmp_path]
    subprocess.run(make, check=True, env={"PYTHONPATH": str(where)})
    (tmp_path / "environment").rename(tmp_path / ".environment")
    found = recognise(tmp_path)
    assert found.said == ["Django: manage.py, mysite.wsgi:application, settings mysite.settings"]
    assert entry(found) == (".", "mysite.wsgi:application")
    left = {"app_env", "app_static", "app_shared", "health_path", "app_requirements"}
    assert {*found.todo} == left
    assert found.settings["app_shared"] == ["db.sqlite3"]
    assert found.settings["app_release"] == ["python manage.py migrate --noinput"]
    assert "it imports django: a requirements.txt has to" in found.todo["app_requirements"]


# --- Others of Python -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "root", "loads"),
    [
        # Flask: factories, objects, where they lie.
        ({"shop/__init__.py": "def create_app(config=None, *, debug=False): ..."}, ".",
         "shop:create_app()"),
        ({"src/shop/__init__.py": "def create_app(): return Flask(__name__)"}, "src",
         "shop:create_app()"),
        ({"src/shop/__init__.py": "", "src/shop/factory.py": "def make_app(): ..."}, "src",
         "shop.factory:make_app()"),
        ({"app.py": "import flask\napp = flask.Flask(__name__)"}, ".", "app:app"),
        ({"backend/app.py": "app: Flask = Flask(__name__)"}, "backend", "app:app"),
        ({"shop/web.py": "from shop.db import session\nserver = Flask(__name__)"}, ".",
         "shop.web:server"),
        ({"shop/__init__.py": "def create_app(): ...", "run.py": "app = create_app()"}, ".",
         "run:app"),
        # Others.
        ({"shop/__init__.py": "", "shop/wsgi.py": "application = make()"}, ".",
         "shop.wsgi:application"),
        ({"shop/__init__.py": "", "shop/wsgi.py": "from shop.web import app"}, ".",
         "shop.wsgi:app"),
        ({"server.py": "def application(environ, start_response): ..."}, ".",
         "server:application"),
        ({"main.py": "config = Configurator()\napp = config.make_wsgi_app()"}, ".", "main:app"),
        # Not those of tests, of an environment, or inside of something.
        ({"tests/wsgi.py": "app = Flask('')", "v/pyvenv.cfg": "", "v/app.py": "app = Flask('')",
          "app.py": "if True:\n    app = Flask('')\n", "shop.py": "app = Flask('')"}, ".",
         "shop:app"),
    ],
)  # fmt: skip
def test_where_the_application_is(
    folder: Path, files: dict[str, str], root: str, loads: str
) -> None:
    found = look(folder, **files)
    assert entry(found) == (root, loads)
    assert "app_entry_point" not in found.todo


def test_the_likeliest_of_several_is_taken_and_the_others_are_named(folder: Path) -> None:
    found = look(
        folder,
        **{
            "shop/__init__.py": "def create_app(): ...",
            "shop/wsgi.py": "from shop import create_app\napplication = create_app()",
            "tools/hook.py": "hook = Flask(__name__)",
            "make_celery.py": "app = create_app()",
        },
    )
    assert entry(found) == (".", "shop.wsgi:application")
    assert (
        found.said[1]
        == "taken of several; also there: hook:hook, shop:create_app(), make_celery:app"
    )


def test_a_factory_that_wants_more_is_left_to_be_filled_in(folder: Path) -> None:
    found = look(folder, **{"shop.py": "def create_app(config, *, mode): ..."})
    assert found.todo["app_entry_point"] == "create_app in shop.py wants config, mode: say which"


@pytest.mark.parametrize("made", ["app = FastAPI()", "def create_app():\n    return FastAPI()\n"])
def test_fastapi_gets_told_what_lies_between(folder: Path, made: str) -> None:
    found = look(folder, **{"src/shop/api.py": made, "src/shop/__init__.py": ""})
    assert entry(found) == ("src", "wsgi:application")
    assert found.settings["app_lazy"] is True
    todo = found.todo["app_entry_point"]
    name = "app" if made.startswith("app") else "create_app"
    assert "this as src/wsgi.py:\n    from a2wsgi import ASGIMiddleware\n" in todo
    assert f"    from shop.api import {name}\n" in todo
    # With that, it is one like others.
    lines = "from a2wsgi import ASGIMiddleware\nfrom shop.api import app\n"
    both = look(folder, **{"src/wsgi.py": lines + "application = ASGIMiddleware(app)\n"})
    assert entry(both) == ("src", "wsgi:application")
    assert both.settings["app_lazy"] is True
    assert "app_entry_point" not in both.todo
    # And what it imports is none of several; its routes are all of a path where it is made.
    assert not [line for line in both.said if "also there" in line and "wsgi:app" in line]
    well = look(
        folder, **{"src/shop/api.py": 'app = FastAPI()\n@app.get("/healthz")\ndef w(): ...'}
    )
    assert well.settings["health_path"] == "/healthz" and "health_path" not in well.todo


def test_pyramids_layout_is_loaded_by_its_paste_ini(folder: Path) -> None:
    sections = "[app:main]\nuse = egg:shop\nsqlalchemy.url = sqlite:///%(here)s/shop.sqlite\n"
    found = look(
        folder,
        **{
            "development.ini": f"{sections}[server:main]\nuse = egg:waitress#main\n",
            "production.ini": sections,
            "testing.ini": sections,
            "tox.ini": "[tox]\nenvlist = py311\n",
            "setup.py": 'setup(name="shop", install_requires=["pyramid"])',
            "shop/__init__.py": "def main(global_config, **settings): ...",
            "shop/routes.py": 'config.add_route("home", "/")',
        },
    )
    assert entry(found) == (".", "production.ini")
    assert found.said == [
        "a paste ini: production.ini, [app:main]",
        "taken of several; also there: development.ini, testing.ini",
    ]
    assert found.todo["app_requirements"].startswith("setup.py is not read")
    only = look(folder.with_name("other"), **{"shop.ini": "[pipeline:web]\npipeline = x\n"})
    assert entry(only) == (".", "shop.ini#web")


# --- What it needs ----------------------------------------------------------------------------

PROJECT = '[project]\nname = "shop"\ndependencies = ["flask"]\n'


@pytest.mark.parametrize(
    ("files", "taken", "said"),
    [
        ({"pyproject.toml": PROJECT, "uv.lock": ""}, "pyproject.toml",
         "pyproject.toml with uv.lock"),
        ({"pyproject.toml": "[tool.poetry.dependencies]\npython = '^3.11'\n", "poetry.lock": "",
          "requirements.txt": ""}, "pyproject.toml",
         "pyproject.toml with poetry.lock (also there: requirements.txt)"),
        ({"pyproject.toml": PROJECT}, "pyproject.toml", "pyproject.toml without a lock file"),
        # A workspace, whose lock file is for all of its members.
        ({"pyproject.toml": "[tool.uv.workspace]\nmembers = ['back']\n", "uv.lock": "",
          "back/pyproject.toml": PROJECT, "back/app.py": "app = Flask('')", "app.py": ""},
         "back/pyproject.toml", "back/pyproject.toml without a lock file"),
        ({"pyproject.toml": PROJECT, "requirements.txt": ""}, "requirements.txt",
         "requirements.txt (also there: pyproject.toml without a lock file)"),
        ({"pyproject.toml": "[tool.ruff]\n", "requirements/prod.txt": ""}, "requirements/prod.txt",
         "requirements/prod.txt"),
    ],
)  # fmt: skip
def test_what_it_is_installed_with(
    folder: Path, files: dict[str, str], taken: str, said: str
) -> None:
    found = look(folder, **{"app.py": "app = Flask('')", **files})
    assert found.settings["app_requirements"] == taken
    assert f"requirements: {said}" in found.said
    assert "app_requirements" not in found.todo


def test_a_python_that_debian_does_not_have_is_said(folder: Path) -> None:
    asks = f'{PROJECT}requires-python = ">=3.12"\n'
    found = look(folder, **{"app.py": "app = Flask('')", "pyproject.toml": asks})
    assert "it asks for Python >=3.12, which Debian 12 has not" in found.todo["app_python"]


@pytest.mark.parametrize(
    ("route", "path"),
    [('"/healthz"', "/healthz"), ('r"^health/$"', "/health/"), ('"/shop"', "/"), ('"up"', "/")],
)
def test_a_path_for_health_checks(folder: Path, route: str, path: str) -> None:
    found = look(folder, **{"app.py": f"app = Flask('')\nroute({route})"})
    assert found.settings["health_path"] == path
    assert ("health_path" in found.todo) == (path == "/")


def test_a_path_that_may_be_a_part_of_one_is_left_to_be_checked(folder: Path) -> None:
    files = {"app.py": "app = Flask('')", "views/utils.py": 'route("/health/")'}
    found = look(folder, **files)
    assert found.settings["health_path"] == "/health/"
    assert (
        found.todo["health_path"] == "views/utils.py has it as /health/: does anything come before?"
    )


# --- Other processes ------------------------------------------------------------------------------

CELERY = {"celery": {"command": "celery -A shop.celery worker -n $APP_WORKER@%h"}}
BEAT = {"overlap": False, "hosts": []}
APP = "from celery import Celery\napp = Celery('shop')\n"


@pytest.mark.parametrize("root", ["", "src/"])
def test_a_celery_application_gets_a_worker(folder: Path, root: str) -> None:
    package = {f"{root}shop/__init__.py": "", f"{root}shop/wsgi.py": "app = Flask('')"}
    found = look(folder, **package, **{f"{root}shop/celery.py": APP})
    assert f"Celery: shop.celery in {root}shop/celery.py" in found.said
    assert found.settings["app_workers"] == CELERY
    assert "app_shared" not in found.settings and "app_workers" not in found.todo
    app = {key: value for key, value in found.settings.items() if key != "health_path"}
    Settings.model_validate({**app, "app_name": "shop", "app_source": "."})


@pytest.mark.parametrize(
    "schedule",
    [
        "app.conf.beat_schedule = {}",
        "app.conf.update(beat_schedule={})",
        "CELERY_BEAT_SCHEDULE = {}",
        "sender.add_periodic_task(10, test.s())",
    ],
)
def test_what_is_scheduled_needs_a_beat_on_one_host(folder: Path, schedule: str) -> None:
    found = look(
        folder, **{"shop/celery.py": APP, "shop/other.py": schedule, "shop/__init__.py": ""}
    )
    command = "celery -A shop.celery beat --schedule beat/schedule"
    workers = {**CELERY, "beat": {"command": command, **BEAT}}
    assert found.settings["app_workers"] == workers
    lines = written.python(found.settings, {"app_workers"}).splitlines()[-4:]
    assert [len(line) < 120 for line in lines] == [True] * 4
    assert ast.literal_eval("".join(lines).partition(" = ")[2]) == workers
    assert found.settings["app_shared"] == ["beat/"]
    assert '"hosts": ["…"]' in found.todo["app_workers"]


def test_a_schedule_in_djangos_database_needs_no_file(folder: Path) -> None:
    apps = 'INSTALLED_APPS = ["django_celery_beat"]\n'
    found = look(folder, **django(apps), **{"mysite/celery.py": APP})
    beat = {"command": "celery -A mysite.celery beat --scheduler django", **BEAT}
    assert found.settings["app_workers"]["beat"] == beat
    assert "app_shared" not in found.settings


def test_what_a_factory_makes_is_taken_where_it_has_a_name(folder: Path) -> None:
    factory = {"shop/__init__.py": "def create_app():\n    celery_app = Celery(app.name)\n"}
    found = look(folder, **factory)
    assert "app_workers" not in found.settings
    assert "Celery is made in shop/__init__.py" in found.todo["app_workers"]
    found = look(folder, **{"make_celery.py": 'celery = create_app().extensions["celery"]\n'})
    assert found.settings["app_workers"]["celery"]["command"].startswith("celery -A make_celery ")


@pytest.mark.parametrize(
    ("code", "secrets", "others"),
    [
        ('KEY = os.environ["SECRET_KEY"]; S = os.environ["SITE"]', ["SECRET_KEY"], "SITE"),
        ('env = environ.Env(DEBUG=(bool, False))\nx = env("DEBUG"), env.db("DATABASE_URL")\n'
         'y = env.str("SITE"), env("ZONE", default="")\nimport environ', ["DATABASE_URL"], "SITE"),
        ('from decouple import config\nx = config("API_TOKEN"), config("Z", 1)', ["API_TOKEN"], ""),
        # What it has something else for, or sets, or a WSGI application has.
        ('os.environ.setdefault("SITE", "1"); os.environ["ZONE"] = "1"\n'
         'x = os.environ["SITE"], os.environ["ZONE"]\nif "A_KEY" in os.environ:\n'
         '    y = os.environ["A_KEY"], os.environ["B"]\ntry:\n    os.environ["C_KEY"]\n'
         'except KeyError: ...\nz = environ["REMOTE_ADDR"], os.environ["HOME"], env("SITE")',
         None, ""),
    ],
)  # fmt: skip
def test_variables_without_which_it_does_not_start(
    folder: Path, code: str, secrets: list[str] | None, others: str
) -> None:
    found = look(folder, **{"app.py": f"app = Flask('')\n{code}\n", "local.py": "os.environ['X']"})
    assert found.settings.get("app_secrets") == secrets
    assert ("app_secrets" in found.todo) == bool(secrets)
    read = f"app.py reads {others} from the environment" if others else ""
    assert found.todo.get("app_env", "") == read


# --- Not Python -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (["app.psgi", "cpanfile"],
         {"app_type": "psgi", "app_entry_point": "app.psgi", "app_requirements": "cpanfile"}),
        (["config.ru", "Gemfile", "Gemfile.lock"],
         {"app_type": "rack", "app_entry_point": "config.ru", "app_requirements": "Gemfile"}),
        (["index.php"],
         {"app_type": "php", "app_entry_point": "index.php", "app_requirements": None}),
        (["public/index.php", "public/.htaccess", "public/a.css", "public/img/a.png",
          "composer.json", "composer.lock"],
         {"app_type": "php", "app_entry_point": "public/index.php",
          "app_requirements": "composer.json",
          "app_static": {"/a.css": "public/a.css", "/img": "public/img"}}),
    ],
)  # fmt: skip
def test_other_languages_are_recognised(
    folder: Path, files: list[str], settings: dict[str, Any]
) -> None:
    found = look(folder, **dict.fromkeys(files, ""))
    assert found.settings == {"app_root": ".", "health_path": "/", **settings}
    assert {*found.todo} == {"health_path"} and not found.impossible
    # What Python has comes first.
    beside = look(folder, **{"app.py": "app = Flask('')"})
    assert entry(beside) == (".", "app:app") and "app_type" not in beside.settings


def test_what_other_languages_leave_open(folder: Path) -> None:
    well = look(folder, **{"app.psgi": "mount '/healthz' => sub {}"})
    assert well.settings["health_path"] == "/healthz" and "health_path" not in well.todo
    (folder / "app.psgi").unlink()
    found = look(folder, **{"index.php": "", "about.php": "", "composer.json": ""})
    assert found.todo["app_requirements"].startswith("composer.lock is missing")
    assert "(as about.php)" in found.todo["app_entry_point"]


def test_a_go_module_is_recognised_as_impossible(folder: Path) -> None:
    found = look(folder, **{"go.mod": ""})
    assert found.impossible.startswith("a Go module: go.mod: Debian's uWSGI can't load its plugin")
    assert not look(folder, **{"app.py": "app = Flask('')"}).impossible


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"def f(:", b"\0", b""])
def test_what_cannot_be_read_is_passed_over(folder: Path, text: bytes) -> None:
    folder.mkdir()
    for name in ("manage.py", "wsgi.py", "production.ini", "pyproject.toml", "setup.py"):
        (folder / name).write_bytes(text)
    found = recognise(folder)
    assert "app_entry_point" in found.todo


def test_an_empty_folder_has_everything_left_open(folder: Path) -> None:
    found: Any = look(folder, **{"README.md": ""})
    assert found.said == []
    assert {*found.todo} == {"app_entry_point", "health_path"}


def test_what_does_not_end_is_not_followed(folder: Path) -> None:
    files = {
        "manage.py": MANAGE.format("shop.settings.a"),
        "shop/settings/__init__.py": "",
        "shop/settings/a.py": "from .b import *\n",
        "shop/settings/b.py": "from .a import *\nfrom .nowhere import *\nDEBUG = True\n",
    }
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "main.py").symlink_to("fifo")
    (folder / "deep.py").write_text(f"X = {'(' * 90}1{')' * 90}{' + 1' * 5000}\n")
    found = look(folder, **files)
    assert "shop.settings.a has DEBUG = True" in found.todo["app_env"]
