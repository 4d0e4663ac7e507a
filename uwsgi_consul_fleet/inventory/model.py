"""The one model: hosts and instances, computed from the inventory and nowhere else."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from uwsgi_consul_fleet.errors import FleetError, InventoryError
from uwsgi_consul_fleet.host.consul import KEYS
from uwsgi_consul_fleet.inventory import mistakes
from uwsgi_consul_fleet.inventory.applications import Described, id_of
from uwsgi_consul_fleet.inventory.groups import Groups
from uwsgi_consul_fleet.inventory.groups import InventoryHost as InventoryHost
from uwsgi_consul_fleet.inventory.settings import (
    KNOWN_KEYS,
    HostSettings,
    Parsed,
    Settings,
    WorkerSettings,
    nearest,
    parse,
    told_missing,
    unknown,
)
from uwsgi_consul_fleet.inventory.vault import NOWHERE, Vault


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
    ``vault`` is where the secrets of its fleet are.
    """

    name: str
    address: str
    node: str
    roles: frozenset[str]
    settings: HostSettings
    instances: tuple[Instance, ...]
    data: Mapping[str, Any] = field(repr=False)
    applications: tuple["AppHost", ...] = field(default=(), repr=False)
    vault: Vault = NOWHERE

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

    ``usual_release`` is what `release` is where none is typed; ``is_described`` whether the
    application has a file in applications/. ``workers`` are those of
    its settings that run here, by their kind.
    """

    settings: Settings
    usual_release: str | None = None
    is_described: bool = False
    workers: Mapping[str, WorkerSettings] = field(default_factory=dict)

    @property
    def app(self) -> str:
        """The application's name."""
        return self.settings.app_name

    @property
    def worker_names(self) -> list[str]:
        """Its other processes here, each as KIND.NUMBER, which its unit is called after."""
        return [
            f"{kind}.{number}"
            for kind, worker in self.workers.items()
            for number in range(1, worker.count + 1)
        ]


@dataclass(frozen=True)
class Fleet:
    """All hosts in inventory order, warnings that are not mistakes, and the names of all
    applications, also of one whose hosts are all retired; ``is_part`` where it has more. ``notes``
    are for whoever deploys."""

    hosts: tuple[Host, ...]
    warnings: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    is_part: bool = False
    notes: tuple[str, ...] = ()
    file: Path = Path()  # its inventory
    part_of: "Fleet | None" = field(default=None, repr=False, compare=False)

    @property
    def whole(self) -> "Fleet":
        """With all of its applications, also where it is a part."""
        return self.part_of or self

    @property
    def name(self) -> str | None:
        """What the operator calls it, if anything."""
        return next((host.settings.fleet for host in self.hosts), None)

    @property
    def folder(self) -> Path:
        """Of its inventory."""
        return self.file.parent

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

    @property
    def dns(self) -> bool:
        """Whether Consul's DNS is to answer, on any host."""
        return any(host.settings.dns for host in self.hosts)

    @property
    def unlisted(self) -> list[str]:
        """Applications that do not say what they look up."""
        return sorted({x.app for x in self.applications if x.settings.app_discovers is None})

    @property
    def is_described(self) -> bool:
        """Whether files in applications/ say what runs on it."""
        return any(each.is_described for each in self.applications)

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

    def kept_in(self, vault: Vault) -> Self:
        """With its secrets there."""
        hosts = []
        for host in self.hosts:
            its = tuple(replace(each, vault=vault) for each in host.applications)
            hosts.append(replace(host, applications=its, vault=vault))
        return replace(self, hosts=tuple(hosts))

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def only(self, app: str) -> Self:
        """It as far as one application is concerned; '' for all of them.

        :raises FleetError: where it has no such application
        """
        if app and app not in self.services:
            hint = nearest(app, {*self.services})
            raise FleetError(
                f"there is no application {app!r}{hint}; there are: {', '.join(self.services)}"
            )
        if not app or self.services == (app,):
            return self
        hosts = []
        for host in self.hosts:
            its = tuple(each for each in host.applications if each.app == app)
            instances = tuple(instance for each in its for instance in each.instances)
            hosts.append(replace(host, applications=its, instances=instances))
        return replace(self, hosts=tuple(hosts), services=(app,), is_part=True, part_of=self)


def build(
    hosts: Iterable[InventoryHost],
    group_files: Iterable[str],
    implicit_groups: Iterable[str],
    resolve: Callable[[InventoryHost], str],
    applications: Sequence[Described] | None = None,
    groups: Collection[str] = (),
) -> Fleet:
    """Turn pyinfra's inventory into the fleet.

    :param hosts: all hosts of the inventory
    :param group_files: names of the files in group_data/, without ``.py``
    :param implicit_groups: groups that pyinfra adds by itself
    :param resolve: finds the address of a host that has no ``address`` setting;
        raises ``OSError`` where there is none
    :param applications: None where the data of hosts describe the one that each of them has
    :param groups: all groups of the inventory, also those without hosts
    :raises InventoryError: with every mistake there is, not the first alone
    """
    listed, apps = list(hosts), list(applications or ())
    named = Groups(listed, {*group_files}, {*implicit_groups}, {*groups}, apps)
    problems = mistakes.of_groups(named) + mistakes.of_roles(named) + mistakes.of_files(named)
    known = KNOWN_KEYS | {word for app in apps for word in (app.name, app.group)}
    parsed: dict[str, Parsed[Any]] = {}
    for entry in listed:
        problems += unknown(entry.name, entry.data, known)
        kind = HostSettings if applications else Settings
        parsed[entry.name] = parse(entry.data, kind, partial(_first, entry.name))
        problems += parsed[entry.name].problems
    problems += told_missing({name: each.missing for name, each in parsed.items()})
    built: list[Host] = []
    for entry in listed:
        settings = parsed[entry.name].settings
        if settings is None:
            continue
        host = _host(entry, settings, named.roles(entry), resolve, problems)
        if applications:
            its = [_described(host, entry, app, problems) for app in named.applications_of(entry)]
        else:
            its = _undescribed(host, entry, problems)
        there = tuple(each for each in its if each)
        instances = tuple(instance for each in there for instance in each.instances)
        built.append(replace(host, instances=instances, applications=there))
    named_so = {app.name for app in apps} or {
        each.settings.app_name for each in parsed.values() if each.settings
    }
    fleet = Fleet(tuple(built), tuple(mistakes.warnings(named)), tuple(sorted(named_so)))
    problems += mistakes.of_fleet(fleet)
    if problems:
        raise InventoryError(list(dict.fromkeys(problems)))
    return fleet


def _first(name: str, _key: str) -> str:
    return name


def _host(
    entry: InventoryHost,
    settings: HostSettings,
    roles: frozenset[str],
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
    return Host(
        name=entry.name,
        address=address,
        node=settings.consul_node or entry.name,
        roles=roles,
        settings=settings,
        instances=(),
        data=entry.data,
    )


def _undescribed(host: Host, entry: InventoryHost, problems: list[str]) -> list[AppHost | None]:
    """The one application that a host's own data describe."""
    settings = host.settings
    if not isinstance(settings, Settings) or "app_servers" not in host.roles or host.is_retired:
        return []
    usual = settings
    if "release" in entry.typed:
        data = {**entry.data, "release": entry.usual.get("release")}
        found = parse(data, Settings, partial(_first, entry.name))
        problems += found.problems
        usual = found.settings or settings
    ids = {name: each.id or name for name, each in settings.instances.items()}
    return [_app_host(host, settings, usual, ids)]


def _described(
    host: Host, entry: InventoryHost, app: Described, problems: list[str]
) -> AppHost | None:
    """What a file describes, on one of its hosts."""
    own = {**entry.own, **app.said_in(entry.usual)}

    def where(key: str) -> str:
        said_here = key in own or key in entry.typed or key not in app.data
        return app.file if key == "app_name" or not said_here else f"{entry.name} ({app.name})"

    usual, found = (
        parse({**app.on(own, entry.usual), **typed}, Settings, where) for typed in ({}, entry.typed)
    )
    problems += [*app.problems_in(entry.name, entry.usual), *usual.problems, *found.problems]
    if found.missing:
        problems.append(
            f"{app.file}: not set, and without a default: {', '.join(sorted(found.missing))}"
        )
    if usual.settings is None or found.settings is None:
        return None
    ids = {name: id_of(app.name, name, each) for name, each in found.settings.instances.items()}
    return replace(_app_host(host, found.settings, usual.settings, ids), is_described=True)


def _app_host(host: Host, settings: Settings, usual: Settings, ids: Mapping[str, str]) -> AppHost:
    instances = tuple(
        Instance(
            node=host.node,
            service=settings.app_name,
            name=name,
            id=ids[name],
            address=host.address,
            port=instance.port,
            datacenter=settings.datacenter,
        )
        for name, instance in settings.instances.items()
    )
    workers = {
        name: each
        for name, each in settings.app_workers.items()
        if each.hosts is None or host.name in each.hosts
    }
    return host.having(settings, instances=instances, usual_release=usual.release, workers=workers)
