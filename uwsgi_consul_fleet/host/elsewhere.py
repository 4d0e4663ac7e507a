"""What an application could write to before its units kept it in its own folder.

Until a setting says what it needs (app_writable) it stays writable: that something is missing would
be seen by no health check.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

from . import store
from .says import ReleaseError, say
from .store import Release

# Where units that leave it open have the paths.
ELSEWHERE = (
    "# Here the host adds what it could write to before, where that was not asked: `writable`."
)
HARDENED = "ProtectSystem=strict"
LISTED = re.compile(r"^ReadWritePaths=(/.+)$", re.MULTILINE)
# What is its own in any case, or hidden from it.
APART = ("/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/home", "/root", "/run/user")  # noqa: S108
LIMIT = 300  # seconds; a million files take a busy disk 60
MANY = 50  # paths


def unit(release: Release, name: str) -> str:
    """The text of a unit of a release, as it is for this host."""
    text = (release.folder / "units" / name).read_text()
    if ELSEWHERE not in text:
        return text
    lines = (f"ReadWritePaths=-{path}" for path in noted(release.app))
    return text.replace(ELSEWHERE, "\n".join((ELSEWHERE, *lines)))


def noted(app: str) -> list[str]:
    """What it could write to elsewhere, as far as that was looked for."""
    file = _file(app)
    return file.read_text().splitlines() if file.exists() else []


def _file(app: str) -> Path:
    return store.folder(app) / "writable"


def prepare(new: Release, old: Release | None) -> None:
    """Make folders that its setting lists; without it, look for what it could write to so far.

    :raises ReleaseError: where a folder can't be made, or there is no end of it
    """
    text = _text(new)
    for path in LISTED.findall(text):
        _make(new.app, Path(path))
    if old is None or ELSEWHERE not in text or HARDENED in _text(old):
        return
    say(f"{new.app}: looks for what it can write to outside of its own folder")
    found = _look(new.app)
    store.write(_file(new.app), "".join(f"{path}\n" for path in found))
    if found:
        say(f"{new.app} can still write to {', '.join(found)}: list what it needs in app_writable")


def _text(release: Release) -> str:
    return (release.folder / "units" / f"{release.instances[0].port}.service").read_text()


def _make(app: str, path: Path) -> None:
    """Its user may have put a link in the way, which root must not follow."""
    if path.exists():
        return
    try:
        if path.resolve() != path:
            raise ReleaseError(f"app_writable: {path}: a link leads out of it")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(0o750)
        user = pwd.getpwnam(app)
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    except OSError as error:
        raise ReleaseError(f"app_writable: {path} can't be made: {error}") from None


def _look(app: str) -> list[str]:
    """Asked of the kernel as its user, whose groups and access lists count."""
    user = pwd.getpwnam(app)
    apart = [*APART, "/run/uwsgi-consul-fleet", str(store.folder(app) / store.SHARED)]
    if not any(Path(user.pw_dir).glob("*")):  # which versions before made by mistake
        apart.append(user.pw_dir)
    closed = " -o ".join(f"-path {path}" for path in apart).split()
    words = ["nice", "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]
    words += ["find", "/", "(", *closed, ")", "-prune", "-o"]
    words += ["(", "-type", "d", "-o", "-type", "f", ")", "-writable", "-prune", "-print0"]
    try:
        said = subprocess.run(words, capture_output=True, check=False, timeout=LIMIT).stdout
    except subprocess.TimeoutExpired:
        raise _undecided(app, f"was not found in {LIMIT} s") from None
    paths = [os.fsdecode(each) for each in said.split(b"\0") if each]
    found = [path for path in paths if _is_its(path, user.pw_uid)]
    if len(found) > MANY or not all(re.fullmatch(r"[\w/.@+-]+", path) for path in found):
        raise _undecided(app, f"is too much to go on with it: {', '.join(found[:5])} …")
    return found


def _undecided(app: str, why: str) -> ReleaseError:
    return ReleaseError(
        f"what {app} can write to outside of its folder {why}: list what it needs in app_writable, "
        "[] for nothing"
    )


def _is_its(path: str, user: int) -> bool:
    """What everybody can write to, only where something of it is there."""
    with suppress(OSError):
        state = os.lstat(path)
        if state.st_uid == user or not state.st_mode & stat.S_IWOTH:
            return True
        if stat.S_ISDIR(state.st_mode):
            return any(each.stat(follow_symlinks=False).st_uid == user for each in os.scandir(path))
    return False
