"""The operator's hooks, as real programs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from consul_processes import until

from uwsgi_consul_fleet import hooks
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.hooks import NAMES, Frame, Hooks, find

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the thread that reads what a hook says."""
    monkeypatch.setattr(hooks, "GRACE", 10)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, *lines: str, mode: int = 0o755) -> Path:
        path = tmp_path / "hooks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(mode)
        return path

    return make


def run(folder: Path, name: str = "before-deploy", timeout: float = 20) -> tuple[str, list[str]]:
    said: list[str] = []
    return Hooks(folder, timeout, {}).run(name, said.append), said


def is_gone(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # whoever inherited it will look at it some time


def running(folder: Path) -> Iterator[Path]:
    """What of the hooks in a folder is among the processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                yield path


def test_what_is_not_there_refuses_nothing(tmp_path: Path) -> None:
    assert run(tmp_path) == ("", [])


def test_it_knows_what_it_is_run_for(tmp_path: Path, write: Write) -> None:
    told = 'echo "$FLEET_HOOK $FLEET_WHO $FLEET_OUTCOME $(pwd)"'
    write("after-deploy", told, "echo more >&2", "read nothing || true")
    said: list[str] = []
    hooks = Hooks(tmp_path, 20, {"who": "anna"})
    assert not hooks.run("after-deploy", said.append, outcome="ok")
    first = f"after-deploy: after-deploy anna ok {tmp_path}"
    assert said == [first, "after-deploy: more"]


def test_one_that_fails_says_how(tmp_path: Path, write: Write) -> None:
    write("before-deploy", "echo not today; exit 3")
    assert run(tmp_path) == ("before-deploy: exit status 3", ["before-deploy: not today"])


def test_one_that_can_not_be_started_refuses(tmp_path: Path, write: Write) -> None:
    write("before-deploy").write_text("#!/no/such/program\n")
    assert run(tmp_path)[0].startswith("before-deploy: can't be started: ")


@pytest.mark.parametrize("deaf", ["", "trap '' TERM"])
def test_one_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, write: Write, deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    wait = subprocess.Popen.wait

    def later(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        """Its time begins when it runs."""
        until(lambda: said, "it runs")
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", later)
    monkeypatch.setattr(hooks, "GRACE", 1)
    write("before-deploy", deaf, "sleep 60 & echo $!", "wait; sleep 60")
    begin = time.monotonic()
    refused = Hooks(tmp_path, 0.5, {}).run("before-deploy", said.append)
    assert refused == "before-deploy: did not end within 0.5 s (hook_timeout)"
    assert time.monotonic() - begin < 40
    until(lambda: is_gone(said[0].split()[-1]), "its child is gone")


def test_nobody_waits_for_what_may_not_be_ended(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sudo's, which is root's, for an operator who is not."""

    asked: list[int] = []

    def refuse(pid: int, number: int) -> None:
        asked.append(pid)
        raise PermissionError

    monkeypatch.setattr("os.killpg", refuse)
    monkeypatch.setattr(hooks, "GRACE", 0.1)
    write("before-deploy", "exec sleep 60")
    begin = time.monotonic()
    assert run(tmp_path, timeout=0.1)[0].startswith("before-deploy: did not end within")
    assert time.monotonic() - begin < 40
    os.kill(asked[0], signal.SIGKILL)


def test_nobody_waits_for_what_one_left_in_the_background(tmp_path: Path, write: Write) -> None:
    write("before-deploy", "sleep 60 & echo $!")
    begin = time.monotonic()
    refused, said = run(tmp_path)
    assert not refused
    assert time.monotonic() - begin < 40
    until(lambda: is_gone(said[0].split()[-1]), "its child is gone")


def test_ctrl_c_ends_it_and_nobody_acts_on_what_it_says(tmp_path: Path, write: Write) -> None:
    write("before-switch", "trap 'echo cleared; exit' TERM", "echo begun; sleep 60 & wait")
    said: list[str] = []
    hooks, ended = Hooks(tmp_path, 60, {}), list[str]()
    thread = Thread(target=lambda: ended.append(hooks.run("before-switch", said.append)))
    thread.start()
    until(lambda: said, "it runs")
    hooks.interrupt()
    thread.join(10)
    assert ended == ["before-switch: was interrupted"]
    assert said[-1] == "before-switch: cleared"
    assert hooks.interrupted


def test_a_switch_of_an_interrupted_run_goes_no_further(tmp_path: Path, write: Write) -> None:
    """Neither where its hook was running, nor where that was to begin."""
    write("before-switch", "echo begun $FLEET_APP")
    hooks, said = Hooks(tmp_path, 20, {}), list[str]()
    assert not hooks.of_switch("before-switch", said.append, SystemExit(), app="shop")
    for show in (lambda line: hooks.interrupt(), said.append):
        with pytest.raises(SystemExit):
            hooks.of_switch("before-switch", show, SystemExit(), app="shop")
    assert said == ["before-switch: begun shop"]


def test_a_second_ctrl_c_does_not_ask(tmp_path: Path, write: Write) -> None:
    write("before-switch", "trap '' TERM", "echo begun; while :; do sleep 1; done")
    said: list[str] = []
    hooks = Hooks(tmp_path, 60, {})
    thread = Thread(target=lambda: hooks.run("before-switch", said.append))
    thread.start()
    until(lambda: said, "it runs")
    hooks.interrupt()
    hooks.interrupt()
    thread.join(10)
    assert not thread.is_alive()


STARTS = """
import signal, subprocess
class Begun(subprocess.Popen):
    def __init__(self, *words, **how):
        super().__init__(*words, **how)
        signal.raise_signal(signal.SIGINT)
subprocess.Popen = Begun
"""


@pytest.mark.parametrize("moment", ["runs", "starts"])
def test_an_exception_ends_it(tmp_path: Path, write: Write, moment: str) -> None:
    """As Ctrl-C does in a command, whose main thread waits for it."""
    pid = tmp_path / "pid"
    write("before-deploy", f"echo $$ >{pid}.part; mv {pid}.part {pid}; sleep 60")
    words = (
        "from pathlib import Path; from uwsgi_consul_fleet.hooks import Hooks; "
        f"Hooks(Path({str(tmp_path)!r}), 60, {{}}).run('before-deploy', print)"
    )
    code = f"{STARTS if moment == 'starts' else ''}{words}"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    if moment == "runs":
        until(pid.exists, "it runs")
        process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    until(lambda: not list(running(tmp_path)), "it is gone")


class TestWhatIsThere:
    def test_hooks_and_what_they_share(self, tmp_path: Path, write: Write) -> None:
        paths = {name: write(name) for name in NAMES}
        (tmp_path / "hooks/lib").mkdir()
        (tmp_path / "hooks/.gitignore").touch()
        assert find(tmp_path) == paths

    def test_all_mistakes_are_told_at_once(self, tmp_path: Path, write: Write) -> None:
        plain, typo = write("before-deploy", mode=0o644), write("before_switch")
        (tmp_path / "hooks/after-deploy").symlink_to("nowhere")
        with pytest.raises(FleetError) as raised:
            find(tmp_path)
        text = str(raised.value)
        assert f"{plain}: is not executable: chmod +x {plain}" in text
        assert f"{typo}: is no hook; the hooks are before-deploy, after-deploy" in text
        assert f"{tmp_path}/hooks/after-deploy: is not executable" in text
        assert text.endswith("nothing was changed")


class TestFrame:
    @pytest.mark.parametrize(
        ("outcome", "said"),
        [
            ("ok", "after-deploy: ok r1 web1"),
            ("failed", "after-failure: failed r1 web1"),
            ("interrupted", "after-failure: interrupted r1 web1"),
        ],
    )
    def test_what_began_has_an_end(
        self, tmp_path: Path, write: Write, outcome: str, said: str
    ) -> None:
        for name in NAMES:
            write(name, 'echo "$FLEET_OUTCOME $FLEET_RELEASE $FLEET_CHANGED"')
        shown: list[str] = []
        frame = Frame(Hooks(tmp_path, 20, {}), shown.append)
        assert not frame.begin(release="r1")
        frame.end(outcome, changed="web1")
        frame.end("failed")
        assert shown == ["before-deploy:  r1", said]

    def test_what_was_refused_has_none(self, tmp_path: Path, write: Write) -> None:
        write("before-deploy", "exit 1")
        write("after-failure", "echo never")
        shown: list[str] = []
        frame = Frame(Hooks(tmp_path, 20, {}), shown.append)
        assert frame.begin() == "before-deploy: exit status 1"
        frame.end("failed")
        assert not shown

    def test_one_behind_it_that_fails_is_told(self, tmp_path: Path, write: Write) -> None:
        write("after-deploy", "exit 4")
        shown: list[str] = []
        frame = Frame(Hooks(tmp_path, 20, {}), shown.append)
        frame.begin()
        frame.end("ok")
        assert shown == ["after-deploy: exit status 4"]
