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


class Session:
    """Notes what becomes of it."""

    def __init__(self, server: keeper.Server) -> None:
        self.server, self.asked, self.is_closed = server, list[str](), False
        made.append(self)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(message["do"])
        return {"state": "none"}

    def close(self) -> None:
        self.is_closed = True


made: list[Session] = []


@pytest.mark.parametrize(
    ("servers", "stays"),
    [
        ([("s1", ""), ("s2", "")], True),
        ([("s2", ""), ("s1", "")], True),
        ([("s2", "")], False),
        ([("s1", "token")], False),
    ],
)
def test_where_it_is_already_it_stays_if_that_will_do(
    monkeypatch: pytest.MonkeyPatch, servers: list[tuple[str, str]], stays: bool
) -> None:
    """A run says where as soon as it has reached a server, and again when it knows all of them."""
    monkeypatch.setattr(keeper, "Session", Session)
    made.clear()
    one = keeper.Keeper()
    one.go_to([keeper.Server("s1", {}, "")])
    one.go_to(keeper.Server(name, {}, stdin) for name, stdin in servers)
    one.ask({"do": "look"})
    assert [each.is_closed for each in made] == ([False] if stays else [True, False])
    assert made[-1].asked[-1] == "look"
    assert stays or made[-1].server.name == servers[0][0]


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
    handle = SimpleNamespace(go_to=lambda *_: None, ask=lambda *_: {"state": "lost", **reply})
    monkeypatch.setattr(locks.keeper, "get", lambda: handle)
    with pytest.raises(UnreachableError, match=expected):
        locks.Lock(()).take("deploy", {})
