"""What a deploy releases: one rule, by what `app_source` is and what the fleet was put to.

Contents are compared: sources, and requirements as they are written. A name says what is meant
only where it is typed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host.store import content_of

# As a release: the content that the fleet was put to.
CURRENT = "current"


class Content(NamedTuple):
    """A content under the name of its release; ``digest`` is '' where a version before 0.3 wrote
    it down."""

    release: str
    digest: str

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Self:
        return cls(value["release"], value["content"])

    def as_dict(self) -> dict[str, str]:
        """As it lies in Consul and on hosts."""
        return {"release": self.release, "content": self.digest}

    def is_in(self, others: Iterable[Self]) -> bool:
        """Whether the same content is among others; git gives it the same name."""
        return any(
            each.digest == self.digest if each.digest else each.release == self.release
            for each in others
        )


@dataclass(frozen=True)
class Record:
    """What Consul knows of a service: what it was put to, hosts with a source of their own to
    something else than the others, and what was rolled back from."""

    on: tuple[Content, ...]
    refused: tuple[Content, ...] = ()
    since: str = ""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where it can't be understood."""
        try:
            found = json.loads(text)
            on, refused = (tuple(map(Content.parse, found[key])) for key in ("on", "refused"))
            return cls(on, refused, found["since"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


@dataclass(frozen=True)
class Served:
    """What a host serves; where roll-backs brought it there, what it ``left``, and when."""

    content: Content
    left: tuple[Content, ...] = ()
    since: str = ""


def served(
    generation: str, fields: Mapping[str, Any], last_switch: Mapping[str, Any]
) -> Served | None:
    """What a host serves, None for nothing.

    :param fields: of its release.json
    :param last_switch: the end of the host's history (host/store.py)
    """
    if "release" not in fields:
        return None
    content = Content(fields["release"], content_of(fields))
    if last_switch.get("generation") != generation:
        return Served(content)
    left = tuple(Content.parse(each) for each in last_switch.get("left", ()))
    return Served(content, left, last_switch.get("began") or last_switch.get("since", ""))


class Decision(NamedTuple):
    """The content that hosts get, the line that says why, and what was rolled back from."""

    content: Content
    told: str
    refused: tuple[Content, ...] = ()


def decide(
    head: Content,
    record: Record | None,
    serving: Mapping[str, Served],
    *,
    named: bool = False,
    stay: bool = False,
    typed: str = "",
) -> Decision:
    """For the hosts with one source.

    :param head: the content of `app_source`, under the name that it would be released by
    :param serving: by the host's name; those that serve nothing, or can't be asked, are not in it
    :param named: whether that name was typed
    :param stay: whether the content is to be kept: ``release = current``
    :param typed: what releases it where that takes a name; '' for the name of ``head``
    :raises FleetError: where it should stay, and nobody knows on what
    """
    on, refused = _put_to(head, record, serving)
    is_refused = head.is_in(refused)
    if stay or (is_refused and not named):
        if not on:
            raise FleetError(
                f"{_where(serving)}: name what it is to be, which is in app_source: "
                f"--data release={typed or head.release}; nothing was changed"
            )
    elif named or not on or head.digest != on.digest:
        if head == on:
            told = f"stays on {on.release}: it is what was named, and app_source"
            return Decision(on, told, refused)
        over = f" over {on.release}" if on else f" ({_where(serving)})" if serving else ""
        return Decision(head, f"releases {head.release} (app_source){over}", refused)
    told = f"stays on {on.release}: {_why(head, on, is_refused, typed)}"
    return Decision(on, told, refused)


def _why(head: Content, on: Content, is_refused: bool, typed: str) -> str:
    if head.digest == on.digest:
        return "app_source is what it serves"
    name = typed or head.release
    refused = ", which was rolled back from" if is_refused else ""
    return f"app_source is {head.release}{refused}; pyinfra … --data release={name} releases it"


def _where(serving: Mapping[str, Served]) -> str:
    told = (f"{name} is on {each.content.release}" for name, each in sorted(serving.items()))
    return ", ".join(told) or "nothing serves yet"


def _put_to(
    head: Content, record: Record | None, serving: Mapping[str, Served]
) -> tuple[Content | None, tuple[Content, ...]]:
    """What the fleet was put to, None where nobody knows; and what was rolled back from."""
    hosts = list(serving.values())
    served = [each.content for each in hosts]
    if record is None:
        # Also where a host that missed the roll-back serves it still.
        left = (one for host in hosts for one in host.left if not one.is_in([host.content]))
        return _one(served), tuple(left)
    # A roll-back that Consul was not told of, because it did not answer.
    back = [
        each
        for each in hosts
        if each.since[:19] > record.since[:19] and any(one.is_in(each.left) for one in record.on)
    ]
    if back:
        left = (each for host in back for each in host.left)
        return _one([each.content for each in back]), (*record.refused, *left)
    known = list(_completed(record.on, served))
    mine = [each for each in known if each.digest == head.digest]
    return _one(mine or [each for each in known if each in served] or known), record.refused


def _completed(contents: Iterable[Content], served: Sequence[Content]) -> Iterator[Content]:
    """With the digests that a version before 0.3 did not know, from a host that serves it."""
    by_name = {each.release: each for each in served}
    for each in contents:
        yield each if each.digest else by_name.get(each.release, each)


def _one(contents: Sequence[Content]) -> Content | None:
    """What all of them are."""
    distinct = set(contents)
    return distinct.pop() if len(distinct) == 1 else None
