"""Consul on a host: the binary, its configuration, and an agent that runs with both."""

import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FileUploadCommand, StringCommand, operation
from pyinfra.api.command import QuoteString

from deploy.consul import source as source
from deploy.consul.source import Source
from deploy.files import RemoteFile, converge, render
from deploy.plan import fleet
from deploy.state import UnitState, current, forget
from deploy.users import system_user
from fleet.model import Host

HERE = Path(__file__).parent
BINARIES = "/opt/consul"
CONFIG = "/etc/consul.d/consul.json"
UNIT = "/etc/systemd/system/consul.service"

__all__ = ["configure", "install", "leave", "run_client", "run_server", "source"]


@operation()
def install(me: Host, source: Source) -> Generator[Any, None, None]:
    """Put the binary in a folder of its own; the one in use stays where it is."""
    if source.label in current().consul_binaries:
        host.noop(f"Consul {source.label} is installed")
        return
    host.log(f"Consul from {source.description}")
    folder = f"{BINARIES}/{source.label}"
    part = f"{folder}/.consul.part"
    yield StringCommand("mkdir", "-p", folder)
    if source.path:
        yield FileUploadCommand(str(source.path), part, host.get_temp_filename(part))
    else:
        script = (HERE / "debian.sh").read_text()
        yield StringCommand("sh", "-c", QuoteString(script), "debian", part)
    yield StringCommand(
        "chmod", "755", part, "&&", part, "version", "&&", "mv", part, f"{folder}/consul"
    )
    forget()


@operation()
def configure(me: Host, source: Source) -> Generator[Any, None, None]:
    """The consul user, the agent's configuration and its unit."""
    yield from system_user("consul")
    yield from converge(_files(me, source.label))


def _files(me: Host, label: str) -> list[RemoteFile]:
    return [
        RemoteFile(CONFIG, _config(me), "640", "root", "consul"),
        RemoteFile(UNIT, _unit(me, label, _digest(me, label))),
    ]


def _config(me: Host) -> str:
    return json.dumps(agent_config(me), indent=2) + "\n"


def _unit(me: Host, label: str, digest: str) -> str:
    return render(HERE / "consul.service.j2", binary=f"{BINARIES}/{label}/consul", digest=digest)


def _digest(me: Host, label: str) -> str:
    """Of everything an agent must be restarted for; the running one has it in its environment."""
    return hashlib.sha256((_config(me) + _unit(me, label, "")).encode()).hexdigest()[:16]


def agent_config(me: Host) -> dict[str, Any]:
    """The agent's configuration, with keys that mean the same from Consul 1.8 to today's."""
    servers = fleet().consul_servers
    config: dict[str, Any] = {
        "node_name": me.name,
        "datacenter": me.settings.datacenter,
        "data_dir": "/var/lib/consul",
        "bind_addr": me.address,
        # The HTTP API has no access control yet: nobody but this host may reach it.
        "client_addr": "127.0.0.1",
        "retry_join": [other.address for other in servers],
        # Hosts are installed side by side: half a minute, the default, is a long
        # time to wait for a server that started a second later.
        "retry_interval": "1s",
        "disable_update_check": True,
    }
    if me.is_consul_server:
        config |= {
            "server": True,
            "bootstrap_expect": len(servers),
            # The default suits the smallest machines and elects a leader five times slower.
            "performance": {"raft_multiplier": 1},
        }
    return config


@operation()
def run_server(me: Host, source: Source) -> Generator[Any, None, None]:
    """A Consul server that runs with the configuration it has."""
    if me.is_consul_server:
        yield from _run(me, source.label)


@operation()
def run_client(me: Host, source: Source) -> Generator[Any, None, None]:
    """A Consul client agent that runs with the configuration it has."""
    if not me.is_consul_server:
        yield from _run(me, source.label)


def _run(me: Host, label: str) -> Generator[Any, None, None]:
    """Restart where the running agent was started with something else than it has now.

    Not where a file was changed in this run: a run that was interrupted between the
    change and the restart would never restart it.
    """
    known = current()
    unit = known.units.get("consul.service")
    if unit == UnitState("active", "enabled") and known.consul_running == _digest(me, label):
        host.noop("Consul runs with this configuration")
        return
    binary = f"{BINARIES}/{label}/consul"
    yield StringCommand(
        f"{binary} validate /etc/consul.d >/dev/null && ln -sfn {binary} /usr/local/bin/consul &&"
        " systemctl daemon-reload && systemctl --quiet enable consul &&"
        " systemctl restart consul || { journalctl --no-pager -n 20 -u consul >&2; exit 1; }"
    )
    forget()


@operation()
def leave(me: Host) -> Generator[Any, None, None]:
    """Leave the cluster gracefully, so that the catalog forgets the node at once."""
    unit = current().units.get("consul.service")
    if unit is None or unit.active not in ("active", "activating"):
        host.noop("Consul does not run")
        return
    yield StringCommand("consul leave; systemctl --quiet disable --now consul")
    forget()
