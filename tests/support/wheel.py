"""The wheel, as it is built and as a user installs it: with what the registry has today."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkout import BIN, ROOT

Result = subprocess.CompletedProcess[str]


def clone(folder: Path) -> Path:
    """What is under test, as in a clone of its own: setuptools leaves folders behind, and would
    pack what it finds in them."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(folder: Path) -> Path:
    """Of what is under test."""
    sources = clone(folder / "sources")
    # What an operator builds is his.
    (sources / "plugin_build/dist/0").mkdir(parents=True)
    (sources / "plugin_build/dist/0/consul_plugin.so").touch()
    return pack(sources, folder)


def pack(sources: Path, folder: Path) -> Path:
    """The wheel of these sources, in a folder."""
    words = [BIN / "uv", "build", "--quiet", "--wheel", "--no-build-isolation", "--offline"]
    words += ["--python", sys.executable, "--out-dir", folder, sources]
    subprocess.run(words, check=True)
    (found,) = folder.glob("*.whl")
    return found


@contextmanager
def installed(wheel: Path, environment: Path) -> Iterator[Path]:
    """In a virtual environment of its own, with its dependencies.

    No command may write into the package: nobody but root could, and where it is root a look at
    it afterwards tells.
    """
    words = [BIN / "uv", "venv", "--quiet", "--python", sys.executable, environment]
    subprocess.run(words, check=True)
    words = [BIN / "uv", "--system-certs", "pip", "install", "--quiet", "--compile-bytecode"]
    subprocess.run([*words, "--python", environment / "bin/python", wheel], check=True)
    (package,) = environment.glob("lib/*/site-packages/uwsgi_consul_fleet")
    folders = [package, *(path for path in package.rglob("*") if path.is_dir())]
    for each in folders:
        each.chmod(0o555)
    before = _content(package)
    yield environment
    for each in folders:
        each.chmod(0o755)
    assert _content(package) == before


def _content(package: Path) -> dict[Path, tuple[int, int]]:
    """Its files, each with its size and when it was written."""
    files = [(path, path.stat()) for path in package.rglob("*")]
    return {path: (state.st_size, state.st_mtime_ns) for path, state in files}


def run(environment: Path, folder: Path, *words: str, **variables: str) -> Result:
    """One of its programs, in a folder, as in a shell that knows of no checkout."""
    ours = os.environ.keys() - {"PYTHONPATH", "VIRTUAL_ENV"}
    return subprocess.run(
        [str(environment / "bin" / words[0]), *words[1:]],
        cwd=folder,
        env={**{key: os.environ[key] for key in ours}, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
