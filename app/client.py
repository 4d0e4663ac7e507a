"""The seed's client: prints which servers of a service Consul knows, live.

    python -m app.client [--once] [--json] [--passing] [--datacenter DC] [--url URL]

Other programs import `instances` (all of them), `pick` (a healthy one) and
`watch` (the list again whenever it changes).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from consul import ACLDisabled, ACLPermissionDenied, Consul, ConsulException
from consul.base import BadRequest
from consul.base import ClientError as OtherClientError
from consul.std import HTTPClient

SERVICE = "consul-demo-server"
URL = "http://127.0.0.1:8500"
# Where a host of a fleet has the tokens of its applications, each for its user alone to read.
TOKENS = Path("/etc/uwsgi-consul-fleet/tokens")
# Seconds for an answer that nothing holds back. Consul itself takes 7 to find out
# that there is no leader, and its own words are better than our time-out.
ANSWER_TIMEOUT = 10.0
WAIT = 60.0  # seconds that Consul may hold back an answer when nothing changes
SHORTEST_ROUND = 0.02  # seconds: at most 50 questions a second, however busy the catalog is
ACLS_OFF = 401  # Consul's status for questions about tokens where it asks for none
LONGEST_PAUSE = 5.0  # seconds between two attempts while the agent does not answer
NAMES_SHOWN = 8  # instances named in the headline of a change
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"

log = logging.getLogger("app.client")


class ClientError(Exception):
    """Whatever this module raises. The text is one line for an operator."""


class NoInstanceError(ClientError):
    """Consul does not know a healthy instance of the service."""


class AgentError(ClientError):
    """Consul could not be asked, or could not answer now."""


class RefusedError(AgentError):
    """Consul will not answer this question: asking again is no use."""


@dataclass(frozen=True)
class Instance:
    """One server of a service, as the catalog describes it."""

    node: str
    address: str
    port: int
    id: str
    release: str
    tags: tuple[str, ...]
    status: str  # passing, warning, critical or maintenance


# --- for other programs ---


def instances(
    service: str = SERVICE,
    *,
    passing: bool = False,
    datacenter: str | None = None,
    url: str | None = None,
    token: str | None = None,
    timeout: float = ANSWER_TIMEOUT,
) -> list[Instance]:
    """All registered instances, sorted by node and port; `passing=True`: the healthy ones.

    Without `url` and `token` the environment decides (CONSUL_HTTP_ADDR; CONSUL_HTTP_TOKEN,
    CONSUL_HTTP_TOKEN_FILE), then it is the local agent and the application's token on this host.
    None is really none: where the token may not read the service `RefusedError` is raised.
    """
    agent = _Agent(url, token, datacenter, timeout)
    return agent.ask(service, passing)[1]


def pick(
    service: str = SERVICE,
    *,
    datacenter: str | None = None,
    url: str | None = None,
    token: str | None = None,
    timeout: float = ANSWER_TIMEOUT,
) -> Instance:
    """One of the healthy instances, at random. Raises `NoInstanceError` if there is none."""
    healthy = instances(
        service, passing=True, datacenter=datacenter, url=url, token=token, timeout=timeout
    )
    if not healthy:
        raise NoInstanceError(f"no {service} available")
    return random.choice(healthy)  # noqa: S311 - spreads load, guards nothing


def watch(
    service: str = SERVICE,
    *,
    passing: bool = False,
    datacenter: str | None = None,
    url: str | None = None,
    token: str | None = None,
    timeout: float = ANSWER_TIMEOUT,
    wait: float = WAIT,
) -> Iterator[list[Instance]]:
    """The instances now, and the whole list again each time it changes, for ever.

    Survives the agent: while it does not answer, the last list stands. The logger
    `app.client` gets a warning when the agent is lost and one when it is back.
    Only what no patience cures (a wrong URL, token or datacenter), and only
    before the first answer, is raised: `RefusedError`. A token in a file may
    change: it is read again for each question.
    """
    agent = _Agent(url, token, datacenter, timeout)
    known: list[Instance] | None = None
    index = failures = 0
    while True:
        started = time.monotonic()
        try:
            # A server that has just started may still be reading its log, and would
            # list what it has read so far: a consistent query waits for all of it.
            # One with an index needs no such care, its answer is newer than the last.
            newest, found = agent.ask(service, passing, index, wait, consistent=not index)
        except AgentError as error:
            if known is None and isinstance(error, RefusedError):
                raise
            if not failures:
                log.warning("%s; asking again until it answers", error)
            failures += 1
            index = 0
            time.sleep(_pause(failures))
            continue
        if failures:
            log.warning("Consul at %s answers again", agent.url)
            failures = 0
        # Going backwards means that the index was reset (a snapshot was restored,
        # the cluster was made anew): a query with the old one would wait in vain.
        index = newest if newest >= index else 0
        if found != known:
            known = found
            yield list(found)
        time.sleep(max(0.0, started + SHORTEST_ROUND - time.monotonic()))


def _pause(failures: int) -> float:
    """Doubles from 0.1 s, with jitter so that clients do not come back in step."""
    return min(LONGEST_PAUSE, 0.1 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1)  # noqa: S311


# --- asking Consul ---


class _Http(HTTPClient):  # type: ignore[misc]
    """python-consul2's, with the consistency mode that its `Health.service` cannot pass on."""

    consistent = False

    def uri(self, path: str, params: Sequence[tuple[str, object]] | None = None) -> str:
        mode = [("consistent", "")] if self.consistent else []
        return str(super().uri(path, [*(params or ()), *mode]))


class _Agent:
    """What python-consul2's `Health` needs: an HTTP client, a token, a datacenter.

    Its own `Consul()` is not used: CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and
    CONSUL_HTTP_SSL overrule its explicit arguments, and it has no time-out.
    """

    def __init__(
        self, url: str | None, token: str | None, datacenter: str | None, timeout: float
    ) -> None:
        self.url = checked_url(url if url is not None else url_from(os.environ))
        self.given = token
        self.token = ""
        self.dc = datacenter
        self.timeout = timeout
        self.http = _Http(verify=_verify(os.environ), cert=_certificate(os.environ))
        self.http.base_uri = self.url
        if urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1"):
            # requests would send even these through a proxy named in the environment.
            self.http.session.trust_env = False

    def ask(
        self,
        service: str,
        passing: bool,
        index: int = 0,
        wait: float = 0.0,
        consistent: bool = False,
    ) -> tuple[int, list[Instance]]:
        """Consul's index and the instances; with an index, once they differ from then."""
        self.token = self._find_token(service)
        question = (service, passing, index, wait, consistent)
        try:
            return self._ask(*question)
        except RefusedError:
            # It may have been replaced while the answer was held back.
            before, self.token = self.token, self._find_token(service)
            if self.token == before:
                raise
            return self._ask(*question)

    def _find_token(self, service: str) -> str:
        token = token_from(os.environ, service) if self.given is None else self.given
        # A token read from a file often brings its newline along.
        token = token.strip()
        if not (token.isascii() and token.isprintable()):
            raise RefusedError("the token holds characters that no token has")
        return token

    def _ask(
        self, service: str, passing: bool, index: int, wait: float, consistent: bool
    ) -> tuple[int, list[Instance]]:
        # Consul adds up to a sixteenth to the wait.
        patience = self.timeout + (wait * 17 / 16 if index else 0)
        self.http.timeout = (self.timeout, patience)  # to connect, to answer
        self.http.consistent = consistent
        try:
            newest, entries = Consul.Health(self).service(
                service, index=index or None, wait=f"{wait * 1000:.0f}ms", passing=passing
            )
            found = parse(entries)
            if not found:
                self._expect_allowed(service)
            # 0 as an index would not block: it must be taken for 1.
            return max(1, int(newest)), found
        except requests.RequestException as error:
            reason = _reason(error)
            raise AgentError(f"cannot reach Consul at {self.url}: {reason}") from error
        except ConsulException as error:
            raise self._answered(error) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RefusedError(f"{self.url} does not answer as Consul does") from error

    def _expect_allowed(self, service: str) -> None:
        """Consul answers with an empty list, too, where the token may not read the service.

        :raises RefusedError: where that is so
        """
        denied = self._denied(service)
        if denied:
            raise RefusedError(f"Consul at {self.url} {self._hidden(service, denied)}")

    def _denied(self, service: str) -> list[str]:
        """Which of the two that it takes may not be read: the service, or nodes."""
        kinds = {"service": service, "node": ""}
        asked = [{"Resource": kind, "Segment": kinds[kind], "Access": "read"} for kind in kinds]
        params = [("dc", self.dc)] if self.dc else None
        headers = {"X-Consul-Token": self.token} if self.token else None
        path, body = "/v1/internal/acl/authorize", json.dumps(asked)
        answer = self.http.post(lambda said: said, path, params, headers, body)
        if answer.code == 404:  # Consul before 1.8: a token that it knows is believed
            answer = self.http.get(lambda said: said, "/v1/acl/token/self", params, headers)
            return [] if answer.code in (200, ACLS_OFF) else ["service"]
        if answer.code >= 500:
            raise AgentError(f"Consul at {self.url} cannot answer: {answer.code} {answer.body}")
        if answer.code != 200:
            return [] if answer.code == ACLS_OFF else ["service"]
        return [each["Resource"] for each in json.loads(answer.body) if not each["Allow"]]

    def _hidden(self, service: str, denied: Sequence[str]) -> str:
        if not self.token:
            return (
                f"does not tell without a token whether there is a {service}: ask as an "
                "application that may look it up (sudo -u APP), or set CONSUL_HTTP_TOKEN_FILE"
            )
        if "service" in denied:
            return (
                f"hides {service} from this token: name it in app_discovers of the application "
                "whose token this is, and deploy (or see CONSUL_HTTP_TOKEN)"
            )
        return 'hides all nodes from this token: it needs node_prefix "" { policy = "read" }'

    def _answered(self, error: ConsulException) -> AgentError:
        """What an error status from Consul means."""
        text = " ".join(str(error).split())[:200] or "no reason given"
        if "No path to datacenter" in text:
            return RefusedError(f"Consul at {self.url} has no path to datacenter {self.dc}")
        if isinstance(error, (ACLPermissionDenied, ACLDisabled)):
            return RefusedError(f"Consul at {self.url} refuses: {text} (see CONSUL_HTTP_TOKEN)")
        if isinstance(error, (BadRequest, OtherClientError)):
            return RefusedError(f"Consul at {self.url} refuses: {text}")
        return AgentError(f"Consul at {self.url} cannot answer: {text}")


def url_from(environment: Mapping[str, str]) -> str:
    """The agent that the environment names, by the variables of Consul's own commands."""
    address = environment.get("CONSUL_HTTP_ADDR") or URL
    if "://" not in address and _is_true(environment.get("CONSUL_HTTP_SSL", "")):
        return f"https://{address}"
    return address


def token_from(environment: Mapping[str, str], service: str) -> str:
    """The token that the environment holds or names, else that of the application on this host
    which asks (APP_SERVICE) or is asked for; empty without any."""
    if token := environment.get("CONSUL_HTTP_TOKEN"):
        return token
    named, name = environment.get("CONSUL_HTTP_TOKEN_FILE"), environment.get("APP_SERVICE", "")
    file = Path(named) if named else TOKENS / (name or service)
    if not named and (file.parent != TOKENS or not file.name.strip(".")):
        return ""  # no name of an application
    try:
        return file.read_text(errors="replace").partition("\n")[0]
    except OSError as error:
        if not named and isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return ""
        reason = f"the token in {file} cannot be read: {(error.strerror or str(error)).lower()}"
        if isinstance(error, PermissionError):
            user = file.name if file.parent == TOKENS else "APP"
            reason += f"; ask as the application's user: sudo -u {user}"
        raise RefusedError(reason) from error


def checked_url(url: str) -> str:
    """`url` as requests are built on it, or `RefusedError` with what is wrong with it."""
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise RefusedError(f"not an address of a Consul agent: {url} (expected: {URL})")
    if "@" in parts.netloc:
        raise RefusedError("the address of the Consul agent must not contain a user or password")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _verify(environment: Mapping[str, str]) -> bool | str:
    """How to check an https agent's certificate: a CA file, the usual ones, or not at all."""
    if not _is_true(environment.get("CONSUL_HTTP_SSL_VERIFY", "true")):
        return False
    return environment.get("CONSUL_CACERT") or True


def _certificate(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The client certificate and its key, for an agent that wants one."""
    files = environment.get("CONSUL_CLIENT_CERT"), environment.get("CONSUL_CLIENT_KEY")
    return (files[0], files[1]) if files[0] and files[1] else None


def _is_true(value: str) -> bool:
    return value.lower() in ("1", "t", "true")


def _reason(error: BaseException) -> str:
    """The operating system's own words for why a request failed, dug out of the layers."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        if isinstance(cause, ConnectionError):
            return str(cause).lower()
        cause = cause.__cause__ or cause.__context__
    # Only the kind: the text may quote a header, and with it the token.
    return type(error).__name__


def parse(entries: Sequence[Mapping[str, Any]]) -> list[Instance]:
    """The instances in an answer of /v1/health/service, sorted."""
    found = [_instance(entry) for entry in entries]
    return sorted(found, key=lambda instance: (instance.node, instance.port, instance.id))


def _instance(entry: Mapping[str, Any]) -> Instance:
    node, service = entry["Node"], entry["Service"]
    return Instance(
        node=node["Node"],
        address=service.get("Address") or node["Address"],
        port=int(service["Port"]),
        id=service["ID"],
        release=(service.get("Meta") or {}).get("release", ""),
        tags=tuple(service.get("Tags") or ()),
        status=worst(entry.get("Checks") or ()),
    )


def worst(checks: Sequence[Mapping[str, Any]]) -> str:
    """The status of an instance: that of the worst of its and its node's checks."""
    for check in checks:
        if check["CheckID"].startswith(("_node_maintenance", "_service_maintenance")):
            return "maintenance"
    statuses = {check["Status"] for check in checks}
    for status in ("critical", "warning"):
        if status in statuses:
            return status
    return "passing"


# --- printing ---


def lines(service: str, found: Sequence[Instance]) -> list[str]:
    """The seed's lines; an instance that is not passing says so."""
    return [_line(service, instance) for instance in found] or [f"no {service} available"]


def _line(service: str, instance: Instance) -> str:
    state = "" if instance.status == "passing" else f" ({instance.status})"
    return (
        f"{service} found on node {instance.node} ({instance.address})"
        f" using port {instance.port}{state}"
    )


def headline(before: Sequence[Instance], after: Sequence[Instance]) -> str:
    """What happened between two lists: `new: cheetah:2001, cheetah:2002; gone: drakar:2001`."""
    old = {(instance.node, instance.id): instance for instance in before}
    now = {(instance.node, instance.id): instance for instance in after}
    groups: dict[str, list[str]] = {}
    for key, instance in now.items():
        if instance != old.get(key):
            groups.setdefault(_difference(old.get(key), instance), []).append(_name(instance))
    for key, instance in old.items():
        if key not in now:
            groups.setdefault("gone", []).append(_name(instance))
    return "; ".join(f"{what}: {_some(names)}" for what, names in groups.items())


def _difference(old: Instance | None, now: Instance) -> str:
    if old is None:
        return "new"
    if replace(old, status=now.status) == now:
        return now.status
    if replace(old, release=now.release, status=now.status) == now:
        return f"release {now.release or 'unknown'}"
    return "changed"


def _name(instance: Instance) -> str:
    return f"{instance.node}:{instance.port}"


def _some(names: Sequence[str]) -> str:
    left_out = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {left_out} more" if left_out > 0 else "")


def as_text(service: str, before: Sequence[Instance] | None, found: Sequence[Instance]) -> str:
    """The list as lines; a later one is set off by an empty line and says what changed."""
    block = lines(service, found)
    if before is not None:
        block = ["", f"-- {datetime.now():{TIME_FORMAT}}  {headline(before, found)}", *block]
    return "\n".join(block)


def as_json(service: str, found: Sequence[Instance]) -> str:
    """The list as one line of JSON."""
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    return json.dumps(
        {"time": now, "service": service, "instances": [asdict(instance) for instance in found]}
    )


# --- the command ---


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 found, 1 none (both only with --once), 2 could not ask, 130 Ctrl-C."""
    options = _parser().parse_args(argv)
    logging.basicConfig(format="-- %(asctime)s  %(message)s", datefmt=TIME_FORMAT)
    try:
        return _once(options) if options.once else _live(options)
    except ClientError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read this went away. Python flushes once more at its end: let it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _once(options: argparse.Namespace) -> int:
    found = instances(
        options.service, passing=options.passing, datacenter=options.datacenter, url=options.url
    )
    _show(options, None, found)
    return 0 if found else 1


def _live(options: argparse.Namespace) -> int:
    before: list[Instance] | None = None
    for found in watch(
        options.service, passing=options.passing, datacenter=options.datacenter, url=options.url
    ):
        _show(options, before, found)
        before = found
    return 0


def _show(
    options: argparse.Namespace, before: Sequence[Instance] | None, found: Sequence[Instance]
) -> None:
    text = as_json(options.service, found)
    if not options.json:
        text = as_text(options.service, before, found)
    print(text, flush=True)  # a pipe or a log sees it at once, and whole


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.client",
        description="Print which servers of a service Consul knows, and again on every change.",
        allow_abbrev=False,
    )
    parser.add_argument("--service", default=SERVICE, help="default: %(default)s")
    parser.add_argument(
        "--once",
        action="store_true",
        help="print once and exit: 0 if there are instances, 1 if not, 2 if Consul cannot say",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON for each change")
    parser.add_argument(
        "--passing",
        action="store_true",
        help="only instances whose checks pass; by default all, with the state of the others",
    )
    parser.add_argument("--datacenter", metavar="DC", help="default: the agent's own")
    parser.add_argument(
        "--url", help=f"the Consul agent; default: CONSUL_HTTP_ADDR if it is set, else {URL}"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
