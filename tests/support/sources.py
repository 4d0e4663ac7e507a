"""Applications for unit tests: git that asks nobody who he is, and a host to release to."""

import subprocess
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.git import environment
from uwsgi_consul_fleet.inventory.model import AppHost, InventoryHost, build
from uwsgi_consul_fleet.inventory.settings import DEMO

CONFIG = {"user.name": "t", "user.email": "t@example.org", "protocol.file.allow": "always"}


def git(folder: Path, *words: str) -> str:
    """What it prints, without the end of its last line."""
    given = [word for key, value in CONFIG.items() for word in ("-c", f"{key}={value}")]
    command = ["git", "-C", str(folder), *given, *words]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment()
    ).stdout.rstrip("\n")


def host(folder: Path, **settings: Any) -> AppHost:
    """The application of a folder on a host of its own, by the shipped ini and without requirements
    where the settings say nothing else."""
    data = {**DEMO, "app_source": str(folder), "app_requirements": None, "app_ini": None}
    groups = frozenset({"consul_servers", "app_servers"})
    entry = InventoryHost("drakar", groups, {**data, **settings})
    return build([entry], (), (), lambda _: "10.0.3.11").applications[0]
