"""The demo, interrupted wherever it hurts and started again."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Seconds after the start: while machines boot, the plugin is compiled, Consul is
# installed, and the application is released.
MOMENTS = (2, 7, 14, 22)


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


def interrupt(moment: float, number: signal.Signals) -> tuple[int, str]:
    process = start()
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def test_it_ends_well_after_being_killed_at_any_moment(lab: Any) -> None:
    lab.down()
    for moment in MOMENTS:
        code, said = interrupt(moment, signal.SIGKILL)
        assert code in (0, -signal.SIGKILL), said
    process = start()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("✓ passing") == 4, said


def test_ctrl_c_says_what_to_do_next(lab: Any) -> None:
    code, said = interrupt(4, signal.SIGINT)
    assert code == 130, said
    assert "run script/demo again" in said
    assert "Traceback" not in said
