"""Hooks of the operator's: executables in the folder hooks/ beside the inventory, which are run on
this machine before and after a run that changes something, and each switch of a host in it."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread, current_thread, main_thread

from uwsgi_consul_fleet.errors import FleetError

FOLDER = "hooks"
NAMES = ("before-deploy", "after-deploy", "after-failure", "before-switch", "after-switch")
PREFIX = "FLEET_"
GRACE = 2.0  # seconds to end in, for one that is asked to

Show = Callable[[str], None]


def find(folder: Path) -> dict[str, Path]:
    """The hooks of an operator's folder. Other folders in it may hold what they share.

    :raises FleetError: where something there would never be run
    """
    found, problems = {}, []
    for path in sorted((folder / FOLDER).glob("[!.]*")):
        if path.is_dir():
            continue
        if path.name not in NAMES:
            problems.append(f"{path}: is no hook; the hooks are {', '.join(NAMES)}")
        elif not os.access(path, os.X_OK):
            problems.append(f"{path}: is not executable: chmod +x {path}")
        found[path.name] = path.absolute()
    if problems:
        raise FleetError("\n".join([*problems, "nothing was changed"]))
    return found


class Hooks:
    """Those of a folder, which know what they are run for.

    ``interrupted`` is whether the run ends before its time: of what happens to its switches now,
    nobody is told, and nobody acts on what a hook says.
    """

    def __init__(self, folder: Path, timeout: float, about: Mapping[str, str]) -> None:
        """
        :param timeout: seconds for each
        :param about: variables of all of them, without the prefix
        :raises FleetError: see :func:`find`
        """
        self._there = find(folder)
        self._folder = folder
        self._timeout = timeout
        self._about = about
        self.interrupted = False
        # Whether they were asked to end.
        self._running: dict[subprocess.Popen[bytes], bool] = {}

    def run(self, name: str, show: Show, **about: str) -> str:
        """Run one, if it is there; returns why it did not end well, or ''.

        :param show: is told each line of its output
        :param about: more variables
        """
        if name not in self._there:
            return ""
        known = {**self._about, **about, "hook": name}
        variables = {f"{PREFIX}{key.upper()}": value for key, value in known.items()}
        process = reader = None
        try:
            with _ctrl_c_later():
                process = self._start(name, variables)
                self._running[process] = False
            reader = Thread(target=_follow, args=(process, name, show), daemon=True)
            reader.start()
            return self._wait(process, name)
        except OSError as error:
            return f"{name}: can't be started: {error}"
        finally:
            if process:
                _end(process)
                del self._running[process]
            if reader:
                reader.join(GRACE)

    def _start(self, name: str, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self._there[name])],
            cwd=self._folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for us to pass on.
            start_new_session=True,
        )

    def of_switch(self, name: str, show: Show, gone: BaseException, **about: str) -> str:
        """As :meth:`run`, in a thread that may end while it waits.

        :param gone: raised where nobody waits for the thread any more
        """
        self._go_on(gone)
        said = self.run(name, show, **about)
        self._go_on(gone)
        return said

    def _go_on(self, gone: BaseException) -> None:
        if self.interrupted:
            raise gone

    def _wait(self, process: subprocess.Popen[bytes], name: str) -> str:
        try:
            code = process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            return f"{name}: did not end within {self._timeout:g} s (hook_timeout)"
        if self._running[process]:
            return f"{name}: was interrupted"
        return f"{name}: exit status {code}" if code else ""

    def interrupt(self) -> None:
        """Ask those that run to end; a second time they have to."""
        self.interrupted = True
        for process, asked in [*self._running.items()]:
            self._running[process] = True
            _kill(process, signal.SIGKILL if asked else signal.SIGTERM)

    def end(self) -> None:
        """End those that still run."""
        self.interrupted = True
        for process in [*self._running]:
            _end(process)


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """What is started is known before an exception can tear its start apart."""
    if current_thread() is not main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _follow(process: subprocess.Popen[bytes], name: str, show: Show) -> None:
    assert process.stdout
    with suppress(ValueError, OSError):  # it was closed
        for line in process.stdout:
            show(f"{name}: {line.decode(errors='replace').rstrip()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started, also where it has ended itself."""
    if process.poll() is None:
        _kill(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    _kill(process, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # another user's, by sudo
        process.wait(GRACE)


def _kill(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class Frame:
    """The hooks around a run: before its first change, and where that was let, at its end."""

    def __init__(self, hooks: Hooks, show: Show) -> None:
        self.hooks = hooks
        self._show = show
        self._about: dict[str, str] = {}
        self.asks = self.begun = False

    def begin(self, **about: str) -> str:
        """Returns why it must not begin, or ''.

        :param about: variables for both
        """
        self._about, self.asks = about, True
        refused = self.hooks.run("before-deploy", self._show, **about)
        self.asks, self.begun = False, not refused
        return refused

    def end(self, outcome: str, **about: str) -> None:
        """:param outcome: ok, failed or interrupted"""
        if not self.begun:
            return
        self.begun = False
        name = "after-failure" if outcome in ("failed", "interrupted") else "after-deploy"
        if why := self.hooks.run(name, self._show, **self._about, outcome=outcome, **about):
            self._show(why)
