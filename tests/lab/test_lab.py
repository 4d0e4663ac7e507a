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
from contextlib import suppress
from pathlib import Path

import pytest
from lab_commands import SUDO, Lab

CACHE = Path(os.environ.get("UWSGI_CONSUL_FLEET_CACHE", "/var/cache/uwsgi-consul-fleet"))
DISKS = Path("/var/lib/uwsgi-consul-fleet/lab")
RUN = Path("/run/uwsgi-consul-fleet")
RELEASES = [11, 12, 13]
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
    result = ship.up("drakar")
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
        (["up", "cheetah", "Drakar"], "'Drakar' is not a name for a machine: 2 to 32 lower-case"),
        (["up", "cheetah", "../etc"], "'../etc' is not a name for a machine: "),
        (["up", "cheetah", "c:10"], "'c' is not a name for a machine: "),
        (["up", "cheetah:10"], "cheetah:10: '10' is not a Debian release of the lab: 11, 12, 13"),
        (["up", "cheetah:"], "cheetah:: '' is not a Debian release of the lab: 11, 12, 13"),
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
    for moment in (0.15, 0.3, 0.5, 0.8, 1.3):
        killed(island, moment, group, "up", "drakar")
        if moment in (0.3, 0.8):
            island.up("drakar")
            assert island.ssh("drakar", "hostname").stdout == "drakar\n"
        island.down()
        assert host.traces(island) == before


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

    wait_until(is_python)
    subprocess.run([*SUDO, "kill", "-KILL", str(pid)], check=True)


@pytest.mark.parametrize("command", ["rebuild", "down"])
def test_a_killed_rebuild_or_down_leaves_no_half_disk(
    island: Lab, host: Host, command: str
) -> None:
    island.up("drakar")
    island.kill("drakar")
    folder = host.disk / "lab" / clone_id(island) / "drakar"
    many = folder / "upper/home/debian/many"
    island.run("sh", "-c", f"mkdir {many} && cd {many} && seq 30000 | xargs touch")
    process = island.start(sys.executable, "-m", "uwsgi_consul_fleet.lab", command, "drakar")
    wait_until(lambda: (folder / "old").exists() or not (folder / "machine.json").exists())
    kill_python(process)
    process.communicate()
    assert folder.exists()
    assert process.returncode != 0
    island.up("drakar")
    assert island.ssh("drakar", "ls").stdout == ""


def test_what_crashes_leave_around_is_cleared_away(island: Lab, host: Host) -> None:
    """Mounts on top of each other, a bridge without an address, files that are damaged."""
    island.up("drakar", "cheetah")
    island.kill("drakar", "cheetah")
    folder = DISKS / clone_id(island)
    island.run("ip", "address", "flush", "dev", "ucf-lab0")
    island.run("ip", "link", "set", "ucf-lab0", "down")
    island.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
    island.run("nft", "flush", "ruleset")
    for _again in range(2):
        island.run("mount", "-t", "tmpfs", "none", f"{folder}/drakar/root")
    island.run("sh", "-c", f'printf \'{{"name": "chee\' >{folder}/cheetah/machine.json')
    island.config.write_text("Host drakar\n    HostName 192.0.2.1\n")
    (island.config.parent / "known_hosts").write_text("drakar ssh-ed25519 AAAA\n")
    assert list(island.status()) == ["drakar"]
    island.up()
    assert island.ssh("drakar", "hostname").stdout == "drakar\n"
    assert island.ssh("cheetah", "hostname").stdout == "cheetah\n"
    assert host.forwards()


def test_down_needs_nothing_of_what_it_clears_away(island: Lab) -> None:
    island.up("drakar")
    folder = DISKS / clone_id(island)
    island.run("ip", "link", "delete", "ucf-lab0")
    island.run("nft", "flush", "ruleset")
    island.run("rm", f"{folder}/drakar/machine.json")
    island.run("rm", "-r", str(island.config.parent))
    island.down()
    assert "no machines" in island.down().stdout


# --- Clones side by side -------------------------------------------------------------


@pytest.fixture
def neighbour(island: Lab, host: Host, copy_checkout: Checkouts) -> Iterator[Lab]:
    found = host.lab(copy_checkout())
    yield found
    found.down()


def test_two_clones_come_up_at_the_same_time_and_one_goes(island: Lab, neighbour: Lab) -> None:
    for process in [
        lab.start(sys.executable, "-m", "uwsgi_consul_fleet.lab", "up")
        for lab in (island, neighbour)
    ]:
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stdout + stderr
    labs = island, neighbour
    assert len({lab.address(name) for lab in labs for name in ("drakar", "cheetah")}) == 4
    identities = {lab.ssh("drakar", "cat /etc/machine-id").stdout for lab in labs}
    assert len(identities) == 2
    before = neighbour.ssh("drakar", BOOT).stdout
    island.down()
    assert island.status() == {}
    assert neighbour.ssh("drakar", BOOT).stdout == before
    cheetah = neighbour.address("cheetah")
    assert "SSH-" in neighbour.ssh("drakar", f"head -c 4 </dev/tcp/{cheetah}/22").stdout


def test_machines_of_another_version_keep_their_network(island: Lab, neighbour: Lab) -> None:
    neighbour.up("drakar")
    file = DISKS / clone_id(neighbour) / "drakar/machine.json"
    island.run("sh", "-c", f'sed -i \'s/{{/{{"colour": "red", /; s/"release"/"suite"/\' {file}')
    island.up("drakar")
    island.down()
    address = island.run("grep", "HostName", str(neighbour.config)).stdout.split()[1]
    assert neighbour.ssh("drakar", f"ip -4 address; echo {address}").stdout.count(address) > 1
    assert proxies(neighbour) != []


def test_machines_outlive_a_deleted_bridge(island: Lab) -> None:
    island.up("drakar")
    before = island.ssh("drakar", BOOT).stdout
    island.run("ip", "link", "delete", "ucf-lab0")
    island.up("drakar")
    assert island.ssh("drakar", BOOT).stdout == before


def test_machines_of_a_deleted_clone_are_removed(island: Lab, neighbour: Lab) -> None:
    neighbour.up("drakar")
    gone = neighbour.checkout.with_name("gone")
    neighbour.checkout.rename(gone)
    try:
        line = f"drakar of {neighbour.checkout}: removed, that clone is gone"
        assert line in island.down().stdout.splitlines()
    finally:
        gone.rename(neighbour.checkout)


def test_purge_keeps_what_another_clone_needs(
    island: Lab, neighbour: Lab, host: Host, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    (cache / "base-12").symlink_to(CACHE / "base-12")
    cached = {"UWSGI_CONSUL_FLEET_CACHE": str(cache)}
    ours, theirs = (host.lab(lab.checkout, **cached) for lab in (island, neighbour))
    theirs.up("drakar")
    theirs.kill("drakar")
    result = ours.command("down", "--purge", check=False)
    assert result.returncode == 1
    message = f"Error: kept {cache}: there are machines of other clones: {theirs.checkout}\n"
    assert result.stderr == message
    theirs.up("drakar")
    assert theirs.command("down", "--purge").stdout.endswith(f"removed {cache}\n")
    assert not cache.exists()


# --- The package cache and the base --------------------------------------------------


def proxies(lab: Lab) -> list[str]:
    script = 'for p in /proc/[0-9]*; do grep -qs "^apt-cacher-ng" $p/comm && echo ${p#/proc/}; done'
    return lab.run("sh", "-c", script, check=False).stdout.split()


def test_a_killed_package_cache_is_started_again(island: Lab) -> None:
    island.up("drakar")
    (before,) = proxies(island)
    island.run("kill", "-KILL", before)
    island.up("drakar")
    (after,) = proxies(island)
    assert after != before


def test_machines_download_directly_where_the_cache_cannot_run(island: Lab) -> None:
    island.up("drakar")
    gateway = island.ssh("drakar", "ip route show default | cut -d ' ' -f 3").stdout.strip()
    island.kill("drakar")
    island.run("kill", "-KILL", *proxies(island))
    server = ["-u", "-m", "http.server", "--bind", gateway, "3142"]
    taken = island.start(sys.executable, *server)
    try:
        assert taken.stdout is not None
        assert "Serving" in taken.stdout.readline()
        said = island.up("drakar").stdout
    finally:
        os.killpg(taken.pid, signal.SIGKILL)
        taken.communicate()
    line = f"packages: no cache: another program has {gateway}:3142; machines download directly"
    assert line in said.splitlines()
    assert island.ssh("drakar", "apt-config dump Acquire::http::Proxy").stdout == ""


def test_a_package_is_downloaded_once_for_all_machines(ship: Lab) -> None:
    ship.up("drakar", "cheetah")
    fetch = (
        "cd /tmp && sudo apt-get -qq update && apt-get -q download tree 2>&1"
        " && dpkg -f tree_*.deb Package"
    )
    log = CACHE / "packages-log" / "apt-cacher.log"
    assert "tree\n" in ship.ssh("drakar", fetch).stdout
    wait_until(lambda: "/tree_" in log.read_text())
    before = log.read_text()
    assert "tree\n" in ship.ssh("cheetah", fetch).stdout
    wait_until(lambda: "/tree_" in log.read_text()[len(before) :])
    kinds = {
        line.split("|")[1]
        for line in log.read_text()[len(before) :].splitlines()
        if "/tree_" in line
    }
    assert kinds == {"O"}, "it was downloaded again"  # O: out to a machine, I: in from a mirror


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_text(errors="replace").replace("\0", " "))
    return found


def test_half_a_base_is_never_taken_for_one(
    ship: Lab, copy_checkout: Checkouts, tmp_path: Path
) -> None:
    lab = Lab(copy_checkout(), UWSGI_CONSUL_FLEET_CACHE=str(tmp_path))
    part = tmp_path / ".base-12.part"
    for _attempt in range(2):  # the second finds what the first has left
        process = lab.start(sys.executable, "-m", "uwsgi_consul_fleet.lab", "up", "drakar")
        wait_until(lambda: (part / "debootstrap/debootstrap.log").exists(), 30)
        process.kill()
        process.communicate()
        assert list(tmp_path.iterdir()) == [part]
        assert lab.status() == {}
        wait_until(lambda: not any(f" {part}" in line for line in command_lines()))
        assert str(tmp_path) not in Path("/proc/mounts").read_text()
        (part / "debootstrap/debootstrap.log").unlink()
    lab.down()


# --- The front door ------------------------------------------------------------------


def test_invoke_takes_the_same_words(island: Lab) -> None:
    said = island.invoke("lab.up", "drakar:13", "cheetah").stdout.splitlines()
    assert f"drakar: started, Debian 13, {island.address('drakar')}" in said
    assert island.invoke("lab.status").stdout.splitlines() == [
        f"cheetah: runs, Debian 12, {island.address('cheetah')}",
        f"drakar: runs, Debian 13, {island.address('drakar')}",
    ]
    assert island.invoke("lab.status", "--json").stdout == island.command("status", "--json").stdout
    assert island.invoke("lab.rebuild", "cheetah").returncode == 0
    wrong = island.invoke("lab.down", "chetah", check=False)
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "Error: no machine chetah; there is: cheetah, drakar\n",
    )
    assert island.invoke("lab.down").stdout.splitlines()[:2] == [
        "cheetah: removed",
        "drakar: removed",
    ]
    assert island.invoke("lab.status").stdout == "no machines; start some with: invoke lab.up\n"


def test_ctrl_c_is_one_line_and_the_next_up_goes_on(ship: Lab, copy_checkout: Checkouts) -> None:
    lab = Lab(copy_checkout())  # without an nsenter that would get the signal too
    folder = DISKS / clone_id(lab) / "drakar"
    moments: list[Callable[[], bool]] = [
        (folder / "machine.json").exists,
        lambda: f" {folder}/root " in Path("/proc/mounts").read_text(),
        # It boots.
        lambda: (folder / "console.log").exists() and (folder / "console.log").stat().st_size > 0,
    ]
    line = "interrupted; the same command again goes on, lab.down undoes it\n"
    for has_come in moments:
        process = lab.start(sys.executable, "-m", "uwsgi_consul_fleet.lab", "up", "drakar")
        try:
            wait_until(has_come, 60)
            os.killpg(process.pid, signal.SIGINT)
            _, stderr = process.communicate()
            assert (process.returncode, stderr) == (130, line)
            lab.up("drakar")
            assert lab.ssh("drakar", "hostname").stdout == "drakar\n"
        finally:
            lab.down()


# --- Networks ------------------------------------------------------------------------


def test_a_machine_may_be_on_another_network(island: Lab) -> None:
    island.up("drakar", "cheetah@dc2", "ormen@dc2")
    ours, theirs = (island.address(name).rpartition(".")[0] for name in ("drakar", "cheetah"))
    assert ours != theirs
    ormen = island.address("ormen")
    greeting = "head -c 4 </dev/tcp/{}/22"
    assert island.ssh("drakar", greeting.format(ormen)).stdout == "SSH-"
    addresses = island.ssh("ormen", "ip -6 -brief address show host0 scope global").stdout.split()
    assert len(addresses) == 3
    address_6, _, length = addresses[2].partition("/")
    assert length == "64"
    assert island.ssh("cheetah", greeting.format(address_6)).stdout == "SSH-"
    wrong = island.command("up", "cheetah@dc3", check=False)
    assert wrong.stderr.startswith("Error: cheetah is there with network dc2; to change that: ")
    # Its cable finds its own network again.
    island.run("ip", "link", "delete", "ucf-dc2")
    island.up("drakar")
    assert island.ssh("drakar", greeting.format(ormen)).stdout == "SSH-"
