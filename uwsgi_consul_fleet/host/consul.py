"""Questions to the Consul agent of this host, and to no other.

A deploy with nothing to change waits for these on each server, and ``http.client`` takes longer
to load than all else that is looked at there: an exchange in HTTP/1.0 is a handful of lines.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .says import ReleaseError

ADDRESS = "http://127.0.0.1:8500"  # where an agent usually answers
CONFIG = "/etc/uwsgi-consul-fleet/agent.json"
# Of an agent of the fleet's own.
DATA = Path("/var/lib/consul")
CONFIGURATION = Path("/etc/uwsgi-consul-fleet/consul.d")
# There from before a run writes what such an agent has to read until it has read it.
UNREAD = "/etc/uwsgi-consul-fleet/agent.unread"
DNS_TOKEN = (1, 17)  # since which version an agent may have one to answer DNS with
TIMEOUT = 10  # seconds for an answer
# What Consul says (403) to a token that it does not know; and 1.8 to everybody who asks what the
# agent itself answers, while it has access control and the servers' leader does not.
UNKNOWN = "ACL not found"
KEYS = "uwsgi-consul-fleet/"  # what all our keys begin with, in a Consul of the fleet's own
FLEET = "fleet"  # the key behind it that says whose the cluster is, or this part of it
CONTENTS = "contents/"  # below it, what each service was put to
ALIVE, LEAVING, FAILED = 1, 2, 4  # serf's status of a member
# What a token must allow for paths that begin so.
PERMISSIONS = (
    ("/v1/kv/", 'key_prefix "{keys}" {{ policy = "write" }}'),
    ("/v1/txn", 'key_prefix "{keys}" {{ policy = "write" }}'),
    ("/v1/session/", 'session_prefix "" {{ policy = "write" }}'),
    ("/v1/health/", 'service_prefix "" and node_prefix "" {{ policy = "read" }}'),
    ("/v1/agent/", 'agent_prefix "" {{ policy = "read" }}'),
    ("/v1/operator/", 'operator = "write"'),
)


class UnavailableError(ReleaseError):
    """Consul did not answer, or not as it should; ``status`` is HTTP's, 0 without an answer."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class Access(NamedTuple):
    """How the agent is spoken to; the fields are those of CONFIG, which may leave out any.

    ``address`` is ``http://HOST:PORT``, ``https://HOST:PORT`` or ``unix:///PATH``; the others
    are paths of files. The token in ``token_file`` is the host's own. ``keys`` is what our keys
    begin with. ``other`` is never in the file: the token to show to a cluster that does not know
    the deploy's, '' for none; None where the deploy's alone counts.
    """

    address: str = ADDRESS
    token_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    keys: str = KEYS
    other: str | None = None

    @classmethod
    def read(cls, path: str = CONFIG) -> Access:
        """As a file on this host says; :raises ReleaseError: where it can't be understood"""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise ReleaseError(f"{path}: {error}") from None

    def told(self, line: str) -> tuple[Access, str]:
        """With what whoever deploys knows better, and the deploy's token: JSON, in which files are
        themselves (``ca``, ``cert``, ``key``), and ``other`` as above. None of it is written down
        here."""
        said = json.loads(line.strip() or "{}")
        token = said.pop("token", "")
        for kind in ("ca", "cert", "key"):
            if kind in said:
                said[f"{kind}_file"] = _in_memory(said.pop(kind))
        return self._replace(**said), token

    def token(self) -> str:
        return Path(self.token_file).read_text().strip() if self.token_file else ""

    def connect(self, timeout: float) -> socket.socket:
        """:raises OSError: where nobody is there, or not who should be
        :raises ValueError: for an address of another form"""
        url = urlsplit(self.address)
        if url.scheme == "unix":
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout)
            connection.connect(url.path)
            return connection
        if url.scheme not in ("http", "https") or not url.hostname or not url.port:
            raise ValueError("expected http://HOST:PORT, https://HOST:PORT or unix:///PATH")
        connection = socket.create_connection((url.hostname, url.port), timeout)
        return self._encrypted(connection, url.hostname) if url.scheme == "https" else connection

    def _encrypted(self, connection: socket.socket, name: str) -> socket.socket:
        import ssl  # takes long to load, as above

        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None)
        return context.wrap_socket(connection, server_hostname=name)


def _in_memory(text: str) -> str:
    """A path for a text, as long as this process lives."""
    if not text:
        return ""
    memory = os.memfd_create("file")
    os.write(memory, text.encode())
    return f"/proc/self/fd/{memory}"


class Consul:
    """The agent; whatever proxy or Consul the environment names, it is this host's."""

    def __init__(self, access: Access, token: str = "", timeout: float = TIMEOUT) -> None:
        """
        :param token: the deploy's; '' for the agent's own
        :param timeout: seconds in which something of the answer must arrive
        """
        self.access = access
        self.timeout = timeout
        self.token = token

    def showing(self, token: str) -> Consul:
        """The same agent, asked with this token and no other."""
        return Consul(self.access._replace(other=None), token, self.timeout)

    def get(self, path: str) -> Any:
        """The decoded answer; :raises UnavailableError: with the reason"""
        return self.call("GET", path)

    def put(self, path: str, body: Any = None) -> Any:
        """As :meth:`get`; :param body: is sent as JSON"""
        return self.call("PUT", path, body)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer, None for an empty one; :raises UnavailableError: with the reason"""
        return self._ask(method, path, body)[0]

    def health(self) -> Any:
        """Autopilot's, of the servers; it answers 429 where one of them is not well."""
        return self._ask("GET", "/v1/operator/autopilot/health", fine=429)[0]["Servers"] or []

    def watch(self, path: str, index: str, wait: int) -> tuple[Any, str]:
        """The answer and its index.

        :param index: wait for a change since then; '0' for no waiting
        :param wait: seconds, at most
        :raises UnavailableError: with the reason
        """
        joint = "&" if "?" in path else "?"
        return self._ask("GET", f"{path}{joint}index={index}&wait={wait}s")

    def _ask(self, method: str, path: str, body: Any = None, fine: int = 0) -> tuple[Any, str]:
        """A token that the cluster does not know (yet) is no reason to fail where it would answer
        without one. That is found out each time: it may know it at the next question."""
        other = self.access.other
        tokens = [self.token] if other is None else [self.token, *filter(None, [other]), ""]
        unknown: UnavailableError | None = None
        for token in dict.fromkeys(tokens):
            try:
                if unknown and not token:
                    self._expect_open()
                return self._once(token, method, path, body, fine)
            except UnavailableError as error:
                if unknown and not token and error.status == 403:
                    break
                if error.status != 403 or UNKNOWN not in str(error):
                    raise
                unknown = unknown or error
        assert unknown
        raise unknown

    def _expect_open(self) -> None:
        """To who shows no token, lists are not refused but empty, as if all were gone; a key is.

        :raises UnavailableError: where this cluster refuses it
        """
        try:
            self._once("", "GET", f"/v1/kv/{self.access.keys}{FLEET}")
        except UnavailableError as error:
            if error.status == 403:
                raise

    def _once(
        self, token: str, method: str, path: str, body: Any = None, fine: int = 0
    ) -> tuple[Any, str]:
        try:
            data = b"" if body is None else json.dumps(body).encode()
            status, headers, text = self._exchange(token, method, path, data)
            if status < 400 or status == fine:
                return json.loads(text) if text else None, headers.get("x-consul-index", "0")
        except (OSError, ValueError) as error:
            at, reason = self.access.address, str(error) or type(error).__name__
            raise UnavailableError(f"Consul at {at} does not answer: {reason}") from error
        if status == 409 and "Permission denied" in text:  # of a transaction
            status = 403
        raise UnavailableError(self._told(status, path, text), status)

    def _told(self, status: int, path: str, text: str) -> str:
        if status != 403:
            return f"Consul answers {status} to {path}: {text}"
        needs = next((needs for begin, needs in PERMISSIONS if path.startswith(begin)), "")
        hint = f"; the token needs {needs.format(keys=self.access.keys)}" if needs else ""
        return f"Consul refuses {path} (403): {text}{hint}"

    def _exchange(
        self, token: str, method: str, path: str, body: bytes
    ) -> tuple[int, dict[str, str], str]:
        lines = [f"{method} {path} HTTP/1.0", "Host: localhost", f"Content-Length: {len(body)}"]
        if token := token or self.access.token():
            lines.append(f"X-Consul-Token: {token}")
        if any(not line.isprintable() for line in lines):
            raise ValueError("a token or a name is more than one line")
        with self.access.connect(self.timeout) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, text = answer.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in rest)
        }
        if not first.startswith("HTTP/") or len(text) < int(headers.get("content-length", 0)):
            raise ValueError("the connection was closed early")
        return int(first.split()[1]), headers, text.decode(errors="replace").strip()
