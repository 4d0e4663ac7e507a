"""The lab: disposable real Debian machines on this host to deploy to."""

from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]
FOLDER = CLONE / ".lab"
SSH_CONFIG = FOLDER / "ssh_config"
