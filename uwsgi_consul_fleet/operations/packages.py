"""Debian's packages on a host."""

from pyinfra.api import StringCommand
from pyinfra.api.command import QuoteString

from uwsgi_consul_fleet.build.identity import PACKAGES


def install(*names: str) -> StringCommand:
    """The command that installs them, also where the host's package lists are old."""
    script = f'{PACKAGES}install_packages "$@"'
    return StringCommand("sh", "-euc", QuoteString(script), "packages", *names)
