"""Start, reload, respawn, take-over and stop, as clients see them in the catalog."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from checkout import ROOT
from consul_processes import free_ports, until
from uwsgi_processes import Agent, FakeAgent, Uwsgi, send_command

Start = Callable[..., Uwsgi]


@contextlib.contextmanager
def never_absent(agent: Agent, name: str) -> Iterator[None]:
    """Told by the agent of each change of `?passing`; one can be missed if it is over in a ms."""
    counts: list[int] = []
    ended = threading.Event()
    url = f"{agent.url}/v1/health/service/{name}?passing&wait=200ms"

    def watch() -> None:
        index = "0"
        with requests.Session() as session:
            while not ended.is_set():
                found = session.get(f"{url}&index={index}", timeout=30)
                index = found.headers["X-Consul-Index"]
                counts.append(len(found.json()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        until(lambda: counts, "the first look")
        yield
        seen = len(counts)
        until(lambda: len(counts) > seen + 1, "a look that began now")
    finally:
        ended.set()
        watcher.join()
    assert set(counts) == {1}


def is_passing(agent: Agent, name: str) -> None:
    until(lambda: agent.passing(name), f"{name} is passing")


def is_gone(agent: Agent, name: str) -> None:
    assert agent.entries(name) == []


def spawns(uwsgi: Uwsgi) -> int:
    return uwsgi.log.count("spawned uWSGI worker 1 ")


def registrations(uwsgi: Uwsgi) -> int:
    return sum("[consul] registered" in line for line in uwsgi.consul_lines())


def loads_on(folder: Path) -> None:
    """The application is not loaded before the file is removed."""
    (folder / "app-loads").touch()


# ---- start ----


@pytest.mark.quick
@pytest.mark.everywhere
def test_registered_when_the_workers_accept(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(
        f"url={agent.url},name={name},port=PORT", options=["lazy-apps = true"], before=loads_on
    )
    until(lambda: "spawned uWSGI worker 2" in uwsgi.log, "the workers are there")
    time.sleep(0.5)
    assert agent.entries(name) == []
    (uwsgi.folder / "app-loads").unlink()
    is_passing(agent, name)
    assert "WSGI app 0" in uwsgi.log


def test_without_wait_workers_it_does_not_wait(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(
        f"url={agent.url},name={name},port=PORT,wait_workers=0",
        options=["lazy-apps = true"],
        before=loads_on,
    )
    is_passing(agent, name)
    assert "WSGI app 0" not in uwsgi.log


@pytest.mark.everywhere
def test_cheaper_with_wait_workers(start: Start, agent: Agent, name: str) -> None:
    start(
        f"url={agent.url},name={name},wait_workers=1",
        options=["cheaper = 1", "cheaper-initial = 1"],
        processes=4,
    )
    is_passing(agent, name)


@pytest.mark.everywhere
def test_daemonize2(start: Start, agent: Agent, name: str, tmp_path: Path) -> None:
    pid_file, fifo = tmp_path / "pid", tmp_path / "fifo"
    options = [f"daemonize2 = {tmp_path}/daemon.log", f"pidfile2 = {pid_file}"]
    start(f"url={agent.url},name={name}", options=[*options, f"master-fifo = {fifo}"])
    is_passing(agent, name)
    os.kill(int(pid_file.read_text()), signal.SIGHUP)
    daemon_log = tmp_path / "daemon.log"
    until(lambda: "(RE)spawned" in daemon_log.read_text(), "it reloads")
    send_command(fifo, "q")
    until(lambda: not agent.entries(name), "the daemon stops and deregisters")


# ---- reload and respawn: no client notices ----


@pytest.mark.quick
@pytest.mark.everywhere
def test_reload_in_place(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=4")
    is_passing(agent, name)
    before = agent.passing(name)
    with never_absent(agent, name):
        for count in (2, 3):
            uwsgi.signal(signal.SIGHUP)
            until(lambda n=count: registrations(uwsgi) == n, "it has reloaded")
        time.sleep(4.2)  # longer than the ttl
    assert agent.passing(name)[0]["Meta"] == before[0]["Meta"]


def test_reload_with_an_application_that_loads_for_longer_than_a_ttl(
    start: Start, agent: Agent, name: str
) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=3")
    is_passing(agent, name)
    loads_on(uwsgi.folder)
    with never_absent(agent, name):
        uwsgi.signal(signal.SIGHUP)
        time.sleep(3.5)
        (uwsgi.folder / "app-loads").unlink()
        until(lambda: spawns(uwsgi) == 2, "it reloads")
    until(lambda: registrations(uwsgi) == 2, "it registers anew")


def test_reload_with_another_registration(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},tags=old")
    is_passing(agent, name)
    uwsgi.ini.write_text(uwsgi.ini.read_text().replace("tags=old", "tags=new"))
    with never_absent(agent, name):
        uwsgi.signal(signal.SIGHUP)
        until(lambda: agent.passing(name)[0]["Tags"] == ["new"], "the new tags are there")


@pytest.mark.everywhere
def test_reload_with_another_id(start: Start, agent: Agent, name: str) -> None:
    line = f"url={agent.url},name={name},id={name}/"
    uwsgi = start([line + "1", line + "2"])
    until(lambda: len(agent.passing(name)) == 2, "both are registered")
    uwsgi.ini.write_text(uwsgi.ini.read_text().replace(f"{name}/2", f"{name}/3"))
    uwsgi.signal(signal.SIGHUP)
    wanted = {f"{name}/1", f"{name}/3"}
    until(lambda: {entry["ID"] for entry in agent.entries(name)} == wanted, "the new ones only")
    assert not uwsgi.said("lost")


def test_reload_without_any_registration(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name}")
    is_passing(agent, name)
    lines = uwsgi.ini.read_text().splitlines()
    uwsgi.ini.write_text("\n".join(line for line in lines if "consul-register" not in line) + "\n")
    uwsgi.signal(signal.SIGHUP)
    until(lambda: not agent.entries(name), "it is deregistered")


@pytest.mark.everywhere
def test_reload_to_an_application_that_does_not_load(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name}", options=["need-app = true"])
    is_passing(agent, name)
    (uwsgi.folder / "app-fails").touch()
    uwsgi.signal(signal.SIGHUP)
    assert uwsgi.wait() == 22
    is_gone(agent, name)


@pytest.mark.everywhere
def test_brutal_reload(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name}")
    is_passing(agent, name)
    with never_absent(agent, name):
        uwsgi.signal(signal.SIGTERM)
        until(lambda: spawns(uwsgi) == 2, "it reloads")


def test_reload_asked_for_by_the_application(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name}").ready()
    is_passing(agent, name)
    with never_absent(agent, name):
        uwsgi.get("/?reload")
        until(lambda: registrations(uwsgi) == 2, "it has reloaded")


@pytest.mark.everywhere
def test_chain_reload(start: Start, agent: Agent, name: str) -> None:
    options = ["lazy-apps = true", "master-fifo = fifo"]
    uwsgi = start(f"url={agent.url},name={name},ttl=6", options=options)
    is_passing(agent, name)
    with never_absent(agent, name):
        uwsgi.command("c")
        until(lambda: "chain reloading complete" in uwsgi.log, "the chain is through")


@pytest.mark.everywhere
@pytest.mark.parametrize("lazy", ["lazy-apps = true", "lazy-apps = false"])
def test_respawn_of_the_only_worker(start: Start, agent: Agent, name: str, lazy: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=6", processes=1, options=[lazy]).ready()
    is_passing(agent, name)
    with never_absent(agent, name):
        worker = int(uwsgi.get())
        os.kill(worker, signal.SIGKILL)
        until(lambda: uwsgi.serves() and int(uwsgi.get()) != worker, "another worker serves")
        time.sleep(0.5)


@pytest.mark.everywhere
def test_cheaper_scaling_down(start: Start, agent: Agent, name: str) -> None:
    options = ["cheaper = 1", "cheaper-initial = 4", "cheaper-overload = 1", "cheaper-step = 3"]
    uwsgi = start(f"url={agent.url},name={name},ttl=6", processes=4, options=options)
    is_passing(agent, name)
    with never_absent(agent, name):
        until(lambda: "uWSGI worker 3 cheaped" in uwsgi.log, "workers are cheaped")


# ---- stop ----

STOPS = {
    "SIGINT": (signal.SIGINT, []),
    "SIGQUIT": (signal.SIGQUIT, []),
    "SIGTERM and die-on-term": (signal.SIGTERM, ["die-on-term = true"]),
    "SIGHUP and exit-on-reload": (signal.SIGHUP, ["exit-on-reload = true"]),
    "SIGTERM and exit-on-reload": (signal.SIGTERM, ["exit-on-reload = true"]),
    "SIGTERM and a hook": (
        signal.SIGTERM,
        ["hook-master-start = unix_signal:15 gracefully_kill_them_all"],
    ),
    "fifo q": ("q", ["master-fifo = fifo"]),
    "fifo Q": ("Q", ["master-fifo = fifo"]),
    "fifo r and exit-on-reload": ("r", ["master-fifo = fifo", "exit-on-reload = true"]),
}


def stop(uwsgi: Uwsgi, how: str) -> None:
    way, _ = STOPS[how]
    if isinstance(way, str):
        uwsgi.command(way)
    else:
        uwsgi.signal(way)


@pytest.mark.everywhere
@pytest.mark.parametrize("how", STOPS)
def test_a_stop_deregisters_first_and_goes_on_serving(
    start: Start, agent: Agent, name: str, how: str
) -> None:
    uwsgi = start(f"url={agent.url},name={name},drain=60", options=STOPS[how][1]).ready()
    is_passing(agent, name)
    stop(uwsgi, how)
    until(lambda: not agent.entries(name), "it is deregistered")
    # For the rest of the drain clients that know it from before are still served.
    assert uwsgi.serves()
    assert "killing workers" not in uwsgi.log
    assert "graceful shutdown" not in uwsgi.log
    stop(uwsgi, how)  # who asks twice does not wait
    assert uwsgi.wait() == 0
    is_gone(agent, name)


@pytest.mark.everywhere
@pytest.mark.parametrize("how", STOPS)
def test_a_stop_goes_on_when_the_drain_is_over(
    start: Start, agent: Agent, name: str, how: str
) -> None:
    uwsgi = start(f"url={agent.url},name={name},drain=1", options=STOPS[how][1])
    is_passing(agent, name)
    began = time.monotonic()
    stop(uwsgi, how)
    assert uwsgi.wait() == 0
    assert time.monotonic() - began >= 1
    is_gone(agent, name)


@pytest.fixture(scope="module")
def late_worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("late") / "late_worker.so"
    source = ROOT / "tests/support/late_worker.c"
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def start_late(start: Start, agent: Agent, name: str, late_worker: Path, where: str) -> Uwsgi:
    """A uWSGI server whose only worker is slow at some place, with systemd's way to stop it."""
    return start(
        f"url={agent.url},name={name},drain=0",
        options=["exit-on-reload = true", "worker-reload-mercy = 60"],
        processes=1,
        env={"LD_PRELOAD": str(late_worker), "LATE": where},
    )


@pytest.mark.everywhere
def test_a_stop_does_not_reset_what_was_just_accepted(
    start: Start, agent: Agent, name: str, late_worker: Path
) -> None:
    uwsgi = start_late(start, agent, name, late_worker, "accept").ready()
    answers: list[str] = []
    (uwsgi.folder / "late").unlink()
    client = threading.Thread(target=lambda: answers.append(uwsgi.get()))
    client.start()
    until((uwsgi.folder / "late").exists, "the connection is accepted")
    uwsgi.signal(signal.SIGHUP)
    client.join()
    assert len(answers) == 1, "it is answered"
    assert uwsgi.wait() == 0


@pytest.mark.everywhere
def test_a_stop_finds_a_worker_that_is_about_to_wait(
    start: Start, agent: Agent, name: str, late_worker: Path
) -> None:
    """Were it told once only, it would wait for a connection until it is killed."""
    uwsgi = start_late(start, agent, name, late_worker, "wait").ready()
    is_passing(agent, name)
    late = uwsgi.folder / "late"
    late.unlink()
    uwsgi.get()
    until(late.exists, "the worker is about to wait")
    uwsgi.signal(signal.SIGHUP)
    assert uwsgi.wait() == 0


SENDS = {
    "prefork": [],
    "threads": ["threads = 2"],
    "gevent": ["plugin = gevent_python3", "gevent = 20"],
    "ugreen": ["plugin = ugreen", "async = 8", "ugreen = true"],
    "offload": ["offload-threads = 1", "static-map = /=static"],
}


@pytest.mark.everywhere
@pytest.mark.parametrize("way", SENDS)
def test_a_stop_finishes_an_answer_that_the_client_takes_slowly(
    start: Start, agent: Agent, name: str, way: str
) -> None:
    def static(folder: Path) -> None:
        (folder / "static").mkdir()
        (folder / "static/file").write_bytes(b"x" * 20_000_000)

    options = ["exit-on-reload = true", "worker-reload-mercy = 60", "socket-timeout = 60"]
    line = f"url={agent.url},name={name},drain=0"
    uwsgi = start(line, options=[*options, *SENDS[way]], before=static, processes=1).ready()
    request = f"GET {'/file' if way == 'offload' else '/?large'} HTTP/1.0\r\n\r\n".encode()
    with contextlib.ExitStack() as clients:

        def ask() -> tuple[socket.socket, bytes]:
            address = ("127.0.0.1", uwsgi.port)
            found = clients.enter_context(socket.create_connection(address, timeout=10))
            found.sendall(request)
            return found, found.recv(1000)

        client, begin = first, _ = ask()
        if way == "threads" and b"X-First-Thread: True" in begin:
            # uWSGI itself waits for this one.
            client, begin = ask()
            first.close()
        time.sleep(0.5)  # for as much as the kernel takes meanwhile
        uwsgi.signal(signal.SIGHUP)
        until(lambda: "killing worker" in uwsgi.log, "the workers are asked to go")
        time.sleep(1.3)  # longer than a worker is kept in which nothing is under way
        answer = begin + b"".join(iter(lambda: client.recv(1_000_000), b""))
    assert len(answer.partition(b"\r\n\r\n")[2]) == 20_000_000
    assert uwsgi.wait() == 0


@pytest.mark.everywhere
def test_a_stop_leaves_threads_that_compute_the_interpreters_lock(
    start: Start, agent: Agent, name: str
) -> None:
    """Python runs one of them at a time: none may be waited for where another is interrupted."""
    options = ["exit-on-reload = true", "worker-reload-mercy = 20", "threads = 2"]
    line = f"url={agent.url},name={name},drain=0"
    uwsgi = start(line, options=options, processes=1).ready()
    answers: list[str] = []
    clients = [
        threading.Thread(target=lambda: answers.append(uwsgi.get("/?compute"))) for _ in range(2)
    ]
    for client in clients:
        client.start()
    begun = uwsgi.folder / "compute-begun"
    until(lambda: begun.exists() and begun.read_text() == "xx", "both have begun")
    uwsgi.signal(signal.SIGHUP)
    for client in clients:
        client.join()
    assert len(answers) == 2, "both are answered"
    assert uwsgi.wait(10) == 0


@pytest.mark.everywhere
def test_a_worker_that_still_starts_is_asked_to_go_too(
    start: Start, agent: Agent, name: str
) -> None:
    uwsgi = start(
        f"url={agent.url},name={name},drain=0",
        options=["exit-on-reload = true", "lazy-apps = true", "worker-reload-mercy = 30"],
        env={"APP_LOADS_FOR": "3"},
    )
    until(lambda: "spawned uWSGI worker 2" in uwsgi.log, "the workers are there")
    time.sleep(0.5)
    uwsgi.signal(signal.SIGHUP)
    assert uwsgi.wait(10) == 0


@pytest.mark.everywhere
@pytest.mark.quick
def test_who_asks_twice_does_not_wait(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},drain=60").ready()
    is_passing(agent, name)
    uwsgi.signal(signal.SIGINT)
    until(lambda: not agent.entries(name), "it is deregistered")
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0


@pytest.mark.parametrize("options", [[], ["exit-on-reload = true"]])
def test_without_drain_the_stop_is_not_held_back(
    start: Start, agent: Agent, name: str, options: list[str]
) -> None:
    uwsgi = start(f"url={agent.url},name={name},drain=0", options=options).ready()
    is_passing(agent, name)
    uwsgi.signal(signal.SIGHUP if options else signal.SIGINT)
    assert uwsgi.wait() == 0
    is_gone(agent, name)


def test_a_stop_before_the_workers_are_ready(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(
        f"url={agent.url},name={name},drain=60",
        options=["lazy-apps = true", "worker-reload-mercy = 1"],
        env={"APP_LOADS_FOR": "30"},
    )
    until(lambda: "spawned uWSGI worker 2" in uwsgi.log, "the workers are there")
    time.sleep(0.1)
    uwsgi.signal(signal.SIGINT)
    uwsgi.wait(10)  # nothing is registered, so there is nobody to wait for
    is_gone(agent, name)


def test_a_killed_master_becomes_critical(start: Start, agent: Agent, name: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=1,deregister_after=60")
    is_passing(agent, name)
    uwsgi.destroy()
    until(lambda: agent.status(name) == "critical", "the ttl is over")


# ---- one id, two owners ----


@pytest.mark.everywhere
def test_a_successor_keeps_the_id(start: Start, agent: Agent, name: str) -> None:
    line = f"url={agent.url},name={name},port=PORT,ttl=6"
    old = start(line, options=["exit-on-reload = true"]).ready()
    is_passing(agent, name)
    new = start(line, options=["exit-on-reload = true"]).ready()
    until(lambda: [x["Port"] for x in agent.passing(name)] == [new.port], "the new one registers")
    with never_absent(agent, name):
        old.signal(signal.SIGHUP)
        assert old.wait() == 0
    assert old.said("is registered by another process now: left alone")
    assert not old.said("deregistered")
    assert agent.passing(name)[0]["Port"] == new.port


def test_an_old_process_does_not_drain_for_its_successor(
    start: Start, agent: Agent, name: str
) -> None:
    """What it has left to do is done in a moment, whatever drain says."""
    line = f"url={agent.url},name={name},port=PORT,drain=60"
    old = start(line, options=["exit-on-reload = true"]).ready()
    is_passing(agent, name)
    new = start(line, options=["exit-on-reload = true"]).ready()
    until(lambda: [x["Port"] for x in agent.passing(name)] == [new.port], "the new one registers")
    old.signal(signal.SIGHUP)
    assert old.wait(10) == 0


def test_an_old_process_takes_the_id_back_when_its_successor_fails(
    start: Start, agent: Agent, name: str
) -> None:
    line = f"url={agent.url},name={name},port=PORT,ttl=2,drain=0"
    old = start(line).ready()
    is_passing(agent, name)
    new = start(line).ready()
    until(lambda: old.said("registered by another process"), "the old one notices")
    new.signal(signal.SIGINT)
    new.wait()
    until(lambda: [x["Port"] for x in agent.passing(name)] == [old.port], "the old one is back")


def test_a_stuck_old_process_does_not_speak_for_its_successor(
    start: Start, agent: Agent, name: str
) -> None:
    line = f"url={agent.url},name={name},port=PORT,ttl=6,stuck_after=1"
    old = start(line, processes=1).ready()
    is_passing(agent, name)
    new = start(line).ready()
    until(lambda: old.said("registered by another process"), "the old one notices")
    with never_absent(agent, name):
        old.stuck_requests(1)
        time.sleep(3)  # it knows after one, and would tell at once
    assert agent.passing(name)[0]["Port"] == new.port


# ---- other ways to run uWSGI ----

WAYS = {
    "threads": ["enable-threads = true", "threads = 4"],
    "lazy-apps": ["lazy-apps = true"],
    "gevent": ["plugin = gevent_python3", "gevent = 20"],
    "mules": ["mules = 2"],
    "spooler": ["spooler = ."],
    "log-master": ["log-master = true", "threaded-logger = true"],
    "offload": ["offload-threads = 1", "enable-threads = true"],
    "harakiri": ["harakiri = 5", "max-requests = 1"],
    "stats": ["stats = stats.sock"],
}


@pytest.mark.everywhere
@pytest.mark.parametrize("way", WAYS)
def test_ways_to_run(start: Start, agent: Agent, name: str, way: str) -> None:
    uwsgi = start(f"url={agent.url},name={name},ttl=4,drain=0", options=WAYS[way]).ready()
    is_passing(agent, name)
    until(lambda: agent.check(name)["Output"] == "2 workers", "a beat arrives")
    with never_absent(agent, name):
        uwsgi.signal(signal.SIGHUP)
        until(lambda: spawns(uwsgi) == 2, "it reloads")
        until(lambda: registrations(uwsgi) == 2, "its workers are ready again")
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    is_gone(agent, name)


@pytest.mark.everywhere
def test_another_language(start: Start, agent: Agent, name: str, tmp_path: Path) -> None:
    (tmp_path / "app.psgi").write_text("sub { [200, ['Content-Type' => 'text/plain'], ['ok']] }")
    uwsgi = start(
        f"url={agent.url},name={name},port=PORT,drain=0",
        language="psgi",
        module=None,
        options=[f"psgi = {tmp_path}/app.psgi"],
    ).ready()
    is_passing(agent, name)
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    is_gone(agent, name)


MULE = """
import time
import uwsgi
print("mule", uwsgi.mule_id(), "runs")
while True:
    time.sleep(1)
"""
SECTIONS = """
[uwsgi]
plugins-dir = {folder}
plugins = python3,consul
socket = 127.0.0.1:{port}
master = true
enable-threads = true

[server1]
consul-register = url={url},name={name},id={name}-1,port=2001
mule = mule.py

[server2]
consul-register = url={url},name={name},id={name}-2,port=2002
mule = mule.py
"""


def test_sections_with_mules_and_no_application(
    start: Start, plugin: Path, agent: Agent, name: str, tmp_path: Path
) -> None:
    """As in the demo of uwsgi-consul: a section for each server, which is only a mule."""
    (port,) = free_ports(1)
    ini = tmp_path / "demo.ini"
    ini.write_text(SECTIONS.format(folder=plugin.parent, port=port, url=agent.url, name=name))
    uwsgi = start(
        [],
        language=None,
        module=None,
        socket="",
        options=[f"ini = {ini}", f"ini = {ini}:server1", f"ini = {ini}:server2"],
        before=lambda folder: (folder / "mule.py").write_text(MULE),
    )
    until(lambda: len(agent.passing(name)) == 2, "both servers are registered")
    until(lambda: "mule 2 runs" in uwsgi.log, "the mules run")
    uwsgi.signal(signal.SIGINT)
    assert uwsgi.wait() == 0
    is_gone(agent, name)


@pytest.mark.everywhere
def test_a_socket_that_systemd_holds(start: Start, agent: Agent, name: str, tmp_path: Path) -> None:
    """As deployed: two releases on one inherited socket, the old one stopped by SIGHUP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        # systemd's protocol: descriptor 3, and the number of the process that it is for.
        activate = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
            "os.execvp(sys.argv[2], sys.argv[2:])"
        )
        wrapper = [sys.executable, "-c", activate, str(listener.fileno())]
        how = {
            "socket": "socket",
            "port": port,
            "options": ["protocol = http", "exit-on-reload = true", "need-app = true"],
            "wrapper": wrapper,
            "pass_fds": [listener.fileno()],
        }
        line = f"url={agent.url},name={name},port=PORT,ttl=6,meta=release:"
        old = start(line + "1", **how)
        is_passing(agent, name)
        new = start(line + "2", **how)
        registered = lambda: [x["Meta"]["release"] for x in agent.passing(name)]  # noqa: E731
        until(lambda: registered() == ["2"], "the new one registers")
        with never_absent(agent, name):
            for _ in range(20):
                assert new.serves()
            old.signal(signal.SIGHUP)
            assert old.wait() == 0
        assert new.serves()
        assert registered() == ["2"]


@pytest.mark.everywhere
def test_a_vassal_of_the_emperor(start: Start, agent: Agent, name: str, tmp_path: Path) -> None:
    vassals = tmp_path / "vassals"
    vassals.mkdir()
    vassal = start(f"url={agent.url},name={name},port=PORT,ttl=6,drain=3")
    vassal.destroy()
    emperor = start([], module=None, socket="", options=[f"emperor = {vassals}"])
    agent_entries = lambda: agent.passing(name)  # noqa: E731
    (vassals / "shop.ini").write_text(vassal.ini.read_text() + f"chdir = {vassal.folder}\n")
    until(agent_entries, "the vassal is registered")
    until(vassal.serves, "it serves")
    with never_absent(agent, name):
        later = time.time() + 2  # the Emperor compares whole seconds
        os.utime(vassals / "shop.ini", (later, later))
        until(lambda: "(RE)spawned" in emperor.log, "the vassal reloads")
        until(vassal.serves, "it serves again")
        time.sleep(0.5)
    (vassals / "shop.ini").unlink()
    until(lambda: not agent.entries(name), "it is deregistered")
    assert vassal.serves()
    until(lambda: not vassal.serves(), "the vassal has stopped")


# ---- a stop under load ----


def test_a_stop_under_discovering_clients(
    start: Start, agent: Agent, name: str, tmp_path: Path
) -> None:
    """Eight clients that look the service up before each request see no failure."""
    # Longer than a client needs from its look-up to its connection, also on a busy machine.
    line = f"url={agent.url},name={name},id={name}-{{}},port=PORT,drain=3"
    leaving = start(line.format(1)).ready()
    staying = start(line.format(2)).ready()
    until(lambda: len(agent.passing(name)) == 2, "both are registered")
    failures: list[str] = []
    served: list[int] = []
    ended = threading.Event()

    def client() -> None:
        with requests.Session() as session:
            while not ended.is_set():
                look_up = f"{agent.url}/v1/health/service/{name}?passing"
                for entry in session.get(look_up, timeout=30).json():
                    port = entry["Service"]["Port"]
                    try:
                        requests.get(f"http://127.0.0.1:{port}/", timeout=30).raise_for_status()
                        served.append(port)
                    except requests.RequestException as error:
                        failures.append(str(error))
                ended.wait(0.01)  # else little is left for whom they ask

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    time.sleep(0.5)
    leaving.signal(signal.SIGINT)
    assert leaving.wait() == 0
    time.sleep(0.2)
    ended.set()
    for one in clients:
        one.join()
    assert failures == []
    assert {leaving.port, staying.port} == set(served)


def test_the_fakes_registrations_are_those_of_a_reload_too(start: Start, fake: FakeAgent) -> None:
    """A reload registers once more, under the same owner, and deregisters nothing."""
    uwsgi = start(f"url={fake.url},name=a")
    until(lambda: len(fake.requests("/service/register")) == 1, "it registers")
    uwsgi.signal(signal.SIGHUP)
    until(lambda: len(fake.requests("/service/register")) == 2, "it registers again")
    owners = {seen.json["Meta"]["uwsgi_owner"] for seen in fake.requests("/service/register")}
    assert len(owners) == 1
    assert fake.requests("/service/deregister/") == []
