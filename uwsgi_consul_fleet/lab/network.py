"""The private network that all machines of all clones on this host share.

It comes up with the first machine and goes with the last. Every rule of this host
that has to change for it is said, noted in a file, and undone.
"""

import ipaddress
import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.lab.host import RUN, LabError, run, write

BRIDGE = "ucf-lab0"
TABLE = "ucf_lab"
CANDIDATES = [ipaddress.IPv4Network(f"10.213.{n}.0/24") for n in range(64, 96)]
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# What has to be put back, across crashes of ours; a reboot empties /run and undoes it too.
CHANGED = RUN / "network.json"
COMMENT = ("-m", "comment", "--comment", "uwsgi-consul-fleet lab")


def gateway() -> ipaddress.IPv4Interface | None:
    """This host's address on the bridge; None while there is no bridge."""
    links = json.loads(run("ip", "-json", "-4", "address", "show", "type", "bridge"))
    for link in links:
        if link.get("ifname") == BRIDGE and link["addr_info"]:
            address = link["addr_info"][0]
            return ipaddress.IPv4Interface(f"{address['local']}/{address['prefixlen']}")
    return None


def up() -> ipaddress.IPv4Interface:
    """Bring up what is not up yet; returns this host's address on the bridge."""
    address = gateway()
    if address is None:
        address = _create_bridge()
    run("ip", "link", "set", BRIDGE, "up")
    _attach()
    _translate(address.network)
    _forward()
    _pass_firewall()
    return address


def _create_bridge() -> ipaddress.IPv4Interface:
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))
    network = free_network(str(route["dst"]) for route in routes)
    address = ipaddress.IPv4Interface(f"{network[1]}/{network.prefixlen}")
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "replace", str(address), "dev", BRIDGE)
    print(f"network: bridge {BRIDGE} with {network}", flush=True)
    return address


def _attach() -> None:
    """Machines that run keep their cables when somebody deletes the bridge."""
    for link in json.loads(run("ip", "-json", "link", "show")):
        if link["ifname"].startswith("vb-ucf-") and "master" not in link:
            run("ip", "link", "set", link["ifname"], "master", BRIDGE, "up")


def free_network(routes: Iterable[str]) -> ipaddress.IPv4Network:
    """The first of our candidates that no route of this host overlaps.

    :raises LabError: where all of them are taken
    """
    taken = [
        ipaddress.ip_network(route, strict=False)
        for route in routes
        if route != "default" and ":" not in route
    ]
    for candidate in CANDIDATES:
        if not any(candidate.overlaps(network) for network in taken if network.prefixlen):
            return candidate
    raise LabError(f"no free network for the lab: this host routes all of {CANDIDATES[0]} and on")


def _translate(network: ipaddress.IPv4Network) -> None:
    rules = f"""
        table ip {TABLE}
        delete table ip {TABLE}
        table ip {TABLE} {{
            chain postrouting {{
                type nat hook postrouting priority srcnat
                ip saddr {network} oifname != "{BRIDGE}" masquerade
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


def _forward() -> None:
    if FORWARD.read_text().strip() == "1":
        return
    write(CHANGED, json.dumps({**_changed(), "ip_forward": "0"}))
    FORWARD.write_text("1")
    print("network: switched on IPv4 forwarding, off again after the last lab.down", flush=True)


def _pass_firewall() -> None:
    """Docker and others drop forwarded packets by default; ours would be among them."""
    if not shutil.which("iptables", path="/usr/sbin:/sbin:/usr/bin"):
        return
    rules = run("iptables", "-S", "FORWARD")
    missing = [direction for direction in ("-i", "-o") if f"{direction} {BRIDGE}" not in rules]
    if "-P FORWARD DROP" not in rules or not missing:
        return
    write(CHANGED, json.dumps({**_changed(), "iptables": True}))
    for direction in missing:
        run("iptables", "-I", "FORWARD", direction, BRIDGE, *COMMENT, "-j", "ACCEPT")
    print(f"network: let the firewall pass {BRIDGE}, undone after the last lab.down", flush=True)


def down() -> None:
    """Undo everything that :func:`up` did; harmless where it was not up."""
    changed = _changed()
    if changed.get("iptables"):
        for direction in ("-i", "-o"):
            with suppress(LabError):  # gone already, as after a restart of the firewall
                run("iptables", "-D", "FORWARD", direction, BRIDGE, *COMMENT, "-j", "ACCEPT")
        print("network: removed the lab's rules from the firewall", flush=True)
    if changed.get("ip_forward") == "0":
        FORWARD.write_text("0")
        print("network: switched IPv4 forwarding off again", flush=True)
    CHANGED.unlink(missing_ok=True)
    run("nft", "-f", "-", input_=f"table ip {TABLE}\ndelete table ip {TABLE}\n")
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "delete", BRIDGE)
        print(f"network: removed bridge {BRIDGE}", flush=True)
