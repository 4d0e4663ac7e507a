"""Applications that each have a token of their own, in a file, for their own service alone."""

import io
import json
import os
import pwd
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from checkout import ROOT
from consul_processes import until
from uwsgi_processes import Agent, Uwsgi
from versions import BEFORE

from uwsgi_consul_fleet.host import health
from uwsgi_consul_fleet.host.consul import Access, Consul

Start = Callable[..., Uwsgi]
MANAGEMENT = "33333333-3333-3333-3333-333333333333"


@pytest.fixture(scope="module", params=["deny", "allow"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Agents in the last round, and in those before."""
    acl = f'acl {{ enabled = true default_policy = "{request.param}" '
    acl += f'tokens {{ master = "{MANAGEMENT}" agent = "{MANAGEMENT}" }} }}'
    found = Agent(tmp_path_factory.mktemp("guarded"), "-dev", config=acl)
    found.session.headers["X-Consul-Token"] = MANAGEMENT
    found.start()
    yield found
    found.kill()


only_denying = pytest.mark.parametrize("guarded", ["deny"], indirect=True)


def denies(agent: Agent) -> bool:
    return requests.get(f"{agent.url}/v1/agent/self", timeout=5).status_code == 403


def made(agent: Agent, service: str) -> SimpleNamespace:
    """A token as an application has one."""
    rules = f'service "{service}" {{ policy = "write" }} node_prefix "" {{ policy = "read" }}'
    name = f"{service}-{time.monotonic_ns()}"
    agent.put("/v1/acl/policy", {"Name": name, "Rules": rules})
    body = json.dumps({"Policies": [{"Name": name}], "Local": True})
    found = agent.call("PUT", "/v1/acl/token", data=body).json()
    return SimpleNamespace(secret=found["SecretID"], accessor=found["AccessorID"])


def write(file: Path, text: str) -> None:
    """Whole, as a deploy does."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)


@contextmanager
def never_missing(agent: Agent, service: str) -> Iterator[None]:
    """It is passing at every look, fifty times a second."""
    over, gaps = threading.Event(), list[float]()

    def look() -> None:
        session_agent = f"/v1/health/service/{service}?passing"
        while not over.wait(0.02):
            if not agent.get(session_agent):
                gaps.append(time.monotonic())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert gaps == []


def holds_on_to_a_token_that_works(agent: Agent, uwsgi: Uwsgi, name: str) -> None:
    """What the agent does for a registration, it does with the token that it came with."""
    holder = uwsgi.stuck_requests(2)
    until(lambda: not agent.passing(name), "the catalog knows that the worker hangs")
    holder.unlink()
    until(lambda: agent.passing(name), "the catalog knows that it goes on")
    uwsgi.signal(2)
    assert uwsgi.wait() == 0
    until(lambda: not agent.entries(name), "it is gone from the catalog")


@pytest.mark.parametrize("ttl", [10, 30])
def test_a_token_that_comes_later(
    start: Start, guarded: Agent, name: str, tmp_path: Path, ttl: int
) -> None:
    """Consul has it when the application runs already: until then its file is empty."""
    file = tmp_path / "token"
    file.touch()
    its = made(guarded, name)
    uwsgi = start(
        f"url={guarded.url},name={name},ttl={ttl},stuck_after=1,drain=0",
        processes=1,
        env={"CONSUL_HTTP_TOKEN_FILE": str(file)},
    ).ready()
    if denies(guarded):
        until(lambda: uwsgi.said("refuses its registration: HTTP 403"), "nobody may without one")
        write(file, f"{its.secret}\n")
        began = time.monotonic()
        until(lambda: guarded.passing(name), "it is registered")
        assert time.monotonic() - began < 8
    else:
        until(lambda: guarded.passing(name), "it is registered")
        with never_missing(guarded, name):
            write(file, f"{its.secret}\n")
            began = time.monotonic()
            until(lambda: uwsgi.said_times(f"registered {name}") == 2, "it is registered anew")
            assert time.monotonic() - began < 8  # a beat may be due after ten
            time.sleep(0.5)
    assert not uwsgi.said("can't read")
    assert its.secret not in uwsgi.log
    if ttl == 10:
        holds_on_to_a_token_that_works(guarded, uwsgi, name)


def test_another_token(start: Start, guarded: Agent, name: str, tmp_path: Path) -> None:
    """The first is deleted in Consul as soon as no registration has it any more."""
    file = tmp_path / "token"
    first, second = made(guarded, name), made(guarded, name)
    write(file, first.secret)
    uwsgi = start(
        f"url={guarded.url},name={name},ttl=6,stuck_after=1,drain=0,debug=1",
        processes=1,
        env={"CONSUL_HTTP_TOKEN_FILE": str(file)},
    ).ready()
    until(lambda: guarded.passing(name), "it is registered")

    def beats() -> int:
        lines = uwsgi.consul_lines()
        return sum("/check/pass/" in line and "HTTP 200" in line for line in lines)

    with never_missing(guarded, name):
        write(file, second.secret)
        began = time.monotonic()
        until(lambda: uwsgi.said_times(f"registered {name}") == 2, "it is registered anew")
        assert time.monotonic() - began < 8
        guarded.call("DELETE", f"/v1/acl/token/{first.accessor}")
        count = beats()
        # One of them may have been under way.
        until(lambda: beats() >= count + 2, "it beats on")
    assert not uwsgi.said("refuses")
    holds_on_to_a_token_that_works(guarded, uwsgi, name)


@only_denying
def test_a_file_of_its_own_key_goes_before_the_environment(
    start: Start, guarded: Agent, name: str, tmp_path: Path
) -> None:
    file, other = tmp_path / "token", tmp_path / "other"
    write(file, made(guarded, name).secret)
    write(other, made(guarded, f"{name}-other").secret)
    uwsgi = start(
        f"url={guarded.url},name={name},token_file={file}",
        env={"CONSUL_HTTP_TOKEN_FILE": str(other)},
    )
    until(lambda: guarded.passing(name), "it is registered")
    assert not uwsgi.said("refuses")


@pytest.mark.skipif(os.geteuid() != 0, reason="starts uWSGI as another user")
@only_denying
def test_a_file_that_its_user_may_not_read(
    start: Start, guarded: Agent, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    # Without root's right to read everything.
    words = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    os.chown(file, pwd.getpwnam("nobody").pw_uid, 0)
    uwsgi = start(
        f"url={guarded.url},name={name}", env={"CONSUL_HTTP_TOKEN_FILE": str(file)}, wrapper=words
    )
    assert uwsgi.wait() != 0
    said = f"CONSUL_HTTP_TOKEN_FILE={file}: a readable file is required: Permission denied"
    assert uwsgi.said(said)


# --- The plugin of kept releases -----------------------------------------------------


@pytest.fixture(scope="module")
def plugin_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the version before, compiled as its releases have it."""
    folder = tmp_path_factory.mktemp("before")
    words = ["git", "-C", str(ROOT), "archive", BEFORE, "plugin_build"]
    packed = subprocess.run(words, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder)
    words = ["uwsgi", "--build-plugin", "plugin_build"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return folder / "consul_plugin.so"


@pytest.mark.parametrize("there", ["at its start", "later"])
def test_a_kept_release_is_told_in_the_same_way(
    start: Start, guarded: Agent, name: str, tmp_path: Path, plugin_before: Path, there: str
) -> None:
    file, its = tmp_path / "token", made(guarded, name)
    file.write_text(f"{its.secret}\n" if there == "at its start" else "")
    uwsgi = start(
        f"url={guarded.url},name={name},ttl=1",
        plugin=plugin_before,
        env={"CONSUL_HTTP_TOKEN_FILE": str(file)},
    ).ready()
    time.sleep(0.5)
    if there == "later":
        write(file, its.secret)
    until(lambda: guarded.passing(name), "it is registered")
    # What is registered it leaves as it is: it has to be switched before its token is deleted.
    until(lambda: uwsgi.said_times(f"registered {name}") == 1, "it has heard of it")
    assert its.secret not in uwsgi.log


# --- An id that another application takes over -----------------------------------------


def release_of(name: str, one: str, port: int) -> Any:
    instance = SimpleNamespace(id=one, port=port)
    return SimpleNamespace(app=name, generation="r2-b", instances=(instance,), health_timeout=20)


def serves(agent: Agent, one: str) -> str:
    services: dict[str, Any] = agent.get("/v1/agent/services")
    return str(services.get(one, {}).get("Service", ""))


@pytest.fixture
def deploy(guarded: Agent) -> Consul:
    rules = 'service_prefix "" { policy = "write" } agent_prefix "" { policy = "read" }'
    name = f"deploy-{time.monotonic_ns()}"
    guarded.put("/v1/acl/policy", {"Name": name, "Rules": rules})
    body = json.dumps({"Policies": [{"Name": name}]})
    secret = guarded.call("PUT", "/v1/acl/token", data=body).json()["SecretID"]
    return Consul(Access(guarded.url), secret)


@pytest.mark.parametrize("how", ["comes up", "does not come up"])
def test_an_id_changes_hands(
    start: Start, guarded: Agent, deploy: Consul, name: str, tmp_path: Path, how: str
) -> None:
    """From an application of another name that goes on running, and registers what it lost."""
    one, (old, new) = f"{name}-1", (f"{name}-old", f"{name}-new")
    files = {each: tmp_path / each for each in (old, new)}
    for each, file in files.items():
        write(file, made(guarded, each).secret)

    def begin(each: str) -> Uwsgi:
        ttl = 1 if each == old else 10  # the old one is to say much, the new one to miss nothing
        line = f"url={guarded.url},name={each},id={one},ttl={ttl},stuck_after=1,drain=0"
        line += f",meta=generation:{each}"
        return start(line, env={"CONSUL_HTTP_TOKEN_FILE": str(files[each])}, processes=1).ready()

    before = begin(old)
    until(lambda: guarded.passing(old), "the old one is registered")
    its = release_of(new, one, 2001)
    its.generation = new  # as its registration says
    held = health.hold_places(deploy, its)
    assert held == ([one] if denies(guarded) else [])
    for _ in range(20 if held else 0):  # while the new one starts
        assert serves(guarded, one) == new
        assert not guarded.passing(new)
        time.sleep(0.1)
    if how == "comes up":
        after = begin(new)
        until(lambda: guarded.passing(new), "the new one is registered", 8)
        with never_missing(guarded, new):
            began = time.monotonic()
            before.signal(2)
            assert before.wait() == 0
            assert time.monotonic() - began < 8
            time.sleep(2)
        assert not guarded.entries(old)
        holds_on_to_a_token_that_works(guarded, after, new)
    else:
        health.leave_places(deploy, its, held)
        until(lambda: guarded.passing(old), "the old one is back", 8)
        assert bool(held) == (before.said_times(f"registered {one}") > 1)
        assert not guarded.entries(new)
        holds_on_to_a_token_that_works(guarded, before, old)


def test_nothing_is_held_of_its_own_or_of_strangers(
    start: Start, guarded: Agent, deploy: Consul, name: str
) -> None:
    for one, service, meta in (("a", "mine", {"generation": "r1-a"}), ("b", "theirs", {})):
        its = {"ID": f"{name}-{one}", "Name": f"{name}-{service}", "Meta": meta}
        guarded.put("/v1/agent/service/register", its)
    for one in ("a", "b", "c"):
        assert health.hold_places(deploy, release_of(f"{name}-mine", f"{name}-{one}", 1)) == []
    health.leave_places(deploy, release_of(f"{name}-mine", "a", 1), [f"{name}-a", f"{name}-c"])
    assert serves(guarded, f"{name}-a") == f"{name}-mine"


def test_without_access_control_nothing_has_to_be_held(agent: Agent, name: str) -> None:
    its = {"ID": name, "Name": f"{name}-old", "Meta": {"generation": "r1-a"}}
    agent.put("/v1/agent/service/register", its)
    assert health.hold_places(Consul(Access(agent.url)), release_of(name, name, 1)) == []
    assert serves(agent, name) == f"{name}-old"
