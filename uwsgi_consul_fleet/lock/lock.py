"""One deploy at a time: the lock, held in Consul by a session.

Three processes: :class:`Lock` here, in whatever changes the fleet; keeper.py, beside it
on the operator's machine; the host program's lock_session.py, which the keeper runs on a Consul
server.
"""

import getpass
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from uwsgi_consul_fleet import durations
from uwsgi_consul_fleet.consul.access import access
from uwsgi_consul_fleet.errors import (
    FleetError,
    LockedError,
    LostLockError,
    RefusedError,
    UnreachableError,
)
from uwsgi_consul_fleet.host.lock_session import AUDIT, LOCK, Message, claim_in, now, seconds_since
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.lock import handle as keeper
from uwsgi_consul_fleet.ownership.identity import ForeignError, Identity
from uwsgi_consul_fleet.secrets import store
from uwsgi_consul_fleet.ssh.options import plain

INTERVAL = 0.25  # seconds between two tries while waiting for Consul
POLL = 1.0  # seconds between two looks at who has the lock
REMIND = 30.0  # seconds after which it is said again who is waited for
PATIENCE = 30.0  # seconds in which Consul must confirm the lock before the next step
CHECKED = 1.0  # seconds for which an answer of the keeper holds
ANSWER = 5.0  # seconds for what the keeper knows by itself
# Seconds for what it must ask a server: connections to all of them may have to be tried.
FAR_ANSWER = 90.0
LAST_ANSWER = 30.0


class Lock:
    """The lock of a fleet, to be taken, checked at each step, and finished."""

    def __init__(self, servers: Iterable[Host]) -> None:
        """Start the keeper, which connects to a Consul server; nothing is taken yet.

        :param servers: whose agents can be asked, in the order in which they are tried
        """
        self._id = uuid4().hex
        self._began = 0.0
        self._held = False
        self._checked = 0.0
        self._seen: str | None = None
        self._claim: Message = {}
        self._keeper = keeper.get()
        self._servers = [*servers]
        self._told: list[Message] | None = None
        self.tell()

    def tell(self) -> None:
        """Let the keeper show to Consul what is shown by now: a fleet's secrets may have been made,
        or changed, since it was told."""
        known: list[Message] = [
            {"name": host.name, "data": plain(host.data), "stdin": access(host).stdin}
            for host in self._servers
        ]
        if known != self._told:
            self._told = known
            self._keeper.go_to(*known)

    def look(self, refuse: bool = True) -> None:
        """Note who had the lock last, before anything is decided: :meth:`take` refuses where
        somebody has changed the fleet since. Where Consul does not answer, nobody can.

        :raises LockedError: with ``refuse``, where somebody has it now
        """
        reply = self._keeper.ask({"do": "look"}, FAR_ANSWER)
        self._seen = reply.get("seen")
        if refuse and (holder := reply.get("holder")):
            raise _locked(holder)

    def wait(self, what: str, seconds: float, report: Callable[[str], None]) -> None:
        """Take the lock when whoever has it has ended, before anything is decided: what is read
        from here on, nobody overtakes. :meth:`take` says later what is done under it. Where Consul
        can't be asked, nothing is taken: that is for :meth:`take` to judge. A fleet's secrets are
        read again by whoever asks for them afterwards.

        :param what: what is done under it, such as ``deploy``
        :param seconds: at most
        :param report: is told whom it waits for, and again once in a while
        :raises LockedError: where somebody has it even then
        :raises FleetError: where the fleet's secrets can't be read again
        """
        deadline = time.monotonic() + seconds
        reminded = -math.inf
        before = "none"
        while True:
            # Only looked at: each try to take it would write into Consul.
            reply = self._keeper.ask({"do": "look"}, FAR_ANSWER)
            # Whoever has it may replace secrets, what is shown here too. They are read when it is
            # to be taken, and not at each look: a team's command may be slow.
            if (holder := reply.get("holder")) or reply["state"] == "refused" != before:
                self._forget_secrets()
            before = reply["state"]
            if not holder:
                try:
                    self.take(what, {})
                    return self._forget_secrets()
                except LockedError:  # by who else has waited
                    self._forget_secrets()
                    continue
                except (UnreachableError, RefusedError):
                    if math.isinf(reminded):
                        return self._forget_secrets()
                    # Whoever is waited for may be restarting Consul's servers.
            now = time.monotonic()
            if now > deadline:
                why = told(holder) if holder else "no Consul server answers"
                raise LockedError(f"{why}. Waited {durations.told(seconds)}")
            if holder and now - reminded >= REMIND:
                reminded = now
                report(f"{told(holder)}; waits for it, {durations.told(deadline - now)} at most")
            time.sleep(POLL)

    def _forget_secrets(self) -> None:
        for host in self._servers:
            store.forget(host.vault)

    def take(
        self,
        what: str,
        releases: Mapping[str, str],
        wait: float = 0,
        identity: Identity | None = None,
    ) -> None:
        """Take the lock.

        :param what: what is done under it, such as ``deploy``
        :param releases: the release that is to serve, for each service
        :param wait: seconds in which Consul may come up
        :param identity: whose the Consul must be; it is written down there, where nobody has yet
        :raises LockedError: saying who holds it, or had it since the look
        :raises ForeignError: where the Consul is another fleet's
        :raises RefusedError: where a token does not allow it
        :raises UnreachableError: where no Consul server can be asked
        """
        claim: Message = {"id": self._id, **operator(), "what": what, "releases": dict(releases)}
        if identity:
            claim["fleet"] = identity.as_dict()
        self._claim = {"since": now(), **claim}
        message = {"do": "take", "claim": claim}
        self.tell()
        self._began = self._began or time.monotonic()
        deadline = time.monotonic() + wait
        while (reply := self._keeper.ask(message, FAR_ANSWER))["state"] != "held":
            if reply["state"] == "locked":
                holder = reply["holder"]
                if holder is None:  # gone since
                    continue
                raise _locked(holder)
            if reply["state"] == "refused":
                raise RefusedError(f"cannot acquire the lock: {reply['reason']}")
            if reply["state"] == "foreign":
                other = Identity.parse(json.dumps(reply["fleet"]))
                raise ForeignError(
                    f"the hosts are of the fleet {identity}, and their Consul is of {other}: where "
                    "another first deploy went on at the same time, run this one again; nothing "
                    "was changed"
                )
            if time.monotonic() > deadline:
                why = _lost(reply) if reply["state"] == "lost" else reply["reason"]
                raise UnreachableError(f"cannot acquire the lock in Consul: {why}")
            time.sleep(INTERVAL)
        self._held = True
        self._checked = time.monotonic()
        self._expect_seen(reply["last"])
        self._seen = reply["last"].get("id", "")

    def _expect_seen(self, last: Message) -> None:
        if self._seen not in (None, last.get("id", "")):
            self.release()
            raise LockedError(
                f"the fleet was changed while this run looked at it ({_run(last)}): what it was "
                "about to do may be wrong by now. The same command again looks anew"
            )

    @property
    def held(self) -> bool:
        """Whether it was taken, and not finished."""
        return self._held

    def check(self, patience: float = 0) -> None:
        """Make sure that nobody else can have it.

        :param patience: seconds in which Consul may come back if it does not answer
        :raises LostLockError: where somebody else has it, or may have soon
        """
        deadline = time.monotonic() + patience
        while time.monotonic() - self._checked > CHECKED:
            reply = self._keeper.ask({"do": "check"}, ANSWER)
            if reply["state"] == "held":
                self._checked = time.monotonic()
            elif reply["state"] == "lost":
                raise LostLockError(_lost(reply))
            elif time.monotonic() > deadline:
                raise LostLockError(f"the lock may be lost: {reply.get('reason', '')}")
            else:
                time.sleep(INTERVAL)

    def expect(
        self, releases: Mapping[str, str], contents: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Write down which release each service should be on from now on.

        :param contents: of each service: those that it was put ``on``, and those that are
            ``refused`` since it was rolled back from them
        :raises LostLockError: where the lock is gone
        :raises UnreachableError: where Consul does not answer
        """
        message = {"do": "expect", "releases": dict(releases), "contents": contents or {}}
        self._note(message, "the releases")

    def begin(self, service: str, release: Message, host: str, state: str) -> Message:
        """Write down that app_release begins on a host. Where it was done for this release, or was
        begun and nobody knows how it ended, nothing is written.

        :param release: its ``release`` and its ``content``
        :param state: ``begun``, or ``done`` where it is not to run
        :returns: the record of that: its ``state`` (done, begun), ``host`` and ``since``; else
            nothing
        :raises LostLockError: where the lock is gone
        :raises UnreachableError: where Consul does not answer
        """
        message = {"do": "begin", "service": service, "release": release, "host": host}
        message["state"] = state
        before: Message = self._note(message, "the begin of app_release")["before"]
        return before

    def ended(self, service: str, release: Message, host: str, state: str) -> None:
        """Write down how it ended there: ``done`` or ``failed``; raises as :meth:`begin` does."""
        message = {"do": "ended", "service": service, "release": release, "host": host}
        self._note({**message, "state": state}, "the end of app_release")

    def _note(self, message: Message, what: str) -> Message:
        reply = self._keeper.ask(message, FAR_ANSWER)
        if reply["state"] == "lost":
            raise LostLockError(_lost(reply))
        if reply["state"] != "held":
            raise UnreachableError(f"{what} could not be written down: {reply['reason']}")
        return reply

    def finish(self, outcome: str, **detail: Any) -> None:
        """Write into the audit how it went, and let the lock go.

        :param outcome: ``ok``, ``failed`` or ``interrupted``
        :param detail: more to be written down, such as ``changed`` and ``failed`` hosts
        :raises UnreachableError: where it could not be written down
        """
        self._finish(self._ended(outcome, detail))

    def untaken(self, outcome: str, **detail: Any) -> Message:
        """What :meth:`finish` would write, of a run that went on without the lock."""
        return {**self._claim, **self._ended(outcome, detail)}

    def _ended(self, outcome: str, detail: Message) -> Message:
        return {"outcome": outcome, "seconds": round(time.monotonic() - self._began, 1), **detail}

    def release(self) -> None:
        """Let the lock go, with nothing to write down."""
        self._finish(None)

    def _finish(self, entry: Message | None) -> None:
        try:
            if self._held:
                reply = self._keeper.ask({"do": "finish", "entry": entry}, LAST_ANSWER)
                if entry is not None and reply["state"] != "finished":
                    reason = reply.get("reason") or reply["state"]
                    raise UnreachableError(f"not written into the audit: {reason}")
        finally:
            self._held = False
            self._keeper.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Finish what was not finished within."""
        if kind is None:
            self.finish("ok")
            return
        with suppress(UnreachableError):  # what went wrong before says more
            if issubclass(kind, FleetError):
                self.finish("failed", detail=str(error))
            else:
                self.finish("interrupted")


def holder(fleet: Fleet) -> Message | None:
    """Who holds the lock: the claim and its ``session``.

    :raises UnreachableError: where no Consul server can be asked
    :raises ForeignError: where it is not that of the inventory and its hosts
    """
    with _consul(fleet) as consul:
        _catalog().refuse_other(fleet, consul)
        _, entry = consul.kv.get(fleet.keys + LOCK)
    return {**claim_in(entry["Value"]), "session": entry.get("Session", "")} if entry else None


def unlock(fleet: Fleet, held: Message) -> None:
    """Take the lock away from this :func:`holder`, and from no other; whoever it is notices.

    :raises UnreachableError: where no Consul server can be asked
    """
    entry = {"what": "unlock", "since": now(), "outcome": "ok", "detail": told(held)}
    with _consul(fleet) as consul:
        if held["session"]:
            consul.session.destroy(held["session"])
        else:  # written by hand
            consul.kv.delete(fleet.keys + LOCK)
        consul.kv.put(fleet.keys + AUDIT + entry["since"], json.dumps({**operator(), **entry}))


@contextmanager
def _consul(fleet: Fleet) -> Iterator[Any]:
    catalog = _catalog()
    with catalog.api(fleet, "deploy") as way, catalog.client(way) as consul:
        yield consul


def _catalog() -> Any:
    # Not above: a deploy takes the lock without it, and it takes a tenth of a second to load.
    from uwsgi_consul_fleet.consul import catalog

    return catalog


def _locked(holder: Message) -> LockedError:
    return LockedError(f"{told(holder)}. Wait for it; if it is stale: invoke unlock")


def told(held: Message) -> str:
    """Who holds the lock, for the operator."""
    since = held.get("since", "")
    return (
        f"locked: {_run(held, 'runs')}"
        f"{f', since {since[:19]}Z ({durations.told(seconds_since(since))} ago)' if since else ''}"
    )


def _run(claim: Message, does: str = "ran") -> str:
    """Who does what, or did."""
    release = ", ".join(sorted(set((claim.get("releases") or {}).values())))
    fleet = claim.get("fleet")
    return (
        f"{claim.get('who', 'somebody')} on {claim.get('from', 'an unknown machine')} {does} "
        f"a {claim.get('what', 'deploy')}{' of ' + release if release else ''}"
        f"{' to the fleet ' + fleet['fleet'] if fleet else ''}"
    )


def _lost(reply: Message) -> str:
    """Why a run does not hold the lock any more, for the operator."""
    reason = (
        reply.get("reason") or "somebody removed it, or nothing was heard from here for too long"
    )
    return f"the lock was lost: {told(reply['holder']) if reply.get('holder') else reason}"


def operator() -> Message:
    """Who runs this, and where."""
    try:
        who = os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        who = str(os.getuid())
    return {"who": who, "from": socket.gethostname()}
