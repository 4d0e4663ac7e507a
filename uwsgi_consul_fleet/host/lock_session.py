"""Holds the fleet's lock in Consul, for as long as somebody at the other end wants it.

The keeper on the operator's machine (lock/keeper.py) starts it on a Consul server: a line of
JSON comes in and one goes out. When no more come, whoever deployed is dead or can't be reached:
it writes that down and lets the lock go. When this program itself dies, Consul's session runs
out by itself.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, TextIO
from urllib.parse import quote

from . import unwritten
from .consul import CONTENTS, FLEET, Access, Consul, UnavailableError

# Keys, each behind what all of them begin with.
LOCK = "lock"
LAST = "last"  # who had the lock last and may have changed something under it
AUDIT = "audit/"
RELEASES = "releases/"
RAN = "ran/"  # below it, for which releases of each service app_release ran
HELD = "held"  # instead of the id of who had it last
REFUSED = 50  # contents that were rolled back from
WITHOUT_IT = ("exec", "unlock")  # what the audit has, and needs no lock
AND = ", "  # between the releases of a service, where hosts differ
KEPT = 200  # audit entries
RAN_KEPT = 200  # releases of a service; a host that ran it knows as many
TIMEOUT = 2  # seconds for an answer of the agent
TTL = "10s"  # Consul's minimum; it lets a session go after at most twice that
SILENCE = 15  # seconds without a message after which whoever deploys is given up
PATIENCE = 4  # seconds in which Consul may come back for the last words of a run
SESSION = {
    "Name": "uwsgi-consul-fleet",
    "TTL": TTL,
    "Behavior": "delete",
    "LockDelay": "0s",
    # Not bound to a node's health: the deploy that holds it restarts agents.
    "NodeChecks": [],
}

Message = dict[str, Any]


def merged(before: Message, on: list[Message], refused: list[Message]) -> Message:
    """What is kept of a service: the contents that it was put ``on``, each with its ``release``,
    and those that were ``refused`` since, because it was rolled back from them.

    :param on: nothing where it is on what it was ``before``: what hosts noted earlier is over
    :param refused: more of these
    """

    def key(each: Message) -> str:
        return str(each["content"] or each["release"])  # of a version before 0.3

    known = {key(each): each for each in [*before.get("refused", []), *refused]}
    on = on or before["on"]
    for each in on:
        known.pop(key(each), None)
    return {"on": on, "refused": list(known.values())[-REFUSED:], "since": now()}


class LostError(Exception):
    """The lock is not ours any more."""


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_since(moment: str) -> float:
    return time.time() - datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def encoded(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return b64encode(text.encode()).decode()


def claim_in(value: bytes | None) -> Message:
    """What a holder wrote into the lock; nothing, where it was not one of us."""
    try:
        return dict(json.loads(value or b""))
    except (ValueError, TypeError):
        return {}


class Keys(Consul):
    """What is asked of the key/value store and of the sessions; ``at`` is where our keys are."""

    def __init__(self, access: Access, token: str = "") -> None:
        super().__init__(access, token, TIMEOUT)
        self.at = access.keys

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer; None where there is no such thing, or a transaction fails."""
        try:
            return super().call(method, path, body)
        except UnavailableError as error:
            if error.status in (404, 409):
                return None
            raise

    def create_session(self) -> str:
        return str(self.call("PUT", "/v1/session/create", SESSION)["ID"])

    def renew(self, session: str) -> bool:
        """Whether the session is still there."""
        return self.call("PUT", f"/v1/session/renew/{session}") is not None

    def destroy(self, session: str) -> None:
        """End the session; the lock that it holds goes with it."""
        self.call("PUT", f"/v1/session/destroy/{session}")

    def acquire(self, session: str, claim: Message) -> bool:
        return bool(self.call("PUT", f"/v1/kv/{self.at}{LOCK}?acquire={session}", claim))

    def hand_over(self, old: str, new: str, claim: Message) -> bool:
        """Let the lock pass from one session to another, with no moment in which it is free."""
        return self.transact(
            {"Verb": "unlock", "Key": self.at + LOCK, "Session": old, "Value": encoded(claim)},
            {"Verb": "lock", "Key": self.at + LOCK, "Session": new, "Value": encoded(claim)},
        )

    def transact(self, *steps: Message) -> bool:
        """All of these, or none."""
        return self.call("PUT", "/v1/txn", [{"KV": step} for step in steps]) is not None

    def identify(self, mine: Message) -> Message | None:
        """Say whose the cluster is, where nobody has; another one's answer, where it is not."""
        if self.call("PUT", f"/v1/kv/{self.at}{FLEET}?cas=0", mine):
            return None
        entries = self.call("GET", f"/v1/kv/{self.at}{FLEET}")
        there = claim_in(b64decode(entries[0]["Value"] or "")) if entries else mine
        return None if there.get("id") == mine["id"] else there

    def holder(self) -> Message | None:
        """Who has the lock: the claim, and the ``session``."""
        # A server that was just restarted knows nothing yet, and does not say so otherwise.
        entries = self.call("GET", f"/v1/kv/{self.at}{LOCK}?consistent")
        if not entries:
            return None
        claim = claim_in(b64decode(entries[0]["Value"] or ""))
        return {**claim, "session": entries[0].get("Session", "")}

    def last(self) -> Message:
        """Who had the lock last: the claim; nothing where nobody had it."""
        return self.value(LAST)

    def note(self, last: Message) -> None:
        self.call("PUT", f"/v1/kv/{self.at}{LAST}", last)

    def value(self, key: str) -> Message:
        """What a key of ours holds; nothing where it is not there."""
        entries = self.call("GET", f"/v1/kv/{self.at}{key}?consistent")
        return claim_in(b64decode(entries[0]["Value"] or "")) if entries else {}

    def record(self, entry: Message) -> None:
        """Append to the audit, and drop what is too old; said twice, it is there once."""
        self.call("PUT", f"/v1/kv/{self.at}{AUDIT}{entry['since']}", entry)
        for key in sorted(self.call("GET", f"/v1/kv/{self.at}{AUDIT}?keys") or [])[:-KEPT]:
            self.call("DELETE", f"/v1/kv/{quote(key)}")


class Lock:
    """The lock, and what is written under its protection; a method for each message."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.session = ""
        self.claim: Message = {}
        self.before: Message | None = None

    def answer(self, message: Message) -> Message:
        """What to reply to a message; ``state`` is in each reply."""
        try:
            return self._do(**message)
        except UnavailableError as error:
            state = "refused" if error.status == 403 else "unavailable"
            return {"state": state, "reason": str(error)}

    def _do(self, do: str, **arguments: Any) -> Message:
        try:
            reply: Message = getattr(self, f"do_{do}")(**arguments)
            return reply
        except LostError:
            return {"state": "lost", "holder": self.keys.holder()}

    def do_look(self) -> Message:
        """Who has the lock, and the id of who had it last: HELD while somebody has it."""
        last = self._last()  # first: who takes the lock meanwhile is noticed
        holder = self.keys.holder()
        return {"state": "none", "seen": HELD if holder else last.get("id", ""), "holder": holder}

    def do_take(self, claim: Message, session: str = "") -> Message:
        """Acquire the lock; or take it over from a session that is ours.

        That one may be on another server: a session ends when its node leaves the catalog, as a
        dead server does. Or it got the lock with a question whose answer never came, as while a
        leader is elected: the ``id`` in the claim tells, and the ``attempt`` which came first.
        """
        claim = {"since": now(), **claim}
        mine = self.keys.create_session()
        acquired = self._get(mine, session, claim)
        if not acquired and (ours := self._session_of(claim)):
            session, acquired = ours, self._get(mine, ours, claim)
        if session or not acquired:
            self.keys.destroy(session if acquired else mine)
        if acquired:
            self.session, self.claim = mine, claim
            if other := claim.get("fleet") and self.keys.identify(claim["fleet"]):
                self.do_finish()
                return {"state": "foreign", "fleet": other}
            self._note()
            self._catch_up()
            return {"state": "held", "session": mine, "claim": claim, "last": self.before}
        if session:
            raise LostError
        return {"state": "locked", "holder": self.keys.holder()}

    def _note(self) -> None:
        """That this run has the lock; ``before`` is who had it before."""
        last = self._last()
        is_ours = bool(last) and last.get("id") == self.claim.get("id")
        self.before = last.get("before", {}) if is_ours else {**last, "before": {}}
        if not is_ours:
            self.keys.note({**self.claim, "before": self.before})

    def _last(self) -> Message:
        # What another server was told as well may have been written down long since.
        known: list[Message] = [self.keys.last(), *(each["entry"] for each in unwritten.read())]
        return max(known, key=lambda each: str(each.get("since", "")))

    def _catch_up(self) -> None:
        """Write down what was done without Consul. Each of its servers was told, so another one
        may have done so; what came since counts."""
        for told in unwritten.read():
            key = self.keys.at + AUDIT + told["entry"]["since"]
            known = self.keys.call("GET", f"/v1/kv/{self.keys.at}{AUDIT}?recurse") or []
            since = (b64decode(each["Value"] or "") for each in known if each["Key"] >= key)
            if all(claim_in(value).get("what") in WITHOUT_IT for value in since):
                self.do_expect(told["releases"], told["contents"])
            self.keys.record(told["entry"])
        unwritten.clear()

    def _get(self, mine: str, session: str, claim: Message) -> bool:
        if session:
            return self.keys.hand_over(session, mine, claim)
        return self.keys.acquire(mine, claim)

    def _session_of(self, claim: Message) -> str:
        """The session that holds the lock by an earlier attempt of this very run, or ''."""
        holder = self.keys.holder() or {}
        if not claim.get("id") or holder.get("id") != claim["id"]:
            return ""
        return str(holder["session"]) if holder["attempt"] < claim["attempt"] else ""

    def do_beat(self) -> Message:
        """Say that the lock is still wanted."""
        if not self.session:
            return {"state": "none"}
        # Only the key tells: see `holder` for what a server may say of the session.
        self.keys.renew(self.session)
        if not self._holds():
            raise LostError
        return {"state": "held"}

    def _holds(self) -> bool:
        return (self.keys.holder() or {}).get("session") == self.session

    def do_expect(
        self, releases: dict[str, str], contents: dict[str, dict[str, list[Message]]] | None = None
    ) -> Message:
        """Write down which release each service should be on, if the lock is ours.

        :param contents: of each service: see merged()
        """

        def written() -> Message:
            written: Message = {RELEASES + service: to for service, to in releases.items()}
            for service, said in (contents or {}).items():
                before = self.keys.value(CONTENTS + service)
                if said["on"] or before.get("on"):
                    written[CONTENTS + service] = merged(before, **said)
            return written

        return self._write(written)

    def do_begin(self, service: str, release: Message, host: str, state: str = "begun") -> Message:
        """Note that app_release begins on a host; ``before`` in the reply says when that was done,
        or where it was begun and nobody knows how it ended, and nothing is noted then.

        :param release: its ``release`` and its ``content``
        :param state: what is noted: ``done`` where it is not to run
        """
        ran = self.keys.value(RAN + service).get("ran", [])
        before: Message = next((each for each in ran if release.items() <= each.items()), {})
        if before.get("state") in ("begun", "done"):
            return {"state": "held", "before": before}
        return {**self.do_ended(service, release, host, state), "before": {}}

    def do_ended(self, service: str, release: Message, host: str, state: str) -> Message:
        """Note how it ended there: ``done`` or ``failed``."""

        def written() -> Message:
            ran = self.keys.value(RAN + service).get("ran", [])
            others = [each for each in ran if not release.items() <= each.items()]
            mine = {**release, "host": host, "state": state, "since": now()}
            return {RAN + service: {"ran": [*others, mine][-RAN_KEPT:]}}

        return self._write(written)

    def _write(self, written: Callable[[], Message]) -> Message:
        """Put these values under our keys, if the lock is ours."""
        at = self.keys.at
        ours = {"Verb": "check-session", "Key": at + LOCK, "Session": self.session}

        def write() -> bool:
            steps = [
                {"Verb": "set", "Key": at + key, "Value": encoded(to)}
                for key, to in written().items()
            ]
            return self.keys.transact(ours, *steps)

        if not _until(time.monotonic() + PATIENCE, write):
            raise LostError
        return {"state": "held"}

    def do_forget(self) -> Message:
        """Another one of us goes on with the lock: leave it alone."""
        self.session = ""
        return {"state": "none"}

    def do_finish(self, entry: Message | None = None) -> Message:
        """Write down how it went, unless there is nothing to tell; let the lock go."""
        deadline = time.monotonic() + PATIENCE
        if entry is not None:
            told = {**self._about(), **entry}
            _until(deadline, lambda: self.keys.record(told))
        elif (before := self.before) is not None and self._holds():
            _until(deadline, lambda: self.keys.note(before))
        if self.session:
            _until(deadline, lambda: self.keys.destroy(self.session))
            self.session = ""
        return {"state": "finished"}

    def _about(self) -> Message:
        return {**self.claim, "seconds": round(seconds_since(self.claim["since"]), 1)}

    def abandon(self) -> None:
        """Nobody is there any more. Another one of us may have taken over on another server."""
        if self.session and self._holds():
            self.do_finish({"outcome": "interrupted"})


def _until(deadline: float, do: Callable[[], Any]) -> Any:
    """The last words of a run are said again, for a while, where Consul has no answer."""
    while True:
        try:
            return do()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def messages(stream: TextIO, timeout: float) -> Iterator[Message | None]:
    """Each line of JSON as it comes, and None when none came for so many seconds."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        try:
            for line in stream:
                lines.put(line)
        finally:  # also of a socket whose other end was killed before it had read all
            lines.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=timeout)
        except queue.Empty:
            yield None
            continue
        if not line:
            return
        yield json.loads(line)


def run(access: Access, token: str) -> None:
    """Answer what comes on standard input, until nothing does; :param token: the deploy's"""
    lock = Lock(Keys(access, token))
    with suppress(OSError):  # nobody reads the answer
        for message in messages(sys.stdin, SILENCE):
            if message is None:
                break
            print(json.dumps(lock.answer(message)), flush=True)
    with suppress(UnavailableError):  # the session runs out by itself
        lock.abandon()
