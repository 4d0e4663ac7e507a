"""The checkout under test: of each worker its own, with lab machines of its own.

`script/test` runs several workers (pytest-xdist) side by side. Each copies the working tree
into the folder of the run and stays in it: its machines, its `plugin_build/dist` and what its
commands write beside the inventory are nobody else's. The environment tells processes that a
test starts, so that `pyinfra`, `invoke` and `python -m` import the copy's packages too. Without
workers, as when one test is run by hand, it is the working tree itself.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import consul_version

ORIGIN = Path(__file__).resolve().parents[2]
VARIABLE = "UWSGI_CONSUL_FLEET_RUN"
PREFIX = "uwsgi-consul-fleet-run-"

RUN = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
ROOT = RUN / WORKER if RUN and WORKER else ORIGIN
BIN = Path(sys.executable).parent
LAB = [sys.executable, "-m", "uwsgi_consul_fleet.lab"]


def begin() -> Path:
    """Make the folder of a run, and remove those of runs that were killed.

    Its lock is held until this process ends, however it ends.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _lock(left) is not None:
            print(f"removing {left}, which a run that was killed has left")
            end(left)
    run = Path(tempfile.mkdtemp(prefix=PREFIX))
    assert _lock(run) is not None
    os.environ[VARIABLE] = str(run)
    return run


def _lock(run: Path) -> int | None:
    """A descriptor that stays open; None while another process has one."""
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def end(run: Path) -> None:
    """Remove a run with the machines of its workers."""
    for checkout in run.iterdir():
        if (checkout / ".lab").is_dir():
            command = [*LAB, "down"]
            subprocess.run(command, cwd=checkout, stdout=subprocess.DEVNULL, check=False)
    shutil.rmtree(run)


def enter() -> None:
    """Make this worker's copy, and let this process and those that it starts use it."""
    if str(BIN) not in os.environ["PATH"].split(":"):
        os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell starts what goes on in the background: what tests interrupt would ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    consul_version.install(RUN / "bin" if RUN else ORIGIN / ".lab/bin")
    if ROOT == ORIGIN or ROOT.exists():  # also in what a test of a worker starts
        return
    copy(ROOT)
    with (ROOT / "group_data/all.py").open("a") as file:
        file.write(consul_version.settings())
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)


def copy(target: Path) -> None:
    """What git tracks or would track, as it is now, and the environment with all packages."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ORIGIN, check=True, capture_output=True, text=True)
    shutil.copytree(ORIGIN / ".git", target / ".git", symlinks=True)
    (target / ".venv").symlink_to(ORIGIN / ".venv")
    for name in filter(None, listing.stdout.split("\0")):
        if (ORIGIN / name).exists():  # else it is deleted, but not yet in the index
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ORIGIN / name, target / name, follow_symlinks=False)


@contextmanager
def locked(name: str) -> Iterator[Path | None]:
    """A folder that all workers of the run share, one at a time; None without workers."""
    if RUN is None:
        yield None
        return
    folder = RUN / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def made_once(name: str, alone: Path, make: Callable[[Path], Path]) -> Path:
    """What one worker makes in a folder, for all of them.

    :param alone: the folder where there are no workers
    :param make: returns what it made
    """
    with locked(name) as shared:
        if shared is None:
            return make(alone)
        done = shared.with_suffix(".path")
        if not done.exists():
            done.write_text(str(make(shared)))
        return Path(done.read_text())
