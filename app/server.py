"""The seed's demo server: says which instance answered.

    GET /          service, node, port and release, as text or as JSON
                   (`Accept: application/json` or `?format=json`)
    GET /healthz   "ok" as long as a worker can answer

The values come from APP_SERVICE, APP_NODE, APP_PORT and APP_RELEASE, which the
uWSGI ini sets for each instance.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI entry point: `module = app.server`."""
    method = environ["REQUEST_METHOD"]
    status, content_type, text = answer(method, environ)
    body = text.encode()
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Vary", "Accept"),
    ]
    if status.startswith("405"):
        headers.append(("Allow", "GET, HEAD"))
    start_response(status, headers)
    return [] if method == "HEAD" else [body]


def answer(method: str, environ: WSGIEnvironment) -> tuple[str, str, str]:
    """Status, content type and body for a request."""
    path = environ.get("PATH_INFO") or "/"
    if path not in ("/", "/healthz"):
        return "404 Not Found", TEXT, "not found\n"
    if method not in ("GET", "HEAD"):
        return "405 Method Not Allowed", TEXT, "only GET and HEAD\n"
    if path == "/healthz":
        return "200 OK", TEXT, "ok\n"
    me = identity(environ)
    if wants_json(environ):
        return "200 OK", JSON, json.dumps(me) + "\n"
    return "200 OK", TEXT, "{service} on {node}, port {port}, release {release}\n".format(**me)


def identity(environ: WSGIEnvironment) -> dict[str, Any]:
    """Which instance this is. Without the ini's variables: what is known anyway."""
    port = os.environ.get("APP_PORT") or environ.get("SERVER_PORT", "")
    return {
        "service": os.environ.get("APP_SERVICE") or "consul-demo-server",
        "node": os.environ.get("APP_NODE") or socket.gethostname(),
        "port": int(port) if port.isdigit() else None,
        "release": os.environ.get("APP_RELEASE") or "unknown",
        "pid": os.getpid(),
    }


def wants_json(environ: WSGIEnvironment) -> bool:
    """`?format=` decides; without it, whether the Accept header names JSON."""
    formats = parse_qs(str(environ.get("QUERY_STRING", ""))).get("format")
    if formats:
        return formats[-1] == "json"
    return JSON in str(environ.get("HTTP_ACCEPT", ""))
