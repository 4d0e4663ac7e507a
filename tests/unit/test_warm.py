"""Commands that are forks of a process which has imported what they need."""

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import warm
from checkout import BIN

pytestmark = pytest.mark.takes(9)

TASKS = """
import os, sys, threading
from invoke import task

@task
def show(context, word):
    print(os.getcwd(), sys.argv, sys.path[0], os.environ["COLUMNS"], sys.stdout.isatty())
    print(word, threading.active_count())
    print("aside", file=sys.stderr)

@task
def fail(context):
    sys.exit("it fails")

@task
def die(context):
    os.kill(os.getpid(), 9)
"""
# What pyinfra's command line has of ours in it is a matter of when what was imported.
DEPLOY = """
from pyinfra_cli import cli
print(__file__, cli.connect_all.__qualname__)
"""
ENVIRONMENT = {**os.environ, "COLUMNS": "99"}


@pytest.fixture(scope="module", autouse=True)
def warm_commands() -> Iterator[None]:
    with warm.commands():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/__main__.py").write_text(DEPLOY)
    return tmp_path


def both(
    folder: Path, *words: str
) -> tuple[subprocess.CompletedProcess[str] | None, subprocess.CompletedProcess[str]]:
    """A command that is a fork, and one that is started."""
    command = [str(BIN / words[0]), *words[1:]]
    started = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    return warm.run(command, folder, ENVIRONMENT), started


@pytest.mark.parametrize(
    "words",
    [
        ("invoke", "show", "one two"),
        ("invoke", "fail"),
        ("invoke", "no-such-task"),
        ("pyinfra", "-y", "@local", "deploy/"),
        ("pyinfra", "@local", "none.py"),
    ],
)
def test_it_is_as_if_it_was_started(folder: Path, words: tuple[str, ...]) -> None:
    fork, started = both(folder, *words)
    assert fork
    assert (fork.args, fork.returncode) == (started.args, started.returncode)
    assert (fork.stdout, fork.stderr) == (started.stdout, started.stderr)
    assert fork.stdout + fork.stderr
    assert words[-1] != "deploy/" or "first_meet" in fork.stdout


def test_one_that_is_killed(folder: Path) -> None:
    fork, started = both(folder, "invoke", "die")
    assert fork
    assert fork.returncode == started.returncode == -signal.SIGKILL


def test_many_at_once(folder: Path) -> None:
    def show(number: int) -> bool:
        words = [str(BIN / "invoke"), "show", str(number)]
        fork = warm.run(words, folder, ENVIRONMENT)
        return bool(fork) and f"\n{number} 1\n" in fork.stdout

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(show, range(8)))


def test_what_may_depend_on_where_it_is_is_started(folder: Path) -> None:
    show = [str(BIN / "invoke"), "show", "it"]
    assert warm.run(show, folder, ENVIRONMENT)
    assert warm.run(show, folder, {**ENVIRONMENT, "PYTEST_CURRENT_TEST": "another"})
    assert not warm.run(show, folder, {**ENVIRONMENT, "COLUMNS": "100"})
    assert not warm.run([str(BIN / "uv"), "--version"], folder, ENVIRONMENT)
    (folder / warm.PACKAGE).mkdir()
    assert not warm.run(show, folder, ENVIRONMENT)
