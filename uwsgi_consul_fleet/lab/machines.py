"""Lab machines: an overlay on a base tree, booted by systemd-nspawn."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from socket import create_connection
from typing import Any

from uwsgi_consul_fleet.lab import CLONE, access, base, cgroups, network, proxy
from uwsgi_consul_fleet.lab.host import (
    CLONE_ID,
    MACHINES,
    PREPARED,
    LabError,
    end,
    inside,
    is_mounted,
    processes,
    run,
    spawn,
    write,
)
from uwsgi_consul_fleet.lab.network import DEFAULT, LENGTH_6, Network, ipv6

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")
BOOT_TIMEOUT = 120  # seconds until ssh answers; a dozen that boot side by side took more than 60
SYSTEMD = Path("/run/systemd/system")  # there where systemd is this host's init
CHECKOUTS = MACHINES.with_name("checkouts")  # which clone is where
CERTIFICATES = Path("/usr/local/share/ca-certificates")
# As on the smallest machine that can be rented; some dozen share this host's cores.
ONE_CORE = "[Manager]\nDefaultEnvironment=GOMAXPROCS=1\n"


@dataclass(frozen=True)
class Machine:
    """A machine of a clone, running or not."""

    name: str
    release: int
    address: str
    clone: str = CLONE_ID
    network: str = DEFAULT
    prepared: str = PREPARED

    @property
    def folder(self) -> Path:
        return MACHINES / self.clone / self.name

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def id(self) -> str:
        return f"{self.clone}-{self.name}"

    @property
    def address_6(self) -> str:
        return str(ipv6(IPv4Address(self.address)))

    @property
    def link(self) -> str:
        """Its cable's end on this host; a long name is an alternative one of the link."""
        return f"vb-ucf-{self.id}"

    def pids(self) -> list[int]:
        """Of its systemd-nspawn: a machine runs if and only if there is one."""
        return processes("systemd-nspawn", f"--directory={self.root}")


def parse(word: str) -> tuple[str, dict[str, Any]]:
    """Take ``NAME[:RELEASE][@NETWORK]`` apart, into the name and what is asked for beside it.

    :raises LabError: where it is nothing of the kind
    """
    rest, at, plugged = word.partition("@")
    if at and not network.NAME.fullmatch(plugged):
        raise LabError(
            f"{word}: {plugged!r} is not a name for a network: up to 11 lower-case letters and "
            "digits, with a letter first"
        )
    name, colon, release = rest.partition(":")
    if not NAME.fullmatch(name):
        raise LabError(
            f"{name!r} is not a name for a machine: 2 to 32 lower-case letters, digits and "
            "hyphens, with a letter first"
        )
    if colon and release not in map(str, base.RELEASES):
        allowed = ", ".join(map(str, base.RELEASES))
        raise LabError(f"{word}: {release!r} is not a Debian release of the lab: {allowed}")
    asked: dict[str, Any] = {"release": int(release)} if colon else {}
    return name, {**asked, "network": plugged} if at else asked


def known(clone: str = CLONE_ID) -> list[Machine]:
    """The machines of a clone ('*' for all clones); a half-made one is none."""
    found = []
    for path in sorted(MACHINES.glob(f"{clone}/*/machine.json")):
        try:
            said = json.loads(path.read_text())
            place = (said["name"], said["release"], said["address"], said["clone"])
            newer = (said.get("network", DEFAULT), said.get("prepared", ""))
            found.append(Machine(*place, *newer))
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, LookupError, TypeError, ValueError):
            print(f"ignoring {path}: damaged", file=sys.stderr, flush=True)
    return found


def anybody_runs() -> bool:
    """Of any clone; also one whose file is damaged, or written by another version of this."""
    folders = MACHINES.glob("*/*")
    return any(Machine(folder.name, 0, "", folder.parent.name).pids() for folder in folders)


def free_address(addresses: IPv4Network, taken: set[str]) -> str:
    """:raises LabError: where the network is full"""
    for host in list(addresses.hosts())[9:]:
        if str(host) not in taken:
            return str(host)
    raise LabError(f"no free address in {addresses}: remove machines with invoke lab.down")


def save(machine: Machine) -> None:
    write(CHECKOUTS / machine.clone, f"{CLONE}\n")
    write(machine.folder / "machine.json", json.dumps(asdict(machine)) + "\n")


def checkout(machine: Machine) -> Path | None:
    """Where the clone is to which it belongs; it may be gone."""
    file = CHECKOUTS / machine.clone
    return Path(file.read_text().strip()) if file.exists() else None


def start(machine: Machine, plugged: Network, proxy_url: str) -> None:
    """Mount, prepare and boot a machine that does not run; returns before it answers."""
    kill(machine)
    shutil.rmtree(machine.folder / "old", ignore_errors=True)
    for name in ("upper", "work", "root"):
        (machine.folder / name).mkdir(parents=True, exist_ok=True)
    layers = f"lowerdir={base.layers(machine.release, machine.prepared)}"
    layers += f",upperdir={machine.folder}/upper,workdir={machine.folder}/work"
    run("mount", "-t", "overlay", f"uwsgi-consul-fleet-{machine.id}", "-o", layers, machine.root)
    _prepare(machine, plugged, proxy_url)
    _boot(machine, plugged)


def _prepare(machine: Machine, plugged: Network, proxy_url: str) -> None:
    """What a cloud's first boot does: name, address, user's key, host key."""
    root = machine.root
    write(root / "etc/hostname", f"{machine.name}\n")
    write(root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {machine.name}\n")
    if (root / "etc/machine-id").read_text().strip() in ("", "uninitialized"):
        write(root / "etc/machine-id", f"{secrets.token_hex(16)}\n", 0o444)
    write(
        root / "etc/systemd/network/10-lab.network",
        f"[Match]\nName=host0\n\n[Network]\n"
        f"Address={machine.address}/{plugged.addresses.prefixlen}\nGateway={plugged.gateway.ip}\n"
        f"Address={machine.address_6}/{LENGTH_6}\n",
    )
    write(root / "etc/systemd/system.conf.d/80-lab.conf", ONE_CORE)
    _mask_generators(root)
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    shutil.copyfile(base.resolver(), root / "etc/resolv.conf")
    write(root / "etc/apt/apt.conf.d/80-lab-proxy", proxy.configuration(proxy_url))
    _trust_certificates(root)
    access.host_key(root)
    authorized = root / f"home/{base.USER}/.ssh/authorized_keys"
    write(authorized, access.key(), 0o600)
    run("chroot", root, "chown", "-R", f"{base.USER}:", f"/home/{base.USER}/.ssh")


def _mask_generators(root: Path) -> None:
    """They run at each daemon-reload, and find nothing in a container whose packages all have units
    of systemd's."""
    masked = root / "etc/systemd/system-generators"
    masked.mkdir(exist_ok=True)
    for path in (root / "usr/lib/systemd/system-generators").glob("systemd-*"):
        if not (masked / path.name).is_symlink():
            (masked / path.name).symlink_to("/dev/null")


def _trust_certificates(root: Path) -> None:
    """Authorities that this host trusts beyond Debian's: its proxies need them inside too."""
    target = root / str(CERTIFICATES).lstrip("/")
    trusted = (root / "etc/ssl/certs/ca-certificates.crt").read_bytes()
    missing = [p for p in CERTIFICATES.glob("*.crt") if p.read_bytes().strip() not in trusted]
    for path in missing:
        shutil.copyfile(path, target / path.name)
    if missing:
        run("chroot", root, "update-ca-certificates")


def _boot(machine: Machine, plugged: Network) -> None:
    command = [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        # Nothing on a lab machine has to survive a power cut of this host.
        "--suppress-sync=yes",
        f"--directory={machine.root}",
        f"--machine=ucf-{machine.id}",
        f"--hostname={machine.name}",
        f"--network-bridge={plugged.bridge}",
        "--boot",
    ]
    # systemd since 256 refuses to boot on the old cgroup hierarchies alone.
    unified = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": str(int(machine.release >= 13))}
    log = machine.folder / "console.log"
    spawn([*_in_own_group(machine), *command], log, env={**os.environ, **unified})


def _in_own_group(machine: Machine) -> list[str]:
    """The start of a command line that puts what follows into a control group of its own."""
    if SYSTEMD.exists():
        # It ends with a power cut, also where its nspawn was killed: else systemd waits
        # 90 s for processes that nobody told to end.
        properties = ["--property=Delegate=yes", "--property=KillSignal=SIGKILL"]
        name = f"--unit={unit(machine)}"
        return ["systemd-run", "--quiet", "--collect", "--pipe", name, *properties, "--"]
    joins = " ".join(f"echo $$ >'{f}/cgroup.procs';" for f in cgroups.create(machine.id))
    return ["sh", "-c", f'{joins} exec "$@"', "sh"]


def unit(machine: Machine) -> str:
    return f"uwsgi-consul-fleet-{machine.id}.service"


def wait(machine: Machine) -> None:
    """Until ssh answers.

    :raises LabError: with the end of the console, where the machine went away or takes too long
    """
    deadline = time.monotonic() + BOOT_TIMEOUT
    grace = time.monotonic() + 5  # until its process must be there
    while not _answers(machine.address):
        now = time.monotonic()
        if now > deadline or (now > grace and not machine.pids()):
            state = "does not answer" if machine.pids() else "ended"
            log = (machine.folder / "console.log").read_text(errors="replace")
            lines = "\n".join(f"    {line}" for line in log.strip().splitlines()[-10:])
            raise LabError(f"{machine.name} {state}; try invoke lab.rebuild; its console:\n{lines}")
        time.sleep(0.05)


def _answers(address: str) -> bool:
    try:
        with create_connection((address, 22), timeout=1) as connection:
            connection.settimeout(5)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def kill(machine: Machine) -> None:
    """A power cut; also clears away what is left of a machine that died otherwise."""
    if SYSTEMD.exists():
        subprocess.run(["systemctl", "stop", unit(machine)], capture_output=True, check=False)
    end(machine.pids())
    # What a command that was killed has started, which would go on writing below the next mount.
    end(inside(machine.root))
    cgroups.remove(machine.id)
    # Its open connections would keep it, and its name, for minutes.
    subprocess.run(["ip", "link", "delete", machine.link], capture_output=True, check=False)
    unmount(machine.root)
    # With these left, the nspawn of Debian 13 refuses to start the machine again.
    for folder in Path("/run/systemd/nspawn").glob(f"*/ucf-{machine.id}"):
        unmount(folder)
        folder.rmdir()


def unmount(folder: Path) -> None:
    """Also several mounts on top of each other, and while the last process is still going."""
    for _attempt in range(100):
        if not is_mounted(folder):
            return
        if subprocess.run(["umount", str(folder)], capture_output=True).returncode:
            time.sleep(0.05)
    run("umount", "--lazy", folder)


def remove(machine: Machine) -> None:
    """Turn it off and delete its disk."""
    kill(machine)
    # First what makes it a machine: an interrupted removal leaves none that could start.
    (machine.folder / "machine.json").unlink(missing_ok=True)
    if machine.folder.exists():
        shutil.rmtree(machine.folder)


def clear(machine: Machine) -> None:
    """Turn it off and empty its disk."""
    kill(machine)
    old = machine.folder / "old"
    shutil.rmtree(old, ignore_errors=True)
    # In one step: an interruption leaves no machine with half of its disk.
    if (machine.folder / "upper").exists():
        (machine.folder / "upper").rename(old)
    shutil.rmtree(old, ignore_errors=True)
