"""Mistakes in an inventory: a line for each, which names what is to be mended."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from uwsgi_consul_fleet.inventory.groups import ROLES, Groups
from uwsgi_consul_fleet.inventory.settings import (
    FLEET_WIDE,
    KNOWN_KEYS,
    OF_AN_AGENT,
    HostSettings,
    nearest,
)
from uwsgi_consul_fleet.languages import IMPOSSIBLE, NOT_FOR, PYTHON

if TYPE_CHECKING:
    from uwsgi_consul_fleet.inventory.model import AppHost, Fleet, Host, Instance
    from uwsgi_consul_fleet.inventory.settings import Settings

DEBIANS_PYTHON = "/usr/bin/python3"
RESERVED = {22: "sshd's"} | dict.fromkeys((8300, 8301, 8302, 8500, 8600), "Consul's")


def of_groups(groups: Groups) -> list[str]:
    """A group is one of our roles, an application's, or one that has a file in group_data/."""
    known = ROLES | groups.implicit
    its = {app.group for app in groups.applications}
    told = " (one of your own needs a file in group_data/, an application's one in applications/)"
    problems = [
        f"inventory.py: unknown group {group!r}{nearest(group, ROLES | its)}{told}"
        for group in sorted(groups.used - known - groups.files - its)
        if not group.startswith("@")  # pyinfra's, for a way to reach hosts
    ]
    problems += [
        f"group_data/{group}.py: no group {group!r} in the inventory"
        f"{nearest(group, groups.used | ROLES)}"
        for group in sorted(groups.files - groups.used - known)
    ]
    return problems


def of_roles(groups: Groups) -> list[str]:
    """What a host can't be, or not both."""
    problems = []
    for host in groups.hosts:
        roles = groups.roles(host)
        if not roles:
            problems.append(
                f"{host.name}: has no role; list it in one of {', '.join(sorted(ROLES))}"
            )
        serving = ("app_servers", *sorted(groups.of_applications), "consul_servers")
        for group in (each for each in serving if {each, "retired"} <= host.groups):
            problems.append(
                f"{host.name}: is both in {group} and retired; take it out of one of them"
            )
        if groups.applications and "app_servers" in roles and "retired" not in roles:
            problems += _without_application(groups, host.name, groups.applications_of(host))
    without = any(host.data.get("consul_source") == "none" for host in groups.hosts)
    if not without and not any("consul_servers" in host.groups for host in groups.hosts):
        problems.append(
            "consul_servers: is empty; the catalog needs at least one Consul server (or, where "
            'each host has an agent already: consul_source = "none")'
        )
    return problems


def _without_application(groups: Groups, name: str, its: Sequence[object]) -> list[str]:
    if its:
        return []
    own = ", ".join(sorted(groups.of_applications))
    return [
        f"{name}: is in app_servers, which are the hosts of applications without a group of their "
        f"own, and all have one: list it in one of {own}"
    ]


def of_files(groups: Groups) -> list[str]:
    """Of what applications/ says, as far as no host has a part in it."""
    problems: list[str] = []
    names: dict[str, str] = {}
    # A fleet of which all hosts retire has no application either.
    serving = any(map(groups.applications_of, groups.hosts))
    others = "app_servers" in groups.used or ("retired" in groups.used and not serving)
    named = {host.typed["app_name"] for host in groups.hosts if "app_name" in host.typed}
    for name in named if groups.applications else ():
        problems.append(f"--data app_name={name}: files name applications; of one: --data app=NAME")
    for app in groups.applications:
        problems += app.problems
        if app.group in ROLES | groups.implicit | KNOWN_KEYS:
            problems.append(f"{app.file}: {app.group} means something else: rename the file")
        if app.group in groups.files:
            problems.append(
                f"group_data/{app.group}.py: {app.name} is an application: its settings belong "
                f"into {app.file}, and those of its hosts beside them in the inventory"
            )
        if (other := names.setdefault(app.name, app.file)) != app.file:
            problems.append(f"{app.file}: describes {app.name}, as {other} does: remove one")
        if app.group not in groups.of_applications | groups.used and not others:
            problems.append(
                f"{app.file}: has no hosts: list them in the inventory, as {app.group} = [...] "
                "(an empty list takes it from those that have it)"
            )
    return problems


def of_fleet(fleet: "Fleet") -> list[str]:
    """Of hosts with their instances, each by itself and all together."""
    hosts = list(fleet.hosts)
    problems: list[str] = []
    for host in hosts:
        problems += _instance_problems(host) + _address_problems(host, hosts)
    for app in fleet.services:
        problems += _worker_problems(fleet.serving(app))
    return problems + _fleet_wide_problems(fleet) + _agent_problems(hosts) + _of_secrets(fleet)


def _worker_problems(hosts: "Sequence[AppHost]") -> list[str]:
    """Of an application's other processes, on all of its hosts."""
    named = {each.name for each in hosts}
    problems, once = [], defaultdict(list)
    for host in hosts:
        key = f"{host.app}: app_workers"
        for name, its in host.settings.app_workers.items():
            problems += [
                f"{key}: {name}.hosts: {other!r} does not serve {host.app}{nearest(other, named)}"
                for other in its.hosts or ()
                if other not in named
            ]
            if not its.overlap and name in host.workers:
                once[f"{key}: {name}"].append(host.name)
    return problems + [
        f"{key}: with overlap = False it runs on one host, and these would have it: "
        f'{", ".join(names)}; name one of them: hosts = ["{names[0]}"]'
        for key, names in once.items()
        if len(names) > 1
    ]


def _instance_problems(host: "Host") -> list[str]:
    several = len(host.applications) > 1

    def told(instance: "Instance") -> str:
        return f"{instance.service}/{instance.name}" if several else instance.name

    ssh = {port: "sshd's"} if (port := host.data.get("ssh_port")) else {}
    problems = [
        f"{host.name}: instances: {told(instance)} has port {instance.port}, which is {of}"
        for instance in host.instances
        if (of := (RESERVED | ssh).get(instance.port))
    ]
    if host.brings_consul and port != 22 and port in RESERVED:
        problems.append(f"{host.name}: ssh_port = {port}, which is {RESERVED[port]}")
    for key in ("port", "id"):
        counts = Counter(getattr(instance, key) for instance in host.instances)
        for value, count in counts.items():
            if count > 1:
                names = [told(i) for i in host.instances if getattr(i, key) == value]
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
        problems += [f"{host.name}: {problem}" for problem in _of_language(its)]
        if not each.instances:
            whose = f"serves {each.app}" if each.is_described else "is in app_servers"
            problems.append(f"{host.name}: {whose} but `instances` is empty")
    return problems


def _of_language(its: "Settings") -> list[str]:
    """What an application's language can't have."""
    if its.app_type == PYTHON:
        return []
    said, language = f"app_type = {its.app_type!r}", its.language
    if its.app_type in IMPOSSIBLE:
        return [f"{said}: {IMPOSSIBLE[its.app_type]}"]
    problems = [
        f"app_uwsgi: {name}: not with {said}: {language.name}'s plugin can't"
        for name, types in NOT_FOR.items()
        if name in its.app_uwsgi and its.app_type in types
    ]
    if its.uwsgi_source == "pypi":
        problems.append(
            f'uwsgi_source = "pypi": PyPI\'s uWSGI has Python alone: leave it out with {said}'
        )
    if not its.app_root:
        problems.append(f'{said}: takes app_root: "." where app_source is the project itself')
    path = PurePosixPath(its.app_entry_point)
    if ":" in str(path) or path.is_absolute() or ".." in path.parts or not path.parts:
        problems.append(f"app_entry_point = {its.app_entry_point!r}: with {said}, {language.entry}")
    wanted = its.app_requirements
    if wanted and wanted.rpartition("/")[2] != (language.manifest or wanted):
        problems.append(f"app_requirements = {wanted!r}: with {said}, {language.manifest} or None")
    if wanted and not language.manifest:
        problems.append(f"app_requirements: None with {said}: say app_packages, or keep them in it")
    return problems


def _address_problems(host: "Host", hosts: "list[Host]") -> list[str]:
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


def _fleet_wide_problems(fleet: "Fleet") -> list[str]:
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


def _agent_problems(hosts: "list[Host]") -> list[str]:
    """Of agents that are there already."""
    problems = [
        f'{host.name}: {key} is for an agent that is there already: consul_source = "none"'
        for host in hosts
        if host.brings_consul
        for key in OF_AN_AGENT
        if getattr(host.settings, key) != HostSettings.model_fields[key].default
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


def _of_secrets(fleet: "Fleet") -> list[str]:
    """Of where those of a Consul of its own are kept. They are the same for all hosts."""
    given = [
        key
        for key in ("secrets_load", "secrets_save")
        if any(getattr(host.settings, key) for host in fleet.hosts)
    ]
    if len(given) == 1:
        return [f"{given[0]}: secrets_load and secrets_save belong together: set both, or none"]
    if given and not fleet.brings_consul:
        return [
            'secrets_load: there are no secrets of a fleet with consul_source = "none"; '
            "consul_token says where the token is"
        ]
    return []


def warnings(groups: Groups) -> list[str]:
    """What is no mistake, but may not be meant."""
    found = []
    servers = [host.name for host in groups.hosts if "consul_servers" in host.groups]
    if servers and len(servers) % 2 == 0:
        found.append(
            f"consul_servers: {len(servers)} is an even number of Consul servers: it takes "
            f"{len(servers) // 2 + 1} of them to agree, so one more than {len(servers) - 1} "
            "tolerates no more failures and is one more machine that can fail"
        )
    found += [
        f"{app.file}: the group {app.group} has no hosts: {app.name} is taken from those that have "
        "it; when it is, its file and the group can go"
        for app in groups.applications
        if app.group in groups.of_applications - groups.used
    ]
    return found
