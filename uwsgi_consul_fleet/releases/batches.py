"""In which order an application's hosts get a new release."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from uwsgi_consul_fleet.inventory.model import AppHost


@dataclass(frozen=True)
class Batch:
    """Hosts that are switched at the same time; ``label`` says which batch of how many."""

    label: str
    hosts: tuple[AppHost, ...]

    @property
    def names(self) -> str:
        return ", ".join(host.name for host in self.hosts)


def batches(hosts: Sequence[AppHost], of: int) -> list[Batch]:
    """The canaries, then the others in batches, in the order of the inventory.

    :param of: how many hosts serve the application, these among them
    """
    hosts = tuple(hosts)
    if not hosts:
        return []
    settings = hosts[0].settings
    canaries = hosts[: settings.canary]
    rest = hosts[settings.canary :]
    size = _size(settings.batch, of)
    groups = [rest[start : start + size] for start in range(0, len(rest), size)]
    found = [Batch("canary", canaries)] if canaries else []
    for number, group in enumerate(groups, start=1):
        found.append(Batch(f"batch {number} of {len(groups)}", group))
    return found


def _size(batch: int | str, count: int) -> int:
    """A percentage is of all hosts, and never less than one of them."""
    if isinstance(batch, int):
        return batch
    return max(1, math.floor(count * int(batch.removesuffix("%")) / 100))
