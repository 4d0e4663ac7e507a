"""The client against real Consul agents: what it prints, when, and what it survives."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from consul_processes import Agent, Client, free_ports, until

from app import client
from app.client import AgentError, Instance, NoInstanceError, RefusedError

NewAgent = Callable[..., Agent]
Run = Callable[..., Client]

NONE = "no consul-demo-server available"
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def found(port: int, state: str = "") -> str:
    return f"consul-demo-server found on node drakar (127.0.0.1) using port {port}{state}"


def change(watching: Client, count: int) -> list[str]:
    """The next block of a watching client: its headline without the time, and its lines."""
    empty, headline, *lines = watching.lines(2 + count)
    assert empty == ""
    assert re.match(rf"-- {TIME}  ", headline)
    return [headline.split("  ", 1)[1], *lines]


def once(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`--once`, with this environment and no other."""
    return subprocess.run(
        [sys.executable, "-m", "app.client", "--once", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
    )


def nobody_listens() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


class TestWatching:
    def test_prints_the_seed_s_lines_and_the_whole_list_on_each_change(
        self, agent: Agent, run: Run
    ) -> None:
        watching = run("--url", agent.url)
        assert watching.line() == NONE
        agent.register(2001)
        assert change(watching, 1) == ["new: drakar:2001", found(2001)]
        agent.register(2002)
        assert change(watching, 2) == ["new: drakar:2002", found(2001), found(2002)]
        agent.deregister(2001)
        assert change(watching, 1) == ["gone: drakar:2001", found(2002)]
        agent.deregister(2002)
        assert change(watching, 1) == ["gone: drakar:2002", NONE]
        assert watching.errors() == []

    def test_a_state_change_is_shown(self, agent: Agent, run: Run) -> None:
        agent.register(2001, status="passing")
        watching = run("--url", agent.url)
        assert watching.line() == found(2001)
        agent.call("PUT", "/v1/agent/check/fail/service:consul-demo-server-2001")
        assert change(watching, 1) == ["critical: drakar:2001", found(2001, " (critical)")]
        agent.call("PUT", "/v1/agent/check/pass/service:consul-demo-server-2001")
        assert change(watching, 1) == ["passing: drakar:2001", found(2001)]

    def test_passing_drops_what_fails(self, agent: Agent, run: Run) -> None:
        agent.register(2001, status="passing")
        watching = run("--url", agent.url, "--passing")
        assert watching.line() == found(2001)
        agent.call("PUT", "/v1/agent/check/fail/service:consul-demo-server-2001")
        assert change(watching, 1) == ["gone: drakar:2001", NONE]
        agent.call("PUT", "/v1/agent/check/pass/service:consul-demo-server-2001")
        assert change(watching, 1) == ["new: drakar:2001", found(2001)]

    def test_other_services_do_not_make_it_print(self, agent: Agent, run: Run) -> None:
        watching = run("--url", agent.url)
        assert watching.line() == NONE
        for port in range(3001, 3004):
            agent.register(port, service="other")
        agent.register(2001)
        assert change(watching, 1) == ["new: drakar:2001", found(2001)]

    def test_json_prints_one_document_for_each_change(self, agent: Agent, run: Run) -> None:
        watching = run("--url", agent.url, "--json")
        assert json.loads(watching.line())["instances"] == []
        agent.register(2001)
        document = json.loads(watching.line())
        assert [instance["port"] for instance in document["instances"]] == [2001]
        assert document["instances"][0]["address"] == "127.0.0.1"

    def test_does_not_ask_all_the_time(self, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten waits that end without a change are ten queries, and take ten waits."""
        asked: list[int] = []
        ask = client._Agent.ask

        def counted(self: client._Agent, *arguments: object, **options: object) -> object:
            asked.append(1)
            if len(asked) == 11:
                agent.register(2001)
            return ask(self, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(client._Agent, "ask", counted)
        lists = client.watch(url=agent.url, wait=0.1)
        started = time.monotonic()
        assert next(lists) == []
        assert [instance.port for instance in next(lists)] == [2001]
        assert len(asked) <= 13
        assert time.monotonic() - started > 0.9


class TestSurviving:
    def test_an_agent_that_is_killed_and_started_again(self, new_agent: NewAgent, run: Run) -> None:
        agent = new_agent().start()
        agent.register(2001)
        watching = run("--url", agent.url)
        assert watching.line() == found(2001)
        agent.kill()
        lost = watching.said()
        assert re.match(rf"-- {TIME}  cannot reach Consul at {agent.url}: ", lost)
        assert lost.endswith("; asking again until it answers")
        agent.start()
        assert watching.said().endswith(f"  Consul at {agent.url} answers again")
        # A -dev agent forgets: its index starts anew, and the service is gone.
        assert change(watching, 1) == ["gone: drakar:2001", NONE]
        agent.register(2002)
        assert change(watching, 1) == ["new: drakar:2002", found(2002)]
        assert watching.errors() == []

    def test_a_server_that_reads_its_log_again_does_not_make_the_list_flicker(
        self, new_agent: NewAgent, run: Run, tmp_path: Path
    ) -> None:
        agent = new_agent(
            *("-server", "-bootstrap-expect=1", "-data-dir", str(tmp_path / "data")),
            config="performance { raft_multiplier = 1 }",
        ).start()
        ports = range(2001, 2061)
        for port in ports:
            agent.register(port)
        watching = run("--url", agent.url)
        assert watching.lines(60) == [found(port) for port in ports]
        agent.kill()
        assert "cannot reach Consul" in watching.said()
        agent.start()
        assert "answers again" in watching.said()
        agent.register(1999)
        assert change(watching, 61)[:2] == ["new: drakar:1999", found(1999)]

    def test_an_index_that_goes_backwards(self, agent: Agent, run: Run) -> None:
        """A restored snapshot sets the index back while the agent stays where it is."""
        snapshot = agent.call("GET", "/v1/snapshot").content
        for port in range(3001, 3031):
            agent.register(port, service="other")
        agent.register(2001)
        watching = run("--url", agent.url)
        assert watching.line() == found(2001)
        agent.call("PUT", "/v1/snapshot", data=snapshot)
        # The agent brings its own services back by itself; a new one must be seen soon.
        agent.register(2002)
        last = ""
        while last != found(2002):
            last = watching.line()
        assert watching.errors() == []

    def test_an_agent_that_freezes(
        self,
        new_agent: NewAgent,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        agent = new_agent().start()
        lists = client.watch(url=agent.url, timeout=2, wait=1)
        assert next(lists) == []
        seen: list[list[Instance]] = []
        follower = threading.Thread(target=lambda: seen.append(next(lists)), daemon=True)
        agent.signal(signal.SIGSTOP)
        follower.start()
        try:
            wait_for_log(caplog, "no answer in time; asking again until it answers")
            agent.signal(signal.SIGCONT)
            wait_for_log(caplog, "answers again")
            agent.register(2001)
            follower.join(30)
            assert [instance.port for instance in seen[0]] == [2001]
        finally:  # a thread that still asks ends at its next question
            monkeypatch.setattr(client, "_pause", lambda _: sys.exit())
            agent.kill()
            follower.join(30)
        # Each time one of both: an agent that has no turn for so long is lost as well.
        lost, back = caplog.messages[::2], caplog.messages[1::2]
        assert len(lost) == len(back)
        assert all("no answer in time" in each for each in lost)
        assert all("answers again" in each for each in back)

    def test_an_agent_that_starts_after_the_client(self, new_agent: NewAgent, run: Run) -> None:
        agent = new_agent()
        watching = run("--url", agent.url)
        assert "connection refused; asking again" in watching.said()
        agent.start()
        assert "answers again" in watching.said()
        assert watching.line() == NONE


def wait_for_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    caplog.set_level(logging.WARNING)
    until(lambda: any(text in message for message in caplog.messages), text)


class TestEnding:
    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
    )
    def test_a_signal_ends_it_quietly(
        self, agent: Agent, run: Run, number: int, status: int
    ) -> None:
        watching = run("--url", agent.url)
        watching.line()
        assert watching.stop(number) == status
        assert watching.errors() == []

    def test_ctrl_c_while_the_agent_is_away(self, run: Run) -> None:
        watching = run("--url", nobody_listens())
        watching.said()
        assert watching.stop(signal.SIGINT) == 130
        assert watching.errors() == []

    def test_a_broken_pipe_is_quiet(self, agent: Agent) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "app.client", "--url", agent.url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as watching:
            assert watching.stdout and watching.stderr
            assert watching.stdout.readline() == f"{NONE}\n"
            watching.stdout.close()
            agent.register(2001)
            assert watching.wait(10) == 141
            assert watching.stderr.read() == ""


class TestOnce:
    def test_finds_one(self, agent: Agent) -> None:
        agent.register(2001)
        result = once("--url", agent.url)
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{found(2001)}\n", "")

    def test_finds_none(self, agent: Agent) -> None:
        result = once("--url", agent.url)
        assert (result.returncode, result.stdout, result.stderr) == (1, f"{NONE}\n", "")

    def test_what_fails_counts_only_without_passing(self, agent: Agent) -> None:
        agent.register(2001, status="critical")
        assert once("--url", agent.url).stdout == f"{found(2001, ' (critical)')}\n"
        assert once("--url", agent.url, "--passing").returncode == 1

    def test_another_service_as_json(self, agent: Agent) -> None:
        agent.register(3001, service="other")
        result = once("--url", agent.url, "--service", "other", "--json")
        assert [one["port"] for one in json.loads(result.stdout)["instances"]] == [3001]

    def test_datacenter(self, agent: Agent) -> None:
        agent.register(2001)
        assert once("--url", agent.url, "--datacenter", "dc1").returncode == 0


class TestErrors:
    """Each is one line that names the agent, and exit status 2."""

    @staticmethod
    def error(result: subprocess.CompletedProcess[str]) -> str:
        assert result.returncode == 2, result
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        return result.stderr.strip()

    def test_nobody_listens(self) -> None:
        url = nobody_listens()
        assert self.error(once("--url", url)) == f"cannot reach Consul at {url}: connection refused"

    def test_unknown_datacenter(self, agent: Agent) -> None:
        expected = f"Consul at {agent.url} has no path to datacenter dc9"
        assert self.error(once("--url", agent.url, "--datacenter", "dc9")) == expected

    def test_unknown_datacenter_ends_a_watch_too(self, agent: Agent, run: Run) -> None:
        watching = run("--url", agent.url, "--datacenter", "dc9")
        assert watching.process.wait(10) == 2
        assert "has no path to datacenter dc9" in watching.said()

    def test_no_leader(self, new_agent: NewAgent, tmp_path: Path) -> None:
        agent = new_agent(
            *("-server", "-bootstrap-expect=3", "-data-dir", str(tmp_path / "data")),
            config='performance { rpc_hold_timeout = "1s" }',  # how long it hopes for one
        )
        agent.start(wait=False)

        def refusal() -> str:
            return once("--url", agent.url).stderr.strip()

        expected = f"Consul at {agent.url} cannot answer: 500 No cluster leader"
        until(lambda: refusal() == expected, expected)

    def test_no_name(self, agent: Agent) -> None:
        assert "refuses: 400 Missing service name" in self.error(
            once("--url", agent.url, "--service", "")
        )

    def test_something_else_listens(self, agent: Agent) -> None:
        expected = f"{agent.url}/v1/kv does not answer as Consul does"
        assert self.error(once("--url", f"{agent.url}/v1/kv")) == expected

    def test_a_frozen_agent(self, new_agent: NewAgent) -> None:
        agent = new_agent().start()
        agent.signal(signal.SIGSTOP)
        with pytest.raises(AgentError, match=f"cannot reach Consul at {agent.url}: no answer"):
            client.instances(url=agent.url, timeout=0.2)


class TestEnvironment:
    def test_the_address_counts_without_url(self, agent: Agent) -> None:
        agent.register(2001)
        assert once(CONSUL_HTTP_ADDR=agent.url).returncode == 0
        assert once(CONSUL_HTTP_ADDR=agent.url.removeprefix("http://")).returncode == 0

    @pytest.mark.parametrize(
        "address", ["127.0.0.1:1", "unix:///run/consul.sock", "http://[::1]:1"]
    )
    def test_url_overrules_it(self, agent: Agent, address: str) -> None:
        agent.register(2001)
        result = once("--url", agent.url, CONSUL_HTTP_ADDR=address, CONSUL_HTTP_SSL="true")
        assert (result.returncode, result.stderr) == (0, "")

    def test_a_proxy_is_not_asked_for_the_local_agent(self, agent: Agent) -> None:
        agent.register(2001)
        proxy = nobody_listens()
        assert once("--url", agent.url, http_proxy=proxy, ALL_PROXY=proxy).returncode == 0


class TestToken:
    def test_the_environment_s_is_sent(self, guarded_agent: Agent) -> None:
        assert once("--url", guarded_agent.url, CONSUL_HTTP_TOKEN="open-sesame").returncode == 0

    def test_an_explicit_one_overrules_it(
        self, guarded_agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONSUL_HTTP_TOKEN", "wrong")
        assert client.instances(url=guarded_agent.url, token="open-sesame")
        with pytest.raises(RefusedError):
            client.instances(url=guarded_agent.url)

    def test_a_wrong_one_is_said_and_not_shown(self, guarded_agent: Agent) -> None:
        result = once("--url", guarded_agent.url, CONSUL_HTTP_TOKEN="swordfish")
        assert result.returncode == 2
        assert "refuses: ACL not found (see CONSUL_HTTP_TOKEN)" in result.stderr
        assert "swordfish" not in result.stderr

    @pytest.mark.parametrize("token", ["sword\nfish", "swordfisch\u20ac"])
    def test_a_mangled_one_is_not_shown_either(self, guarded_agent: Agent, token: str) -> None:
        result = once("--url", guarded_agent.url, CONSUL_HTTP_TOKEN=token)
        assert result.returncode == 2
        assert result.stderr == "the token holds characters that no token has\n"


class TestTokenFile:
    def test_the_environment_names_one(self, guarded_agent: Agent, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text("open-sesame\nand something else\n")
        result = once("--url", guarded_agent.url, CONSUL_HTTP_TOKEN_FILE=str(file))
        assert (result.returncode, result.stderr) == (0, "")
        variables = {"CONSUL_HTTP_TOKEN_FILE": str(file), "CONSUL_HTTP_TOKEN": "swordfish"}
        assert "ACL not found" in once("--url", guarded_agent.url, **variables).stderr

    @pytest.mark.parametrize("app", ["the one that asks", "the one that is asked for"])
    def test_it_is_found_by_its_path(
        self, guarded_agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: str
    ) -> None:
        monkeypatch.setattr(client, "TOKENS", tmp_path)
        if app == "the one that asks":
            monkeypatch.setenv("APP_SERVICE", "shop")
        name = "shop" if app == "the one that asks" else client.SERVICE
        with pytest.raises(RefusedError):
            client.instances(url=guarded_agent.url)
        (tmp_path / name).write_text("open-sesame\n")
        assert client.instances(url=guarded_agent.url)

    @pytest.mark.parametrize("name", ["", ".", "..", "../secret", "/etc/passwd", "a/../secret"])
    def test_a_name_is_no_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(client, "TOKENS", tmp_path / "tokens")
        (tmp_path / "tokens/a").mkdir(parents=True)
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "tokens/secret").write_text("secret")
        assert client.token_from({}, name) == ""

    def test_one_that_its_reader_may_not_read(self, guarded_agent: Agent, tmp_path: Path) -> None:
        file = tmp_path / "shop"
        file.touch(0o200)
        code = f"""
import pathlib, sys, app.client
app.client.TOKENS = pathlib.Path({str(tmp_path)!r})
sys.exit(app.client.main(["--once", "--url", {guarded_agent.url!r}, "--service", "shop"]))
"""
        words = [sys.executable, "-c", code]
        if os.geteuid() == 0:  # without the right to read everything
            words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *words]
        result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20)
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr == (
            f"the token in {file} cannot be read: permission denied; ask as the application's "
            "user: sudo -u shop\n"
        )

    def test_one_that_is_not_there(self, guarded_agent: Agent) -> None:
        result = once("--url", guarded_agent.url, CONSUL_HTTP_TOKEN_FILE="/nowhere/token")
        assert result.returncode == 2
        said = "the token in /nowhere/token cannot be read: no such file or directory\n"
        assert result.stderr == said

    def test_a_watch_follows_it(
        self, guarded_agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        """Also where the one before is deleted while an answer is held back."""
        first, second = (made(guarded_agent, 'service_prefix "" {policy="read"}') for _ in range(2))
        file = tmp_path / "token"
        file.write_text(first["SecretID"])
        monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(file))
        guarded_agent.register(3001, service="followed")
        lists = client.watch("followed", url=guarded_agent.url)
        try:
            assert [one.port for one in next(lists)] == [3001]
            file.write_text(second["SecretID"])
            guarded_agent.call("DELETE", f"/v1/acl/token/{first['AccessorID']}")
            threading.Timer(0.3, guarded_agent.register, [3002], {"service": "followed"}).start()
            assert [one.port for one in next(lists)] == [3001, 3002]
            threading.Timer(0.3, guarded_agent.register, [3003], {"service": "followed"}).start()
            assert [one.port for one in next(lists)] == [3001, 3002, 3003]
        finally:
            for port in (3001, 3002, 3003):
                guarded_agent.deregister(port, service="followed")
        assert caplog.messages == []


def made(agent: Agent, service: str, nodes: str = 'node_prefix "" {policy="read"}') -> Any:
    """A token for services, and for nodes."""
    name = f"policy-{time.monotonic_ns()}"
    agent.call("PUT", "/v1/acl/policy", json={"Name": name, "Rules": f"{service} {nodes}"})
    return agent.call("PUT", "/v1/acl/token", json={"Policies": [{"Name": name}]}).json()


class TestWhatIsHidden:
    """Consul answers with 200 and an empty list: nobody may take that for none."""

    WITHOUT = (
        "does not tell without a token whether there is a consul-demo-server: ask as an "
        "application that may look it up (sudo -u APP), or set CONSUL_HTTP_TOKEN_FILE"
    )
    UNLISTED = (
        "hides consul-demo-server from this token: name it in app_discovers of the application "
        "whose token this is, and deploy (or see CONSUL_HTTP_TOKEN)"
    )

    def said(self, agent: Agent, token: str = "") -> str:
        result = once("--url", agent.url, **({"CONSUL_HTTP_TOKEN": token} if token else {}))
        assert (result.returncode, result.stdout) == (2, "")
        return result.stderr.removeprefix(f"Consul at {agent.url} ").rstrip("\n")

    def test_without_a_token(self, guarded_agent: Agent, tmp_path: Path) -> None:
        assert self.said(guarded_agent) == self.WITHOUT
        (tmp_path / "token").touch()  # Consul has it not yet
        result = once("--url", guarded_agent.url, CONSUL_HTTP_TOKEN_FILE=str(tmp_path / "token"))
        assert result.returncode == 2 and self.WITHOUT in result.stderr

    def test_with_one_that_may_not_read_it(self, guarded_agent: Agent) -> None:
        token = made(guarded_agent, 'service "shop" {policy="write"}')["SecretID"]
        assert self.said(guarded_agent, token) == self.UNLISTED
        its = client.instances("shop", url=guarded_agent.url, token=token)
        assert its == [], "its own is really none"

    def test_with_one_that_may_read_no_node(self, guarded_agent: Agent) -> None:
        token = made(guarded_agent, f'service "{client.SERVICE}" {{policy="read"}}', "")["SecretID"]
        assert self.said(guarded_agent, token).startswith("hides all nodes from this token")

    def test_for_programs(self, guarded_agent: Agent) -> None:
        for ask in (client.instances, client.pick, lambda **how: next(client.watch(**how))):
            for token, said in (("", self.WITHOUT), ("open-sesame", "")):
                with pytest.raises(RefusedError, match=re.escape(said)) if said else nullcontext():
                    ask(url=guarded_agent.url, token=token)

    def test_what_everybody_may_read_is_none(self, new_agent: NewAgent) -> None:
        """In the rounds before the last, and where look-ups stay open."""
        acl = 'acl { enabled = true default_policy = "%s" tokens { master = "open-sesame" } }'
        agent = new_agent(config=acl % "allow").start()
        assert client.instances(url=agent.url) == []
        agent.kill()
        agent = new_agent(config=acl % "deny")
        agent.session.headers["X-Consul-Token"] = "open-sesame"
        agent.start()
        rules = 'service_prefix "" {policy="read"} node_prefix "" {policy="read"}'
        agent.call("PUT", "/v1/acl/policy", json={"Name": "lookups", "Rules": rules})
        anonymous = "00000000-0000-0000-0000-000000000002"
        body = {"AccessorID": anonymous, "Policies": [{"Name": "lookups"}]}
        with pytest.raises(RefusedError):
            client.instances(url=agent.url)
        agent.call("PUT", f"/v1/acl/token/{anonymous}", json=body)
        until(lambda: once("--url", agent.url).stdout == f"{NONE}\n", "nothing is hidden any more")

    def test_a_list_that_turns_empty_stands(self, guarded_agent: Agent, run: Run) -> None:
        """The list is not printed again, and nothing is shown as gone."""
        token = made(guarded_agent, 'service_prefix "" {policy="read"}')
        environment = {"CONSUL_HTTP_TOKEN": token["SecretID"]}
        watching = run("--url", guarded_agent.url, environment=environment)
        assert watching.line() == found(2001)
        guarded_agent.call("DELETE", f"/v1/acl/policy/{token['Policies'][0]['ID']}")
        guarded_agent.register(2002)  # that its question is answered
        said = watching.said()
        guarded_agent.deregister(2002)
        assert f"hides {client.SERVICE} from this token" in said
        assert watching.out.empty()


class TestForPrograms:
    def test_instances_are_sorted_and_complete(self, agent: Agent) -> None:
        for port in (2002, 2001):
            agent.register(port, status="critical" if port == 2002 else "passing")
        everything = client.instances(url=agent.url)
        assert [(one.port, one.status) for one in everything] == [
            (2001, "passing"),
            (2002, "critical"),
        ]
        assert client.instances(url=agent.url, passing=True) == everything[:1]

    def test_release_and_tags(self, agent: Agent) -> None:
        service = {"Name": "other", "Port": 3001, "Tags": ["eu"], "Meta": {"release": "r7"}}
        agent.call("PUT", "/v1/agent/service/register", json=service)
        (one,) = client.instances("other", url=agent.url)
        assert (one.id, one.release, one.tags) == ("other", "r7", ("eu",))

    def test_pick_takes_all_healthy_ones_and_no_other(self, agent: Agent) -> None:
        for port, status in ((2001, "passing"), (2002, "passing"), (2003, "critical")):
            agent.register(port, status=status)
        picked = {client.pick(url=agent.url).port for _ in range(40)}
        assert picked == {2001, 2002}

    def test_pick_without_a_healthy_one(self, agent: Agent) -> None:
        agent.register(2001, status="critical")
        with pytest.raises(NoInstanceError, match="no consul-demo-server available"):
            client.pick(url=agent.url)

    def test_watch_yields_lists(self, agent: Agent) -> None:
        agent.register(2001)
        lists = client.watch(url=agent.url)
        assert [one.port for one in next(lists)] == [2001]
        threading.Timer(0.1, agent.register, [2002]).start()
        (both,) = itertools.islice(lists, 1)
        assert [one.port for one in both] == [2001, 2002]

    def test_main_can_be_called(self, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
        agent.register(2001)
        assert client.main(["--once", "--url", agent.url]) == 0
        assert capsys.readouterr().out == f"{found(2001)}\n"
