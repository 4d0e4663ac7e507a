"""Applications in Perl, Ruby, PHP and Lua, with what they depend on, on one host.

The Perl application is on another host too, which gets its dependencies from the first. The gem has
to be compiled. The tests run in the order in which they stand here.
"""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import acl_tokens
import consul_version
import pytest
from checkout import ROOT
from fleet_commands import changed, output, run
from lab_commands import Lab
from load import Load
from registries import PHP_FOLDER, PROJECTS, SETTINGS, packages
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(200)

ALL = f"""\
ssh_config_file = "{ROOT}/.lab/ssh_config"
_sudo = True
{consul_version.settings()}
"""
# Of the shared fleet: it stays on both hosts, as it is.
DEMO = """\
app_source = "app"
app_entry_point = "app.server:application"
app_ini = "app/uwsgi.ini.j2"
app_requirements = None
min_healthy_time = 1
instances = {f"server{n}": {"port": 2000 + n, "id": f"server{n}"} for n in (1, 2)}
"""
ALIKE = {
    "app_processes": 1,
    "health_path": "/healthz",
    "min_healthy_time": 0,
}
PORTS = {language: 5000 + number for number, language in enumerate(PROJECTS, start=1)}
ENTRIES = {
    "perl": ("app.psgi", "#"),
    "ruby": ("config.ru", "#"),
    "php": ("public/index.php", "//"),
    "lua": ("app.lua", "--"),
}
SAY = "require 'ahoy'; puts Ahoy.word"
TOOLS = "carton composer gcc make"
GEMS = "/usr/share/rubygems-integration/all/gems"


class Folder:
    """An operator's, with a project of each language."""

    def __init__(self, folder: Path, words: dict[str, str]) -> None:
        self.folder = folder
        for name in ("applications", "group_data"):
            (folder / name).mkdir()
        (folder / "group_data/all.py").write_text(ALL)
        (folder / "applications/consul-demo-server.py").write_text(DEMO)
        for name in ("app", "plugin_build", "tasks.py"):
            (folder / name).symlink_to(ROOT / name)
        for language, files in PROJECTS.items():
            for name, text in files.items():
                path = folder / "projects" / language / name
                path.parent.mkdir(parents=True, exist_ok=True)
                for word, value in words.items():
                    text = text.replace(word, value)
                path.write_text(text)
            self.describe(language)

    def entry(self, language: str) -> Path:
        return self.folder / "projects" / language / ENTRIES[language][0]

    def describe(self, language: str, **settings: Any) -> None:
        lines = {
            **ALIKE,
            **SETTINGS[language],
            "app_source": str(self.folder / "projects" / language),
            "instances": {"web": PORTS[language]},
            **settings,
        }
        text = "".join(f"{key} = {value!r}\n" for key, value in lines.items())
        (self.folder / f"applications/{language}-shop.py").write_text(text)

    def change(self, language: str, text: str) -> None:
        with self.entry(language).open("a") as file:
            file.write(f"{ENTRIES[language][1]} {text}\n")

    def deploy(
        self, *options: str, gone: bool = False, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        groups: dict[str, list[str]] = {f"{language}_shop": ["cheetah"] for language in PROJECTS}
        groups["perl_shop"] = ["cheetah", "drakar"]
        groups = {name: [] if gone else hosts for name, hosts in groups.items()}
        groups["consul_demo_server"] = ["drakar", "cheetah"]
        lines = (f"{name} = {hosts!r}\n" for name, hosts in groups.items())
        text = "".join(["consul_servers = ['drakar']\n", *lines])
        (self.folder / "inventory.py").write_text(text)
        return self.run("pyinfra", "-y", *options, "inventory.py", f"{ROOT}/deploy/", check=check)

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*words, check=check, cwd=self.folder)


@pytest.fixture(scope="module")
def own(fleet: SharedFleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    folder = tmp_path_factory.mktemp("own")
    copy = ["scp", "-q", "-r", *lab.ssh_options]
    lab.run(*copy, f"drakar:{GEMS}/rack-*", str(folder))
    (rack,) = folder.glob("rack-*")
    for path, content in packages(rack).items():
        (folder / "registry" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "registry" / path).write_bytes(content)
    lab.run(*copy, str(folder / "registry"), "drakar:")
    serve = "--collect --unit=registry --working-directory=$HOME/registry python3 -m http.server"
    lab.ssh("drakar", f"sudo systemd-run --quiet {serve} 8099")
    url = f"http://{lab.address('drakar')}:8099"
    acl_tokens.the_same(folder / "inventory.py", fleet.path, "drakar")
    made = Folder(folder, {"URL": url, "RACK": rack.name.removeprefix("rack-")})
    yield made
    lab.ssh("drakar", "sudo systemctl stop registry; rm -r registry")
    made.deploy(gone=True)
    lab.ssh("cheetah", "sudo rm -r /srv/php-shop")  # nobody else removes what releases share


def get(lab: Lab, host: str, language: str, path: str) -> tuple[int, str]:
    """The status and the text of an answer."""
    url = f"http://{lab.address(host)}:{PORTS[language]}{path}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(lab: Lab, host: str, language: str) -> dict[str, str]:
    status, text = get(lab, host, language, "/a/path?b")
    assert status == 200, text
    return dict(json.loads(text))


def expect_no_source(lab: Lab) -> None:
    """Of the PHP application, which answers what is not to be sent or has it refused."""
    assert get(lab, "cheetah", "php", "/css/shop.css") == (200, "body {}\n")
    for path in ("/.hidden", "/index.php", "/index.php.bak", "/css/../index.php.bak"):
        status, text = get(lab, "cheetah", "php", path)
        assert status in (200, 403)
        assert "secret" not in text and "<?php" not in text


def test_each_serves_with_what_it_depends_on(own: Folder, lab: Lab) -> None:
    said = output(own.deploy())
    for language in PROJECTS:
        found = ask(lab, "cheetah", language)
        assert found["word"] == f"ahoy from {language.title() if language != 'php' else 'PHP'}"
        assert found["path"] == "/a/path"
    assert ask(lab, "drakar", "perl")["word"] == "ahoy from Perl"
    expect_no_source(lab)
    # Once for both hosts.
    assert said.count("installing what it depends on, by carton") == 1
    assert said.count("installing a compiler too") == 1
    words = ("--app", "ruby-shop", "--once", "--", "bundle", "exec", "ruby", "-e", SAY)
    assert own.run("invoke", "exec", *words).stdout == "ahoy from Ruby\n"
    left = lab.ssh("cheetah", f"command -v {TOOLS}", check=False)
    assert left.stdout == ""


def test_releases_lose_no_request_and_what_does_not_load_never_serves(
    own: Folder, lab: Lab
) -> None:
    """uWSGI has no need-app for PHP and Lua: their trial tells."""
    fixed = [f"{lab.address('cheetah')}:{port}" for port in PORTS.values()]
    with Load(lab, fixed, service="perl-shop") as load:
        load.mark("a release of each")
        for language in PROJECTS:
            own.change(language, "changed")
        uploads = {"app_shared": ["public/uploads/"]}
        own.describe("php", **SETTINGS["php"] | PHP_FOLDER | {"app_static": {}} | uploads)
        result = own.deploy("--json")
        releases = {language: ask(lab, "cheetah", language)["release"] for language in PROJECTS}
        load.mark("a good and two bad ones")
        for language in PROJECTS:
            own.change(language, "changed" if language in ("perl", "ruby") else "\n)(")
        for language in ("php", "lua"):  # what does not load is waited for to the end
            with (own.folder / f"applications/{language}-shop.py").open("a") as file:
                file.write("health_timeout = 12\n")
        failed = own.deploy(check=False)
        load.mark("after")
        found = load.window("a release of each", "after")
    found.expect(passing=2)
    asked = {request.address.rpartition(":")[2] for request in found.requests}
    assert asked == {str(port) for port in PORTS.values()}
    assert {name.partition(":")[0] for name in changed(result)} >= {
        f"{language}-shop" for language in PROJECTS
    }
    assert "installing what it depends on" not in output(result)
    assert failed.returncode == 1
    serving = {language: ask(lab, "cheetah", language)["release"] for language in PROJECTS}
    assert {language for language in PROJECTS if serving[language] == releases[language]} == {
        "php",
        "lua",
    }
    expect_no_source(lab)
    uploads = "/srv/php-shop/shared/public/uploads"
    lab.ssh("cheetah", f"echo '<?php // secret' | sudo tee {uploads}/a.txt {uploads}/a.php")
    assert get(lab, "cheetah", "php", "/uploads/a.txt") == (200, "<?php // secret\n")
    assert "secret" not in get(lab, "cheetah", "php", "/uploads/a.php")[1]
