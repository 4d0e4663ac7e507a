"""invoke secrets.rotate, invoke secrets.recover"""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from invoke import Exit

from uwsgi_consul_fleet.commands.command import Fleet, command, expect
from uwsgi_consul_fleet.errors import FleetError

if TYPE_CHECKING:
    from uwsgi_consul_fleet.inventory.vault import Vault

KINDS = ("gossip", "tokens", "certificates", "ca")


@command(
    failure=1,
    positional=["kind"],
    help={"kind": f"what is replaced: {', '.join(KINDS)}, or all"},
)
def rotate(fleet: Fleet, kind: str) -> None:
    """Replace secrets of the fleet while everything runs: invoke secrets.rotate tokens."""
    from uwsgi_consul_fleet.secrets import store

    kinds = KINDS[:2] + KINDS[3:] if kind == "all" else (kind,)
    if not {*kinds} <= {*KINDS}:
        raise FleetError(f"{kind}: is not a kind of secret; there are: {', '.join(KINDS)}, all")
    vault = _vault(fleet)
    if store.load(vault) is None:
        raise FleetError(
            f"there are no secrets of this fleet here ({store.place(vault)}): deploy first, or get "
            "them from whoever has; where they are lost: invoke secrets.recover"
        )
    raise Exit(code=_run(fleet, ",".join(kinds)))


@command(failure=1, help={"yes": "do not ask"})
def recover(fleet: Fleet, yes: bool = False) -> None:
    """Make new secrets for a fleet whose own are lost; root on its Consul servers is enough."""
    from uwsgi_consul_fleet.consul import recovery
    from uwsgi_consul_fleet.secrets import store

    vault = _vault(fleet)
    if not yes:
        question = (
            "New tokens and certificates are made, and the old ones hold no more: whoever has "
            f"those can't deploy with them. They are looked for in {store.place(vault)}.\n"
            "If they are really lost, type: recover"
        )
        expect(question, "recover", otherwise="nothing was changed", exactly=True)
    recovery.begin(fleet)
    raise Exit(code=_run(fleet, "recover"))


def _vault(fleet: Fleet) -> "Vault":
    if not fleet.brings_consul:
        raise FleetError('consul_source is "none": the secrets of that Consul are not the fleet\'s')
    return fleet.hosts[0].vault


def _run(fleet: Fleet, kinds: str) -> int:
    """As a run of pyinfra, which has the lock, and is in the audit; its exit status."""
    rotation = Path(__file__).parents[1] / "operations/rotation"
    pyinfra = Path(sys.executable).with_name("pyinfra")
    words = [pyinfra, "-y", fleet.file, rotation, "--data", f"rotate={kinds}"]
    return subprocess.run([*map(str, words)], check=False).returncode
