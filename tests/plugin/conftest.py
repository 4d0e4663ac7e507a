"""One plugin, built for this machine's uWSGI, and one Consul agent for all tests that can share."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from checkout import made_once
from consul_processes import free_ports
from uwsgi_processes import SANITIZERS, Agent, FakeAgent, Process, Uwsgi, build_plugin

for _program in ("uwsgi", "consul"):
    if not shutil.which(_program):
        raise pytest.UsageError(f"{_program} is not installed: run script/bootstrap --test")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sanitize",
        action="store_true",
        help="compile the plugin with AddressSanitizer and UndefinedBehaviorSanitizer",
    )
    parser.addoption("--uwsgi", default="uwsgi", help="another uWSGI than the one on the PATH")
    parser.addoption("--plugin", help="a consul_plugin.so that was compiled for it")
    parser.addoption(
        "--embedded-python", action="store_true", help="this uWSGI needs no plugin for Python"
    )
    parser.addoption("--part", metavar="N/M", default="1/1", help="the Nth of M parts of the tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, parts = map(int, config.getoption("part").split("/"))
    if parts > 1:
        chosen = items[number - 1 :: parts]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture(scope="session")
def plugin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.config.getoption("sanitize"):
        found: Path = request.getfixturevalue("sanitized_plugin")
        return found
    if given := request.config.getoption("plugin"):
        return Path(given).resolve()
    built: Path = request.getfixturevalue("plain_plugin")
    return built


@pytest.fixture(scope="session")
def plain_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once("plugin", tmp_path_factory.mktemp("plugin"), build_plugin)


@pytest.fixture(scope="session")
def sanitized_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    return made_once("sanitized", folder, partial(build_plugin, flags=SANITIZERS))


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A Consul agent for tests that do it no harm."""
    found = Agent(tmp_path_factory.mktemp("agent"))
    found.start()
    yield found
    found.kill()


MASTER_TOKEN = "11111111-1111-1111-1111-111111111111"
SERVICE_TOKEN = "22222222-2222-2222-2222-222222222222"


def _make_certificates(folder: Path) -> None:
    """A certificate authority, and a certificate each for the agent and its client."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test ca")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.crt", "-days", "2", "-extfile", "names",
        )  # fmt: skip


@pytest.fixture(scope="session")
def secure_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """With access control, TLS with client certificates, and a unix socket."""
    folder = tmp_path_factory.mktemp("secure")
    _make_certificates(folder)
    (https,) = free_ports(1)
    (folder / "https_port").write_text(str(https))
    found = Agent(folder, "-dev", "-https-port", str(https), config=_secure_config(folder))
    found.session.headers["X-Consul-Token"] = MASTER_TOKEN
    found.start()
    found.put(
        "/v1/acl/policy",
        {"Name": "web", "Rules": 'service_prefix "" { policy = "write" }'},
    )
    found.put("/v1/acl/token", {"SecretID": SERVICE_TOKEN, "Policies": [{"Name": "web"}]})
    yield found
    found.kill()


def _secure_config(folder: Path) -> str:
    return f"""
        acl {{
            enabled = true
            default_policy = "deny"
            tokens {{ master = "{MASTER_TOKEN}" agent = "{MASTER_TOKEN}" }}
        }}
        addresses {{ http = "127.0.0.1 unix://{folder}/api.sock" }}
        ca_file = "{folder}/ca.crt"
        cert_file = "{folder}/server.crt"
        key_file = "{folder}/server.key"
        verify_incoming_https = true
    """


@pytest.fixture
def service_token() -> str:
    """It may write services, and nothing else."""
    return SERVICE_TOKEN


@pytest.fixture
def own_agent(tmp_path: Path) -> Iterator[Agent]:
    """A Consul agent for a test that stops, restarts or pauses it."""
    folder = tmp_path / "agent"
    folder.mkdir()
    found = Agent(folder)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def fake() -> Iterator[FakeAgent]:
    found = FakeAgent()
    yield found
    found.close()


@pytest.fixture
def start(
    request: pytest.FixtureRequest, plugin: Path, tmp_path: Path
) -> Iterator[Callable[..., Uwsgi]]:
    """Starts uWSGI instances, and prints their logs if the test fails."""
    started: list[Process] = []
    options = request.config.option
    python = None if options.embedded_python else "python3"

    def make(register: str | list[str], **how: Any) -> Uwsgi:
        lines = [register] if isinstance(register, str) else register
        folder = how.pop("folder", tmp_path / f"uwsgi-{len(started)}")
        how = {"binary": options.uwsgi, "language": python, **how}
        uwsgi = Uwsgi(folder, how.pop("plugin", plugin), lines, **how)
        started.append(uwsgi)
        return uwsgi

    yield make
    for number, one in enumerate(started):
        one.destroy()
        print(f"--- log of uWSGI {number} ---\n{one.log}")
    reports = [report.read_text() for one in started for report in one.folder.glob("sanitizer*")]
    # It says only that it may be wrong with ugreen.
    assert [text for text in reports if "support makecontext" not in text or "ERROR" in text] == []


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A service name that no other test uses."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
