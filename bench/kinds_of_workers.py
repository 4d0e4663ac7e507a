"""Whether a stop loses requests, for each way in which uWSGI's workers answer.

    bench/kinds_of_workers.py                      12 stops of each
    bench/kinds_of_workers.py --kinds threads      of this one alone
    bench/kinds_of_workers.py --without            by uWSGI alone, for comparison

Two instances take over from each other on one socket, as releases do, while nine clients ask for
quick, slow, large and (in Python) computed answers, each with a new connection; one of them takes
the large ones slowly.
Kinds of which this machine lacks uWSGI's plugin are left out.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

import figures  # noqa: E402
from consul_processes import until  # noqa: E402
from uwsgi_processes import Agent, Uwsgi, build_plugin  # noqa: E402

LARGE = 40_000_000  # bytes
APPLICATION = f"""
import time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    computed = time.thread_time() + 0.02
    while path == "/busy" and time.thread_time() < computed:
        pass
    time.sleep({{"/quick": 0.002, "/slow": 0.4}}.get(path, 0.02))
    body = b"x" * ({LARGE} if path == "/large" else 100)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
KINDS = {
    "prefork": [],
    "threads": ["enable-threads = true", "threads = 4"],
    "gevent": ["plugin = gevent_python3", "gevent = 20", "gevent-monkey-patch = true"],
    "greenlet": ["plugin = greenlet_python3", "async = 8", "greenlet = true"],
    "ugreen": ["plugin = ugreen", "async = 8", "ugreen = true"],
    "asyncio": ["plugin = asyncio_python3", "plugin = greenlet_python3", "asyncio = 8"],
    "offload": ["offload-threads = 1", "enable-threads = true", "static-map = /large=large"],
}
KINDS["asyncio"].append("greenlet = true")
# Other languages: uWSGI's plugin, what loads the application, and the application.
PERL = f"""
sub {{
    my $path = shift->{{PATH_INFO}};
    my %seconds = ("/quick" => 0.002, "/slow" => 0.4);
    select(undef, undef, undef, $seconds{{$path}} // 0.02);
    return [200, [], ["x" x ($path eq "/large" ? {LARGE} : 100)]];
}}
"""
RUBY = f"""
run lambda {{ |env|
  path = env["PATH_INFO"]
  sleep({{"/quick" => 0.002, "/slow" => 0.4}}.fetch(path, 0.02))
  [200, {{}}, ["x" * (path == "/large" ? {LARGE} : 100)]]
}}
"""
PHP = f"""<?php
$path = $_SERVER["REQUEST_URI"];
usleep(["/quick" => 2000, "/slow" => 400000][$path] ?? 20000);
echo str_repeat("x", $path == "/large" ? {LARGE} : 100);
"""
LUA = f"""
return function(env)
  local path = env.PATH_INFO
  os.execute("sleep " .. (({{["/quick"] = 0.002, ["/slow"] = 0.4}})[path] or 0.02))
  local body = string.rep("x", path == "/large" and {LARGE} or 100)
  return 200, {{}}, coroutine.wrap(function() coroutine.yield(body) end)
end
"""
MODIFIER = "http-socket-modifier1 = {}"
LANGUAGES = {
    "psgi": ("psgi", ["psgi = %danswers.psgi"], PERL),
    "rack": ("rack_ruby31", ["rack = %danswers.ru"], RUBY),
    "php": ("php", ["php-app = %danswers.php", MODIFIER.format(14)], PHP),
    "lua": ("lua51", ["lua = %danswers.lua", MODIFIER.format(6)], LUA),
}
KINDS |= {kind: options for kind, (_, options, _) in LANGUAGES.items()}
# systemd's protocol, but for the variables: descriptor 3.
ACTIVATE = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execvp(sys.argv[2], sys.argv[2:])"
CLIENTS = [("/quick", "/", "/")] * 4 + [("/slow",)] * 2 + [("/large",)] + [("/busy",)] * 2


class Load:
    """The clients; ``failures`` says how each request failed that did."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.failures: list[str] = []
        self.count = 0
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(paths,)) for paths in CLIENTS]
        for one in self.threads:
            one.start()

    def _ask(self, paths: tuple[str, ...]) -> None:
        number = 0
        while not self.ended.is_set():
            path = paths[number % len(paths)]
            number += 1
            try:
                length = self._length(path)
                if length < (LARGE if path == "/large" else 100):
                    self.failures.append(f"{path}: {length} bytes")
            except OSError as error:
                self.failures.append(f"{path}: {error}")
            self.count += 1

    def _length(self, path: str) -> int:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            length = 0
            while block := client.recv(60_000):
                length += len(block)
                time.sleep(0.005 if path == "/large" else 0)
            return length

    def end(self) -> None:
        self.ended.set()
        for one in self.threads:
            one.join()


def prepare(folder: Path) -> None:
    (folder / "answers.py").write_text(APPLICATION)
    for _, options, text in LANGUAGES.values():
        (folder / options[0].rpartition("%d")[2]).write_text(text)
    (folder / "large").write_bytes(b"x" * LARGE)


def measure(folder: Path, plugin: Path, agent: Agent, kind: str, options: Any) -> int:
    """Prints a line, and returns how many requests failed."""
    line = f"url={agent.url},name={kind},port=PORT,drain=0"
    line += ",worker_handler=false" if options.without else ""
    language, is_python = LANGUAGES.get(kind, ("python3",))[0], kind not in LANGUAGES
    how: dict[str, Any] = {"socket": "", "language": language, "before": prepare}
    how["module"] = "answers" if is_python else None
    common = ["socket = fd://3", "protocol = http", "exit-on-reload = true"]
    common += ["need-app = true"] if is_python or "psgi" in kind or "rack" in kind else []
    how["options"] = [*common, "worker-reload-mercy = 60", *KINDS[kind]]
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        how |= {"port": listener.getsockname()[1], "pass_fds": [listener.fileno()]}
        how["wrapper"] = [sys.executable, "-c", ACTIVATE, str(listener.fileno())]

        def begin(number: int) -> Uwsgi:
            found = Uwsgi(folder / f"{kind}-{number}", plugin, [line], **how)
            until(lambda: "spawned uWSGI worker 2" in found.log, "its workers are there")
            time.sleep(3 if kind == "gevent" else 0.5)  # in which each imports what it needs
            return found

        serving = begin(0)
        load = Load(how["port"])
        try:
            for number in range(1, options.stops + 1):
                leaving, serving = serving, begin(number)
                leaving.signal(signal.SIGHUP)
                leaving.wait(90)
        finally:
            load.end()
            serving.destroy()
    told = f": {load.failures[0]}, …" if load.failures else ""
    print(f"{kind}: {len(load.failures)} of {load.count} failed in {options.stops} stops{told}")
    return len(load.failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=12, help="of each kind (12)")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--without", action="store_true", help="by uWSGI alone")
    options = figures.parse(parser, "a stop of each")
    options.stops = 1 if options.once else options.stops
    there = {path.name for path in Path("/usr/lib/uwsgi/plugins").glob("*_plugin.so")}
    with tempfile.TemporaryDirectory(prefix="kinds-of-workers-") as name:
        plugin = build_plugin(Path(name) / "plugin")
        (Path(name) / "agent").mkdir()
        agent = Agent(Path(name) / "agent")
        agent.start()
        lost = 0
        for kind in options.kinds:
            needs = {line.partition("= ")[2] for line in KINDS[kind] if line.startswith("plugin")}
            needs |= {LANGUAGES[kind][0]} if kind in LANGUAGES else set()
            if {f"{each}_plugin.so" for each in needs} <= there:
                lost += measure(Path(name), plugin, agent, kind, options)
        agent.kill()
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
