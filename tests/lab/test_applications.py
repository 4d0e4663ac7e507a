"""Three applications on two hosts, one of them on both with four instances.

The fleet is that of the other files, with its application described in a file: nothing changes by
that. The tests run in the order in which they stand here, each from what the one before it left.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import indent

import attempts
import pytest
from applications import BAD_RELEASES
from described import ALL, DEMO, Described
from fleet_commands import changed, output
from lab_commands import Lab
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(180)

STREAM = """
import time

def application(environ, start):
    start('200 OK', [])
    dots = (time.sleep(0.1) or b'.' for _ in range(6000))
    return dots if environ['PATH_INFO'] == '/stream' else [b'well']
"""
# The processes of applications, each with the moment of its start.
LOOK = """find /proc -maxdepth 1 -name '[0-9]*' \\( {} \\) | while read -r process; do
    echo "$(stat --format %U "$process") $(cut -d' ' -f1,22 "$process/stat")"
done"""


class Operator(Described):
    """A folder of one's own, from which the fleet is deployed."""

    def __init__(self, folder: Path, fleet: SharedFleet) -> None:
        super().__init__(folder, fleet)
        self.lab = fleet.lab
        self.known: dict[tuple[str, str, str, int], str] = {}

    def write(self, name: str, code: str = "") -> None:
        """The source of an application that answers with its name; no run before this had it."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "server.py").write_text(
            f"# {self.folder}\nimport os\ndef application(environ, start):\n"
            f"    start('200 OK', [])\n    return [b'{name}']\n{code}"
        )

    def rows(self, *options: str) -> dict[tuple[str, str, str, int], str]:
        """Each instance in the catalog with its release; it agrees with the inventory."""
        report = json.loads(self.run("invoke", "verify", "--json", "--wait", "30", *options).stdout)
        return {
            (row["node"], row["service"], row["id"], row["port"]): row["release"]
            for row in report["rows"]
            if row["port"]
        }

    def released(self) -> set[tuple[str, str]]:
        """Which services serve something else than when this was asked before, and where."""
        before, self.known = self.known, self.rows()
        return {key[:2] for key in self.known if self.known[key] != before.get(key)}

    def look(self, *names: str) -> set[str]:
        """The processes of these applications, each with its number and the moment of its start."""
        users = " -o ".join(f"-user {name}" for name in names)
        found = {
            f"{host} {line}"
            for host in BOTH
            for line in self.lab.ssh(host, LOOK.format(users)).stdout.splitlines()
        }
        assert {line.split()[1] for line in found} == {*names}
        return found


PORTS = {"server1": 2001, "server2": 2002}
FOUR = {f"s{n}": 3000 + n for n in range(1, 5)}
BOTH = ["drakar", "cheetah"]
# Its name begins as that of the other does.
ADMIN = "shop-admin"
ADMINS = {"app_entry_point": "admin.server:application", "instances": {"web": 4001}}
MORE = {"MemoryMax": "512M", "TasksMax": 99, "MemoryDenyWriteExecute": False}


@pytest.fixture(scope="module")
def own(
    fleet: SharedFleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    yield Operator(tmp_path_factory.mktemp("own"), fleet)


def test_described_in_a_file_nothing_changes(own: Operator) -> None:
    assert own.changes() == {}
    assert own.released() == {(host, DEMO) for host in BOTH}
    assert {*own.known} == {
        (host, DEMO, name, port) for host in BOTH for name, port in PORTS.items()
    }


def test_two_more_come_to_the_same_hosts(own: Operator) -> None:
    own.write("shop")
    own.write("admin", STREAM)
    shop = {"app_entry_point": "shop.server:application", "app_processes": 1}
    own.describe("shop", "shop", instances=FOUR, **shop)
    admin = {"app_entry_point": "admin.server:application"}
    own.describe(ADMIN, "admin", **admin, instances={"web": {"port": 2001, "id": "server2"}})
    own.describe("blog", "shop", **shop, instances={"web": 5001})
    own.groups |= {"shop": BOTH, "shop_admin": ["cheetah"], "shpo": ["drakar"]}
    said = output(own.deploy(check=False))
    for problem in (
        f"cheetah: instances {DEMO}/server1 and {ADMIN}/web have the same port 2001",
        f"cheetah: instances {DEMO}/server2 and {ADMIN}/web have the same id 'server2'",
        "unknown group 'shpo', did you mean 'shop'?",
        "applications/blog.py: has no hosts",
        "nothing was touched",
    ):
        assert problem in said
    own.describe(ADMIN, "admin", **ADMINS)
    (own.folder / "applications/blog.py").unlink()
    del own.groups["shpo"]
    demo = own.look(DEMO)
    own.deploy()
    assert own.look(DEMO) == demo
    assert own.released() == {*((host, "shop") for host in BOTH), ("cheetah", ADMIN)}
    assert {row for row in own.known if row[1] != DEMO} == {
        *((host, "shop", f"shop-{name}", port) for host in BOTH for name, port in FOUR.items()),
        ("cheetah", ADMIN, "shop-admin-web", 4001),
    }


def test_nobody_else_on_a_host_gets_at_one(own: Operator) -> None:
    """Neither another application nor somebody who may nothing; nor the application at more than
    is its own. Root can do each: so it is not a mistake in a command that stops it."""
    tried = attempts.on(own.lab, "cheetah", "shop")
    assert attempts.done(own.lab, "cheetah", "root", tried) == {*tried}
    assert attempts.done(own.lab, "cheetah", "nobody", tried) == set()

    def inside(app: str) -> set[str]:
        words = ("--app", app, "--host", "cheetah", "--", "sh", "-c", attempts.script(tried))
        return {*own.run("invoke", "exec", *words).stdout.splitlines()}

    assert inside(ADMIN) == set()
    own_process = {"environment of a process", "process"}
    assert inside("shop") == {"sources", "socket", "token"} | own_process
    units = attempts.exposure(own.lab, "cheetah", "consul.service", f"{ADMIN}-*.service")
    assert len(units) == 2 and max(units.values()) <= 2, units


def test_more_is_allowed_by_settings(own: Operator) -> None:
    own.describe(ADMIN, "admin", **ADMINS, app_unit=MORE, app_writable=["/srv/uploads"])
    own.deploy()
    shown = "systemctl show --property MemoryMax,TasksMax,MemoryDenyWriteExecute"
    told = own.lab.ssh("cheetah", f"{shown} '{ADMIN}-4001@*.service'").stdout.split()
    assert {*told} == {f"MemoryMax={2**29}", "TasksMax=99", "MemoryDenyWriteExecute=no"}
    tried = "touch /srv/uploads/a && stat -c %U:%a /srv/uploads; touch /srv/a /tmp/a"
    words = ("--app", ADMIN, "--host", "cheetah", "--", "sh", "-c", tried)
    told_all = own.run("invoke", "exec", *words, check=False)
    assert told_all.stdout == f"{ADMIN}:750\n"
    assert "touch: cannot touch '/srv/a': Read-only file system" in output(told_all)
    (figure,) = attempts.exposure(own.lab, "cheetah", f"{ADMIN}-*.service").values()
    assert figure <= 2


def test_a_release_of_one_touches_nothing_of_the_others(own: Operator) -> None:
    own.write("shop", "# another\n")
    before = own.look(DEMO, ADMIN)
    with socket.create_connection((own.lab.address("cheetah"), 4001), timeout=10) as client:
        client.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        assert client.recv(1)
        assert {name.partition(":")[0] for name in own.changes()} == {"shop"}
        client.setblocking(False)
        with suppress(BlockingIOError):
            while client.recv(2**16):
                pass
        client.settimeout(10)
        assert client.recv(1) == b"."
    assert own.look(DEMO, ADMIN) == before
    assert own.released() == {(host, "shop") for host in BOTH}


def test_one_that_fails_is_put_back_and_the_others_go_on(own: Operator) -> None:
    """On the second host, where the other comes after it."""
    bad = BAD_RELEASES["exits at once"]
    there = indent(f"import os\n{bad.code}", "    ")
    own.write("shop", f"import socket\nif socket.gethostname() == 'cheetah':\n{there}")
    own.write("admin", f"{STREAM}# another\n")
    result = own.deploy(check=False)
    said = output(result)
    assert result.returncode == 1
    assert bad.says in said and "cheetah: failed: shop; see above" in said
    assert own.released() == {("cheetah", ADMIN)}
    assert len(own.known) == 2 * len(PORTS) + 2 * len(FOUR) + 1


def test_a_deploy_for_one_alone_knows_nothing_of_the_others(own: Operator) -> None:
    """It is taken from a host, on which the other stays as it is, though its code is another."""
    own.write("shop", "# a third\n")
    own.write("admin", "os._exit(1)")
    own.groups["shop"] = ["drakar"]
    others = own.look(DEMO, ADMIN)
    result = own.deploy("--json", "--data", "app=shop")
    found = changed(result)
    assert found.pop("Application: stop it and remove it") == ["cheetah"]
    assert {name.partition(":")[0] for name in found} == {"shop"}
    assert ADMIN not in output(result) and f"{DEMO}: " not in output(result)
    assert own.look(DEMO, ADMIN) == others
    assert own.released() == {("drakar", "shop")}
    assert ("cheetah", "shop") not in {row[:2] for row in own.known}
    left = "getent passwd shop; ls -d /srv/shop* /etc/uwsgi-consul-fleet/shop*"
    there = own.lab.ssh("cheetah", left).stdout.split()
    assert there == [f"/etc/uwsgi-consul-fleet/{ADMIN}.conf", f"/srv/{ADMIN}"]


def test_commands_are_about_one_of_them(own: Operator) -> None:
    said = output(own.run("invoke", "rollback", check=False))
    assert f"there are several applications: --app {DEMO}|shop|{ADMIN}" in said
    others = own.look(DEMO, ADMIN)
    own.run("invoke", "rollback", "--app", "shop")
    assert own.released() == {("drakar", "shop")}
    assert own.look(DEMO, ADMIN) == others
    assert {row[1] for row in own.rows("--app", "shop")} == {"shop"}
    (listed,) = json.loads(own.run("invoke", "releases", "--json", "--app", "shop").stdout)
    assert (listed["node"], listed["service"]) == ("drakar", "shop")
    found = json.loads(own.run("invoke", "audit", "--json", "--app", ADMIN).stdout)
    assert found and all(ADMIN in each["releases"] for each in found)
    assert found[-1]["outcome"] == "failed"
    shown = own.run("invoke", "client", "--once", "--app", "shop").stdout
    assert "3001" in shown and "4001" not in shown


def test_those_that_are_taken_from_all_hosts_leave_the_other(own: Operator) -> None:
    own.groups |= {"shop": [], "shop_admin": []}
    demo = own.look(DEMO)
    result = own.deploy("--json")
    changes = changed(result)
    # Their tokens, by the server.
    assert changes.pop("Consul: forget secrets that nobody uses") == ["drakar"]
    ((name, hosts),) = changes.items()
    assert (name, {*hosts}) == ("Application: stop it and remove it", {*BOTH})
    assert f"{ADMIN} is taken from those that have it" in output(result)
    assert own.look(DEMO) == demo
    assert {row[1] for row in own.rows()} == {DEMO}
    left = "ls /srv /etc/uwsgi-consul-fleet /etc/systemd/system; getent passwd shop shop-admin"
    for host in BOTH:
        assert "shop" not in own.lab.ssh(host, left, check=False).stdout


def test_where_the_settings_name_one_the_files_are_not_read(own: Operator) -> None:
    own.groups = {"consul_servers": ["drakar"], "app_servers": BOTH}
    one = {"app_name": DEMO, "app_source": "app", "app_entry_point": "app.server:application"}
    lines = (f"{key} = {value!r}\n" for key, value in {**one, "instances": PORTS}.items())
    (own.folder / "group_data/all.py").write_text(f"{ALL}{''.join(lines)}")
    result = own.deploy("--json")
    assert changed(result) == {}
    assert "applications/ is not read: the data of hosts set app_name" in output(result)
