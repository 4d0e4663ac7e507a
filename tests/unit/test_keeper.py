"""The process that keeps the lock, and a run beside it, where something is lost."""

import socket
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.lock import keeper
from uwsgi_consul_fleet.lock import lock as locks


def test_a_server_that_is_lost_before_it_was_told_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that goes down between the connection and the token that it is told."""

    class Running:
        def __init__(self, *_arguments: Any, **_options: Any) -> None:
            self.channel, there = socket.socketpair()
            there.close()

        def begin(self, _timeout: float) -> None:
            pass

    monkeypatch.setattr(keeper.ssh, "connect", lambda _server: nullcontext())
    monkeypatch.setattr(keeper.ssh, "Running", Running)
    one = keeper.Keeper([keeper.Server(name, {}, "token\n") for name in ("s1", "s2")])
    reply = one.ask({"do": "look"})
    assert reply["state"] == "unreachable"
    assert [line.split(":")[0] for line in reply["reason"].split("\n")] == ["s1", "s2"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"holder": {"who": "bert", "from": "laptop"}}, "was lost: locked: bert on laptop runs"),
        ({"holder": None}, "was lost: somebody removed it"),
        ({"reason": "the process that keeps it is gone"}, "was lost: the process .* is gone"),
    ],
)
def test_a_lock_that_is_lost_while_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, reply: dict[str, Any], expected: str
) -> None:
    """As one that was taken, and went to another run before the answer came."""
    handle = SimpleNamespace(send=lambda _message: None, ask=lambda *_: {"state": "lost", **reply})
    monkeypatch.setattr(locks.keeper, "get", lambda: handle)
    with pytest.raises(UnreachableError, match=expected):
        locks.Lock(()).take("deploy", {})
