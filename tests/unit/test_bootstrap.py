"""script/bootstrap on an operator's machine that lacks what a Debian has."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from checkout import ROOT

FILES = ("requirements.lock", "pyproject.toml")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A checkout that was set up, and in ``bin`` what this machine has, but for two programs."""
    for name in (*FILES, "script/bootstrap"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(ROOT / name)
    (tmp_path / ".venv").mkdir()
    text = b"".join((ROOT / name).read_bytes() for name in FILES)
    (tmp_path / ".venv/installed").write_text(hashlib.sha256(text).hexdigest()[:16])
    (tmp_path / "bin").mkdir()
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).glob("*"):
            if program.name not in ("sha256sum", "shasum"):
                link = tmp_path / "bin" / program.name
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return tmp_path


def bootstrap(
    machine: Path, release: str = "/etc/os-release"
) -> "subprocess.CompletedProcess[str]":
    # By its own path: a link would lead to this checkout.
    script = (machine / "script/bootstrap").read_text().replace("/etc/os-release", release)
    words = ["/bin/sh", "-c", script, str(machine / "script/bootstrap")]
    environment = {**os.environ, "PATH": str(machine / "bin")}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_macs_have_another_program_for_checksums(machine: Path) -> None:
    shasum = machine / "bin/shasum"
    shasum.write_text('#!/bin/sh\n[ "$*" = "-a 256" ] && exec /usr/bin/sha256sum\n')
    shasum.chmod(0o755)
    result = bootstrap(machine)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "==> ready: . .venv/bin/activate\n"
    result = bootstrap(machine, release="/none")
    assert result.returncode == 0, result.stderr
    assert "==> this is Linux, not Debian 12 or later:" in result.stdout
    assert result.stdout.endswith("==> ready: . .venv/bin/activate\n")


def test_without_any_it_does_not_say_that_it_is_ready(machine: Path) -> None:
    (machine / ".venv/installed").unlink()
    result = bootstrap(machine)
    assert result.returncode == 1
    assert "install one of them" in result.stderr
    assert "ready" not in result.stdout
