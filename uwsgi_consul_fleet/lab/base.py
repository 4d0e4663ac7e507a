"""The base tree of a Debian release: what a cloud image holds, and nothing of ours."""

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from uwsgi_consul_fleet.lab import proxy
from uwsgi_consul_fleet.lab.host import CACHE, LabError, locked, run, write

RELEASES = {11: "bullseye", 12: "bookworm", 13: "trixie"}
PACKAGES = "systemd,systemd-sysv,dbus,openssh-server,iproute2,sudo,ca-certificates,python3,netbase"
USER = "debian"
# Nothing that a container can't do or that nobody looks at.
MASKED = (
    "console-getty.service",
    "getty.target",
    "systemd-timesyncd.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "systemd-networkd-wait-online.service",
    "e2scrub_reap.service",
)
# What this starts dies with us, and what it mounts goes with it.
TOGETHER = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)


def folder(release: int) -> Path:
    return CACHE / f"base-{release}"


def layers(release: int, prepared: str) -> str:
    """What the disk of a machine lies upon, the uppermost first, as mount(8) takes it.

    :param prepared: the folder of what it has beside the base tree, '' for nothing
    """
    found = [Path(prepared) / str(release)] if prepared else []
    return ":".join(str(path) for path in [*found, folder(release)] if path.is_dir())


def ensure(release: int, proxy_url: str) -> None:
    """Make the base tree of a release (40 to 60 s), if it is not there.

    :param proxy_url: the package cache, or '' for none
    """
    tree = folder(release)
    with locked(f"base-{release}"):
        if tree.exists():
            return
        part = tree.with_name(f".{tree.name}.part")
        if part.exists():  # of a command that was killed
            shutil.rmtree(part)
        part.mkdir(parents=True)
        print(f"base: making Debian {release}, once for all machines; takes a minute")
        start = time.monotonic()
        _debootstrap(release, part, proxy_url)
        _customise(part, release)
        _warm_lists(part, proxy_url)
        part.rename(tree)
        print(f"base: made {tree} in {time.monotonic() - start:.0f} s")


def _debootstrap(release: int, tree: Path, proxy_url: str) -> None:
    archive = mirrors()["Debian"]
    http = {"http_proxy": proxy_url} if proxy_url and archive.startswith("http:") else {}
    words = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASES[release]]
    run(*TOGETHER, *words, tree, archive, env={**http, "DEBIAN_FRONTEND": "noninteractive"})


def _customise(tree: Path, release: int) -> None:
    write(tree / "etc/apt/sources.list", sources(release, mirrors()))
    write(tree / "etc/machine-id", "uninitialized\n")
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    write(
        tree / "etc/ssh/sshd_config.d/80-cloud.conf",
        "PasswordAuthentication no\nPermitRootLogin no\n",
    )
    run("chroot", tree, "useradd", "--create-home", "--shell", "/bin/bash", USER)
    write(tree / f"etc/sudoers.d/{USER}", f"{USER} ALL=(ALL) NOPASSWD:ALL\n", 0o440)
    for unit in MASKED:
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    run("chroot", tree, "systemctl", "--quiet", "enable", "systemd-networkd")


def _warm_lists(tree: Path, proxy_url: str) -> None:
    """Package lists as fresh as the image, as a provider's images have them."""
    shutil.copyfile(resolver(), tree / "etc/resolv.conf")
    options = ["-o", f"Acquire::http::Proxy={proxy_url}"] if proxy_url else []
    command = ["chroot", str(tree), "apt-get", "-qq", *options, "update"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        print("base: no package lists for now; machines fetch them")
    run("chroot", tree, "apt-get", "clean")


def resolver() -> Path:
    """This host's DNS servers; not a stub on its loopback, which machines can't reach."""
    upstream = Path("/run/systemd/resolve/resolv.conf")
    system = Path("/etc/resolv.conf")
    chosen = upstream if upstream.exists() and "127.0.0.53" in system.read_text() else system
    if not chosen.exists():
        raise LabError(f"no {chosen}: machines would have no DNS")
    return chosen


def purge() -> None:
    """Remove all base trees and stored packages."""
    proxy.down()
    if CACHE.exists():
        shutil.rmtree(CACHE)
        print(f"removed {CACHE}")


# --- Where packages come from: the mirror that this machine's apt uses already ---------------


def mirrors() -> dict[str, str]:
    """The addresses of ``Debian``'s archive and of ``Debian-Security``'s, where apt has that.

    :raises LabError: where apt has no Debian archive among its sources
    """
    words = ("--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages")
    return parse_mirrors(run("apt-get", "indextargets", *words))


def parse_mirrors(listing: str) -> dict[str, str]:
    """Pick the archives out of apt's list of `URI LABEL` lines."""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        uri, _, label = line.partition(" ")
        found.setdefault(label, uri)
    if "Debian" not in found:
        raise LabError(
            "apt on this machine has no Debian archive: run apt-get update and try again"
        )
    return found


def sources(release: int, found: Mapping[str, str]) -> str:
    """A sources.list for a machine of this release."""
    name, archive = RELEASES[release], found["Debian"]
    lines = [f"deb {archive} {name} main", f"deb {archive} {name}-updates main"]
    if security := found.get("Debian-Security"):
        lines.append(f"deb {security} {name}-security main")
    return "\n".join(lines) + "\n"
