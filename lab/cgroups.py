"""A control group for each machine, on a host whose own init is not systemd.

Without one, the systemd of every machine would manage the same group and take the
other machines' processes for its own.
"""

import time
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


def remove(name: str) -> None:
    """Remove the group with everything below it; its processes are gone by now."""
    for folder in folders(name):
        below = sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True)
        for group in [*below, folder]:
            _remove(group)


def _remove(group: Path) -> None:
    # The kernel takes a moment to notice that the last process has gone.
    for _attempt in range(100):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
