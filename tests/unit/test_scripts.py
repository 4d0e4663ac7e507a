"""What shell scripts do on a host, here in a temporary folder; tests/lab has real hosts."""

import base64
import getpass
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from checkout import ROOT
from consul_processes import until
from folders import Machine

from uwsgi_consul_fleet.host import content
from uwsgi_consul_fleet.operations.files import WRITE
from uwsgi_consul_fleet.operations.state import State

pytestmark = pytest.mark.takes(20)

SCRIPTS = ROOT / "uwsgi_consul_fleet"
APPLICATIONS = SCRIPTS / "operations/applications"

RESOLVE = ("resolution.sh", "venv.sh", "resolve.sh")
INSTALL = ("venv.sh", "install.sh")


def run(
    host: Path, script: str, *words: str, stdin: bytes = b"", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """:param host: a folder in which it finds what else is /srv, /run and /var/tmp"""
    for place in ("/srv", "/run", "/var/tmp"):
        (host / place[1:]).mkdir(parents=True, exist_ok=True)
        script = script.replace(f"{place}/", f"{host}{place}/")
    result = subprocess.run(
        ["/bin/sh", "-c", script, "script", *words],
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )
    return subprocess.CompletedProcess(
        result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
    )


def packed(**files: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:") as opened:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            opened.addfile(member, io.BytesIO(text.encode()))
    return archive.getvalue()


def install(
    host: Path, resolution: str = "", environment: str = "-", **files: str
) -> "subprocess.CompletedProcess[str]":
    archive = packed(**{"release.json": "{}", **files})
    stdin = subprocess.run(["gzip"], input=archive, stdout=-1, check=True)
    words = (
        "shop",
        "r1",
        environment,
        resolution,
        "/none/plugin.so",
        sys.executable,
        "",
        "release.json",
    )
    script = "".join((APPLICATIONS / name).read_text() for name in INSTALL)
    return run(host, script, *words, stdin=base64.b64encode(stdin.stdout))


# A Python that notes how it is started. Where it lacks something, what is unpacked fails.
PYTHON = """#!/bin/sh
echo "$*" >>"$0.log"
%s "$@"
[ ! "${lacks-}" ] || case $* in *--without-pip*) rm "$5/bin/python" ;; esac
"""


@pytest.mark.parametrize("lacks", ["", "wheels"])
def test_an_environment_has_what_python_puts_into_it(tmp_path: Path, lacks: str) -> None:
    python, made = tmp_path / "python", tmp_path / "venv"
    python.write_text(PYTHON % sys.executable)
    python.chmod(0o755)
    script = (APPLICATIONS / "venv.sh").read_text() + 'make_venv "$@"'
    done = run(tmp_path, script, str(python), str(made), lacks=lacks)
    assert done.returncode == 0, done.stderr
    ways = [f"-m venv --clear --without-pip {made}", f"-m venv --clear {made}"]
    assert Path(f"{python}.log").read_text().splitlines() == ways[: 2 if lacks else 1]
    listed = subprocess.run([made / "bin/pip", "list"], capture_output=True, text=True, check=True)
    wanted = {"pip", "setuptools"} if sys.version_info < (3, 12) else {"pip"}
    assert {line.split()[0] for line in listed.stdout.splitlines()[2:]} == wanted
    assert (made / "bin/pip3").exists()


def test_no_environment_is_made_of_dependencies_that_are_gone(tmp_path: Path) -> None:
    gone = install(tmp_path, "0123/cp311", "v1")
    assert gone.returncode == 1
    assert "dependencies are gone" in gone.stderr
    assert not [*(tmp_path / "srv/shop/venvs").iterdir()]
    assert not [*(tmp_path / "srv/shop/releases").iterdir()]
    there = tmp_path / "srv/shop/resolutions/0123/cp311"
    there.mkdir(parents=True)
    (there / "requirements.txt").touch()
    assert install(tmp_path, "0123/cp311", "v1").returncode == 0
    assert (tmp_path / "srv/shop/releases/r1/release.json").exists()


@pytest.mark.parametrize("kind", ["composer", "lib"])
def test_what_other_languages_depend_on_lies_in_the_release(tmp_path: Path, kind: str) -> None:
    source = {"source/public/index.php": "<?php", "source/lib/vendor": "a file of this name"}
    gone = install(tmp_path, "0123/cp311", **source)
    assert gone.returncode == 1 and "dependencies are gone" in gone.stderr
    there = tmp_path / "srv/shop/resolutions/0123/cp311"
    (there / "vendor.d" / kind).mkdir(parents=True)
    (there / "vendor.d" / kind / "file").write_text("brought")
    (there / "requirements.txt").write_text(f"vendor.d/{kind}/file\n")
    done = install(tmp_path, "0123/cp311", **source)
    assert done.returncode == 0, done.stderr
    release = tmp_path / "srv/shop/releases/r1"
    # It takes no room for each release, and PHP looks for it in the project.
    assert (release / "vendor.d" / kind / "file").samefile(there / "vendor.d" / kind / "file")
    assert (release / "source/vendor").exists() == (kind == "composer")
    # What is sent on to other hosts is what was sent here.
    assert [each.path for each in content.sources(release)] == sorted(source)


def test_what_is_left_of_a_release_is_replaced(tmp_path: Path) -> None:
    release = tmp_path / "srv/shop/releases/r1"
    lock = tmp_path / "run/uwsgi-consul-fleet.lock"
    lock.parent.mkdir()
    lock.touch(0o644)
    (release / "app").mkdir(parents=True)
    assert install(tmp_path).returncode == 0
    assert (release / "release.json").exists()
    assert not (release / "app").exists()
    assert lock.stat().st_mode & 0o777 == 0o600  # nobody else can hold it
    assert release.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("cut", ["", "requirements.txt", "wheels/b.whl"])
def test_dependencies_that_did_not_arrive_whole_are_not_kept(tmp_path: Path, cut: str) -> None:
    files = {"wheels/a.whl": "a", "requirements.txt": "a==1\nb==1\n", "wheels/b.whl": "b"}
    files.pop(cut, None)
    script = "".join(
        (APPLICATIONS / f"{name}.sh").read_text() for name in ("resolution", "receive")
    )
    stdin = base64.b64encode(packed(**files))
    result = run(tmp_path, script, "shop", "0123", "cp311", stdin=stdin)
    kept = tmp_path / "srv/shop/resolutions/0123/cp311"
    assert (result.returncode, kept.exists()) == ((1, False) if cut else (0, True)), result.stderr
    if cut:
        assert "did not arrive whole" in result.stderr


@pytest.mark.parametrize(
    ("index", "status", "others"),
    [("http://127.0.0.1:9/", 1, False), ("file:///none/", 3, True)],
    ids=["an index that is down", "versions that do not fit"],
)
def test_other_versions_are_taken_only_where_these_do_not_fit(
    tmp_path: Path, index: str, status: int, others: bool
) -> None:
    files = {"main.txt": "none\n", "resolved.txt": "none==1 --hash=sha256:0\n"}
    result = resolve(tmp_path, files, PIP_INDEX_URL=index, PIP_RETRIES="1")
    assert result.returncode == status, result.stderr
    assert ("others are taken" in result.stderr) == others
    assert not [*tmp_path.glob("srv/*/resolutions/*")]


def resolve(
    tmp_path: Path, files: Mapping[str, str], **pip: str
) -> subprocess.CompletedProcess[str]:
    scripts = (SCRIPTS / "build/scratch.sh", *map(APPLICATIONS.joinpath, RESOLVE))
    given = {"app": getpass.getuser(), "id": "0123", "kind": "cp311", "python": sys.executable}
    given |= {"main": "main.txt", "like": "drakar", "frozen": "", "keep_toolchain": "yes"}
    given |= {"build_packages": "", "PIP_CONFIG_FILE": "/dev/null", **pip}
    text = "".join(path.read_text() for path in scripts)
    # Nobody but root can become somebody else, and here it is the same user.
    (tmp_path / "setpriv").write_text(
        '#!/bin/sh\nuntil [ "${1#--}" = "$1" ]; do shift; done\n"$@"\n'
    )
    (tmp_path / "setpriv").chmod(0o755)
    given["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    return run(tmp_path, text, stdin=b"\n" + packed(**files), **given)


def test_what_is_not_what_was_locked_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "ahoy-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        told = {"METADATA": "Metadata-Version: 2.1\nName: ahoy\nVersion: 1\n", "RECORD": ""}
        told["WHEEL"] = "Wheel-Version: 1.0\nTag: py3-none-any\n"
        for name, text in told.items():
            opened.writestr(f"ahoy-1.dist-info/{name}", text)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    locked = {"main.txt": f"ahoy==1 --hash=sha256:{digest}\n", "resolved.txt": ""}
    with zipfile.ZipFile(wheel, "a") as opened:
        opened.writestr("ahoy.py", "import evil")
    refused = resolve(tmp_path, locked, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index))
    assert refused.returncode == 3 and "DO NOT MATCH THE HASHES" in refused.stderr, refused.stderr
    assert not [*tmp_path.glob("srv/*/resolutions/*")]


def test_a_build_leaves_the_folder_of_another_one_alone(tmp_path: Path) -> None:
    left = tmp_path / "var/tmp/uwsgi-consul-fleet-build.killed"
    left.mkdir(parents=True)
    text = (SCRIPTS / "build/scratch.sh").read_text()
    # The second one begins while the first one holds its own.
    text += 'scratch_on_disk; echo "$scratch"; [ "${second-}" ] || second=yes sh -c "$TEXT" 8<&-\n'
    second_text = text.replace("/var/tmp/", f"{tmp_path}/var/tmp/")
    result = run(tmp_path, text, TEXT=second_text, keep_toolchain="yes")
    assert result.returncode == 0, result.stderr
    first, second = map(Path, result.stdout.split())
    assert sorted(left.parent.iterdir()) == sorted([first, second])


def test_what_is_known_of_a_release_arrives_as_it_was_written(tmp_path: Path) -> None:
    """Some shells' echo takes out backslashes, which a command in it may have."""
    machine, build = Machine(tmp_path), r"sed 's/\\n$/\t/' x.in >x"
    machine.put("/srv/shop/releases/r1-0123/release.json", json.dumps({"build": [build]}, indent=1))
    machine.put("/etc/uwsgi-consul-fleet/shop.conf", "[Socket]\nService=%N@r1-0123.service\n")
    machine.put("/srv/shop/history", json.dumps({"release": build}) + "\n")
    words = ("shop", "2001", "", sys.executable, "")
    found = State().process(machine.run(State().command("", words)).splitlines()).of("shop")
    assert found.generations == {"r1-0123": {"build": [build]}}
    assert found.last_switch == {"release": build}


def test_what_is_asked_meanwhile_tears_no_line_apart(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    names = [f"r{number}-0123" for number in range(60)]
    for name in names:
        fields = json.dumps({"release": name, "note": "x" * 1000})
        machine.put(f"/srv/shop/releases/{name}/release.json", fields)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nfor n in $(seq 8000); do echo app_python $0 abi; done\n")
    python.chmod(0o755)
    words = ("shop", "2001", "", str(python), "")
    found = State().process(machine.run(State().command("", words)).splitlines()).of("shop")
    assert {name: each.get("release") for name, each in found.generations.items()} == {
        name: name for name in names
    }


@pytest.mark.parametrize("arrived", [b"", b"gossip and"])
def test_a_secret_that_did_not_arrive_whole_replaces_nothing(
    tmp_path: Path, arrived: bytes
) -> None:
    """As where the run is killed when it has begun the command."""
    file = tmp_path / "made/secrets.json"
    whole = b"gossip and token\n"
    words = (str(file), f"{os.getuid()}:{os.getgid()}", "640", str(len(whole)))
    assert run(tmp_path, WRITE, *words, stdin=arrived).returncode == 1
    assert [*file.parent.iterdir()] == []
    assert run(tmp_path, WRITE, *words, stdin=whole).returncode == 0
    assert run(tmp_path, WRITE, *words, stdin=arrived).returncode == 1
    assert file.read_bytes() == whole
    assert file.stat().st_mode & 0o777 == 0o640
    assert [*file.parent.iterdir()] == [file]


def test_in_which_round_an_agent_runs_that_fails_again_and_again(tmp_path: Path) -> None:
    """Between two tries of systemd's it would count as one of before there were rounds."""
    text = (SCRIPTS / "operations/state.sh").read_text()
    begin = text.index("print_agent() {")
    unit = tmp_path / "consul.service"
    unit.write_text("[Service]\nEnvironment=ROUND=3\n")
    function = text[begin : text.index("\n}", begin) + 3]
    function = function.replace("/etc/systemd/system/consul.service", str(unit))
    assert str(unit) in function
    agent = tmp_path / "consul"
    shutil.copy("/usr/bin/sleep", agent)
    told = {"CONFIGURATION_DIGEST": "x", "ROUND": "2"}
    started = (
        subprocess.Popen([agent, "60"], env=told),
        subprocess.Popen(["sleep", "60"], env=told),
    )
    ended = subprocess.Popen([agent, "0"], env=told)  # nobody asks how yet
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        runs = Path(f"/proc/{started[0].pid}/comm")
        until(lambda: runs.read_text() == "consul\n", "it is started")
        said = [
            run(tmp_path, f"{function} print_agent $1", str(number)).stdout
            for number in (started[0].pid, started[1].pid, ended.pid, 0)
        ]
    finally:
        for each in started:
            each.kill()
            each.wait()
        ended.wait()
    assert said == ["consul_running x\nconsul_round 2\n", *["consul_round 3\n"] * 3]
