"""An application's own commands on this host: those that make a release ready (app_build), and
those that are for all hosts (app_release). They run as its user, in the release's environment.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from . import app_token, content, retire, store
from .says import ReleaseError, say
from .store import SHARED
from .told import told

# What release.json is called until the release is complete.
UNFINISHED = "unfinished.json"
SHOWN = 20  # lines of what a command printed that failed
GRACE = 10  # seconds that it has to end when its time is over
SHORT = 3  # characters of a secret that say nothing, and stand everywhere
KEPT = 200  # lines of what ran here
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# As operations/applications/environment.py writes it.
VARIABLE = re.compile(r'^(\w+)="((?:[^"\\]|\\.)*)"$', re.MULTILINE | re.DOTALL)
# By its user, who may have put links in the way. What a run that was killed began is begun anew.
SHARE = """
umask 027
if [ ! -e "$2" ] && [ ! -L "$2" ]; then
    mkdir -p "$(dirname "$2")"
    if [ -e "$1" ]; then
        rm -rf "$2.part"
        cp -R "$1" "$2.part"
        mv -T "$2.part" "$2"
    elif [ "$3" = folder ]; then
        mkdir "$2"
    fi
fi
"""


class Steps:
    """Runs commands in the folder of a release, where the application works."""

    def __init__(self, app: str, folder: Path, port: int, about: str) -> None:
        """
        :param folder: the release's
        :param port: of its first instance here
        :param about: JSON: ``root`` is the folder in it with which paths in settings begin,
            ``secrets`` the names of variables that nobody may see, ``timeout`` the seconds for
            each command
        """
        said = json.loads(about)
        self.folder = folder
        self.root = folder / said["root"]
        self._told = told(folder, port)
        self._timeout = float(said["timeout"])
        self.user = pwd.getpwnam(app)
        self._variables = _variables((folder / "environment").read_text())
        self._hidden = _hidden(self._variables, said["secrets"])

    def expect(self, key: str, command: str, show: bool = False) -> None:
        """Run a command of a setting.

        :param show: what it prints, as it comes; else the end of it where it fails
        :raises ReleaseError: where it fails, or takes too long
        """
        status, lines = self.run(["/bin/sh", "-c", command], show)
        if status == 0:
            return
        if status is None:
            how = f"took more than {self._timeout:g} s (app_step_timeout), and was ended"
        elif status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status}"
        told = "" if show else "".join(f"    {line}\n" for line in lines[-SHOWN:])
        raise ReleaseError(f"{told}{key}: {command!r} {how} on {os.uname().nodename}")

    def run(self, words: Sequence[str], show: bool = False) -> tuple[int | None, list[str]]:
        """The exit status of a program, None where it took too long, and what it printed."""
        lines: list[str] = []
        # Caches and the like: a service has no home.
        own = tempfile.mkdtemp(dir="/var/tmp")
        try:
            os.chown(own, self.user.pw_uid, self.user.pw_gid)
            process = subprocess.Popen(
                ["setpriv", "--no-new-privs", *words],
                cwd=self._told.work,
                env=self._environment(own),
                user=self.user.pw_uid,
                group=self.user.pw_gid,
                extra_groups=os.getgrouplist(self.user.pw_name, self.user.pw_gid),
                umask=0o022,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            assert process.stdout
            follow = (process.stdout, lines, show)
            reader = threading.Thread(target=self._follow, args=follow, daemon=True)
            reader.start()
            status = _end_of(process, self._timeout)
            reader.join(GRACE)  # not longer: a process in the background may hold it open
            return status, lines
        finally:
            shutil.rmtree(own, ignore_errors=True)

    def _environment(self, own: str) -> dict[str, str]:
        usual = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": own, "TMPDIR": own, "SHELL": "/bin/sh"}
        name = self.user.pw_name
        names = {"USER": name, "LOGNAME": name}
        # Its user has the application's name.
        found = {**usual, **names, **app_token.variables(name)}
        found |= {**self._told.variables, **self._variables}
        if (venv := self.folder / "venv").exists():
            found.update(VIRTUAL_ENV=str(venv), PATH=f"{venv}/bin:{found['PATH']}")
        return found

    def _follow(self, stream: IO[bytes], lines: list[str], show: bool) -> None:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            for value, name in self._hidden:
                line = line.replace(value, f"[{name}]")
            lines.append(line)
            del lines[:-SHOWN]
            if show:
                say(line)


def _end_of(process: subprocess.Popen[bytes], timeout: float) -> int | None:
    """Its exit status; None where its time was over. What it leaves in the background ends too."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _variables(text: str) -> dict[str, str]:
    """Those in the environment file of a release."""
    found = ((each.group(1), each.group(2)) for each in VARIABLE.finditer(text))
    return {name: re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL) for name, value in found}


def _hidden(variables: dict[str, str], secrets: Sequence[str]) -> list[tuple[str, str]]:
    """Lines of secrets' values with the names of these, long ones first."""
    named = ((line, name) for name in secrets for line in variables.get(name, "").splitlines())
    return sorted((each for each in named if len(each[0]) > SHORT), key=lambda x: -len(x[0]))


# --- app_build, app_shared -----------------------------------------------------------


def finish(app: str, generation: str, about: str) -> None:
    """Make a release complete that was unpacked here: what it shares with others, and its build.

    :param about: see Steps
    :raises ReleaseError: where that fails; nothing of the release stays
    """
    place = store.folder(app) / "releases" / generation
    if (place / "release.json").exists():  # made by a run that was taken for dead
        return
    os.nice(10)  # what serves comes first
    try:
        manifest = json.loads((place / UNFINISHED).read_text())
        fields, port = manifest["steps"], manifest["instances"][0]["port"]
        (place / content.AS_SENT).mkdir()
        top = content.top(place)
        # Where nothing is built in it no file changes: the same take no room.
        how = "--reflink=auto" if fields["build"] else "--link"
        subprocess.run(["cp", "-a", how, top, place / content.AS_SENT], check=True)
        steps = Steps(app, place, port, about)
        retire.give_back(app)
        for path in fields["shared"]:
            _share(steps, app, path)
        _build(steps, top, fields["build"])
    except (ReleaseError, OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(place, ignore_errors=True)
        raise ReleaseError(f"{error}; nothing of the release was kept") from None
    subprocess.run(["sync", "-f", place], check=False)
    (place / UNFINISHED).rename(place / "release.json")


def _share(steps: Steps, app: str, path: str) -> None:
    """Put a link to what all releases share into the place of a path of this one."""
    shared, mine = store.folder(app) / SHARED, steps.root / path
    if not shared.exists():
        shared.mkdir(0o750)
        os.chown(shared, steps.user.pw_uid, steps.user.pw_gid)
    target = shared / path
    kind = "folder" if path.endswith("/") else "file"
    words = ["/bin/sh", "-euc", SHARE, "share", str(mine), str(target), kind]
    status, lines = steps.run(words)
    if status != 0:
        raise ReleaseError(f"app_shared: {path}: {target} can't be made: {' '.join(lines)}")
    if mine.is_dir() and not mine.is_symlink():
        shutil.rmtree(mine)
    else:
        mine.unlink(missing_ok=True)
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.symlink_to(target)


def _build(steps: Steps, top: Path, commands: Sequence[str]) -> None:
    """The sources are the application's user's for as long as they are built, and root's again."""
    if not commands:
        return
    user = steps.user
    subprocess.run(["chown", "-hR", f"{user.pw_uid}:{user.pw_gid}", top], check=True)
    for command in commands:
        steps.expect("app_build", command)
    subprocess.run(["chown", "-hR", f"0:{user.pw_gid}", top], check=True)
    subprocess.run(["chmod", "-R", "u+rwX,g+rX,go-w,ug-s", top], check=True)


# --- app_release ---------------------------------------------------------------------


def once(app: str, generation: str, release: str, commands: str, about: str) -> None:
    """Run what a release does once for all hosts, unless it was done here: whoever began it may
    not know that it went well.

    :param release: its name and its content
    :param commands: JSON
    :param about: see Steps
    :raises ReleaseError: where one fails
    """
    file = store.folder(app) / "ran"
    before = file.read_text().splitlines() if file.exists() else []
    if release in before:
        say("app_release: went well here before, and does not run again")
        return
    retire.give_back(app)
    place = store.load(app, generation)
    steps = Steps(app, place.folder, place.instances[0].port, about)
    for command in json.loads(commands):
        say(f"app_release: {command}")
        steps.expect("app_release", command, show=True)
    store.write(file, "".join(f"{line}\n" for line in [*before, release][-KEPT:]))
