"""The check says how the workers are, and says it in words."""

import contextlib
import http.client
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from consul_processes import until
from uwsgi_processes import Agent, FakeAgent, Uwsgi

Start = Callable[..., Uwsgi]


def is_registered(agent: Agent, service_id: str) -> None:
    until(lambda: agent.status(service_id) == "passing", f"{service_id} is passing")


def becomes(agent: Agent, service_id: str, status: str, output: str) -> None:
    def state() -> bool:
        check = agent.check(service_id)
        return check["Status"] == status and re.fullmatch(output, check["Output"]) is not None

    try:
        until(state, f"{service_id} is {status}")
    except AssertionError:
        raise AssertionError(f"{output!r} expected: {agent.check(service_id)}") from None


STUCK = {
    "prefork": [],
    "threads": ["enable-threads = true", "threads = 2"],
    "lazy-apps": ["lazy-apps = true"],
    "gevent": ["plugin = gevent_python3", "gevent = 2"],
}


@pytest.mark.everywhere
@pytest.mark.parametrize("way", STUCK)
def test_all_workers_stuck_in_a_request(start: Start, agent: Agent, name: str, way: str) -> None:
    cores = 2 if way in ("threads", "gevent") else 1
    line = f"url={agent.url},name={name},ttl=15,stuck_after=1"
    uwsgi = start(line, processes=2, options=STUCK[way]).ready()
    is_registered(agent, name)
    began = time.monotonic()
    # More than there are cores: which worker takes one is up to the kernel.
    holder = uwsgi.stuck_requests(2 * cores + 2)
    becomes(
        agent, name, "critical", r"2/2 workers busy, oldest request [1-9]\d* s|\d+ connections.*"
    )
    assert time.monotonic() - began < 12
    until(lambda: uwsgi.said(f"{name} is critical: "), "it is logged")
    holder.unlink()
    becomes(agent, name, "passing", "2 workers")
    until(lambda: uwsgi.said(f"{name} is passing again"), "it is logged")


def test_a_free_worker_is_enough(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=15,stuck_after=1", processes=2).ready()
    is_registered(agent, name)
    holder = uwsgi.stuck_requests(1)
    time.sleep(2.5)
    assert agent.status(name) == "passing"
    holder.unlink()


def test_busy_workers_that_make_progress_are_healthy(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},stuck_after=3", processes=1).ready()
    is_registered(agent, name)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        holder = uwsgi.stuck_requests(3)
        time.sleep(0.2)
        holder.unlink()
    assert not uwsgi.said("critical")


def test_stopped_workers_that_nobody_waits_for_are_free(
    start: Start, agent: Agent, name: str
) -> None:
    """Nothing tells a stopped worker from an idle one until somebody waits for it."""
    uwsgi = start(f"url={agent.url},name={name},ttl=1", processes=1).ready()
    is_registered(agent, name)
    worker = int(uwsgi.get())
    time.sleep(0.2)  # its answer arrives before it is done with the request
    os.kill(worker, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", uwsgi.port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")  # without data it is not in the queue yet
        becomes(
            agent, name, "critical", r"\d connections wait, none of 1 workers took one for \d+ s"
        )
        os.kill(worker, signal.SIGCONT)
    becomes(agent, name, "passing", "1 workers")


@pytest.mark.everywhere
def test_workers_that_die_as_they_start(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(
        f"url={agent.url},name={name},ttl=1",
        processes=1,
        options=["lazy-apps = true", "forkbomb-delay = 1"],
    ).ready()
    is_registered(agent, name)
    (uwsgi.folder / "app-dies").touch()
    os.kill(int(uwsgi.get()), signal.SIGKILL)
    becomes(
        agent, name, "critical", r"workers die as they start: .*|0/1 workers alive, none ready.*"
    )
    (uwsgi.folder / "app-dies").unlink()
    becomes(agent, name, "passing", "1 workers")


@pytest.mark.everywhere
@pytest.mark.parametrize("lazy", ["true", "false"])
def test_an_application_that_did_not_load(start: Start, agent: Agent, name: str, lazy: str) -> None:
    start(
        f"url={agent.url},name={name},ttl=1",
        options=[f"lazy-apps = {lazy}"],
        env={"APP_FAILS": "1"},
    )
    until(lambda: agent.entries(name), "it is registered")
    assert agent.passing(name) == []
    becomes(agent, name, "critical", "no application is loaded, every request is refused")


@pytest.mark.parametrize(
    ("how", "language"),
    [
        ("wsgi-lite = nowhere", {}),
        ("web3 = nowhere", {}),
        ("pump = nowhere", {}),
        ("psgi = nowhere.psgi", {"language": "psgi"}),
    ],
)
def test_whatever_names_the_application_that_did_not_load(
    start: Start, agent: Agent, name: str, how: str, language: dict[str, str]
) -> None:
    line = f"url={agent.url},name={name},ttl=1"
    start(line, module=None, options=[how], **language)
    until(lambda: agent.entries(name), "it is registered")
    becomes(agent, name, "critical", "no application is loaded, every request is refused")


def test_requests_that_are_ended_by_force_are_no_progress(
    start: Start, agent: Agent, name: str
) -> None:
    """Each dies by harakiri: the worker after it is free for a moment, and has answered nothing."""
    options = ["harakiri = 1"]
    line = f"url={agent.url},name={name},ttl=9,stuck_after=3"
    uwsgi = start(line, processes=2, options=options).ready()
    is_registered(agent, name)
    ended = threading.Event()
    holder = uwsgi.folder / "held"
    holder.touch()

    def ask() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                uwsgi.get(f"/?{holder}")
            time.sleep(0.3)  # so that nobody waits while a worker is free

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for client in clients:
        client.start()
    until(lambda: agent.status(name) == "critical", "it is told", 12)
    holder.unlink()
    until(lambda: agent.status(name) == "passing", "requests are answered again")
    ended.set()
    for client in clients:
        client.join()


def test_a_paused_instance_behind_a_unix_socket(start: Start, agent: Agent, name: str) -> None:
    """Nothing tells how many wait there."""
    uwsgi = start(
        f"url={agent.url},name={name},ttl=1",
        socket="",
        options=["http-socket = paused.sock", "master-fifo = fifo"],
    )
    is_registered(agent, name)
    uwsgi.command("p")
    becomes(agent, name, "critical", "paused: workers take no requests")
    uwsgi.command("p")
    becomes(agent, name, "passing", "2 workers")


def test_how_long_workers_may_be_stuck_is_a_key_of_its_own(
    start: Start, agent: Agent, name: str
) -> None:
    common = f"url={agent.url},name={name}"
    lines = [f"{common},id={name}-1,ttl=1,stuck_after=60", f"{common},id={name}-2,stuck_after=1"]
    uwsgi = start(lines, processes=1).ready()
    for number in (1, 2):
        is_registered(agent, f"{name}-{number}")
    uwsgi.stuck_requests(2)
    until(lambda: agent.status(f"{name}-2") == "critical", "one of them is told")
    time.sleep(1)
    assert not uwsgi.said(f"{name}-1 is critical")


def test_what_a_registration_waits_for_is_said_once(start: Start, agent: Agent, name: str) -> None:
    """A hook that fails before the application is loaded, over and over."""
    uwsgi = start(
        f"url={agent.url},name={name}",
        options=["lazy-apps = true", "exec-pre-app = false"],
    )
    line = f"{name} is not registered yet, it waits until every worker accepts requests: "
    until(lambda: uwsgi.said(line), "it says so")
    time.sleep(1)
    assert uwsgi.said_times("is not registered yet") == 1
    assert agent.entries(name) == []


def test_an_instance_without_an_application_option_needs_none(
    start: Start, agent: Agent, name: str
) -> None:
    start(f"url={agent.url},name={name},ttl=1", module=None)
    is_registered(agent, name)
    becomes(agent, name, "passing", "2 workers")


@pytest.mark.everywhere
def test_cheap_mode_is_healthy(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=1", options=["cheap = true"])
    is_registered(agent, name)
    becomes(agent, name, "passing", "cheap mode: workers start with the next request")
    uwsgi.ready()
    becomes(agent, name, "passing", "2 workers")


def test_idle_workers_are_cheaped(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(
        f"url={agent.url},name={name},ttl=1", processes=1, options=["idle = 1", "cheap = true"]
    ).ready()
    is_registered(agent, name)
    until(lambda: "workers have been inactive" in uwsgi.log, "they go")
    becomes(agent, name, "passing", "cheap mode: workers start with the next request")


@pytest.mark.everywhere
def test_a_full_listen_queue(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=8", processes=1, options=["listen = 2"]).ready()
    is_registered(agent, name)
    holder = uwsgi.stuck_requests(12)
    becomes(agent, name, "warning", r"listen queue full: \d+ connections wait, .* busy for \d+ s")
    holder.unlink()
    becomes(agent, name, "passing", "1 workers")


def test_a_check_that_the_agent_makes_is_left_to_it(start: Start, fake: FakeAgent) -> None:
    uwsgi = start(f"url={fake.url},name=a,ttl=1,port=PORT,check=http:/", processes=1).ready()
    until(lambda: fake.services, "it is registered")
    uwsgi.stuck_requests(1)
    time.sleep(2)
    assert fake.requests("/agent/check/") == []


def test_a_check_url_of_ones_own_is_only_told_good_news(start: Start, fake: FakeAgent) -> None:
    """Where there is no way to say "critical", silence says it when the ttl is over."""
    uwsgi = start(f"url={fake.url},check_url={fake.url}/my/check,name=a,ttl=1", processes=1).ready()
    fake.behave = lambda seen: (200, "") if seen.path == "/my/check" else None
    until(lambda: fake.requests("/my/check"), "it beats")
    uwsgi.stuck_requests(1)
    until(lambda: uwsgi.said("a is critical"), "it is critical")
    count = len(fake.requests("/my/check"))
    time.sleep(1)
    assert len(fake.requests("/my/check")) == count


def test_the_statuses_have_urls_beside_check_url(start: Start, fake: FakeAgent) -> None:
    uwsgi = start(f"url={fake.url},name=a,ttl=1", processes=1).ready()
    until(lambda: fake.requests("/v1/agent/check/pass/service:a"), "it beats")
    uwsgi.stuck_requests(1)
    until(lambda: fake.requests("/v1/agent/check/fail/service:a"), "it says so")
    (seen, *_) = fake.requests("/v1/agent/check/fail/service:a")
    assert re.fullmatch(r"note=1%2F1%20workers%20busy%2C%20oldest%20request%20\d%20s", seen.query)


def test_the_first_status_is_the_right_one(start: Start, fake: FakeAgent, tmp_path: Path) -> None:
    start(f"url={fake.url},name=a", env={"APP_FAILS": "1"})
    until(lambda: fake.services, "it is registered")
    assert fake.services["a"]["Check"]["Status"] == "critical"
