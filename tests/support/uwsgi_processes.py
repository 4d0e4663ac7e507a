"""Real uWSGI processes with the plugin under test, and an agent that misbehaves."""

from __future__ import annotations

import shutil
import signal
import socketserver
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consul_processes import free_ports, until

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ahoy"]
"""


def build_plugin(folder: Path) -> Path:
    """The plugin, compiled against the uWSGI of this machine."""
    sources = folder / "source"
    sources.mkdir()
    for path in (ROOT / "plugin_build").iterdir():
        if path.suffix in {".c", ".h"} or path.name == "uwsgiplugin.py":
            shutil.copy(path, sources)
    command = ["uwsgi", "--build-plugin", str(sources)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "consul_plugin.so"


class Uwsgi:
    """A uWSGI that serves on a port of its own; ended by its pid."""

    def __init__(self, folder: Path, plugin: Path, *options: str) -> None:
        (self.port,) = free_ports(1)
        folder.mkdir(exist_ok=True)
        (folder / "application.py").write_text(APPLICATION)
        self.log = folder / "uwsgi.log"
        self.fifo = folder / "fifo"
        self.command = [
            *("setpriv", "--pdeathsig", "KILL"),  # however the tests end
            *("uwsgi", "--plugins", f"python3,{plugin}", "--master", "--need-app"),
            *("--http-socket", f"127.0.0.1:{self.port}", "--master-fifo", str(self.fifo)),
            *("--wsgi-file", str(folder / "application.py"), *options),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Uwsgi:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        return self

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=1) as answer:
                return bool(answer.read() == b"ahoy")
        except OSError:
            return False

    def serve(self) -> Uwsgi:
        self.start()
        until(self.answers, f"uWSGI serves; its log:\n{self.said()}")
        return self

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGINT) -> float:
        """Send the signal and wait; how many seconds it took."""
        assert self.process
        begin = time.monotonic()
        self.send(number)
        self.process.wait(timeout=20)
        return time.monotonic() - begin

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class FakeAgent:
    """An agent that answers every request as told and writes down what it was asked.

    A real one can't be made to hang, to send garbage or to count its connections.
    """

    def __init__(self, answer: Callable[[str], bytes | None]) -> None:
        self.requests: list[str] = []
        self.connections = 0
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer.connections += 1
                while request := outer._read(self.rfile):
                    outer.requests.append(request)
                    content = answer(request)
                    if content is None:
                        outer._hang.wait()
                        return
                    self.wfile.write(content)

        self._hang = threading.Event()
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def _read(stream: Any) -> str:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            if not line:
                return ""
            head += line
        text = head.decode()
        length = 0
        for line in text.splitlines():
            if line.lower().startswith("content-length:"):
                length = int(line.split(":")[1])
        return text + stream.read(length).decode()

    def close(self) -> None:
        self._hang.set()
        self.server.shutdown()
        self.server.server_close()


def http(status: str, body: str = "") -> bytes:
    """An HTTP answer that keeps the connection."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
