"""What an application depends on: resolved once, and the same on every host. That two hosts of one
run get the same is in test_frameworks.py.

The tests run in the order in which they stand here. drakar has the application alone at first; a
package of its dependencies has to be compiled, and one comes from an index that wants a password.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from applications import application
from fleet_commands import output
from lab_commands import Lab
from load import SERVICE
from shared_fleet import SharedFleet

pytestmark = pytest.mark.takes(170)

REQUIREMENTS = """
--extra-index-url http://me:${AHOY_PASSWORD}@127.0.0.1:8099/
ahoy
-r public.txt
"""
PUBLIC = """
certifi
netifaces==0.11.0
"""
PASSWORD = "sesame-4711"
INDEX = """
import base64, http.server, sys
wanted = "Basic " + base64.b64encode(f"me:{sys.stdin.readline().strip()}".encode()).decode()

class Index(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.headers["Authorization"] == wanted:
            return super().do_GET()
        self.send_response(401)
        self.end_headers()

http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Index).serve_forever()
"""
ABOUT = "Metadata-Version: 2.1\nName: {}\nVersion: 1\n"
SETUP = """
import os, setuptools
with open("{name}.py", "w") as module:
    module.write("BUILT_BY = %d" % os.getuid())
setuptools.setup(name="{name}", version="1", py_modules=["{name}"])
"""
OLD = "certifi==2024.8.30"
MORE = ("--data", "app_processes=3")
# Where something of a deploy could be left.
PLACES = "/srv /etc /opt /root /tmp /var/tmp /var/log /run"


def sources(name: str) -> bytes:
    """Of a package with one module, which says by whom it was built."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz") as opened:
        for path, text in {
            "setup.py": SETUP.format(name=name),
            "PKG-INFO": ABOUT.format(name),
        }.items():
            member = tarfile.TarInfo(f"{name}-1/{path}")
            member.size = len(text)
            opened.addfile(member, io.BytesIO(text.encode()))
    return found.getvalue()


def configured(line: str) -> str:
    """A command that makes this pip's configuration on a host."""
    return f"printf '[global]\\n{line}\\n' | sudo tee /etc/pip.conf"


@pytest.fixture(scope="module")
def options(
    lab: Lab, fleet: SharedFleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Of a deploy with these requirements. drakar resolves them to an old version, and cheetah has
    no index at all."""
    folder = tmp_path_factory.mktemp("dependencies")
    index = folder / "index"
    (index / "ahoy").mkdir(parents=True)
    (index / "index.py").write_text(INDEX)
    (index / "ahoy" / "ahoy-1.tar.gz").write_bytes(sources("ahoy"))
    lab.run("scp", "-q", "-r", *lab.ssh_options, str(index), "drakar:index")
    run = "sudo systemd-run --quiet --unit=index --working-directory=$HOME/index sh -c"
    lab.ssh("drakar", f"echo {PASSWORD} >password; {run} 'exec python3 index.py <../password'")
    lab.ssh("drakar", f"echo {OLD} | sudo tee /etc/old; {configured('constraint = /etc/old')}")
    # Of an earlier run on these machines.
    lab.ssh("drakar", f"sudo rm -rf /srv/{SERVICE}/resolutions")
    lab.ssh("cheetah", configured("index-url = http://127.0.0.1:9/"))
    source = application(folder, "\nimport ahoy, certifi, netifaces\n")
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    (folder / "public.txt").write_text(PUBLIC)
    yield [
        *("--data", f"app_source={source}"),
        *("--data", f"app_requirements={folder / 'requirements.txt'}"),
        *("--data", "min_healthy_time=0"),
    ]
    lab.ssh("drakar", "sudo systemctl stop index; rm -r index password; sudo rm -f /etc/pip.conf")
    lab.ssh("cheetah", "sudo rm /etc/pip.conf")


def installed(lab: Lab, host: str) -> list[str]:
    """What the release that serves there has."""
    python = f"/srv/{SERVICE}/current/venv/bin/python"
    return str(lab.ssh(host, f"sudo {python} -m pip freeze").stdout).split("\n")


def test_dependencies_are_made_on_one_host(
    fleet: SharedFleet, lab: Lab, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.hosts(["drakar"], ["drakar"])
    refused = output(fleet.deploy(*options, check=False))
    assert "app_requirements: no value for AHOY_PASSWORD: it is neither in this" in refused
    assert "Starting operation" not in refused
    monkeypatch.setenv("AHOY_PASSWORD", PASSWORD)
    said = output(fleet.deploy(*options))
    assert "installing the compiler in a scratch layer" in said
    assert installed(lab, "drakar")[:3] == ["ahoy==1", OLD, "netifaces==0.11.0"]
    says = f"/srv/{SERVICE}/current/venv/bin/python -c 'import ahoy; print(ahoy.BUILT_BY)'"
    built_by, its = lab.ssh("drakar", f"sudo {says}; id -u {SERVICE}").stdout.split()
    assert built_by == its
    assert lab.ssh("drakar", "command -v gcc", check=False).returncode == 1
    assert lab.ssh("drakar", f"sudo grep -rlIs {PASSWORD} {PLACES}", check=False).stdout == ""


def test_what_a_version_before_installed_stays(
    fleet: SharedFleet, lab: Lab, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resolved nothing: release.json does not tell, and the wheels are nowhere. There are newer
    versions by now."""
    before = installed(lab, "drakar")
    untold = f"sudo sh -c 'sed -i /resolution/d /srv/{SERVICE}/releases/*/release.json'"
    # But for those that were compiled, to be spared that.
    gone = f"sudo sh -c 'rm -r /srv/{SERVICE}/resolutions/[!.]*'"
    lab.ssh("drakar", f"{untold} && {gone} && sudo rm /etc/pip.conf")
    monkeypatch.setenv("AHOY_PASSWORD", PASSWORD)
    said = output(fleet.deploy(*options, *MORE))
    assert "[drakar] resolving its requirements" in said
    assert installed(lab, "drakar") == before


def test_a_host_that_joins_later_has_the_same_and_asks_no_index(
    fleet: SharedFleet, lab: Lab, options: list[str], tmp_path: Path
) -> None:
    """Without the password, alone in its run; and others are wanted by now, of another
    application."""
    fleet.hosts(["drakar"], ["drakar", "cheetah"])
    edited = tmp_path / "requirements.txt"
    edited.write_text("flask\n")
    other = application(tmp_path, "\n# edited\n")
    since = ("--data", f"app_source={other}", "--data", f"app_requirements={edited}")
    stays = ("--data", "min_healthy_time=0", "--data", "release=current", *MORE)
    said = output(fleet.deploy("--limit", "cheetah", *since, *stays))
    assert "resolving" not in said
    assert installed(lab, "cheetah") == installed(lab, "drakar")
    digests = f"sudo sh -c 'cd /srv/{SERVICE}/current && sha256sum app/* requirements.d/*'"
    assert lab.ssh("cheetah", digests).stdout == lab.ssh("drakar", digests).stdout
    assert fleet.changes(*options, *MORE) == {}
    fleet.verify("--probe")


def test_a_release_under_a_new_name_has_newer_dependencies(
    fleet: SharedFleet, lab: Lab, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHOY_PASSWORD", PASSWORD)
    newer = ("--data", "release=newer", "--limit", "drakar")
    said = output(fleet.deploy(*options, *newer))
    assert "resolving its requirements" in said
    # What was compiled is used again.
    assert "compiler" not in said
    found = installed(lab, "drakar")
    assert OLD not in found
    assert "netifaces==0.11.0" in found
    # Nothing is resolved for the next one, whose requirements are the same.
    monkeypatch.delenv("AHOY_PASSWORD")
    changes = fleet.changes(*options, *MORE, *newer)
    assert "Application: bring its dependencies" not in changes
    assert "Application: install the release" in changes


def test_a_python_that_no_service_can_use_is_refused(
    fleet: SharedFleet, lab: Lab, options: list[str]
) -> None:
    lab.ssh("cheetah", "sudo ln -sf /usr/bin/python3 /root/python")
    closed = ("--data", "uwsgi_source=pypi", "--data", "app_python=/root/python")
    said = output(fleet.deploy(*options, *closed, check=False))
    assert "cheetah: app_python: /root/python is not for everybody" in said
    assert "Starting operation" not in said
