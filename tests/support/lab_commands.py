"""The lab as an operator uses it: through its commands, in a checkout."""

import atexit
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import acl_tokens
import evidence
from checkout import BIN, RUN
from consul_processes import until

from uwsgi_consul_fleet.lab import machines

SUDO = [] if os.geteuid() == 0 else ["sudo"]

Result = subprocess.CompletedProcess[str]


class Lab:
    """The lab of a checkout; every command that fails shows what it printed."""

    def __init__(self, checkout: Path, *inside: str, **environment: str) -> None:
        """
        :param inside: a command that runs another, as nsenter does
        :param environment: variables beside those of this process
        """
        self.checkout = checkout
        self.config = checkout / ".lab/ssh_config"
        self.inside = inside
        self.environment = {**os.environ, **environment}
        # A connection takes a machine as long as ten commands over one that is there. Their
        # sockets are here: a socket's path may have a hundred characters, and a checkout's more.
        self.connections = Path(tempfile.mkdtemp(prefix="ssh-", dir=RUN))
        atexit.register(shutil.rmtree, self.connections, ignore_errors=True)
        evidence.labs.add(self)

    @property
    def clone(self) -> str:
        """By which the lab knows the machines of this checkout."""
        return hashlib.sha256(str(self.checkout).encode()).hexdigest()[:8]

    def up(self, *names: str) -> Result:
        return self.command("up", *names)

    def down(self, *names: str) -> Result:
        return self.command("down", *names)

    def kill(self, *names: str) -> Result:
        return self.command("kill", *names)

    def rebuild(self, *names: str) -> Result:
        return self.command("rebuild", *names)

    def fresh(self, *names: str) -> None:
        """Machines with nothing on them, whether they were there or not."""
        there = self.addresses()
        if old := [name for name in names if name in there]:
            self.rebuild(*old)
        if new := [name for name in names if name not in there]:
            self.up(*new)

    def reboot(self, name: str) -> None:
        """As `systemctl reboot` does it: services are stopped first; returns when ssh answers."""
        self.ssh(name, "sudo systemctl reboot", check=False)  # which may end the session first
        (machine,) = (each for each in machines.known(self.clone) if each.name == name)
        until(lambda: not machine.pids(), f"{name} is down", 120)
        self.up(name)

    @contextmanager
    def cut(self, *names: str, everywhere: bool = False) -> Iterator[None]:
        """Meanwhile, packets between this host and the machines are lost; nobody is told.

        :param everywhere: also those between the machines and others
        """
        hooks = ["input", "output", *(["forward"] if everywhere else [])]
        addresses = ", ".join(self.address(name) for name in names)
        # Of the bridge's own family, which also sees what machines send to each other.
        table = f"bridge ucf_cut_{self.checkout.stat().st_ino}"
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; "
            f"ip saddr {{ {addresses} }} drop; ip daddr {{ {addresses} }} drop; }}\n"
            for hook in hooks
        )
        # The one that a test left which was killed is replaced.
        rules = f"add table {table}\ndelete table {table}\ntable {table} {{\n{chains}}}"
        self.run(*SUDO, "nft", rules)
        try:
            yield
        finally:
            self.run(*SUDO, "nft", f"delete table {table}")

    def status(self) -> dict[str, dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.command("status", "--json").stdout)
        return {row["name"]: row for row in rows}

    def address(self, name: str) -> str:
        return self.addresses()[name]

    def addresses(self) -> dict[str, str]:
        """As `status` has them; tests ask for them at every step, and its command takes 0.1 s."""
        if self.inside:
            return {name: row["address"] for name, row in self.status().items()}
        return {machine.name: machine.address for machine in machines.known(self.clone)}

    def ssh(self, name: str, command: str, check: bool = True, options: str = "") -> Result:
        """
        :param options: of ssh, which then makes a connection of its own
        """
        own = ["-o", "ControlPath=none", *options.split()] if options else []
        return self.run("ssh", *own, *self.ssh_options, name, command, check=check)

    @property
    def ssh_options(self) -> list[str]:
        """Of ssh and scp: by a connection that is there, or that stays for the next ones."""
        path = f"ControlPath={self.connections}/%r@%h"
        kept = [path, "ControlMaster=auto", "ControlPersist=30", "ServerAliveInterval=10"]
        words = [word for each in ["BatchMode=yes", *kept] for word in ("-o", each)]
        return ["-F", str(self.config), *words]

    def _hang_up(self) -> None:
        """Before machines go, whose connections would have no end; what runs over one goes on."""
        for path in self.connections.iterdir():
            words = ["ssh", "-o", f"ControlPath={path}", "-O", "stop", "any"]
            subprocess.run([*self.inside, *words], capture_output=True, check=False)

    def consul(self, name: str, words: str, check: bool = True) -> Result:
        """A command of Consul's on a machine, as who may do everything in its cluster."""
        return self.ssh(name, f"{self.as_management(name)} consul {words}", check=check)

    def peers(self, name: str, check: bool = True) -> dict[str, tuple[str, bool]]:
        """The servers as one of them sees them: its part in Raft, and whether it votes.

        :param check: whether it has to know a leader
        """
        lines = self.consul(name, "operator raft list-peers", check=check).stdout.splitlines()
        rows = (line.split() for line in lines[1:])
        return {row[0]: (row[3], row[4] == "true") for row in rows}

    def as_management(self, name: str) -> str:
        """What a command of a shell begins with that asks a machine's Consul so."""
        return f"CONSUL_HTTP_TOKEN={acl_tokens.management(self, name)}"

    def command(self, *words: str, check: bool = True) -> Result:
        if words[0] in ("kill", "down", "rebuild"):
            self._hang_up()
        return self.run(sys.executable, "-m", "uwsgi_consul_fleet.lab", *words, check=check)

    def invoke(self, *words: str, check: bool = True) -> Result:
        return self.run(str(BIN / "invoke"), *words, check=check)

    def run(self, *words: str, check: bool = True) -> Result:
        process = self.start(*words)
        stdout, stderr = process.communicate()
        said = f"{' '.join(words)} exited with {process.returncode}:\n{stdout}{stderr}"
        evidence.ran(words, process.returncode, stdout + stderr)
        assert "Traceback" not in said, said
        assert not check or process.returncode == 0, said
        return Result(words, process.returncode, stdout, stderr)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.inside, *words],
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
