"""Mistakes in the option, and agents that do not behave."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from consul_processes import until
from uwsgi_processes import FakeAgent, Uwsgi, http

MakeUwsgi = Callable[..., Uwsgi]
MakeAgent = Callable[[Callable[[str], bytes | None]], FakeAgent]
ROOT = Path(__file__).resolve().parents[2]
URL = "url=http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"{URL},name=a,prot=9091", "unknown key 'prot', did you mean 'port'?"),
        (f"{URL},name=a,tt=3", "unknown key 'tt', did you mean 'ttl'?"),
        (f"{URL},name=a,ttl=0", "ttl=0: must be a number from 1 to 86400"),
        (f"{URL},name=a,ttl=-5", "ttl=-5: must be a number from 1 to 86400"),
        (f"{URL},name=a,ttl=soon", "ttl=soon: must be a number from 1 to 86400"),
        (f"{URL},name=a,ttl=5s", "ttl=5s: must be a number from 1 to 86400"),
        (f"{URL},name=a,ttl=", "ttl=: must be a number from 1 to 86400"),
        (f"{URL},name=a,port=0", "port=0: must be a number from 1 to 65535"),
        (f"{URL},name=a,port=99999999999999999999", "must be a number from 1 to 65535"),
        (f"{URL},name=a,deregister_after=30", "must be a number from 60 to 31536000"),
        (f"{URL},name=a,wait_workers=2", "wait_workers=2: must be a number from 0 to 1"),
        (f"{URL}", "name: is missing"),
        ("name=a", "url: is missing"),
        (f"{URL},name=a,alone", "alone: must be key=value"),
        (f"{URL},name=a,token_file=/nonexistent", "token_file=/nonexistent: No such file"),
    ],
)
def test_a_mistake_refuses_the_start(uwsgi: MakeUwsgi, value: str, expected: str) -> None:
    one = uwsgi("--consul-register", f"token=secret-token,{value}").start()
    assert one.process
    assert one.process.wait(timeout=10) == 1
    lines = [line for line in one.said().splitlines() if "[consul]" in line]
    assert len(lines) == 1
    assert lines[0].startswith("[consul] consul-register: ")
    assert expected in lines[0]
    assert "secret-token" not in one.said()


def test_a_hanging_agent_delays_neither_start_nor_stop_for_long(
    uwsgi: MakeUwsgi, fake_agent: MakeAgent
) -> None:
    hanging = fake_agent(lambda request: None)
    option = ("--consul-register", f"url={hanging.url},name=a,ttl=30")
    calm = uwsgi().serve()
    calm.stop()
    one = uwsgi(*option).serve()
    until(lambda: hanging.requests, "the plugin asks the agent")
    took = one.stop()
    assert one.process
    assert one.process.returncode == 0, one.said()
    assert took < 6  # its own time to stop, and at most two seconds of ours


@pytest.mark.parametrize(
    "answer",
    [
        http("500 Internal Server Error", "rpc error"),
        http("403 Forbidden", "Permission denied"),
        b"complete garbage\r\n\r\n",
        http("400 Bad Request", "x" * 1_000_000),
    ],
    ids=["500", "403", "garbage", "huge"],
)
def test_a_failing_agent_is_mentioned_once(
    uwsgi: MakeUwsgi, fake_agent: MakeAgent, answer: bytes
) -> None:
    failing = fake_agent(lambda request: answer)
    one = uwsgi("--consul-register", f"url={failing.url},name=a,ttl=3").serve()
    until(lambda: len(failing.requests) > 3, "the plugin keeps trying")
    assert one.answers()
    lines = [line for line in one.said().splitlines() if "[consul]" in line]
    assert len(lines) == 1, lines
    assert len(lines[0]) < 300
    one.stop()
    assert one.process
    assert one.process.returncode == 0, one.said()


def test_urls_that_were_given_are_used_as_they_are(uwsgi: MakeUwsgi, fake_agent: MakeAgent) -> None:
    agent = fake_agent(lambda request: http("200 OK"))
    urls = ",".join(
        f"{key}={agent.url}/{key}" for key in ("register_url", "deregister_url", "check_url")
    )
    uwsgi("--consul-register", f"name=a,ttl=1,{urls}").serve()
    until(lambda: len(agent.requests) > 2, "the plugin registers and beats")
    assert agent.requests[0].startswith("PUT /register_url HTTP/1.1")
    assert agent.requests[1].startswith("PUT /check_url HTTP/1.1")


def test_many_services_share_a_thread_and_a_connection(
    uwsgi: MakeUwsgi, fake_agent: MakeAgent
) -> None:
    agent = fake_agent(lambda request: http("200 OK"))
    options = [
        word
        for number in range(20)
        for word in ("--consul-register", f"url={agent.url},name=a,id=a{number},ttl=1")
    ]
    plain = uwsgi().serve()
    one = uwsgi(*options).serve()
    until(lambda: len(agent.requests) > 60, "all of them register and beat")
    assert agent.connections == 1
    assert _threads(one) == _threads(plain) + 1


def _threads(uwsgi: Uwsgi) -> int:
    assert uwsgi.process
    status = Path(f"/proc/{uwsgi.process.pid}/status").read_text()
    return int(re.findall(r"^Threads:\s+(\d+)", status, re.MULTILINE)[0])


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    flags = subprocess.run(["uwsgi", "--cflags"], capture_output=True, text=True, check=True)
    header = subprocess.run(["uwsgi", "--dot-h"], capture_output=True, text=True, check=True)
    system = tmp_path / "system"
    system.mkdir()
    (system / "uwsgi.h").write_text(header.stdout)
    # uwsgi.h itself is not free of warnings, so it comes as a header of the system.
    strict = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
    for source in sorted((ROOT / "plugin_build").glob("*.c")):
        relevant = [word for word in flags.stdout.split() if word.startswith("-D")]
        definitions = [word.replace('\\"', '"').replace('"\\', '"') for word in relevant]
        command = [compiler, *strict, *definitions, "-isystem", str(system), "-fPIC", "-c"]
        target = str(tmp_path / "out.o")
        result = subprocess.run(
            [*command, str(source), "-o", target], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
