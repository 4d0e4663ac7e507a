"""Applications in Perl, Ruby, PHP and Lua, with what they depend on, on one host.

The Perl application is on another host too, which gets its dependencies from the first. The gem has
to be compiled. The tests run in the order in which they stand here.
"""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import consul_version
import pytest
from checkout import ROOT
from fleet_commands import changed, output, run
from lab_commands import Lab
from load import Load
from registries import PROJECTS, SETTINGS, packages, rack_version
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(70)

ALL = f"""\
ssh_config_file = "{ROOT}/.lab/ssh_config"
_sudo = True
app_root = "."
app_processes = 1
health_path = "/healthz"
min_healthy_time = 0
{consul_version.settings()}
"""
PORTS = {language: 5000 + number for number, language in enumerate(PROJECTS, start=1)}
COMMENTS = {"perl": "#", "ruby": "#", "php": "//", "lua": "--"}
INSTALLERS = "carton composer gcc make"


class Folder:
    """An operator's, with a project of each language."""

    def __init__(self, folder: Path, words: dict[str, str]) -> None:
        self.folder = folder
        for name in ("applications", "group_data"):
            (folder / name).mkdir()
        (folder / "group_data/all.py").write_text(ALL)
        for name in ("plugin_build", "tasks.py"):
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
        return self.folder / "projects" / language / SETTINGS[language][1]

    def describe(self, language: str) -> None:
        kind, entry, requirements = SETTINGS[language]
        lines: dict[str, Any] = {
            "app_source": str(self.folder / "projects" / language),
            "app_type": kind,
            "app_entry_point": entry,
            "app_requirements": requirements,
            "instances": {"web": PORTS[language]},
        }
        text = "".join(f"{key} = {value!r}\n" for key, value in lines.items())
        (self.folder / f"applications/{language}-shop.py").write_text(text)

    def change(self, language: str, comment: str) -> None:
        with self.entry(language).open("a") as file:
            file.write(f"{COMMENTS[language]} {comment}\n")

    def deploy(
        self, *options: str, gone: bool = False, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        groups: dict[str, list[str]] = {f"{language}_shop": ["cheetah"] for language in PROJECTS}
        groups["perl_shop"] = ["cheetah", "drakar"]
        groups = {name: [] if gone else hosts for name, hosts in groups.items()}
        lines = (f"{name} = {hosts!r}\n" for name, hosts in groups.items())
        text = "".join(["consul_servers = ['drakar']\n", *lines])
        (self.folder / "inventory.py").write_text(text)
        return self.run("pyinfra", "-y", *options, "inventory.py", f"{ROOT}/deploy/", check=check)

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*words, check=check, cwd=self.folder)


@pytest.fixture(scope="module")
def own(fleet: SharedFleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    folder = tmp_path_factory.mktemp("own")
    found = packages(tmp_path_factory.mktemp("rack"))
    for path, content in found.items():
        (folder / "registry" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "registry" / path).write_bytes(content)
    lab.run("scp", "-q", "-r", "-F", str(lab.config), str(folder / "registry"), "drakar:registry")
    serve = "--working-directory=$HOME/registry python3 -m http.server 8099"
    lab.ssh("drakar", f"sudo systemd-run --quiet --unit=registry {serve}")
    url = f"http://{lab.address('drakar')}:8099"
    made = Folder(folder, {"URL": url, "RACK": rack_version(found)})
    yield made
    lab.ssh("drakar", "sudo systemctl stop registry; rm -r registry")
    made.deploy(gone=True, check=False)


def ask(lab: Lab, host: str, language: str) -> dict[str, str]:
    url = f"http://{lab.address(host)}:{PORTS[language]}/a/path?b"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return dict(json.loads(answer.read()))


def test_each_serves_with_what_it_depends_on(own: Folder, lab: Lab) -> None:
    said = output(own.deploy())
    for language in PROJECTS:
        found = ask(lab, "cheetah", language)
        assert found["word"] == f"ahoy from {language.title() if language != 'php' else 'PHP'}"
        assert found["path"] == "/a/path"
    assert ask(lab, "drakar", "perl")["word"] == "ahoy from Perl"
    # Once for both hosts.
    assert said.count("installing what it depends on, by carton") == 1
    assert said.count("installing a compiler too") == 1
    words = ("--app", "ruby-shop", "--once", "--", "bundle", "exec", "ruby", "-rahoy")
    assert own.run("invoke", "exec", *words, "-e", "puts Ahoy.word").stdout == "ahoy from Ruby\n"
    left = lab.ssh("cheetah", f"command -v {INSTALLERS}", check=False)
    assert left.stdout == ""


def test_releases_lose_no_request(own: Folder, lab: Lab) -> None:
    fixed = [f"{lab.address('cheetah')}:{port}" for port in PORTS.values()]
    with Load(lab, fixed, service="perl-shop") as load:
        load.mark("two releases")
        for number in range(2):
            for language in PROJECTS:
                own.change(language, f"release {number}")
            result = own.deploy("--json")
            assert {name.partition(":")[0] for name in changed(result)} >= {
                f"{language}-shop" for language in PROJECTS
            }
            assert "installing what it depends on" not in output(result)
        load.mark("after")
        found = load.window("two releases", "after")
        found.expect(passing=2)
        asked = {request.address.rpartition(":")[2] for request in found.requests}
        assert asked == {str(port) for port in PORTS.values()}


@pytest.mark.parametrize("language", ["php", "lua"])
def test_what_does_not_load_never_serves(own: Folder, lab: Lab, language: str) -> None:
    """uWSGI has no need-app for these: their trial tells."""
    before, good = ask(lab, "cheetah", language), own.entry(language).read_text()
    own.entry(language).write_text(f"{good}\n)(\n")
    result = own.deploy("--data", f"app={language}-shop", check=False)
    own.entry(language).write_text(good)
    assert result.returncode == 1
    assert ask(lab, "cheetah", language) == before
