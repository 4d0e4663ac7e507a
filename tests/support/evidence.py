"""What one needs to understand a lab test that failed, in one folder that outlives the run.

`.lab/failures/TEST/` has, beside what the test printed: `commands.txt`, everything that was run
and what it said; `MACHINE.txt`, the machine's journal and Consul's state as it sees it;
`load-N.jsonl`, every request and every change of the catalog that the load's clients noticed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from checkout import ORIGIN

if TYPE_CHECKING:
    from lab_commands import Lab
    from load import Load

FOLDER = ORIGIN / ".lab/failures"
QUESTIONS = (
    "systemctl list-units --all --plain --no-legend --no-pager 'consul*'",
    "consul members",
    "consul operator raft list-peers",
    "consul catalog nodes -service consul-demo-server",
    "consul kv get -recurse uwsgi-consul-fleet",
    "python3 -c 'import os, sys, urllib.request as u; "
    'token = {"X-Consul-Token": os.environ["CONSUL_HTTP_TOKEN"]}; '
    "asked = u.Request(sys.argv[1], headers=token); "
    "sys.stdout.write(u.urlopen(asked, timeout=5).read().decode())' "
    '"http://127.0.0.1:8500/v1/health/state/any?pretty"',
    "ss -Hltnp",
    "df -h /srv",
    "sudo journalctl --no-pager --boot --output short-precise --lines 20000",
)

commands: list[str] = []
labs: weakref.WeakSet[Lab] = weakref.WeakSet()
loads: list[Load] = []


def begin() -> None:
    """A test begins: what the one before ran is its own."""
    commands.clear()
    loads.clear()


def ran(words: list[str] | tuple[str, ...], code: int, said: str) -> None:
    """Remember a command that has ended."""
    moment = time.strftime("%H:%M:%S")
    commands.append(f"=== {moment} exit {code}: {' '.join(words)}\n{said}")


def collect(test: str) -> Path:
    """Everything about a test that failed just now; what it used is still there."""
    folder = FOLDER / re.sub(r"[^\w.-]+", "-", test).strip("-")[:120]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "commands.txt").write_text("\n".join(commands))
    for number, load in enumerate(loads):
        (folder / f"load-{number}.jsonl").write_text("\n".join(load.lines))
    for number, lab in enumerate(lab for lab in list(labs) if lab.config.exists()):
        _look_at(lab, folder / f"lab-{number}")
    return folder


def _look_at(lab: Lab, folder: Path) -> None:
    script = "\n".join(f"echo '=== '{shlex.quote(one)}; {one} 2>&1" for one in QUESTIONS)
    for name in re.findall(r"^Host (\S+)$", lab.config.read_text(), re.MULTILINE):
        folder.mkdir(exist_ok=True)
        asked = f"{lab.as_management(name)} timeout 60 sh -c {shlex.quote(script)}"
        config = ["-F", str(lab.config), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
        process = lab.start("ssh", *config, name, asked)
        stdout, stderr = process.communicate()
        (folder / f"{name}.txt").write_text(stdout + stderr)
