"""The three commands over an inventory of a test's own."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import acl_tokens
import evidence
import warm
from checkout import BIN, ROOT, locked


def start(
    *command: str, cwd: Path = ROOT, own_group: bool = False, **environment: str
) -> subprocess.Popen[str]:
    """
    :param own_group: a process group of its own, as a shell makes it: to be interrupted
    :param environment: variables beside those of this process
    """
    return subprocess.Popen(
        _words(command),
        cwd=cwd,
        env={**_environment(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=own_group,
    )


def _words(command: Sequence[str]) -> list[str]:
    return [str(BIN / command[0]), *command[1:]]


def _environment() -> dict[str, str]:
    # As wide as a log: what is tested is what it says, not how it is broken into lines.
    return {**os.environ, "COLUMNS": "200"}


def finish(process: subprocess.Popen[str], *, check: bool) -> subprocess.CompletedProcess[str]:
    """What it printed and how it ended."""
    stdout, stderr = process.communicate()
    words = process.args
    assert isinstance(words, list)
    ended = subprocess.CompletedProcess(words, process.returncode, stdout, stderr)
    return _checked(ended, check=check)


def run(*command: str, check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    if ended := warm.run(_words(command), cwd, _environment()):
        return _checked(ended, check=check)
    return finish(start(*command, cwd=cwd), check=check)


def _checked(
    ended: subprocess.CompletedProcess[str], *, check: bool
) -> subprocess.CompletedProcess[str]:
    said = f"{' '.join(ended.args)} exited with {ended.returncode}:\n{output(ended)}"
    evidence.ran(ended.args, ended.returncode, output(ended))
    # A line of our own: an application that fails may well have printed one, after its host.
    assert not re.search("^Traceback", said, re.MULTILINE), said
    assert not check or ended.returncode == 0, said
    return ended


def output(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout + result.stderr


def changed(deploy: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """Which operations of a deploy with --json changed something, and on which hosts."""
    report = json.loads(deploy.stdout)["results"]
    return {op["name"]: op["success"] for op in report["operations"] if op["success"]}


class Fleet:
    """An inventory file of its own, and the three commands over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        acl_tokens.kept_beside(path)

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
        return run(*self.words(*options), check=check)

    def start_deploy(self, *options: str) -> subprocess.Popen[str]:
        """To be interrupted, or to be watched; :func:`finish` waits for it."""
        return start(*self.words(*options), own_group=True)

    def words(self, *options: str) -> list[str]:
        """The command line of a deploy."""
        return ["pyinfra", "-y", *options, str(self.path), "deploy/"]

    def changes(self, *options: str) -> dict[str, list[str]]:
        """Which operations change something, and on which hosts."""
        return changed(self.deploy("--json", *options))

    def verify(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Where it has to agree, it is asked again for half a minute, or as the options say."""
        wait = ("--wait", "30") if check and "--wait" not in options else ()
        return run("invoke", "verify", *wait, *options, "--inventory", str(self.path), check=check)

    def releases(self, check: bool = True) -> dict[str, str]:
        """The release that each host says it is on.

        :param check: whether each of them has to say it
        """
        result = run("invoke", "releases", "--json", "--inventory", str(self.path), check=check)
        return {
            host["node"]: next(each["release"] for each in host["releases"] if each["current"])
            for host in json.loads(result.stdout)
            if check or not host["problem"]
        }

    def rollback(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("invoke", "rollback", *words, "--inventory", str(self.path), check=check)

    def build_once(self) -> None:
        """As `build`, but what another worker has compiled already is taken over."""
        own = ROOT / "plugin_build/dist"
        with locked("dist") as shared:
            if shared and not any(shared.iterdir()):
                self.build()
                shutil.copytree(own, shared, dirs_exist_ok=True)
                return
            if shared:
                shutil.copytree(shared, own, dirs_exist_ok=True)
        self.build()

    def build(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("invoke", "build-plugin", *options, "--inventory", str(self.path), check=check)
