"""What a release with 300 MB of assets takes of the operator's machine: CPU and memory.

A folder of random files is packed and sent to ten hosts by a run of pyinfra, as a deploy does it,
and once with --dry. The hosts are ten names of one lab machine, with a connection each; it unpacks
what it gets and keeps nothing, so what it takes there shares this machine's cores.

    python bench/assets.py [--hosts 10] [--megabytes 300]
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FILE = 5  # MB
INVENTORY = """\
hosts = [(f"host{{n}}", {{"ssh_hostname": "drakar", "ssh_config_file": {config!r}}})
         for n in range({hosts})]
"""
# What deploy/__main__.py and the operation `install` do of it.
DEPLOY = """\
from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.operations import files
from uwsgi_consul_fleet.operations.applications import archive, release


@operation()
def send(sources):
    yield StringCommand(
        "sh", "-c", QuoteString("base64 -d | tar -xzf - --to-stdout | wc -c"),
        _stdin=files.Base64(lambda: archive.archive(sources, [])),
    )


send(sources=release._read({source!r}, None, __file__).sources)
"""


def pyinfra(folder: Path, *options: str) -> None:
    """Run it, and say what it took."""
    command = [str(BIN / "pyinfra"), "-y", *options, "inventory.py", "send.py"]
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout
    said = process.stdout.read().decode()
    _, status, took = os.wait4(process.pid, 0)
    if status:
        sys.exit(said)
    seconds, memory = took.ru_utime + took.ru_stime, took.ru_maxrss / 1024
    print(
        f"{' '.join(options) or 'sent'}: {seconds:.1f} s of CPU, {memory:.0f} MB of memory, "
        f"{time.monotonic() - begin:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=300)
    options = figures.parse(parser, "20 MB to two hosts")
    if options.once:
        options.hosts, options.megabytes = 2, 20
    subprocess.run([str(BIN / "invoke"), "lab.up", "drakar"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        source = folder / "shop"
        source.mkdir()
        for number in range(options.megabytes // FILE):
            (source / f"{number}.bin").write_bytes(random.randbytes(FILE * 1_000_000))
        (folder / "inventory.py").write_text(
            INVENTORY.format(hosts=options.hosts, config=str(ROOT / ".lab/ssh_config"))
        )
        (folder / "send.py").write_text(DEPLOY.format(source=str(source)))
        print(f"{options.megabytes} MB, {options.hosts} hosts", flush=True)
        pyinfra(folder, "--dry")
        pyinfra(folder)


if __name__ == "__main__":
    main()
