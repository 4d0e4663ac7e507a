"""Keeps the lock while a run of the operator's goes on: a process of its own beside it.

A run may be busy, or wait for the operator's answer, with everything in it standing still;
this process goes on saying that the lock is wanted. It ends when the run does, however that
ends. Lines of JSON come in at standard input, and each is answered with one.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.host.lock_session import Message, messages
from uwsgi_consul_fleet.ssh import connection as ssh

BEAT = 2.0  # seconds between two signs of life
ANSWER = 6.0  # seconds for an answer from the server, which grants Consul a third of it
# Without a confirmation for so long (seconds) the lock may be gone soon: lock_session gives
# a run up after 15.
CERTAIN = 11.0
# A sign of life may wait until an agent has restarted; these go on elsewhere, and the server
# is more patient with the last two of them. Less than the silence after which it gives a run up.
URGENT = ("look", "take", "expect", "begin", "ended", "finish")
LAST_ANSWER = 11.0  # seconds


@dataclass(frozen=True)
class Server:
    """A Consul server, as far as ssh needs to know it; ``stdin`` is what the host program is to
    know of its agent (see consul/access.py), None where that is not known yet."""

    name: str
    data: Mapping[str, Any]
    stdin: str | None


class Session:
    """The host program's lock_session.py, running on a server, where nothing may be installed."""

    def __init__(self, server: Server) -> None:
        """:raises UnreachableError: where there is no connection"""
        self.server = server
        with ExitStack() as stack:
            connection = stack.enter_context(ssh.connect(server))
            words = (*host_program.carried(), "--access-stdin", "lock-session")
            self._running = ssh.Running(connection, f"exec {shlex.join(words)}", timeout=ANSWER)
            self._running.begin(ANSWER)
            self._channel = self._running.channel
            self._is_told = False
            self._replies = self._channel.makefile("r")
            self._stack = stack.pop_all()

    def is_on(self, server: Server) -> bool:
        """Whether that is its server, of whose agent it was told the same, or nothing yet."""
        known = self.server if self._is_told else replace(self.server, stdin=server.stdin)
        return known == server

    def ask(self, message: Message) -> Message:
        """:raises UnreachableError: where no answer comes"""
        self._channel.settimeout(ANSWER if message["do"] in ("beat", "take") else LAST_ANSWER)
        # Of its agent it is told with the first message: it may have been started before that
        # was known.
        told = "" if self._is_told else self.server.stdin or "\n"
        try:
            self._channel.sendall((told + json.dumps(message) + "\n").encode())
            self._is_told = True
            line = self._replies.readline()
            if not line:
                raise EOFError(self._running.last_words() or "connection lost")
            reply: Message = json.loads(line)
            return reply
        except ssh.LOST as error:
            raise UnreachableError(f"{self.server.name}: {error or 'no answer'}") from error

    def close(self) -> None:
        with suppress(*ssh.LOST):
            self._stack.close()


class Keeper:
    """One session at a time, on the first server that can be reached."""

    def __init__(self, servers: Iterable[Server] = ()) -> None:
        self._servers = [*servers]
        self._session: Session | None = None
        self._taken: Message = {}
        self._attempts = 0
        self._state: Message = {"state": "none"}
        self._confirmed = self._asked = time.monotonic()

    def answer(self, message: Message) -> Message:
        """Pass a message on; ``check`` is answered with what is known already."""
        return self._check() if message["do"] == "check" else self.ask(message)

    def ask(self, message: Message) -> Message:
        reply = self._ask(message)
        self._asked = time.monotonic()
        if reply["state"] == "held":
            self._confirmed = self._asked
        self._state = reply
        return reply

    def _check(self) -> Message:
        if self._state["state"] in ("lost", "none"):
            return self._state
        certain = time.monotonic() - self._confirmed < CERTAIN
        return {"state": "held"} if certain else {**self._state, "state": "unsure"}

    def beat(self) -> None:
        """Say that the lock is wanted, when it is time to, from before it is taken."""
        if self._state["state"] == "lost" or time.monotonic() - self._asked < BEAT:
            return
        if (self._session or self._taken) and not self._is_early:
            self.ask({"do": "beat"})

    @property
    def _is_early(self) -> bool:
        """Whether it is to connect already, while nobody knows yet what to tell there."""
        return bool(self._servers) and self._servers[0].stdin is None

    def _ask(self, message: Message) -> Message:
        """Ask the session there is; where it does not answer, one on another server, and at
        last one on the same. What can't wait goes on where the agent answers, too."""
        reasons: list[str] = []
        state = "unreachable"
        for _ in range(len(self._servers) + (self._session is not None)):
            try:
                reply = self._connected(message)
                if reply["state"] != "unavailable" or message["do"] not in URGENT:
                    return reply
                state = reply["state"]
                reasons.append(f"{self._servers[0].name}: {reply['reason']}")
                self._leave()
            except UnreachableError as error:
                reasons.append(str(error))
            self.close()
            self._servers.append(self._servers.pop(0))
        return {"state": state, "reason": "\n".join(dict.fromkeys(reasons))}

    def _connected(self, message: Message) -> Message:
        if self._session is None:
            self._session = Session(self._servers[0])
            if self._taken:  # by one that does not answer any more
                reply = self._pass_on({"do": "take", **self._taken})
                if reply["state"] != "held":
                    self.close()
                    return reply
        return self._pass_on(message)

    def _pass_on(self, message: Message) -> Message:
        assert self._session
        if message["do"] == "take":
            # What a server does late must not undo what another one did since.
            self._attempts += 1
            claim = {**message["claim"], "attempt": self._attempts}
            message = {**message, "claim": claim}
        reply = self._session.ask(message)
        if "session" in reply:  # what another server needs to go on with the lock
            self._taken = {"session": reply["session"], "claim": reply["claim"]}
        return reply

    def _leave(self) -> None:
        """Tell a server that it would give up a lock with which another session goes on."""
        if self._session and self._taken:
            with suppress(UnreachableError):
                self._session.ask({"do": "forget"})

    def go_to(self, servers: Iterable[Server]) -> None:
        """Be ready for the first message, on one of these; on the one where it is, if it is of them
        and to be asked the same way."""
        there = self._session
        # The first one that is left is the one there.
        self._servers = sorted(servers, key=lambda each: not (there and there.is_on(each)))
        if there and self._servers and there.is_on(self._servers[0]):
            there.server = self._servers[0]
        else:
            self._leave()
            self.close()
        if self._is_early:
            with suppress(UnreachableError):  # it is tried again, with the others
                self._session = self._session or Session(self._servers[0])
        else:
            self._ask({"do": "beat"})

    def close(self) -> None:
        if self._session:
            self._session.close()
            self._session = None


def main() -> None:
    keeper = Keeper()
    for message in messages(sys.stdin, BEAT / 4):
        if message and "servers" in message:
            keeper.go_to(Server(**server) for server in message["servers"])
        elif message:
            number = message.pop("number")
            print(json.dumps({**keeper.answer(message), "number": number}), flush=True)
        keeper.beat()
    # Without the pleasantries of an orderly end, for which the run would wait: what is left
    # is a connection, and the other end sees it close.
    os._exit(0)


if __name__ == "__main__":
    main()
