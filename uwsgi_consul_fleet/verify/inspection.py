"""Verification from end to end: ask the catalog, compare, and wait if told to."""

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from uwsgi_consul_fleet.consul import catalog
from uwsgi_consul_fleet.consul.catalog import Node, Way
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.inventory.model import Fleet
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify import comparison as verification
from uwsgi_consul_fleet.verify import hosts, notes, workers
from uwsgi_consul_fleet.verify.comparison import Difference, Report
from uwsgi_consul_fleet.verify.probe import probe

INTERVAL = 0.25  # seconds between two looks while waiting


def verify(fleet: Fleet, wait: float = 0, with_probe: bool = False) -> Report:
    """Compare the catalog with the fleet.

    :param wait: go on asking for so many seconds until they agree
    :param with_probe: also make an HTTP request to each instance
    :raises UnreachableError: where no Consul server can be asked
    """
    deadline = time.monotonic() + wait
    with ssh.side_by_side(1) as pool:
        # The hosts are asked meanwhile; what they say does not change by waiting.
        asked = pool.apply_async(hosts.ask, (fleet,))
        while True:
            try:
                with catalog.api(fleet) as way:
                    report, nodes = _look(fleet, way, deadline, with_probe)
                    found = asked.get()
                    # Some ask once more: here, while there is a way.
                    said = tuple(notes.of(fleet, found, nodes, partial(catalog.is_open, way)))
                return replace(_with(report, found.differences), notes=said)
            except UnreachableError:  # as while a leader is elected
                if time.monotonic() >= deadline:
                    raise
            time.sleep(INTERVAL)


def _look(
    fleet: Fleet, way: Way, deadline: float, with_probe: bool
) -> tuple[Report, tuple[Node, ...]]:
    """What one server says, and which nodes it has, as soon as it agrees or the time is over."""
    # Where files say what there is, what has none any more is named; else other inventories may.
    whole = fleet.is_described and not fleet.is_part
    while True:
        seen = catalog.read(way, fleet.services, whole)
        report = verification.compare(fleet, seen)
        is_over = time.monotonic() >= deadline
        if report.agrees or is_over:
            rows, wrong = workers.check(fleet)
            report = _with(replace(report, rows=(*report.rows, *rows)), wrong)
        if with_probe and report.agrees:
            report = _with(report, probe(fleet))
        if report.agrees or is_over:
            return report, seen.nodes
        time.sleep(INTERVAL)


def _with(report: Report, more: Iterable[Difference]) -> Report:
    return replace(report, differences=(*report.differences, *more))
