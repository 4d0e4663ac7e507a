"""Debian packages, downloaded once for all machines: an apt-cacher-ng of the lab's own."""

import os
import pwd
import time
from socket import create_connection

from uwsgi_consul_fleet.lab.host import CACHE, RUN, LabError, end, processes, spawn, write

PORT = 3142
USER = "apt-cacher-ng"
CONFIG = RUN / "apt-cacher-ng"
LOG = RUN / "apt-cacher-ng.log"
STORE = CACHE / "packages"


def up(address: str) -> str:
    """Start it unless it runs; returns its URL, or '' where it can't run."""
    url = f"http://{address}:{PORT}"
    if _pids() and _answers(address):
        return url
    down()
    if _answers(address):
        print(
            f"packages: no cache: another program has {address}:{PORT}; machines download directly"
        )
        return ""
    _configure(address)
    try:
        command = ["/usr/sbin/apt-cacher-ng", "-c", str(CONFIG)]
        spawn(command, LOG, user=USER, group=USER, extra_groups=[])
        _wait(address)
    except LabError as error:
        print(f"packages: no cache ({error}); machines download directly")
        return ""
    print(f"packages: cached for all machines in {STORE}")
    return url


def _configure(address: str) -> None:
    log = STORE.with_name("packages-log")
    for folder in (STORE, log):
        folder.mkdir(parents=True, exist_ok=True)
        account = pwd.getpwnam(USER)
        os.chown(folder, account.pw_uid, account.pw_gid)
    settings = {
        "CacheDir": STORE,
        "LogDir": log,
        "Port": PORT,
        "BindAddress": address,  # the lab's bridge, and nobody else
        "SupportDir": "/usr/lib/apt-cacher-ng",
        "ForeGround": 1,
        "ExThreshold": 30,
    }
    write(CONFIG / "acng.conf", "".join(f"{key}: {value}\n" for key, value in settings.items()))


def _answers(address: str) -> bool:
    try:
        create_connection((address, PORT), timeout=1).close()
    except OSError:
        return False
    return True


def _wait(address: str) -> None:
    deadline = time.monotonic() + 5
    while not _answers(address):
        if not _pids() or time.monotonic() > deadline:
            last = LOG.read_text(errors="replace").strip()[-200:]
            raise LabError(f"apt-cacher-ng does not start: {last or 'it says nothing'}")
        time.sleep(0.02)


def _pids() -> list[int]:
    return processes("apt-cacher-ng", "-c", str(CONFIG))


def down() -> None:
    """Stop it; what it has stored stays."""
    end(_pids())
    while _pids():
        time.sleep(0.01)


def configuration(url: str) -> str:
    """The apt configuration of a machine that uses it."""
    return f'Acquire::http::Proxy "{url}";\n' if url else ""
