"""How long a command takes to read an inventory of many hosts, each with its entry in ssh's config.

python bench/inventory.py [--hosts 500] [--runs 5]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import figures

ROOT = Path(__file__).resolve().parents[1]
# As each command does it, in a process of its own.
READ = (
    "from uwsgi_consul_fleet.commands.command import read\n"
    "print(len(read('inventory.py').app_servers))"
)


def write(folder: Path, count: int) -> None:
    """An inventory that is reached through an ssh config of its own."""
    config, inventory = folder / "ssh_config", folder / "inventory.py"
    names = [f"web{number:03}" for number in range(count)]
    config.write_text(
        "".join(
            f"Host {name}\n  HostName 10.99.{number // 250}.{number % 250 + 1}\n  User deploy\n"
            for number, name in enumerate(names)
        )
    )
    inventory.write_text(f"consul_servers = {names[:3]}\napp_servers = {names}\n")
    (folder / "group_data").mkdir()
    (folder / "group_data/all.py").write_text(
        (ROOT / "group_data/all.py").read_text() + f'\nssh_config_file = "{config}"\n'
    )


def timed(folder: Path, count: int) -> float:
    begin = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", READ], cwd=folder, capture_output=True, text=True, check=False
    )
    if result.stdout != f"{count}\n":
        sys.exit(f"not {count} hosts: {result.stdout}{result.stderr}")
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs (default 5)")
    options = figures.parse(parser, "one run over ten hosts")
    if options.once:
        options.hosts, options.runs = 10, 1
    with TemporaryDirectory() as name:
        write(Path(name), options.hosts)
        times = [timed(Path(name), options.hosts) for _ in range(options.runs)]
    print(
        f"{options.hosts} hosts: median {statistics.median(times):.2f} s (min {min(times):.2f}, "
        f"max {max(times):.2f}; required: at most 3 s for 500)"
    )


if __name__ == "__main__":
    main()
