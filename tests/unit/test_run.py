"""What a run knows of a host, and when it looks again."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from uwsgi_consul_fleet.operations import plan, state
from uwsgi_consul_fleet.operations.run import Run
from uwsgi_consul_fleet.operations.state import HostState


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that were looked at."""
    found: list[str] = []

    def read(host: str, _: object) -> HostState:
        found.append(host)
        return HostState()

    monkeypatch.setattr(plan, "read", lambda _: SimpleNamespace(services=(), host=str))
    monkeypatch.setattr(state, "read", read)
    return found


@pytest.fixture
def run() -> Run:
    pyinfra: Any = SimpleNamespace(host=str, is_executing=True, asks_first=False)
    return Run(pyinfra)


def test_a_host_is_looked_at_again_after_a_change_of_it(looks: list[str], run: Run) -> None:
    for changed in ("", "drakar", "cheetah"):
        run.forget(changed)
        assert run.state_of("drakar") is run.state_of("drakar")
    assert looks == ["drakar", "drakar"]


@pytest.mark.parametrize("ends", [None, ValueError])
def test_changes_that_belong_together_are_looked_at_once(
    looks: list[str], run: Run, ends: type[Exception] | None
) -> None:
    before = run.state_of("drakar")
    with suppress(ValueError), run.together("drakar"):
        for _ in range(2):
            run.forget("drakar")
            assert run.state_of("drakar") is before
        if ends:
            raise ends
    assert run.state_of("drakar") is not before
    assert looks == ["drakar", "drakar"]


def test_without_a_change_there_is_nothing_to_look_at(looks: list[str], run: Run) -> None:
    run.state_of("drakar")
    with run.together("drakar"):
        pass
    run.state_of("drakar")
    assert looks == ["drakar"]
