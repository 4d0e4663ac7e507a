"""Memory, as sanitizers and valgrind see it. bench/plugin_endurance.py does the same for longer."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from consul_processes import until
from uwsgi_processes import Agent, FakeAgent, Uwsgi, sanitizers

Start = Callable[..., Uwsgi]


def reload(uwsgi: Uwsgi, times: int) -> None:
    for _ in range(times):
        count = uwsgi.log.count("[consul] registered")
        uwsgi.signal(signal.SIGHUP)
        until(
            lambda seen=count: uwsgi.log.count("[consul] registered") > seen,
            "it registers again after the reload",
        )


def test_a_life_with_sanitizers(
    start: Start, agent: Agent, name: str, sanitized_plugin: Path
) -> None:
    """Their findings are looked for where the instance ends: see the fixture."""
    uwsgi = start(f"url={agent.url},name={name},ttl=1", plugin=sanitized_plugin).ready()
    assert len(sanitizers(sanitized_plugin)) == 2
    until(lambda: agent.passing(name), "it is registered")
    reload(uwsgi, 3)
    agent.forget(name)
    until(lambda: agent.passing(name), "it is registered anew")
    first = {uwsgi.get() for _ in range(20)}
    os.kill(int(uwsgi.get()), signal.SIGKILL)
    # Until the one that replaces it has uWSGI's handlers for a worker, it would not stop.
    until(lambda: not {uwsgi.get() for _ in range(20)} <= first, "the new worker serves")
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    assert agent.entries(name) == []


FREES_TWICE = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
memory = libc.malloc(8)
libc.free(memory)
libc.free(memory)
"""


def test_sanitizers_do_find_something(sanitized_plugin: Path, tmp_path: Path) -> None:
    """What the test above relies on: a finding of theirs is reported."""
    folder = tmp_path / "uwsgi"
    folder.mkdir()
    (folder / "broken.py").write_text(FREES_TWICE)
    uwsgi = Uwsgi(folder, sanitized_plugin, [], module="broken")
    try:
        assert uwsgi.wait() != 0
        reports = [report.read_text() for report in uwsgi.folder.glob("sanitizer*")]
        assert any("attempting double-free" in report for report in reports)
    finally:
        uwsgi.destroy()


VALGRIND = ["valgrind", "--leak-check=full", "--show-leak-kinds=definite,indirect"]


@pytest.mark.parametrize("trouble", [None, "hang", (500, "no leader")])
def test_a_life_with_valgrind(
    start: Start, fake: FakeAgent, tmp_path: Path, plain_plugin: Path, trouble: str
) -> None:
    """Start, beats, trouble with the agent, stop. uWSGI's own findings are not ours."""
    report = tmp_path / "valgrind.%p"
    uwsgi = start(
        [f"url={fake.url},name=a,id=a{number},ttl=1,meta=k:v,tags=x" for number in range(3)],
        language=None,
        module=None,
        wrapper=[*VALGRIND, f"--log-file={report}"],
        plugin=plain_plugin,
    )
    until(lambda: len(fake.requests("/check/pass/")) > 9, "it beats", 60)
    fake.behave = lambda _: trouble
    count = len(fake.seen)
    until(lambda: len(fake.seen) > count + 2, "requests go on")
    fake.behave = lambda _: None
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait(60) == 0
    assert fake.services == {}
    text = (tmp_path / f"valgrind.{uwsgi.pid}").read_text()
    assert "ERROR SUMMARY" in text
    findings = re.split(r"\n==\d+== \n", text)
    assert [
        one for one in findings if "consul_plugin.so" in one or "/plugin_build/src/" in one
    ] == []
