"""What the lab needs of this machine: its programs, its folders, one change at a time."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from uwsgi_consul_fleet import lab
from uwsgi_consul_fleet.errors import FleetError

# Shared by all clones on this machine.
CACHE_VARIABLE = "UWSGI_CONSUL_FLEET_CACHE"
CACHE = Path(os.environ.get(CACHE_VARIABLE, "/var/cache/uwsgi-consul-fleet"))
# What new machines have beside the base tree: a folder with one for each Debian release that it
# is about. The tests install packages once with it, not on each machine.
PREPARED_VARIABLE = "UWSGI_CONSUL_FLEET_PREPARED"
PREPARED = os.environ.get(PREPARED_VARIABLE, "")
RUN = Path("/run/uwsgi-consul-fleet")
MACHINES = Path("/var/lib/uwsgi-consul-fleet/lab")

# A clone is known by its path: two of them side by side have machines of the same names.
CLONE_ID = hashlib.sha256(str(lab.CLONE).encode()).hexdigest()[:8]

PACKAGES = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh-keygen": "openssh-client",
    "apt-cacher-ng": "apt-cacher-ng",
}


class LabError(FleetError):
    """The lab can't do what it was asked for; says what to do."""


def require_programs() -> None:
    """:raises LabError: naming the packages to install, or that this is no Debian"""
    if not Path("/etc/debian_version").exists():
        raise LabError(
            "the lab needs Debian 12 or later on this machine; deploying to your own hosts "
            "works from here too: put them into inventory.py"
        )
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [pkg for program, pkg in PACKAGES.items() if not shutil.which(program, path=path)]
    if missing:
        words = f"sudo apt-get install --no-install-recommends {' '.join(missing)}"
        # The lab starts one of its own; the system's would listen on every address.
        mask = "sudo systemctl mask apt-cacher-ng.service && " * ("apt-cacher-ng" in missing)
        raise LabError(f"the lab needs more on this machine; install it: {mask}{words}")


def become_root() -> NoReturn:
    """Start this command again under sudo."""
    # sudo clears the environment; and no compiled files of root's in the user's checkout.
    words = ["sudo", "--", "env", f"{CACHE_VARIABLE}={CACHE}"]
    words += [f"{PREPARED_VARIABLE}={PREPARED}", sys.executable, "-B"]
    try:
        os.execvp("sudo", [*words, "-m", "uwsgi_consul_fleet.lab", *sys.argv[1:]])  # noqa: S606
    except FileNotFoundError as error:
        raise LabError("this needs root: install sudo, or run it as root") from error


def run(*command: str | Path, input_: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program and return its output.

    :raises LabError: with the command and the last lines of what it printed
    """
    words = [str(word) for word in command]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    environment["PATH"] += ":/usr/sbin:/sbin"
    result = subprocess.run(
        words, input=input_, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        lines = (result.stdout + result.stderr).strip().splitlines()[-10:]
        raise LabError(f"failed: {' '.join(words)}\n" + "\n".join(f"    {line}" for line in lines))
    return result.stdout


def spawn(command: list[str], log: Path, **options: Any) -> None:
    """Start a program that goes on when we have ended; what it prints is in a file.

    :param options: of Popen
    """
    with log.open("wb") as output:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        subprocess.Popen(command, **streams, **options, cwd="/", start_new_session=True)


def end(pids: Iterable[int]) -> None:
    """Kill processes, of which some may be gone by now."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep every other lab command on this machine, of whichever clone, out meanwhile."""
    RUN.mkdir(parents=True, exist_ok=True)
    with (RUN / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another lab command that holds {file.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(path: Path, content: str, mode: int = 0o644) -> None:
    """Write a file in one step: whoever reads it sees the old or the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(content)
    part.chmod(mode)
    part.replace(path)


def is_mounted(folder: Path) -> bool:
    """Also for what a command that was killed left mounted."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == str(folder) for line in mounts)


def inside(folder: Path) -> list[int]:
    """The pids of processes that a chroot has brought there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "root").readlink() == folder:
                found.append(int(process.name))
    return found


def processes(program: str, *words: str) -> list[int]:
    """The pids of this program's processes whose arguments hold all these words, in order."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        remaining = iter(arguments[1:])
        if Path(arguments[0]).name == program and all(word in remaining for word in words):
            found.append(int(folder.name))
    return found
