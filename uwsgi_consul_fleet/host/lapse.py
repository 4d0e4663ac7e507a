"""Services of ours that must not lapse while their agent takes no sign of life.

A server of Consul 1.8 with access control refuses everybody as long as the leader has none: from
its own restart to that of the last server. Where the run is killed in between, that is until
somebody deploys again.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from . import stored
from .consul import DATA, Consul

LONG = 24 * 3600  # seconds
NANO = 1_000_000_000  # of Go's durations in a second


def put_off(consul: Consul, data: Path = DATA) -> None:
    """Give them a day, until they are registered anew, as by the release that comes next.

    :raises UnavailableError: where the agent does not take it
    """
    services = consul.get("/v1/agent/services")
    ours = {key for key, its in services.items() if "generation" in (its.get("Meta") or {})}
    now = consul.get("/v1/agent/checks")
    for _, told in stored.objects(data / "checks"):
        check, kind = told["Check"], told["ChkType"]
        if check["ServiceID"] not in ours or not 0 < kind.get("TTL", 0) < LONG * NANO:
            continue
        after = kind.get("DeregisterCriticalServiceAfter", 0) // NANO
        known = now.get(check["CheckID"]) or {"Status": "critical", "Output": ""}
        body = {
            "ID": check["CheckID"],
            "Name": check["Name"],
            "ServiceID": check["ServiceID"],
            "TTL": f"{LONG}s",
            "Status": known["Status"],
            **({"DeregisterCriticalServiceAfter": f"{after}s"} if after else {}),
        }
        consul.put("/v1/agent/check/register", body)
        # Only what was told by itself is written down, and is not critical after a restart.
        said = {"Status": known["Status"], "Output": known["Output"]}
        consul.put(f"/v1/agent/check/update/{quote(check['CheckID'], safe='')}", said)
