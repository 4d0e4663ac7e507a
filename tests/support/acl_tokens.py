"""What tests show to the Consul of a fleet of theirs, which asks for tokens from its first deploy
on.

They are derived from the fleet's secrets, beside its inventory, as the product does it.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_DNS, uuid5

from uwsgi_consul_fleet.inventory import reading
from uwsgi_consul_fleet.inventory.model import Fleet
from uwsgi_consul_fleet.inventory.vault import FOLDER
from uwsgi_consul_fleet.secrets import store, tokens
from uwsgi_consul_fleet.secrets.document import Secrets
from uwsgi_consul_fleet.secrets.store import FILE

if TYPE_CHECKING:
    from consul_processes import Agent
    from lab_commands import Lab

# A host that is no fleet's, or one of a version that knew no secrets, has none.
LOOK = "sudo cat /etc/uwsgi-consul-fleet/consul.d/secrets.json 2>/dev/null || echo '{}'"
LOOKUPS = str(uuid5(NAMESPACE_DNS, "lookups.of.tests"))

_inventories: set[Path] = set()


def kept_beside(inventory: Path) -> None:
    """The secrets of this fleet are known from now on, once it has been deployed."""
    _inventories.add(inventory.parent)


def the_same(inventory: Path, known: Path, server: str) -> None:
    """Have one more inventory of a fleet show the secrets that the first one has.

    :param server: the first of its Consul servers, after which both are called
    """
    place = inventory.parent / FOLDER / f"{inventory.stem}-{server}"
    place.parent.mkdir(mode=0o700, exist_ok=True)
    place.unlink(missing_ok=True)  # of a run before, in a folder that stays
    place.symlink_to(known.parent / FOLDER / f"{known.stem}-{server}")


def secrets_of(fleet: Fleet) -> list[str]:
    """All that nobody may see of the secrets of a fleet of an inventory."""
    secrets = store.load(fleet.hosts[0])
    assert secrets
    names = [*tokens.OF_FLEET]
    for host in fleet.active:
        names += [
            tokens.node(host.node),
            *(tokens.app(host.node, x.app) for x in host.applications),
        ]
    key = secrets.ca_key.splitlines()[1]
    return [secrets.gossip, secrets.seed, key, *(tokens.secret(secrets.seed, x) for x in names)]


def kept(inventory: Path) -> Path:
    """The file with the secrets of the fleet of an inventory; others may have theirs in the same
    folder."""
    # Where hosts are is not looked at: what ssh knows of them is kept for a process.
    numbers = itertools.count(1)
    vault = reading.read(inventory, lambda *_: f"192.0.2.{next(numbers)}").hosts[0].vault
    return vault.folder / FOLDER / vault.name / FILE


def secrets(inventory: Path) -> Secrets:
    """What is in it now."""
    file = kept(inventory)
    return Secrets.parse(file.read_text(), str(file))


def of_fleet(gossip: str) -> str:
    """The management token of the fleet whose agents have this key; '' where none is known."""
    for folder in _inventories:
        for file in (folder / FOLDER).glob(f"*/{FILE}"):
            secrets = Secrets.parse(file.read_text(), str(file))
            if gossip in (secrets.gossip, secrets.gossip_before):
                return tokens.secret(secrets.seed, tokens.MANAGEMENT)
    return ""


def management(lab: Lab, host: str) -> str:
    """The management token of the fleet that a host is of; '' where its Consul knows none."""
    process = lab.start("ssh", *lab.ssh_options, host, LOOK)
    found = process.communicate()[0]
    # Of a host that does not answer nothing is known, which whoever asks Consul next is told.
    gossip = json.loads(found or "{}").get("encrypt", "")
    return of_fleet(gossip) if gossip else ""


def lookups(lab: Lab, host: str) -> str:
    """A token that looks services up and outlives the fleet's own, which may be replaced; '' where
    Consul knows none."""
    if not management(lab, host):
        return ""
    made = "acl token create -description=tests -service-identity=lookups-of-tests"
    there = f"acl token read -id={LOOKUPS}"
    if lab.consul(host, there, check=False).returncode:
        lab.consul(host, f"{made} -accessor={LOOKUPS} -secret={LOOKUPS}")
    return LOOKUPS


def make(agent: Agent, acl: tokens.Acl) -> None:
    """Have Consul know these tokens and policies, by an agent that is asked with the strongest."""
    for name, policy in acl.policies.items():
        body: dict[str, Any] = {"Name": name, **policy._asdict()}
        body = {key.capitalize(): value for key, value in body.items()}
        agent.call("PUT", "/v1/acl/policy", json=body)
    for token in acl.tokens:
        agent.call(
            "PUT",
            "/v1/acl/token",
            json={
                "AccessorID": token.accessor,
                "SecretID": token.secret,
                "Description": token.description,
                "Policies": [{"Name": each} for each in token.policies],
                "Local": True,
            },
        )
    if acl.anonymous:
        agent.call(
            "PUT",
            "/v1/acl/token/00000000-0000-0000-0000-000000000002",
            json={"Policies": [{"Name": each} for each in acl.anonymous]},
        )
