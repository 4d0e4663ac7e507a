"""Applications in another language than Python: what uWSGI is told of them, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import sources

from uwsgi_consul_fleet.errors import InventoryError
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.operations.applications import dependencies, loading
from uwsgi_consul_fleet.operations.applications.package import Package, make
from uwsgi_consul_fleet.operations.applications.release import _read, made_by, read
from uwsgi_consul_fleet.operations.plan import DeployError

FILES = {
    "app.psgi": "",
    "config.ru": "",
    "app.lua": "",
    "public/index.php": "",
    "cpanfile": "requires 'Try::Tiny';\n",
    "Gemfile": 'gem "rack"\n',
    "Gemfile.lock": "GEM\n  specs:\n    rack (2.2.4)\n",
    "composer.json": "{}",
    "composer.lock": "{}",
}
ENTRIES = {"psgi": "app.psgi", "rack": "config.ru", "lua": "app.lua", "php": "public/index.php"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def host(folder: Path, kind: str, **settings: Any) -> AppHost:
    ours = {"app_type": kind, "app_root": ".", "app_entry_point": ENTRIES.get(kind, "main.go")}
    return sources.host(folder, **{**ours, **settings})


def package(folder: Path, kind: str, **settings: Any) -> Package:
    me = host(folder, kind, **settings)
    return make(me, read(me.settings))


def ini(folder: Path, kind: str, **settings: Any) -> list[str]:
    text = package(folder, kind, **settings).files["2001.ini"].content.decode()
    return [line for line in text.splitlines() if line and not line.startswith(";")]


def refused(folder: Path, kind: str, **settings: Any) -> str:
    with pytest.raises((DeployError, InventoryError)) as caught:
        package(folder, kind, **settings)
    _read.cache_clear()
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "settings", "plugin", "lines"),
    [
        ("psgi", {}, "psgi", ["psgi = %dsource/app.psgi"]),
        (
            "psgi",
            {"app_requirements": "cpanfile", "app_root": "public"},
            "psgi",
            [
                "env = PERL5LIB=%dsource/public:%dvendor.d/lib/perl5",
                "psgi = %dsource/app.psgi",
            ],
        ),
        (
            "rack",
            {"app_requirements": "Gemfile"},
            "rack",
            [
                "env = BUNDLE_GEMFILE=%drequirements.d/Gemfile",
                "env = BUNDLE_PATH=%dvendor.d",
                "env = BUNDLE_FROZEN=true",
                "env = BUNDLE_WITHOUT=development:test",
                "env = BUNDLE_USER_HOME=/nonexistent",
                "rb-require = bundler/setup",
                "rack = %dsource/config.ru",
            ],
        ),
        (
            "php",
            {},
            "php",
            [
                "http-socket-modifier1 = 14",
                "php-docroot = %dsource/public",
                "php-app = %dsource/public/index.php",
                "static-skip-ext = .php",
                f"route = {loading.SOURCE_CODE} break:403 Forbidden",
            ],
        ),
        (
            "php",
            {"app_entry_point": "public"},
            "php",
            [
                "http-socket-modifier1 = 14",
                "php-docroot = %dsource/public",
                "php-index = index.php",
                "php-allowed-ext = .php",
                "check-static = %dsource/public",
                "static-index = index.html",
                "static-skip-ext = .php",
                f"route = {loading.SOURCE_CODE} break:403 Forbidden",
                f"route = {loading.HIDDEN} break:403 Forbidden",
            ],
        ),
        ("lua", {}, "lua51", ["http-socket-modifier1 = 6", "lua = %dsource/app.lua"]),
    ],
)
def test_each_is_loaded_by_its_plugin(
    project: Path, kind: str, settings: dict[str, Any], plugin: str, lines: list[str]
) -> None:
    found = ini(project, kind, **settings)
    assert f"plugins = {plugin},%dconsul_plugin.so" in found
    begin = found.index("chdir = %dsource/") + 1
    assert found[begin : begin + len(lines)] == lines
    assert found[begin + len(lines)].startswith("env = APP_SERVICE=")
    # uWSGI does not count the others when they are loaded.
    assert ("need-app = true" in found) == (kind in ("psgi", "rack"))
    assert not {"enable-threads = true", "virtualenv = %dvenv"} & {*found}
    assert package(project, kind, **settings).environment("cp311") == "-"


@pytest.mark.parametrize(
    "path", ["/.env", "/a/.git/config", "/x.php.bak", "/x.PHP", "/a.inc", "/x.php~"]
)
def test_no_source_of_php_is_sent(path: str) -> None:
    assert re.search(f"{loading.HIDDEN}|{loading.SOURCE_CODE}", path)


@pytest.mark.parametrize(
    "path", ["/index.php", "/index.php/a", "/.well-known/x", "/a.css", "/phpinfo"]
)
def test_all_else_of_php_is(path: str) -> None:
    assert not re.search(f"{loading.HIDDEN}|{loading.SOURCE_CODE}", path)


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("go", {}, "app_type = 'go': Debian's uWSGI can't load its plugin for Go"),
        ("psgi", {"uwsgi_source": "pypi"}, 'uwsgi_source = "pypi": PyPI\'s uWSGI has Python alone'),
        ("rack", {"app_root": None}, "app_type = 'rack': takes app_root"),
        ("rack", {"app_uwsgi": {"threads": 4}}, "app_uwsgi: threads: not with app_type = 'rack'"),
        ("lua", {"app_uwsgi": {"gevent": 4}}, "app_uwsgi: gevent: not with app_type = 'lua'"),
        ("php", {"app_uwsgi": {"php-app": "x"}}, "say app_entry_point"),
        ("php", {"app_entry_point": "index:app"}, "app_entry_point = 'index:app': with app_type"),
        ("php", {"app_entry_point": "."}, "a .php file that answers everything, or a folder"),
        ("php", {"app_entry_point": "../x.php"}, "app_entry_point = '../x.php'"),
        ("php", {"app_entry_point": "web.php"}, "app_entry_point: web.php is not sent"),
        ("psgi", {"app_requirements": "Gemfile"}, "app_requirements = 'Gemfile': with app_type"),
        ("lua", {"app_requirements": "cpanfile"}, "app_requirements: None with app_type = 'lua'"),
        ("php", {"app_requirements": "public/composer.json"}, "no file"),
    ],
)
def test_what_a_language_cannot_have_is_refused(
    project: Path, kind: str, settings: dict[str, Any], says: str
) -> None:
    assert says in refused(project, kind, **settings)


def test_what_is_compiled_finds_the_packages_for_it(project: Path) -> None:
    me = host(project, "rack", app_requirements="Gemfile", app_build_packages=["libpq-dev"])
    told = dependencies._to_bring(me, read(me.settings), "a-kind")
    assert "compiler='ruby-dev libpq-dev'" in told


def test_plugins_that_an_option_is_from_are_loaded_too(project: Path) -> None:
    found = ini(project, "psgi", app_uwsgi={"async": 8, "ugreen": True})
    assert "plugins = psgi,ugreen,%dconsul_plugin.so" in found


def test_dependencies_are_those_of_the_lock_file(project: Path) -> None:
    found = package(project, "rack", app_requirements="Gemfile")
    assert {"requirements.d/Gemfile", "requirements.d/Gemfile.lock"} <= {*found.files}
    requirements = found.release.requirements
    assert requirements and requirements.main == "requirements.d/Gemfile"
    assert requirements.are_pinned and made_by(found.release)
    without = package(project, "psgi", app_requirements="cpanfile").release.requirements
    assert without and not without.are_pinned
    (project / "cpanfile").write_text('my $from = "${NAME}/x";')  # which is Perl's
    _read.cache_clear()
    its = package(project, "psgi", app_requirements="cpanfile").release.requirements
    assert its and its.variables == set()


@pytest.mark.parametrize(
    ("kind", "manifest", "name", "text", "says"),
    [
        ("rack", "Gemfile", "Gemfile.lock", None, "Gemfile.lock"),
        ("php", "composer.json", "composer.lock", None, "composer.lock"),
        ("rack", "Gemfile", "Gemfile.lock", "GEM\n", "has no rack, which uWSGI loads"),
        ("rack", "Gemfile", "Gemfile.lock", "PATH\n  remote: x\n", "has a package that is a path"),
        ("rack", "Gemfile", "Gemfile", 'source "https://me:sesame@x"', "Gemfile:1: has a password"),
        ("php", "composer.json", "vendor/autoload.php", "", "has a folder vendor of its own"),
    ],
)
def test_dependencies_that_cannot_be_installed_are_refused(
    project: Path, kind: str, manifest: str, name: str, text: str | None, says: str
) -> None:
    path = project / name
    path.unlink(missing_ok=True)
    if text is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    said = refused(project, kind, app_requirements=manifest)
    assert says in said and said.startswith("app_requirements: ") and "sesame" not in said


def test_an_operators_own_ini_has_to_load_it(project: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.ini.j2"
    own.write_text(
        "[uwsgi]\nchdir = %dsource/\nif-not-env = RELEASE_TRIAL\nsocket = fd://3\nend-if =\n"
    )
    assert refused(project, "lua", app_ini=str(own)).startswith("app_type: app_ini: ")
