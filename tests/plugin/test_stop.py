"""What a stop must not lose, and what may not get in its way."""

import contextlib
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from consul_processes import until
from uwsgi_processes import Agent, FakeAgent, Seen, Uwsgi

Start = Callable[..., Uwsgi]


def is_passing(agent: Agent, name: str, count: int = 1) -> None:
    until(lambda: len(agent.passing(name)) == count, f"{name} is passing", 30)


@contextlib.contextmanager
def request_under_way(uwsgi: Uwsgi) -> Iterator[list[str]]:
    """One that is answered when the block ends; the answers, and how it failed, are collected."""
    holder = uwsgi.folder / f"held-{time.monotonic_ns()}"
    holder.touch()
    answers: list[str] = []

    def ask() -> None:
        try:
            answers.append(uwsgi.get(f"/?{holder}", timeout=60))
        except (OSError, http.client.HTTPException) as error:
            answers.append(f"failed: {error!r}")

    client = threading.Thread(target=ask)
    client.start()
    try:
        until(holder.with_name(f"{holder.name}-begun").exists, "it has begun")
        yield answers
    finally:
        holder.unlink(missing_ok=True)
        client.join()


# ---- the stop wins, and the most urgent wish counts ----


def reload_in_all_ways(uwsgi: Uwsgi) -> None:
    uwsgi.signal(signal.SIGHUP)
    uwsgi.signal(signal.SIGTERM)
    uwsgi.command("r")
    uwsgi.get("/?reload")
    (uwsgi.folder / "touched").touch()


@pytest.mark.everywhere
def test_no_reload_takes_a_stop_back(start: Start, agent: Agent, name: str) -> None:
    options = ["master-fifo = fifo", "touch-reload = touched"]
    line = f"url={agent.url},name={name},drain=60"
    uwsgi = start(line, options=options, before=lambda folder: (folder / "touched").touch())
    uwsgi.ready()
    is_passing(agent, name)
    uwsgi.signal(signal.SIGINT)
    until(lambda: not agent.entries(name), "it is deregistered")
    reload_in_all_ways(uwsgi)
    time.sleep(1)
    assert uwsgi.serves(), "the stop is still held back"
    uwsgi.signal(signal.SIGINT)  # the second one, if the first is not forgotten
    assert uwsgi.wait() == 0
    assert "binary reloading" not in uwsgi.log
    assert agent.entries(name) == []


def test_a_stop_in_the_middle_of_a_reload(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},drain=60").ready()
    is_passing(agent, name)
    with request_under_way(uwsgi):
        uwsgi.signal(signal.SIGHUP)
        until(lambda: "gracefully killing workers" in uwsgi.log, "it reloads")
        uwsgi.signal(signal.SIGINT)
        assert uwsgi.wait() == 0
    assert agent.entries(name) == []
    assert "binary reloading" not in uwsgi.log


def test_the_most_urgent_wish_counts(start: Start, agent: Agent, name: str) -> None:
    """As with uWSGI alone, which SIGINT ends though SIGHUP was to let it finish its requests."""
    options = ["exit-on-reload = true"]
    uwsgi = start(f"url={agent.url},name={name},drain=60", options=options).ready()
    is_passing(agent, name)
    with request_under_way(uwsgi):
        uwsgi.signal(signal.SIGHUP)
        until(lambda: not agent.entries(name), "it is deregistered")
        uwsgi.signal(signal.SIGINT)
        assert uwsgi.wait() == 0


@pytest.mark.everywhere
@pytest.mark.parametrize("workers", [[], ["threads = 4"]])
def test_it_counts_also_when_the_workers_were_asked_to_finish(
    start: Start, agent: Agent, name: str, workers: list[str]
) -> None:
    options = ["exit-on-reload = true", "worker-reload-mercy = 60", *workers]
    uwsgi = start(f"url={agent.url},name={name},drain=0", options=options, processes=1).ready()
    is_passing(agent, name)
    with request_under_way(uwsgi):
        uwsgi.signal(signal.SIGHUP)
        until(lambda: "killing worker" in uwsgi.log, "the workers are asked to finish")
        time.sleep(0.3)
        uwsgi.signal(signal.SIGINT)
        assert uwsgi.wait() == 0


# ---- stop_timeout ----


@pytest.mark.everywhere
def test_requests_under_way_are_waited_for(start: Start, agent: Agent, name: str) -> None:
    line = f"url={agent.url},name={name},drain=0,stop_timeout=90"
    uwsgi = start(line, processes=1).ready()
    is_passing(agent, name)
    with request_under_way(uwsgi) as answers:
        uwsgi.signal(signal.SIGINT)
        until(lambda: not agent.entries(name), "it is deregistered")
        time.sleep(1)
        assert uwsgi.is_running()
    assert len(answers) == 1
    assert answers[0].isdigit(), "it is answered"
    assert uwsgi.wait() == 0


def test_requests_are_not_waited_for_longer_than_stop_timeout(
    start: Start, agent: Agent, name: str
) -> None:
    uwsgi = start(f"url={agent.url},name={name},drain=0,stop_timeout=1", processes=1).ready()
    is_passing(agent, name)
    with request_under_way(uwsgi) as answers:
        began = time.monotonic()
        uwsgi.signal(signal.SIGINT)
        assert uwsgi.wait() == 0
        assert time.monotonic() - began > 1
        until(lambda: answers, "the client is told")
    assert answers[0].startswith("failed")


@pytest.mark.everywhere
def test_a_worker_that_hangs_in_its_import_does_not_keep_uwsgi(
    start: Start, fake: FakeAgent
) -> None:
    """Not longer than uWSGI's own mercy: the master is there to end it by force."""
    options = ["lazy-apps = true", "worker-reload-mercy = 2"]
    line = f"url={fake.url},name=a,wait_workers=0,drain=0,stop_timeout=3"
    uwsgi = start(line, options=options, env={"APP_LOADS_FOR": "60"})
    until(lambda: fake.services, "it is registered")
    until(lambda: "spawned uWSGI worker 2 " in uwsgi.log, "the workers have started")
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert fake.services == {}


# ---- many services ----


def test_many_services_are_gone_before_the_workers(start: Start, agent: Agent, name: str) -> None:
    lines = [f"url={agent.url},name={name},id={name}-{number}" for number in range(150)]
    uwsgi = start(lines).ready()
    is_passing(agent, name, 150)
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert agent.entries(name) == []
    before, _, _ = uwsgi.log.partition("killing workers")
    assert before.count("[consul] deregistered") == 150


def test_a_slow_agent_is_told_of_several_services_at_a_time(start: Start, fake: FakeAgent) -> None:
    uwsgi = start([f"url={fake.url},name=a,id=a{number}" for number in range(120)]).ready()
    until(lambda: len(fake.services) == 120, "all are registered")

    def slowly(_: Seen) -> None:
        time.sleep(0.1)

    fake.behave = slowly
    began = time.monotonic()
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert fake.services == {}
    assert "not deregistered" not in uwsgi.log
    # One after the other, each asked about before, it would be 24 s.
    assert time.monotonic() - began < 18
    look_ups = [seen for seen in fake.requests("/agent/service/a") if seen.method == "GET"]
    assert len(look_ups) < 20, "one list is the proof for all"


def test_a_list_that_lacks_one_is_no_proof(start: Start, fake: FakeAgent) -> None:
    """Whose it is is then asked of each: what another process has taken over is left to it."""
    uwsgi = start([f"url={fake.url},name=a,id=a{number},drain=0" for number in range(3)]).ready()
    until(lambda: len(fake.services) == 3, "all are registered")
    fake.services["a1"] = {**fake.services["a1"], "Meta": {"uwsgi_owner": "another's"}}
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert set(fake.services) == {"a1"}


@pytest.mark.parametrize("sees", ["all", "its own"])
def test_two_tokens_at_one_agent_are_not_taken_for_each_other(
    start: Start, fake: FakeAgent, sees: str
) -> None:
    """One is missing in the list, though with those of the other token there are enough."""

    def hide(seen: Seen) -> tuple[int, str] | None:
        if sees == "all" or not seen.path.endswith("/agent/services"):
            return None
        number = seen.headers["X-Consul-Token"].removeprefix("t")
        return 200, json.dumps({i: s for i, s in fake.services.items() if i == f"a{number}"})

    fake.behave = hide
    lines = [f"url={fake.url},name=a,id=a{number},token=t{number}" for number in range(2)]
    uwsgi = start(lines).ready()
    until(lambda: len(fake.services) == 2, "both are registered")
    until(lambda: len(fake.requests("/agent/services")) > 4, "both have seen the list")
    fake.services["a1"] = {**fake.services["a1"], "Meta": {"uwsgi_owner": "another's"}}
    until(lambda: uwsgi.said("a1 is registered by another process"), "it is noticed")
    fake.services.pop("a0")
    until(lambda: "a0" in fake.services, "the other one is registered anew")
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert set(fake.services) == {"a1"}


def test_two_names_of_one_agent_hide_nothing(start: Start, fake: FakeAgent) -> None:
    """Its list has the services of both: one that another process has taken over is missed."""

    def only_ours(seen: Seen) -> tuple[int, str] | None:
        if not seen.path.endswith("/agent/services"):
            return None
        ours = {i: s for i, s in fake.services.items() if s["Meta"]["uwsgi_owner"] in seen.query}
        return 200, json.dumps(ours)

    fake.behave = only_ours
    names = (fake.url, fake.url.replace("127.0.0.1", "localhost"))
    uwsgi = start([f"url={url},name=a,id=a{n},drain=0" for n, url in enumerate(names)]).ready()
    until(lambda: len(fake.services) == 2, "both are registered")
    until(lambda: len(fake.requests("/agent/services")) > 4, "both have seen the list")
    fake.services["a0"] = {**fake.services["a0"], "Meta": {"uwsgi_owner": "another's"}}
    until(lambda: uwsgi.said("a0 is registered by another process"), "it is noticed")
    # At once before the stop, so that nobody has noticed it.
    fake.services["a1"] = {**fake.services["a1"], "Meta": {"uwsgi_owner": "another's"}}
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert set(fake.services) == {"a0", "a1"}


@pytest.mark.parametrize("answer", [(500, "no leader"), (429, "slow down")])
def test_an_agent_in_trouble_is_no_proof(
    start: Start, fake: FakeAgent, answer: tuple[int, str]
) -> None:
    uwsgi = start(f"url={fake.url},name=a,drain=0").ready()
    until(lambda: fake.services, "it is registered")
    fake.behave = lambda seen: answer if seen.method == "GET" else None
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert fake.requests("/deregister/") == []
    assert uwsgi.said("a: not deregistered")


# ---- a reload that ends uWSGI ----


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (",ttl=9", ",tll=9"),
        ("disable-logging = true", "need-plugin = nowhere_to_be_found"),
        ("processes = 2", "http-socket = 203.0.113.1:80"),
    ],
)
def test_a_mistake_in_what_a_reload_reads(
    start: Start, agent: Agent, name: str, right: str, wrong: str
) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=9").ready()
    is_passing(agent, name)
    uwsgi.ini.write_text(uwsgi.ini.read_text().replace(right, wrong))
    uwsgi.signal(signal.SIGHUP)
    assert uwsgi.wait() == 1
    assert agent.entries(name) == []
    assert uwsgi.said(f"deregistered {name}")


@pytest.mark.everywhere
def test_a_reload_hands_over_more_than_an_environment_holds(start: Start, fake: FakeAgent) -> None:
    """Also what only an agent may know: it does not get where the application could read it."""
    url = fake.url.replace("://", "://me:s3cr3t@")
    lines = [f"url={url},name=a,id={'x' * 500}{number},drain=0" for number in range(300)]
    uwsgi = start(lines).ready()
    until(lambda: len(fake.services) == 300, "all are registered", 30)
    owners = {service["Meta"]["uwsgi_owner"] for service in fake.services.values()}
    text = uwsgi.ini.read_text().replace(f"{'x' * 500}299", "y")
    uwsgi.ini.write_text(text)
    uwsgi.signal(signal.SIGHUP)
    until(lambda: "y" in fake.services and len(fake.services) == 300, "the new ones only", 30)
    assert {service["Meta"]["uwsgi_owner"] for service in fake.services.values()} == owners
    worker = uwsgi.get()
    for pid in (uwsgi.pid, worker):
        environment = (uwsgi.proc(pid) / "environ").read_bytes()
        assert b"s3cr3t" not in environment
        assert fake.url.encode() not in environment
        links = [str(link.readlink()) for link in uwsgi.proc(pid).glob("fd/*")]
        assert [link for link in links if "memfd" in link] == []


def test_a_leftover_is_taken_back_with_its_own_token(
    start: Start, agent: Agent, secure_agent: Agent, name: str, service_token: str
) -> None:
    """A reload names another agent, with another token."""
    uwsgi = start(f"url={secure_agent.url},name={name},token={service_token}").ready()
    is_passing(secure_agent, name)
    text = uwsgi.ini.read_text().replace(secure_agent.url, agent.url)
    uwsgi.ini.write_text(text.replace(service_token, "33333333-3333-3333-3333-333333333333"))
    uwsgi.signal(signal.SIGHUP)
    is_passing(agent, name)
    until(lambda: not secure_agent.entries(name), "it is gone where it was before")


@pytest.mark.parametrize("may", [{"a": "a", "b": "b"}, {"a": "ab", "b": ""}])
def test_a_leftover_at_the_same_agent(start: Start, fake: FakeAgent, may: dict[str, str]) -> None:
    """Its own token takes it back; where that is revoked, one that the place is sent now."""
    uwsgi = start([f"url={fake.url},name={token},token={token},ttl=1" for token in "ab"]).ready()
    until(lambda: len(fake.services) == 2, "both are registered")

    def behave(seen: Seen) -> tuple[int, str] | None:
        if seen.path.endswith(("/register", "/agent/services")):
            return None
        service_id = seen.path.rpartition("/")[2].removeprefix("service:")
        allowed = service_id in may[seen.headers["X-Consul-Token"]]
        return None if allowed else (403, "Permission denied")

    fake.behave = behave
    lines = uwsgi.ini.read_text().splitlines(keepends=True)
    uwsgi.ini.write_text("".join(line for line in lines if "name=b" not in line))
    uwsgi.signal(signal.SIGHUP)
    until(lambda: set(fake.services) == {"a"}, "the other one is gone")
