"""Every command of the README works, in the order in which a reader comes to them.

Those that it begins with, for an application of one's own, are in test_folder.py. Of the others the
demo is the first, and begins where two that were interrupted ended. All moments at which it may be
killed are in bench/demo_killed.py.
"""

import random
import re
import signal
import subprocess

import demo_runs
import pytest
from checkout import ROOT
from lab_commands import Lab

pytestmark = pytest.mark.takes(210)

DEMO = "script/demo"
# These tests are what it runs.
ITSELF = "script/test"


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text().partition("\n## See it ")[2]
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def said_by(command: str) -> str:
    """All that it says, as a reader types it."""
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, f"{command}:\n{said}"
    return said


def test_ctrl_c_says_what_to_do_next(lab: Lab) -> None:
    lab.down()
    code, said = demo_runs.interrupt("2.", 1, signal.SIGINT)
    assert code == 130, said
    assert "run script/demo again" in said
    assert "Traceback" not in said


def test_a_killed_demo_leaves_no_harm(rng: random.Random) -> None:
    """The next test shows that it does not."""
    step, longest = rng.choice(demo_runs.STEPS[:4])
    demo_runs.kill(step, rng.uniform(0, longest))


def test_the_demo_is_the_first_command() -> None:
    assert commands()[0] == DEMO
    said = said_by(DEMO)
    assert said.count("✓ passing") == 4
    assert "The catalog agrees with the inventory" in said
    assert "invoke lab.down" in said


def test_every_other_command() -> None:
    others = [command for command in commands() if command not in (DEMO, ITSELF)]
    assert len(others) == len(commands()) - 2
    assert "invoke build-plugin" in others
    said = {command: said_by(command) for command in others}
    assert said["invoke client --once"].count("consul-demo-server found on node") == 4
    assert said["invoke releases"].count("spring ") == 2
    assert said["invoke rollback"].count(" serves on port 2001, 2002") == 2
    audit = said["invoke audit"].splitlines()
    assert "rollback" in audit[-1] and "ok" in audit[-1]
