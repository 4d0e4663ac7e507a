"""The lab's machines are what a cloud hands out, and nothing that happens to them is lasting.

What could disturb this host, or another clone's lab, happens on a host of its own: one
with a network, processes and mounts that nobody else sees. Its tests share it, in the order in
which they stand here: each finds the machines that the one before left.
"""

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from consul_processes import until
from lab_commands import Lab
from lab_host import Host, clone_id, kill_python, kill_up

pytestmark = pytest.mark.takes(290)

CACHE = Path(os.environ.get("UWSGI_CONSUL_FLEET_CACHE", "/var/cache/uwsgi-consul-fleet"))
DISKS = Path("/var/lib/uwsgi-consul-fleet/lab")
RUN = Path("/run/uwsgi-consul-fleet")
RELEASES = [11, 12, 13]
BOOT = "systemctl show --value -p UserspaceTimestampMonotonic -p InvocationID; cat /etc/machine-id"

Checkouts = Callable[[], Path]


@pytest.fixture(scope="module")
def ship(copy_checkout: Checkouts) -> Iterator[Lab]:
    """A lab on this very host, beside whichever others there are."""
    found = Lab(copy_checkout())
    found.up("drakar")
    yield found
    found.down()


@pytest.fixture(scope="module")
def cloud(ship: Lab) -> Lab:
    """The same, with a machine of each release."""
    ship.up(*(f"debian{release}:{release}" for release in RELEASES))
    return ship


@pytest.fixture(scope="module")
def host(ship: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    found = Host(tmp_path_factory.mktemp("host"))
    yield found
    found.off()


@pytest.fixture(scope="module")
def fresh(host: Host, copy_checkout: Checkouts) -> Iterator[tuple[Path, str]]:
    """A checkout whose lab is alone on a host of its own, and the traces there without any lab.

    All that happened to it leaves none either.
    """
    checkout = copy_checkout()
    before = host.traces(host.lab(checkout))
    yield checkout, before
    found = host.lab(checkout)
    found.down()
    assert host.traces(found) == before


@pytest.fixture
def island(host: Host, fresh: tuple[Path, str]) -> Lab:
    """That lab, with such machines as the tests before left it."""
    return host.lab(fresh[0])  # since then the host may have been rebooted


# --- What a machine is ---------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_machine_is_what_a_cloud_hands_out(cloud: Lab, release: int) -> None:
    name = f"debian{release}"
    status = {
        "name": name,
        "release": release,
        "address": cloud.address(name),
        "state": "runs",
    }
    assert cloud.status()[name] == status

    def on(command: str) -> list[str]:
        return cloud.ssh(name, command).stdout.split()

    assert on("systemctl is-system-running --wait") == ["running"]
    assert on("cat /proc/1/comm") == ["systemd"]
    assert on("hostname; hostname --fqdn; sudo hostnamectl --static") == [name] * 3
    assert on("ip -4 -o address show dev host0 | awk '{print $4}'") == [f"{cloud.address(name)}/24"]
    assert on(". /etc/os-release; echo $ID $VERSION_ID") == ["debian", str(release)]
    assert on("id -un; sudo -n id -u") == ["debian", "0"]
    ours = "uwsgi consul gcc cc make git pip3"
    assert cloud.ssh(name, f"command -v {ours}", check=False).stdout == ""


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


def test_up_again_changes_nothing(island: Lab) -> None:
    island.up("drakar")
    before = island.ssh("drakar", BOOT).stdout
    result = island.up("drakar")
    assert f"drakar: runs, Debian 12, {island.address('drakar')}" in result.stdout.splitlines()
    assert island.ssh("drakar", BOOT).stdout == before


def test_rebuild_gives_the_first_state_back(island: Lab) -> None:
    island.ssh("drakar", "touch mine; sudo touch /etc/mine")
    address = island.address("drakar")
    island.rebuild("drakar")
    assert island.ssh("drakar", "ls; ls /etc/mine", check=False).stdout == ""
    assert island.address("drakar") == address


# --- Mistakes ------------------------------------------------------------------------


MISTAKES = [
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
]


def test_a_mistake_is_one_line_and_nothing_is_touched(island: Lab) -> None:
    def state() -> tuple[object, ...]:
        return island.status(), island.ssh("drakar", BOOT).stdout, island.config.read_text()

    island.down()
    island.up("drakar")
    before = state()
    for words, line in MISTAKES:
        result = island.command(*words, check=False)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.startswith(f"Error: {line}"), result.stderr
        assert result.stderr.count("\n") == 1
    assert state() == before


def test_the_same_machine_twice_is_started_once(island: Lab) -> None:
    result = island.up("cheetah", "cheetah:12")
    assert result.stdout.count("cheetah: ") == 1
    island.down("cheetah", "cheetah")
    assert "cheetah" not in island.status()


# --- Crashes -------------------------------------------------------------------------


def wait_until(look: Callable[[], bool], seconds: float = 15) -> None:
    until(look, "what was waited for", seconds)


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
    wait_until(lambda: island.status()["drakar"]["state"] == "stopped", 120)
    island.up("drakar")
    assert has_mark(island, "drakar")


def test_a_reboot_of_the_host_keeps_the_disks_until_down(
    island: Lab, host: Host, fresh: tuple[Path, str]
) -> None:
    island.up("drakar", "cheetah")
    leave_a_mark(island, "drakar")
    host.reboot()
    island = host.lab(island.checkout)
    assert {row["state"] for row in island.status().values()} == {"stopped"}
    island.up()
    assert has_mark(island, "drakar")
    host.reboot()
    island = host.lab(island.checkout)
    island.down()
    assert island.status() == {}
    assert host.traces(island) == fresh[1]


def test_up_killed_at_any_moment_is_mended_by_up_or_down(
    island: Lab, host: Host, fresh: tuple[Path, str], rng: random.Random
) -> None:
    """bench/lab_killed.py does it for longer."""
    island.down()
    for group in (False, True):
        for mended_by_up in (True, False):
            kill_up(island, rng.uniform(0.1, 1.5), group=group, mended_by_up=mended_by_up)
            assert host.traces(island) == fresh[1]


def killed_while_it_removes(island: Lab, folder: Path, command: str) -> bool:
    """Whether it was, and had not ended before that."""
    many = folder / "upper/home/debian/many"
    island.up("drakar")
    island.kill("drakar")
    island.run("sh", "-c", f"mkdir {many} && cd {many} && seq 30000 | xargs touch")
    process = island.start(sys.executable, "-m", "uwsgi_consul_fleet.lab", command, "drakar")

    def removes() -> bool:
        begun = (folder / "old").exists() or not (folder / "machine.json").exists()
        return begun or process.poll() is not None

    wait_until(removes)
    if has_not_ended := process.poll() is None:
        kill_python(process)
    process.communicate()
    return has_not_ended and process.returncode != 0


def test_a_killed_rebuild_or_down_leaves_no_half_disk(island: Lab, host: Host) -> None:
    folder = host.disk / "lab" / clone_id(island) / "drakar"
    for command in ("rebuild", "down"):
        assert any(killed_while_it_removes(island, folder, command) for _attempt in range(3))
        assert folder.exists()
        island.up("drakar")
        assert island.ssh("drakar", "ls").stdout == ""


def test_what_crashes_leave_around_is_cleared_away(island: Lab, host: Host) -> None:
    """A process in a chroot, mounts on top of each other, a bridge without an address, files that
    are damaged."""
    island.up("drakar", "cheetah")
    folder = DISKS / clone_id(island)
    begun = island.start("chroot", f"{folder}/drakar/root", "sh", "-c", "echo; exec sleep 300")
    assert begun.stdout and begun.stdout.readline()
    island.kill("drakar", "cheetah")
    begun.communicate(timeout=30)
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


def test_down_needs_nothing_of_what_it_clears_away(
    island: Lab, host: Host, fresh: tuple[Path, str]
) -> None:
    island.up("drakar")
    folder = DISKS / clone_id(island)
    island.run("ip", "link", "delete", "ucf-lab0")
    island.run("nft", "flush", "ruleset")
    island.run("rm", f"{folder}/drakar/machine.json")
    island.run("rm", "-r", str(island.config.parent))
    island.down()
    assert "no machines" in island.down().stdout
    assert host.traces(island) == fresh[1]


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
    island.down()
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
    island.down()
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
    island.down()
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
