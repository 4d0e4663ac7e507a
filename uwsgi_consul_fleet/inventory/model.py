"""The one model: hosts and instances, computed from the inventory and nowhere else."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from ipaddress import ip_address
from typing import Any

from uwsgi_consul_fleet.errors import InventoryError
from uwsgi_consul_fleet.host.consul import KEYS
from uwsgi_consul_fleet.inventory.settings import (
    FLEET_WIDE,
    OF_AN_AGENT,
    HostSettings,
    Settings,
    nearest,
    parse,
    told_missing,
)

DEBIANS_PYTHON = "/usr/bin/python3"
RESERVED = {22: "sshd's"} | dict.fromkeys((8300, 8301, 8302, 8500, 8600), "Consul's")
ROLES = frozenset({"consul_servers", "app_servers", "builders", "retired"})


@dataclass(frozen=True)
class InventoryHost:
    """A host as pyinfra sees it: its groups, the data merged from groups and host, and what was
    ``typed`` for this run, which comes before them."""

    name: str
    groups: frozenset[str]
    usual: Mapping[str, Any]
    typed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """All of it."""
        return {**self.usual, **self.typed}


@dataclass(frozen=True)
class Instance:
    """One uWSGI server, as it is rendered, deployed and expected in the catalog."""

    node: str
    service: str
    name: str
    id: str
    address: str
    port: int
    datacenter: str


@dataclass(frozen=True)
class Host:
    """A machine of the fleet with what should run on it; ``node`` is what Consul calls it.

    ``applications`` are the host as each of its applications has it, ``instances`` those of all.
    """

    name: str
    address: str
    node: str
    roles: frozenset[str]
    settings: HostSettings
    instances: tuple[Instance, ...]
    data: Mapping[str, Any] = field(repr=False)
    applications: tuple["AppHost", ...] = field(default=(), repr=False)

    @property
    def brings_consul(self) -> bool:
        """Whether its Consul agent is the fleet's; else one is there, and is never touched."""
        return self.settings.consul_source != "none"

    @property
    def is_consul_server(self) -> bool:
        return "consul_servers" in self.roles

    @property
    def is_retired(self) -> bool:
        return "retired" in self.roles

    def having(self, settings: Settings, **more: Any) -> "AppHost":
        """It as an application with these settings has it."""
        known = {each.name: getattr(self, each.name) for each in fields(self)}
        return AppHost(**{**known, "settings": settings, "instances": (), **more})

    @property
    def is_member(self) -> bool:
        """Whether it belongs to the cluster; not a host where plugins are only compiled."""
        return bool(self.roles & {"consul_servers", "app_servers"}) and not self.is_retired


@dataclass(frozen=True)
class AppHost(Host):
    """A host as one application has it: with the settings that hold for both, and with the
    application's instances alone. It is reached like any other, and stands for the pair.

    ``usual_release`` is what `release` is where none is typed.
    """

    settings: Settings
    usual_release: str | None = None

    @property
    def app(self) -> str:
        """The application's name."""
        return self.settings.app_name


@dataclass(frozen=True)
class Fleet:
    """All hosts in inventory order, the names of all applications (also of one whose hosts are all
    retired), and warnings that are not mistakes."""

    hosts: tuple[Host, ...]
    warnings: tuple[str, ...] = ()
    services: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """What the operator calls it, if anything."""
        return next((host.settings.fleet for host in self.hosts), None)

    @cached_property
    def active(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host.is_member)

    @property
    def consul_servers(self) -> tuple[Host, ...]:
        return tuple(host for host in self.active if host.is_consul_server)

    @property
    def brings_consul(self) -> bool:
        """Whether Consul is the fleet's own; see :attr:`Host.brings_consul`."""
        return all(host.brings_consul for host in self.hosts)

    @property
    def asked(self) -> tuple[Host, ...]:
        """Whose agents can be asked what Consul knows, in this order."""
        # An agent that is not ours outlives the application.
        return self.consul_servers if self.brings_consul else self.app_servers + self.retired

    @property
    def keys(self) -> str:
        """What all our keys in Consul begin with: several fleets may use one that is not theirs."""
        return KEYS if self.brings_consul else f"{KEYS}fleets/{self.name}/"

    @property
    def app_servers(self) -> tuple[Host, ...]:
        return tuple(host for host in self.active if "app_servers" in host.roles)

    @cached_property
    def applications(self) -> tuple[AppHost, ...]:
        """Each application on each of its hosts."""
        return tuple(each for host in self.hosts for each in host.applications)

    def serving(self, app: str) -> tuple[AppHost, ...]:
        """Those that are to serve an application."""
        return tuple(each for each in self.applications if each.app == app)

    @property
    def retired(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host.is_retired)

    @property
    def idle(self) -> tuple[Host, ...]:
        """Those without instances; an application that is found there is left from before."""
        return tuple(host for host in self.hosts if not host.instances)

    @property
    def builders(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if "builders" in host.roles)

    @property
    def instances(self) -> tuple[Instance, ...]:
        return tuple(instance for host in self.hosts for instance in host.instances)

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)


def build(
    hosts: Iterable[InventoryHost],
    group_files: Iterable[str],
    implicit_groups: Iterable[str],
    resolve: Callable[[InventoryHost], str],
) -> Fleet:
    """Turn pyinfra's inventory into the fleet.

    :param hosts: all hosts of the inventory
    :param group_files: names of the files in group_data/, without ``.py``
    :param implicit_groups: groups that pyinfra adds by itself
    :param resolve: finds the address of a host that has no ``address`` setting;
        raises ``OSError`` where there is none
    :raises InventoryError: with every mistake there is, not the first alone
    """
    listed = list(hosts)
    problems = _group_problems(listed, set(group_files), set(implicit_groups))
    problems += _role_problems(listed)
    built: list[Host] = []
    parsed = {entry.name: parse(entry.name, dict(entry.data)) for entry in listed}
    problems += told_missing({name: each.missing for name, each in parsed.items()})
    for entry in listed:
        found = parsed[entry.name]
        problems += found.problems
        if found.settings is not None:
            built.append(_host(entry, found.settings, resolve, problems))
    for host in built:
        problems += _instance_problems(host) + _address_problems(host, built)
    services = tuple(sorted({each.settings.app_name for each in parsed.values() if each.settings}))
    fleet = Fleet(tuple(built), tuple(_warnings(built)), services)
    problems += _fleet_wide_problems(fleet) + _agent_problems(built)
    if problems:
        raise InventoryError(problems)
    return fleet


def _host(
    entry: InventoryHost,
    settings: Settings,
    resolve: Callable[[InventoryHost], str],
    problems: list[str],
) -> Host:
    address = settings.address or ""
    if not address:
        try:
            address = resolve(entry)
        except OSError as error:
            # A retired host may have lost its name with its machine.
            if "retired" not in entry.groups:
                problems.append(
                    f"{entry.name}: no address found ({error}); set `address` for it, or add it "
                    "to DNS or your ssh config (a lab machine: invoke lab.up)"
                )
    host = Host(
        name=entry.name,
        address=address,
        node=settings.consul_node or entry.name,
        roles=entry.groups & ROLES,
        settings=settings,
        instances=(),
        data=entry.data,
    )
    if "app_servers" not in host.roles or host.is_retired:
        return host
    usual = settings.release
    if "release" in entry.typed:
        found = parse(entry.name, {**entry.data, "release": entry.usual.get("release")})
        problems += found.problems
        usual = found.settings.release if found.settings else None
    its = _app_host(host, settings, usual)
    return replace(host, instances=its.instances, applications=(its,))


def _app_host(host: Host, settings: Settings, usual_release: str | None) -> AppHost:
    instances = tuple(
        Instance(
            node=host.node,
            service=settings.app_name,
            name=name,
            id=instance.id or name,
            address=host.address,
            port=instance.port,
            datacenter=settings.datacenter,
        )
        for name, instance in settings.instances.items()
    )
    return host.having(settings, instances=instances, usual_release=usual_release)


def _group_problems(
    hosts: list[InventoryHost], group_files: set[str], implicit: set[str]
) -> list[str]:
    """A group is one of our roles, or one that the operator gave a file in group_data/."""
    used = {group for host in hosts for group in host.groups}
    problems = [
        f"inventory.py: unknown group {group!r}{nearest(group, ROLES)}"
        " (a group of your own needs a file in group_data/)"
        for group in sorted(used - ROLES - implicit - group_files)
        if not group.startswith("@")  # pyinfra's, for a way to reach hosts
    ]
    problems += [
        f"group_data/{group}.py: no group {group!r} in the inventory{nearest(group, used | ROLES)}"
        for group in sorted(group_files - used - ROLES - implicit)
    ]
    return problems


def _role_problems(hosts: list[InventoryHost]) -> list[str]:
    problems = []
    for host in hosts:
        if not host.groups & ROLES:
            problems.append(
                f"{host.name}: has no role; list it in one of {', '.join(sorted(ROLES))}"
            )
        if {"app_servers", "retired"} <= host.groups:
            problems.append(
                f"{host.name}: is both in app_servers and retired; take it out of one of them"
            )
        if {"consul_servers", "retired"} <= host.groups:
            problems.append(
                f"{host.name}: is both in consul_servers and retired; take it out of one of them"
            )
    without = any(host.data.get("consul_source") == "none" for host in hosts)
    if not without and not any("consul_servers" in host.groups for host in hosts):
        problems.append(
            "consul_servers: is empty; the catalog needs at least one Consul server (or, where "
            'each host has an agent already: consul_source = "none")'
        )
    return problems


def _instance_problems(host: Host) -> list[str]:
    problems = [
        f"{host.name}: instances: {instance.name} has port {instance.port}, which is {of}"
        for instance in host.instances
        if (of := RESERVED.get(instance.port))
    ]
    for key in ("port", "id"):
        counts = Counter(getattr(instance, key) for instance in host.instances)
        for value, count in counts.items():
            if count > 1:
                names = [i.name for i in host.instances if getattr(i, key) == value]
                problems.append(
                    f"{host.name}: instances {' and '.join(names)} have the same {key} {value!r}"
                )
    for each in host.applications:
        its = each.settings
        if its.app_python != DEBIANS_PYTHON and its.uwsgi_source == "debian":
            problems.append(
                f"{host.name}: app_python = {its.app_python!r}: Debian's uWSGI brings its "
                'own Python; set uwsgi_source = "pypi" for another one'
            )
        if not each.instances:
            problems.append(f"{host.name}: is in app_servers but `instances` is empty")
    return problems


def _address_problems(host: Host, hosts: list[Host]) -> list[str]:
    """What no other host could reach it by, or what another one has."""
    if not host.address or host.is_retired:
        return []
    address = ip_address(host.address)
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return [f"{host.name}: address = {host.address!r}: the other hosts can't reach it by that"]
    # Of each pair the later one.
    before = hosts[: hosts.index(host)]
    same = [each.name for each in before if each.address == host.address and not each.is_retired]
    return (
        [f"{host.name}: has the same address as {', '.join(same)}: {host.address}"] if same else []
    )


def _fleet_wide_problems(fleet: Fleet) -> list[str]:
    """What a host can't have of its own: settings of all the fleet, and of a roll-out."""
    problems = []
    for key in FLEET_WIDE:
        groups: list[tuple[Host, ...]] = [fleet.hosts]
        if key not in HostSettings.model_fields:
            groups = [fleet.serving(app) for app in fleet.services]
        for concerned in groups:
            values = {host.name: getattr(host.settings, key) for host in concerned}
            if len(set(map(repr, values.values()))) > 1:
                told = ", ".join(f"{value!r} for {name}" for name, value in values.items())
                problems.append(f"{key}: must be the same for all hosts; is {told}")
    return problems


def _agent_problems(hosts: list[Host]) -> list[str]:
    """Of agents that are there already."""
    problems = [
        f'{host.name}: {key} is for an agent that is there already: consul_source = "none"'
        for host in hosts
        if host.brings_consul
        for key in OF_AN_AGENT
        if getattr(host.settings, key) != Settings.model_fields[key].default
    ]
    theirs = [host for host in hosts if not host.brings_consul]
    problems += [
        f"{host.name}: consul_cert_file and consul_key_file belong together"
        for host in theirs
        if bool(host.settings.consul_cert_file) != bool(host.settings.consul_key_file)
    ]
    if not theirs:
        return problems
    if len(theirs) < len(hosts):
        ours = ", ".join(host.name for host in hosts if host.brings_consul)
        problems.append(
            f'consul_source: is "none" for {theirs[0].name} and not for {ours}: a fleet brings its '
            "Consul to all of its hosts, or uses what is there on all of them"
        )
    if servers := [host.name for host in theirs if host.is_consul_server]:
        problems.append(
            f'consul_servers: must be empty with consul_source = "none", is {", ".join(servers)}: '
            "no Consul server is this fleet's, and the agents of app_servers are asked"
        )
    if not theirs[0].settings.fleet:
        problems.append(
            'fleet: must be set with consul_source = "none", such as fleet = "shop-production": '
            "what is kept in Consul lies below this name"
        )
    return problems


def _warnings(hosts: list[Host]) -> list[str]:
    servers = [host.name for host in hosts if host.is_consul_server]
    if servers and len(servers) % 2 == 0:
        return [
            f"consul_servers: {len(servers)} is an even number of Consul servers: it takes "
            f"{len(servers) // 2 + 1} of them to agree, so one more than {len(servers) - 1} "
            "tolerates no more failures and is one more machine that can fail"
        ]
    return []
