"""Units of an application, by way of systemctl."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .says import ReleaseError

UNITS = Path("/etc/systemd/system")
RUNTIME = Path("/run/systemd/system")
JOURNAL_LINES = 20


def systemctl(*arguments: str) -> str:
    """:raises ReleaseError: with what it says"""
    words = ["systemctl", "--quiet", *arguments]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ReleaseError(f"{' '.join(words)}: {result.stderr.strip()}")
    return result.stdout


def start(units: Iterable[str]) -> None:
    """Returns when all of them are ready; :raises ReleaseError: why one does not get there."""
    listed = list(units)
    started = subprocess.run(["systemctl", "start", *listed], capture_output=True, check=False)
    if started.returncode:
        reasons = [found for found in map(_why_not, listed) if found]
        raise ReleaseError("; ".join(reasons) or started.stderr.decode(errors="replace").strip())


def _why_not(unit: str) -> str:
    """Why it did not start, or '' if it did."""
    names = ("Result", "ExecMainStatus", "TimeoutStartUSec", "ActiveState")
    words = ["systemctl", "show", f"--property={','.join(names)}", unit]
    output = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    values = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    result, status = values.get("Result", ""), values.get("ExecMainStatus", "0")
    if values.get("ActiveState") == "active":
        return ""
    if result == "timeout":
        return f"{unit} is not ready after {values.get('TimeoutStartUSec')}"
    return f"{unit} ended with exit status {status} ({result})"


def stop(units: Iterable[str]) -> None:
    """Returns when they have finished what they were at."""
    listed = list(units)
    if listed:
        systemctl("stop", *listed)
        # A unit that ended badly is remembered as failed until somebody says otherwise.
        subprocess.run(["systemctl", "reset-failed", *listed], capture_output=True, check=False)


def is_active(unit: str) -> bool:
    words = ["systemctl", "--quiet", "is-active", unit]
    return subprocess.run(words, check=False).returncode == 0


def active(pattern: str) -> list[str]:
    """The units of this name that run, or are on their way up or down."""
    states = "--state=active,activating,deactivating,reloading"
    words = ["systemctl", "list-units", "--all", "--plain", "--no-legend", states, pattern]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    if found.returncode:
        raise ReleaseError(f"{' '.join(words)}: {found.stderr.strip()}")
    return [line.split()[0] for line in found.stdout.splitlines()]


def port_of(app: str, unit: str) -> int | None:
    """The port of a service of this application; None for any other unit, a trial's too."""
    found = re.match(re.escape(app) + r"-(\d+)@.+\.service$", unit)
    return int(found.group(1)) if found else None


def journal(units: Iterable[str]) -> str:
    """The last lines of these units, for a person."""
    subprocess.run(["journalctl", "--sync"], capture_output=True, check=False)
    words = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={JOURNAL_LINES}"]
    chosen = [f"--unit={unit}" for unit in units]
    return subprocess.run(
        [*words, *chosen], capture_output=True, text=True, errors="replace", check=False
    ).stdout.rstrip()
