"""Debian packages that hosts of the fleet need, installed once for all machines of the tests.

Installing them on each costs a good part of the suite's CPU seconds, and so does the index that apt
makes of all packages at its first command. Tests of the lab, of the demo and of an installation
itself take machines without them.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from pathlib import Path

from lab_commands import SUDO, Lab

from uwsgi_consul_fleet.lab.host import CACHE, MACHINES, PREPARED_VARIABLE
from uwsgi_consul_fleet.languages import LANGUAGES

RELEASE = 12
# Of other languages those that are large; of the others is seen that a deploy installs them.
LARGE = [name for kind in ("rack", "php") for name in LANGUAGES[kind].packages]
PYTHONS = ("nftables", "uwsgi-core", "uwsgi-plugin-python3", "libcurl4", "python3-venv")
PACKAGES = shlex.join([*PYTHONS, "uwsgi-plugin-rack-ruby*", "uwsgi-plugin-php", *LARGE])
INSTALL = (
    f"apt-get -qq update && apt-get -qq -y --no-install-recommends install {PACKAGES} && "
    "apt-cache gencaches"
)
# What the machine on which they were installed has of its own, or would only take room.
ITS_OWN = (
    "etc/apt/apt.conf.d etc/hostname etc/hosts etc/machine-id etc/resolv.conf etc/ssh "
    "etc/systemd/network home root run tmp var/lib/dbus var/lib/systemd var/log var/tmp"
)
# usage: sh -c KEEP keep UPPER PLACE
KEEP = f"""
    set -eu
    mkdir -p "$2.part"
    cp -a "$1" "$2.part/{RELEASE}"
    cd "$2.part/{RELEASE}"
    rm -rf {ITS_OWN}
    find var/cache ! -type d ! -path 'var/cache/apt/*.bin' -delete
    mv "$2.part" "$2"
"""
PLACE = CACHE / f"tests-{hashlib.sha256((INSTALL + KEEP).encode()).hexdigest()[:12]}"


def environment() -> dict[str, str]:
    """With this, lab commands make machines that have them, where :func:`ensure` was called."""
    return {PREPARED_VARIABLE: str(PLACE)} if PLACE.exists() else {}


def ensure(checkout: Path) -> None:
    """Make it unless it is there, with a machine of this checkout; takes 30 s."""
    if PLACE.exists():
        return
    subprocess.run([*SUDO, "rm", "-rf", f"{PLACE}.part"], check=True)
    lab = Lab(checkout)
    lab.up(f"prepared:{RELEASE}")
    lab.ssh("prepared", f"sudo env DEBIAN_FRONTEND=noninteractive sh -c {shlex.quote(INSTALL)}")
    lab.ssh("prepared", "sync")
    lab.kill("prepared")
    (upper,) = MACHINES.glob(f"{lab.clone}/prepared/upper")
    subprocess.run([*SUDO, "sh", "-c", KEEP, "keep", str(upper), str(PLACE)], check=True)
    lab.down()
