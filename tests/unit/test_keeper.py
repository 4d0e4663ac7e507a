"""The process that keeps the lock, and a run beside it, where something is lost."""

import json
import select
import socket
from contextlib import nullcontext
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.lock import keeper
from uwsgi_consul_fleet.lock import lock as locks
from uwsgi_consul_fleet.lock.handle import Handle


def test_it_ends_with_a_run_that_is_killed_before_it_has_read_the_last_answer() -> None:
    """Else it would go on saying that the lock is wanted, for ever."""
    run = Handle()
    try:
        run.send({"do": "check", "number": 1})
        assert select.select([run._socket], [], [], 30)[0], "it answers"
        run._socket.close()
        run._process.wait(10)
    finally:
        run._process.kill()


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


class HostProgram:
    """The other end, which notes what it reads."""

    def __init__(self, _connection: Any, command: str, **_options: Any) -> None:
        self.command, self.read = command, list[str]()
        self.channel, there = socket.socketpair()
        self._thread = Thread(target=self._answer, args=(there,))
        self._thread.start()
        made.append(self)

    def begin(self, _timeout: float) -> None:
        pass

    def _answer(self, there: socket.socket) -> None:
        with there, there.makefile("rw") as stream:
            self.read.append(stream.readline())
            for line in stream:
                self.read.append(json.loads(line)["do"])
                print(json.dumps({"state": "none"}), file=stream, flush=True)

    def end(self) -> list[str]:
        """What it has read."""
        self.channel.shutdown(socket.SHUT_WR)
        self._thread.join(5)
        return self.read


made: list[HostProgram] = []


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> keeper.Keeper:
    """A keeper that connects to programs in this process."""
    monkeypatch.setattr(keeper.ssh, "connect", lambda _server: nullcontext())
    monkeypatch.setattr(keeper.ssh, "Running", HostProgram)
    made.clear()
    return keeper.Keeper()


@pytest.mark.parametrize(
    ("servers", "there", "expected"),
    [
        (["s1", "s2"], "", ["\n", "beat", "look"]),
        (["s2", "s1"], "", ["\n", "beat", "look"]),
        (["s1", "s2"], "token\n", ["token\n", "beat", "look"]),
        (["s2"], "token\n", ["token\n", "beat", "look"]),
    ],
)
def test_a_connection_serves_before_it_is_known_what_to_tell_there(
    one: keeper.Keeper, servers: list[str], there: str, expected: list[str]
) -> None:
    """A run says where as soon as it has reached a server, and again when it knows all of them,
    and the token, which is not in the command."""
    one.go_to([keeper.Server("s1", {}, None)])
    one._asked = float("-inf")  # long ago
    one.beat()
    one.go_to(keeper.Server(name, {}, there) for name in servers)
    one.ask({"do": "look"})
    assert all("--access-stdin" in each.command for each in made)
    assert [each.end() for each in made] == ([[""]] if servers == ["s2"] else []) + [expected]


@pytest.mark.parametrize(("later", "count"), [("token\n", 1), ("another\n", 2)])
def test_who_was_told_another_token_is_left(one: keeper.Keeper, later: str, count: int) -> None:
    for told in ("token\n", later):
        one.go_to([keeper.Server("s1", {}, told)])
    assert [each.end()[0] for each in made] == ["token\n", later][:count]


def test_a_server_that_can_not_be_reached_early_is_tried_again(
    one: keeper.Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_server: keeper.Server) -> Any:
        raise UnreachableError("s1: no route")

    with monkeypatch.context() as early:
        early.setattr(keeper.ssh, "connect", refuse)
        one.go_to([keeper.Server("s1", {}, None)])
    assert made == []
    one.go_to([keeper.Server("s1", {}, "token\n")])
    assert [each.end() for each in made] == [["token\n", "beat"]]


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
