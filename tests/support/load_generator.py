"""Clients of a service, and a watcher of its instances; runs on a host of the fleet.

:mod:`load` sends it there. It needs nothing but Python 3.9. Half of the clients ask the local
agent before each request and take one of the passing instances at random, the others go round
a list of addresses. Each opens a connection of its own for each request, as a proxy or a script
would. What happens is written as JSON, a list a line; times are seconds since 1970:

    ["request", begin, seconds, seconds to connect, discovered or fixed, address, release, problem]
    ["lookup", begin, problem]        a client got no list from the agent; it goes on with its last
    ["passing", time, {id: release}]  at the start, and at each change
    ["unwatched", time, problem]      the watcher got no answer from the agent
    ["fixed", time, [address]]        the list of addresses, at the start and when it was changed
    ["late", time, seconds]           this program was woken then, so long after it should have been
    ["beat", time]                    every request that began before this time stands above
    ["end", time]
"""

from __future__ import annotations

import argparse
import gc
import http.client
import json
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

AGENT = "127.0.0.1:8500"
BEAT = 0.25  # seconds
TICK = 0.01  # seconds
WORTH_NOTING = 0.002  # seconds


class BadAnswerError(Exception):
    """It came, and is not a good one."""


def problem_of(error: Exception) -> str:
    """In a few words, the same for the same kind of failure."""
    if isinstance(error, http.client.IncompleteRead):
        return "truncated"
    if isinstance(error, http.client.RemoteDisconnected):
        return "closed without an answer"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionResetError):
        return "reset"
    if isinstance(error, OSError) and "timed out" in str(error):
        return "timed out"
    return str(error) or type(error).__name__


class Log:
    """Events of all threads, written by one, so that no client waits for the disk."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")
        self.waiting: deque[list[Any]] = deque()

    def add(self, *event: Any) -> None:
        self.waiting.append(list(event))

    def write(self) -> None:
        lines = [json.dumps(self.waiting.popleft()) for _ in range(len(self.waiting))]
        self.file.write("".join(f"{line}\n" for line in lines))
        self.file.flush()


class Agent:
    """The local Consul agent, over a connection that is kept."""

    def __init__(self, service: str, timeout: float) -> None:
        self.path = f"/v1/health/service/{service}?passing"
        self.headers = {"X-Consul-Token": os.environ.get("CONSUL_HTTP_TOKEN", "")}
        self.connection = http.client.HTTPConnection(AGENT, timeout=timeout)

    def ask(self, more: str = "") -> tuple[list[Any], str]:
        """The passing instances and the index of the answer."""
        try:
            self.connection.request("GET", self.path + more, headers=self.headers)
            answer = self.connection.getresponse()
            body = answer.read()
        except Exception:
            self.connection.close()
            raise
        if answer.status != 200:
            raise BadAnswerError(f"status {answer.status}")
        return json.loads(body), answer.getheader("X-Consul-Index", "0")


class Client(threading.Thread):
    """One client; `begun` is when its request in flight began."""

    def __init__(self, load: Generator, number: int) -> None:
        super().__init__(daemon=True)
        self.load = load
        self.number = number
        self.kind = "fixed" if number % 2 else "discovered"
        self.agent = Agent(load.options.service, load.options.timeout)
        self.known: list[str] = []
        self.begun: float | None = None

    def run(self) -> None:
        pause = self.load.options.pause
        due = time.monotonic() + pause * random.random()
        while not self.load.stopping.wait(max(0.0, due - time.monotonic())):
            # Never two at once to catch up: a client waits for its answer.
            due = max(due + pause, time.monotonic())
            with self.load.counting:
                self.begun = time.time()
            address = self.choose()
            if address:
                self.request(address)
            self.begun = None

    def choose(self) -> str | None:
        if self.kind == "fixed":
            self.number += 1
            fixed = self.load.fixed
            return fixed[self.number % len(fixed)] if fixed else None
        begin = time.time()
        try:
            found = [entry["Service"] for entry in self.agent.ask()[0]]
            if not found:
                raise BadAnswerError("no instance passes")
            self.known = ["{Address}:{Port}".format(**service) for service in found]
        except (OSError, http.client.HTTPException, BadAnswerError) as error:
            self.load.log.add("lookup", begin, problem_of(error))
        return random.choice(self.known) if self.known else None

    def request(self, address: str) -> None:
        connection = http.client.HTTPConnection(address, timeout=self.load.options.timeout)
        with self.load.counting:
            begin = self.begun = time.time()
        start = time.perf_counter()
        connected = release = problem = None
        try:
            connection.connect()
            connected = round(time.perf_counter() - start, 6)
            connection.request("GET", self.load.options.path)
            answer = connection.getresponse()
            release = self.check(answer.status, answer.read(), address)
        except (OSError, http.client.HTTPException, BadAnswerError) as error:
            problem = problem_of(error)
        finally:
            connection.close()
        took = round(time.perf_counter() - start, 6)
        self.load.log.add("request", begin, took, connected, self.kind, address, release, problem)

    @staticmethod
    def check(status: int, body: bytes, address: str) -> str:
        """The release that answered.

        :raises BadAnswerError: for an error, or an answer of another instance
        """
        if status != 200:
            raise BadAnswerError(f"status {status}")
        try:
            found = json.loads(body)
            right = str(found["port"]) == address.rpartition(":")[2]
            release = str(found["release"])
        except (ValueError, TypeError, KeyError):
            right = False
        if not right:
            raise BadAnswerError(f"unexpected body {body[:60]!r}")
        return release


class Watcher(threading.Thread):
    """Sees every change of the passing instances that a client could see."""

    def __init__(self, load: Generator) -> None:
        super().__init__(daemon=True)
        self.load = load
        self.agent = Agent(load.options.service, timeout=45)

    def run(self) -> None:
        index, before = "0", None
        while not self.load.stopping.is_set():
            try:
                entries, index = self.agent.ask(f"&index={index}&wait=10s")
            except (OSError, http.client.HTTPException, BadAnswerError) as error:
                self.load.log.add("unwatched", time.time(), problem_of(error))
                index = "0"
                self.load.stopping.wait(0.1)
                continue
            services = [entry["Service"] for entry in entries]
            # Two hosts may have the same ids.
            passing = {
                "{Address}:{Port}".format(**service): (service["Meta"] or {}).get("release")
                for service in services
            }
            if passing != before:
                self.load.log.add("passing", time.time(), passing)
            before = passing


class Generator:
    """What the clients share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stopping = threading.Event()
        self.counting = threading.Lock()
        self.log = Log(options.folder / "events")
        self.fixed: list[str] = []
        self.read_at = 0

    def read_fixed(self) -> None:
        """The list of addresses, when it is another one than before."""
        path = self.options.folder / "fixed"
        changed = path.stat().st_mtime_ns
        if changed == self.read_at:
            return
        self.read_at = changed
        self.fixed = path.read_text().split()
        self.log.add("fixed", time.time(), self.fixed)

    def run(self) -> None:
        clients = [Client(self, number) for number in range(self.options.clients)]
        self.read_fixed()
        for thread in [Watcher(self), *clients]:
            thread.start()
        while not self.stopping.is_set():
            self.beat(clients)
        for client in clients:
            client.join()
        self.log.add("beat", time.time())
        self.log.add("end", time.time())
        self.log.write()

    def beat(self, clients: list[Client]) -> None:
        end = time.monotonic() + BEAT
        while (now := time.monotonic()) < end:
            # Not on the event: it is late when the machine is, not when a lock is held.
            time.sleep(TICK)
            late = time.monotonic() - now - TICK
            if late > WORTH_NOTING:
                self.log.add("late", time.time(), round(late, 6))
        self.read_fixed()
        with self.counting:
            begun = [client.begun for client in clients]
            settled = min([time.time(), *(moment for moment in begun if moment)])
        self.log.add("beat", settled)
        self.log.write()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="has `fixed`, the addresses; gets `events`")
    parser.add_argument("service")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--pause", type=float, required=True, help="seconds between two requests")
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--seed", help="of what clients choose at random")
    options = parser.parse_args()
    random.seed(options.seed)
    generator = Generator(options)
    signal.signal(signal.SIGTERM, lambda *_: generator.stopping.set())
    sys.setswitchinterval(0.0005)  # a client that is woken need not wait for another
    gc.freeze()
    generator.run()


if __name__ == "__main__":
    main()
