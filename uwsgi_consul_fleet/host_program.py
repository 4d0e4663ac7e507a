"""The program that works on each host (host/), as the one file that is sent; and the command
that runs it where it is not, or is another version's."""

import base64
import hashlib
import io
import zipfile
import zlib
from functools import cache
from pathlib import Path

from uwsgi_consul_fleet.host.main import LOCK

PROGRAM = "/opt/uwsgi-consul-fleet/release"
SOURCES = Path(__file__).parent / "host"
# Neither the environment nor what else is installed there decides what it does; to load that
# would also take as long as the rest.
START = b"#!/usr/bin/python3 -IS\n"
MAIN = "import sys\n\nfrom program.main import main\n\nsys.exit(main())\n"
# Its first word is where the program lies.
RUN = f"import sys\nsys.path.insert(0, sys.argv.pop(1))\n{MAIN}"
# Its first word is the program itself, of which no file stays behind.
CARRIED = f"""\
import base64, os, sys, zlib
memory = os.memfd_create("release")
os.write(memory, zlib.decompress(base64.b64decode(sys.argv[1])))
sys.argv[1] = f"/proc/self/fd/{{memory}}"
{RUN}"""

# First in a script: what an interrupted run began goes on, and what counts is how that ends. Nobody
# else may read the file, and so hold it.
SETTLED = f"(umask 077 && flock --shared --wait 60 {LOCK} true)\n"


@cache
def content() -> bytes:
    """The package as a zip that Python runs; the same sources give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for source in sorted(SOURCES.glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"program/{source.name}"), source.read_bytes())
        archive.writestr(zipfile.ZipInfo("__main__.py"), MAIN)
    return START + buffer.getvalue()


@cache
def digest() -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(content()).hexdigest()


@cache
def carried() -> tuple[str, ...]:
    """The first words of a command that brings the program along."""
    packed = base64.b64encode(zlib.compress(content(), 9)).decode()
    return ("python3", "-IS", "-c", CARRIED, packed)
