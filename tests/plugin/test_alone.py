"""The plugin's conversation and its HTTP, each without the other and without uWSGI."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from consul_processes import free_ports
from uwsgi_processes import SANITIZERS, SOURCES, Agent, FakeAgent, Seen

SRC = SOURCES / "src"
PROGRAMS = Path(__file__).parent / "alone"
NEEDS = {"conversation": ["conversation"], "http": ["http", "answer"]}
OWNER = "0123456789abcdef0123456789abcdef"
TOKEN = "s3cr3t-s3cr3t"


def compile_alone(name: str, folder: Path, compiler: str = "gcc") -> Path:
    """A test program with the sources that it is for, and nothing else of the plugin."""
    program = folder / f"{name}-{compiler}"
    sources = [str(SRC / f"{part}.c") for part in NEEDS[name]]
    warnings = ["-Wall", "-Wextra", "-Wshadow", "-Werror"]
    command = [compiler, *SANITIZERS, "-fno-sanitize-recover=all", *warnings, f"-I{SRC}"]
    command += [str(PROGRAMS / f"{name}.c"), *sources, "-o", str(program)]
    built = subprocess.run([*command, "-lcurl"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize("name", NEEDS)
def test_neither_knows_anything_of_uwsgi(name: str) -> None:
    for part in NEEDS[name]:
        listed = subprocess.run(
            ["gcc", "-MM", str(SRC / f"{part}.c")], capture_output=True, text=True, check=True
        )
        headers = {Path(word).name for word in listed.stdout.split() if word.endswith(".h")}
        assert headers <= {"conversation.h", "http.h"}
        text = "".join((SRC / name).read_text() for name in [f"{part}.c", *headers])
        assert "uwsgi.h" not in text
        assert "uwsgi_" not in text


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_state_with_every_event(tmp_path: Path, compiler: str) -> None:
    program = compile_alone("conversation", tmp_path, compiler)
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@dataclass
class Ended:
    """How an exchange ended."""

    http: int
    owners: int
    seconds: float
    attempts: int
    error: int
    text: str


@pytest.fixture(scope="session")
def http(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_alone("http", tmp_path_factory.mktemp("http"))


def exchange(http: Path, url: str, *body: str, method: str = "GET", token: str = "") -> Ended:
    command = [str(http), method, url, OWNER, token, *body]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    status, owners, seconds, attempts, error, text = ran.stdout.rstrip("\n").split(" ", 5)
    return Ended(int(status), int(owners), float(seconds), int(attempts), int(error), text)


def test_a_registration_at_an_agent(http: Path, agent: Agent, name: str) -> None:
    body = f'{{"Name": "{name}", "Meta": {{"uwsgi_owner": "{OWNER}"}}}}'
    url = f"{agent.url}/v1/agent/service"
    ended = exchange(http, f"{url}/register", body, method="PUT")
    assert (ended.http, ended.attempts, ended.text) == (200, 1, "")
    ended = exchange(http, f"{url}/{name}")
    assert (ended.http, ended.owners, ended.text) == (200, 1, "{")
    assert exchange(http, f"{url}/deregister/{name}", method="PUT").http == 200
    assert exchange(http, f"{url}/{name}").http == 404


def test_what_is_sent(http: Path, fake: FakeAgent) -> None:
    exchange(http, f"{fake.url}/here?x=y", "the body", method="PUT", token=TOKEN)
    exchange(http, f"{fake.url}/there")
    first, second = fake.seen
    assert (first.method, first.path, first.query, first.body) == (
        "PUT",
        "/here",
        "x=y",
        b"the body",
    )
    assert first.headers["X-Consul-Token"] == TOKEN
    assert first.headers["Content-Type"] == "application/json"
    assert "Expect" not in first.headers
    assert (second.method, second.path, second.body) == ("GET", "/there", b"")
    assert "X-Consul-Token" not in second.headers


def test_an_answer_is_counted_and_cut(http: Path, fake: FakeAgent) -> None:
    fake.behave = lambda _: (500, f"first {OWNER} line\n" + f"{OWNER}, " * 20_000)
    ended = exchange(http, fake.url)
    assert (ended.http, ended.owners) == (500, 20_001)
    assert ended.text == f"first {OWNER} line"


def test_a_token_in_an_answer_is_not_shown(http: Path, fake: FakeAgent) -> None:
    fake.behave = lambda _: (403, f"{TOKEN} is wrong")
    assert exchange(http, fake.url, token=TOKEN).text == "(hidden, it repeats the token)"


def test_what_hangs_is_sent_again(http: Path, fake: FakeAgent) -> None:
    fake.behave = lambda seen: "hang" if seen is fake.seen[0] else (200, "there")
    ended = exchange(http, fake.url)
    assert (ended.http, ended.text) == (200, "there")
    assert ended.attempts >= 2
    assert fake.connections >= 2, "over a new connection"


def test_what_hangs_is_waited_for_as_well(http: Path, fake: FakeAgent) -> None:
    """The first request is answered after the second was sent, which hangs."""

    def behave(seen: Seen) -> object:
        if seen is not fake.seen[0]:
            return "hang"
        time.sleep(1)
        return 200, "first"

    fake.behave = behave
    ended = exchange(http, fake.url)
    assert (ended.http, ended.text) == (200, "first")
    assert ended.attempts >= 2


def test_the_only_attempt_is_not_begun_again(http: Path, fake: FakeAgent) -> None:
    """The first one fails while the second is under way, which is answered after a second."""

    def behave(seen: Seen) -> object:
        if seen is fake.seen[0]:
            time.sleep(0.9)
            return "close"
        time.sleep(1)
        return 200, "there"

    fake.behave = behave
    ended = exchange(http, fake.url)
    assert (ended.http, ended.text) == (200, "there")
    assert ended.seconds < 6


def test_silence_is_given_up(http: Path, fake: FakeAgent) -> None:
    fake.behave = lambda _: "hang"
    ended = exchange(http, fake.url)
    assert (ended.http, ended.text) == (0, "given up")
    assert 10 <= ended.seconds < 30
    assert ended.attempts > 5


@pytest.mark.parametrize("how", ["close", "garbage"])
def test_trouble_has_a_reason(http: Path, fake: FakeAgent, how: str) -> None:
    fake.behave = lambda _: how
    ended = exchange(http, fake.url)
    assert ended.http == 0
    assert ended.text not in ("", "given up")
    assert 0 < ended.error < 1000, "curl's reason, not the system's"


def test_nobody_listens(http: Path) -> None:
    ended = exchange(http, f"http://127.0.0.1:{free_ports(1)[0]}/")
    assert (ended.http, ended.attempts, ended.text) == (0, 1, "Connection refused")
    assert ended.error > 1000, "the system's reason, not curl's"


def test_other_protocols_are_not_spoken(http: Path) -> None:
    ended = exchange(http, "file:///etc/passwd")
    assert (ended.http, ended.owners) == (0, 0)
    assert "rotocol" in ended.text
