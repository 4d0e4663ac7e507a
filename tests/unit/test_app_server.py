"""The demo server, asked through the WSGI validator as any WSGI server would."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any
from wsgiref.headers import Headers
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from app.server import application


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_SERVICE", "consul-demo-server")
    monkeypatch.setenv("APP_NODE", "drakar")
    monkeypatch.setenv("APP_PORT", "2001")
    monkeypatch.setenv("APP_RELEASE", "r7")


def ask(path: str = "/", method: str = "GET", **environ: str) -> tuple[str, Headers, str]:
    request = {"SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "", **environ}
    request["REQUEST_METHOD"] = method
    setup_testing_defaults(request)
    started: list[tuple[str, Headers]] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], _: Any = None, /
    ) -> Callable[[bytes], object]:
        started.append((status, Headers(headers)))
        return lambda data: None

    answer: Any = validator(application)(request, start_response)
    with closing(answer):
        body = b"".join(answer)
    return (*started[0], body.decode())


def test_text_is_one_line() -> None:
    status, headers, body = ask()
    assert status == "200 OK"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Content-Length"] == str(len(body))
    assert headers["Cache-Control"] == "no-store"
    assert body == "consul-demo-server on drakar, port 2001, release r7\n"


@pytest.mark.parametrize(
    "request_environ",
    [
        {"QUERY_STRING": "format=json"},
        {"HTTP_ACCEPT": "application/json"},
        {"HTTP_ACCEPT": "application/json, text/plain, */*"},
    ],
)
def test_json_on_request(request_environ: dict[str, str]) -> None:
    status, headers, body = ask(**request_environ)
    assert status == "200 OK"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "service": "consul-demo-server",
        "node": "drakar",
        "port": 2001,
        "release": "r7",
        "pid": os.getpid(),
    }


@pytest.mark.parametrize(
    "request_environ",
    [
        {"HTTP_ACCEPT": "*/*"},
        {"HTTP_ACCEPT": "text/html,application/xhtml+xml"},
        {"HTTP_ACCEPT": "application/json", "QUERY_STRING": "format=text"},
        {"QUERY_STRING": "other=json"},
    ],
)
def test_text_otherwise(request_environ: dict[str, str]) -> None:
    assert "text/plain" in str(ask(**request_environ)[1]["Content-Type"])


def test_healthz() -> None:
    status, _, body = ask("/healthz")
    assert (status, body) == ("200 OK", "ok\n")


@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    status, headers, body = ask(path, "HEAD")
    assert (status, body) == ("200 OK", "")
    assert headers["Content-Length"] == ask(path)[1]["Content-Length"]


@pytest.mark.parametrize("path", ["/favicon.ico", "/healthz/", "//", "/index"])
def test_other_paths_are_404(path: str) -> None:
    assert ask(path)[0] == "404 Not Found"


def test_no_path_is_the_root() -> None:
    assert ask("", SCRIPT_NAME="/app")[0] == "200 OK"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_405(method: str) -> None:
    status, headers, _ = ask("/", method)
    assert status == "405 Method Not Allowed"
    assert headers["Allow"] == "GET, HEAD"


def test_without_variables_it_says_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APP_SERVICE", "APP_NODE", "APP_PORT", "APP_RELEASE"):
        monkeypatch.delenv(name)
    body = json.loads(ask(QUERY_STRING="format=json", SERVER_PORT="8080")[2])
    assert body == {
        "service": "consul-demo-server",
        "node": socket.gethostname(),
        "port": 8080,
        "release": "unknown",
        "pid": os.getpid(),
    }


def test_a_port_that_is_no_number_does_not_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_PORT", "two thousand")
    assert json.loads(ask(QUERY_STRING="format=json")[2])["port"] is None
