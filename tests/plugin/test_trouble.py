"""Agents that are down, that hang, that lose what they knew, and that answer nonsense."""

import signal
import socket
import time
from collections.abc import Callable

import pytest
from consul_processes import until
from uwsgi_processes import Agent, FakeAgent, Seen, Uwsgi

Start = Callable[..., Uwsgi]


def troubles(uwsgi: Uwsgi) -> list[str]:
    return [line for line in uwsgi.consul_lines() if "no answer from the agent" in line]


def beats_on(fake: FakeAgent, services: set[str]) -> None:
    """Each at least once in its ttl of a second, from now on."""
    begin = len(fake.seen)

    def state() -> bool:
        paths = [seen.path for seen in fake.seen[begin:]]
        return all(paths.count(f"/v1/agent/check/pass/service:{one}") >= 8 for one in services)

    until(state, "eight beats of each", 8)


# ---- lost registrations ----


def test_deregistered_behind_its_back(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=90")  # a beat would notice it too, much later
    until(lambda: agent.passing(name), "it is registered")
    agent.forget(name)
    until(lambda: agent.passing(name), "it is back", 20)
    assert uwsgi.said(f"{name}: the agent has lost the registration")


def test_one_of_many_is_deregistered(start: Start, agent: Agent, name: str) -> None:
    start([f"url={agent.url},name={name},id={name}-{number},ttl=90" for number in range(5)])
    until(lambda: len(agent.passing(name)) == 5, "they are registered")
    agent.forget(f"{name}-3")
    until(lambda: len(agent.passing(name)) == 5, "it is back", 20)


def test_an_agent_restarted_without_its_data(start: Start, own_agent: Agent) -> None:
    uwsgi = start(f"url={own_agent.url},name=a,ttl=90").ready()
    until(lambda: own_agent.passing("a"), "it is registered")
    own_agent.kill()
    until(lambda: troubles(uwsgi), "it is noticed")
    own_agent.start(wait=False)
    until(own_agent.answers, "the agent answers")
    until(lambda: "a" in own_agent.get("/v1/agent/services"), "it is back", 20)
    assert len(troubles(uwsgi)) <= 5
    assert uwsgi.said("answers again, after ")


def test_a_lost_check_comes_back(start: Start, agent: Agent, name: str) -> None:
    start(f"url={agent.url},name={name},ttl=1")
    until(lambda: agent.passing(name), "it is registered")
    agent.put(f"/v1/agent/check/deregister/service:{name}")
    until(lambda: agent.status(name) == "passing", "its check is back")


# ---- agents that do not answer ----


def test_an_agent_that_is_not_there_yet(start: Start, own_agent: Agent) -> None:
    own_agent.kill()
    uwsgi = start(f"url={own_agent.url},name=a").ready()
    until(lambda: troubles(uwsgi), "it is noticed")
    time.sleep(1)  # several tries
    own_agent.start(wait=False)
    until(own_agent.answers, "the agent answers")
    until(lambda: "a" in own_agent.get("/v1/agent/services"), "it is registered")
    assert len(troubles(uwsgi)) <= 5


def test_an_agent_that_was_stopped_when_uwsgi_started(start: Start, own_agent: Agent) -> None:
    own_agent.pause()
    # A request is given up after twice the time for a connection: this is not waited for.
    uwsgi = start(f"url={own_agent.url},name=a,connect_timeout=30").ready()
    until(lambda: uwsgi.said("silence"), "it is noticed")
    own_agent.resume()
    until(lambda: "a" in own_agent.get("/v1/agent/services"), "it is registered")
    until(lambda: uwsgi.said("answers again"), "that is noticed as well")


def test_an_agent_that_never_answers_old_requests(start: Start, fake: FakeAgent) -> None:
    """What hung before stays hung; only new requests are answered."""
    fake.behave = lambda _: "hang"
    start(f"url={fake.url},name=a,connect_timeout=30").ready()
    until(lambda: len(fake.seen) >= 3, "it tries on")
    fake.behave = lambda _: None
    until(lambda: fake.services, "it is registered")


def test_an_agent_that_takes_its_time(start: Start, fake: FakeAgent) -> None:
    """Each request takes longer than it takes until a second attempt is made."""

    def slowly(_: object) -> None:
        time.sleep(1.5)

    fake.behave = slowly
    start(f"url={fake.url},name=a")
    until(lambda: fake.requests("/check/pass/") or fake.requests("/agent/services"), "it goes on")
    assert fake.services


def unreachable() -> tuple[socket.socket, list[socket.socket], str]:
    """A port whose packets get no answer: its listener's queue is full, so SYNs are dropped."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
        fillers.append(filler)
    time.sleep(0.1)
    return listener, fillers, f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("drain", [0, 1])
def test_an_unreachable_agent_delays_neither_start_nor_stop(start: Start, drain: int) -> None:
    listener, fillers, url = unreachable()
    uwsgi = start(f"url={url},name=a,drain={drain},connect_timeout=30").ready(20)
    until(lambda: troubles(uwsgi), "it is noticed")
    began = time.monotonic()
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert time.monotonic() - began < 20  # bench/ has the figures
    for one in (listener, *fillers):
        one.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP])
def test_a_stop_while_a_request_hangs(start: Start, fake: FakeAgent, how: int) -> None:
    fake.behave = lambda seen: "hang" if "/check/" in seen.path else None
    line = f"url={fake.url},name=a,ttl=1,drain=0,connect_timeout=30"
    uwsgi = start(line, options=["exit-on-reload = true"]).ready()
    until(lambda: fake.requests("/check/"), "a beat hangs")
    uwsgi.signal(how)
    assert uwsgi.wait() == 0
    assert fake.services == {}


def test_a_reload_while_a_request_hangs(start: Start, fake: FakeAgent) -> None:
    fake.behave = lambda _: "hang"
    uwsgi = start(f"url={fake.url},name=a,ttl=1,connect_timeout=30").ready()
    until(lambda: fake.seen, "a registration hangs")
    uwsgi.signal(signal.SIGHUP)
    until(lambda: "(RE)spawned" in uwsgi.log, "it reloads")
    fake.behave = lambda _: None
    until(lambda: fake.services, "it is registered")


def test_a_deregistration_that_hangs(start: Start, fake: FakeAgent) -> None:
    fake.behave = lambda seen: "hang" if "/deregister/" in seen.path else None
    uwsgi = start(f"url={fake.url},name=a,drain=1,connect_timeout=30").ready()
    until(lambda: fake.services, "it is registered")
    began = time.monotonic()
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert time.monotonic() - began < 20
    assert uwsgi.said("a: not deregistered, the agent at")


def test_a_list_that_hangs_delays_no_beat(start: Start, fake: FakeAgent) -> None:
    """Nor do look-ups: a proxy may let nothing through but what changes something."""
    fake.behave = lambda seen: "hang" if seen.method == "GET" else None
    uwsgi = start([f"url={fake.url},name=a,id=a{number},ttl=1" for number in range(3)])
    until(lambda: len(fake.services) == 3, "they are registered")
    uwsgi.signal(signal.SIGHUP)  # after which each is looked up
    until(lambda: "gracefully (RE)spawned" in uwsgi.log, "it has reloaded")
    beats_on(fake, {f"a{number}" for number in range(3)})


@pytest.mark.parametrize("how", [(500, "no leader"), (429, "slow down"), "close"])
def test_look_ups_that_fail_put_off_no_beat(start: Start, fake: FakeAgent, how: object) -> None:
    uwsgi = start([f"url={fake.url},name=a,id=a{number},ttl=10" for number in range(2)])
    until(lambda: len(fake.services) == 2, "they are registered")
    fake.behave = lambda seen: how if seen.method == "GET" else None
    uwsgi.signal(signal.SIGHUP)  # after which each is looked up
    until(lambda: "gracefully (RE)spawned" in uwsgi.log, "it has reloaded")
    begin = len(fake.seen)

    def beating() -> set[str]:
        return {seen.path for seen in fake.seen[begin:] if "/check/" in seen.path}

    until(lambda: len(beating()) == 2, "both beat, after half of their interval", 6)
    assert len(fake.requests("/service/register")) == 2


def test_beats_without_an_answer_put_off_no_look_up(start: Start, fake: FakeAgent) -> None:
    start(f"url={fake.url},name=a,ttl=1")
    until(lambda: fake.services, "it is registered")

    def behave(seen: Seen) -> str | None:
        looks = len(fake.requests("/agent/service/a", "GET"))
        is_early = seen.path.endswith("/agent/service/a") and looks < 6
        return "close" if is_early or "/check/" in seen.path else None

    fake.behave = behave
    fake.services.clear()
    until(lambda: fake.services, "it is registered again")


def test_an_agent_at_its_limit_hears_on(start: Start, fake: FakeAgent) -> None:
    uwsgi = start(f"url={fake.url},name=a,ttl=1").ready()
    until(lambda: fake.requests("/check/"), "it beats")
    fake.behave = lambda _: (429, "slow down")
    begin = len(fake.seen)
    until(lambda: len([1 for seen in fake.seen[begin:] if "/check/" in seen.path]) > 2, "beats")
    fake.behave = lambda _: None
    begin = len(fake.seen)
    until(lambda: [1 for seen in fake.seen[begin:] if "/agent/services" in seen.path], "lists", 10)
    assert len(fake.requests("/service/register")) == 1, "a limit says nothing of a registration"
    assert uwsgi.said_times("HTTP 429") == 1


# ---- agents that answer nonsense ----

NONSENSE = {
    "500": (500, "rpc error: no cluster leader"),
    "403": (403, "Permission denied"),
    "400": (400, "Invalid service address"),
    "301": (301, ""),
    "close": "close",
    "garbage": "garbage",
    "slow": "slow",
    "huge": "huge",
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_survived_and_noted_once(start: Start, fake: FakeAgent, kind: str) -> None:
    fake.behave = lambda _: NONSENSE[kind]
    uwsgi = start(f"url={fake.url},name=a,ttl=1,drain=0").ready()
    until(lambda: len(fake.seen) >= 3, "it tries on")
    noted = [line for line in uwsgi.consul_lines() if "refuses" in line or "no answer" in line]
    assert len(noted) <= 1 + (kind == "huge")
    fake.behave = lambda _: None
    until(lambda: fake.services, "it is registered in the end")
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert fake.services == {}
    # uWSGI's own lines are one line each, and so are ours.
    assert all(len(line) < 400 for line in uwsgi.consul_lines())


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_in_the_middle(start: Start, fake: FakeAgent, kind: str) -> None:
    uwsgi = start(f"url={fake.url},name=a,ttl=1,drain=0").ready()
    until(lambda: fake.requests("/check/"), "it beats")
    fake.behave = lambda _: NONSENSE[kind]
    count = len(fake.seen)
    until(lambda: len(fake.seen) > count + 2, "it tries on")
    assert uwsgi.serves()
    fake.behave = lambda _: None
    fake.services.clear()
    until(lambda: fake.services, "it is registered again")


def test_an_answer_without_an_end_is_not_fetched_all_the_time(
    start: Start, fake: FakeAgent
) -> None:
    fake.behave = lambda seen: "huge" if seen.method == "GET" else None
    start(f"url={fake.url},name=a,ttl=1")
    until(lambda: fake.requests("/agent/services"), "it asks for the list")
    time.sleep(3)
    lists = [seen.at for seen in fake.requests("/agent/services")]
    # Not between two: one that takes too long is sent a second time.
    assert all(third - first >= 2 for first, third in zip(lists, lists[2:], strict=False))
    until(lambda: len(fake.requests("/check/")) >= 6, "it beats meanwhile", 4)


def test_a_look_up_without_an_end_delays_no_other_beat(start: Start, fake: FakeAgent) -> None:
    uwsgi = start([f"url={fake.url},name=a,id=a{number},ttl=1" for number in range(2)])
    until(lambda: len(fake.services) == 2, "they are registered")
    fake.behave = lambda seen: "huge" if seen.path.endswith("/agent/service/a0") else None
    uwsgi.signal(signal.SIGHUP)  # after which each is looked up
    until(lambda: fake.requests("/agent/service/a0"), "it is asked")
    beats_on(fake, {"a1"})


def test_a_token_that_the_agent_repeats_is_not_logged(start: Start, fake: FakeAgent) -> None:
    fake.behave = lambda seen: (403, f"token {seen.headers['X-Consul-Token']} is wrong")
    uwsgi = start(f"url={fake.url},name=a,token=s3cr3t-s3cr3t,debug=1")
    until(lambda: uwsgi.said("refuses"), "the refusal is noted")
    assert "s3cr3t" not in uwsgi.log
    assert fake.seen[0].headers["X-Consul-Token"] == "s3cr3t-s3cr3t"


def test_control_characters_of_an_answer_are_not_logged(start: Start, fake: FakeAgent) -> None:
    fake.behave = lambda _: (500, "\x1b[31mred\x07\nsecond line")
    uwsgi = start(f"url={fake.url},name=a")
    until(lambda: uwsgi.said("refuses"), "the refusal is noted")
    assert uwsgi.said("HTTP 500 ?[31mred?")
    assert "second line" not in uwsgi.log


def test_another_reason_is_another_line(start: Start, fake: FakeAgent) -> None:
    fake.behave = lambda _: (500, "first")
    uwsgi = start(f"url={fake.url},name=a")
    until(lambda: uwsgi.said("HTTP 500 first"), "the first is noted")
    fake.behave = lambda _: (403, "second")
    until(lambda: uwsgi.said("HTTP 403 second"), "the second is noted")
    fake.behave = lambda _: None
    until(lambda: uwsgi.said("registered a as a"), "it is registered")


def test_a_list_that_hides_services_is_not_believed(start: Start, fake: FakeAgent) -> None:
    fake.behave = lambda seen: (200, "{}") if seen.path.endswith("/agent/services") else None
    uwsgi = start(f"url={fake.url},name=a,ttl=1")
    until(lambda: len(fake.requests("/agent/service/a")) >= 2, "it looks closer")
    time.sleep(2)
    assert len(fake.requests("/service/register")) == 1
    assert len(fake.requests("/agent/services")) <= 4
    assert not uwsgi.said("lost")


def test_it_beats_three_times_a_ttl_and_not_more(start: Start, fake: FakeAgent) -> None:
    start(f"url={fake.url},name=a,ttl=1")
    until(lambda: fake.requests("/check/"), "it beats")
    until(lambda: len(fake.requests("/check/")) >= 7, "three beats a second", 5)
    beats = [seen.at for seen in fake.requests("/check/")]
    assert beats[6] - beats[0] >= 1.2, "two seconds, but for one that was late"


def test_an_agent_too_slow_for_all_services_hears_of_each(start: Start, fake: FakeAgent) -> None:
    """Sixty beats a second are due, and it takes twenty requests: who waits longest comes first."""

    def slowly(_: object) -> None:
        time.sleep(0.05)

    fake.behave = slowly
    start([f"url={fake.url},name=a,id=a{number},ttl=1,drain=0" for number in range(20)])
    until(lambda: len(fake.services) == 20, "all are registered", 10)
    begin = len(fake.seen)

    def beating() -> set[str]:
        return {seen.path for seen in fake.seen[begin:] if "/check/" in seen.path}

    until(lambda: len(beating()) == 20, "all of them beat", 10)
