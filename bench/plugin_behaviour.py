"""Measures how a consul plugin for uWSGI behaves, and how another one does beside it.

    bench/plugin_behaviour.py                                  the plugin of this checkout
    bench/plugin_behaviour.py --plugin a/consul_plugin.so      any plugin
    bench/plugin_behaviour.py --compare b/consul_plugin.so     two, in one run

Every row starts real Consul agents and real uWSGI instances on loopback, all with the same ini
for both plugins, and prints what was seen from outside: in the catalog and by clients.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import figures  # noqa: E402
import requests  # noqa: E402
from consul_processes import until  # noqa: E402
from uwsgi_processes import Agent, FakeAgent, Uwsgi, build_plugin  # noqa: E402

TTL = 6
DRAIN = 1
NAME = "shop"


@dataclass(frozen=True)
class Figure:
    """What one row gave for one plugin."""

    text: str
    met: bool


class Bench:
    """One plugin under measurement: makes agents and instances that end with the row."""

    def __init__(self, plugin: Path, agent: Agent, once: bool) -> None:
        self.plugin = plugin
        self.agent = agent
        self.once = once
        self.folder = Path(tempfile.mkdtemp(prefix="plugin-behaviour-"))
        self.started: list[Uwsgi] = []
        self.others: list[Agent | FakeAgent] = []

    def start(self, line: str = "", *, url: str = "", ttl: str = str(TTL), **how: Any) -> Uwsgi:
        register = f"url={url or self.agent.url},name={NAME},port=PORT,ttl={ttl},drain={DRAIN}"
        lines = [f"{register},{line}" if line else register]
        return self.start_lines(lines, **how)

    def start_lines(self, lines: list[str], **how: Any) -> Uwsgi:
        uwsgi = Uwsgi(self.folder / f"uwsgi-{len(self.started)}", self.plugin, lines, **how)
        self.started.append(uwsgi)
        return uwsgi

    def own_agent(self) -> Agent:
        folder = self.folder / f"agent-{len(self.others)}"
        folder.mkdir()
        agent = Agent(folder)
        self.others.append(agent)
        return agent.start()  # type: ignore[return-value]

    def fake(self, listener: socket.socket | None = None) -> FakeAgent:
        fake = FakeAgent(listener=listener)
        self.others.append(fake)
        return fake

    def clean(self) -> None:
        for uwsgi in self.started:
            uwsgi.destroy()
        for other in self.others:
            other.close() if isinstance(other, FakeAgent) else other.kill()
        for service in self.agent.get("/v1/agent/services"):
            self.agent.forget(service)
        self.started.clear()
        self.others.clear()

    def registered(self, agent: Agent | None = None) -> Uwsgi:
        """An instance that serves and is passing."""
        uwsgi = self.start(url=(agent or self.agent).url).ready()
        passing(agent or self.agent)
        return uwsgi


def passing(agent: Agent, timeout: float = 15) -> None:
    until(lambda: agent.passing(NAME), "the service is passing", timeout)


def seconds_until(condition: Callable[[], object], limit: float) -> float | None:
    """None if it is not in time."""
    begin = time.monotonic()
    while time.monotonic() - begin < limit:
        with contextlib.suppress(requests.RequestException):
            if condition():
                return time.monotonic() - begin
        time.sleep(0.002)
    return None


def spoken(seconds: float | None, limit: float) -> str:
    if seconds is None:
        return f"not within {limit:.0f} s"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


@contextlib.contextmanager
def watched(agent: Agent) -> Iterator[list[float]]:
    """How long the service was missing from `?passing`, each time."""
    gaps: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        with requests.Session() as session:
            missing_since = 0.0
            while not ended.is_set() or missing_since:
                url = f"{agent.url}/v1/health/service/{NAME}?passing"
                found = session.get(url, timeout=10).json()
                now = time.monotonic()
                if not found and not missing_since:
                    missing_since = now
                elif found and missing_since:
                    gaps.append(now - missing_since)
                    missing_since = 0.0
                elif missing_since and ended.is_set() and now - missing_since > 2 * TTL:
                    gaps.append(now - missing_since)
                    return

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield gaps
    ended.set()
    watcher.join()


def absence(gaps: list[float]) -> Figure:
    if not gaps:
        return Figure("never", True)
    return Figure(f"{sum(gaps):.2f} s", False)


# ---- the rows ----


def first_answer_to_passing(bench: Bench) -> Figure:
    delays = []
    for _ in range(3 if bench.once else 7):
        uwsgi = bench.start()
        moments: dict[str, float] = {}

        def note(what: str, condition: Callable[[], object], into: dict[str, float]) -> None:
            seconds_until(condition, 20)
            into[what] = time.monotonic()

        threads = [
            threading.Thread(target=note, args=("answer", uwsgi.serves, moments)),
            threading.Thread(target=note, args=("passing", in_catalog(bench.agent), moments)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        delays.append(max(0.0, moments["passing"] - moments["answer"]))
        bench.clean()
    median = statistics.median(delays)
    return Figure(f"{spoken(median, 0)} (worst {spoken(max(delays), 0)})", max(delays) <= 0.05)


def in_catalog(agent: Agent) -> Callable[[], object]:
    """With a connection of its own, to be asked from any thread."""
    session = requests.Session()
    url = f"{agent.url}/v1/health/service/{NAME}?passing"
    return lambda: session.get(url, timeout=10).json()


def absent_during_reload(bench: Bench) -> Figure:
    uwsgi = bench.registered()
    with watched(bench.agent) as gaps:
        uwsgi.signal(signal.SIGHUP)
        until(lambda: uwsgi.log.count("spawned uWSGI worker 1 ") == 2, "it reloads")
        time.sleep(2)
    return absence(gaps)


def absent_during_chain_reload(bench: Bench) -> Figure:
    options = ["lazy-apps = true", "master-fifo = fifo"]
    uwsgi = bench.start(options=options).ready()
    passing(bench.agent)
    with watched(bench.agent) as gaps:
        uwsgi.command("c")
        until(lambda: "chain reloading complete" in uwsgi.log, "the chain is through")
    return absence(gaps)


def absent_during_respawn(bench: Bench) -> Figure:
    uwsgi = bench.start(processes=1).ready()
    passing(bench.agent)
    with watched(bench.agent) as gaps:
        worker = int(uwsgi.get())
        os.kill(worker, signal.SIGKILL)
        until(lambda: uwsgi.serves() and int(uwsgi.get()) != worker, "another worker serves")
        time.sleep(0.5)
    return absence(gaps)


def absent_while_cheaper_scales_down(bench: Bench) -> Figure:
    options = ["cheaper = 1", "cheaper-initial = 4", "cheaper-overload = 1"]
    uwsgi = bench.start(processes=4, options=options).ready()
    passing(bench.agent)
    with watched(bench.agent) as gaps:
        until(lambda: len(re.findall("worker . cheaped", uwsgi.log)) >= 2, "workers are cheaped")
    return absence(gaps)


def back_after_deregistration(bench: Bench) -> Figure:
    bench.registered()
    bench.agent.forget(NAME)
    took = seconds_until(in_catalog(bench.agent), 3 * TTL)
    return Figure(spoken(took, 3 * TTL), took is not None and took <= 1)


def back_after_restart(bench: Bench) -> Figure:
    agent = bench.own_agent()
    bench.registered(agent)
    agent.kill()
    time.sleep(1)
    agent.start(wait=False)
    return registered_after_answer(agent)


def registered_after_answer(agent: Agent) -> Figure:
    until(agent.answers, "the agent answers")
    took = seconds_until(lambda: NAME in agent.get("/v1/agent/services"), 5 * TTL)
    return Figure(spoken(took, 5 * TTL), took is not None and took <= 1)


def both(start: float | None, registered: Figure, baseline: float) -> Figure:
    """A start that is not delayed, beyond the noise of a busy machine, and what follows."""
    in_time = start is not None and start < baseline + 0.25
    text = f"first answer after {spoken(start, 30)}, registered {registered.text} after the agent"
    return Figure(text, in_time and registered.met)


def plain_start(bench: Bench) -> float:
    """How long uWSGI takes to answer when no plugin has anything to do."""
    uwsgi = bench.start_lines([])
    took = seconds_until(uwsgi.serves, 30) or 30.0
    uwsgi.destroy()
    return took


def start_with_agent_down(bench: Bench) -> Figure:
    baseline = plain_start(bench)
    agent = bench.own_agent()
    agent.kill()
    uwsgi = bench.start(url=agent.url)
    took = seconds_until(uwsgi.serves, 30)
    agent.start(wait=False)
    return both(took, registered_after_answer(agent), baseline)


def start_with_agent_hanging(bench: Bench) -> Figure:
    baseline = plain_start(bench)
    agent = bench.own_agent()
    agent.pause()
    uwsgi = bench.start(url=agent.url)
    took = seconds_until(uwsgi.serves, 30)
    time.sleep(1)
    agent.resume()
    return both(took, registered_after_answer(agent), baseline)


def unreachable() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose queue is full: packets to it get no answer."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    time.sleep(0.1)
    return listener, fillers


def start_with_agent_unreachable(bench: Bench) -> Figure:
    baseline = plain_start(bench)
    listener, fillers = unreachable()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    uwsgi = bench.start(url=url)
    took = seconds_until(uwsgi.serves, 30)
    time.sleep(1.3)
    for filler in fillers:
        filler.close()
    fake = bench.fake(listener)
    waited = seconds_until(lambda: NAME in fake.services, 5 * TTL)
    registered = Figure(spoken(waited, 5 * TTL), waited is not None and waited <= 1)
    return both(took, registered, baseline)


def stop_seconds(uwsgi: Uwsgi, number: int = signal.SIGINT) -> float:
    # A worker that has just been forked can lose a signal, with any plugin and with none.
    time.sleep(1)
    begin = time.monotonic()
    uwsgi.signal(number)
    uwsgi.wait(60)
    return time.monotonic() - begin


def stop_with_agent_hanging(bench: Bench) -> Figure:
    agent = bench.own_agent()
    uwsgi = bench.registered(agent)
    agent.pause()
    took = stop_seconds(uwsgi)
    return Figure(f"{took:.2f} s", took <= DRAIN + 1)


def stop_with_agent_unreachable(bench: Bench) -> Figure:
    listener, fillers = unreachable()
    uwsgi = bench.start(url=f"http://127.0.0.1:{listener.getsockname()[1]}").ready(30)
    took = stop_seconds(uwsgi)
    for one in (listener, *fillers):
        one.close()
    return Figure(f"{took:.2f} s", took <= DRAIN + 1)


def stop_while_a_request_hangs(bench: Bench) -> Figure:
    fake = bench.fake()
    uwsgi = bench.start(url=fake.url, ttl="3").ready()
    until(lambda: fake.services, "it is registered", 30)
    fake.behave = lambda _: "hang"
    count = len(fake.seen)
    until(lambda: len(fake.seen) > count, "a request hangs", 30)
    took = stop_seconds(uwsgi)
    code = uwsgi.process.returncode
    said = "clean" if code == 0 else f"exit {code}" if code > 0 else signal.Signals(-code).name
    return Figure(f"{said}, {took:.2f} s", code == 0 and took <= DRAIN + 1)


def stuck_workers(bench: Bench) -> Figure:
    uwsgi = bench.start(processes=4).ready()
    passing(bench.agent)
    holder = uwsgi.stuck_requests(8)
    limit = 2.5 * TTL
    took = seconds_until(lambda: bench.agent.status(NAME) == "critical", limit)
    if took is None:
        holder.unlink()
        return Figure(f"still {bench.agent.status(NAME)} after {limit:.0f} s", False)
    output = bench.agent.check(NAME)["Output"]
    holder.unlink()
    back = seconds_until(lambda: bench.agent.status(NAME) == "passing", limit)
    text = f'critical after {took:.2f} s ("{output}"), passing {spoken(back, limit)} after'
    return Figure(text, took <= TTL * 4 / 3 and back is not None)


def state_after(bench: Bench, seconds: float) -> tuple[str, str]:
    time.sleep(seconds)
    check = bench.agent.check(NAME)
    return check.get("Status", "not registered"), check.get("Output", "").strip()


def saying(bench: Bench, seconds: float, wanted: set[str]) -> Figure:
    status, output = state_after(bench, seconds)
    return Figure(f'{status}: "{output}"', status in wanted and bool(output))


def dead_workers(bench: Bench) -> Figure:
    uwsgi = bench.start(processes=2, options=["lazy-apps = true", "forkbomb-delay = 1"]).ready()
    passing(bench.agent)
    (uwsgi.folder / "app-dies").touch()
    for _ in range(20):
        with contextlib.suppress(OSError, ValueError, ProcessLookupError):
            os.kill(int(uwsgi.get(timeout=0.2)), signal.SIGKILL)
    return saying(bench, TTL * 4 / 3, {"critical"})


def failed_application(bench: Bench) -> Figure:
    bench.start(env={"APP_FAILS": "1"})
    until(lambda: bench.agent.check(NAME), "it is registered")
    return saying(bench, TTL / 2, {"critical"})


def cheap_mode(bench: Bench) -> Figure:
    bench.start(options=["cheap = true"])
    seconds_until(lambda: bench.agent.check(NAME), 2 * TTL)
    return saying(bench, TTL / 2, {"passing"})


def full_listen_queue(bench: Bench) -> Figure:
    uwsgi = bench.start(processes=1, options=["listen = 2"], ttl="30").ready()
    passing(bench.agent)
    uwsgi.stuck_requests(12)
    return saying(bench, 4, {"warning", "critical"})


def killed_master(bench: Bench) -> Figure:
    uwsgi = bench.start("deregister_after=60").ready()
    passing(bench.agent)
    uwsgi.destroy()
    if bench.once:
        return Figure("not measured", True)
    took = seconds_until(lambda: not bench.agent.entries(NAME), 125)
    return Figure(spoken(took, 125), took is not None)


def stop_under_load(bench: Bench) -> Figure:
    options = ["exit-on-reload = true"]
    leaving = bench.start(f"id={NAME}-1", options=options).ready()
    bench.start(f"id={NAME}-2", options=options).ready()
    until(lambda: len(bench.agent.passing(NAME)) == 2, "both are registered")
    ended = threading.Event()
    outcomes: list[bool] = []

    def client() -> None:
        with requests.Session() as session:
            while not ended.is_set():
                url = f"{bench.agent.url}/v1/health/service/{NAME}?passing"
                for entry in session.get(url, timeout=10).json():
                    outcomes.append(request_succeeds(entry["Service"]["Port"]))

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    time.sleep(1)
    leaving.signal(signal.SIGHUP)
    leaving.wait(60)
    time.sleep(0.5)
    ended.set()
    for one in clients:
        one.join()
    failed = outcomes.count(False)
    return Figure(f"{failed} of {len(outcomes)} requests failed", failed == 0)


def request_succeeds(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/", timeout=10).ok
    except requests.RequestException:
        return False


def exit_of_a_predecessor(bench: Bench) -> Figure:
    old = bench.registered()
    new = bench.start().ready()
    until(lambda: new.port in {s["Port"] for s in bench.agent.passing(NAME)}, "taken over", 20)
    with watched(bench.agent) as gaps:
        stop_seconds(old)
        time.sleep(0.5)
    if not gaps:
        return Figure("left alone", True)
    return Figure(f"deregisters the successor, for {sum(gaps):.2f} s", False)


def cheaper_with_wait_workers(bench: Bench) -> Figure:
    bench.start("wait_workers=1", processes=4, options=["cheaper = 1", "cheaper-initial = 1"])
    took = seconds_until(in_catalog(bench.agent), 10)
    return Figure("never" if took is None else f"registers, {spoken(took, 10)}", took is not None)


def daemonize2(bench: Bench) -> Figure:
    daemon = bench.folder / "daemon.pid"
    options = [f"daemonize2 = {bench.folder}/daemon.log", f"pidfile2 = {daemon}"]
    bench.start(options=options)
    took = seconds_until(in_catalog(bench.agent), 10)
    os.kill(int(daemon.read_text()), signal.SIGINT)
    return Figure("never" if took is None else f"registers, {spoken(took, 10)}", took is not None)


def odd_ttls(bench: Bench) -> Figure:
    texts, fine = [], True
    for ttl in ("1", "2", "-5", "abc"):
        fake = bench.fake()
        uwsgi = bench.start(url=fake.url, ttl=ttl)
        seconds_until(lambda f=fake: f.requests("/check/"), 4)
        if not uwsgi.is_running():
            texts.append(f"{ttl}: refused")
            fine &= ttl in ("-5", "abc")
            continue
        begin = len(fake.requests("/check/"))
        time.sleep(2)
        calls = len(fake.requests("/check/")) - begin
        texts.append(f"{ttl}: {calls} beats in 2 s")
        fine &= ttl in ("1", "2") and 1 <= calls <= 10
        uwsgi.destroy()
    return Figure("; ".join(texts), fine)


def misspelt_key(bench: Bench) -> Figure:
    uwsgi = bench.start("prot=9091")
    took = seconds_until(lambda: not uwsgi.is_running(), 2)
    if took is None:
        return Figure("ignored", False)
    (line,) = uwsgi.consul_lines()
    return Figure("refused: " + line.rpartition("consul-register: ")[2], "port" in line)


def hundred_services(bench: Bench) -> Figure:
    seconds = 10 if bench.once else 30
    lines = [
        f"url={bench.agent.url},name={NAME}-{number},port={number},ttl=30,drain=0"
        for number in range(1, 101)
    ]
    uwsgi = bench.start_lines(lines).ready(60)
    until(lambda: len(bench.agent.get("/v1/agent/services")) == 100, "all are registered", 30)
    time.sleep(2)
    before = cpu_seconds(uwsgi.pid)
    time.sleep(seconds)
    share = (cpu_seconds(uwsgi.pid) - before) / seconds * 100
    threads = len(list(Path(f"/proc/{uwsgi.pid}/task").iterdir())) - 1
    connections = connections_to(uwsgi.pid, bench.agent)
    text = f"{threads} threads, {connections} kept connections, {share:.2f} % of a core"
    return Figure(text, threads == 1 and connections == 1 and share < 0.5)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def connections_to(pid: int, agent: Agent) -> int:
    """Established TCP connections of this process to the agent."""
    port = f"{int(agent.url.rpartition(':')[2]):04X}"
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[2].endswith(f":{port}") and line.split()[3] == "01"
    }
    held = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held += descriptor.readlink().name in {f"socket:[{inode}]" for inode in inodes}
    return held


ROWS: list[tuple[str, str, Callable[[Bench], Figure]]] = [
    ("first answered request to passing in the catalog", "50 ms or less", first_answer_to_passing),
    ("absent from ?passing: graceful reload (SIGHUP)", "never", absent_during_reload),
    ("absent from ?passing: chain reload", "never", absent_during_chain_reload),
    ("absent from ?passing: worker respawn", "never", absent_during_respawn),
    ("absent from ?passing: cheaper scales down", "never", absent_while_cheaper_scales_down),
    ("back after it was deregistered behind its back", "1 s or less", back_after_deregistration),
    ("back after the agent restarted without its data", "1 s or less", back_after_restart),
    ("agent down when uWSGI starts", "not delayed; 1 s or less", start_with_agent_down),
    ("agent unreachable when uWSGI starts", "the same", start_with_agent_unreachable),
    ("agent hanging when uWSGI starts", "the same", start_with_agent_hanging),
    ("agent unreachable when uWSGI stops", f"{DRAIN + 1} s or less", stop_with_agent_unreachable),
    ("agent hanging when uWSGI stops", f"{DRAIN + 1} s or less", stop_with_agent_hanging),
    ("all workers stuck in a request", f"critical in {TTL * 4 // 3} s, saying so", stuck_workers),
    ("all workers dead", "critical, saying so", dead_workers),
    ("the application failed to load", "critical, saying so", failed_application),
    ("cheap mode", "passing, saying so", cheap_mode),
    ("listen queue full", "not passing, saying so", full_listen_queue),
    ("master killed: out of the catalog", "deregister_after (60 s)", killed_master),
    ("graceful stop under 8 discovering clients", "0 failed", stop_under_load),
    ("an old process exits, its successor has the id", "left alone", exit_of_a_predecessor),
    ("cheaper with wait_workers", "registers", cheaper_with_wait_workers),
    ("daemonize2", "registers", daemonize2),
    ("stop while a request to the agent hangs", "clean, in time", stop_while_a_request_hangs),
    ("ttl 1, 2, negative, not a number", "work, work, refused, refused", odd_ttls),
    ("a misspelt key", "refused, nearest key", misspelt_key),
    ("100 services", "1 thread, 1 connection, 0.5 %", hundred_services),
]


def measure(row: Callable[[Bench], Figure], plugin: Path, agent: Agent, once: bool) -> Figure:
    bench = Bench(plugin, agent, once)
    try:
        return row(bench)
    except AssertionError as error:
        return Figure(f"failed: {str(error).splitlines()[0]}", False)
    finally:
        bench.clean()


def table(results: list[dict[str, Any]], names: list[str]) -> str:
    lines = ["| behaviour | wanted | " + " | ".join(names) + " |"]
    lines.append("|---" * (2 + len(names)) + "|")
    for result in results:
        figures = [
            f"{result[name]['text']} {'✓' if result[name]['met'] else '✗'}" for name in names
        ]
        lines.append("| " + " | ".join([result["behaviour"], result["wanted"], *figures]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plugin", type=Path, help="a consul_plugin.so; else this checkout's")
    parser.add_argument("--compare", type=Path, help="a second one, for a column beside it")
    parser.add_argument("--rows", default="", help="a regular expression: only these rows")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = figures.parse(parser, "without what takes minutes")
    with tempfile.TemporaryDirectory(prefix="plugin-behaviour-") as folder:
        ours = options.plugin or build_plugin(Path(folder) / "build")
        plugins = {"plugin": ours.resolve()}
        if options.compare:
            plugins["compared"] = options.compare.resolve()
        (Path(folder) / "agent").mkdir()
        agent = Agent(Path(folder) / "agent")
        agent.start()
        results: list[dict[str, Any]] = []
        try:
            for behaviour, wanted, row in ROWS:
                if not re.search(options.rows, behaviour):
                    continue
                result: dict[str, Any] = {"behaviour": behaviour, "wanted": wanted}
                for name, plugin in plugins.items():
                    result[name] = asdict(measure(row, plugin, agent, options.once))
                    print(f"{behaviour}: {name}: {result[name]['text']}", file=sys.stderr)
                results.append(result)
        finally:
            agent.kill()
    print(table(results, list(plugins)))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(result["plugin"]["met"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
