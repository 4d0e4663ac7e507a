"""How this clone reaches its machines: a key, their host keys, and an ssh config."""

import os
import pwd
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from uwsgi_consul_fleet import lab
from uwsgi_consul_fleet.lab.base import USER
from uwsgi_consul_fleet.lab.host import LabError, run, write

if TYPE_CHECKING:
    from uwsgi_consul_fleet.lab.machines import Machine

KEY = lab.FOLDER / "id_ed25519"
KNOWN_HOSTS = lab.FOLDER / "known_hosts"


def key() -> str:
    """This clone's public key, made at the first call."""
    lab.FOLDER.mkdir(exist_ok=True)
    _ensure_key(KEY, "uwsgi-consul-fleet lab")
    return KEY.with_suffix(".pub").read_text()


def host_key(root: Path) -> None:
    """Give a machine a host key before it boots, so that nobody has to trust on first use."""
    _ensure_key(root / "etc/ssh/ssh_host_ed25519_key", "")


def _ensure_key(path: Path, comment: str) -> None:
    if not path.exists() or not path.with_suffix(".pub").exists():
        path.unlink(missing_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)


def record(machines: Iterable["Machine"]) -> None:
    """Write ssh_config and known_hosts for the machines that are up; remove them for none."""
    listed = sorted(machines, key=lambda machine: machine.name)
    if not listed:
        lab.SSH_CONFIG.unlink(missing_ok=True)
        KNOWN_HOSTS.unlink(missing_ok=True)
    else:
        write(KNOWN_HOSTS, "".join(_known_host(machine) for machine in listed))
        write(lab.SSH_CONFIG, config(listed))
    _give_back()


def _known_host(machine: "Machine") -> str:
    # Read from the overlay's upper layer: it is there also while the machine is down.
    public = machine.root.with_name("upper") / "etc/ssh/ssh_host_ed25519_key.pub"
    kind, data = public.read_text().split()[:2]
    return f"{machine.name},{machine.address},{machine.address_6} {kind} {data}\n"


def config(machines: Iterable["Machine"]) -> str:
    """The ssh config: only for these names, so that others are reached as always."""
    blocks = [
        f"Host {machine.name}\n"
        f"    HostName {machine.address}\n"
        f"    User {USER}\n"
        f'    IdentityFile "{KEY}"\n'
        "    IdentitiesOnly yes\n"
        f'    UserKnownHostsFile "{KNOWN_HOSTS}"\n'
        "    StrictHostKeyChecking yes\n"
        # OpenSSH's own first choice takes 0.1 s of computing for each connection.
        "    KexAlgorithms ^curve25519-sha256\n"
        for machine in machines
    ]
    return "# Written by invoke lab.up.\n" + "\n".join(blocks)


def _give_back() -> None:
    """What was written as root belongs to who called sudo."""
    user = os.environ.get("SUDO_UID")
    if user is None or not lab.FOLDER.exists():
        return
    account = pwd.getpwuid(int(user))
    for path in (lab.FOLDER, *lab.FOLDER.iterdir()):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def shell(name: str) -> list[str]:
    """The command line that opens a shell on a machine.

    :raises LabError: where no machine of that name runs
    """
    config = lab.SSH_CONFIG.read_text() if lab.SSH_CONFIG.exists() else ""
    names = re.findall(r"^Host (\S+)$", config, re.MULTILINE)
    if name not in names:
        there = ", ".join(names) or "none"
        raise LabError(f"no lab machine {name!r} runs (there is: {there}); invoke lab.up {name}")
    return ["ssh", "-F", str(lab.SSH_CONFIG), name]
