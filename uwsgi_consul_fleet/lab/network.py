"""The private networks that the machines of all clones on this host share.

They come up with the first machine and go with the last. Every rule of this host
that has to change for them is said, noted in a file, and undone.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_network
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.lab.host import RUN, LabError, run, write

DEFAULT = "lab0"
# A link's name has 15 characters at most.
NAME = re.compile(r"[a-z][a-z0-9]{0,10}")
PREFIX = "ucf-"
TABLE = "ucf_lab"
CANDIDATES = [IPv4Network(f"10.213.{n}.0/24") for n in range(64, 96)]
LENGTH_6 = 64  # bits of the IPv6 prefix of a network
# Not for IPv6, which stays within a network: a host that forwards it takes no router's word for its
# own address any more.
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# What has to be put back, across crashes of ours; a reboot empties /run and undoes it too.
CHANGED = RUN / "network.json"
COMMENT = ("-m", "comment", "--comment", "uwsgi-consul-fleet lab")


def ipv6(address: IPv4Address) -> IPv6Address:
    """The IPv6 address that goes with an IPv4 address of the lab: the one tells the other."""
    _, second, third, fourth = address.packed
    return IPv6Address(f"fd75:6366:{second:x}:{third:x}::{fourth:x}")


@dataclass(frozen=True)
class Network:
    """A bridge into which machines are plugged, and this host's address on it."""

    name: str
    gateway: IPv4Interface

    @property
    def bridge(self) -> str:
        return f"{PREFIX}{self.name}"

    @property
    def addresses(self) -> IPv4Network:
        return self.gateway.network

    def create(self) -> None:
        """Bring the bridge up, as far as it is not."""
        if not _exists(self.bridge):
            run("ip", "link", "add", self.bridge, "type", "bridge")
            print(f"network: bridge {self.bridge} with {self.addresses}")
        run("ip", "address", "replace", str(self.gateway), "dev", self.bridge)
        # Nobody else has it: there is no reason to wait for somebody who says so.
        address = f"{ipv6(self.gateway.ip)}/{LENGTH_6}"
        run("ip", "-6", "address", "replace", address, "dev", self.bridge, "nodad")
        run("ip", "link", "set", self.bridge, "up")

    def delete(self) -> None:
        if _exists(self.bridge):
            run("ip", "link", "delete", self.bridge)
            print(f"network: removed bridge {self.bridge}")


def _exists(bridge: str) -> bool:
    return Path(f"/sys/class/net/{bridge}").exists()


def up(names: Iterable[str], plugged: Mapping[str, str]) -> dict[str, Network]:
    """Bring up what is not up yet, the default network always; returns all that there are.

    :param names: networks that are needed
    :param plugged: the links of machines that run, by the name of the network of each
    :raises LabError: where this host routes all networks that the lab may take
    """
    found = known()
    for name in dict.fromkeys((DEFAULT, *found, *names)):
        if name not in found:
            found[name] = Network(name, _free_gateway(found.values()))
            _note(networks={each.name: str(each.gateway) for each in found.values()})
    for network in found.values():
        network.create()
    _attach(plugged)
    _translate(found.values())
    _forward()
    _pass_firewall(found.values())
    return found


def known() -> dict[str, Network]:
    """The networks by name: those that are there, and those that were and may come back."""
    found: dict[str, str] = dict(_changed().get("networks", {}))
    for link in json.loads(run("ip", "-json", "-4", "address", "show", "type", "bridge")):
        if link.get("ifname", "").startswith(PREFIX) and link["addr_info"]:
            address = link["addr_info"][0]
            name = link["ifname"].removeprefix(PREFIX)
            found[name] = f"{address['local']}/{address['prefixlen']}"
    return {name: Network(name, IPv4Interface(gateway)) for name, gateway in found.items()}


def _free_gateway(others: Iterable[Network]) -> IPv4Interface:
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))
    taken = [str(route["dst"]) for route in routes] + [str(each.addresses) for each in others]
    network = free_network(taken)
    return IPv4Interface(f"{network[1]}/{network.prefixlen}")


def _attach(plugged: Mapping[str, str]) -> None:
    """Machines that run keep their cables when somebody deletes a bridge."""
    for link in json.loads(run("ip", "-json", "link", "show")):
        if link["ifname"].startswith("vb-ucf-") and "master" not in link:
            # A name that is too long for a link is one of its others.
            names = (link["ifname"], *link.get("altnames", ()))
            network = next((plugged[name] for name in names if name in plugged), DEFAULT)
            run("ip", "link", "set", link["ifname"], "master", f"{PREFIX}{network}", "up")


def free_network(routes: Iterable[str]) -> IPv4Network:
    """The first of our candidates that no route of this host overlaps.

    :raises LabError: where all of them are taken
    """
    taken = [
        ip_network(route, strict=False)
        for route in routes
        if route != "default" and ":" not in route
    ]
    for candidate in CANDIDATES:
        if not any(candidate.overlaps(network) for network in taken if network.prefixlen):
            return candidate
    raise LabError(f"no free network for the lab: this host routes all of {CANDIDATES[0]} and on")


def _translate(networks: Iterable[Network]) -> None:
    """To the world outside machines are this host. Between the lab's networks they are not."""
    ours = ", ".join(str(network.addresses) for network in networks)
    rules = f"""
        table ip {TABLE}
        delete table ip {TABLE}
        table ip {TABLE} {{
            chain postrouting {{
                type nat hook postrouting priority srcnat
                ip saddr {{ {ours} }} ip daddr != {{ {ours} }} masquerade
            }}
        }}
    """
    run("nft", "-f", "-", input_=rules)


def _changed() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(CHANGED.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _note(**changed: Any) -> None:
    write(CHANGED, json.dumps({**_changed(), **changed}))


def _forward() -> None:
    if FORWARD.read_text().strip() == "1":
        return
    _note(ip_forward="0")
    FORWARD.write_text("1")
    print("network: switched on IPv4 forwarding, off again after the last lab.down")


def _pass_firewall(networks: Iterable[Network]) -> None:
    """Docker and others drop forwarded packets by default; ours would be among them."""
    if not shutil.which("iptables", path="/usr/sbin:/sbin:/usr/bin"):
        return
    rules = run("iptables", "-S", "FORWARD")
    if "-P FORWARD DROP" not in rules:
        return
    for network in networks:
        words = [("-i", network.bridge), ("-o", network.bridge)]
        missing = [pair for pair in words if " ".join(pair) not in rules]
        if missing:
            passed = {*_changed().get("firewall", []), network.bridge}
            _note(firewall=sorted(passed))
            for pair in missing:
                run("iptables", "-I", "FORWARD", *pair, *COMMENT, "-j", "ACCEPT")
            told = "undone after the last lab.down"
            print(f"network: let the firewall pass {network.bridge}, {told}")


def down() -> None:
    """Undo everything that :func:`up` did; harmless where it was not up."""
    changed = _changed()
    for bridge in changed.get("firewall", ()):
        for direction in ("-i", "-o"):
            with suppress(LabError):  # gone already, as after a restart of the firewall
                run("iptables", "-D", "FORWARD", direction, bridge, *COMMENT, "-j", "ACCEPT")
        print("network: removed the lab's rules from the firewall")
    if changed.get("ip_forward") == "0":
        FORWARD.write_text("0")
        print("network: switched IPv4 forwarding off again")
    for network in known().values():
        network.delete()
    CHANGED.unlink(missing_ok=True)
    run("nft", "-f", "-", input_=f"table ip {TABLE}\ndelete table ip {TABLE}\n")
