"""Every command of the README works, in the order in which a reader comes to them."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from checkout import ROOT

BIN = Path(sys.executable).parent
# These tests are what it runs.
ITSELF = {"script/test"}


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def test_every_command_of_the_readme(lab: Any) -> None:
    listed = commands()
    assert {"script/demo", "invoke build-plugin", *ITSELF} <= set(listed)
    lab.down()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    said = {}
    for command in listed:
        if command in ITSELF:
            continue
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        said[command] = result.stdout + result.stderr
        assert result.returncode == 0, f"{command}:\n{said[command]}"
    last_screen = said["script/demo"]
    assert last_screen.count("✓ passing") == 4
    assert "The catalog agrees with the inventory" in last_screen
    assert "invoke lab.down" in last_screen
    assert said["invoke client --once"].count("consul-demo-server found on node") == 4
    assert said["invoke releases"].count("spring ") == 2
    assert said["invoke rollback"].count(" serves on port 2001, 2002") == 2
    audit = said["invoke audit"].splitlines()
    assert "rollback" in audit[-1] and "ok" in audit[-1]
