"""Three applications on two hosts, one of them on both with four instances.

The fleet is that of the other files, with its application described in a file: nothing changes by
that. The tests run in the order in which they stand here, each from what the one before it left.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import consul_version
import pytest
from applications import BAD_RELEASES
from checkout import ROOT
from fleet_commands import changed, output, run
from lab_commands import Lab
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(90)

DEMO = "consul-demo-server"
ALL = f"""\
ssh_config_file = "{ROOT}/.lab/ssh_config"
_sudo = True
app_requirements = None
min_healthy_time = 1
app_ini = "app/uwsgi.ini.j2"
{consul_version.settings()}
"""
# Of each unit of an application: its process, and how much it has said.
LOOK = """for unit in $(systemctl list-units --plain --no-legend '{}-*@*' | cut -d' ' -f1); do
    echo "$unit $(systemctl show --property MainPID --value "$unit")" \\
        "$(sudo journalctl --quiet --unit "$unit" --output cat | wc -l)"
done"""


class Operator:
    """A folder of one's own, from which the fleet is deployed."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        self.folder = folder
        self.lab = lab
        self.groups: dict[str, list[Any]] = {
            "consul_servers": ["drakar"],
            DEMO.replace("-", "_"): ["drakar", "cheetah"],
        }
        for name in ("applications", "group_data"):
            (folder / name).mkdir()
        (folder / "group_data/all.py").write_text(ALL)
        for name in ("app", "plugin_build", "tasks.py"):
            (folder / name).symlink_to(ROOT / name)
        demo = {name: {"port": port, "id": name} for name, port in PORTS.items()}
        self.describe(DEMO, "app", app_entry_point="app.server:application", instances=demo)

    def describe(self, name: str, source: str, **settings: Any) -> None:
        lines = {"app_source": source, **settings}
        text = "".join(f"{key} = {value!r}\n" for key, value in lines.items())
        (self.folder / f"applications/{name}.py").write_text(text)

    def write(self, name: str, code: str = "") -> None:
        """The source of an application that answers with its name."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "server.py").write_text(
            "import os\ndef application(environ, start):\n"
            f"    start('200 OK', [])\n    return [b'{name}']\n{code}"
        )

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        lines = (f"{name} = {hosts!r}\n" for name, hosts in self.groups.items())
        (self.folder / "inventory.py").write_text("".join(lines))
        return run(*words, check=check, cwd=self.folder)

    def deploy(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("pyinfra", "-y", *options, "inventory.py", f"{ROOT}/deploy/", check=check)

    def changes(self, *options: str) -> dict[str, list[str]]:
        return changed(self.deploy("--json", *options))

    def rows(self, *options: str) -> set[tuple[str, str, str, int]]:
        """Each instance that the catalog has, which agrees with the inventory."""
        report = json.loads(self.run("invoke", "verify", "--json", "--wait", "10", *options).stdout)
        return {
            (row["node"], row["service"], row["id"], row["port"])
            for row in report["rows"]
            if row["port"]
        }

    def releases(self) -> dict[tuple[str, str], str]:
        """What serves, by service and host."""
        found = json.loads(self.run("invoke", "releases", "--json").stdout)
        return {
            (each["service"], each["node"]): one["release"]
            for each in found
            for one in each["releases"]
            if one["current"]
        }

    def look(self, *names: str) -> set[str]:
        """The instances of these applications, each with its process and how much it has said."""
        return {
            f"{host}: {line}"
            for host in ("drakar", "cheetah")
            for line in self.lab.ssh(host, "\n".join(map(LOOK.format, names))).stdout.splitlines()
        }


PORTS = {"server1": 2001, "server2": 2002}
FOUR = {f"s{n}": 3000 + n for n in range(1, 5)}


@pytest.fixture(scope="module")
def own(
    fleet: SharedFleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    yield Operator(tmp_path_factory.mktemp("own"), lab)


def test_described_in_a_file_nothing_changes(own: Operator) -> None:
    assert own.changes() == {}
    assert own.rows() == {
        (host, DEMO, name, port) for host in ("drakar", "cheetah") for name, port in PORTS.items()
    }


def test_two_more_come_to_the_same_hosts(own: Operator) -> None:
    own.groups |= {"shop": ["drakar", "cheetah"], "blog": ["drakar"]}
    own.write("shop")
    own.write("blog")
    shop = {"app_entry_point": "shop.server:application", "app_processes": 1}
    own.describe("shop", "shop", instances=FOUR, batch="100%", health_path="/", **shop)
    blog = {"app_entry_point": "blog.server:application", "instances": {"web": 2001}}
    own.describe("blog", "blog", **blog)
    said = output(own.deploy(check=False))
    assert f"drakar: instances {DEMO}/server1 and blog/web have the same port 2001" in said
    own.describe("blog", "blog", **{**blog, "instances": {"web": 4001}})
    demo = own.look(DEMO)
    own.deploy()
    assert own.look(DEMO) == demo
    assert {row for row in own.rows() if row[1] != DEMO} == {
        *(
            (host, "shop", f"shop-{s}", port)
            for host in ("drakar", "cheetah")
            for s, port in FOUR.items()
        ),
        ("drakar", "blog", "blog-web", 4001),
    }
    assert own.changes() == {}


def test_a_release_of_one_touches_nothing_of_the_others(own: Operator) -> None:
    own.write("shop", "# another\n")
    others, serving = own.look(DEMO, "blog"), own.releases()
    found = own.changes()
    assert {name.partition(":")[0] for name in found} == {"shop"}
    assert own.look(DEMO, "blog") == others
    now = own.releases()
    assert {key for key in now if now[key] != serving[key]} == {
        ("shop", "drakar"),
        ("shop", "cheetah"),
    }


def test_one_that_fails_is_put_back_and_the_others_go_on(own: Operator) -> None:
    """blog comes before shop, on the same host."""
    bad = BAD_RELEASES["exits at once"]
    own.write("blog", f"import os\n{bad.code}")
    own.write("shop", "# a third\n")
    before = own.releases()
    result = own.deploy(check=False)
    assert result.returncode == 1
    assert bad.says in output(result)
    assert "drakar: failed: blog; see above" in output(result)
    now = own.releases()
    assert now["blog", "drakar"] == before["blog", "drakar"]
    assert all(now["shop", host] != before["shop", host] for host in ("drakar", "cheetah"))
    assert ("drakar", "blog", "blog-web", 4001) in own.rows()


def test_a_deploy_for_one_alone_knows_nothing_of_the_others(own: Operator) -> None:
    """The blog's code is still what does not start."""
    said = output(own.deploy("--data", "app=shp", check=False))
    assert f"no application 'shp', did you mean 'shop'?; there are: blog, {DEMO}, shop" in said
    own.write("shop", "# a fourth\n")
    others = own.look(DEMO, "blog")
    result = own.deploy("--json", "--data", "app=shop")
    assert {name.partition(":")[0] for name in changed(result)} == {"shop"}
    assert "shop: releases" in result.stderr
    assert "blog" not in output(result) and f"{DEMO}: " not in output(result)
    assert own.look(DEMO, "blog") == others


def test_commands_are_about_one_of_them(own: Operator) -> None:
    assert {row[1] for row in own.rows("--app", "shop")} == {"shop"}
    said = output(own.run("invoke", "rollback", check=False))
    assert f"there are several applications: --app blog|{DEMO}|shop" in said
    before, others = own.releases(), own.look(DEMO, "blog")
    own.run("invoke", "rollback", "--app", "shop")
    now = own.releases()
    assert {key[0] for key in now if now[key] != before[key]} == {"shop"}
    assert own.look(DEMO, "blog") == others
    found = json.loads(own.run("invoke", "audit", "--json", "--app", "blog").stdout)
    assert found and all("blog" in each["releases"] for each in found)
    assert found[-1]["outcome"] == "failed"
    shown = own.run("invoke", "client", "--once", "--app", "blog").stdout
    assert "4001" in shown and "3001" not in shown
    listed = own.run("invoke", "releases", "--app", "blog").stdout
    assert "serves" in listed and "cheetah" not in listed


def test_one_that_is_taken_from_a_host_leaves_the_others(own: Operator) -> None:
    own.groups["shop"] = ["drakar"]
    own.groups["blog"] = []
    demo = own.look(DEMO)
    result = own.deploy("--json")
    assert changed(result) == {"Application: stop it and remove it": ["drakar", "cheetah"]}
    assert "blog is taken from those that have it" in output(result)
    assert own.look(DEMO) == demo
    assert {row[:2] for row in own.rows()} == {
        ("drakar", DEMO),
        ("cheetah", DEMO),
        ("drakar", "shop"),
    }
    left = "ls /srv /etc/uwsgi-consul-fleet /etc/systemd/system; getent passwd shop blog; true"
    assert "shop" not in own.lab.ssh("cheetah", left).stdout
    assert "blog" not in own.lab.ssh("drakar", left).stdout


def test_where_the_settings_name_one_the_files_are_not_read(own: Operator) -> None:
    own.groups["shop"] = []
    own.deploy()
    own.groups = {"consul_servers": ["drakar"], "app_servers": ["drakar", "cheetah"]}
    one = {"app_name": DEMO, "app_source": "app", "app_entry_point": "app.server:application"}
    lines = (f"{key} = {value!r}\n" for key, value in {**one, "instances": PORTS}.items())
    (own.folder / "group_data/all.py").write_text(f"{ALL}{''.join(lines)}")
    result = own.deploy("--json")
    assert changed(result) == {}
    assert "applications/ is not read: the data of hosts set app_name" in output(result)
