"""Real uWSGI instances with the plugin, and an agent that misbehaves, on loopback.

Shared by the tests and by ``bench/plugin_behaviour.py``.
"""

import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import consul_processes
import requests
from checkout import ROOT
from consul_processes import free_ports, until

SOURCES = ROOT / "plugin_build"

APPLICATION = """
import os, threading, time
time.sleep(float(os.environ.get("APP_LOADS_FOR", "0")))
while os.path.exists("app-loads"):
    time.sleep(0.02)
if os.environ.get("APP_FAILS") or os.path.exists("app-fails"):
    raise RuntimeError("the application does not load")
if os.path.exists("app-dies"):
    os.abort()

def application(environ, start_response):
    query = environ.get("QUERY_STRING", "")
    if query == "compute" or os.path.exists(query):
        with open(query + "-begun", "a") as begun:  # a letter for each request
            begun.write("x")
    # Stuck until the test removes the file.
    while query and os.path.exists(query):
        time.sleep(0.02)
    computed = time.monotonic() + 1.5
    while query == "compute" and time.monotonic() < computed:
        pass
    if query == "reload":
        import uwsgi
        uwsgi.reload()
    is_first = threading.get_native_id() == os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-First-Thread", str(is_first))])
    if query == "large":
        return [b"x" * 20_000_000]
    return [str(os.getpid()).encode()]
"""


SANITIZERS = ("-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1")


def build_plugin(folder: Path, uwsgi: str = "uwsgi", flags: Iterable[str] = ()) -> Path:
    """``consul_plugin.so`` for this uWSGI, compiled in ``folder``."""
    shutil.copytree(
        SOURCES, folder / "sources", ignore=shutil.ignore_patterns("dist", "__pycache__")
    )
    with (folder / "sources/uwsgiplugin.py").open("a") as file:
        file.write(f"CFLAGS += {list(flags)}\nLDFLAGS += {list(flags)}\n")
    built = subprocess.run(
        [uwsgi, "--build-plugin", "sources"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "consul_plugin.so"


class Process:
    """A program with its log in a file; never left behind."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        env: dict[str, str] | None = None,
        pass_fds: Iterable[int] = (),
    ):
        self.folder = folder
        self.log_file = folder / "log"
        clean = {key: value for key, value in os.environ.items() if "CONSUL" not in key}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**clean, **(env or {})},
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        return self.process.wait(timeout)

    @staticmethod
    def proc(pid: int | str) -> Path:
        return Path("/proc") / str(pid)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def destroy(self) -> None:
        """Its whole session, whatever became of the program itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


class Agent(consul_processes.Agent):
    """A Consul agent that keeps nothing on disk: started again, it has lost all registrations."""

    def get(self, path: str) -> Any:
        return self.call("GET", path).json()

    def put(self, path: str, body: object = None) -> None:
        self.call("PUT", path, data=None if body is None else json.dumps(body))

    def answers(self) -> bool:
        try:
            self.get("/v1/agent/self")
        except requests.RequestException:
            return False
        return True

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def passing(self, name: str) -> list[dict[str, Any]]:
        return [entry["Service"] for entry in self.get(f"/v1/health/service/{_part(name)}?passing")]

    def entries(self, name: str) -> list[dict[str, Any]]:
        return [entry["Service"] for entry in self.get(f"/v1/health/service/{_part(name)}")]

    def check(self, service_id: str) -> dict[str, Any]:
        checks: dict[str, dict[str, Any]] = self.get("/v1/agent/checks")
        return checks.get(f"service:{service_id}", {})

    def status(self, service_id: str) -> str:
        return str(self.check(service_id).get("Status", ""))

    def forget(self, service_id: str) -> None:
        """As somebody does who deregisters it behind uWSGI's back."""
        self.put(f"/v1/agent/service/deregister/{_part(service_id)}")


def _part(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def send_command(fifo: Path, letter: str) -> None:
    """Opening a fifo that nobody reads would wait forever: a reload makes it anew."""

    def written() -> bool:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        with open(descriptor, "w") as file:  # noqa: PTH123
            file.write(letter)
        return True

    until(written, f"uWSGI reads {fifo}")


@functools.cache
def sanitizers(plugin: Path) -> list[str]:
    """The libraries of the sanitizers that a plugin was compiled with."""
    needed = subprocess.run(["ldd", str(plugin)], capture_output=True, text=True, check=True)
    return re.findall(r"=> (\S+/lib(?:a|ub)san\.so\S*)", needed.stdout)


def preloaded(plugin: Path, folder: Path, others: str = "") -> list[str]:
    """For a plugin with sanitizers: their libraries, and where they are to report to.

    :param others: what is to be preloaded anyway
    """
    if not sanitizers(plugin):
        return []
    libraries = ":".join([*sanitizers(plugin), *filter(None, [others])])
    # Python and uWSGI leave much to the end of their process: valgrind tells what grows.
    report = f"log_path={folder}/sanitizer:detect_leaks=0:verify_asan_link_order=0"
    return ["env", f"LD_PRELOAD={libraries}", f"ASAN_OPTIONS={report}", f"UBSAN_OPTIONS={report}"]


class Uwsgi(Process):
    """A uWSGI instance with an ini file as a user would write it."""

    def __init__(
        self,
        folder: Path,
        plugin: Path,
        register: Iterable[str],
        *,
        options: Iterable[str] = (),
        processes: int = 2,
        language: str | None = "python3",
        socket: str = "http-socket",
        module: str | None = "demo",
        binary: str = "uwsgi",
        env: dict[str, str] | None = None,
        port: int | None = None,
        wrapper: Iterable[str] = (),
        pass_fds: Iterable[int] = (),
        before: Callable[[Path], object] = lambda folder: None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        before(folder)
        self.port = port or free_ports(1)[0]
        (folder / "demo.py").write_text(APPLICATION)
        # By its name, as a user writes it.
        loaded = ",".join(part for part in (language, "consul") if part)
        lines = [
            "[uwsgi]",
            f"plugins-dir = {plugin.parent}",
            f"plugins = {loaded}",
            "master = true",
        ]
        if socket:
            lines.append(f"{socket} = 127.0.0.1:{self.port}")
        if module:
            lines.append(f"module = {module}")
        lines += [f"processes = {processes}", "disable-logging = true", *options]
        lines += [f"consul-register = {line}".replace("PORT", str(self.port)) for line in register]
        self.ini = folder / "uwsgi.ini"
        self.ini.write_text("\n".join(lines) + "\n")
        command = [
            *wrapper,
            *preloaded(plugin, folder, (env or {}).get("LD_PRELOAD", "")),
            binary,
            "--ini",
            str(self.ini),
        ]
        super().__init__(command, folder, env, pass_fds)

    def get(self, path: str = "/", timeout: float = 30.0) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"HTTP {answer.status}")
        return body

    def serves(self) -> bool:
        try:
            self.get()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def ready(self, timeout: float = 30.0) -> "Uwsgi":
        def state() -> bool:
            assert self.is_running(), self.log
            return self.serves()

        until(state, "uWSGI answers", timeout)
        return self

    def consul_lines(self) -> list[str]:
        return [line for line in self.log.splitlines() if "[consul]" in line]

    def said(self, text: str) -> bool:
        return any(text in line for line in self.consul_lines())

    def said_times(self, text: str) -> int:
        return sum(text in line for line in self.consul_lines())

    def command(self, letter: str) -> None:
        """Sends a command through the ``master-fifo = fifo``, as soon as somebody reads it."""
        send_command(self.folder / "fifo", letter)

    def stuck_requests(self, count: int) -> Path:
        """Keeps ``count`` requests busy until the returned file is removed."""
        holder = self.folder / f"stuck-{time.monotonic_ns()}"
        holder.touch()

        def ask() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.get(f"/?{holder}", timeout=120)

        for _ in range(count):
            threading.Thread(target=ask, daemon=True).start()
        return holder


@dataclass
class Seen:
    """A request that the fake agent received."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    connection: int
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FakeAgent:
    """Speaks enough of Consul's API to be believed, and misbehaves on demand.

    ``behave`` is called with each request; what it returns is done instead of an answer:
    a ``(status, body)``, or one of "hang", "close", "garbage", "slow", "huge".
    """

    def __init__(self, listener: socket.socket | None = None) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.seen: list[Seen] = []
        self.behave: Callable[[Seen], Any] = lambda _: None
        self.released = threading.Event()
        self.connections = 0
        fake = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                """Who hangs up in the middle of a request is expected here."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                fake.connections += 1
                self.number = fake.connections

            def do_GET(self) -> None:
                fake._handle(self)

            def do_PUT(self) -> None:
                fake._handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler, bind_and_activate=not listener)
        if listener:
            self.server.socket = listener
            self.server.server_address = listener.getsockname()
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def requests(self, part: str, method: str = "") -> list[Seen]:
        return [
            seen
            for seen in list(self.seen)
            if part in seen.path and (not method or seen.method == method)
        ]

    def _handle(self, handler: Any) -> None:
        url = urllib.parse.urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        seen = Seen(
            handler.command, url.path, url.query, dict(handler.headers), body, handler.number
        )
        self.seen.append(seen)
        wanted = self.behave(seen)
        if wanted is None:
            wanted = self._answer(seen)
        with contextlib.suppress(OSError):
            self._send(handler, wanted)

    def _answer(self, seen: Seen) -> tuple[int, str]:
        name = urllib.parse.unquote(seen.path.rsplit("/", 1)[-1])
        if seen.path.endswith("/service/register"):
            self.services[seen.json["ID"]] = seen.json
            return 200, ""
        if "/service/deregister/" in seen.path:
            return (200, "") if self.services.pop(name, None) else (404, "unknown service")
        if "/agent/check/" in seen.path:
            known = name.removeprefix("service:") in self.services
            return (200, "") if known else (404, "unknown check")
        if seen.path.endswith("/agent/services"):
            return 200, json.dumps(self.services)
        if "/agent/service/" in seen.path:
            found = self.services.get(name)
            return (200, json.dumps(found)) if found else (404, "unknown service ID")
        return 404, "no such page"

    def _send(self, handler: Any, wanted: Any) -> None:
        if wanted == "hang":
            self.released.wait(60)
            handler.close_connection = True
            return
        if wanted == "close":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if wanted == "garbage":
            handler.wfile.write(bytes(range(256)) * 8)
            handler.close_connection = True
            return
        if wanted == "slow":
            handler.close_connection = True
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":
                handler.wfile.write(bytes([byte]))
                if self.released.wait(0.3):
                    return
            return
        if wanted == "huge":
            self._send_huge(handler)
            return
        status, text = wanted
        body = text.encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _send_huge(self, handler: Any) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        for _ in range(80):
            handler.wfile.write(b"x" * 1024 * 1024)
