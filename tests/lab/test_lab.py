"""The lab's machines are what a cloud hands out, and nothing that happens to them is lasting.

What could disturb this host, or another clone's lab, happens on a host of its own: one
with a network, processes and mounts that nobody else sees.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SUDO, Lab

CACHE = Path(os.environ.get("UWSGI_CONSUL_FLEET_CACHE", "/var/cache/uwsgi-consul-fleet"))
DISKS = Path("/var/lib/uwsgi-consul-fleet/lab")
RUN = Path("/run/uwsgi-consul-fleet")
NO_BULLSEYE = pytest.mark.skipif(
    not (CACHE / "base-11").exists(), reason="no base tree of Debian 11 yet; making it takes long"
)
RELEASES = [12, 13, pytest.param(11, marks=NO_BULLSEYE)]
BOOT = "systemctl show --value -p UserspaceTimestampMonotonic -p InvocationID; cat /etc/machine-id"
REAPER = "import signal as s; s.signal(s.SIGCHLD, s.SIG_IGN)\nwhile True: s.pause()"

Checkouts = Callable[[], Path]


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
        done 2>/dev/null | grep -E 'nspawn|apt-cacher|systemd|sshd|dbus'
        find /var/lib/uwsgi-consul-fleet/lab -mindepth 1 2>/dev/null
        for id; do find /sys/fs/cgroup -maxdepth 2 -name "uwsgi-consul-fleet-$id-*"; done
    """

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self._boot()

    def _boot(self) -> None:
        command = [*SUDO, "unshare", "--fork", "--pid", "--mount-proc", "--mount", "--net"]
        setup = ["sh", "-c", self.SETUP, "sh", str(self.disk), sys.executable, REAPER]
        self.process = subprocess.Popen(
            [*command, "--kill-child", "--", *setup], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.first_pid = self.process.pid
        while below := self._children(self.first_pid):
            self.first_pid = int(below[0])

    def _children(self, pid: int) -> list[str]:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

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


def clone_id(lab: Lab) -> str:
    return hashlib.sha256(str(lab.checkout).encode()).hexdigest()[:8]


@pytest.fixture(scope="module")
def ship(copy_checkout: Checkouts) -> Iterator[Lab]:
    """A lab on this very host, beside whichever others there are."""
    found = Lab(copy_checkout())
    found.up("drakar")
    yield found
    found.down()


@pytest.fixture
def host(ship: Lab, tmp_path: Path) -> Iterator[Host]:
    found = Host(tmp_path)
    yield found
    found.off()


@pytest.fixture
def island(host: Host, copy_checkout: Checkouts) -> Iterator[Lab]:
    """A lab that is alone on a host of its own; it leaves no trace there."""
    found = host.lab(copy_checkout())
    before = host.traces(found)
    yield found
    found = host.lab(found.checkout)  # the host may have been rebooted
    found.down()
    assert host.traces(found) == before


# --- What a machine is ---------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_machine_is_what_a_cloud_hands_out(ship: Lab, release: int) -> None:
    name = f"debian{release}"
    ship.up(f"{name}:{release}")
    assert ship.status()[name] == {
        "name": name,
        "release": release,
        "address": ship.address(name),
        "state": "runs",
    }

    def on(command: str) -> list[str]:
        return ship.ssh(name, command).stdout.split()

    assert on("systemctl is-system-running --wait") == ["running"]
    assert on("cat /proc/1/comm") == ["systemd"]
    assert on("hostname; hostname --fqdn; sudo hostnamectl --static") == [name] * 3
    assert on("ip -4 -o address show dev host0 | awk '{print $4}'") == [f"{ship.address(name)}/24"]
    assert on(". /etc/os-release; echo $ID $VERSION_ID") == ["debian", str(release)]
    assert on("id -un; sudo -n id -u") == ["debian", "0"]
    ours = "uwsgi consul gcc cc make git pip3"
    assert ship.ssh(name, f"command -v {ours}", check=False).stdout == ""
    ship.down(name)
    assert name not in ship.status()


def test_ssh_takes_only_our_key_as_the_user_and_knows_the_host_key(ship: Lab) -> None:
    def refused(options: str) -> str:
        result = ship.ssh("drakar", "true", check=False, options=options)
        assert result.returncode == 255, result
        return result.stderr

    assert "Permission denied (publickey)" in refused("-l root")
    assert "Permission denied (publickey)" in refused("-o PubkeyAuthentication=no")
    assert "Host key verification failed" in refused("-o UserKnownHostsFile=/dev/null")
    daemon = ship.ssh("drakar", "sudo sshd -T").stdout.splitlines()
    assert {"permitrootlogin no", "passwordauthentication no"} <= set(daemon)
    config = ship.run("ssh", "-G", "-F", ".lab/ssh_config", "drakar").stdout.lower().splitlines()
    assert "stricthostkeychecking true" in config


def test_up_again_changes_nothing(ship: Lab) -> None:
    before = ship.ssh("drakar", BOOT).stdout
    begin = time.monotonic()
    result = ship.up("drakar")
    assert time.monotonic() - begin < 2
    assert f"drakar: runs, Debian 12, {ship.address('drakar')}" in result.stdout.splitlines()
    assert ship.ssh("drakar", BOOT).stdout == before


def test_rebuild_gives_the_first_state_back(ship: Lab) -> None:
    ship.ssh("drakar", "touch mine; sudo touch /etc/mine")
    address = ship.address("drakar")
    ship.rebuild("drakar")
    assert ship.ssh("drakar", "ls; ls /etc/mine", check=False).stdout == ""
    assert ship.address("drakar") == address


# --- Mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["up", "cheetah", "Drakar"], "'Drakar' is no name for a machine: 2 to 32 lower-case"),
        (["up", "cheetah", "../etc"], "'../etc' is no name for a machine: "),
        (["up", "cheetah", "c:10"], "'c' is no name for a machine: "),
        (["up", "cheetah:10"], "cheetah:10: '10' is no Debian release of the lab: 11, 12, 13"),
        (["up", "cheetah:"], "cheetah:: '' is no Debian release of the lab: 11, 12, 13"),
        (["up", "cheetah", "drakar:13"], "drakar is there with Debian 12; to change that: "),
        (["up", "cheetah:13", "cheetah:12"], "cheetah is named with Debian 13 and with Debian 12"),
        (["down", "drakar", "cheetah"], "no machine cheetah; there is: drakar"),
        (["rebuild", "drakar", "cheetah"], "no machine cheetah; there is: drakar"),
        (["kill", "drakar", "cheetah"], "no machine cheetah; there is: drakar"),
        (["down", "drakar", "--purge"], "--purge removes what all machines need: name none"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_touched(
    ship: Lab, words: list[str], line: str
) -> None:
    ship.up("drakar")
    before = ship.status(), ship.ssh("drakar", BOOT).stdout, (ship.config).read_text()
    result = ship.command(*words, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {line}"), result.stderr
    assert result.stderr.count("\n") == 1
    assert (ship.status(), ship.ssh("drakar", BOOT).stdout, (ship.config).read_text()) == before


def test_the_same_machine_twice_is_started_once(ship: Lab) -> None:
    result = ship.up("cheetah", "cheetah:12")
    assert result.stdout.count("cheetah: ") == 1
    ship.down("cheetah", "cheetah")


# --- Crashes -------------------------------------------------------------------------


def leave_a_mark(lab: Lab, name: str) -> None:
    lab.ssh(name, "echo here >mark; sync")


def has_mark(lab: Lab, name: str) -> bool:
    return lab.ssh(name, "cat mark", check=False).stdout == "here\n"


def nspawn_pids(lab: Lab, name: str) -> list[str]:
    root = DISKS / clone_id(lab) / name / "root"
    script = (
        'for p in /proc/[0-9]*; do tr "\\0" " " <$p/cmdline 2>/dev/null |'
        f' grep -q "^systemd-nspawn .*--directory={root} " && echo ${{p#/proc/}}; done; true'
    )
    return lab.run("sh", "-c", script).stdout.split()


def test_a_machine_whose_nspawn_is_killed_comes_back_with_its_disk(island: Lab) -> None:
    island.up("drakar", "cheetah")
    leave_a_mark(island, "drakar")
    other = island.ssh("cheetah", BOOT).stdout
    island.run("kill", "-KILL", *nspawn_pids(island, "drakar"))
    assert island.status()["drakar"]["state"] == "stopped"
    assert "drakar: started" in island.up("drakar", "cheetah").stdout
    assert has_mark(island, "drakar")
    assert island.ssh("cheetah", BOOT).stdout == other


def test_a_machine_whose_processes_are_all_killed_comes_back(island: Lab) -> None:
    island.up("drakar")
    leave_a_mark(island, "drakar")
    island.ssh("drakar", "sudo kill -KILL -1", check=False)
    (init,) = island.run(
        "sh", "-c", f"cat /proc/{nspawn_pids(island, 'drakar')[0]}/task/*/children"
    ).stdout.split()
    island.run("kill", "-KILL", init)
    island.up("drakar")
    assert has_mark(island, "drakar")


def test_kill_is_a_power_cut_and_up_brings_it_back(island: Lab) -> None:
    island.up("drakar")
    leave_a_mark(island, "drakar")
    key = island.ssh("drakar", "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout
    island.kill("drakar")
    assert nspawn_pids(island, "drakar") == []
    assert island.status()["drakar"]["state"] == "stopped"
    island.up("drakar")
    assert has_mark(island, "drakar")
    assert island.ssh("drakar", "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout == key


def test_a_machine_that_was_shut_down_from_within_starts_again(island: Lab) -> None:
    island.up("drakar")
    leave_a_mark(island, "drakar")
    island.ssh("drakar", "sudo poweroff", check=False)
    wait_until(lambda: island.status()["drakar"]["state"] == "stopped")
    island.up("drakar")
    assert has_mark(island, "drakar")


def wait_until(look: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_reboot_of_the_host_keeps_the_disks(island: Lab, host: Host) -> None:
    island.up("drakar", "cheetah")
    leave_a_mark(island, "drakar")
    host.reboot()
    island = host.lab(island.checkout)
    assert {row["state"] for row in island.status().values()} == {"stopped"}
    island.up()
    assert has_mark(island, "drakar")


def test_down_after_a_reboot_of_the_host(island: Lab, host: Host) -> None:
    island.up("drakar")
    host.reboot()
    island = host.lab(island.checkout)
    island.down()
    assert island.status() == {}


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_up_killed_at_any_moment_is_mended_by_up_or_down(
    island: Lab, host: Host, group: bool
) -> None:
    before = host.traces(island)
    for moment in (0.15, 0.25, 0.35, 0.5, 0.7, 1, 1.5):
        killed(island, moment, group, "up", "drakar")
        if moment in (0.25, 0.7):
            island.up("drakar")
            assert island.ssh("drakar", "hostname").stdout == "drakar\n"
        island.down()
        assert host.traces(island) == before


def killed(lab: Lab, moment: float, group: bool, *words: str) -> None:
    process = lab.start(sys.executable, "-m", "lab", *words)
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
