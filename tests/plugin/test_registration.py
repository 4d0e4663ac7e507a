"""What the plugin tells a real Consul agent, from a uWSGI's start to its end."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from consul_processes import Agent, until
from uwsgi_processes import Uwsgi

MakeUwsgi = Callable[..., Uwsgi]


def registered(agent: Agent, name: str, passing: bool = True) -> list[dict[str, Any]]:
    path = f"/v1/health/service/{name}" + ("?passing" if passing else "")
    found: list[dict[str, Any]] = agent.call("GET", path).json()
    return found


def option(agent: Agent, **keys: object) -> tuple[str, str]:
    pairs = {"url": agent.url, "ttl": 2, **keys}
    return "--consul-register", ",".join(f"{key}={value}" for key, value in pairs.items())


def appears(agent: Agent, name: str, uwsgi: Uwsgi) -> dict[str, Any]:
    until(lambda: registered(agent, name), f"{name} is passing; uWSGI said:\n{uwsgi.said()}")
    return registered(agent, name)[0]


def disappears(agent: Agent, name: str, uwsgi: Uwsgi) -> None:
    gone = f"{name} is gone; uWSGI said:\n{uwsgi.said()}"
    until(lambda: not registered(agent, name, passing=False), gone)


def test_everything_that_was_written_is_registered(agent: Agent, uwsgi: MakeUwsgi) -> None:
    keys = {
        "name": "full",
        "id": 'odd "id"/with\\\\all ä',
        "port": 4711,
        "address": "10.1.2.3",
        "tags": "red  blue",
        "meta": "release:abc motto:a:b",
        "deregister_after": 120,
    }
    one = uwsgi(*option(agent, **keys)).serve()
    service = appears(agent, "full", one)["Service"]
    assert service["ID"] == 'odd "id"/with\\all ä'
    assert (service["Port"], service["Address"]) == (4711, "10.1.2.3")
    assert service["Tags"] == ["red", "blue"]
    assert service["Meta"].pop("uwsgi_owner")
    assert service["Meta"] == {"release": "abc", "motto": "a:b"}
    # Its id has to survive URLs as well: it beats, and it is deregistered by it.
    time.sleep(3)  # longer than its ttl
    assert registered(agent, "full")
    one.stop()
    disappears(agent, "full", one)


def test_the_id_is_the_name_where_none_is_given(agent: Agent, uwsgi: MakeUwsgi) -> None:
    one = uwsgi(*option(agent, name="plain")).serve()
    assert appears(agent, "plain", one)["Service"]["ID"] == "plain"


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGHUP, ("--exit-on-reload",)),
        (signal.SIGINT, ()),
        (signal.SIGTERM, ("--die-on-term",)),
    ],
)
def test_a_stop_takes_the_registration_back(
    agent: Agent, uwsgi: MakeUwsgi, number: int, options: tuple[str, ...]
) -> None:
    one = uwsgi(*option(agent, name="stopped"), *options).serve()
    appears(agent, "stopped", one)
    one.stop(number)
    disappears(agent, "stopped", one)


def test_a_stop_by_the_fifo(agent: Agent, uwsgi: MakeUwsgi) -> None:
    one = uwsgi(*option(agent, name="fifo")).serve()
    appears(agent, "fifo", one)
    one.fifo.write_text("q")
    assert one.process
    one.process.wait(timeout=10)
    disappears(agent, "fifo", one)


def test_a_reload_in_place_is_not_seen(agent: Agent, uwsgi: MakeUwsgi) -> None:
    one = uwsgi(*option(agent, name="reloaded")).serve()
    appears(agent, "reloaded", one)
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(len(registered(agent, "reloaded")))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    spawned = "spawned uWSGI worker 1 (pid:"
    for count in (2, 3):
        one.send(signal.SIGHUP)
        until(lambda n=count: one.said().count(spawned) >= n, "uWSGI reloads")
        until(one.answers, "uWSGI serves again")
    time.sleep(1)
    done.set()
    watcher.join()
    assert len(seen) > 50
    assert set(seen) == {1}


def test_a_successor_keeps_what_it_took_over(agent: Agent, uwsgi: MakeUwsgi) -> None:
    old = uwsgi(*option(agent, name="heir", port=1), "--exit-on-reload").serve()
    appears(agent, "heir", old)
    new = uwsgi(*option(agent, name="heir", port=2), "--exit-on-reload").serve()
    until(lambda: registered(agent, "heir")[0]["Service"]["Port"] == 2, "the successor registers")
    old.stop(signal.SIGHUP)
    assert "registered by another process: left alone" in old.said()
    assert registered(agent, "heir")[0]["Service"]["Port"] == 2
    new.stop(signal.SIGHUP)
    disappears(agent, "heir", new)


def test_a_lost_registration_comes_back(agent: Agent, uwsgi: MakeUwsgi) -> None:
    one = uwsgi(*option(agent, name="lost")).serve()
    appears(agent, "lost", one)
    agent.call("PUT", "/v1/agent/service/deregister/lost")
    appears(agent, "lost", one)


def test_an_agent_that_starts_later(
    uwsgi: MakeUwsgi, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    late = Agent(tmp_path)
    request.addfinalizer(late.kill)
    one = uwsgi(*option(late, name="late")).serve()
    until(lambda: "trying on" in one.said(), "uWSGI says that the agent does not answer")
    late.start()
    appears(late, "late", one)
    assert one.said().count("trying on") == 1


def test_an_agent_that_lost_its_memory(
    uwsgi: MakeUwsgi, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    forgetful = Agent(tmp_path).start()  # a development agent keeps nothing
    request.addfinalizer(forgetful.kill)
    one = uwsgi(*option(forgetful, name="forgotten")).serve()
    appears(forgetful, "forgotten", one)
    forgetful.kill()
    forgetful.start()
    appears(forgetful, "forgotten", one)


@pytest.mark.parametrize(
    "options",
    [
        ("--processes", "4", "--cheaper", "1"),
        ("--processes", "2", "--lazy-apps"),
        ("--processes", "2", "--threads", "2", "--enable-threads"),
        ("--processes", "2", "--mule"),
    ],
    ids=["cheaper", "lazy-apps", "threads", "mule"],
)
def test_other_ways_to_run(agent: Agent, uwsgi: MakeUwsgi, options: tuple[str, ...]) -> None:
    one = uwsgi(*option(agent, name="ways"), *options).serve()
    appears(agent, "ways", one)
    one.stop()
    disappears(agent, "ways", one)


def test_a_daemon(agent: Agent, uwsgi: MakeUwsgi, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    log = str(tmp_path / "daemon.log")
    one = uwsgi(*option(agent, name="daemon"), "--daemonize2", log, "--pidfile2", str(pid_file))
    one.start()
    until(pid_file.exists, "uWSGI is a daemon")
    appears(agent, "daemon", one)
    one.fifo.write_text("q")
    disappears(agent, "daemon", one)


def test_a_token_is_sent_and_read_anew_from_its_file(
    uwsgi: MakeUwsgi, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    acl = 'acl { enabled = true default_policy = "deny" tokens { master = "open-sesame" } }'
    guarded = Agent(tmp_path, config=acl)
    guarded.session.headers["X-Consul-Token"] = "open-sesame"
    guarded.start()
    request.addfinalizer(guarded.kill)
    token = tmp_path / "token"
    token.write_text("wrong\n")
    one = uwsgi(*option(guarded, name="guarded", token_file=token, debug=1)).serve()
    until(lambda: "HTTP 403" in one.said(), "the agent refuses the wrong token")
    assert registered(guarded, "guarded") == []
    token.write_text("open-sesame\n")
    appears(guarded, "guarded", one)
    other = uwsgi(*option(guarded, name="other", token="open-sesame", debug=1)).serve()
    appears(guarded, "other", other)
    for log in (one.said(), other.said()):
        logged = [line for line in log.splitlines() if "[consul]" in line]
        assert logged
        assert "open-sesame" not in "\n".join(logged)


def test_json_of_a_registration_is_json(agent: Agent, uwsgi: MakeUwsgi) -> None:
    awkward = 'quote " backslash \\\\ slash / brace } tab-free'
    one = uwsgi(*option(agent, name="json", tags=awkward.replace(" ", "_"))).serve()
    service = appears(agent, "json", one)["Service"]
    assert service["Tags"] == ['quote_"_backslash_\\_slash_/_brace_}_tab-free']
    assert json.dumps(service)
    assert requests.get(f"{agent.url}/v1/agent/service/json", timeout=5).ok
