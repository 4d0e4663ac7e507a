"""Twenty machines: from two to all, nothing to change, a release, verify, and back to two.

Starts twenty lab machines, of which three run Consul's servers, and removes eighteen of them in the
end. Each step is the whole command, timed once.

    python bench/twenty_hosts.py [--hosts 20]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import figures

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
INVENTORY = ROOT / ".lab/bench_twenty.py"
FEW = ["drakar", "cheetah"]


def run(what: str, *words: str) -> None:
    """Run a command to its end, and say how long it took; ``what`` is '' for none to be timed."""
    begin = time.monotonic()
    command = [str(BIN / words[0]), *words[1:]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(words)}:\n{result.stdout}{result.stderr}")
    if what:
        print(f"{what}: {time.monotonic() - begin:.1f} s", flush=True)


def deploy(what: str, apps: list[str], retired: list[str], *options: str) -> None:
    servers = apps[:3] if len(apps) > len(FEW) else FEW[:1]
    INVENTORY.write_text(f"consul_servers = {servers}\napp_servers = {apps}\nretired = {retired}\n")
    run(what, "pyinfra", "-y", *options, str(INVENTORY), "deploy/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=20, help="how many in the end (default 20)")
    options = figures.parse(parser, "four hosts")
    more = [f"more{n:02}" for n in range(1, (4 if options.once else options.hosts) - 1)]
    run("", "invoke", "lab.up", *FEW, *more)
    INVENTORY.write_text(f"consul_servers = {FEW[:1]}\napp_servers = {FEW}\n")
    run("invoke build-plugin", "invoke", "build-plugin", "--inventory", str(INVENTORY))
    deploy("", FEW, [])
    everybody = [*FEW, *more]
    deploy(f"first deploy of {len(more)} more hosts", everybody, [])
    deploy("nothing to change", everybody, [])
    deploy("a release", everybody, [], "--data", "release=twenty")
    run("verify", "invoke", "verify", "--wait", "30", "--inventory", str(INVENTORY))
    deploy(f"{len(more)} hosts retired in one edit", FEW, more)
    run("verify", "invoke", "verify", "--wait", "30", "--inventory", str(INVENTORY))
    run("", "invoke", "lab.down", *more)


if __name__ == "__main__":
    main()
