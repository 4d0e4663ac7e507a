"""What the process that keeps the lock does where a server is lost."""

import socket
from contextlib import nullcontext
from typing import Any

import pytest

from uwsgi_consul_fleet.lock import keeper


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
