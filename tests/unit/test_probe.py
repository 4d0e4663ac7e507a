"""What `verify --probe` asks an instance, and what it takes for a good answer; of a real server."""

import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from uwsgi_consul_fleet.inventory.model import Fleet, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify.probe import probe


class Shop(BaseHTTPRequestHandler):
    """Redirects what is not https, and answers to its own name alone."""

    def do_GET(self) -> None:
        if self.headers["Host"] != "shop.example.com":
            self.send_response(400, "Bad Request")
        elif self.headers["X-Forwarded-Proto"] != "https":
            self.send_response(301, "Moved Permanently")
            self.send_header("Location", "https://shop.example.com/healthz")
        else:
            self.send_response(204 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of the shop. The way to it is not what is tried here."""
    with HTTPServer(("127.0.0.1", 0), Shop) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(ssh, "connect", lambda host: nullcontext())
        monkeypatch.setattr(
            ssh, "open_channel", lambda _, port, at: socket.create_connection(("127.0.0.1", port))
        )
        yield server.server_port
        server.shutdown()


def fleet(port: int, **settings: Any) -> Fleet:
    data = {**DEMO, "instances": {"a": port}, **settings}
    entry = InventoryHost("drakar", frozenset({"consul_servers", "app_servers"}), data)
    return build([entry], (), (), lambda _: "10.0.0.1")


def problem(port: int, **settings: Any) -> str:
    (found,) = probe(fleet(port, **settings))
    return str(found)


def test_it_is_asked_as_a_release_is(port: int) -> None:
    known = {"Host": "shop.example.com"}
    secure = {**known, "X-Forwarded-Proto": "https"}
    assert probe(fleet(port, health_headers=secure)) == []
    assert probe(fleet(port, health_headers=known, health_statuses="301")) == []
    assert "GET /healthz: 400 Bad Request" in problem(port)
    said = problem(port, health_headers=known)
    assert "301 Moved Permanently: a redirect to https://shop.example.com/healthz" in said
    assert "GET /: 404 Not Found" in problem(port, health_headers=secure, health_path="/")
