"""The program that works on a host, as the one file that is sent."""

import io
import zipfile
from functools import cache
from pathlib import Path

from uwsgi_consul_fleet.operations.files import RemoteFile
from uwsgi_consul_fleet.releases.releases import PROGRAM

SOURCES = Path(__file__).parents[2] / "host"
MAIN = "import sys\n\nfrom program.main import main\n\nsys.exit(main())\n"


@cache
def program() -> RemoteFile:
    """The package in host/ as a zip that Python runs; the same sources give the same bytes."""
    buffer = io.BytesIO(b"")
    with zipfile.ZipFile(buffer, "w") as archive:
        for source in sorted(SOURCES.glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"program/{source.name}"), source.read_bytes())
        archive.writestr(zipfile.ZipInfo("__main__.py"), MAIN)
    return RemoteFile(PROGRAM, b"#!/usr/bin/python3\n" + buffer.getvalue(), "755")
