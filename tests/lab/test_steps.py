"""A Django project with what it does besides serving: Debian packages, a build, migrations that run
once, and files that outlive its releases.

The tests run in the order in which they stand here, on one fleet: each starts from what the one
before it left. On each host sqlite has a file of its own, which tells where a migration ran.
"""

import json
import urllib.request
from pathlib import Path

import pytest
from applications import commit
from django_project import DjangoProject
from fleet_commands import output
from lab_commands import Lab
from shared_fleet import HOSTS, SharedFleet

pytestmark = pytest.mark.takes(300)

APP = "consul-demo-server"
SHARED = f"/srv/{APP}/shared"
LEAK = """
if "SINK" in os.environ and "RELEASE_TRIAL" in os.environ:
    raise RuntimeError("a leak below the waterline")
"""


class Project(DjangoProject):
    """The project and its fleet."""

    def __init__(self, fleet: SharedFleet, lab: Lab, top: Path) -> None:
        super().__init__(top)
        self.fleet, self.lab = fleet, lab
        self.write("mysite/settings.py", LEAK)
        self.write("media/chart.txt", "here be dragons\n")
        self.settings |= {
            "app_packages": ["hello"],
            "app_build": ["python manage.py collectstatic --noinput"],
            "app_release": ["python manage.py migrate --noinput", "echo $APP_RELEASE >>media/ran"],
            "app_shared": ["db.sqlite3", "media/"],
            "app_static": {"/static": "staticfiles", "/media": "media"},
        }

    def release(self, name: str, hosts: tuple[str, ...] = HOSTS, **changed: object) -> str:
        """Deploy it under a name; returns what is said, whether or not it goes well."""
        commit(self.folder, name)
        return self.deploy("--data", f"release={name}", hosts=hosts, **changed)

    def deploy(self, *options: str, hosts: tuple[str, ...] = HOSTS, **changed: object) -> str:
        data = {**self.settings, **changed}
        retired = [host for host in HOSTS if host not in hosts]
        self.fleet.hosts(["drakar"], [(host, data) for host in hosts], retired)
        return output(self.fleet.deploy(*options, check=False))

    def serving(self) -> set[str]:
        return {*self.fleet.releases().values()}

    def ran(self) -> dict[str, list[str]]:
        """For which releases app_release ran, on each host."""
        listed = {host: self.on(host, "cat media/ran 2>/dev/null || true") for host in HOSTS}
        return {host: text.split() for host, text in listed.items() if text}

    def on(self, host: str, command: str) -> str:
        folder = f"/srv/{APP}/current/source"
        return str(self.lab.ssh(host, f"sudo sh -c 'cd {folder} && {command}'").stdout)


@pytest.fixture(scope="module")
def project(fleet: SharedFleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Project:
    for host in HOSTS:  # a run that was killed may have left it, as it is meant to stay
        lab.ssh(host, f"sudo rm -rf {SHARED}")
    return Project(fleet, lab, tmp_path_factory.mktemp("django"))


def fetch(lab: Lab, host: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{lab.address(host)}:2001{path}", timeout=5) as answer:
        return str(answer.read().decode())


def test_it_is_built_everywhere_and_migrated_once(project: Project, lab: Lab) -> None:
    build = ["tree -o static/tree.txt", "python manage.py collectstatic --noinput"]
    said = project.release("r1", app_build=build, app_build_packages=["tree"])
    assert "Applying log.0001_first... OK" in said, said
    project.fleet.verify("--probe")
    (first,) = project.ran()
    assert project.ran() == {first: ["r1"]}
    assert fetch(lab, first, "/entries") == "0"
    for host in HOSTS:
        assert "DJANGO" in fetch(lab, host, "/static/admin/css/base.css")
        assert "manage.py" in fetch(lab, host, "/static/tree.txt")
        assert lab.ssh(host, "hello && ! command -v tree").stdout == "Hello, world!\n"
        owned = project.on(host, "stat -Lc %U:%a media media/chart.txt; stat -c %U staticfiles")
        assert owned.split() == [f"{APP}:750", f"{APP}:640", "root"]
    assert project.fleet.changes("--data", "release=r1") == {}


def test_what_it_began_with_is_kept_and_a_second_try_migrates_nothing(
    project: Project, lab: Lab
) -> None:
    (first,) = project.ran()
    project.on(first, "echo rum >media/upload")
    project.migration("0002_second", "0001_first", 'apps.get_model("log.Entry").objects.create()')
    said = project.release("r2", app_env={"SINK": "1"})
    assert "a leak below the waterline" in said and "Applying log.0002_second... OK" in said, said
    assert "rum-in-the-hold" not in said
    assert project.serving() == {"r1"}
    said = project.deploy("--data", "release=r2")
    # On whichever host comes first in a run.
    ran = {host for host in HOSTS if f"app_release: ran for r2 on {host} at " in said}
    assert len(ran) == 1, said
    assert project.serving() == {"r2"}
    (second,) = ran
    expected = {first: ["r1"]}
    expected.setdefault(second, []).append("r2")
    assert project.ran() == expected
    assert fetch(lab, second, "/entries") == "1"
    assert fetch(lab, first, "/media/upload") == "rum\n"


def test_a_build_that_fails_ends_on_its_host_and_a_migration_switches_nothing(
    project: Project, lab: Lab
) -> None:
    before = project.ran()
    (last,) = (host for host, releases in before.items() if "r2" in releases)
    (other,) = {*HOSTS} - {last}
    failing = f"[ $(hostname) = {last} ] || {{ echo $SECRET_KEY; exit 7; }}"
    project.migration("0003_third", "0002_second", 'raise RuntimeError("the anchor drags")')
    said = project.release("r3", app_build=[failing], max_failed_hosts=1)
    assert f"app_build: {failing!r} ended with status 7 on {other}" in said, said
    assert not project.on(other, f"ls -d /srv/{APP}/releases/r3-* 2>/dev/null || true")
    assert "[SECRET_KEY]" in said and "rum-in-the-hold" not in said
    assert "RuntimeError: the anchor drags" in said, said
    assert "app_release: 'python manage.py migrate --noinput' ended with status 1 on" in said
    assert "nothing was switched" in said
    assert project.serving() == {"r2"}
    known = lab.consul("drakar", f"kv get uwsgi-consul-fleet/ran/{APP}").stdout
    assert [each["state"] for each in json.loads(known)["ran"]][-3:] == ["done", "done", "failed"]
    project.fleet.rollback()
    assert project.serving() == {"r1"}
    assert project.ran() == before
    assert fetch(lab, last, "/entries") == "1"


def test_a_host_that_retires_keeps_what_was_shared_until_it_is_back(
    project: Project, lab: Lab
) -> None:
    said = project.deploy("--data", "release=current", hosts=("drakar",))
    assert f"{APP}: removed, but for {SHARED} (app_shared)" in said, said
    assert lab.ssh("cheetah", f"sudo ls /srv/{APP}").stdout == "shared\n"
    project.deploy("--data", "release=current")
    project.fleet.verify("--probe")
    assert project.on("cheetah", "stat -Lc %U media/chart.txt").split() == [APP]
