"""Applications to release: good ones, slow ones, and some that must never serve.

Each is the example application with something behind it, so the entry point, the
answers and the settings stay those of the shipped inventory:

    fleet.deploy(*released(application(folder, slow_start(5)), "r2"))
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT
from lab_commands import Lab


def slow_start(seconds: float) -> str:
    """An application that takes so long to load."""
    return f"\nimport time\ntime.sleep({seconds})\n"


def slow_requests(seconds: float) -> str:
    """An application that takes so long to answer, but for its health check."""
    return f"""
import time
answer_at_once = application

def application(environ, start_response):
    if environ["PATH_INFO"] == "/":
        time.sleep({seconds})
    return answer_at_once(environ, start_response)
"""


@dataclass(frozen=True)
class BadRelease:
    """Code that must not come to serve, and what the operator has to see of the reason."""

    code: str
    says: str


# It says more than is shown, before the failure and after it.
CHATTER = """
import subprocess
import time
subprocess.Popen(["sh", "-c", "while :; do n=$((n + 1)); echo $n gulls; sleep 0.01; done"])
time.sleep(1)
"""

BAD_RELEASES = {
    # Beside something that chatters, as a daemon of an application does: see CHATTER.
    "does not import": BadRelease(
        CHATTER + "raise RuntimeError('no wind')\n",
        "RuntimeError: no wind",
    ),
    "exits at once": BadRelease(
        "print('the mast breaks', flush=True)\nos._exit(3)\n",
        "the mast breaks",
    ),
    "hangs at start": BadRelease(
        "import time\nprint('becalmed', flush=True)\nwhile True:\n    time.sleep(3600)\n",
        "becalmed",
    ),
    "fails its health check": BadRelease(
        """
answer_anyway = application

def application(environ, start_response):
    if environ["PATH_INFO"] != "/healthz":
        return answer_anyway(environ, start_response)
    print("not seaworthy", flush=True)
    start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
    return [b"not seaworthy"]
""",
        "not seaworthy",
    ),
    "redirects its health check": BadRelease(
        """
def application(environ, start_response):
    if environ.get("HTTP_X_FORWARDED_PROTO") == "https":
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
    else:
        start_response("301 Moved Permanently", [("Location", "https://sea.example/")])
    return [b""]
""",
        "301 Moved Permanently: a redirect to https://sea.example/",
    ),
    # An alarm ends a worker also while it waits for a request, where no Python code runs.
    "loses its workers after 2 s": BadRelease(
        """
import signal
import time
import uwsgi
born = time.monotonic()

def founder():
    left = born + 2 - time.monotonic()
    if left <= 0:
        print("all hands lost", flush=True)
        os._exit(1)
    signal.setitimer(signal.ITIMER_REAL, left)

uwsgi.post_fork_hook = founder
""",
        "all hands lost",
    ),
    # Everything that the workers hold is closed in the shell: it keeps no socket open.
    "loses its master after 2 s": BadRelease(
        """
import subprocess
print("the captain is ill", flush=True)
subprocess.Popen(["sh", "-c", f"sleep 2; kill -KILL {os.getpid()}"], start_new_session=True)
""",
        "the captain is ill",
    ),
}


def application(folder: Path, code: str = "") -> Path:
    """The example application in a new folder, with this code behind it; returns its source."""
    source = folder / "app"
    shutil.copytree(ROOT / "app", source, ignore=shutil.ignore_patterns("__pycache__"))
    with (source / "server.py").open("a") as file:
        file.write(code)
    return source


def commit(source: Path, message: str = "Change the application") -> str:
    """Record the source in a git repository of its own; returns the revision."""
    git = ["git", "-C", str(source), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    steps = (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", message])
    for step in steps:
        subprocess.run([*git, *step], check=True)
    revision = [*git, "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(revision, check=True, capture_output=True, text=True).stdout.strip()


def released(source: Path, release: str) -> list[str]:
    """The options of a deploy that releases this source under this name."""
    return ["--data", f"app_source={source}", "--data", f"release={release}"]


def impossible_requirements(folder: Path) -> Path:
    """A requirements file that pip can't satisfy, wherever it looks."""
    path = folder / "requirements.txt"
    path.write_text("uwsgi-consul-fleet==0.0.0.dev0+nowhere\n")
    return path


class SmallDisk:
    """A machine whose /srv has little space; what is there already stays.

    ``with disk.full():`` leaves no byte of it free.
    """

    def __init__(self, lab: Lab, name: str, megabytes: int = 160) -> None:
        self.lab = lab
        self.name = name
        lab.ssh(
            name,
            f"set -e; sudo mount -t tmpfs -o size={megabytes}M,mode=755 tmpfs /mnt; "
            "sudo cp -a /srv/. /mnt/; sudo mount --bind /mnt /srv; sudo umount /mnt",
        )

    def remove(self) -> None:
        """Back to the machine's own disk, with what is there now."""
        self.lab.ssh(
            self.name,
            # Of the root alone, without what is mounted on it.
            "set -e; sudo mount --bind / /mnt; sudo find /mnt/srv -mindepth 1 -delete; "
            "sudo cp -a /srv/. /mnt/srv/; sudo umount --lazy /srv; sudo umount /mnt",
        )

    def full(self) -> FullDisk:
        return FullDisk(self)


class FullDisk:
    """While it lasts, nothing can be written below /srv."""

    def __init__(self, disk: SmallDisk) -> None:
        self.disk = disk

    def __enter__(self) -> None:
        self.disk.lab.ssh(
            self.disk.name,
            "sudo fallocate --length $(($(df --output=avail --block-size=1 /srv | tail -1))) "
            "/srv/ballast; df /srv; test $(df --output=avail /srv | tail -1) = 0",
        )

    def __exit__(self, *_: object) -> None:
        self.disk.lab.ssh(self.disk.name, "sudo rm -f /srv/ballast")
