"""The session that holds the lock, and what it writes, against a real agent."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from consul_processes import Agent, until
from host_programs import PATIENCE, patient

from uwsgi_consul_fleet.consul import catalog
from uwsgi_consul_fleet.errors import LockedError, RefusedError
from uwsgi_consul_fleet.host import cluster, lock_session, unwritten
from uwsgi_consul_fleet.host.consul import CONTENTS, FLEET, KEYS, Access, Consul, UnavailableError
from uwsgi_consul_fleet.host.lock_session import (
    AUDIT,
    HELD,
    KEPT,
    LAST,
    LOCK,
    RELEASES,
    Keys,
    Lock,
    encoded,
)
from uwsgi_consul_fleet.inventory.model import Fleet
from uwsgi_consul_fleet.lock import keeper, lock
from uwsgi_consul_fleet.releases.rule import Content, Record

ANNA = {"who": "anna", "from": "laptop", "what": "deploy", "releases": {"shop": "r7"}}
TWICE_THE_TTL = 20  # seconds; Consul takes no shorter ttl than 10 s


def keys(agent: Agent) -> Keys:
    return Keys(Access(agent.url))


class Session:
    """lock_session.py as it runs on a server."""

    def __init__(
        self, agent: Agent, keys: str = KEYS, ttl: str = lock_session.TTL, **told: str
    ) -> None:
        file = agent.log.with_name("agent.json")
        file.write_text(json.dumps({"address": agent.url, "keys": keys}))
        how = ("--access-stdin", "--agent-file", str(file))
        self.process = subprocess.Popen(
            [*patient(ttl), *how, "lock-session"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin
        self.process.stdin.write(json.dumps(told) + "\n")

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply

    def hang_up(self) -> None:
        """What the death of the keeper looks like from here."""
        assert self.process.stdin
        self.process.stdin.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_session, "TIMEOUT", PATIENCE)


@pytest.fixture
def agent(unlocked_agent: Agent) -> Agent:
    return unlocked_agent


@pytest.fixture
def session() -> Iterator[Callable[[Agent], Session]]:
    started: list[Session] = []

    def start(agent: Agent, *keys: str, **told: str) -> Session:
        started.append(Session(agent, *keys, **told))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


Start = Callable[..., Session]


class LosesAnswers(Keys):
    """Does what it is asked, but the first answer of one kind comes too late."""

    def __init__(self, agent: Agent, kind: str) -> None:
        super().__init__(Access(agent.url))
        does = getattr(self, kind)

        def once(*arguments: Any) -> bool:
            setattr(self, kind, does)
            assert does(*arguments)
            raise UnavailableError("timed out")

        setattr(self, kind, once)


def audit(agent: Agent) -> list[dict[str, Any]]:
    found = agent.session.get(f"{agent.url}/v1/kv/{KEYS}{AUDIT}?keys", timeout=5)
    names = found.json() if found.ok else []
    return [agent.call("GET", f"/v1/kv/{key}?raw").json() for key in sorted(names)]


def is_free(agent: Agent) -> bool:
    return keys(agent).holder() is None


class TestTaking:
    def test_the_second_is_told_who_was_first(self, agent: Agent, session: Start) -> None:
        first, second = session(agent), session(agent)
        assert first.ask("take", claim=ANNA)["state"] == "held"
        reply = second.ask("take", claim={**ANNA, "who": "bert"})
        assert reply["state"] == "locked"
        assert ANNA.items() <= reply["holder"].items()
        assert 0 <= lock_session.seconds_since(reply["holder"]["since"]) < 60

    def test_fleets_that_use_one_consul_are_not_in_each_others_way(
        self, agent: Agent, session: Start
    ) -> None:
        places = (KEYS, f"{KEYS}fleets/shop/", f"{KEYS}fleets/blog/")
        for at in places:
            one = session(agent, at)
            identity = {"fleet": at, "id": at, "layout": 2}
            assert one.ask("take", claim={**ANNA, "fleet": identity})["state"] == "held"
            assert one.ask("expect", releases={"web": at})["state"] == "held"
            assert one.ask("finish", entry={"outcome": "ok"})["state"] == "finished"
        for at in places:
            found = agent.call("GET", f"/v1/kv/{at}{AUDIT}?keys").json()
            assert len(found) == 1
            assert agent.call("GET", f"/v1/kv/{at}{RELEASES}web?raw").text == at
        # One of them with another id is another fleet, by the same name.
        other = {"fleet": places[1], "id": "other", "layout": 2}
        reply = session(agent, places[1]).ask("take", claim={**ANNA, "fleet": other})
        assert (reply["state"], reply["fleet"]["id"]) == ("foreign", places[1])

    def test_one_of_many_at_once_gets_it(self, agent: Agent, session: Start) -> None:
        many = [session(agent) for _ in range(6)]
        for one in many:
            assert one.process.stdin
            one.process.stdin.write(json.dumps({"do": "take", "claim": ANNA}) + "\n")
            one.process.stdin.flush()
        states = [json.loads(one.process.stdout.readline())["state"] for one in many]  # type: ignore[union-attr]
        assert sorted(states) == ["held", *["locked"] * 5]
        assert len(agent.call("GET", "/v1/session/list").json()) == 1

    def test_a_value_that_somebody_else_wrote_holds_nobody(
        self, agent: Agent, session: Start
    ) -> None:
        agent.call("PUT", f"/v1/kv/{KEYS}{LOCK}", data="[1, 2]")
        assert keys(agent).holder() == {"session": ""}
        assert session(agent).ask("take", claim=ANNA)["state"] == "held"

    @pytest.mark.parametrize("lost", ["acquire", "hand_over"])
    def test_an_answer_that_was_lost_locks_nobody_out(self, agent: Agent, lost: str) -> None:
        def claim(attempt: int) -> dict[str, Any]:
            return {"do": "take", "claim": {**ANNA, "id": "1", "attempt": attempt}}

        one = Lock(LosesAnswers(agent, lost))
        before = {} if lost == "acquire" else {"session": one.answer(claim(0))["session"]}
        assert one.answer({**claim(1), **before})["state"] == "unavailable"
        taken = one.answer({**claim(2), **before})
        assert taken["state"] == "held"
        assert (keys(agent).holder() or {})["session"] == taken["session"]
        # Nor does somebody else get it, or an earlier attempt that comes late.
        other = {"do": "take", "claim": {**ANNA, "id": "2", "attempt": 9}}
        for late in (other, claim(1)):
            assert Lock(keys(agent)).answer(late)["state"] == "locked"
        one.answer({"do": "finish"})
        assert is_free(agent)

    def test_without_consul_it_says_so(self, new_agent: Callable[..., Agent]) -> None:
        one = Session(new_agent())  # never started
        reply = one.ask("take", claim=ANNA)
        one.process.kill()
        one.process.wait()
        assert reply["state"] == "unavailable"
        assert "Connection refused" in reply["reason"]

    def test_a_consul_that_does_not_allow_it_is_not_one_to_repair(
        self, guarded_agent: Agent, session: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else a deploy without the token would go on and configure it anew."""
        one = session(guarded_agent)

        class Here:
            """The keeper, without its way to a server."""

            def go_to(self, *_servers: dict[str, Any]) -> None:
                pass

            def ask(self, message: dict[str, Any], _timeout: float) -> dict[str, Any]:
                return one.ask(**message)

        monkeypatch.setattr(lock.keeper, "get", Here)
        with pytest.raises(RefusedError, match="403"):
            lock.Lock([]).take("deploy", {"shop": "r7"})


def sessions_at_hand(session: Start, agents: dict[str, Agent]) -> type:
    """Sessions as a keeper has them on these servers, without the way there."""

    class Here:
        def __init__(self, server: keeper.Server) -> None:
            self._session = session(agents[server.name])
            self.close = self._session.hang_up

        def ask(self, message: dict[str, Any]) -> dict[str, Any]:
            return self._session.ask(**message)

    return Here


class TestLooking:
    """What a run is told of others since it looked; see Lock.look in lock/lock.py."""

    def look(self, agent: Agent) -> Any:
        return Lock(keys(agent)).answer({"do": "look"})["seen"]

    def take(self, agent: Agent, who: str) -> tuple[Lock, dict[str, Any]]:
        one = Lock(keys(agent))
        reply = one.answer({"do": "take", "claim": {**ANNA, "id": who, "attempt": 1}})
        return one, reply["last"]

    def test_who_changed_something_since_is_seen(self, agent: Agent) -> None:
        before = self.look(agent)
        one, last = self.take(agent, "anna")
        assert last.get("id", "") == before
        assert self.look(agent) == HELD
        one.answer({"do": "finish", "entry": {"outcome": "ok"}})
        assert self.look(agent) == "anna"
        two, last = self.take(agent, "bert")
        assert ANNA.items() <= last.items()
        assert last["id"] == "anna" != before
        two.abandon()
        assert self.look(agent) == "bert"

    def test_who_changed_nothing_is_not(self, agent: Agent) -> None:
        one, _ = self.take(agent, "anna")
        one.abandon()
        two, _ = self.take(agent, "bert")
        two.answer({"do": "finish"})
        assert self.look(agent) == "anna"

    def test_who_goes_on_elsewhere_is_the_same(self, agent: Agent) -> None:
        before = self.look(agent)
        one = Lock(keys(agent))
        claim = {**ANNA, "id": "anna", "attempt": 1}
        taken = one.answer({"do": "take", "claim": claim})
        successor = Lock(keys(agent))
        again = {**taken["claim"], "attempt": 2}
        reply = successor.answer({"do": "take", "claim": again, "session": taken["session"]})
        assert reply["last"] == taken["last"]
        successor.answer({"do": "finish"})
        assert self.look(agent) == before

    def test_where_an_agent_is_down_another_one_is_asked(
        self,
        agent: Agent,
        new_agent: Callable[..., Agent],
        session: Start,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        agents = {"s1": new_agent(), "s2": agent}
        monkeypatch.setattr(keeper, "Session", sessions_at_hand(session, agents))
        self.take(agent, "anna")
        kept = keeper.Keeper([keeper.Server(name, {}, "") for name in agents])
        assert kept.ask({"do": "look"})["seen"] == HELD

    def test_another_fleets_consul_is_left_as_it_is(self, agent: Agent) -> None:
        agent.call("PUT", f"/v1/kv/{KEYS}{FLEET}", json={"id": "theirs", "fleet": "t", "layout": 2})
        claim = {**ANNA, "id": "anna", "fleet": {"id": "ours", "fleet": "o", "layout": 2}}
        assert Lock(keys(agent)).answer({"do": "take", "claim": claim})["state"] == "foreign"
        assert keys(agent).call("GET", f"/v1/kv/{KEYS}{LAST}") is None


class TestWaiting:
    """See Lock.wait in lock/lock.py."""

    @pytest.fixture
    def run(
        self, agent: Agent, session: Start, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[], lock.Lock]:
        """Makes a run's lock, with its keeper in this process."""
        monkeypatch.setattr(keeper, "Session", sessions_at_hand(session, {"s1": agent}))

        class Handle:
            def __init__(self) -> None:
                self.kept = keeper.Keeper([keeper.Server("s1", {}, "")])
                self.send = self.end = self.go_to = lambda *_: None

            def ask(self, message: dict[str, Any], _timeout: float) -> dict[str, Any]:
                return self.kept.answer(message)

        monkeypatch.setattr(lock.keeper, "get", Handle)
        monkeypatch.setattr(lock, "POLL", 0.05)
        return lambda: lock.Lock([])

    def test_a_run_has_its_turn_before_it_decides(
        self, agent: Agent, run: Callable[[], lock.Lock]
    ) -> None:
        one, two, said = run(), run(), list[str]()
        one.take("deploy", {"shop": "r7"})

        def end(line: str) -> None:
            said.append(line)
            one.finish("ok")

        two.wait("deploy", 60, end)
        assert len(said) == 1
        assert "runs a deploy of r7" in said[0]
        assert re.search(r"waits for it, \d+ s at most$", said[0])
        with pytest.raises(LockedError):
            run().take("deploy", {})
        two.take("deploy", {"shop": "r8"})
        claim = keys(agent).holder() or {}
        assert claim["releases"] == {"shop": "r8"}
        two.release()
        # It changed nothing, so it is in nobody's way.
        assert keys(agent).last()["releases"] == {"shop": "r7"}
        assert is_free(agent)

    def test_it_gives_up_in_time(self, run: Callable[[], lock.Lock]) -> None:
        one, said = run(), list[str]()
        one.take("deploy", {"shop": "r7"})
        with pytest.raises(LockedError, match=r"a deploy of r7.*Waited 1 s") as raised:
            run().wait("deploy", 1, said.append)
        assert raised.value.exit_code == 75
        assert len(said) == 1

    def test_who_lost_it_while_it_decided_is_overtaken(
        self, agent: Agent, run: Callable[[], lock.Lock]
    ) -> None:
        one, two = run(), run()
        one.wait("deploy", 1, str)
        keys(agent).destroy((keys(agent).holder() or {})["session"])
        two.take("deploy", {"shop": "r8"})
        two.finish("ok")
        with pytest.raises(LockedError, match="was changed while this run looked at it"):
            one.take("deploy", {"shop": "r9"})
        assert is_free(agent)

    def test_without_consul_it_goes_on(
        self,
        new_agent: Callable[..., Agent],
        session: Start,
        run: Callable[[], lock.Lock],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        nobody = new_agent()  # never started
        monkeypatch.setattr(keeper, "Session", sessions_at_hand(session, {"s1": nobody}))
        run().wait("deploy", 60, str)


def test_what_was_done_without_consul_is_written_there_by_who_comes_next(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unwritten, "FILE", tmp_path / "unwritten")

    def ask(do: str, **arguments: Any) -> dict[str, Any]:
        return one.answer({"do": do, **arguments})

    def take(who: str) -> dict[str, Any]:
        return ask("take", claim={**ANNA, "id": who, "attempt": 1})

    one = Lock(keys(agent))
    take("bert")
    ask("expect", releases={"shop": "r7"})
    ask("finish", entry={"outcome": "ok"})
    back = {**ANNA, "id": "anna", "what": "rollback", "outcome": "ok", "since": lock_session.now()}
    r6, r7 = ({"release": f"r{each}", "content": str(each)} for each in (6, 7))
    contents = {"shop": {"on": [r6], "refused": [r7]}}
    told = json.dumps({"releases": {"shop": "r6"}, "contents": contents, "entry": back})
    unwritten.keep(told)
    keys(agent).record({**ANNA, "what": "exec", "since": lock_session.now()})  # changes nothing
    # Who looked before is told that something happened since.
    assert ask("look")["seen"] == "anna"
    assert take("carl")["last"]["id"] == "anna"
    assert keys(agent).call("GET", f"/v1/kv/{KEYS}{RELEASES}shop")[0]["Value"] == encoded("r6")
    assert contents["shop"].items() <= keys(agent).value(f"{CONTENTS}shop").items()
    assert [entry.get("id") for entry in audit(agent)] == ["bert", "anna", None]
    assert not unwritten.read()
    ask("expect", releases={"shop": "r8"})
    ask("finish", entry={"outcome": "ok"})
    # Another server, which was told as well, is asked for the first time since.
    unwritten.keep(told)
    assert ask("look")["seen"] == "carl"
    assert take("dora")["last"]["id"] == "carl"
    assert keys(agent).call("GET", f"/v1/kv/{KEYS}{RELEASES}shop")[0]["Value"] == encoded("r8")
    assert len(audit(agent)) == 4
    assert not unwritten.read()


def test_a_roll_back_that_failed_leaves_the_record_and_says_that_it_is_over(agent: Agent) -> None:
    one, key = Lock(keys(agent)), f"{CONTENTS}shop"
    one.answer({"do": "take", "claim": {**ANNA, "id": "anna", "attempt": 1}})

    def expect(*on: dict[str, str], refused: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
        contents = {"shop": {"on": on, "refused": refused}}
        told = {"do": "expect", "releases": {}, "contents": contents}
        assert one.answer(told)["state"] == "held"
        return keys(agent).value(key)

    assert expect() == {}
    r6, r7 = ({"release": f"r{each}", "content": str(each)} for each in (6, 7))
    before = expect(r6, refused=[r7])
    after = expect()
    assert after == {**before, "since": after["since"]}
    assert after["since"] > before["since"]


def test_whose_the_hosts_are_is_asked_once(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def api(_fleet: Any, role: str) -> Iterator[catalog.Way]:
        assert role == "deploy"
        yield catalog.Way("drakar", urlsplit(agent.url).port or 0)

    asked: list[Any] = []
    monkeypatch.setattr(catalog, "api", api)
    monkeypatch.setattr(catalog, "refuse_other", lambda fleet, _consul: asked.append(fleet))
    Lock(keys(agent)).answer({"do": "take", "claim": ANNA})
    fleet = Fleet(())
    found = lock.holder(fleet)
    assert found and ANNA.items() <= found.items()
    lock.unlock(fleet, found)
    assert is_free(agent)
    assert asked == [fleet]


class TestLettingGo:
    def test_a_run_that_ends_frees_it_and_is_recorded(self, agent: Agent, session: Start) -> None:
        one = session(agent)
        one.ask("take", claim=ANNA)
        reply = one.ask("finish", entry={"outcome": "ok", "seconds": 4.2, "changed": ["drakar"]})
        assert reply == {"state": "finished"}
        assert is_free(agent)
        one.hang_up()
        one.process.wait(10)
        keys(agent).record(audit(agent)[0])  # once more, after an answer that was lost
        (entry,) = audit(agent)
        expected = {**ANNA, "outcome": "ok", "seconds": 4.2, "changed": ["drakar"]}
        assert expected.items() <= entry.items()
        assert session(agent).ask("take", claim=ANNA)["state"] == "held"

    def test_a_run_with_nothing_to_tell_is_not_recorded(self, agent: Agent, session: Start) -> None:
        one = session(agent)
        one.ask("take", claim=ANNA)
        one.ask("finish")
        assert is_free(agent)
        assert audit(agent) == []

    def test_it_is_free_at_once_when_the_holder_dies(self, agent: Agent, session: Start) -> None:
        one = session(agent)
        one.ask("take", claim=ANNA)
        one.hang_up()
        # Sooner than without the hang-up: after 15 s the session gives up by itself.
        until(lambda: is_free(agent), "the lock is free", 13)
        one.process.wait(10)
        (entry,) = audit(agent)
        assert (entry["who"], entry["outcome"]) == ("anna", "interrupted")

    @pytest.mark.takes(20)
    def test_it_is_free_when_nothing_is_heard_from_the_holder(
        self, agent: Agent, session: Start
    ) -> None:
        one = session(agent, ttl="60s")  # so that Consul does not let it go
        one.ask("take", claim=ANNA)
        until(lambda: is_free(agent), "the lock is free", 45)
        one.process.wait(10)
        assert [entry["outcome"] for entry in audit(agent)] == ["interrupted"]

    @pytest.mark.takes(20)
    def test_it_is_free_when_the_server_that_keeps_it_stands_still(
        self, agent: Agent, session: Start
    ) -> None:
        one = session(agent)
        one.ask("take", claim=ANNA)
        one.process.send_signal(signal.SIGSTOP)
        until(lambda: is_free(agent), "the lock is free", TWICE_THE_TTL + 10)
        assert session(agent).ask("take", claim=ANNA)["state"] == "held"


class TestHolding:
    @pytest.mark.takes(20)
    def test_beats_keep_it(self, agent: Agent, session: Start) -> None:
        one = session(agent)
        one.ask("take", claim=ANNA)
        end = time.monotonic() + TWICE_THE_TTL + 2
        while time.monotonic() < end:
            assert one.ask("beat") == {"state": "held"}
            time.sleep(1)
        assert session(agent).ask("take", claim=ANNA)["state"] == "locked"

    def test_another_takes_over_from_one_that_is_cut_off(
        self, agent: Agent, session: Start
    ) -> None:
        cut_off, successor = session(agent), session(agent)
        taken = cut_off.ask("take", claim=ANNA)
        reply = successor.ask("take", claim=taken["claim"], session=taken["session"])
        assert reply["state"] == "held"
        assert reply["claim"] == taken["claim"]
        assert len(agent.call("GET", "/v1/session/list").json()) == 1
        cut_off.hang_up()
        cut_off.process.wait(10)
        assert successor.ask("beat") == {"state": "held"}
        assert audit(agent) == []

    def test_who_is_to_forget_it_leaves_it_to_the_successor(
        self, agent: Agent, session: Start
    ) -> None:
        first, successor = session(agent), session(agent)
        taken = first.ask("take", claim=ANNA)
        assert first.ask("forget") == {"state": "none"}
        first.hang_up()
        first.process.wait(10)
        reply = successor.ask("take", claim=taken["claim"], session=taken["session"])
        assert reply["state"] == "held"
        assert audit(agent) == []

    def test_nobody_takes_over_what_is_gone(self, agent: Agent, session: Start) -> None:
        taken = session(agent).ask("take", claim=ANNA)
        keys(agent).destroy(taken["session"])
        bert = {**ANNA, "who": "bert"}
        assert session(agent).ask("take", claim=bert)["state"] == "held"
        reply = session(agent).ask("take", claim=taken["claim"], session=taken["session"])
        assert reply["state"] == "lost"
        assert reply["holder"]["who"] == "bert"

    def test_an_agent_that_restarts_is_no_loss(
        self, new_agent: Callable[..., Agent], session: Start, tmp_path: Path
    ) -> None:
        options = ("-server", "-bootstrap-expect", "1", "-data-dir", str(tmp_path / "data"))
        # A server alone elects itself within a second then, and not within ten.
        config = "performance { raft_multiplier = 1 }"
        agent = new_agent(*options, config=config).start()
        one = session(agent)
        one.ask("take", claim=ANNA)
        agent.kill()
        assert one.ask("beat")["state"] == "unavailable"
        agent.start(wait=False)
        # Before a server has read its log again it knows no sessions.
        until(lambda: one.ask("beat")["state"] != "unavailable", "an answer", 30)
        assert one.ask("beat") == {"state": "held"}

    def test_who_was_unlocked_notices_and_writes_no_expectation(
        self, agent: Agent, session: Start
    ) -> None:
        one = session(agent)
        one.ask("take", claim=ANNA)
        keys(agent).destroy((keys(agent).holder() or {})["session"])
        assert one.ask("expect", releases={"shop": "r7"})["state"] == "lost"
        assert one.ask("beat") == {"state": "lost", "holder": None}
        assert keys(agent).call("GET", f"/v1/kv/{KEYS}{RELEASES}shop") is None


DEPLOY, BEFORE = (f"{number}c5d6a31-3d0b-4c6e-9a3e-0d5f0c9a7b11" for number in (1, 2))
MAY = f'key_prefix "{KEYS}" {{ policy = "write" }} session_prefix "" {{ policy = "write" }}'


class TestAccessControl:
    """A cluster that gets it while the lock is held, and loses a token that it was held with."""

    @pytest.fixture
    def server(self, new_agent: Callable[..., Agent], tmp_path: Path) -> Agent:
        options = ("-server", "-bootstrap-expect", "1", "-data-dir", str(tmp_path / "data"))
        return new_agent(*options, config="performance { raft_multiplier = 1 }").start()

    @staticmethod
    def restart(server: Agent, policy: str) -> None:
        server.kill()
        acl = f' acl {{ enabled = true default_policy = "{policy}" down_policy = "extend-cache" }}'
        server.config = server.config.partition(" acl {")[0] + acl
        server.start(wait=False)

    @staticmethod
    def stays(one: Session) -> None:
        """A restart makes it unsure, and no more than that."""

        def held() -> bool:
            reply = one.ask("beat")
            assert reply["state"] in ("held", "unavailable", "refused"), reply
            return bool(reply["state"] == "held")

        until(held, "it is still held", 30)

    @staticmethod
    def bootstrap(server: Agent) -> None:
        """The tokens that there are at the end of the first step, and the deploy's."""

        def done() -> bool:
            try:
                answer = requests.put(f"{server.url}/v1/acl/bootstrap", timeout=30)
            except requests.ConnectionError:
                return False
            if answer.ok:
                server.session.headers["X-Consul-Token"] = answer.json()["SecretID"]
            return answer.ok

        until(done, "a management token", 30)
        server.call("PUT", "/v1/acl/policy", data=json.dumps({"Name": "deploy", "Rules": MAY}))

    @staticmethod
    def make(server: Agent, secret: str) -> str:
        body = {"SecretID": secret, "Policies": [{"Name": "deploy"}], "Local": True}
        made = server.call("PUT", "/v1/acl/token", data=json.dumps(body)).json()
        return str(made["AccessorID"])

    @pytest.mark.takes(60)
    def test_it_stays_held_from_none_to_deny(self, server: Agent, session: Start) -> None:
        one = session(server, token=DEPLOY, other="")
        assert one.ask("take", claim=ANNA)["state"] == "held"
        self.restart(server, "allow")
        self.stays(one)
        # Nobody has made its token yet.
        assert one.ask("expect", releases={"shop": "r1"})["state"] == "held"
        self.bootstrap(server)
        assert one.ask("beat")["state"] == "held"
        self.make(server, DEPLOY)
        assert one.ask("beat")["state"] == "held"
        self.restart(server, "deny")
        self.stays(one)
        assert one.ask("expect", releases={"shop": "r2"}) == {"state": "held"}
        assert one.ask("finish", entry={"outcome": "ok"}) == {"state": "finished"}
        (entry,) = audit(server)
        assert (entry["who"], entry["outcome"]) == ("anna", "ok")
        assert server.call("GET", f"/v1/kv/{KEYS}{RELEASES}shop?raw").text == "r2"

    @pytest.mark.takes(60)
    def test_the_deploys_token_is_replaced_while_it_is_held(
        self, server: Agent, session: Start
    ) -> None:
        self.restart(server, "allow")
        self.bootstrap(server)
        accessor = self.make(server, BEFORE)
        self.restart(server, "deny")
        one = session(server, token=DEPLOY, other=BEFORE)
        until(lambda: one.ask("take", claim=ANNA)["state"] == "held", "it is taken", 30)
        assert one.ask("expect", releases={"shop": "r1"}) == {"state": "held"}
        self.make(server, DEPLOY)
        assert one.ask("beat") == {"state": "held"}
        server.call("DELETE", f"/v1/acl/token/{accessor}")
        assert one.ask("beat") == {"state": "held"}
        assert one.ask("expect", releases={"shop": "r2"}) == {"state": "held"}

    @pytest.mark.takes(60)
    def test_tokens_that_are_not_known_under_deny_take_nothing(
        self, server: Agent, session: Start
    ) -> None:
        self.restart(server, "allow")
        self.bootstrap(server)
        self.make(server, BEFORE)
        one = session(server, token=DEPLOY, other="")
        assert one.ask("take", claim=ANNA)["state"] == "held"
        self.restart(server, "deny")
        until(lambda: one.ask("beat")["state"] == "refused", "it is refused", 30)
        # A transaction is refused with another status than everything else.
        assert one.ask("expect", releases={"shop": "r2"})["state"] == "refused"


class TestWhatIsWritten:
    def test_the_audit_keeps_the_latest(self, agent: Agent, session: Start) -> None:
        for number in range(KEPT + 5):
            key = f"{KEYS}{AUDIT}2026-01-01T00:00:00.{number:06}Z"
            agent.call("PUT", f"/v1/kv/{key}", data=json.dumps({"number": number}))
        one = session(agent)
        one.ask("take", claim=ANNA)
        one.ask("finish", entry={"outcome": "ok"})
        entries = audit(agent)
        assert len(entries) == KEPT
        assert entries[0] == {"number": 6}
        assert entries[-1]["who"] == "anna"

    def test_expected_releases_are_in_the_catalog(self, agent: Agent, session: Start) -> None:
        one = session(agent)
        one.ask("take", claim=ANNA)
        assert one.ask("expect", releases={"shop": "r7", "bar": "r1"}) == {"state": "held"}
        one.ask("expect", releases={"shop": "r8"})
        port = int(agent.url.rpartition(":")[2])
        for service in ("shop", "bar", "none-of-ours"):
            agent.register(2001, service=service)
        way = catalog.Way("drakar", port)
        found = catalog.read(way, ["shop"])
        assert found.expected_releases == {"shop": "r8", "bar": "r1"}
        assert [each.service for each in found.registrations] == ["shop"]
        whole = catalog.read(way, ["shop"], whole=True)
        assert [each.service for each in whole.registrations] == ["shop", "bar"]

    def test_what_a_service_was_put_to_is_told_by_the_servers(
        self, agent: Agent, session: Start
    ) -> None:
        one = session(agent)
        one.ask("take", claim=ANNA)
        old, new = ({"release": f"r{each}", "content": str(each)} for each in (1, 2))
        for on, refused in ((new, []), (old, [new]), (old, [])):
            said = {"shop": {"on": [on], "refused": refused}}
            assert one.ask("expect", releases={}, contents=said) == {"state": "held"}
        known = cluster.status(Consul(Access(agent.url)))["contents"]
        found = Record.parse(known["shop"])
        assert found
        assert (found.on, found.refused) == ((Content("r1", "1"),), (Content("r2", "2"),))


def test_app_release_is_written_down_for_each_release(agent: Agent) -> None:
    one = Lock(keys(agent))
    r6, r7 = ({"release": f"r{each}", "content": str(each)} for each in (6, 7))

    def begin(release: dict[str, str], host: str, **more: str) -> dict[str, Any]:
        told = {"do": "begin", "service": "shop", "release": release, "host": host, **more}
        reply = one.answer(told)
        assert reply.pop("state") == "held", reply
        return dict(reply["before"])

    def ended(release: dict[str, str], state: str) -> dict[str, Any]:
        told = {"service": "shop", "release": release, "host": "drakar", "state": state}
        return one.answer({"do": "ended", **told})

    assert (
        one.answer({"do": "begin", "service": "shop", "release": r6, "host": "drakar"})["state"]
        == "lost"
    )
    one.answer({"do": "take", "claim": {**ANNA, "id": "anna", "attempt": 1}})
    assert begin(r6, "drakar") == {}
    # Of which nobody knows how it ended.
    known = {"state": "begun", "host": "drakar", **r6}
    assert known.items() <= begin(r6, "cheetah").items()
    assert ended(r6, "failed") == {"state": "held"}
    assert begin(r6, "cheetah") == {}
    ended(r6, "done")
    assert begin(r7, "cheetah") == {}
    assert begin(r6, "cheetah")["state"] == "done"
    # Also when it is deployed again long after.
    key = f"/v1/kv/{KEYS}{lock_session.RAN}shop"
    ran = one.keys.value(f"{lock_session.RAN}shop")["ran"]
    before = next(each for each in ran if r6.items() <= each.items())
    later = [{**before, "release": f"r{each}"} for each in range(100, 250)]
    agent.call("PUT", key, json={"ran": [before, *later]})
    ended(r7, "done")
    assert begin(r6, "cheetah")["state"] == "done"
    # The same content under a new name is a release of its own.
    assert begin({**r6, "release": "again"}, "cheetah") == {}
    # One that is not to run.
    r8 = {"release": "r8", "content": "8"}
    assert begin(r8, "drakar", state="done") == {}
    assert begin(r8, "cheetah")["state"] == "done"
