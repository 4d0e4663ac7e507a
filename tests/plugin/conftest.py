"""The plugin, built once; an agent for all tests; uWSGI processes that end with theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consul_processes import Agent
from uwsgi_processes import FakeAgent, Uwsgi, build_plugin


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    found = Agent(tmp_path_factory.mktemp("agent")).start()
    yield found
    found.kill()


@pytest.fixture
def uwsgi(plugin: Path, tmp_path: Path) -> Iterator[Callable[..., Uwsgi]]:
    """Makes a uWSGI with these options; it is not started yet."""
    made: list[Uwsgi] = []

    def make(*options: str) -> Uwsgi:
        made.append(Uwsgi(tmp_path / f"uwsgi{len(made)}", plugin, *options))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def fake_agent() -> Iterator[Callable[..., FakeAgent]]:
    made: list[FakeAgent] = []

    def make(answer: Callable[[str], bytes | None]) -> FakeAgent:
        made.append(FakeAgent(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()
