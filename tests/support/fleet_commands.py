"""The three commands over an inventory of a test's own."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab_commands import BIN, ROOT


def run(*command: str, check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    words = [str(BIN / command[0]), *command[1:]]
    # As wide as a log: what is tested is what it says, not how it is broken into lines.
    environment = {**os.environ, "COLUMNS": "200", "PATH": f"{BIN}:{os.environ['PATH']}"}
    result = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    said = f"{' '.join(command)} exited with {result.returncode}:\n{result.stdout}{result.stderr}"
    # A line of our own: an application that fails may well have printed one, after its host.
    assert not re.search("^Traceback", said, re.MULTILINE), said
    if check:
        assert result.returncode == 0, said
    return result


def output(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout + result.stderr


class Fleet:
    """An inventory file of its own, and the three commands over it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def hosts(
        self,
        servers: list[str],
        apps: list[Any],
        retired: Sequence[str] = (),
        builders: Sequence[str] = (),
    ) -> None:
        groups = {
            "consul_servers": servers,
            "app_servers": apps,
            "retired": list(retired),
            "builders": list(builders),
        }
        self.path.write_text("".join(f"{name} = {hosts!r}\n" for name, hosts in groups.items()))

    def deploy(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("pyinfra", "-y", *options, str(self.path), "deploy/", check=check)

    def changes(self, *options: str) -> dict[str, list[str]]:
        """Which operations change something, and on which hosts."""
        report = json.loads(self.deploy("--json", *options).stdout)["results"]
        return {op["name"]: op["success"] for op in report["operations"] if op["success"]}

    def verify(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("invoke", "verify", *options, "--inventory", str(self.path), check=check)

    def build(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("invoke", "build-plugin", *options, "--inventory", str(self.path), check=check)
