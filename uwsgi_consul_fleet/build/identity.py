"""What a host's uWSGI is, and which built plugin belongs to it."""

from dataclasses import dataclass, field
from pathlib import Path

from uwsgi_consul_fleet.inventory.settings import Settings
from uwsgi_consul_fleet.shipped import made, shipped

HERE = Path(__file__).parent
PLUGIN_FOLDER = shipped("plugin_build")
DIST = made("plugin_build/dist")
PLUGIN = "consul_plugin.so"
# Where a host keeps what PyPI's uWSGI was built into.
PYPI_FOLDER = "/opt/uwsgi-consul-fleet/uwsgi"
# Functions for scripts that run on hosts.
IDENTIFY = (HERE / "identify.sh").read_text()
PACKAGES = (HERE / "packages.sh").read_text()
SCRATCH = (HERE / "scratch.sh").read_text()


@dataclass(frozen=True)
class Uwsgi:
    """A uWSGI; those with one fingerprint can load each other's plugins.

    ``parts`` are what the fingerprint is made of.
    """

    fingerprint: str
    path: str
    version: str
    parts: dict[str, str] = field(default_factory=dict, compare=False)


def parse_identity(output: str) -> Uwsgi | None:
    """Read what identify.sh printed; None for a host without uWSGI."""
    lines = [line.split(" ", 2) for line in output.splitlines()]
    found = {words[0]: words[1:] for words in lines if words[0] in ("fingerprint", "uwsgi")}
    if "fingerprint" not in found:
        return None
    (fingerprint,), (path, version) = found["fingerprint"], found["uwsgi"]
    return Uwsgi(fingerprint, path, version, {w[1]: w[2] for w in lines if w[0] == "part"})


def pypi_name(settings: Settings) -> str:
    """Names the build of PyPI's uWSGI that these settings ask for."""
    return f"{settings.uwsgi_version}-{settings.app_python.strip('/').replace('/', '-')}"


def binary(settings: Settings) -> str:
    """The uWSGI that these settings ask for, as it lies on a host; '' for the host's own."""
    if settings.uwsgi_source == "debian":
        return ""
    return f"{PYPI_FOLDER}/{pypi_name(settings)}/uwsgi"


def available() -> dict[str, Path]:
    """The consul plugins in dist/ by fingerprint."""
    return {path.parent.name: path for path in DIST.glob(f"*/{PLUGIN}")}
