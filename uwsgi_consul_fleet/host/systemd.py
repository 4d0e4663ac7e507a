"""Units of an application, by way of systemctl."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from .says import ReleaseError

UNITS = Path("/etc/systemd/system")
RUNTIME = Path("/run/systemd/system")
JOURNAL_LINES = 5000
SHOWN_LINES = 20
TRACEBACK = "Traceback (most recent call last)"
FAILURE = re.compile(
    r"error|exception|fail|fatal|refuse|denied|unable|can't|cannot|invalid|unavailable|no such"
    r"|not started|killed|died|abort|segmentation|exited"
    r"|\[\S+ line \d+\]$",  # where uWSGI says what the system said
    re.IGNORECASE,
)


def systemctl(*arguments: str) -> None:
    """:raises ReleaseError: with what it says"""
    words = ["systemctl", "--quiet", *arguments]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ReleaseError(f"{' '.join(words)}: {result.stderr.strip()}")


def start(units: list[str], seconds: float | None = None, alone: bool = False) -> None:
    """Returns when all of them are ready.

    :param seconds: how long that may take; a boot has a limit of its own, in the units
    :param alone: start nothing else that these want
    :raises ReleaseError: why one does not get there
    """
    words = ["systemctl", "start", *["--job-mode=ignore-dependencies"] * alone, *units]
    try:
        started = subprocess.run(words, capture_output=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        late = ", ".join(unit for unit in units if not is_active(unit))
        raise ReleaseError(f"{late} is not ready after {seconds} s") from None
    if started.returncode:
        reasons = [found for found in map(_why_not, units) if found]
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


def timed_out(units: list[str]) -> list[str]:
    """Those that had to be killed when they were last stopped."""
    words = ["systemctl", "show", "--value", "--property=Result", *units]
    output = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return [unit for unit, result in zip(units, output.split()) if result == "timeout"]


def abandon(units: Iterable[str]) -> None:
    """End those that are not ready yet at once: while it loads its application uWSGI hears no
    signal, and would serve when it has."""
    late = [unit for unit in units if not is_active(unit)]
    for words in (["stop", "--no-block"], ["kill", "--signal=KILL"]):
        if late:
            subprocess.run(["systemctl", *words, *late], capture_output=True, check=False)


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


def services(app: str) -> re.Pattern[str]:
    """The services of an application, with the ``port`` of an instance or the ``kind`` of a worker;
    a trial's have neither."""
    parts = r"(-(?P<port>\d+)|-trial|\.(?P<kind>[a-z0-9-]+)\.\d+)@.+\.service"
    return re.compile(re.escape(app) + parts)


def port_of(app: str, unit: str) -> int | None:
    """The port of a service of this application; None for any other unit, a trial's too."""
    found = services(app).fullmatch(unit)
    return int(found["port"]) if found and found["port"] else None


def worker_kind(app: str, unit: str) -> str:
    """Of which kind the unit of a worker of this application is; '' for any other unit."""
    found = services(app).fullmatch(unit)
    return (found["kind"] or "") if found else ""


def journal(units: Iterable[str]) -> str:
    """The lines of these units that say why something failed, and the last of the others."""
    subprocess.run(["journalctl", "--sync"], capture_output=True, check=False)
    words = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={JOURNAL_LINES}"]
    chosen = [f"--unit={unit}" for unit in units]
    said = subprocess.run(
        [*words, *chosen], capture_output=True, text=True, errors="replace", check=False
    ).stdout
    return "\n".join(telling(said.splitlines()))


def telling(lines: Iterable[str]) -> list[str]:
    """Failures first, then what was said last: a daemon of the application that chatters must not
    hide why it did not start. Of what differs in numbers alone the last is enough."""
    failures: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for block in _blocks(lines):
        kind = failures if len(block) > 1 or FAILURE.search(block[0]) else others
        shape = re.sub(r"\d+", "0", "\n".join(block))
        kind.pop(shape, None)
        kind[shape] = block
    why = [line for block in failures.values() for line in block][-SHOWN_LINES:]
    rest = [line for block in others.values() for line in block]
    return why + rest[max(0, len(rest) - SHOWN_LINES + len(why)) :]


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """A traceback of Python's as one, which ends with the first line that is not indented."""
    block: list[str] = []
    for line in lines:
        block.append(line)
        if not line.startswith(TRACEBACK) and (len(block) == 1 or not line.startswith(" ")):
            yield block
            block = []
    if block:
        yield block
