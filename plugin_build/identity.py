"""What a host's uWSGI is, and which built plugin belongs to it."""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DIST = HERE / "dist"
PLUGIN = "consul_plugin.so"
# Functions for scripts that run on hosts.
IDENTIFY = (HERE / "identify.sh").read_text()
PACKAGES = (HERE / "packages.sh").read_text()


@dataclass(frozen=True)
class Uwsgi:
    """The uWSGI of a host; those with one fingerprint can load each other's plugins."""

    fingerprint: str
    path: str
    version: str


def parse_identity(output: str) -> Uwsgi | None:
    """Read what identify.sh printed; None for a host without uWSGI."""
    words = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    if "fingerprint" not in words:
        return None
    path, version = words["uwsgi"]
    return Uwsgi(words["fingerprint"][0], path, version)


def available() -> dict[str, Path]:
    """The plugins in dist/ by fingerprint."""
    return {path.parent.name: path for path in DIST.glob(f"*/{PLUGIN}")}
