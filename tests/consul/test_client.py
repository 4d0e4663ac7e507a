"""The client against real Consul agents: what it prints, when, and what it survives."""

from __future__ import annotations

import itertools
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app import client
from app.client import AgentError, Instance, NoInstanceError, RefusedError

if TYPE_CHECKING:
    from conftest import Agent, Client

    NewAgent = Callable[..., Agent]
    Run = Callable[..., Client]

ROOT = Path(__file__).resolve().parents[2]
NONE = "no consul-demo-server available"


def found(port: int, state: str = "") -> str:
    return f"consul-demo-server found on node drakar (127.0.0.1) using port {port}{state}"


def once(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`--once`, without anything of the caller's environment."""
    return subprocess.run(
        [sys.executable, "-m", "app.client", "--once", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
    )


class TestWatching:
    def test_prints_the_seed_s_lines_and_the_whole_list_on_each_change(
        self, agent: Agent, run: Run
    ) -> None:
        watching = run("--url", agent.url)
        assert watching.line() == NONE
        agent.register(2001)
        assert watching.line() == ""
        assert watching.line().endswith("  new: drakar:2001")
        assert watching.line() == found(2001)
        agent.register(2002)
        assert watching.lines(4)[1:] == [pytest.approx_end("new: drakar:2002"), found(2001), found(2002)]
        agent.deregister(2001)
        assert watching.lines(3)[1:] == [pytest.approx_end("gone: drakar:2001"), found(2002)]
        agent.deregister(2002)
        assert watching.lines(3)[2] == NONE
        assert watching.errors() == []
