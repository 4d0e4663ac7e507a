"""The wheel, installed where there is no checkout, in a folder of an operator's own."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import wheel
from checkout import ROOT
from wheel import run

pytestmark = pytest.mark.takes(15)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with wheel.installed(built, tmp_path_factory.mktemp("installed") / "environment") as found:
        yield found


@pytest.fixture
def folder(environment: Path, tmp_path: Path) -> Path:
    """A new one, edited; with packages of the names that are taken at the top of a checkout."""
    (tmp_path / "my shop").mkdir()
    (tmp_path / "my shop/main.py").write_text("def application(environ, start_response): ...\n")
    made = run(environment, tmp_path, "uwsgi-consul-fleet", "new", "ops", "--app", "my shop")
    assert made.returncode == 0, made.stderr
    place = tmp_path / "ops"
    for name in ("app", "fleet", "plugin_build"):
        (place / name).mkdir()
    for name in ("app", "deploy", "fleet", "plugin_build"):
        (place / name / "__init__.py").write_text("raise Exception('the operator's own')\n")
    inventory = (place / "inventory.py").read_text()
    inventory = inventory.replace('["drakar"]', '["@fake/one"]')
    hosts = '["@fake/one", ("@fake/two", {"address": "10.0.0.2"})]'
    (place / "inventory.py").write_text(inventory.replace('["drakar", "cheetah"]', hosts))
    with (place / "group_data/all.py").open("a") as file:
        file.write(FAKE)
    ours = (place / "deploy/__main__.py").read_text()
    own = 'from pyinfra.operations import server\nserver.shell(name="Shop: {}", commands="true")\n'
    text = f"{own.format('before')}{ours}{own.format('after')}"
    (place / "deploy/__main__.py").write_text(text)
    return place


FAKE = """
address = "10.0.0.1"
consul_source = "debian"
fake_delay = fake_delay_jitter = 0
fake_responses = {"uname -s": "Linux", "command -v useradd": "/usr/sbin/useradd"}
"""


def test_a_wheel_has_one_name_at_its_top_and_all_files_of_the_package(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"uwsgi_consul_fleet"}
    package = ROOT / "uwsgi_consul_fleet"
    expected = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if "/_shipped/" not in name} == expected
    shipped = {name.partition("/_shipped/")[2] for name in names if "/_shipped/" in name}
    sources = {f"plugin_build/src/{path.name}" for path in (ROOT / "plugin_build/src").iterdir()}
    assert shipped >= {"deploy/__main__.py", "plugin_build/uwsgiplugin.py", *sources}
    assert shipped >= {"inventory.py", "tasks.py", "group_data/all.py"}
    assert shipped >= {"app/client.py", "app/server.py", "app/uwsgi.ini.j2", "app/requirements.txt"}
    assert not [name for name in shipped if "dist" in name]


def test_it_finds_its_files_and_keeps_plugins_in_the_operators_folder(
    environment: Path, folder: Path
) -> None:
    program = """
import pkgutil, importlib, uwsgi_consul_fleet as package
from uwsgi_consul_fleet.build import identity, source
from uwsgi_consul_fleet.shipped import shipped
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if "._shipped" not in module.name and "__main__" not in module.name:
        importlib.import_module(module.name)
for name in ("deploy/__main__.py", "plugin_build/src/plugin.c", "app/client.py"):
    assert shipped(name).is_file(), name
print(package.__file__, identity.DIST, len(source.own().files))
"""
    result = run(environment, folder, "python", "-c", program)
    assert result.returncode == 0, result.stderr
    where, dist, count = result.stdout.split()
    assert where.startswith(str(environment))
    assert dist == str(folder / "plugin_build/dist")
    assert int(count) > 10


def test_a_deploy_of_the_operators_own_includes_ours(environment: Path, folder: Path) -> None:
    result = run(environment, folder, "pyinfra", "--dry", "inventory.py", "deploy/")
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    order = ["Shop: before", "uWSGI: install it", "Consul: run the servers", "Application: switch"]
    assert "_shipped" not in said  # the path of our file before each name
    positions = [said.index(word) for word in (*order, "the roll-out is over", "Shop: after")]
    assert positions == sorted(positions), said


def test_its_commands_run_in_the_operators_folder(environment: Path, folder: Path) -> None:
    listed = run(environment, folder, "invoke", "--list")
    assert "build-plugin" in listed.stdout, listed.stderr
    # As far as one comes without a host.
    result = run(environment, folder, "invoke", "verify")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "no Consul server can be asked" in result.stderr


def test_a_new_folder_is_ready_for_its_commands(environment: Path, tmp_path: Path) -> None:
    made = run(environment, tmp_path, "uwsgi-consul-fleet", "new", "fleet")
    assert made.returncode == 0, made.stderr
    place = tmp_path / "fleet"
    listed = run(environment, place, "invoke", "--list")
    assert "build-plugin" in listed.stdout, listed.stderr
    known = run(environment, place, "pyinfra", "inventory.py", "debug-inventory", "--json")
    assert known.returncode == 0, known.stderr
    hosts = {host["name"]: host for host in json.loads(known.stdout)}
    assert {*hosts} == {"drakar", "cheetah"}
    assert hosts["cheetah"]["data"]["fleet"] == "fleet"


def test_its_lab_is_that_of_the_operators_folder(environment: Path, folder: Path) -> None:
    below = folder / "applications"
    result = run(environment, below, "invoke", "lab.status")
    assert result.returncode == 0, result.stderr
    assert "no machines" in result.stdout
    program = "from uwsgi_consul_fleet import lab; print(lab.FOLDER)"
    assert run(environment, below, "python", "-c", program).stdout == f"{folder}/.lab\n"
