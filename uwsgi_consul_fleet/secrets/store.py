"""Where the secrets of a fleet are: a file beside its inventory, or with a team's own commands."""

import fcntl
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.inventory.vault import FOLDER, SERVERS, Vault
from uwsgi_consul_fleet.secrets.document import Secrets

FILE = "secrets.json"

_known: dict[Vault, Secrets | None] = {}  # read once in a process
_one_at_a_time = Lock()


def load(of: Host | Vault) -> Secrets | None:
    """The secrets, as this process read or wrote them first; None where there are none yet, and
    where Consul is not the fleet's.

    :raises FleetError: where they can't be read
    """
    vault = of.vault if isinstance(of, Host) else of
    with _one_at_a_time:  # hosts come here side by side
        if vault not in _known:
            _known[vault] = _read(vault) if vault.name else None
        return _known[vault]


def forget(vault: Vault) -> None:
    """Have :func:`load` read them again: another run may have replaced them."""
    with _one_at_a_time:
        _known.pop(vault, None)


def propose(vault: Vault, secrets: Secrets) -> None:
    """Have :func:`load` answer these in this process, before they are kept: who holds the lock
    shows what Consul will know by and by, and what it knows now where it does not."""
    if vault.name:
        _known[vault] = secrets


def save(vault: Vault, secrets: Secrets, before: Secrets | None) -> None:
    """Keep them.

    :param before: what they take the place of; None for nothing
    :raises FleetError: where they can't be written, or there is something else meanwhile, which
        :func:`load` answers from now on
    """
    with _one_at_a_time, _locked(vault):
        now = _read(vault)
        if now == before:
            _write(vault, secrets)
            # By a command, somebody else on another machine may have come between.
            now = _read(vault)
            if now is None:
                raise FleetError(
                    f"{place(vault)}: it does not print what secrets_save was given; no host was "
                    "changed"
                )
        _known[vault] = now
    if now != secrets:
        raise FleetError(
            f"{place(vault)}: somebody else has just changed them; run it again, and it takes those"
        )


def note(vault: Vault, servers: Iterable[str]) -> None:
    """Write down whose they are: a fleet without a name finds them by it when its first server is
    another one. What can't be written is no reason to stop."""
    if vault.load:
        return  # a command finds them by FLEET
    file, text = _file(vault).with_name(SERVERS), "".join(f"{name}\n" for name in servers)
    with suppress(OSError):
        if not file.exists() or file.read_text() != text:
            new = file.with_name(f".{SERVERS}.new")
            new.write_text(text)
            new.replace(file)


def place(vault: Vault) -> str:
    """Where they are, in words for people."""
    if vault.load:
        return f"secrets_load ({vault.load}) with FLEET={vault.name}"
    return str(_file(vault))


def _file(vault: Vault) -> Path:
    return vault.folder / FOLDER / vault.name / FILE


def _read(vault: Vault) -> Secrets | None:
    if vault.load:
        text = _run("secrets_load", vault.load, vault)
        return Secrets.parse(text, place(vault)) if text.strip() else None
    file = _file(vault)
    try:
        with file.open() as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                raise FleetError(
                    f"{file}: others on this machine may read it: chmod 600 {file}; nothing was "
                    "changed"
                )
            return Secrets.parse(opened.read(), str(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FleetError(f"{file}: {error}; nothing was changed") from error


def _write(vault: Vault, secrets: Secrets) -> None:
    if vault.save:
        _run("secrets_save", vault.save, vault, secrets.to_text())
        return
    file = _file(vault)
    new = file.with_name(f".{FILE}.new")
    try:
        with suppress(FileNotFoundError):
            new.unlink()  # of a run that was interrupted
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secrets.to_text())
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)
        _sync(file.parent)
    except OSError as error:
        raise FleetError(f"{file}: {error}; what was there stays") from error


@contextmanager
def _locked(vault: Vault) -> Iterator[None]:
    """Nobody else on this machine saves them meanwhile."""
    folder = _file(vault).parent
    try:
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, exist_ok=True)
            each.chmod(0o700)
        ignore = folder.parent / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FleetError(f"{folder}: {error}; nothing was changed") from error
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _sync(folder: Path) -> None:
    """Put down to the disk that its files are called so."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _run(setting: str, command: str, vault: Vault, given: str | None = None) -> str:
    """What a command of the team's prints.

    :param given: its standard input
    """
    try:
        result = subprocess.run(
            ["sh", "-c", command],
            cwd=vault.folder,
            env={**os.environ, "FLEET": vault.name},
            input=given or "",
            capture_output=True,
            text=True,
            check=False,
        )
    except (OSError, ValueError) as error:
        raise FleetError(f"{setting}: {error}; nothing was changed") from None
    if result.returncode:
        words = result.stderr.strip().splitlines()
        raise FleetError(
            f"{setting}: {command}: ended with {result.returncode}"
            f"{': ' + words[-1] if words else ''}; nothing was changed"
        )
    return result.stdout
