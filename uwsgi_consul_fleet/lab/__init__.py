"""The lab: disposable real Debian machines on this host to deploy to."""

from pathlib import Path

from uwsgi_consul_fleet.shipped import folder

CLONE = folder()
FOLDER = CLONE / ".lab"
SSH_CONFIG = FOLDER / "ssh_config"


def ssh_config() -> str:
    """The ssh config of the lab while it is up, else the operator's own, which may not exist."""
    return str(SSH_CONFIG if SSH_CONFIG.exists() else Path("~/.ssh/config").expanduser())
