"""What settings say of an application: lines of uWSGI's ini, and files of its release."""

import importlib.metadata
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from sources import host

from uwsgi_consul_fleet.errors import InventoryError
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.operations.applications import metadata
from uwsgi_consul_fleet.operations.applications.package import Package, make
from uwsgi_consul_fleet.operations.applications.release import _read, read
from uwsgi_consul_fleet.operations.plan import DeployError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of a name that nobody imports, with modules in src/ and some beside it."""
    folder = tmp_path / "shop-2024"
    (folder / "src/shop").mkdir(parents=True)
    (folder / "src/shop/__init__.py").touch()
    (folder / "src/requirements.txt").write_text("flask\n")
    (folder / "wsgi.py").touch()
    (folder / "production.ini").touch()
    return folder


def package(folder: Path, **settings: Any) -> Package:
    me = host(folder, **settings)
    return make(me, read(me.settings))


def ini(folder: Path, **settings: Any) -> list[str]:
    text = package(folder, **settings).files["2001.ini"].content.decode()
    return [line for line in text.splitlines() if line and not line.startswith(";")]


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises((DeployError, InventoryError)) as caught:
        package(folder, **settings)
    _read.cache_clear()
    return str(caught.value)


# --- app_root ---


def test_without_a_root_all_is_as_it_was(project: Path) -> None:
    lines = ini(project, app_entry_point="shop.main:application")
    place = lines.index("chdir = %d")
    assert lines[place + 1 : place + 3] == [
        "module = shop.main:application",
        "env = APP_SERVICE=consul-demo-server",
    ]
    assert not any("pythonpath" in line for line in lines)
    paths = [entry.path for entry in package(project).release.sources.entries]
    assert "shop-2024/src/shop/__init__.py" in paths


@pytest.mark.parametrize(
    ("root", "path"), [(".", "%dsource/"), ("src", "%dsource/src"), ("./src/", "%dsource/src")]
)
def test_modules_are_imported_from_the_root(project: Path, root: str, path: str) -> None:
    found = package(project, app_root=root, app_entry_point="shop:create_app()")
    lines = found.files["2001.ini"].content.decode().splitlines()
    for line in ("chdir = %dsource/", f"pythonpath = {path}", "module = shop:create_app()"):
        assert line in lines
    packed = io.BytesIO(b"".join(found.archive()))
    with tarfile.open(fileobj=packed) as archive:
        assert {"source/src/shop/__init__.py", "source/wsgi.py"} <= {*archive.getnames()}


def test_a_clone_by_another_name_is_the_same_release(project: Path) -> None:
    before = package(project, app_root="src").release.sources.digest
    assert (
        package(project.rename(project.with_name("x")), app_root="src").release.sources.digest
        == before
    )


def test_requirements_are_those_of_the_source(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "src")
    for name in ("src/requirements.txt", str(project / "src/requirements.txt")):
        found = package(project, app_root=".", app_requirements=name).release.requirements
        assert found and found.files == {"requirements.txt": b"flask\n"}
    lacks = project / "requirements.txt"
    said = refused(project, app_root=".", app_requirements="requirements.txt")
    assert said == f"app_requirements: no file {lacks}; nothing was changed"


@pytest.mark.parametrize("root", ["..", "/srv", "src/../../x", "../shop-2024"])
def test_a_root_that_leads_out_is_refused(project: Path, root: str) -> None:
    assert f"drakar: app_root = {root!r}: leads out of app_source" in refused(
        project, app_root=root
    )


def test_a_root_that_is_not_there_is_refused(project: Path) -> None:
    said = refused(project, app_root="lib")
    assert said == f"app_root: {project} has no folder lib to send; nothing was changed"


def test_a_link_by_the_folders_name_is_refused_where_it_has_another_there(project: Path) -> None:
    (project / "link.py").symlink_to("../shop-2024/wsgi.py")
    package(project)
    assert f"{project}/link.py is a link to ../shop-2024/wsgi.py" in refused(project, app_root=".")


# --- app_entry_point ---


@pytest.mark.parametrize(
    ("entry", "lines"),
    [
        ("shop.wsgi:application", ["module = shop.wsgi:application"]),
        ("shop:create_app()", ["module = shop:create_app()"]),
        ("wsgi.py", ["wsgi-file = %dsource/wsgi.py"]),
        ("wsgi.py:app", ["wsgi-file = %dsource/wsgi.py", "callable = app"]),
        ("production.ini", ["paste = config:%dsource/production.ini", "paste-logger = true"]),
        (
            "production.ini#shop",
            [
                "paste = config:%dsource/production.ini",
                "paste-logger = true",
                "paste-name = shop",
            ],
        ),
    ],
)
def test_what_uwsgi_loads(project: Path, entry: str, lines: list[str]) -> None:
    found = ini(project, app_root=".", app_entry_point=entry)
    begin = found.index("pythonpath = %dsource/") + 1
    assert found[begin : begin + len(lines)] == lines


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("manage.py", "app_entry_point: manage.py is not sent: no such file in {project}; "),
        ("wsgi.py:create_app()", "a factory is a module's: wsgi:create_app()"),
        ("production.ini:main", "a paste ini a section"),
        ("../wsgi.py", "leads out of app_source"),
    ],
)
def test_an_entry_point_that_is_none(project: Path, entry: str, says: str) -> None:
    assert says.format(project=project) in refused(project, app_root=".", app_entry_point=entry)


def test_without_a_root_a_file_is_seen_from_the_folder_above(project: Path) -> None:
    found = ini(project, app_entry_point="shop-2024/wsgi.py")
    assert "wsgi-file = %dshop-2024/wsgi.py" in found
    assert "which has shop-2024/ of app_source" in refused(project, app_entry_point="wsgi.py")


def test_a_template_that_does_not_know_a_setting_is_refused(project: Path) -> None:
    own = project.with_name("own.ini.j2")
    own.write_text(
        "[uwsgi]\nchdir = %d\nmodule = {{ settings.app_entry_point }}\n"
        "if-not-env = RELEASE_TRIAL\nsocket = fd://3\nend-if =\n"
    )
    package(project, app_ini=str(own))
    said = refused(project, app_ini=str(own), app_root="src")
    assert f"app_root: app_ini: {own} does not write `chdir = %dsource/`" in said
    for setting in (
        {"app_entry_point": "shop-2024/wsgi.py"},
        {"app_uwsgi": {"threads": 4}},
        {"app_static": {"/static": "shop-2024/src"}},
    ):
        (key,) = setting
        assert refused(project, app_ini=str(own), **setting).startswith(f"{key}: app_ini: ")


# --- app_uwsgi ---


def test_further_options_of_uwsgi(project: Path) -> None:
    given = {
        "threads": 4,
        "harakiri": 60,
        "mule": ["worker.py", "other.py"],
        "disable-logging": False,
        "post-buffering": True,
        "log-format": "%(method) %(uri) = %(status)",
        "reload-on-rss": 0.5,
        "static-expires": ["/static/.*\\.css 3600"],
    }
    lines = ini(project, app_uwsgi=given)
    begin = lines.index("threads = 4")
    assert lines[begin : begin + 9] == [
        "threads = 4",
        "harakiri = 60",
        "mule = worker.py",
        "mule = other.py",
        "disable-logging = false",
        "post-buffering = true",
        "log-format = %(method) %(uri) = %(status)",
        "reload-on-rss = 0.5",
        "static-expires = /static/.*\\.css 3600",
    ]
    # What comes later wins, and a trial has them too.
    assert lines.index("disable-logging = true") < begin
    assert begin < lines.index("if-not-env = RELEASE_TRIAL")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("socket", "systemd opens the port's socket"),
        ("http-socket", "systemd opens the port's socket"),
        ("master", "never reloaded"),
        ("exit-on-reload", "never reloaded"),
        ("need-app", "never reloaded"),
        ("die-on-term", "never reloaded"),
        ("daemonize", "never reloaded"),
        ("touch-reload", "never reloaded"),
        ("py-autoreload", "never reloaded"),
        ("chdir", "its unit decides"),
        ("uid", "its unit decides"),
        ("module", "say app_entry_point"),
        ("ini-paste-logged", "say app_entry_point"),
        ("workers", "say app_processes"),
        ("lazy-apps", "say app_lazy"),
        ("lazy", "say app_lazy"),
        ("env", "say app_env"),
        ("static-map", "say app_static"),
        ("worker-reload-mercy", "say stop_timeout"),
        ("consul-register", "say instances"),
        ("stats", "two releases run side by side"),
        ("subscribe-to", "two releases run side by side"),
        ("emperor", "two releases run side by side"),
        ("ini", "options from elsewhere"),
        ("if-env", "options from elsewhere"),
    ],
)
def test_options_that_others_decide_are_refused_by_name(
    project: Path, option: str, says: str
) -> None:
    said = refused(project, app_uwsgi={option: "x", "threads": 2})
    _, _, why = said.partition(f"drakar: app_uwsgi = {{'{option}': 'x', 'threads': 2}}: {option}: ")
    assert says in why and "threads" not in why


@pytest.mark.parametrize("options", [{"a": "1\nsocket = x"}, {"a = b\nsocket": 1}, {"a": None}])
def test_a_value_is_one_line(project: Path, options: dict[str, Any]) -> None:
    assert "drakar: app_uwsgi" in refused(project, app_uwsgi=options)


@pytest.mark.parametrize(
    ("options", "plugins"),
    [
        ({}, ""),
        ({"gevent": 100, "gevent-monkey-patch": True}, "gevent_python3,"),
        ({"asyncio": 50, "greenlet": True}, "asyncio_python3,greenlet_python3,"),
        ({"async": 8, "ugreen": True}, "ugreen,"),
    ],
)
def test_loops_bring_their_plugins(project: Path, options: dict[str, Any], plugins: str) -> None:
    found = package(project, app_uwsgi=options)
    assert f"plugins = python3,{plugins}%dconsul_plugin.so" in ini(project, app_uwsgi=options)
    assert found.uwsgi_plugins == {"python3", *plugins.strip(",").split(",")} - {""}


def test_pypis_uwsgi_has_some_of_them_built_in(project: Path) -> None:
    assert "plugins = %dconsul_plugin.so" in ini(
        project, uwsgi_source="pypi", app_uwsgi={"gevent": 100}
    )
    said = refused(project, uwsgi_source="pypi", app_uwsgi={"asyncio": 50})
    assert said.startswith("app_uwsgi: asyncio: PyPI's uWSGI has no plugin for it: ")


def test_what_loses_requests_is_told_by_name(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package(project, app_uwsgi={"threads": 4, "gevent": 100})
    assert "may lose" not in caplog.text
    package(project, app_uwsgi={"threads": 4, "no-threads-wait": True})
    assert "with no-threads-wait uWSGI does not wait for the requests" in caplog.text


# --- app_static ---


def test_static_files_are_served_from_the_release(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / "public").mkdir()
    (project / "public/a.css").touch()
    lines = ini(project, app_root="src", app_static={"/static": "public", "/robots.txt": "wsgi.py"})
    begin = lines.index("static-map = /static=%dsource/public")
    assert lines[begin + 1 : begin + 4] == [
        "static-map = /robots.txt=%dsource/wsgi.py",
        "static-skip-ext = .env",
        "offload-threads = 1",
    ]
    lines = ini(project, app_root=".", app_static={"/s": "public"}, app_shared=["public/media/"])
    assert f"static-safe = /srv/{DEMO['app_name']}/shared" in lines
    lines = ini(project, app_static={"/s": "shop-2024/public"}, app_uwsgi={"offload-threads": 4})
    assert "static-map = /s=%dshop-2024/public" in lines
    assert [line for line in lines if "offload" in line] == ["offload-threads = 4"]
    assert "nothing is sent" not in caplog.text
    package(project, app_root=".", app_static={"/static": "staticfiles"})
    assert "app_static: /static: nothing is sent of source/staticfiles" in caplog.text


@pytest.mark.parametrize(
    ("static", "says"),
    [
        ({"/static": "../secret"}, "app_static./static = '../secret': leads out of app_source"),
        ({"/static": "/etc"}, "leads out of app_source"),
        ({"/": "."}, "would serve the application itself"),
        ({"static": "public"}, "app_static.static"),
        ({"/a=b": "public"}, "app_static./a=b"),
    ],
)
def test_static_files_that_are_none(project: Path, static: dict[str, str], says: str) -> None:
    assert says in refused(project, app_root=".", app_static=static)


def test_without_a_root_static_files_are_below_the_sources_name(project: Path) -> None:
    said = refused(project, app_static={"/static": "units"})
    assert said.startswith(
        "app_static: /static: units is not in app_source, which lands as shop-2024/"
    )


# --- What a project says of itself ---

PYPROJECT = """
[project]
name = "My.Shop"
version = "1.2"
[project.scripts]
shop = "shop:main"
[project.entry-points."paste.app_factory"]
main = "shop:main"
"""
POETRY = """
[tool.poetry]
name = "my-shop"
version = "1.2"
[tool.poetry.plugins."paste.app_factory"]
main = "shop:main"
"""
SETUP_CFG = """
[metadata]
name = my-shop
version = 1.2
[options.entry_points]
paste.app_factory =
    main = shop:main
"""
SETUP_PY = """
from setuptools import find_packages, setup
setup(
    name="my-shop", version="1.2", long_description=README + CHANGES, packages=find_packages(),
    entry_points={"paste.app_factory": ["main = shop:main"]},
)
"""


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyproject.toml", PYPROJECT),
        ("pyproject.toml", POETRY),
        ("setup.cfg", SETUP_CFG),
        ("setup.py", SETUP_PY),
    ],
)
def test_a_project_is_found_as_if_it_were_installed(
    project: Path, file: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what looks for it: uWSGI's Python has the root in its path."""
    (project / file).write_text(text)
    found = package(project, app_root="src")
    with tarfile.open(fileobj=io.BytesIO(b"".join(found.archive()))) as archive:
        archive.extractall(project.parent / "host")
    monkeypatch.syspath_prepend(project.parent / "host/source/src")
    there = importlib.metadata.distribution("my-shop")
    assert there.version == "1.2"
    (point,) = (each for each in there.entry_points if each.group == "paste.app_factory")
    assert (point.name, point.value) == ("main", "shop:main")


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("pyproject.toml", '[project]\nname = "a"\ndynamic = ["version"]\n', "0"),
        ("pyproject.toml", "[build-system]\nrequires = []\n", None),
        ("setup.py", "setup(name=NAME)", None),
        ("setup.cfg", "[flake8]\nx = 1\n", None),
        ("setup.cfg", "[metadata]\nname = a\nversion = attr: shop.__version__\n", "0"),
        ("setup.cfg", "[metadata]\nname = a\nversion = file: VERSION\n", "0"),
    ],
)
def test_what_is_computed_is_not_known(
    tmp_path: Path, file: str, text: str, version: str | None
) -> None:
    (tmp_path / file).write_text(text)
    found = metadata.of(tmp_path)
    assert (found.version if found else None) == version


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("setup.py", 'setup(name="a", entry_points={"console_scripts": None})'),
        ("setup.py", 'setup(name="a", entry_points=None)'),
        ("setup.py", 'setup(name="a", entry_points={[]: 1})'),
        ("setup.py", 'setup(name="a", entry_points={"console_scripts": [1]})'),
        ("pyproject.toml", '[project]\nname = "a"\n[project.entry-points]\ng = 3\n'),
        ("pyproject.toml", '[project]\nname = "a"\nentry-points = 3\n'),
        ("pyproject.toml", 'project = "x"\ntool = 1\n'),
        ("pyproject.toml", '[tool]\npoetry = "x"\n'),
    ],
)
def test_what_nobody_expects_there_is_passed_over(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    found = metadata.of(tmp_path)
    assert not found or not any(found.entry_points.values())


def test_a_damaged_project_file_is_refused(project: Path) -> None:
    (project / "pyproject.toml").write_text("[project\n")
    said = refused(project, app_root="src")
    assert said.startswith(f"app_source: {project}: what the project says of itself can't be read")
