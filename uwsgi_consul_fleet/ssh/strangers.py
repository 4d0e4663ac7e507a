"""Hosts that were never met: all of them are shown at once, and asked about once."""

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import paramiko

from uwsgi_consul_fleet.errors import StrangerError
from uwsgi_consul_fleet.ssh import client, hostkeys
from uwsgi_consul_fleet.ssh.options import Options

LOOK = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"


class Stranger(NamedTuple):
    """A host, and the key that it shows."""

    options: Options
    key: paramiko.PKey

    @property
    def name(self) -> str:
        return f"{self.options.name} ({self.options.host})"


def settle(hosts: Iterable[Options], asks: bool, then: str = "") -> None:
    """Before a run connects to any: go on only with hosts that were met, or are trusted now.

    Hosts that do not answer are left to whoever connects to them.

    :param asks: whether there may be somebody to ask
    :param then: what ``invoke ssh.trust`` is told behind it, to find the same hosts
    :raises StrangerError: naming those that nobody trusts
    """
    for found in among(hosts):
        if not (asks and is_asked()):
            raise StrangerError(
                f"never met, and in no known_hosts file; nothing was touched:\n{listing(found)}\n"
                f"compare with what {LOOK} says on each, then trust them: {hostkeys.TRUST}{then}"
            )
        if not agrees(found):
            raise StrangerError("you said no; nothing was touched")
        trust(found)


def among(hosts: Iterable[Options], modes: Collection[str] = ("ask",)) -> Iterator[list[Stranger]]:
    """Those that were never met, side by side: first those that others are reached through, who
    must be trusted before the next are looked for.

    :param modes: of checking host keys; those of others are left out
    """
    by_distance: defaultdict[int, dict[tuple[object, ...], Options]] = defaultdict(dict)
    for each in hosts:
        way = [each]
        while way[-1].jump:
            way.append(way[-1].jump)
        for distance, step in enumerate(reversed(way)):
            by_distance[distance].setdefault((step.known_hosts, step.key_name), step)
    for _, steps in sorted(by_distance.items()):
        new = [
            each for each in steps.values() if each.mode in modes and not hostkeys.known_kinds(each)
        ]
        with ThreadPool(max(1, len(new))) as pool:
            keys = pool.map(client.shown_key, new) if new else []
        if found := [Stranger(each, key) for each, key in zip(new, keys, strict=True) if key]:
            yield found


def listing(found: Iterable[Stranger]) -> str:
    """A line for each."""
    width = max(len(each.name) for each in found)
    return "\n".join(f"  {each.name:{width}}  {hostkeys.shown(each.key)}" for each in found)


def is_asked() -> bool:
    """Whether somebody sits at a terminal."""
    return all(each is not None and each.isatty() for each in (sys.stdin, sys.stderr))


def agrees(found: Iterable[Stranger]) -> bool:
    """Ask whether they are the right ones."""
    question = (
        f"Never met, and in no known_hosts file:\n{listing(found)}\n"
        f"Compare with what {LOOK} says on each, by a way that you trust.\n"
        "Are these the right ones? [yes/no] "
    )
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"


def trust(found: Iterable[Stranger]) -> None:
    """Know them from now on."""
    for each in found:
        hostkeys.trust(each.options, each.key)
