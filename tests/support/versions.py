"""Other versions of this project, out of git, with the commands that they have."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from checkout import ROOT
from fleet_commands import finish, start
from lab_commands import Lab

BEFORE = "5ac7d59"  # the last one whose Python was not one package
LAST = "4f4b985"  # the last one whose fleets had no identity


class Version:
    """A checkout of a commit, which shares this one's environment and lab machines."""

    def __init__(self, commit: str, folder: Path, entry_point: str) -> None:
        """
        :param entry_point: what gevent calls, as that version's pyproject.toml has it
        """
        self.checkout = folder / commit
        self._git("clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(self.checkout))
        self._git("-C", str(self.checkout), "checkout", "--quiet", commit)
        (self.checkout / ".lab").symlink_to(ROOT / ".lab")
        # Found before the environment's own, it stands for what that version would install.
        metadata = self.checkout / "uwsgi_consul_fleet-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: uwsgi-consul-fleet\nVersion: 0\n"
        )
        (metadata / "entry_points.txt").write_text(
            f"[gevent.plugins.monkey.did_patch_all]\nfleet = {entry_point}\n"
        )

    @staticmethod
    def _git(*words: str) -> None:
        subprocess.run(["git", *words], check=True, capture_output=True)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """See :func:`fleet_commands.start`."""
        here = str(self.checkout)
        return start(*command, cwd=self.checkout, own_group=True, PYTHONPATH=here)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return finish(self.start(*command), check=check)


def before(folder: Path) -> Version:
    """The version before this one."""
    return Version(BEFORE, folder, "fleet.pyinfra_cli:accept_folders")


def last(folder: Path) -> Version:
    """The last version that knows no fleets."""
    return Version(LAST, folder, "uwsgi_consul_fleet.pyinfra_cli:accept_folders")


ROUND = (
    "sudo cat /proc/$(systemctl show --property MainPID --value consul)/environ | "
    "tr '\\0' '\\n' | sed -n 's/^ROUND=//p'"
)


def rounds(lab: Lab, hosts: Iterable[str]) -> dict[str, int]:
    """In which round of access control and encryption each agent runs; 0 where none does."""
    return {host: int(lab.ssh(host, ROUND, check=False).stdout or 0) for host in hosts}
