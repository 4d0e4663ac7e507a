"""Which certificates of this host end soon, as a warning in Consul's catalog: a fleet that nobody
deploys must not simply stop.

It is a service of its own. Consul takes a node that warns, with all its services, out of what
passes.
"""

from __future__ import annotations

import json
import re
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from . import stored
from .consul import CONFIGURATION, DATA, Consul
from .says import ReleaseError, say

SERVICE = "uwsgi-consul-fleet"
UNIT = "uwsgi-consul-fleet-expiry.service"
TLS = CONFIGURATION.with_name("tls")
SOON = timedelta(days=60)
# It is a sign of nobody's life: ten years.
TTL = "87600h"
CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
# When a certificate begins and ends, in DER: each with two digits of the year, or with four.
VALIDITY = re.compile(
    rb"\x30.(?:\x17\x0d\d{12}|\x18\x0f\d{14})Z(?:\x17\x0d(\d{12})|\x18\x0f(\d{14}))Z", re.DOTALL
)


def look(
    consul: Consul,
    configuration: Path = CONFIGURATION,
    tls: Path = TLS,
    now: datetime | None = None,
) -> None:
    """Have the agent's catalog say it, or no more: with the token of the agent itself.

    :param now: with its time zone; the present by default
    :raises ReleaseError: where that can't be told, or the agent does not take it
    """
    token = _read(configuration / "secrets.json")["acl"]["tokens"]["agent"]
    node = _read(configuration / "consul.json")["node_name"]
    own = consul.showing(token)
    said = "; ".join(f"{node}: {each}" for each in _soon(tls, now or datetime.now(timezone.utc)))
    if said:
        say(said)
        # Of a change of the output alone the catalog is told minutes later. One that is there
        # already keeps its status.
        check = {"Name": "certificates", "TTL": TTL, "Status": "passing"}
        body = {"ID": SERVICE, "Name": SERVICE, "Check": check}
        own.put("/v1/agent/service/register", body)
        told = {"Status": "warning", "Output": said}
        own.put(f"/v1/agent/check/update/service:{SERVICE}", told)
    elif SERVICE in own.get("/v1/agent/services"):
        own.put(f"/v1/agent/service/deregister/{SERVICE}")


def look_again(data: Path = DATA) -> None:
    """Where it was said: whoever calls this has replaced a certificate, or the agent's token."""
    if any(told["Service"]["ID"] == SERVICE for _, told in stored.objects(data / "services")):
        # One that fails is seen there, and does no harm to what goes on here.
        subprocess.run(["systemctl", "start", UNIT], capture_output=True, check=False)


def _soon(tls: Path, now: datetime) -> Iterator[str]:
    end = _ends(tls / "node.pem")[0]
    if end - now < SOON:
        yield f"its certificate {_told(end, now)}; a deploy gives it another one"
    # While one is replaced there are two, and the one before may end.
    end = max(_ends(tls / "ca.pem"))
    if end - now < SOON:
        yield f"the authority of its certificate {_told(end, now)}: invoke secrets.rotate ca"


def _told(end: datetime, now: datetime) -> str:
    return f"{'ends' if end > now else 'ended'} on {end:%Y-%m-%d}"


def _ends(file: Path) -> list[datetime]:
    """Of each certificate in a file of PEM, of which there is one at least."""
    found = [VALIDITY.search(b64decode(body)) for body in CERTIFICATE.findall(file.read_text())]
    if not found or None in found:
        raise ReleaseError(f"{file}: can't be read")
    return [_moment(*match.groups(b"")) for match in found if match]


def _moment(short: bytes, long: bytes) -> datetime:
    made = datetime.strptime((long or b"20" + short).decode(), "%Y%m%d%H%M%S")
    return made.replace(tzinfo=timezone.utc)


def _read(file: Path) -> Any:
    return json.loads(file.read_text())
