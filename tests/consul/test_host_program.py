"""What the host program asks the agent, and how: of real agents, started as it is on a host."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from consul_processes import Agent, free_ports, until
from host_programs import PATIENCE, patient, release
from versions import BEFORE

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.consul import catalog
from uwsgi_consul_fleet.consul.access import Access as OperatorsAccess
from uwsgi_consul_fleet.host import cluster, health
from uwsgi_consul_fleet.host.consul import Access, Consul, UnavailableError

SECRET = "open-sesame"  # of the guarded agent
ANNA = {"who": "anna", "from": "laptop", "what": "deploy", "releases": {}}
# The version before this one, and the text that it ran on a server.
SESSION_BEFORE = f"{BEFORE}:fleet/lock_session.py"


def status(folder: Path, **access: str) -> dict[str, Any]:
    result = release(folder, access, "consul", "status")
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


# --- The program as a file -----------------------------------------------------------


def test_it_runs_where_it_lies_and_where_it_is_brought(shared_agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "release"
    file.write_bytes(host_program.content())
    agent = tmp_path / "agent.json"
    agent.write_text(json.dumps({"address": shared_agent.url}))
    words = ("--agent-file", str(agent), "consul", "status")
    python = (sys.executable, "-IS")
    answers = [
        subprocess.run([*start, *words], capture_output=True, text=True, check=True).stdout
        for start in (
            (*python, str(file)),
            (*python, "-c", host_program.RUN, str(file)),
            host_program.carried(),
        )
    ]
    assert '"leader": "127.0.0.1:' in answers[0]
    assert answers == [answers[0]] * 3


def test_a_command_line_can_carry_it() -> None:
    # Linux takes arguments of 128 KiB, and it is part of one that is a script.
    assert max(map(len, host_program.carried())) < 96 * 1024


# --- How the agent is spoken to ------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate for servers and clients."""
    folder = tmp_path_factory.mktemp("tls")
    for words in (["ca", "create"], ["cert", "create", "-server", "-dc", "dc1"]):
        subprocess.run(["consul", "tls", *words], cwd=folder, check=True, capture_output=True)
    return folder


def test_a_unix_socket(new_agent: Callable[..., Agent], tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    new_agent(config=f'addresses {{ http = "127.0.0.1 unix://{path}" }}').start()
    assert status(tmp_path, address=f"unix://{path}")["leader"]


def test_tls_with_certificates_on_both_sides(
    new_agent: Callable[..., Agent],
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    ca, cert = certificates / "consul-agent-ca.pem", certificates / "dc1-server-consul-0.pem"
    key = cert.with_name("dc1-server-consul-0-key.pem")
    new_agent(
        "-dev",
        *("-https-port", str(port)),
        config=f'ca_file = "{ca}" cert_file = "{cert}" key_file = "{key}" '
        "verify_incoming_https = true",
    ).start()
    address = f"https://127.0.0.1:{port}"
    files = {"ca_file": str(ca), "cert_file": str(cert), "key_file": str(key)}
    assert status(tmp_path, address=address, **files)["leader"]
    assert "problem" in status(tmp_path, address=address, ca_file=str(ca))
    assert "CERTIFICATE_VERIFY_FAILED" in status(tmp_path, address=address)["problem"]
    # The operator's side, through its tunnel.
    shown = OperatorsAccess(address, "", *map(str, (ca, cert, key)))
    with catalog.client(catalog.Way("drakar", port, shown)) as asked:
        assert asked.status.leader()
    # And what it tells the program on a host, where none of these files lies.
    told = release(tmp_path, {}, *shown.words, "consul", "agent", stdin=shown.stdin)
    assert json.loads(told.stdout)["node"] == "drakar"


def test_the_token_of_the_host_and_that_of_the_deploy(guarded_agent: Agent, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    here = {"address": guarded_agent.url}
    nobody = json.loads(release(tmp_path, here, "consul", "cluster").stdout)
    assert "403" in nobody["problem"]
    with_file = {**here, "token_file": str(token)}
    found = json.loads(release(tmp_path, with_file, "consul", "cluster").stdout)
    assert (found["members"], found["nodes"]) == ({"drakar": True}, ["drakar"])
    assert [server["Voter"] for server in found["servers"]] == [True]
    words = ("--access-stdin", "consul", "cluster")
    told = json.dumps({"token": SECRET})
    assert json.loads(release(tmp_path, here, *words, stdin=f"{told}\n").stdout) == found
    # It wins over the host's own; an empty one is none.
    wrong = release(tmp_path, with_file, *words, stdin='{"token": "wrong"}\n')
    assert "403" in json.loads(wrong.stdout)["problem"]
    assert json.loads(release(tmp_path, with_file, *words, stdin="\n").stdout) == found


def test_the_lock_with_the_deploys_token(guarded_agent: Agent, tmp_path: Path) -> None:
    take = json.dumps({"do": "take", "claim": ANNA})
    finish = json.dumps({"do": "finish"})
    for token, state in ((SECRET, "held"), ("wrong", "refused")):
        words = ("--access-stdin", "lock-session")
        said = release(
            tmp_path,
            {"address": guarded_agent.url},
            *words,
            stdin=f"{json.dumps({'token': token})}\n{take}\n{finish}\n",
        ).stdout
        reply = json.loads(said.splitlines()[0])
        assert reply["state"] == state
    needs = 'the token needs session_prefix "" { policy = "write" }'
    assert "refuses" in reply["reason"]
    assert needs in reply["reason"]


def test_what_an_agent_of_others_says(guarded_agent: Agent, tmp_path: Path) -> None:
    keys = "uwsgi-consul-fleet/fleets/shop/"
    shown = OperatorsAccess(guarded_agent.url, SECRET, keys=keys)
    words = (*shown.words, "consul", "agent")
    found = json.loads(release(tmp_path, {}, *words, stdin=shown.stdin).stdout)
    assert (found["node"], found["fleet"]) == ("drakar", "")
    assert found["leader"]
    nobody = shown._replace(token="wrong")
    found = json.loads(release(tmp_path, {}, *words, stdin=nobody.stdin).stdout)
    assert found["refused"]
    assert f'the token needs key_prefix "{keys}" {{ policy = "write" }}' in found["problem"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"adress": "http://127.0.0.1:1"}'])
def test_a_file_that_can_not_be_understood_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    file.write_text(text)
    command = [*host_program.carried(), "--agent-file", str(file), "consul", "status"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"{file}: ")


def test_proxies_and_another_consul_of_the_environment_are_not_asked(
    shared_agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "CONSUL_HTTP_ADDR"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "another's")
    assert status(tmp_path, address=shared_agent.url)["leader"]
    way = catalog.Way("drakar", int(shared_agent.url.rpartition(":")[2]))
    with catalog.client(way) as asked:
        assert asked.status.leader()
        assert asked.token is None


# --- Agents without an answer --------------------------------------------------------


def test_an_agent_that_is_not_there_one_that_hangs_and_one_that_ends_early(
    new_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    agent = new_agent()
    assert "Connection refused" in status(tmp_path, address=agent.url)["problem"]
    agent.start()
    agent.signal(signal.SIGSTOP)
    with pytest.raises(UnavailableError, match="timed out"):
        Consul(Access(agent.url), timeout=0.5).get("/v1/status/leader")
    agent.signal(signal.SIGCONT)
    asked = Consul(Access(agent.url))
    assert until(lambda: asked.get("/v1/status/leader"), "it answers again")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        half = Consul(Access(f"http://127.0.0.1:{listener.getsockname()[1]}"), timeout=30)
        process = subprocess.Popen(
            [sys.executable, "-c", HALF], stdin=listener.fileno(), stdout=subprocess.DEVNULL
        )
        with pytest.raises(UnavailableError, match="closed early"):
            half.get("/v1/status/leader")
        process.wait(10)


# Answers with less than it announces.
HALF = """
import socket
connection, _ = socket.socket(fileno=0).accept()
connection.recv(1000)
connection.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 30\\r\\n\\r\\n[1]")
"""


def test_a_change_is_told_when_it_happens(shared_agent: Agent) -> None:
    asked = Consul(Access(shared_agent.url))
    path = "/v1/kv/uwsgi-consul-fleet/test?keys"
    shared_agent.call("PUT", "/v1/kv/uwsgi-consul-fleet/test/a", data="1")
    _, index = asked.watch(path, "0", 5)
    shared_agent.call("PUT", "/v1/kv/uwsgi-consul-fleet/test/b", data="1")
    keys, later = asked.watch(path, index, 5)
    assert [key[-1] for key in keys] == ["a", "b"]
    assert later != index
    shared_agent.call("DELETE", "/v1/kv/uwsgi-consul-fleet/test?recurse")


# --- The cluster ---------------------------------------------------------------------


def test_what_is_gone_already_is_gone(shared_agent: Agent, tmp_path: Path) -> None:
    gone = ("skeid", "dc1", "9b21a5ab-0000-0000-0000-000000000000")
    for _ in range(2):
        result = release(tmp_path, {"address": shared_agent.url}, "consul", "expel", *gone)
        assert result.returncode == 0, result.stderr


def test_a_node_of_the_catalog_is_expelled(shared_agent: Agent, tmp_path: Path) -> None:
    node = {"Node": "skeid", "Address": "127.0.0.9", "Datacenter": "dc1"}
    shared_agent.call("PUT", "/v1/catalog/register", data=json.dumps(node))
    access = {"address": shared_agent.url}
    assert "skeid" in json.loads(release(tmp_path, access, "consul", "cluster").stdout)["nodes"]
    assert release(tmp_path, access, "consul", "expel", "skeid", "dc1").returncode == 0
    assert "skeid" not in json.loads(release(tmp_path, access, "consul", "cluster").stdout)["nodes"]


def test_a_host_that_votes_and_one_that_does_not(shared_agent: Agent, tmp_path: Path) -> None:
    access = {"address": shared_agent.url}
    assert release(tmp_path, access, "consul", "vote", "drakar", "5").returncode == 0
    result = release(tmp_path, access, "consul", "vote", "skeid", "0.2")
    assert result.returncode == 1
    assert "skeid: the Consul servers gave it no vote within 0.2 s" in result.stderr


def test_two_agents_join(
    shared_agent: Agent, new_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    other = new_agent("-data-dir", str(tmp_path / "data"), "-node", "skeid").start(wait=False)
    access = {"address": other.url}
    members = shared_agent.call("GET", "/v1/agent/members").json()
    address = f"127.0.0.1:{members[0]['Port']}"

    def joined() -> bool:
        return release(tmp_path, access, "consul", "join", "127.0.0.1:1", address).returncode == 0

    until(joined, "it has joined")
    assert json.loads(release(tmp_path, access, "consul", "cluster").stdout)["members"] == {
        "drakar": True,
        "skeid": True,
    }
    nowhere = release(tmp_path, access, "consul", "join", "127.0.0.1:1")
    assert nowhere.returncode == 1
    assert nowhere.stderr.endswith("Failed to join any nodes.\n")
    other.kill()
    release(tmp_path, {"address": shared_agent.url}, "consul", "expel", "skeid", "dc1")


def test_a_server_that_has_what_its_leader_has(
    shared_agent: Agent, new_agent: Callable[..., Agent]
) -> None:
    until(lambda: cluster.has_caught_up(Consul(Access(shared_agent.url))), "it is well", 30)
    # One of three that is alone has no leader.
    options = ("-server", "-bootstrap-expect", "3", "-data-dir", str(shared_agent.log) + "3")
    alone = new_agent(*options, config='performance { rpc_hold_timeout = "100ms" }')
    alone.start(wait=False)
    asked = Consul(Access(alone.url))

    def refuses() -> bool:
        try:
            return not cluster.has_caught_up(asked)
        except UnavailableError as error:
            return error.status == 500

    assert until(refuses, "it answers that it knows no leader")
    # Which is not the same as that nothing was released yet.
    assert cluster.status(asked)["contents"] is None
    assert cluster._contents(asked) is None
    assert cluster._contents(Consul(Access(shared_agent.url, keys="nobodys/"))) == {}


# --- The version before --------------------------------------------------------------


Start = Callable[[], subprocess.Popen[str]]


@contextmanager
def sessions(*words: str) -> Iterator[Start]:
    """Starts lock sessions by this command; they end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture
def session_before(unlocked_agent: Agent) -> Iterator[Start]:
    """The lock session as the version before runs it on a server."""
    repository = Path(__file__).resolve().parents[2]
    shown = subprocess.run(
        ["git", "-C", str(repository), "show", SESSION_BEFORE], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    code = shown.stdout.replace("\nTIMEOUT = 2 ", f"\nTIMEOUT = {PATIENCE} ")
    with sessions(sys.executable, "-c", code, unlocked_agent.url) as start:
        yield start


@pytest.fixture
def session_now(unlocked_agent: Agent, tmp_path: Path) -> Iterator[Start]:
    file = tmp_path / "agent.json"
    file.write_text(json.dumps({"address": unlocked_agent.url}))
    with sessions(*patient(), "--agent-file", str(file), "lock-session") as start:
        yield start


def ask(process: subprocess.Popen[str], **message: Any) -> dict[str, Any]:
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    reply: dict[str, Any] = json.loads(process.stdout.readline())
    return reply


@pytest.mark.parametrize("first", ["before", "now"])
def test_a_lock_that_the_other_version_holds_is_understood(
    session_before: Start,
    session_now: Start,
    first: str,
) -> None:
    one, other = session_before(), session_now()
    if first == "now":
        one, other = other, one
    claim = {**ANNA, "id": "1", "attempt": 1}
    taken = ask(one, do="take", claim=claim)
    assert taken["state"] == "held"
    told = ask(other, do="take", claim={**ANNA, "who": "bert", "id": "2", "attempt": 1})
    assert told["state"] == "locked"
    assert claim.items() <= told["holder"].items()
    # Nor is anything lost where a run goes on with the other's session.
    moved = ask(other, do="take", claim=taken["claim"], session=taken["session"])
    assert moved["state"] == "held"
    assert ask(one, do="beat")["state"] == "lost"
    assert ask(other, do="finish")["state"] == "finished"


# --- What a switch asks --------------------------------------------------------------


def test_a_host_is_told_of_its_own_instances_alone(unlocked_agent: Agent) -> None:
    """A service on many hosts would be told of whole at each change, to each that is switched."""
    agent = unlocked_agent
    for node, status in (("here", "passing"), ("there", "passing"), ("sick", "critical")):
        told = {
            "Node": node,
            "Address": "10.0.0.1",
            "Service": {"ID": "one", "Service": "shop", "Meta": {"release": "r1"}},
            "Check": {"Name": "c", "ServiceID": "one", "Status": status},
        }
        agent.call("PUT", "/v1/catalog/register", json=told)
    told_of: list[str] = []

    class Noting(Consul):
        def watch(self, path: str, index: str, wait: int) -> tuple[Any, str]:
            answer, index = super().watch(path, index, wait)
            told_of.extend(entry["Node"]["Node"] for entry in answer)
            return answer, index

    consul = Noting(Access(agent.url))
    try:
        left, index = health.missing(consul, "shop", "r1", "", ["here/one", "here/two"], "0")
        assert (left, told_of) == (["here/two"], ["here"])
        assert int(index)
        left, _ = health.missing(consul, "shop", "r2", "", ["here/one"], "0")
        assert left == ["here/one"]
        left, _ = health.missing(consul, "shop", "r1", "", ["here/one", "sick/one"], "0")
        assert left == ["sick/one"]
    finally:
        for node in ("here", "there", "sick"):
            agent.call("PUT", "/v1/catalog/deregister", json={"Node": node})
