"""Who can connect: the packet filter of a host as text for nft.

It is in files: one about the fleet, and one for each application with ``app_clients``, so that
whoever deploys one application leaves those of others as they are. A host loads all in one
transaction. The table is the fleet's own and accepts what it does not know: a packet is dropped
only on its way to one of our ports.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

FLEET = "fleet.nft"
OPENED = "table inet uwsgi_consul_fleet {\n"
# Also the first time there is something to delete, and it is done in the same moment.
ANEW = "table inet uwsgi_consul_fleet\ndelete table inet uwsgi_consul_fleet\n"
WRITTEN = "# Written by uwsgi-consul-fleet: changes are overwritten.\n"
# Connections that are open stay so, without a table of all connections of the host, which can be
# full. Of a fragment that is too short to tell, this is not true.
NOT_NEW = "        tcp flags & (fin | syn | rst | ack) != syn accept\n"
CONSUL = f"""\
    chain consul {{
        jump fleet
{NOT_NEW}        drop
    }}
    chain input {{
        tcp dport {{ 8300, 8301, 8302 }} jump consul
        udp dport {{ 8301, 8302 }} jump consul
        # They listen on loopback, unless somebody else's file in consul.d says otherwise.
        tcp dport {{ 8500, 8503, 8600 }} drop
        udp dport 8600 drop
    }}
"""


def application(app: str) -> str:
    """The name of the file about an application."""
    return f"app.{app}.nft"


def of_fleet(hosts: Mapping[str, frozenset[str]], consul: bool) -> str:
    """The file about the fleet.

    :param hosts: the addresses of each that is let in, by its name
    :param consul: whether Consul's ports on this host are the fleet's
    """
    return _of_fleet(tuple(sorted(hosts.items())), consul)


@cache  # of many hosts each has the same
def _of_fleet(hosts: tuple[tuple[str, frozenset[str]], ...], consul: bool) -> str:
    said = "".join(f"# host {name} {' '.join(sorted(its))}\n" for name, its in hosts)
    addresses = (address for _, its in hosts for address in its)
    body = (
        "    chain input {\n"
        "        type filter hook input priority -10; policy accept;\n"
        '        iifname "lo" accept\n'
        "    }\n"
        "    chain fleet {\n"
        f"{_accept(addresses)}"
        "    }\n"
    )
    return _file(f"{said}{ANEW}{OPENED}{body}{CONSUL if consul else ''}}}\n")


def of_application(app: str, ports: Iterable[int], clients: Iterable[str]) -> str:
    """The file about an application, which only these networks and the fleet's hosts reach."""
    listed = ", ".join(map(str, sorted(ports)))
    return _file(
        f"{OPENED}"
        f"    chain app_{app} {{\n"
        "        jump fleet\n"
        f"{_accept(clients)}{NOT_NEW}"
        "        drop\n"
        "    }\n"
        "    chain input {\n"
        f"        tcp dport {{ {listed} }} jump app_{app}\n"
        "    }\n"
        "}\n"
    )


def mark(text: str) -> str:
    """The chain without rules by which the kernel tells that it has this file."""
    return text.rpartition("chain ")[2].partition(" ")[0]


def _file(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{WRITTEN}{text}{OPENED}    chain is_{digest} {{\n    }}\n}}\n"


def _accept(sources: Iterable[str]) -> str:
    networks = [ip_network(each) for each in sources]
    four = collapse_addresses(each for each in networks if isinstance(each, IPv4Network))
    six = collapse_addresses(each for each in networks if isinstance(each, IPv6Network))
    found = ""
    for word, its in (("ip", list(four)), ("ip6", list(six))):
        if its:
            told = ", ".join(str(each).removesuffix(f"/{each.max_prefixlen}") for each in its)
            found += f"        {word} saddr {{ {told} }} accept\n"
    return found
