"""A fleet of four different uWSGIs: Debian 11's, 12's and 13's, and PyPI's.

The tests run in the order in which they stand here, on one fleet: each starts from what the one
before it left. A build installs a compiler first, so none is made for one question alone.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attempts
import pytest
from checkout import ROOT
from consul_processes import until
from fleet_commands import Fleet, finish, output, run, start
from lab_commands import SUDO, Lab, Result
from shared_fleet import SharedFleet

from uwsgi_consul_fleet.lab.machines import known

pytestmark = pytest.mark.takes(600)

DIST = ROOT / "plugin_build/dist"
MACHINES = ["debian11:11", "debian13:13"]
NAMES = ["drakar", "debian11", "debian13", "cheetah"]
PYPI = {"uwsgi_source": "pypi"}
APPS: list[Any] = ["drakar", "debian11", "debian13", ("cheetah", PYPI)]
VERSIONS = {
    "drakar": "2.0.21-debian",
    "debian11": "2.0.19.1-debian",
    "debian13": "2.0.28-debian",
    "cheetah": "2.0.31",
}
SERVICE = "consul-demo-server"
INSTALL = "sudo apt-get -qq update && sudo apt-get -qq -y --no-install-recommends install"
# Where an overlay can't be stacked, as in some containers.
NO_OVERLAY = r"""
printf '#!/bin/sh\ncase $* in *overlay*) exit 1 ;; esac\nexec /bin/mount "$@"\n' >mount
sudo install -m 755 mount /usr/local/sbin/
"""
# A header that is found before the one that curl's own package brings.
SPOIL = (
    "sudo mkdir /usr/local/include/curl && "
    "echo '#error too old' | sudo tee /usr/local/include/curl/curl.h"
)
PACKAGES = "dpkg-query --show --showformat '${db:Status-Abbrev} ${Package} ${Version}\\n'"


@pytest.fixture(scope="module")
def four(fleet: SharedFleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """drakar as it is in the shared fleet; for the others there is no plugin yet. PyPI's has gevent
    in it, and serves by it."""
    folder = tmp_path_factory.mktemp("gevent")
    (folder / "requirements.txt").write_text("gevent\n")
    text = (ROOT / "app/uwsgi.ini.j2").read_text()
    (folder / "own.ini.j2").write_text(text.replace("[uwsgi]\n", "[uwsgi]\ngevent = 100\n", 1))
    PYPI["app_ini"] = str(folder / "own.ini.j2")
    PYPI["app_requirements"] = str(folder / "requirements.txt")
    lab.up(*MACHINES)
    yield fleet
    lab.down("debian11", "debian13")
    # Else the catalog has their instances still, and the next file's fleet is made anew.
    for name in ("debian11", "debian13"):
        lab.consul("drakar", f"force-leave -prune {name}", check=False)


def listed(four: Fleet) -> dict[str, list[str]]:
    """The columns of build-plugin --list by host."""
    rows = [line.split() for line in four.build("--list", check=False).stdout.splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0] in NAMES}


def manifests() -> dict[str, dict[str, Any]]:
    """By fingerprint."""
    return {path.parent.name: json.loads(path.read_text()) for path in DIST.glob("*/manifest.json")}


def copy(lab: Lab, source: str, target: str) -> None:
    """A file of this machine or of one of the lab, to one of the lab."""
    if ":" in source:
        host, _, path = source.partition(":")
        source = f"{host}:{lab.ssh(host, f'echo {path}').stdout.strip()}"
    lab.run("scp", "-q", "-3", *lab.ssh_options, source, target)


def journal_of(lab: Lab, name: str, *options: str) -> str:
    """What the instances on a host have said, all of it."""
    words = shlex.join(["journalctl", "-o", "cat", "-u", f"{SERVICE}-*", *options])
    return str(lab.ssh(name, f"sudo journalctl --sync; sudo {words}").stdout)


# --- One plugin for each -------------------------------------------------------------


def test_a_builder_compiles_for_the_others_and_an_error_on_one_kind_stops_no_other(
    four: Fleet, lab: Lab
) -> None:
    """Where no overlay can be stacked. The compiler is installed into a copy of the system there,
    and the copy goes, whether it compiles or not."""
    four.hosts(["drakar"], ["drakar"], ["cheetah"])
    four.deploy()
    shutil.rmtree(DIST)
    lab.ssh("debian11", f"{INSTALL} uwsgi-core libcurl4 && {SPOIL}")
    for name in ("cheetah", "debian11"):
        lab.ssh(name, NO_OVERLAY)
    four.hosts(["drakar"], ["drakar", "debian11"], builders=["cheetah"])
    packages = [lab.ssh(name, PACKAGES).stdout for name in ("drakar", "cheetah", "debian11")]
    result = four.build(check=False)
    assert result.returncode == 1
    assert result.stdout.count("installing the compiler in the copy") == 2, output(result)
    assert "cheetah: compiling against uWSGI 2.0.21-debian" in result.stdout
    assert "drakar: compiling" not in result.stdout
    assert re.search("^built: .*: drakar", result.stdout, re.MULTILINE)
    assert "debian11: it does not compile:" in result.stderr
    assert re.search(r"curl\.h:1:2: error: #error too old", result.stderr), result.stderr
    assert "1 host has no plugin: debian11" in result.stderr
    for name, before in zip(("drakar", "cheetah", "debian11"), packages, strict=True):
        assert lab.ssh(name, PACKAGES).stdout == before
        left = lab.ssh(name, "ls -A /mnt /var/tmp | grep -c uwsgi", check=False)
        assert left.stdout == "0\n"
    for name in ("cheetah", "debian11"):
        lab.ssh(name, "sudo rm -rf /usr/local/include/curl /usr/local/sbin/mount")
    # A builder is no member of the cluster.
    four.hosts(["drakar"], ["drakar"], builders=["cheetah"])
    assert all("cheetah" not in hosts for hosts in four.changes().values())


def test_hosts_without_uwsgi_are_listed_as_such(four: Fleet) -> None:
    four.hosts(["drakar"], APPS)
    result = four.build("--list", check=False)
    assert result.returncode == 1
    assert "debian13: has no uWSGI" in result.stdout


def test_a_plugin_for_each_of_debians_is_built(four: Fleet) -> None:
    options = [word for name in NAMES if name != "cheetah" for word in ("--host", name)]
    result = four.build(*options)
    assert result.stdout.count("built: ") == 2
    assert result.stdout.count("up to date: ") == 1


def test_pypis_is_built_on_its_host_and_a_plugin_for_it(four: Fleet) -> None:
    result = four.build()
    assert result.stdout.count("built: ") == 1
    assert result.stdout.count("up to date: ") == 3


def test_what_was_built_is_listed_and_not_built_again(four: Fleet) -> None:
    found = manifests()
    versions = {manifest["built_on"]: manifest["uwsgi"] for manifest in found.values()}
    assert sorted(manifest["uwsgi"] for manifest in found.values()) == sorted(VERSIONS.values())
    assert {name: versions[name] for name in ("debian11", "debian13")} == {
        name: VERSIONS[name] for name in ("debian11", "debian13")
    }
    for fingerprint, manifest in found.items():
        assert manifest["fingerprint"] == fingerprint
        parts = {"version", "flags", "header", "architecture", "libc", "libcurl"}
        assert set(manifest["parts"]) == parts
        assert manifest["compiler"].startswith("gcc ")
    rows = listed(four)
    assert {name: row[1] for name, row in rows.items()} == VERSIONS
    assert all(row[-1] == "built" and row[2] in found for row in rows.values())
    again = four.build()
    assert again.stdout.count("up to date: ") == 4
    assert "compil" not in again.stdout


def test_each_host_gets_its_own(four: Fleet, lab: Lab) -> None:
    four.deploy()
    four.verify("--probe")
    rows = listed(four)
    for name in NAMES:
        look = (
            f"sudo grep -aom1 'fleet fingerprint [0-9a-f]*' /srv/{SERVICE}/current/consul_plugin.so"
        )
        assert lab.ssh(name, look).stdout.split()[-1] == rows[name][2]
        units = attempts.exposure(lab, name, "consul.service", f"{SERVICE}-*.service")
        assert len(units) == 3 and max(units.values()) <= 2, units
    assert four.changes() == {}
    # PyPI's comes from the application's environment.
    running = lab.ssh("cheetah", "ps -C uwsgi -o args=").stdout
    assert f"/srv/{SERVICE}/releases/" in running
    assert "*** running gevent loop engine" in journal_of(lab, "cheetah")
    assert "/venv/bin/uwsgi" in running


def test_a_stop_deregisters_with_each_of_them(four: Fleet, lab: Lab) -> None:
    for name in NAMES:
        lab.ssh(name, f"sudo systemctl stop {SERVICE}.target")
    result = four.verify(check=False)
    assert result.stdout.count("not registered") == 8, output(result)
    for name in NAMES:
        lab.ssh(name, f"sudo systemctl start {SERVICE}.target '{SERVICE}-*.socket'")
        journal = journal_of(lab, name)
        assert "[consul] deregistered server1" in journal
        assert not re.search("SEGV|core-dump|SIGABRT|AddressSanitizer", journal)
    four.verify("--probe")


def test_one_host_alone(four: Fleet) -> None:
    result = four.build("--host", "cheetah")
    assert not re.search("drakar|debian", result.stdout)
    result = four.build("--host", "debian14", check=False)
    assert result.returncode == 1
    assert "--host debian14:" in result.stderr
    assert "did you mean 'debian1" in result.stderr


# --- The wrong plugin ----------------------------------------------------------------


def now(lab: Lab, name: str) -> str:
    return str(lab.ssh(name, "date '+%F %T'").stdout.strip())


def restarted(lab: Lab, name: str, since: str) -> str:
    """What an instance that is started again says, until it is refused."""
    lab.ssh(name, f"sudo systemctl restart '{SERVICE}-2001@*'", check=False)

    def refused() -> str:
        said = journal_of(lab, name, "--since", since)
        return said if "start-uwsgi: not started: " in said else ""

    return str(until(refused, f"{name} refuses to start"))


CRASH = re.compile("SEGV|SIGSEGV|core-dump|SIGBUS")


def test_an_upgraded_uwsgi_is_noticed_and_not_started(four: Fleet, lab: Lab) -> None:
    """As after `apt upgrade`. Debian's archive has one version of each release: PyPI's program
    plays the newer one."""
    copy(lab, "cheetah:$(ls -d /opt/uwsgi-consul-fleet/uwsgi/*)/uwsgi", "drakar:/tmp/new")
    lab.ssh(
        "drakar",
        "cd /usr/bin && sudo mv uwsgi-core uwsgi-core.old"
        " && sudo install -m 755 /tmp/new uwsgi-core",
    )
    # What runs goes on; the next start would be wrong.
    result = four.verify("--wait", "30", check=False)
    assert result.returncode == 1
    assert "wrong plugin: node drakar: its uWSGI is 2.0.31 now" in result.stdout
    assert result.stdout.count("✓ passing") == 8
    journal = restarted(lab, "drakar", now(lab, "drakar"))
    assert "and this is uWSGI 2.0.31 with fingerprint" in journal
    assert not CRASH.search(journal), journal
    lab.ssh("drakar", "cd /usr/bin && sudo mv uwsgi-core.old uwsgi-core")


def test_a_plugin_for_another_uwsgi_is_refused_and_replaced(four: Fleet, lab: Lab) -> None:
    """On one host that of another one, on another one something that was not built here."""
    wrong = DIST / listed(four)["debian13"][2] / "consul_plugin.so"
    there = f"$(sudo readlink -f /srv/{SERVICE}/current/consul_plugin.so)"
    copy(lab, str(wrong), "debian11:/tmp/wrong.so")
    lab.ssh("debian11", f"sudo install -m 644 /tmp/wrong.so {there}")
    lab.ssh("debian13", f"echo foreign | sudo install -m 644 /dev/stdin {there}")
    since = now(lab, "debian11")
    journal = restarted(lab, "debian11", since)
    assert "is for the uWSGI with fingerprint" in journal
    assert "run invoke build-plugin, then deploy" in journal
    assert not CRASH.search(journal), journal
    foreign = restarted(lab, "debian13", now(lab, "debian13"))
    assert "is not one that build-plugin made" in foreign
    result = four.verify(check=False)
    assert "wrong plugin: node debian11: " in result.stdout
    assert "its plugin is for another's" in result.stdout
    # systemd has not tried again meanwhile: it would have after a second.
    assert journal_of(lab, "debian11", "--since", since).count("not started: ") == 1
    four.deploy()
    four.verify("--probe")


def test_without_its_plugin_a_host_is_left_as_it_is(four: Fleet, lab: Lab) -> None:
    fingerprint = listed(four)["debian13"][2]
    kept = DIST.with_name("kept")
    look = "sudo find /opt /srv /etc/consul.d /etc/systemd -printf '%p %T@ %s\\n' | sort"
    before = lab.ssh("debian13", look).stdout
    (DIST / fingerprint).rename(kept)
    try:
        result = four.deploy("--data", "check_ttl=9", "--limit", "debian13", check=False)
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


# --- Builds that fail ----------------------------------------------------------------


class Checkout:
    """A copy of the checkout with something wrong in it, to build from."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.root = folder / "clone"
        ignored = shutil.ignore_patterns(".venv", ".git", ".*_cache", "dist")
        shutil.copytree(ROOT, self.root, ignore=ignored)
        self.scratch = self.root / "uwsgi_consul_fleet/build/scratch.sh"

    def build(self, *hosts: str) -> "subprocess.CompletedProcess[str]":
        options = [word for host in hosts for word in ("--host", host)]
        command = ("invoke", "build-plugin", *options, "--inventory", str(self.fleet.path))
        return run(*command, check=False, cwd=self.root)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_what_keeps_a_compiler_away_is_said(four: Fleet, lab: Lab) -> None:
    """On two hosts at the same time: no network, no such package."""
    configuration = "/etc/apt/apt.conf.d/99-test"
    proxy = 'Acquire::http::Proxy "http://127.0.0.1:9";'
    nothing = 'Dir::State::lists "/tmp/none"; Dir::Etc "/tmp/none";'
    spoil = f"sudo tee {configuration}; sudo apt-get clean; sudo mkdir /tmp/none"
    lab.ssh("debian11", f"echo '{proxy}' | {spoil}")
    lab.ssh("drakar", f"echo '{nothing}' | {spoil}")
    before = [lab.ssh(name, PACKAGES).stdout for name in ("debian11", "drakar")]
    result = four.build("--force", "--host", "debian11", "--host", "drakar", check=False)
    for name in ("debian11", "drakar"):
        lab.ssh(name, f"sudo rm -r {configuration} /tmp/none")
    assert result.returncode == 1
    mirror = "the compiler's packages can't be installed: can it reach its package mirror?"
    assert f"debian11: {mirror}" in result.stderr, result.stderr
    sources = "its package sources have no compiler, or not all that is needed"
    assert f"drakar: {sources}" in result.stderr, result.stderr
    assert "2 hosts have no plugin: " in result.stderr, result.stderr
    assert [lab.ssh(name, PACKAGES).stdout for name in ("debian11", "drakar")] == before


def test_a_host_that_goes_away_in_the_middle_is_said(four: Fleet, lab: Lab) -> None:
    process = start(
        "invoke", "build-plugin", "--force", "--host", "debian13", "--inventory", str(four.path)
    )
    assert process.stdout
    assert any("debian13: installing the compiler" in line for line in process.stdout)
    lab.kill("debian13")
    result = finish(process, check=False)
    lab.up("debian13")
    assert result.returncode == 1
    assert re.search(r"debian13 \(\S+\): connection lost", result.stderr), result.stderr


def test_a_full_disk_is_said(four: Fleet, lab: Lab, tmp_path: Path) -> None:
    """The scratch layer is in memory here: a smaller one is full sooner."""
    checkout = Checkout(four, tmp_path)
    replace(checkout.scratch, "size=1g", "size=50m")
    result = checkout.build("drakar")
    assert result.returncode == 1
    assert "drakar: no room for the compiler in /mnt" in result.stderr, output(result)
    assert lab.ssh("drakar", "ls -A /mnt /var/tmp | grep -c uwsgi", check=False).stdout == "0\n"


# --- Other sources -------------------------------------------------------------------

HELLO = """
#include <uwsgi.h>
static struct uwsgi_option options[] = {
    {"hello", no_argument, 0, "say hello", uwsgi_opt_true, NULL, 0},
    UWSGI_END_OF_OPTIONS
};
struct uwsgi_plugin hello_plugin = {.name = "hello", .options = options};
"""


def test_another_plugin_and_a_toolchain_that_is_kept(four: Fleet, lab: Lab, tmp_path: Path) -> None:
    assert lab.ssh("debian13", "command -v gcc", check=False).returncode != 0
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "hello.c").write_text(HELLO)
    (folder / "uwsgiplugin.py").write_text(
        "NAME = 'hello'\nCFLAGS = []\nLDFLAGS = []\nLIBS = []\nGCC_LIST = ['hello']\n"
    )
    result = four.build("--source", str(folder), "--keep-toolchain", "--host", "debian13")
    assert lab.ssh("debian13", "gcc --version").stdout
    (built,) = DIST.glob("*/hello_plugin.so")
    assert f"built: {built.relative_to(ROOT)}" in result.stdout
    assert json.loads((built.parent / "hello_plugin.json").read_text())["plugin"] == "hello"
    # From a repository of the same content: nothing is to be done.
    for words in ("init", "add .", "-c user.name=a -c user.email=a@b commit -m x"):
        subprocess.run(["git", "-C", str(folder), *words.split()], check=True, capture_output=True)
    result = four.build("--source", folder.as_uri(), "--host", "debian13")
    assert "up to date: " in result.stdout


def test_what_is_no_source(four: Fleet) -> None:
    result = four.build("--source", "docs", check=False)
    assert result.returncode == 1
    assert "--source docs: has no uwsgiplugin.py" in result.stderr


def test_for_this_machine(four: Fleet, tmp_path: Path) -> None:
    result = run("invoke", "build-plugin", "--local")
    assert "(uWSGI 2.0." in result.stdout
    assert ": this machine)" in result.stdout
    result = run("invoke", "build-plugin", "--local", "--host", "drakar", check=False)
    assert "--local is this machine" in result.stderr


# --- The plugin's own tests, with each of these uWSGIs -------------------------------------

# The agent runs on this machine: the uWSGI of a host is started in the host's file system, but
# in a network that both share and that nobody else sees. No mount of this outlives the process.
IN_ITS_ROOT = """
set -eu
PATH=$PATH:/usr/sbin
ip link set lo up
for shared in /dev /proc "$1"; do
    mkdir -p "$root$shared"
    mount --rbind "$shared" "$root$shared"
done
exec "$2" -m pytest tests/plugin -m everywhere -q --basetemp "$1/tests" \
    --uwsgi "$1/uwsgi" --plugin "$1/consul_plugin.so" $3
"""


KINDS = {
    # PyPI's has no other language.
    "cheetah": ("", ("--embedded-python", "-k", "not gevent and not another_language")),
    # gevent itself is missing in Debian 11's archive.
    "debian11": ("uwsgi-plugin-psgi", ("-k", "not gevent")),
    "debian13": ("uwsgi-plugin-psgi uwsgi-plugin-gevent-python3", ()),
}


PARTS = 4


@pytest.fixture(scope="module")
def plugins_tests(
    four: Fleet, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, "Future[list[Result]]"]]:
    """With the uWSGI of each, in parts, all side by side: they wait more than they compute."""
    rows = listed(four)
    roots = {machine.name: machine.root for machine in known()}
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}

    def run_on(name: str) -> list[Result]:
        packages, options = KINDS[name]
        if packages:
            lab.ssh(name, f"{INSTALL} {packages}")
        binary, _, fingerprint = rows[name][:3]

        def run_part(number: int) -> Result:
            folder = folders[name] / str(number)
            folder.mkdir()
            shutil.copy(DIST / fingerprint / "consul_plugin.so", folder)
            words = (*options, "--part", f"{number}/{PARTS}")
            return run_plugins_tests(lab, roots[name], binary, folder, words)

        with ThreadPoolExecutor(PARTS) as pool:
            return list(pool.map(run_part, range(1, PARTS + 1)))

    with ThreadPoolExecutor(len(KINDS)) as pool:
        yield {name: pool.submit(run_on, name) for name in KINDS}


def run_plugins_tests(
    lab: Lab, root: Path, binary: str, folder: Path, words: Sequence[str]
) -> Result:
    """
    :param root: of the machine whose uWSGI it is
    :param folder: with the plugin for it
    :param words: options of pytest
    """
    program = folder / "uwsgi"
    program.write_text(f'#!/bin/sh\nexec chroot {root} env -C "$PWD" {binary} "$@"\n')
    program.chmod(0o755)
    script = IN_ITS_ROOT.replace("$3", shlex.join(words))
    # Options of pytest's are for this run.
    return lab.run(
        *SUDO, "env", "--unset=PYTEST_ADDOPTS", f"root={root}",
        "unshare", "--net", "--mount", "--propagation", "private",
        "sh", "-c", script, "tests", str(folder), sys.executable, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_plugins_tests_with_each_of_them(
    plugins_tests: dict[str, "Future[list[Result]]"], name: str
) -> None:
    passed = 0
    for result in plugins_tests[name].result():
        assert result.returncode == 0, output(result)
        assert "skipped" not in result.stdout, output(result)
        passed += int(re.findall(r"(\d+) passed", result.stdout)[-1])
    assert passed >= 35
