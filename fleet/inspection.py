"""Verification from end to end: ask the catalog, compare, and wait if told to."""

import time
from dataclasses import replace

from fleet import catalog, verification
from fleet.model import Fleet
from fleet.probe import probe
from fleet.verification import Report

INTERVAL = 0.25  # seconds between two looks while waiting


def verify(fleet: Fleet, wait: float = 0, with_probe: bool = False) -> Report:
    """Compare the catalog with the fleet.

    :param wait: go on asking for so many seconds until they agree
    :param with_probe: also make an HTTP request to each instance
    :raises UnreachableError: where no Consul server can be asked
    """
    deadline = time.monotonic() + wait
    with catalog.api(fleet) as (server, port):
        while True:
            report = verification.compare(fleet, catalog.read(server, port, fleet.services))
            if with_probe and report.agrees:
                differences = tuple(probe(fleet))
                report = replace(report, differences=differences)
            if report.agrees or time.monotonic() >= deadline:
                return report
            time.sleep(INTERVAL)
