"""The plugin keeps apart from the application, the workers and what else is on the machine."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from consul_processes import until
from uwsgi_processes import SOURCES, Agent, FakeAgent, Uwsgi

Start = Callable[..., Uwsgi]

PROBE = """
import ctypes, os, time

def symbols():
    names = ["curl_easy_init", "SSL_new", "nghttp2_session_del", "ldap_init", "ssh_new"]
    return " ".join(name for name in names if hasattr(ctypes.CDLL(None), name))

def forks():
    began = time.monotonic()
    for _ in range(5):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    return str(time.monotonic() - began)

def application(environ, start_response):
    start_response("200 OK", [])
    query = environ["QUERY_STRING"]
    answer = symbols() if query == "symbols" else forks() if query == "forks" else str(os.getpid())
    return [answer.encode()]
"""


def probed(start: Start, line: str | list[str], **how: object) -> Uwsgi:
    return start(
        line, module="probe", before=lambda folder: (folder / "probe.py").write_text(PROBE), **how
    )


def sockets(pid: int | str) -> set[str]:
    found = set()
    for link in Uwsgi.proc(pid).glob("fd/*"):
        with contextlib.suppress(OSError):  # it may be closed just now
            found.add(str(link.readlink()))
    return {name for name in found if name.startswith("socket:")}


def connected(agent: Agent) -> set[str]:
    """The sockets of this machine that are connected to the agent."""
    port = int(agent.url.rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if int(row[2].partition(":")[2], 16) == port}


@pytest.mark.everywhere
def test_the_application_sees_no_library_of_ours_and_no_connection(
    start: Start, agent: Agent, name: str
) -> None:
    uwsgi = probed(start, f"url={agent.url},name={name},ttl=1", processes=1).ready()
    until(lambda: agent.passing(name), "it is registered")
    alone = probed(start, [], processes=1).ready()
    # What uWSGI itself was linked with is there without us as well.
    assert uwsgi.get("/?symbols") == alone.get("/?symbols")
    assert "curl" not in uwsgi.get("/?symbols")
    first = uwsgi.get()
    os.kill(int(first), signal.SIGKILL)
    until(lambda: uwsgi.serves() and uwsgi.get() != first, "another worker serves")
    until(lambda: sockets(uwsgi.pid) & connected(agent), "the master is connected")
    assert sockets(uwsgi.get()) & connected(agent) == set()


SLOW = r"""
/* Preloaded: while there is a file "slow" the plugin's thread is kept busy as it connects. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
int setsockopt(int fd, int level, int name, const void *value, socklen_t length) {
    if (level == IPPROTO_TCP && name == TCP_USER_TIMEOUT)
        while (!access("slow", F_OK))
            usleep(10000);
    return (int)syscall(SYS_setsockopt, fd, level, name, value, length);
}
"""


def test_a_worker_forked_while_the_thread_was_at_work_forks_quickly(
    start: Start, own_agent: Agent, tmp_path: Path
) -> None:
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW)
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    env = {"LD_PRELOAD": str(library)}
    uwsgi = probed(start, f"url={own_agent.url},name=a,ttl=1", processes=1, env=env).ready()
    until(lambda: own_agent.passing("a"), "it is registered")
    (uwsgi.folder / "slow").touch()
    own_agent.kill()  # so that it connects anew
    time.sleep(0.7)
    first = uwsgi.get()
    os.kill(int(first), signal.SIGKILL)
    until(lambda: uwsgi.serves() and uwsgi.get() != first, "another worker serves")
    took = min(float(uwsgi.get("/?forks")) for _ in range(10))
    (uwsgi.folder / "slow").unlink()
    assert took < 0.4, "five forks would each have waited for 0.1 s, before and after"


def test_a_chroot_without_dev(start: Start, agent: Agent, name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    start(
        f"url={agent.url},name={name},ttl=1",
        language=None,
        module=None,
        options=[f"chroot = {root}"],
    )
    until(lambda: agent.passing(name), "it is registered")


def test_the_workers_handler_can_be_switched_off(start: Start, agent: Agent, name: str) -> None:
    """The signal's handler is uWSGI's own then: where it lies in memory tells whose it is."""
    caught = {}
    for switch in (0, 1):
        line = f"url={agent.url},name={name},id={name}-{switch},worker_handler={switch}"
        uwsgi = start(line, processes=1, module="handler", before=_write_handler).ready()
        caught[switch] = uwsgi.get()
    assert "consul" not in caught[0]
    assert "consul_plugin.so" in caught[1]


HANDLER = """
import ctypes, signal

class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("rest", ctypes.c_char * 256)]

def application(environ, start_response):
    action = Action()
    ctypes.CDLL(None).sigaction(signal.SIGHUP, None, ctypes.byref(action))
    start_response("200 OK", [])
    for line in open("/proc/self/maps"):
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= action.handler < end:
            return [line.split()[-1].encode()]
    return [b"nowhere"]
"""


def _write_handler(folder: Path) -> None:
    (folder / "handler.py").write_text(HANDLER)


def test_what_only_looks_like_a_handover_is_left_alone(start: Start, fake: FakeAgent) -> None:
    """A reload to a configuration without the plugin closes it, and its number goes to others."""
    script = 'UWSGI_CONSUL_OWNER=$$:fd:9:1 exec "$@" 9<"$0"'
    wrapper = ["sh", "-c", script, __file__]
    uwsgi = start(f"url={fake.url},name=a", wrapper=wrapper).ready()
    until(lambda: fake.services, "it is registered")
    assert str((uwsgi.proc(uwsgi.pid) / "fd/9").readlink()) == __file__


def test_a_libcurl_that_can_not_be_initialised(
    start: Start, fake: FakeAgent, tmp_path: Path
) -> None:
    """It is asked twice, and fails twice."""
    names = re.findall(r"^    DO\([^,]*, (\w+)", (SOURCES / "src/curl.c").read_text(), re.M)
    functions = "".join(f"int curl_{name}(void) {{ return 2; }}\n" for name in names)
    (tmp_path / "curl.c").write_text(functions)
    command = ["gcc", "-shared", "-fPIC", "curl.c", "-o", "libcurl.so.4"]
    subprocess.run(command, cwd=tmp_path, check=True)
    uwsgi = start(f"url={fake.url},name=a", env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert uwsgi.wait() == 1
    assert uwsgi.said("can't initialise libcurl")
