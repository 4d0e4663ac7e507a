"""Real Consul agents and real client processes, each on ports of its own."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import requests
from checkout import ROOT, WORKER
from consul_version import agent_options

SERVICE = "consul-demo-server"


def until(condition: Callable[[], Any], what: str, timeout: float = 15.0) -> Any:
    """What `condition` answers as soon as that is something; asked once more when time is over."""
    deadline = time.monotonic() + timeout
    while True:
        begin = time.monotonic()
        if answer := condition():
            return answer
        if begin >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        # Who asks by a command takes no more than half of what would make it come true.
        time.sleep(max(0.02, min(1, time.monotonic() - begin)))


# Of each worker its own, and none that an outgoing connection could get before it is used.
_first_port = 10_000 + 2_000 * int((WORKER or "gw0").removeprefix("gw"))
_ports = itertools.cycle(range(_first_port, _first_port + 2_000))
for _ in range(os.getpid() % 2_000):  # another run, of another checkout, begins elsewhere
    next(_ports)


def free_ports(count: int) -> list[int]:
    return list(itertools.islice(filter(_is_free, _ports), count))


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Agent:
    """One `consul agent`, that can be killed, frozen and started again on its ports, also with
    another `config`; several may be a cluster (see `join`)."""

    def __init__(self, folder: Path, *options: str, config: str = "", node: str = "drakar") -> None:
        http, self.server_port, self.lan_port, self.wan_port = free_ports(4)
        self.ports = (
            f"http={http} dns=-1 grpc=-1 server={self.server_port} serf_lan={self.lan_port} "
            f"serf_wan={self.wan_port}"
        )
        self.url = f"http://127.0.0.1:{http}"
        self.session = requests.Session()
        self.session.trust_env = False
        self.log = folder / "consul.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.node, self.options, self.config = node, options or ("-dev",), config

    @property
    def command(self) -> list[str]:
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # however the tests end
            *("consul", "agent", "-node", self.node, "-bind", "127.0.0.1", *self.options),
            *agent_options(),
            *("-hcl", f"ports {{ {self.ports} }} disable_update_check = true {self.config}"),
        ]

    def start(self, *, wait: bool = True) -> Agent:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CONSUL_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        if wait:
            until(self.is_ready, f"an agent with a leader; see {self.log}", 30)
        return self

    def is_ready(self) -> bool:
        assert self.process and self.process.poll() is None, self.log.read_text()
        try:
            return '"serfHealth"' in self.call("GET", f"/v1/health/node/{self.node}").text
        except requests.RequestException:
            return False

    @property
    def join(self) -> tuple[str, ...]:
        """What lets another agent find this one."""
        return "-retry-join", f"127.0.0.1:{self.lan_port}"

    def signal(self, number: int) -> None:
        """A stopped agent stands still when this returns."""
        if self.process:
            self.process.send_signal(number)
            if number == signal.SIGSTOP:
                until(self._stands_still, "each thread of it stands still")

    def _stands_still(self) -> bool:
        assert self.process
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(file.read_text().rpartition(")")[2].split()[0] == "T" for file in threads)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        answer = self.session.request(method, self.url + path, timeout=30, **arguments)
        answer.raise_for_status()
        return answer

    def register(self, port: int, *, status: str = "", service: str = SERVICE) -> None:
        body: dict[str, Any] = {"ID": f"{service}-{port}", "Name": service, "Port": port}
        if status:
            body["Check"] = {"TTL": "10m", "Status": status}
        self.call("PUT", "/v1/agent/service/register", data=json.dumps(body))

    def deregister(self, port: int, *, service: str = SERVICE) -> None:
        self.call("PUT", f"/v1/agent/service/deregister/{service}-{port}")


class Client:
    """A running `python -m app.client` and the lines that it prints, as they come."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CONSUL_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.client", *arguments],
            cwd=ROOT,
            env={**clean, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout and self.process.stderr
        self.out = self._follow(self.process.stdout)
        self.err = self._follow(self.process.stderr)

    @staticmethod
    def _follow(stream: IO[str]) -> queue.Queue[str]:
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            for line in stream:
                lines.put(line.rstrip("\n"))

        threading.Thread(target=read, daemon=True).start()
        return lines

    def line(self, timeout: float = 15.0) -> str:
        """The next line on stdout."""
        try:
            return self.out.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no line within {timeout:g} s; stderr: {self.errors()}") from None

    def lines(self, count: int) -> list[str]:
        return [self.line() for _ in range(count)]

    def said(self, timeout: float = 15.0) -> str:
        """The next line on stderr."""
        try:
            return self.err.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"nothing on stderr within {timeout:g} s") from None

    def errors(self) -> list[str]:
        return list(self.err.queue)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)
