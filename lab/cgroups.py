"""A control group for each machine, on a host whose own init is not systemd.

Without one, the systemd of every machine would manage the same group and take the
other machines' processes for its own.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def folders(name: str) -> list[Path]:
    """The group's folder in each hierarchy that systemd uses."""
    hierarchies = (ROOT / "systemd", ROOT / "unified", ROOT)
    return [h / f"uwsgi-consul-fleet-{name}" for h in hierarchies if (h / "cgroup.procs").exists()]


def create(name: str) -> list[Path]:
    found = folders(name)
    for folder in found:
        folder.mkdir(exist_ok=True)
    return found


def pids(name: str) -> set[int]:
    """Every process of the group, and so of the machine, also when its nspawn is dead."""
    files = [file for folder in folders(name) for file in folder.rglob("cgroup.procs")]
    return {int(pid) for file in files for pid in file.read_text().split()}


def remove(name: str) -> None:
    """Kill what is left in the group, and remove it with everything below it.

    :raises OSError: where a process can't be killed
    """
    deadline = time.monotonic() + 10
    while left := pids(name):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise OSError(f"processes that can't be killed: {sorted(left)}")
        time.sleep(0.01)
    for folder in folders(name):
        below = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
        for group in [*below, *[folder] * folder.exists()]:
            group.rmdir()
