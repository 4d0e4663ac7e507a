"""Which secrets are a fleet's, and where they are kept; see secrets/."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = ".fleet"  # beside an inventory; never sent to a host
SERVERS = "servers"  # beside a file with secrets: the Consul servers of the last deploy


@dataclass(frozen=True)
class Vault:
    """``folder`` is the inventory's, ``name`` the fleet's in it; ``load`` and ``save`` are the
    settings, '' for a file. Without a name there are no secrets: Consul is not the fleet's."""

    folder: Path = Path()
    name: str = ""
    load: str = ""
    save: str = ""


NOWHERE = Vault()
