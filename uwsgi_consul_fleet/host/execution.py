"""A command of the operator's, as the units of the release that serves run the application.

It gets a unit of its own: so systemd itself reads the environment, and the command sees the files
and has the limits that the instances have; and it can be ended with all that it started.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tty

from . import app_token, elsewhere, store
from .says import ReleaseError
from .store import Release
from .told import told

# Said on a terminal when the words can come: until then it would show them.
READY = "uwsgi-consul-fleet: which command?"
# What of an instance's unit is about being a server; the rest is what it sees, has and may do.
ALIKE = re.compile(
    r"^(?!(?:Type|Sockets|UnsetEnvironment|Environment|(?:RuntimeDir|Exec|Restart|Timeout|Kill)\w*)=)"
    r"[A-Z]\w+=.*$",
    re.MULTILINE,
)


def run(app: str, unit: str, who: str, terminal: bool) -> None:
    """Run what standard input names in its first line, and end as it does; what follows there it
    reads itself.

    :param unit: what its unit is called
    :param who: for whom, for the host's journal
    :raises ReleaseError: where no release of the application serves
    """
    release = store.current(app)
    if release is None:
        raise ReleaseError(f"{app}: no release serves on this host")
    words = _line(terminal)
    for number in (signal.SIGINT, signal.SIGHUP):  # the command's, not ours
        signal.signal(number, signal.SIG_DFL)
    description = f"{app}: a command of {who}"
    command = ["systemd-run", "--quiet", "--wait", f"--unit={unit}", f"--description={description}"]
    # systemd 256 and later would colour the terminal and name its window.
    quiet = {"SYSTEMD_TINT_BACKGROUND": "0", "SYSTEMD_ADJUST_TERMINAL_TITLE": "0"}
    code = subprocess.run(
        [
            *command,
            "--pty" if terminal else "--pipe",
            *_properties(release),
            *_shell(release, words),
        ],
        env={**os.environ, **quiet},
        check=False,
    ).returncode
    sys.exit(_ended(unit) or code if code else 0)


def _line(terminal: bool) -> str:
    """The first line of standard input, and nothing behind it."""
    if terminal:
        # Nothing is shown, and a line may be long. It stays so: the command gets one of its own.
        tty.setraw(0)
        print(READY, flush=True)
    return b"".join(iter(lambda: os.read(0, 1).strip(b"\n"), b"")).decode()


def _properties(release: Release) -> list[str]:
    service, port = release.services[0], release.instances[0].port
    text = elsewhere.unit(release, f"{port}.service")
    alike = ALIKE.findall(text.partition("[Service]")[2].replace("%i", release.generation))
    its = told(release.folder, port)
    # With its /tmp.
    found = [*alike, f"WorkingDirectory={its.work}", f"JoinsNamespaceOf={service}"]
    variables = {**app_token.variables(release.app), **its.variables}
    return [
        *(f"--property={each}" for each in found),
        *(f"--setenv={name}={value}" for name, value in variables.items()),
    ]


def _shell(release: Release, words: str) -> list[str]:
    """A shell finds the program by the PATH that the application has, and knows no word of it
    before: neither systemd, which would replace variables in them, nor its journal."""
    venv = shlex.quote(str(release.folder / "venv"))
    script = (
        f'[ ! -d {venv} ] || export VIRTUAL_ENV={venv} PATH="{venv}/bin:$PATH"; '
        f'eval "exec $(echo {words} | base64 -d)"'
    )
    return ["/bin/sh", "-c", script.replace("$", "$$")]


def _ended(unit: str) -> int:
    """What a shell would say of a command that a signal ended; 0 for one that it did not."""
    words = ["systemctl", "show", "--property=ExecMainCode,ExecMainStatus", unit]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = dict(line.split("=", 1) for line in said.splitlines())
    subprocess.run(["systemctl", "reset-failed", unit], capture_output=True, check=False)
    by_signal = found.get("ExecMainCode") in (str(os.CLD_KILLED), str(os.CLD_DUMPED))
    return 128 + int(found["ExecMainStatus"]) if by_signal else 0
