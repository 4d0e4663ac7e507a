"""Which Consul the tests run, and what differs between its versions.

It is the `consul` on PATH, Debian's, as script/bootstrap brings it; another one for everything,
also on the lab's machines:

    CONSUL=/path/to/consul script/test
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

GIVEN = Path(os.environ["CONSUL"]).resolve() if os.environ.get("CONSUL") else None
# What 1.8 says to a question that was at a server when that stopped, or came just behind; it does
# not itself ask another one.
CUT_OFF = (
    r"rpc error (making call: EOF|getting client: .*: connection refused"
    r"|getting client: .* lead thread didn't get connection)$"
)


@functools.cache
def version() -> tuple[int, ...]:
    """As (1, 8, 7)."""
    said = subprocess.run(["consul", "version"], check=True, capture_output=True, text=True).stdout
    found = re.match(r"Consul v(\d+)\.(\d+)\.(\d+)", said)
    assert found, said
    return tuple(map(int, found.groups()))


def number() -> str:
    """As 1.8.7."""
    return ".".join(map(str, version()))


def told() -> str:
    """A line about it, also where there is none."""
    found = shutil.which("consul")
    return f"Consul {number()}: {GIVEN or found}" if found else "no Consul"


def agent_options() -> list[str]:
    """For agents that share one address: since 1.14 each opens a port for gRPC over TLS."""
    return ["-grpc-tls-port", "-1"] if version() >= (1, 14) else []


def install(folder: Path) -> None:
    """Make the given binary the `consul` of this process and of those that it starts.

    :param folder: for a `consul` of its own, that comes first on PATH
    """
    if GIVEN:
        if not os.access(GIVEN, os.X_OK) or not GIVEN.is_file():
            raise SystemExit(f"CONSUL={GIVEN}: is not a program")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "consul").unlink(missing_ok=True)
        (folder / "consul").symlink_to(GIVEN)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def settings() -> str:
    """What a fleet's settings say more, so that its hosts get the given binary."""
    return f'\nconsul_source = "file"\nconsul_file = "{GIVEN}"\n' if GIVEN else ""
