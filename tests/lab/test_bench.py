"""What is under bench/ can be run again: each, once, where that takes less than a minute."""

import re
import subprocess
import sys

import acl_tokens
import pytest
from checkout import ROOT
from fleet_commands import Fleet

pytestmark = pytest.mark.takes(270)


def once(name: str) -> str:
    command = [sys.executable, f"bench/{name}.py", "--once", "--seed", "12"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    print(f"\n{said}")
    assert re.match(rf"{name}\.py: seed 12, commit \S+( with changes)?, \d+ cores\n", result.stdout)
    return result.stdout


@pytest.mark.parametrize("name", ["client_latency", "inventory", "plugin_endurance"])
def test_on_this_machine(name: str) -> None:
    assert once(name)


def test_a_deploy_with_nothing_to_change(fleet: Fleet) -> None:
    acl_tokens.the_same(ROOT / ".lab/bench_2.py", fleet.path, "drakar")
    assert "2 hosts: median " in once("deploy_again")


def test_a_deploy_with_nothing_to_change_over_many_hosts(fleet: Fleet) -> None:
    acl_tokens.the_same(ROOT / ".lab/bench_hundred.py", fleet.path, "drakar")
    said = once("hundred_hosts")
    assert "nothing to change: {'hosts': " in said
    assert "\n10 hosts: median " in said


def test_a_build_with_nothing_to_build(fleet: Fleet) -> None:
    assert "3 hosts: median " in once("build_again")


def test_releases_under_load(fleet: Fleet) -> None:
    said = once("releases")
    assert "the shipped application, 2 hosts: 1 releases" in said
    assert said.count(" 0 failed") == 2


def test_a_large_release(fleet: Fleet) -> None:
    said = once("large")
    assert "20 MB, 2 hosts" in said
    took = r"^released: [\d.]+ s, at most [12]?\d?\d MB of memory .*, packed 1 times$"
    assert re.search(took, said, re.MULTILINE), said
    assert re.search(r"^of that sent: [\d.]+ s, to 2 of 2 at once$", said, re.MULTILINE), said
    assert re.search(r"^scp -r of the same to all at once: [\d.]+ s$", said, re.MULTILINE), said
