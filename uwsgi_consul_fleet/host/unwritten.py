"""What was done while Consul did not answer, on a Consul server until it can be written there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path("/etc/uwsgi-consul-fleet/unwritten")


def read() -> list[dict[str, Any]]:
    """Of each run its ``entry`` in the audit, and what the services should be on; oldest first."""
    try:
        return [json.loads(line) for line in FILE.read_text().splitlines()]
    except FileNotFoundError:
        return []


def keep(told: str) -> None:
    """Add one, as JSON."""
    from . import store  # not in each session of the lock, which it would make wait

    store.write(FILE, "".join(f"{json.dumps(each)}\n" for each in [*read(), json.loads(told)]))


def clear() -> None:
    FILE.unlink(missing_ok=True)
