"""Is a release well: asked of itself, over a socket of its own, and of Consul."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import systemd
from .consul import TIMEOUT, Consul, UnavailableError
from .says import ReleaseError
from .store import Release

SOCKETS = Path("/run/uwsgi-consul-fleet")
INTERVAL = 0.1  # seconds between two looks
WATCH_INTERVAL = 0.25
REFUSED = 403
CHANGE = 2  # seconds in which Consul tells of a change, or says that there was none


def private_socket(release: Release, instance: object) -> Path:
    """Where one instance answers and no other; ``trial``, or a port."""
    return SOCKETS / f"{instance}@{release.generation}" / "http"


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def _problem(release: Release, instance: object) -> str:
    """Why it does not answer well, or ''."""
    url = release.health_path
    connection = _Unix(private_socket(release, instance), release.health_timeout)
    try:
        connection.request("GET", url, headers={"Connection": "close", **release.health_headers})
        return wrong_with(connection.getresponse(), url, release.health_statuses)
    except (OSError, http.client.HTTPException) as error:
        return f"GET {url}: {error or type(error).__name__}"
    finally:
        connection.close()


def wrong_with(answer: http.client.HTTPResponse, url: str, statuses: str) -> str:
    """Why it is no good answer to a health check, or ''; see :func:`is_healthy`."""
    if is_healthy(answer.status, statuses):
        return ""
    to = answer.getheader("Location")
    body = answer.read(200).decode(errors="replace").strip()
    said = f"a redirect to {to}" if to else body.splitlines()[0] if body else ""
    return f"GET {url}: {answer.status} {answer.reason}: {said}"


def is_healthy(status: int, statuses: str) -> bool:
    """:param statuses: numbers and ranges, such as ``200-299,401``"""
    ranges = (each.partition("-") for each in statuses.split(","))
    return any(int(first) <= status <= int(last or first) for first, _, last in ranges)


def wait(release: Release, instance: object, unit: str) -> None:
    """Until it answers; :raises ReleaseError: where it does not within health_timeout."""
    deadline = time.monotonic() + release.health_timeout
    while True:
        found = _problem(release, instance)
        if not found:
            return
        if not systemd.is_active(unit):
            raise ReleaseError(f"it ended: {found}")
        if time.monotonic() > deadline:
            raise ReleaseError(f"not healthy after {release.health_timeout} s: {found}")
        time.sleep(INTERVAL)


def watch(release: Release, instance: object, unit: str) -> None:
    """For min_healthy_time; :raises ReleaseError: where it stops answering, or a worker dies."""
    stats = private_socket(release, instance).with_name("stats")
    deadline = time.monotonic() + release.min_healthy_time
    while time.monotonic() < deadline:
        time.sleep(WATCH_INTERVAL)
        found = _problem(release, instance)
        if not systemd.is_active(unit):
            raise ReleaseError(f"it ended within {release.min_healthy_time} s after its start")
        if found:
            raise ReleaseError(f"it was healthy and is no longer: {found}")
        dead = _dead_workers(stats)
        if dead:
            raise ReleaseError(f"its workers die and are started again ({dead} so far)")


def _dead_workers(path: Path) -> int:
    """How many workers uWSGI's stats server says were started again; 0 where there is none."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(str(path))
            text = b"".join(iter(lambda: connection.recv(65536), b""))
        workers = json.loads(text)["workers"]
    except (OSError, ValueError, KeyError):
        return 0
    return sum(max(0, int(worker["respawn_count"]) - 1) for worker in workers)


# --- Consul --------------------------------------------------------------------------


def missing(
    consul: Consul, app: str, release: str, generation: str, wanted: Iterable[str], index: str
) -> tuple[list[str], str]:
    """Which of these (NODE/ID) do not pass on the release, and the index of the answer.

    :param generation: also this one; '' for whichever
    :param index: wait for a change since then, some seconds at most; '0' for no waiting
    :raises UnavailableError: where Consul has no answer
    """
    wanted = list(wanted)
    nodes = {name.partition("/")[0] for name in wanted}
    path = f"/v1/health/service/{app}?passing=1"
    if len(nodes) == 1:  # a host about itself: a hundred others need not be told of
        path += "&filter=" + quote(f'Node.Node == "{nodes.pop()}"')
    answer, index = consul.watch(path, index, CHANGE)
    passing = set()
    for entry in answer:
        # An ini of the operator's own may leave either of them out.
        meta = entry["Service"].get("Meta") or {}
        if meta.get("release", release) != release:
            continue
        if generation and meta.get("generation", generation) != generation:
            continue
        passing.add(f"{entry['Node']['Node']}/{entry['Service']['ID']}")
    return [name for name in wanted if name not in passing], index


def refuse_others(consul: Consul, app: str, ids: Iterable[str]) -> None:
    """:raises ReleaseError: where this host's agent has one of these ids for somebody else, whose
    registration would be replaced"""
    for one in ids:
        try:
            there = _registered(consul, one)
        except UnavailableError:
            continue  # it has none, or may not tell; then Consul guards it
        if there["Service"] != app and "generation" not in (there.get("Meta") or {}):
            raise ReleaseError(
                f"the Consul agent has {one} already, for {there['Service']} on port "
                f"{there['Port']}, which is not ours: give the instance another id (instances)"
            )


def hold_places(consul: Consul, release: Release) -> list[str]:
    """Take the release's ids from what else of ours has them on this host, as an application of
    another name: where Consul denies what is not allowed the release's token may not. Elsewhere it
    takes them itself.

    Held for a service that the token of what had them may not write, they are not taken back.

    :returns: the ids that are held now
    """
    others = [each for each in release.instances if _is_anothers(consul, release.app, each.id)]
    if not others or not _denies(consul):
        return []
    held = []
    for each in others:
        place = {
            "ID": each.id,
            "Name": release.app,
            "Port": each.port,
            "Meta": {"generation": release.generation},
            "Check": {
                "Name": "about to start",
                "TTL": "1m",
                # Where nobody is left to do it.
                "DeregisterCriticalServiceAfter": f"{release.health_timeout + 60}s",
            },
        }
        with suppress(UnavailableError):  # of a Consul that is not the fleet's: as without
            consul.put("/v1/agent/service/register", place)
            held.append(each.id)
            # What is there already under this name would go on saying how it is.
            consul.put(f"/v1/agent/check/fail/service:{quote(each.id, safe='')}")
    return held


def leave_places(consul: Consul, release: Release, held: Iterable[str]) -> None:
    """Give ids back that were held for a release, or that it has registered since: what had them
    registers itself again."""
    for one in held:
        with suppress(UnavailableError):  # Consul does it after a while
            meta = _registered(consul, one).get("Meta") or {}
            if meta.get("generation") == release.generation:
                consul.put(f"/v1/agent/service/deregister/{quote(one, safe='')}")


def _is_anothers(consul: Consul, app: str, one: str) -> bool:
    """Whether an id is registered for another application of ours."""
    try:
        there = _registered(consul, one)
    except UnavailableError:
        return False
    return there["Service"] != app and "generation" in (there.get("Meta") or {})


def _registered(consul: Consul, one: str) -> dict[str, Any]:
    return dict(consul.get(f"/v1/agent/service/{quote(one, safe='')}"))


def _denies(consul: Consul) -> bool:
    """Whether the agent refuses what nobody is allowed: then it refuses this without a token."""
    try:
        Consul(consul.access._replace(token_file="")).get("/v1/agent/self")
    except UnavailableError as error:
        return error.status == REFUSED
    return False


def wait_for_consul(consul: Consul, release: Release) -> None:
    """Until Consul reports every instance of this host passing with this release.

    :raises ReleaseError: where it does not within health_timeout
    """
    wanted = [f"{release.node}/{instance.id}" for instance in release.instances]
    deadline = time.monotonic() + release.health_timeout
    index, said = "0", ""
    while True:
        try:
            left, index = missing(
                consul, release.app, release.release, release.generation, wanted, index
            )
            said = f"not passing: {', '.join(left)}"
        except UnavailableError as error:
            left, index, said = wanted, "0", str(error)
            time.sleep(INTERVAL)
        if not left:
            return
        if time.monotonic() > deadline:
            raise ReleaseError(
                f"Consul does not report {release.release} after {release.health_timeout} s: {said}"
            )
