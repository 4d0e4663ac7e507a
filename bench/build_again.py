"""How long `invoke build-plugin` takes for many hosts when there is nothing to build.

Starts one lab machine and lists it under many names, so that as many connections and identities
are asked for as there are hosts; the machine answers all of them, so its work is counted, too.
Its sshd is told to take as many new connections at once; by default it drops some above ten.

    python bench/build_again.py [--hosts 20] [--runs 7]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import figures

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NAME = "drakar"


def inventory(count: int) -> Path:
    path = ROOT / ".lab" / f"bench_names_{count}.py"
    # No two hosts may have one address; nothing is sent to it.
    hosts = [
        (f"host{n:02}", {"ssh_hostname": NAME, "address": f"10.99.0.{n + 1}"}) for n in range(count)
    ]
    path.write_text(f"consul_servers = ['host00']\napp_servers = {hosts!r}\n")
    return path


def build(path: Path) -> str:
    command = [str(BIN / "invoke"), "build-plugin", "--inventory", str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return result.stdout


def timed(path: Path) -> float:
    begin = time.monotonic()
    build(path)
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each (default 7)")
    options = figures.parse(parser, "one run over three hosts")
    if options.once:
        options.hosts, options.runs = 3, 1
    subprocess.run([str(BIN / "invoke"), "lab.up", NAME], cwd=ROOT, check=True)
    admit = "echo MaxStartups 200 | sudo tee /etc/ssh/sshd_config.d/bench.conf"
    admit += " && sudo systemctl reload ssh"
    ssh = ["ssh", "-F", str(ROOT / ".lab/ssh_config"), NAME, admit]
    subprocess.run(ssh, stdout=subprocess.DEVNULL, check=True)
    one, many = inventory(1), inventory(options.hosts)
    build(many)
    assert "up to date" in build(many)
    times: dict[str, list[float]] = {"1 host": [], f"{options.hosts} hosts": []}
    for _ in range(options.runs):
        for name, path in zip(times, (one, many), strict=True):
            times[name].append(timed(path))
    for name, taken in times.items():
        median, slowest = statistics.median(taken), max(taken)
        print(f"{name}: median {median:.2f} s, slowest {slowest:.2f} s")
    print("required: 2 s for 20 hosts")


if __name__ == "__main__":
    main()
