"""Release after release on one fleet, each with a content and a name that never were before.

releases = Releases(fleet, lab, folder)
releases.deploy()
with Load(lab, instances(lab, *releases.hosts)) as load:
    load.mark("next")
    name = releases.deploy()
    load.window("next").expect(passing=4, releases={releases.before, name})
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from applications import application, released
from fleet_commands import Fleet, output
from lab_commands import Lab
from load import SERVICE

UNITS = "systemctl list-units --plain --no-legend --state=active,activating,deactivating,reloading"


def starts(lab: Lab, hosts: Sequence[str]) -> dict[str, int]:
    """How often instances of the application were started on each host, but for trials."""
    count = f"sudo journalctl --quiet --output cat --unit '{SERVICE}-2*@*' | grep -c ^Started"
    return {host: int(lab.ssh(host, count).stdout) for host in hosts}


class Releases:
    """The releases of a fleet, and what of them runs on its hosts.

    `serving` is the name of the release that the fleet is on, `before` of the one before it,
    `seconds` what the last good one took: the whole command, from Python's start to its end.
    """

    def __init__(
        self, fleet: Fleet, lab: Lab, folder: Path, hosts: Sequence[str] = ("drakar", "cheetah")
    ) -> None:
        """
        :param folder: of the applications' sources, one folder each
        """
        self.fleet = fleet
        self.lab = lab
        self.folder = folder
        self.hosts = tuple(hosts)
        self.serving = self.before = ""
        self.seconds = 10.0
        self._numbers = itertools.count()

    def revision(self, code: str = "") -> tuple[Path, str]:
        """The application with this code behind it, and a name for its release."""
        now = f"{next(self._numbers)}x{time.time_ns() % 10**9:x}"
        return application(self.folder / now, f"{code}\n# {now}\n"), f"r{now}"

    def deploy(self, code: str = "", *options: str) -> str:
        """Release it; returns the release's name."""
        source, name = self.revision(code)
        begin = time.monotonic()
        self.fleet.deploy(*released(source, name), *options)
        self.seconds = time.monotonic() - begin
        self.serves(name)
        return name

    def serves(self, name: str) -> None:
        """Note that the fleet is on this release now."""
        self.before, self.serving = self.serving, name

    def start(self, *options: str) -> tuple[subprocess.Popen[str], str, list[str]]:
        """A release that goes on by itself, its name, and the options that deploy it again."""
        source, name = self.revision()
        words = [*released(source, name), *options]
        return self.fleet.start_deploy(*words), name, words

    def refused(self, code: str, *options: str) -> str:
        """Release what can't be released; returns what the operator is told."""
        source, name = self.revision(code)
        result = self.fleet.deploy(*released(source, name), *options, check=False)
        assert result.returncode != 0, output(result)
        return output(result)

    # --- What runs -------------------------------------------------------------------

    def running(self) -> dict[str, set[str]]:
        """The units of releases that run on each host, or are on their way; trials as well."""
        found = {}
        for host in self.hosts:
            listing = self.lab.ssh(host, f"{UNITS} '{SERVICE}-*@*.service'").stdout
            found[host] = {line.split()[0] for line in listing.splitlines()}
        return found

    def names(self) -> dict[str, set[str]]:
        """The releases that run on each host."""
        return {
            host: {unit.partition("@")[2].rpartition("-")[0] for unit in units}
            for host, units in self.running().items()
        }

    def pointed(self) -> dict[str, str]:
        """The release that a boot of each host would start."""
        look = f"sudo readlink /srv/{SERVICE}/current"
        places = {host: self.lab.ssh(host, look).stdout.strip() for host in self.hosts}
        return {host: Path(place).name.rpartition("-")[0] for host, place in places.items()}

    def settled(self) -> bool:
        """No host runs two releases, or tries one."""
        return all(
            len(units) == 2 and len({unit.partition("@")[2] for unit in units}) == 1
            for units in self.running().values()
        )

    def expect_everywhere(self) -> None:
        """Every host is on the release, Consul says so, and nothing else runs."""
        assert self.pointed() == dict.fromkeys(self.hosts, self.serving)
        report = json.loads(self.fleet.verify("--json").stdout)
        assert {row["release"] for row in report["rows"]} == {self.serving}
        assert self.names() == {host: {self.serving} for host in self.hosts}
        assert self.settled()

    def ensure(self) -> None:
        """That every host is on `serving`, whatever the test before left; at first that is what
        they are on."""
        if not self.serving:
            self.serving = next(iter(self.names()[self.hosts[0]]), "")
        if not self.serving or self.names() != {host: {self.serving} for host in self.hosts}:
            self.deploy()
