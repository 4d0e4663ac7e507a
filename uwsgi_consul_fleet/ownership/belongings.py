"""What is on a host, as far as it matters whose it is; read by look.sh."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.ownership.identity import Identity

# A function for scripts that run on hosts.
LOOK = (Path(__file__).parent / "look.sh").read_text()
CONSUL = "consul"


def application(name: str) -> str:
    """The word for everything that an application has on a host."""
    return f"app:{name}"


def wanted(host: Host) -> set[str]:
    """What the inventory puts on a host."""
    return {
        *([CONSUL] if host.is_member and host.brings_consul else []),
        *(application(its.app) for its in host.applications),
    }


def told(what: str, text: str) -> str:
    """A line for the operator about something on a host."""
    if what.startswith("port:"):
        by = text or "something"
        return f"port {what.removeprefix('port:')}: {by} listens on it"
    return f"{'Consul' if what == CONSUL else what.removeprefix('app:')}: {text}"


@dataclass
class Belongings:
    """Whose a host is, and what is on it.

    ``record`` is what the host carries: its fleet, and what was made on it, ``consul`` and
    ``app:NAME``; ``marks`` are the same, of a version that kept no record. ``joins`` are the
    servers that its Consul agent looks for. ``strangers`` is what lies where the fleet would put
    something of its own, by such a word or ``port:N``. ``guards`` are ports at which a version
    stops that knows no fleets.
    """

    record: str = ""
    marks: set[str] = field(default_factory=set)
    joins: set[str] = field(default_factory=set)
    strangers: dict[str, list[str]] = field(default_factory=dict)
    guards: set[int] = field(default_factory=set)

    @property
    def identity(self) -> Identity | None:
        """:raises ForeignError: where the host's record can't be understood"""
        return Identity.parse(self.record)

    @property
    def made(self) -> set[str]:
        """What the record names as the fleet's."""
        try:
            return set(json.loads(self.record).get("made", ()))
        except (ValueError, AttributeError):
            return set()

    @property
    def ours(self) -> set[str]:
        """What a deploy may change and remove."""
        return self.made | self.marks

    def note(self, kind: str, rest: str) -> None:
        """Take in a line of look.sh; others are passed over."""
        if kind == "fleet":
            self.record = rest
        elif kind == "mark":
            self.marks.add(rest)
        elif kind == "joins":
            self.joins.update(rest.split())
        elif kind == "guard":
            self.guards.add(int(rest))
        elif kind == "stranger":
            what, _, text = rest.partition(" ")
            self.strangers.setdefault(what, []).append(text)


def parse(lines: Iterable[str]) -> Belongings:
    """What look.sh printed."""
    found = Belongings()
    for line in lines:
        kind, _, rest = line.partition(" ")
        found.note(kind, rest)
    return found
