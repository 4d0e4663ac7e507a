"""The program of a host, started here as it is there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from uwsgi_consul_fleet import host_program


def release(
    folder: Path, access: dict[str, str], *words: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """On a host whose file says so; brought along, as before it is installed."""
    file = folder / "agent.json"
    file.write_text(json.dumps(access))
    command = [*host_program.carried(), "--agent-file", str(file), *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
