"""The demo, interrupted wherever it hurts and started again."""

import os
import signal
import subprocess
import time
from typing import Any

from checkout import ROOT

# Seconds after a step has begun.
MOMENTS = (("1.", 0.5), ("2.", 3), ("3.", 3), ("4.", 5), ("5.", 6), ("6.", 0))


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
    process = start()
    assert process.stdout
    said = ""
    while f"[1m{step}" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    time.sleep(seconds)
    os.killpg(process.pid, number)
    rest, _ = process.communicate(timeout=120)
    return process.returncode, said + rest


def test_it_ends_well_after_being_killed_at_any_moment(lab: Any) -> None:
    lab.down()
    for step, seconds in MOMENTS:
        code, said = interrupt(step, seconds, signal.SIGKILL)
        assert code == -signal.SIGKILL, said
    process = start()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("✓ passing") == 4, said


def test_ctrl_c_says_what_to_do_next(lab: Any) -> None:
    code, said = interrupt("2.", 1, signal.SIGINT)
    assert code == 130, said
    assert "run script/demo again" in said
    assert "Traceback" not in said
