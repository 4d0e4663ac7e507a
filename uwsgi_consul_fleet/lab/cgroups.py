"""A control group for each machine, on a host whose own init is not systemd.

Without one, the systemd of every machine would manage the same group and take the
other machines' processes for its own. Nor would a niceness in a machine count among its
own processes alone, as it does where systemd makes the group.
"""

import time
from contextlib import suppress
from pathlib import Path

from uwsgi_consul_fleet.lab.host import end

ROOT = Path("/sys/fs/cgroup")


def folders(name: str) -> list[Path]:
    """The group's folder in each hierarchy that systemd uses, and in that of processors."""
    hierarchies = (ROOT / "systemd", ROOT / "unified", ROOT / "cpu", ROOT)
    return [h / f"uwsgi-consul-fleet-{name}" for h in hierarchies if (h / "cgroup.procs").exists()]


def create(name: str) -> list[Path]:
    found = folders(name)
    for folder in found:
        folder.mkdir(exist_ok=True)
    return found


def pids(name: str) -> set[int]:
    """Every process of the group, and so of the machine, also when its nspawn is dead."""
    found: set[int] = set()
    for folder in folders(name):
        with suppress(OSError):  # a group that ends meanwhile
            for file in folder.rglob("cgroup.procs"):
                found.update(map(int, file.read_text().split()))
    return found - {0}  # what other process namespaces hold, and ourselves to kill(2)


def remove(name: str) -> None:
    """Kill what is left in the group, and remove it with everything below it.

    :raises OSError: where a process can't be killed
    """
    deadline = time.monotonic() + 60
    while left := pids(name):
        # With a machine's first process the kernel ends all others at the same moment. One by one,
        # some would see others go and write that down, which no power cut leaves time for.
        end({pid for pid in left if _is_first(pid)} or left)
        if time.monotonic() > deadline:
            raise OSError(f"processes that can't be killed: {sorted(left)}")
        time.sleep(0.01)
    for folder in folders(name):
        # A process that just died still holds its group for a moment.
        while not _removed(folder):
            if time.monotonic() > deadline:
                raise OSError(f"{folder} is still in use")
            time.sleep(0.01)


def _is_first(pid: int) -> bool:
    """Whether it is the first process of a machine, as that counts them (proc(5), NSpid)."""
    with suppress(OSError):  # one that has ended
        status = Path(f"/proc/{pid}/status").read_text()
        return any(
            line.startswith("NSpid:") and line.split()[-1] == "1" for line in status.splitlines()
        )
    return False


def _removed(folder: Path) -> bool:
    with suppress(OSError):
        for group in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            group.rmdir()
        folder.rmdir()
    return not folder.exists()
