"""The program of a host, started here as it is there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.host import lock_session

PATIENCE = 10  # seconds for an answer of an agent that shares the machine with other tests


def patient(ttl: str = lock_session.TTL) -> list[str]:
    """The first words of a command that brings the program along, as `host_program.carried()`;
    its lock session waits longer for the agent.

    :param ttl: of the session in Consul
    """
    *python, code, program = host_program.carried()
    settings = f"lock_session.TIMEOUT = {PATIENCE}; lock_session.SESSION['TTL'] = {ttl!r}"
    main = "from program.main"
    assert main in code
    return [
        *python,
        code.replace(main, f"from program import lock_session; {settings}\n{main}"),
        program,
    ]


def release(
    folder: Path, access: dict[str, str], *words: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """On a host whose file says so; brought along, as before it is installed."""
    file = folder / "agent.json"
    file.write_text(json.dumps(access))
    command = [*patient(), "--agent-file", str(file), *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
