"""An agent's configuration and its unit, and what of them it must be restarted for."""

import hashlib
import json
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.inventory import unit_options
from uwsgi_consul_fleet.inventory.model import Fleet, Host
from uwsgi_consul_fleet.operations.consul import rounds
from uwsgi_consul_fleet.operations.consul.cluster import UNIT
from uwsgi_consul_fleet.operations.files import RemoteFile, render

HERE = Path(__file__).parent
BINARIES = "/opt/uwsgi-consul-fleet/consul"
CONFIGURATION = "/etc/uwsgi-consul-fleet/consul.d"
CONFIG = f"{CONFIGURATION}/consul.json"
# What an agent needs to find the others when it starts. Another list of servers is no reason to
# restart one that has found them.
TO_START = ("bootstrap_expect", "retry_join", "retry_interval")


def files(me: Host, fleet: Fleet, label: str, number: int) -> list[RemoteFile]:
    """The agent's configuration and its unit, as they should be on a host in a round."""
    config = json.dumps(agent_config(me, fleet, number), indent=2) + "\n"
    return [
        RemoteFile(CONFIG, config, "640", "root", "consul"),
        RemoteFile(UNIT, _unit(me, label, number, digest(me, fleet, label, number))),
    ]


def _unit(me: Host, label: str, number: int, digest: str) -> str:
    return render(
        HERE / "consul.service.j2",
        binary=f"{BINARIES}/{label}/consul",
        configuration=CONFIGURATION,
        digest=digest,
        number=number,
        compiles=False,
        allowed=unit_options.lines(me.settings.consul_unit),
    )


def digest(me: Host, fleet: Fleet, label: str, number: int) -> str:
    """Of everything an agent must be restarted for; the running one has it in its environment.
    Secrets are not in it: they are told to an agent that runs."""
    known = agent_config(me, fleet, number).items()
    config = {key: value for key, value in known if key not in TO_START}
    return hashlib.sha256((repr(config) + _unit(me, label, number, "")).encode()).hexdigest()[:16]


def agent_config(me: Host, fleet: Fleet, number: int) -> dict[str, Any]:
    """The agent's configuration, with keys that mean the same from Consul 1.8 to today's."""
    servers = fleet.consul_servers
    config: dict[str, Any] = {
        "node_name": me.name,
        "datacenter": me.settings.datacenter,
        "data_dir": "/var/lib/consul",
        "bind_addr": me.address,
        # Whoever has a token asks it on the host itself, or through ssh.
        "client_addr": "127.0.0.1",
        "retry_join": [other.address for other in servers],
        # Hosts are installed side by side: half a minute, the default, is a long
        # time to wait for a server that started a second later.
        "retry_interval": "1s",
        # A restart is no departure: the node and its services stay in the catalog. Who retires
        # says so (consul leave).
        "leave_on_terminate": False,
        "disable_update_check": True,
    }
    if me.is_consul_server:
        config |= {
            "server": True,
            "bootstrap_expect": len(servers),
            # The default suits the smallest machines and elects a leader five times slower.
            "performance": {"raft_multiplier": 1},
            # What `invoke ui` shows.
            "ui": True,
        }
    return config | rounds.settings(me, number)
