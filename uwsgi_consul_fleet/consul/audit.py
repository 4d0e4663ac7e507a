"""Who changed the fleet, when, and how it went: kept in Consul, written under the lock."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from uwsgi_consul_fleet.consul import catalog
from uwsgi_consul_fleet.host.lock_session import AUDIT
from uwsgi_consul_fleet.inventory.model import Fleet


@dataclass(frozen=True)
class Entry:
    """One run: from ``since`` (UTC) on, for so many ``seconds``, on these hosts of a fleet."""

    since: str = ""
    who: str = ""
    machine: str = ""
    what: str = ""
    releases: Mapping[str, str] = field(default_factory=dict)
    outcome: str = ""
    seconds: float = 0.0
    changed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    detail: str = ""
    fleet: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``, with the names that it has in Consul."""
        known = asdict(self)
        return {"from" if key == "machine" else key: value for key, value in known.items()}


def read(fleet: Fleet, last: int) -> list[Entry]:
    """The latest entries, oldest first; of a part of the fleet those with a release of it.

    :param last: how many at most
    :raises UnreachableError: where no Consul server can be asked
    """
    with catalog.api(fleet) as way, catalog.client(way) as asked:
        _, entries = asked.kv.get(fleet.keys + AUDIT, recurse=True)
    in_order = sorted(entries or (), key=lambda entry: str(entry["Key"]))
    found = [_entry(entry["Value"]) for entry in in_order]
    if fleet.is_part:
        found = [each for each in found if each.releases.keys() & {*fleet.services}]
    return found[-last:]


def note(fleet: Fleet, entry: Mapping[str, Any]) -> None:
    """Write an entry of something that needs no lock; again under the same ``since`` replaces it.

    :raises UnreachableError: where no Consul server can be asked
    :raises ForeignError: where it is not that of the inventory and its hosts
    """
    with catalog.api(fleet, "deploy") as way, catalog.client(way) as asked:
        catalog.refuse_other(fleet, asked)
        asked.kv.put(fleet.keys + AUDIT + str(entry["since"]), json.dumps(entry))


def _entry(value: bytes) -> Entry:
    """As it was written; what another version knows beside it is left out."""
    known = {"machine" if key == "from" else key: said for key, said in json.loads(value).items()}
    known["fleet"] = (known.get("fleet") or {}).get("fleet", "")
    return Entry(**{key: known[key] for key in Entry.__annotations__ if known.get(key) is not None})
