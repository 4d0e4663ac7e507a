"""How long `script/demo` takes in an empty clone: with nothing cached, then with a warm base.

Each run has a clone of its own, without a virtual environment; both share a cache that
is empty at the start. Debian packages that this machine has already are not installed
again (5 to 20 s on a machine without any). Run it as root, with no other lab up, as
running labs share one package cache.

    python bench/demo.py
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = {"cold cache": 360, "warm base": 75}  # seconds, on 2 cores


def demo(clone: Path, cache: Path) -> float:
    environment = {**os.environ, "UWSGI_CONSUL_FLEET_CACHE": str(cache)}
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    begin = time.monotonic()
    result = subprocess.run(
        ["script/demo"], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    elapsed = time.monotonic() - begin
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    down = [".venv/bin/invoke", "lab.down"]
    subprocess.run(down, cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)
    return elapsed


def main() -> None:
    options = figures.parse(
        argparse.ArgumentParser(description=__doc__.splitlines()[0]), "the cold cache alone"
    )
    folder = Path(tempfile.mkdtemp(prefix="uwsgi-consul-fleet-bench-"))
    try:
        for name, required in list(REQUIRED.items())[: 1 if options.once else None]:
            clone = folder / name.replace(" ", "-")
            elapsed = demo(clone, folder / "cache")
            print(f"{name}: {elapsed:.0f} s (required: at most {required})", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
