"""A fleet of four different uWSGIs: Debian 11's, 12's and 13's, and PyPI's.

The tests run in the order in which they stand here, as in test_fleet.py.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_commands import BIN, ROOT, Fleet, output, run
from lab_commands import SUDO, Lab

from uwsgi_consul_fleet.lab.machines import known

DIST = ROOT / "plugin_build/dist"
MACHINES = ["debian12", "debian11:11", "debian13:13", "pypi"]
NAMES = ["debian12", "debian11", "debian13", "pypi"]
APPS: list[Any] = ["debian12", "debian11", "debian13", ("pypi", {"uwsgi_source": "pypi"})]
VERSIONS = {
    "debian12": "2.0.21-debian",
    "debian11": "2.0.19.1-debian",
    "debian13": "2.0.28-debian",
    "pypi": "2.0.31",
}
SERVICE = "consul-demo-server"
PACKAGES = "dpkg-query --show --showformat '${db:Status-Abbrev} ${Package} ${Version}\\n'"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[Fleet]:
    shutil.rmtree(DIST, ignore_errors=True)
    lab.up(*MACHINES)
    lab.rebuild(*NAMES)
    found = Fleet(tmp_path_factory.mktemp("every") / "every.py")
    found.hosts(["debian12"], APPS)
    yield found
    lab.down(*NAMES)


def listed(fleet: Fleet) -> dict[str, list[str]]:
    """The columns of build-plugin --list by host."""
    rows = [line.split() for line in fleet.build("--list", check=False).stdout.splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0] in NAMES}


def manifests() -> dict[str, dict[str, Any]]:
    """By fingerprint."""
    return {path.parent.name: json.loads(path.read_text()) for path in DIST.glob("*/manifest.json")}


def copy_of_the_checkout(folder: Path) -> Path:
    copy = folder / "clone"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache", "dist"))
    return copy


def journal_of(lab: Lab, name: str, *options: str) -> str:
    """What the instances on a host have said, all of it."""
    words = shlex.join(["journalctl", "-o", "cat", "-u", f"{SERVICE}-*", *options])
    return str(lab.ssh(name, f"sudo journalctl --sync; sudo {words}").stdout)


# --- One plugin for each -------------------------------------------------------------


def test_hosts_without_uwsgi_are_listed_as_such(fleet: Fleet) -> None:
    result = fleet.build("--list", check=False)
    assert result.returncode == 1
    assert "debian11: has no uWSGI" in result.stdout


def test_four_plugins_are_built(fleet: Fleet) -> None:
    result = fleet.build()
    assert result.stdout.count("built: ") == 4
    found = manifests()
    assert {manifest["built_on"] for manifest in found.values()} == set(NAMES)
    for fingerprint, manifest in found.items():
        assert manifest["fingerprint"] == fingerprint
        assert manifest["uwsgi"] == VERSIONS[manifest["built_on"]]
        parts = {"version", "flags", "header", "architecture", "libc", "libcurl"}
        assert set(manifest["parts"]) == parts
        assert manifest["compiler"].startswith("gcc ")
    rows = listed(fleet)
    assert {name: row[1] for name, row in rows.items()} == VERSIONS
    assert all(row[-1] == "built" and row[2] in found for row in rows.values())


def test_a_second_build_compiles_nothing(fleet: Fleet) -> None:
    result = fleet.build()
    assert result.stdout.count("up to date: ") == 4
    assert "compil" not in result.stdout


def test_each_host_gets_its_own(fleet: Fleet, lab: Lab) -> None:
    fleet.deploy()
    fleet.verify("--wait", "10", "--probe")
    rows = listed(fleet)
    for name in NAMES:
        look = f"grep -aom1 'fleet fingerprint [0-9a-f]*' /srv/{SERVICE}/current/consul_plugin.so"
        assert lab.ssh(name, look).stdout.split()[-1] == rows[name][2]
    assert fleet.changes() == {}


def test_pypis_uwsgi_serves_from_the_applications_environment(lab: Lab) -> None:
    running = lab.ssh("pypi", "ps -C uwsgi -o args=").stdout
    assert f"/srv/{SERVICE}/releases/" in running
    assert "/venv/bin/uwsgi" in running


def test_a_stop_deregisters_with_each_of_them(fleet: Fleet, lab: Lab) -> None:
    for name in NAMES:
        lab.ssh(name, f"sudo systemctl stop {SERVICE}.target")
    result = fleet.verify(check=False)
    assert result.stdout.count("not registered") == 8, output(result)
    for name in NAMES:
        lab.ssh(name, f"sudo systemctl start {SERVICE}.target '{SERVICE}-*.socket'")
        journal = journal_of(lab, name)
        assert "[consul] deregistered server1" in journal
        assert not re.search("SEGV|core-dump|SIGABRT|AddressSanitizer", journal)
    fleet.deploy()
    fleet.verify("--wait", "10", "--probe")


# --- Which hosts ---------------------------------------------------------------------


def test_one_host_alone(fleet: Fleet) -> None:
    result = fleet.build("--host", "pypi")
    assert "debian" not in result.stdout
    result = fleet.build("--host", "debian14", check=False)
    assert result.returncode == 1
    assert "--host debian14:" in result.stderr
    assert "did you mean 'debian1" in result.stderr


def test_a_builder_compiles_for_the_others(fleet: Fleet, lab: Lab, tmp_path: Path) -> None:
    lab.up("builder")
    lab.rebuild("builder")
    with_builder = Fleet(tmp_path / "builder.py")
    with_builder.hosts(["debian12"], APPS, builders=["builder"])
    packages = lab.ssh("debian12", PACKAGES).stdout
    result = with_builder.build("--force", "--host", "debian12")
    assert "builder: compiling against uWSGI 2.0.21-debian" in result.stdout
    assert "debian12: compiling" not in result.stdout
    assert lab.ssh("debian12", PACKAGES).stdout == packages
    # It is not a member of the cluster.
    assert all("builder" not in hosts for hosts in with_builder.changes().values())
    with_builder.verify("--wait", "10")
    lab.down("builder")


# --- The wrong plugin ----------------------------------------------------------------


def now(lab: Lab, name: str) -> str:
    return str(lab.ssh(name, "date '+%F %T'").stdout.strip())


def test_a_plugin_for_another_uwsgi_is_refused(fleet: Fleet, lab: Lab) -> None:
    wrong = DIST / listed(fleet)["debian13"][2] / "consul_plugin.so"
    config = ["-F", str(lab.config)]
    subprocess.run(["scp", "-q", *config, str(wrong), "debian12:/tmp/wrong.so"], check=True)
    since = now(lab, "debian12")
    there = f"$(readlink -f /srv/{SERVICE}/current/consul_plugin.so)"
    lab.ssh("debian12", f"sudo install -m 644 /tmp/wrong.so {there}")
    lab.ssh("debian12", f"sudo systemctl restart '{SERVICE}-2001@*'", check=False)
    time.sleep(2.5)  # twice as long as systemd waits before it tries again
    journal = journal_of(lab, "debian12", "--since", since)
    assert journal.count("start-uwsgi: not started: ") == 1, journal
    assert "is for the uWSGI with fingerprint" in journal
    assert "run invoke build-plugin, then deploy" in journal
    assert not re.search("SEGV|SIGSEGV|core-dump|SIGBUS", journal), journal
    result = fleet.verify(check=False)
    assert "wrong plugin: node debian12: " in result.stdout
    fleet.deploy()
    fleet.verify("--wait", "10", "--probe")


def test_a_plugin_that_was_not_built_here_is_refused(fleet: Fleet, lab: Lab) -> None:
    there = f"$(readlink -f /srv/{SERVICE}/current/consul_plugin.so)"
    since = now(lab, "debian11")
    lab.ssh("debian11", f"echo foreign | sudo install -m 644 /dev/stdin {there}")
    lab.ssh("debian11", f"sudo systemctl restart '{SERVICE}-2001@*'", check=False)
    assert "is not one that build-plugin made" in journal_of(lab, "debian11", "--since", since)
    result = fleet.verify(check=False)
    assert "its plugin is for another's" in result.stdout
    fleet.deploy()
    fleet.verify("--wait", "10", "--probe")


def test_an_upgraded_uwsgi_is_noticed_and_not_started(fleet: Fleet, lab: Lab) -> None:
    """As after `apt upgrade`. Debian's archive has one version of each release: PyPI's program
    plays the newer one."""
    built = "$(ls -d /opt/uwsgi-consul-fleet/uwsgi/*)/uwsgi"
    program = lab.run(
        "ssh", "-F", str(lab.config), "pypi", f"base64 {built} > /tmp/new; wc -c < /tmp/new"
    )
    assert int(program.stdout) > 1_000_000
    config = ["-F", str(lab.config)]
    subprocess.run(["scp", "-q", "-3", *config, "pypi:/tmp/new", "debian12:/tmp/new"], check=True)
    since = now(lab, "debian12")
    lab.ssh(
        "debian12",
        "cd /usr/bin && base64 -d /tmp/new > /tmp/uwsgi && sudo mv uwsgi-core uwsgi-core.old"
        " && sudo install -m 755 /tmp/uwsgi uwsgi-core",
    )
    # What runs goes on; the next start would be wrong.
    result = fleet.verify(check=False)
    assert result.returncode == 1
    assert "wrong plugin: node debian12: its uWSGI is 2.0.31 now" in result.stdout
    assert result.stdout.count("✓ passing") == 8
    lab.ssh("debian12", f"sudo systemctl restart '{SERVICE}-2001@*'", check=False)
    journal = journal_of(lab, "debian12", "--since", since)
    assert "and this is uWSGI 2.0.31 with fingerprint" in journal
    assert not re.search("SEGV|SIGSEGV|core-dump|SIGBUS", journal), journal
    lab.ssh("debian12", "cd /usr/bin && sudo mv uwsgi-core.old uwsgi-core")
    fleet.deploy()
    fleet.verify("--wait", "10", "--probe")


def test_without_its_plugin_a_host_is_left_as_it_is(fleet: Fleet, lab: Lab) -> None:
    fingerprint = listed(fleet)["debian13"][2]
    kept = DIST.with_name("kept")
    (DIST / fingerprint).rename(kept)
    look = "sudo find /opt /srv /etc/consul.d /etc/systemd -printf '%p %T@ %s\\n' | sort"
    before = lab.ssh("debian13", look).stdout
    changed = Fleet(fleet.path.with_name("changed.py"))
    changed.hosts(["debian12"], [(name, {"check_ttl": 9}) for name in ("debian12", "debian13")])
    try:
        result = changed.deploy(check=False)
    finally:
        kept.rename(DIST / fingerprint)
    assert result.returncode != 0
    said = output(result)
    assert (
        f"debian13: no consul plugin for its uWSGI 2.0.28-debian (fingerprint {fingerprint}" in said
    )
    assert "run invoke build-plugin" in said
    assert all(other in said for other in manifests() if other != fingerprint)
    assert lab.ssh("debian13", look).stdout == before
    fleet.deploy()


# --- Builds that fail ----------------------------------------------------------------


def broken_build(fleet: Fleet, copy: Path, *hosts: str) -> "subprocess.CompletedProcess[str]":
    options = [word for host in hosts for word in ("--host", host)]
    command = ("invoke", "build-plugin", *options, "--inventory", str(fleet.path))
    return run(*command, check=False, cwd=copy)


CONFIGURATION = "/etc/apt/apt.conf.d/99-test"
TROUBLES = {
    "no network": (
        f"echo 'Acquire::http::Proxy \"http://127.0.0.1:9\";' | sudo tee {CONFIGURATION};"
        " sudo apt-get clean",
        "the compiler's packages can't be installed: can it reach its package mirror?",
    ),
    "no compiler": (
        f"sudo mkdir /tmp/none; echo 'Dir::State::lists \"/tmp/none\";'"
        f" 'Dir::Etc \"/tmp/none\";' | sudo tee {CONFIGURATION}",
        "its package sources have no compiler, or not all that is needed",
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_keeps_the_compiler_away_is_said(fleet: Fleet, lab: Lab, trouble: str) -> None:
    """The other builds go on."""
    spoil, said = TROUBLES[trouble]
    lab.ssh("debian11", spoil)
    packages = lab.ssh("debian11", PACKAGES).stdout
    try:
        result = fleet.build("--force", "--host", "debian11", "--host", "debian13", check=False)
    finally:
        lab.ssh("debian11", f"sudo rm -r {CONFIGURATION} /tmp/none", check=False)
    assert result.returncode == 1
    assert f"debian11: {said}" in result.stderr, output(result)
    assert "1 host has no plugin: debian11" in result.stderr
    assert re.search("^built: .*: debian13", result.stdout, re.MULTILINE)
    assert lab.ssh("debian11", PACKAGES).stdout == packages


def test_a_full_disk_is_said(fleet: Fleet, lab: Lab, tmp_path: Path) -> None:
    """The scratch layer is in memory here: a smaller one is full sooner."""
    copy = copy_of_the_checkout(tmp_path)
    script = copy / "uwsgi_consul_fleet/build/scratch.sh"
    script.write_text(script.read_text().replace("size=1g", "size=50m"))
    result = broken_build(fleet, copy, "debian12")
    assert result.returncode == 1
    assert "debian12: no room for the compiler in /mnt" in result.stderr, output(result)
    assert lab.ssh("debian12", "ls -A /mnt /var/tmp | grep -c uwsgi", check=False).stdout == "0\n"


def test_a_compile_error_on_one_kind_alone(fleet: Fleet, lab: Lab, tmp_path: Path) -> None:
    copy = copy_of_the_checkout(tmp_path)
    source = copy / "plugin_build/src/text.c"
    only = "#include <features.h>\n#if __GLIBC_MINOR__ > 36\n#error too new\n#endif\n"
    source.write_text(only + source.read_text())
    result = broken_build(fleet, copy, "debian12", "debian13")
    assert result.returncode == 1
    assert "debian13: it does not compile:" in result.stderr
    assert "#error too new" in result.stderr
    assert re.search("^built: .*: debian12", result.stdout, re.MULTILINE)


def test_a_host_that_cannot_stack_an_overlay(fleet: Fleet, lab: Lab, tmp_path: Path) -> None:
    """The compiler is installed into a copy of the system there."""
    copy = copy_of_the_checkout(tmp_path)
    script = copy / "uwsgi_consul_fleet/build/scratch.sh"
    script.write_text(script.read_text().replace("mount -t overlay overlay", "false"))
    packages = lab.ssh("debian12", PACKAGES).stdout
    result = broken_build(fleet, copy, "debian12")
    assert "installing the compiler in the copy" in result.stdout, output(result)
    assert result.returncode == 0, output(result)
    assert lab.ssh("debian12", PACKAGES).stdout == packages
    source = copy / "plugin_build/src/text.c"
    source.write_text("this is no C\n" + source.read_text())
    assert broken_build(fleet, copy, "debian12").returncode == 1
    assert lab.ssh("debian12", PACKAGES).stdout == packages
    left = lab.ssh("debian12", "ls -A /mnt /var/tmp | grep -c uwsgi", check=False)
    assert left.stdout == "0\n"


def test_a_host_that_goes_away(fleet: Fleet, lab: Lab) -> None:
    command = ["invoke", "build-plugin", "--force", "--inventory", str(fleet.path)]
    command += ["--host", "debian11", "--host", "debian13"]
    process = subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if "debian11: installing the compiler" in line:
                break
        lab.kill("debian11")
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
        lab.up("debian11:11")
    assert process.returncode == 1
    assert "debian11: connection lost" in stderr
    assert re.search("^built: .*: debian13", stdout, re.MULTILINE)


# --- Other sources -------------------------------------------------------------------

HELLO = """
#include <uwsgi.h>
static struct uwsgi_option options[] = {
    {"hello", no_argument, 0, "say hello", uwsgi_opt_true, NULL, 0},
    UWSGI_END_OF_OPTIONS
};
struct uwsgi_plugin hello_plugin = {.name = "hello", .options = options};
"""


def test_another_plugin(fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "hello.c").write_text(HELLO)
    (folder / "uwsgiplugin.py").write_text(
        "NAME = 'hello'\nCFLAGS = []\nLDFLAGS = []\nLIBS = []\nGCC_LIST = ['hello']\n"
    )
    result = fleet.build("--source", str(folder), "--host", "debian12")
    (built,) = DIST.glob("*/hello_plugin.so")
    assert f"built: {built.relative_to(ROOT)}" in result.stdout
    assert json.loads((built.parent / "hello_plugin.json").read_text())["plugin"] == "hello"
    # From a repository of the same content: nothing is to be done.
    for words in ("init", "add .", "-c user.name=a -c user.email=a@b commit -m x"):
        subprocess.run(["git", "-C", str(folder), *words.split()], check=True, capture_output=True)
    result = fleet.build("--source", folder.as_uri(), "--host", "debian12")
    assert "up to date: " in result.stdout


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "neither a folder nor a URL that git can clone"),
        ("file:///nowhere.git", "git can't clone it"),
        ("docs", "has no uwsgiplugin.py"),
    ],
)
def test_what_is_no_source(fleet: Fleet, place: str, said: str) -> None:
    result = fleet.build("--source", place, check=False)
    assert result.returncode == 1
    assert f"--source {place}: " in result.stderr
    assert said in result.stderr


def test_for_this_machine(fleet: Fleet, tmp_path: Path) -> None:
    result = run("invoke", "build-plugin", "--local")
    assert "(uWSGI 2.0." in result.stdout
    assert ": this machine)" in result.stdout
    result = run("invoke", "build-plugin", "--local", "--host", "debian12", check=False)
    assert "--local is this machine" in result.stderr


def test_a_toolchain_that_is_kept(fleet: Fleet, lab: Lab) -> None:
    assert lab.ssh("debian13", "command -v gcc", check=False).returncode != 0
    fleet.build("--force", "--keep-toolchain", "--host", "debian13")
    assert lab.ssh("debian13", "gcc --version").stdout


# --- The plugin's own tests, with each of these uWSGIs -------------------------------------

INSTALL = "sudo apt-get -qq update && sudo apt-get -qq -y --no-install-recommends install"
# The agent runs on this machine: the uWSGI of a host is started in the host's file system, but
# in our network. No mount of this outlives the process.
IN_ITS_ROOT = """
set -eu
for shared in /dev /proc "$1"; do
    mkdir -p "$root$shared"
    mount --rbind "$shared" "$root$shared"
done
exec "$2" -m pytest tests/plugin -m everywhere -q --basetemp "$1/tests" \
    --uwsgi "$1/uwsgi" --plugin "$1/consul_plugin.so" $3
"""


@pytest.mark.parametrize(
    ("name", "packages", "options"),
    [
        # gevent itself is missing in Debian 11's archive.
        ("debian11", "uwsgi-plugin-psgi", "-k 'not gevent'"),
        ("debian13", "uwsgi-plugin-psgi uwsgi-plugin-gevent-python3", ""),
        # PyPI's has no other language.
        ("pypi", "", "--embedded-python -k 'not gevent and not another_language'"),
    ],
)
def test_the_plugins_tests(
    fleet: Fleet, lab: Lab, tmp_path: Path, name: str, packages: str, options: str
) -> None:
    row = listed(fleet)[name]
    (machine,) = [found for found in known() if found.name == name]
    if packages:
        lab.ssh(name, f"{INSTALL} {packages}")
    shutil.copy(DIST / row[2] / "consul_plugin.so", tmp_path)
    program = tmp_path / "uwsgi"
    program.write_text(f'#!/bin/sh\nexec chroot {machine.root} env -C "$PWD" {row[0]} "$@"\n')
    program.chmod(0o755)
    words = shlex.split(options)
    script = IN_ITS_ROOT.replace("$3", shlex.join(words))
    result = subprocess.run(
        [*SUDO, "env", f"root={machine.root}", "unshare", "--mount", "--propagation", "private",
         "sh", "-c", script, "tests", str(tmp_path), sys.executable],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= 35, result.stdout
    assert "skipped" not in result.stdout
