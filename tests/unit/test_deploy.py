"""What the deploy decides and renders, without a host."""

import configparser
import inspect
import io
import json
import re
import tarfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sources
from pyinfra.api import util

from uwsgi_consul_fleet.build import builder, identity
from uwsgi_consul_fleet.build.source import Source
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.operations.applications import environment
from uwsgi_consul_fleet.operations.applications.package import Package, make
from uwsgi_consul_fleet.operations.applications.release import _read, made_by, read
from uwsgi_consul_fleet.operations.files import RemoteFile
from uwsgi_consul_fleet.operations.plan import DeployError, inventory_file, refuse_own_order
from uwsgi_consul_fleet.operations.state import AppState, FileState, UnitState, ask, parse
from uwsgi_consul_fleet.ssh import connection

ROOT = Path(__file__).resolve().parents[2]


PLUGIN = RemoteFile("/opt/plugins/1/consul_plugin.so", b"")
PYTHON = "cpython-311-x86_64-linux-gnu-2.36"
NEXT_PYTHON = "cpython-313-x86_64-linux-gnu-2.41"


def host_with(**settings: Any) -> AppHost:
    ours = {
        "app_requirements": str(ROOT / "app/requirements.txt"),
        "app_ini": str(ROOT / "app/uwsgi.ini.j2"),
        "instances": {"server1": 2001, "server2": {"port": 2002, "id": "two"}},
    }
    return sources.host(ROOT / "app", **{**ours, **settings})


def package_of(**settings: Any) -> Package:
    _read.cache_clear()
    host = host_with(**settings)
    release = read(host.settings)
    return make(host, replace(release, resolution=made_by(release)))


@pytest.fixture
def package() -> Package:
    return package_of()


def archive_of(package: Package) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(package.archive())))


# --- The state of a host ---


def test_state_is_read_from_its_lines() -> None:
    found = parse(
        [
            "architecture amd64",
            "of shop fingerprint 0123456789abcdef",
            "of shop uwsgi /usr/bin/uwsgi 2.0.21-debian",
            "of shop app_python_at /usr/bin/python3",
            "of blog ",
            "user consul",
            "package uwsgi-core installed",
            "package nftables not-installed",
            "uwsgi_plugin python3_plugin.so",
            "file 640 root consul /etc/uwsgi-consul-fleet/consul.d/consul.json",
            f"{'a' * 64}  /etc/uwsgi-consul-fleet/consul.d/consul.json",
            "consul_binary debian-bullseye",
            "consul_in_use debian-bullseye",
            "consul_running 77aa",
            "consul_raft yes",
            'consul {"leader": "10.0.0.1:8300", "peers": ["10.0.0.1:8300", "10.0.0.2:8300"]}',
            "release abc-123",
            "application shop 2001 2002",
            "application blog",
            "/etc/uwsgi-consul-fleet/agent/token",
            "app_python /usr/bin/python3 cpython-311-x86_64-linux-gnu-2.36",
            'of shop generation r1-1a2b3c4d {"requirements": "0123", "resolution": "4567"}',
            "of shop resolution_kept 4567/cpython-311-x86_64-linux-gnu-2.36/requirements.txt",
            "id shop server1",
            "id shop two",
            "unit consul.service active no enabled",
            "unit demo-2001@abc-123.service inactive no ",
            "unit demo-2001@abc-124.service activating yes disabled",
        ]
    )
    its = found.of("shop")
    assert its.uwsgi == identity.Uwsgi("0123456789abcdef", "/usr/bin/uwsgi", "2.0.21-debian")
    config = found.files["/etc/uwsgi-consul-fleet/consul.d/consul.json"]
    assert config == FileState("640", "root", "consul", "a" * 64)
    assert found.units["consul.service"] == UnitState("active", "enabled")
    assert found.units["demo-2001@abc-124.service"].stale
    ours = re.compile(r"demo-\d+@.+\.service")
    assert found.active_units(ours) == {"demo-2001@abc-124.service"}
    assert (found.consul_in_use, found.consul_running) == ("debian-bullseye", "77aa")
    assert (found.consul_raft, found.consul_leader) == ("yes", "10.0.0.1:8300")
    assert found.applications == {"shop": {2001, 2002}, "blog": set()}
    assert found.ids == {"shop": {"server1", "two"}}
    assert found.packages == {"uwsgi-core"}
    assert found.uwsgi_plugins == {"python3"}
    assert found.agent_files == {"/etc/uwsgi-consul-fleet/agent/token"}
    assert found.consul_peers == ("10.0.0.1:8300", "10.0.0.2:8300")
    assert not found.consul_problem
    assert its.generations == {"r1-1a2b3c4d": {"requirements": "0123", "resolution": "4567"}}
    assert its.resolutions == {("4567", its.python)}
    assert (its.python, its.python_closed) == ("cpython-311-x86_64-linux-gnu-2.36", "")
    assert found.of("blog") == found.of("none") == AppState()


@pytest.mark.parametrize("answer", ["", '{"problem": "Consul does not answer"}'])
def test_a_server_that_could_not_be_asked_is_no_new_one(answer: str) -> None:
    found = parse(["consul_raft yes", f"consul {answer}"])
    assert found.consul_raft
    assert not found.consul_peers
    assert found.consul_problem


def test_a_host_without_anything() -> None:
    found = parse(["architecture arm64", "unit consul.service inactive no "])
    assert not found.apps
    assert not found.files
    assert found.architecture == "arm64"


@pytest.mark.parametrize("described", [True, False])
def test_what_a_version_before_made_is_described_where_limit_leaves_its_host_out(
    monkeypatch: pytest.MonkeyPatch, described: bool
) -> None:
    digests = {"release": "r1", "sources": "0a", "requirements": "1b"}

    def run_script(connection: None, script: str, stdin: bytes) -> SimpleNamespace:
        if "describe consul-demo-server r1-1a2b" not in script:
            its = ['generation r1-1a2b {"release": "r1"}', 'generation r0-0000 {"release": "r0"}']
            its.append("current_generation r1-1a2b")
            said = "\n".join(f"of consul-demo-server {line}" for line in its)
            return SimpleNamespace(stdout=said.encode(), exit_code=0)
        return SimpleNamespace(stdout=json.dumps(digests), exit_code=0 if described else 1)

    monkeypatch.setattr(connection, "connect", lambda host: nullcontext())
    monkeypatch.setattr(connection, "run_script", run_script)
    found = ask(host_with())
    assert found
    expected = digests if described else {"release": "r1"}
    its = found.of("consul-demo-server")
    assert its.generations == {"r1-1a2b": expected, "r0-0000": {"release": "r0"}}


# --- What is rendered ---


def test_each_instance_has_an_ini_that_registers_it(package: Package) -> None:
    for port, name in ((2001, "server1"), (2002, "two")):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(package.files[f"{port}.ini"].content.decode())
        ini = parser["uwsgi"]
        assert ini["socket"] == "fd://3"
        assert ini["plugins"] == "python3,%dconsul_plugin.so"
        pairs = dict(pair.split("=", 1) for pair in ini["consul-register"].split(","))
        assert (pairs["id"], pairs["port"]) == (name, str(port))
        assert (pairs["name"], pairs["address"]) == ("consul-demo-server", "10.0.3.11")
        assert pairs["meta"] == f"release:{package.release.name} generation:%c"


def test_units_belong_together(package: Package) -> None:
    units = {name for name in package.files if name.startswith("units/")}
    assert units == {
        "units/2001.service",
        "units/2001.socket",
        "units/2002.service",
        "units/2002.socket",
        "units/app.target",
        "units/trial.service",
    }
    service = package.files["units/2001.service"].content.decode()
    assert "ListenStream=10.0.3.11:2001\n" in package.files["units/2001.socket"].content.decode()
    assert "Sockets=consul-demo-server-2001.socket\n" in service
    assert "UnsetEnvironment=LISTEN_PID LISTEN_FDS" in service
    assert "KillSignal=SIGHUP\n" in service
    # As host/switch.py calls it.
    assert "Environment=RELEASE_LOCK=/run/uwsgi-consul-fleet.switch-consul-demo-server\n" in service
    # A trial must never have what clients connect to.
    assert "Sockets=" not in package.files["units/trial.service"].content.decode()


BY_NAME = "[uwsgi]\nif-not-env = RELEASE_TRIAL\nsocket = :{{ instance.port }}\nend-if =\n"


def units_of(**settings: object) -> tuple[str, str]:
    files = package_of(**settings).files
    found = [files[f"units/2001.{kind}"].content.decode() for kind in ("socket", "service")]
    return found[0], found[1]


def test_a_socket_listens_where_its_host_is_reached() -> None:
    listens, _ = units_of(address="fd00::b")
    assert "ListenStream=[fd00::b]:2001\n" in listens
    listens, _ = units_of(address="fd00::b", app_listen="all")
    assert "ListenStream=[::]:2001\n" in listens
    listens, _ = units_of(app_listen="all")
    assert "ListenStream=0.0.0.0:2001\n" in listens


def test_an_ini_that_names_its_socket_finds_it_where_it_always_was(tmp_path: Path) -> None:
    template = tmp_path / "own.ini.j2"
    template.write_text(BY_NAME)
    listens, service = units_of(app_ini=str(template), address="fd00::b")
    assert "ListenStream=0.0.0.0:2001\n" in listens
    assert "UnsetEnvironment" not in service


def test_plugins_that_an_ini_loads_by_name_are_known(tmp_path: Path) -> None:
    template = tmp_path / "own.ini.j2"
    template.write_text(f"{BY_NAME}plugins = 0:python3, gevent_python3,%dconsul_plugin.so\n")
    assert package_of(app_ini=str(template)).uwsgi_plugins == {"python3", "gevent_python3"}


def test_what_a_trial_can_not_hold_back_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "own.ini.j2"
    template.write_text(
        BY_NAME.replace("end-if", "exec-as-root = a\nend-if") + "exec-pre-app = b\n"
    )
    package_of(app_ini=str(template))
    assert "a trial of a release runs exec-pre-app too" in caplog.text


def test_an_ini_that_can_not_be_tried_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "old.ini.j2"
    template.write_text("[uwsgi]\nsocket = :{{ instance.port }}\n")
    with pytest.raises(DeployError, match="if-not-env = RELEASE_TRIAL"):
        package_of(app_ini=str(template))


def test_the_archive_holds_the_release_and_is_reproducible(package: Package) -> None:
    content = b"".join(package.archive())
    assert content == b"".join(package_of().archive())
    with archive_of(package) as opened:
        names = opened.getnames()
        assert opened.getmember("environment").mode == 0o600
        assert opened.getmember("app/server.py").mode == 0o644
    assert {"app/server.py", "app/client.py", "requirements.txt", "2001.ini"} <= set(names)


# --- The generation: what makes a release another one on a host ---


@pytest.mark.parametrize(
    "setting",
    [{"app_processes": 3}, {"stop_timeout": 31}, {"app_env": {"A": "1"}}, {"health_path": "/"}],
)
def test_a_changed_setting_is_another_generation(
    package: Package, setting: dict[str, object]
) -> None:
    other = package_of(**setting)
    assert other.generation(PLUGIN, PYTHON) != package.generation(PLUGIN, PYTHON)
    assert other.release.name == package.release.name


def test_what_does_not_matter_on_the_host_is_the_same_generation(package: Package) -> None:
    for setting in ({"keep_releases": 9}, {"batch": 3}, {"consul_version": "1.20.0"}):
        assert package_of(**setting).generation(PLUGIN, PYTHON) == package.generation(
            PLUGIN, PYTHON
        )
    assert package.generation(RemoteFile("/opt/plugins/2/x", b""), PYTHON) != package.generation(
        PLUGIN, PYTHON
    )


def test_what_requirements_include_is_released_with_them(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("-c limits.txt\nflask\n")
    (tmp_path / "limits.txt").write_text("flask==3.0\n")
    found = package_of(app_requirements=str(tmp_path / "own.txt"))
    with archive_of(found) as archive:
        given = archive.extractfile("requirements.d/own.txt")
        assert given and given.read() == b"-c limits.txt\nflask\n"
        assert "requirements.d/limits.txt" in archive.getnames()
    (tmp_path / "limits.txt").write_text("flask==3.1\n")
    other = package_of(app_requirements=str(tmp_path / "own.txt"))
    assert other.environment(PYTHON) != found.environment(PYTHON)
    assert other.generation(PLUGIN, PYTHON) != found.generation(PLUGIN, PYTHON)


def test_another_python_is_another_generation_where_it_matters(package: Package) -> None:
    """As after an upgrade of Debian: the virtual environment is of the Python that is gone."""
    assert package.generation(PLUGIN, NEXT_PYTHON) != package.generation(PLUGIN, PYTHON)
    without = package_of(app_requirements=None)
    assert without.environment(PYTHON) == "-"
    assert without.generation(PLUGIN, NEXT_PYTHON) == without.generation(PLUGIN, PYTHON)


def test_a_given_name_is_the_releases(package: Package) -> None:
    host = host_with()
    named = make(host, replace(read(host.settings), name="spring"))
    assert named.release.name == "spring"
    assert named.generation(PLUGIN, PYTHON).startswith("spring-")
    assert b"release:spring" in named.files["2001.ini"].content


# --- The application's environment ---


def secrets_of(file: Path, *names: str) -> dict[str, str]:
    environment._file.cache_clear()
    settings = host_with(app_secrets=names, app_secrets_file=str(file)).settings
    return environment.variables(settings)


def test_secrets_come_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secrets"
    file.write_text("# ours\n\nAPI_KEY=a=b \nBOTH = the same\nOTHER=1\n")
    monkeypatch.setenv("DB", "from outside")
    monkeypatch.setenv("BOTH", "the same")
    found = {"DB": "from outside", "API_KEY": "a=b", "BOTH": "the same"}
    assert secrets_of(file, *found) == found


def test_a_secrets_file_is_read_as_dotenv_files_are_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ABCDEF":
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / ".env"
    file.write_text(
        "\ufeffexport A='one two' # ours\nB=\"x#y\" # a comment\nC=pa#ss # more\n"
        'D=$A-${A}\nE="a\\nb"\nF=\n'
    )
    found = {"A": "one two", "B": "x#y", "C": "pa#ss", "D": "$A-${A}", "E": "a\nb", "F": ""}
    assert secrets_of(file, *found) == found


def test_two_values_for_a_secret_are_refused_and_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secrets"
    file.write_text("DATABASE_URL=production\n")
    monkeypatch.setenv("DATABASE_URL", "my-own")
    with pytest.raises(DeployError) as caught:
        secrets_of(file, "DATABASE_URL")
    said = str(caught.value)
    assert "DATABASE_URL has one value in this machine's environment and another in " in said
    assert str(file) in said and "production" not in said and "my-own" not in said


def test_a_missing_secret_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DB", raising=False)
    with pytest.raises(DeployError, match=r"app_secrets: no value for DB: .*nothing was changed"):
        package_of(app_secrets=["DB"])
    file = tmp_path / "secrets"
    file.write_text("DATABASE=1\n")
    with pytest.raises(DeployError, match=f"no value for DB: .* nor in {file};"):
        secrets_of(file, "DB")


@pytest.mark.parametrize("value", ["a\x1bb", "a\x07", "\udcff"])
def test_what_systemd_would_write_into_its_journal_is_refused(
    value: str,
) -> None:
    with pytest.raises(DeployError, match=r"^PIN: a variable can't hold"):
        package_of(app_env={"PIN": value})


@pytest.mark.parametrize("line", ["hush", "hush hush", "H='hush", "=hush"])
def test_a_bad_secrets_file_is_named_without_what_is_in_it(tmp_path: Path, line: str) -> None:
    file = tmp_path / "secrets"
    file.write_text(f"A=1\n\n{line}\nB=1\n")
    with pytest.raises(DeployError) as caught:
        secrets_of(file, "A")
    assert f"{file}:3: not of the form NAME=VALUE" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_secret_shows_neither_in_a_package_nor_in_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB", "hush")
    found = package_of(app_secrets=["DB"])
    assert "hush" in found.variables
    assert "hush" not in repr(found)
    assert b"hush" not in b"".join(file.content for file in found.files.values())
    monkeypatch.setenv("DB", "quiet")
    assert package_of(app_secrets=["DB"]).generation(PLUGIN, PYTHON) != found.generation(
        PLUGIN, PYTHON
    )


def test_the_settings_of_a_release_have_one_name_on_all_hosts() -> None:
    def names(host: AppHost) -> tuple[str, str]:
        package = make(host, read(host.settings))
        settings = json.loads(package.files["release.json"].content)["settings"]
        return settings, package.generation(PLUGIN, PYTHON)

    here = host_with()
    instances = tuple(replace(each, node="b", address="10.0.3.12") for each in here.instances)
    there = replace(here, name="b", address="10.0.3.12", instances=instances)
    assert names(here)[0] == names(there)[0]
    assert names(here)[1] != names(there)[1]
    assert names(host_with(app_processes=7))[0] != names(here)[0]


def test_what_can_be_executed_stays_executable(tmp_path: Path) -> None:
    source = tmp_path / "shop"
    source.mkdir()
    for name, mode in (("run", 0o775), ("data", 0o664)):
        (source / name).write_text(name)
        (source / name).chmod(mode)
    package = package_of(app_source=str(source))
    with archive_of(package) as archive:
        modes = {name: archive.getmember(name).mode for name in ("shop/run", "shop/data")}
    assert modes == {"shop/run": 0o755, "shop/data": 0o644}
    (source / "data").chmod(0o755)
    assert package_of(app_source=str(source)).generation(PLUGIN, PYTHON) != package.generation(
        PLUGIN, PYTHON
    )


def test_values_are_escaped_as_systemd_reads_them() -> None:
    assert environment.render({"B": 'a"b\\c$d`e', "A": "x y"}) == (
        'A="x y"\nB="a\\"b\\\\c\\$d\\`e"\n'
    )


# --- Arguments, and what a failed build shows ---


@pytest.mark.parametrize("words", [["-y", "fleet.py", "deploy/"], ["fleet.py", "-y", "deploy.py"]])
def test_the_inventory_is_the_first_file_on_the_command_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fleet.py", "deploy.py"):
        (tmp_path / name).touch()
    assert inventory_file(["pyinfra", *words]) == Path("fleet.py")


def test_operations_have_the_order_that_pyinfra_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deploy.py"
    file.write_text("def both():\n    add()\n    add()\n\nadd()\nboth()\nadd(); both()\n")

    def orders() -> list[list[int]]:
        found: list[list[int]] = []
        state = SimpleNamespace(current_deploy_filename=str(file), current_op_file_number=7)
        code = compile(file.read_text(), str(file), "exec")
        exec(code, {"add": lambda: found.append(util.get_operation_order_from_stack(state))})
        return found

    # As pyinfra has it: what comes after the deploy's file is in the order, too.
    monkeypatch.setattr(util.pyinfra, "is_cli", True)
    ours = orders()
    assert [order[:-1] for order in ours] == [
        [7, 5], [7, 6, 2], [7, 6, 3], [7, 7], [7, 7, 2], [7, 7, 3]
    ]  # fmt: skip
    monkeypatch.setattr(util, "stack", inspect.stack)
    monkeypatch.setattr(util, "getframeinfo", inspect.getframeinfo)
    assert orders() == ours


@pytest.mark.parametrize("option", ["--serial", "--no-wait", "--retry"])
def test_another_order_than_the_roll_outs_is_refused(option: str) -> None:
    refuse_own_order(["pyinfra", "-y", "inventory.py", "deploy/"])
    with pytest.raises(DeployError, match=f"^{option}: "):
        refuse_own_order(["pyinfra", "-y", option, "inventory.py", "deploy/"])


def test_a_failed_build_shows_its_first_error() -> None:
    lines = ["gcc ...", "x.c:1:1: error: one", *[f"note {n}" for n in range(50)]]
    shown = builder._excerpt(lines).splitlines()
    assert shown[0] == "    x.c:1:1: error: one"
    assert shown[-1] == "    ... and 21 lines more"


def test_a_changed_source_is_another_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest() -> str:
        return Source("x", tmp_path).digest

    (tmp_path / "plugin.c").write_text("int a;\n")
    before = digest()
    assert digest() == before
    (tmp_path / "plugin.c").write_text("int b;\n")
    assert digest() != before
