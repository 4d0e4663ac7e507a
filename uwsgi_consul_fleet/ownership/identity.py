"""Which fleet something belongs to: hosts and Consul carry it, and each run compares them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from uwsgi_consul_fleet.errors import FleetError

# Of what lies where on the hosts. Fleets before 0.3 carry none. Who knows 2 alone would remove what
# releases share, and leave workers behind; who knows 3 would add hosts that the others keep out.
LAYOUT = 4
# On a host.
FILE = "/etc/uwsgi-consul-fleet/fleet.json"


class ForeignError(FleetError):
    """Something belongs to another fleet than the one that is meant."""


@dataclass(frozen=True)
class Identity:
    """A fleet: the operator's word for it, and an id that no other fleet has.

    ``layout`` is the number of what lies where on its hosts.
    """

    fleet: str
    id: str
    layout: int = LAYOUT

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """As it lies on a host or in Consul; None where that is no fleet's yet.

        :raises ForeignError: where it can't be understood
        """
        try:
            found = json.loads(text or "{}")
            return cls(found["fleet"], found["id"], found["layout"]) if found.get("id") else None
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ForeignError(
                f"{FILE}, or the key in Consul, is damaged: {text[:80]!r}; invoke adopt HOST "
                "writes a host's anew; nothing was changed"
            ) from error

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.fleet} ({self.id[:8]})"


def agreed(found: Mapping[str, Identity | None], setting: str | None) -> Identity | None:
    """The one that all of them carry; None where none carries any.

    :param found: by where it was found: a host's name, or ``Consul``
    :param setting: ``fleet``, as the inventory has it
    :raises ForeignError: where they differ, or are not what the inventory says
    """
    carried = {where: one for where, one in found.items() if one}
    by_id: dict[str, list[str]] = {}
    for where, one in carried.items():
        by_id.setdefault(one.id, []).append(where)
    if len(by_id) > 1:
        told = "; ".join(f"{carried[w[0]]}: {', '.join(sorted(w))}" for w in by_id.values())
        raise ForeignError(
            f"this inventory mixes hosts of several fleets: {told}. Take out those that are not "
            "this fleet's, or hand one over with: invoke adopt HOST; nothing was changed"
        )
    if not carried:
        return None
    # As after a newer version that missed a host.
    where, one = max(carried.items(), key=lambda item: item[1].layout)
    if setting and setting != one.fleet:
        raise ForeignError(
            f"{where}: belongs to the fleet {one}, and this inventory is of {setting!r} "
            "(fleet): is it the right inventory? Nothing was changed"
        )
    if one.layout > LAYOUT:
        raise ForeignError(
            f"{where}: was deployed to by a newer version (layout {one.layout}; this one knows "
            f"{LAYOUT}): upgrade uwsgi-consul-fleet; nothing was changed"
        )
    return one
