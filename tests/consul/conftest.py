"""Agents and clients for a test: shared, or its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consul_processes import Agent, Client


@pytest.fixture(scope="session", autouse=True)
def consul_command() -> None:
    if not shutil.which("consul"):
        pytest.fail("these tests need the program `consul` on PATH")


@pytest.fixture(autouse=True)
def no_consul_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CONSUL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    agent = Agent(tmp_path_factory.mktemp("consul"))
    agent.start()
    yield agent
    agent.kill()


@pytest.fixture(scope="session")
def guarded_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with one instance that asks for the token `open-sesame`."""
    acl = 'acl { enabled = true default_policy = "deny" tokens { master = "open-sesame" } }'
    agent = Agent(tmp_path_factory.mktemp("guarded"), config=acl)
    agent.session.headers["X-Consul-Token"] = "open-sesame"
    agent.start()
    agent.register(2001)
    yield agent
    agent.kill()


@pytest.fixture
def agent(shared_agent: Agent) -> Agent:
    """The agent that the tests share, without any service."""
    for name in shared_agent.call("GET", "/v1/agent/services").json():
        shared_agent.call("PUT", f"/v1/agent/service/deregister/{name}")
    return shared_agent


@pytest.fixture
def unlocked_agent(shared_agent: Agent) -> Agent:
    """The agent that the tests share, without anything of ours in its key/value store."""
    for session in shared_agent.call("GET", "/v1/session/list").json():
        shared_agent.call("PUT", f"/v1/session/destroy/{session['ID']}")
    shared_agent.call("DELETE", "/v1/kv/uwsgi-consul-fleet/?recurse")
    return shared_agent


@pytest.fixture
def new_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Makes agents (not started yet) that a test may treat as it likes."""
    made: list[Agent] = []

    def make(*options: str, config: str = "") -> Agent:
        made.append(Agent(tmp_path, *options, config=config))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def run() -> Iterator[Callable[..., Client]]:
    """Starts clients, and ends those that are still there."""
    started: list[Client] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> Client:
        started.append(Client(*arguments, environment=environment))
        return started[-1]

    yield start
    for client in started:
        client.process.kill()
        client.process.wait()
