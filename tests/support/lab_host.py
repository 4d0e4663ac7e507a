"""A host within this one for a lab that is killed, and what is killed there."""

import hashlib
import subprocess
import sys
from pathlib import Path

from consul_processes import until
from lab_commands import SUDO, Lab

REAPER = "import signal as s; s.signal(s.SIGCHLD, s.SIG_IGN)\nwhile True: s.pause()"


class Host:
    """A host of its own within this one; only the cached base trees are the same."""

    SETUP = """
        set -e
        mount --make-rprivate /
        # This network's own /sys, with the control groups that the first one has.
        mount -t tmpfs none /mnt
        mkdir /mnt/cgroup
        mount --rbind /sys/fs/cgroup /mnt/cgroup
        mount -t sysfs sysfs /sys
        mount --rbind /mnt/cgroup /sys/fs/cgroup
        umount --recursive /mnt
        # Where systemd runs, it knows nothing of this host: let nobody find it.
        if [ -d /run/systemd/system ]; then
            cp -rL /run/systemd/resolve /mnt 2>/dev/null || true
            mount -t tmpfs none /run/systemd
            if [ -d /mnt/resolve ]; then mv /mnt/resolve /run/systemd; fi
        fi
        # Machines of the first host come and go: none of them is seen here.
        grep -o ' /var/lib/uwsgi-consul-fleet/[^ ]*' /proc/mounts | xargs -r umount || true
        mkdir -p /run/uwsgi-consul-fleet /var/lib/uwsgi-consul-fleet
        mount -t tmpfs none /run/uwsgi-consul-fleet
        mount --bind "$1" /var/lib/uwsgi-consul-fleet
        echo 0 >/proc/sys/net/ipv4/ip_forward
        ip link set lo up
        echo ready
        exec "$2" -c "$3"
    """
    TRACES = """
        PATH=$PATH:/usr/sbin:/sbin
        ip -oneline link | cut -d ' ' -f 2
        ip -oneline address | awk '{print $2, $4}'
        ip route show table all | sort
        ip rule
        ip netns
        nft list ruleset
        sysctl -a 2>/dev/null | grep 'net[.]ipv4[.].*forwarding\\|ip_forward '
        cut -d ' ' -f 1,2,3 /proc/mounts
        for folder in /proc/[0-9]*; do
            tr '\\0' ' ' <"$folder/cmdline" && echo
        done 2>/dev/null | grep -E '[n]spawn|[a]pt-cacher|[s]ystemd|[s]shd|[d]bus'
        find /var/lib/uwsgi-consul-fleet -mindepth 2
        for id; do find /sys/fs/cgroup -maxdepth 2 -name "uwsgi-consul-fleet-$id-*"; done
    """

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self._boot()

    def _boot(self) -> None:
        command = [*SUDO, "unshare", "--fork", "--pid", "--mount-proc", "--mount", "--net"]
        setup = ["sh", "-c", self.SETUP, "sh", str(self.disk), sys.executable, REAPER]
        self.process = subprocess.Popen(
            [*command, "--kill-child", "--", *setup],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == "ready\n", said
        self.first_pid = self.process.pid
        while below := children(self.first_pid):
            self.first_pid = int(below[0])

    def off(self) -> None:
        """Every process is killed at once, and all that was in memory is gone."""
        subprocess.run([*SUDO, "kill", "-KILL", str(self.first_pid)], check=True)
        self.process.wait()

    def reboot(self) -> None:
        self.off()
        self._boot()

    def lab(self, checkout: Path, **environment: str) -> Lab:
        spaces = [f"--target={self.first_pid}", "--pid", "--mount", "--net"]
        inside = [*SUDO, "nsenter", *spaces, f"--wdns={checkout}", "--"]
        return Lab(checkout, *inside, **environment)

    def traces(self, *labs: Lab) -> str:
        """All that a lab could leave behind on this host."""
        ids = [clone_id(each) for each in labs]
        return self.lab(Path("/")).run("sh", "-c", self.TRACES, "sh", *ids).stdout

    def forwards(self) -> bool:
        forward = "cat /proc/sys/net/ipv4/ip_forward"
        return self.lab(Path("/")).run("sh", "-c", forward).stdout == "1\n"


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def clone_id(lab: Lab) -> str:
    return hashlib.sha256(str(lab.checkout).encode()).hexdigest()[:8]


def killed(lab: Lab, moment: float, group: bool, *words: str) -> None:
    process = lab.start(sys.executable, "-m", "uwsgi_consul_fleet.lab", *words)
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        if group:
            subprocess.run([*SUDO, "kill", "-KILL", "--", f"-{process.pid}"], check=True)
        else:
            kill_python(process)
        process.communicate()


def kill_python(process: subprocess.Popen[str]) -> None:
    """Not the nsenter in front of it, which would leave it running."""
    pid = process.pid

    def is_python() -> bool:
        nonlocal pid
        if Path(f"/proc/{pid}/cmdline").read_text().startswith(sys.executable):
            return True
        # The nsenter may not have come so far that there is one.
        pid = int((children(pid) or [pid])[0])
        return False

    until(is_python, "python runs")
    subprocess.run([*SUDO, "kill", "-KILL", str(pid)], check=True)


def kill_up(lab: Lab, moment: float, *, group: bool, mended_by_up: bool) -> None:
    """Kill `lab.up drakar`, which begins with no machine, and clear up.

    :param moment: seconds after its start
    :param group: its whole process group, not the one process alone
    :param mended_by_up: not only by down, which comes in any case
    """
    killed(lab, moment, group, "up", "drakar")
    if mended_by_up:
        lab.up("drakar")
        assert lab.ssh("drakar", "hostname").stdout == "drakar\n"
    lab.down()
