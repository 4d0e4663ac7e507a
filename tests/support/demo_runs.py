"""script/demo, interrupted wherever it hurts."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from checkout import ROOT

# Its steps, and within how many seconds after one has begun it hurts.
STEPS = (("1.", 1), ("2.", 6), ("3.", 6), ("4.", 8), ("5.", 8), ("6.", 1))


def start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["script/demo"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def interrupt(step: str, seconds: float, number: signal.Signals) -> tuple[int, str]:
    """Send a signal to it, as a terminal does, so long after a step has begun.

    :returns: its exit status, and what it said
    """
    process = start()
    assert process.stdout
    said = ""
    while f"\n{step} " not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    time.sleep(seconds)
    os.killpg(process.pid, number)
    rest, _ = process.communicate(timeout=120)
    return process.returncode, said + rest


def kill(step: str, seconds: float) -> None:
    """At the latest when it ends by itself."""
    print(f"script/demo is killed {seconds:.1f} s after its step {step} has begun")
    code, said = interrupt(step, seconds, signal.SIGKILL)
    assert code == -signal.SIGKILL, said
