"""What this run releases, decided once for the fleet before anything is touched."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pyinfra import logger

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host.store import content_of
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.inventory.settings import parse
from uwsgi_consul_fleet.operations import ownership
from uwsgi_consul_fleet.operations.applications import kept, resolution
from uwsgi_consul_fleet.operations.applications.dependencies import Supply
from uwsgi_consul_fleet.operations.applications.package import Package, make, settings_alone
from uwsgi_consul_fleet.operations.applications.release import Release, read
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import Here, Run
from uwsgi_consul_fleet.operations.state import HostState
from uwsgi_consul_fleet.operations.uwsgi.uwsgi import plugin_file
from uwsgi_consul_fleet.releases.rule import CURRENT, Content, Record, Served, decide, served

# Hosts for which the same files on this machine are an application.
Source = tuple[str, str, str | None, str, str | None]


@dataclass(frozen=True)
class Decided:
    """For the hosts with one source: what they get, the line that says why, and what they do not
    get unless it is named."""

    release: Release
    told: str
    refused: tuple[Content, ...]


def prepare(here: Here) -> Package | None:
    """What is released on this host; None where it has no instances.

    :raises DeployError: where something is missing or wrong, before any host is touched
    """
    me, known = here.me, here.known
    if not me.instances:
        return None
    its = here.run.once(_decide)[_source(me)]
    if _keeps_its_settings(known, me, its.release):
        return replace(make(me, its.release), stays=known.current_generation, refused=its.refused)
    release = replace(its.release, resolution=resolution.choose(here, its.release))
    package = replace(make(me, release), refused=its.refused)
    if package.virtualenv != "-" and known.app_python_closed:
        raise DeployError(
            f"{me.name}: app_python: {known.app_python_closed} is not for everybody: the "
            f"application runs as {me.settings.app_name}, for whom there are no home folders; "
            "install it elsewhere, such as below /opt; nothing was changed"
        )
    here.run.once(Supply).want(me, release)
    return package


def mistaken(here: Here) -> str:
    """Why what was decided does not hold, now that the lock is held, or '': a Consul that could not
    be asked before may know better."""
    run, source = here.run, _source(here.me)
    if run.once(_records) is not None:
        return ""
    try:
        before, now = (run.once(decide)[source].release for decide in (_decide, _decide_again))
    except DeployError as error:
        return str(error)
    if before.content.digest == now.content.digest:
        return ""
    return "Consul, which could not be asked before, knows better; the same command again asks it"


def _decide(run: Run) -> Mapping[Source, Decided]:
    by_source, records = _by_source(run), run.once(_records)
    found = _decisions(run, by_source, records or {})
    _tell(found, by_source, run)
    return found


def _decide_again(run: Run) -> Mapping[Source, Decided]:
    contents = kept.contents(run.fleet.asked)
    if contents is None:
        raise DeployError("no Consul server can say what was released before")
    return _decisions(run, _by_source(run), _parsed(contents))


def _by_source(run: Run) -> Mapping[Source, list[Host]]:
    found: dict[Source, list[Host]] = defaultdict(list)
    for each in run.fleet.app_servers:
        if each.instances and each.name in run.pyinfra.connected:
            found[_source(each)].append(each)
    return found


def _decisions(
    run: Run, by_source: Mapping[Source, list[Host]], records: Mapping[str, Record | None]
) -> Mapping[Source, Decided]:
    heads = {source: read(hosts[0].settings) for source, hosts in by_source.items()}
    return {
        source: _decided(run, hosts, heads, records.get(hosts[0].settings.app_name))
        for source, hosts in by_source.items()
    }


def _source(me: Host) -> Source:
    settings = me.settings
    return (
        settings.app_name,
        settings.app_source,
        settings.app_requirements,
        settings.app_ini,
        settings.release,
    )


def _decided(
    run: Run, hosts: list[Host], heads: Mapping[Source, Release], record: Record | None
) -> Decided:
    """For the hosts with one source.

    :raises DeployError: where they should stay on what no host has
    """
    me = hosts[0]
    app_name, head = me.settings.app_name, heads[_source(me)]
    typed = str(run.pyinfra.typed.get("release") or CURRENT)
    named = typed != CURRENT and is_meant(typed, app_name, heads)
    label = me.settings.release if named or typed == CURRENT else _untyped(run, me)
    stay = label == CURRENT
    head = replace(head, name=head.name if stay else label or head.name)
    several = len({source[0] for source in heads}) > 1
    try:
        content, told, refused = decide(
            head.content,
            record,
            _serving(run, hosts),
            named=named,
            stay=stay,
            typed=heads[_source(me)].name if several else "",
        )
    except FleetError as error:
        raise DeployError(f"{app_name}: {error}") from error
    if content.digest == head.content.digest:
        return Decided(replace(head, name=content.release), told, refused)
    release = kept.find(_who_has_it(run, app_name, content), content, head.template)
    if release is None:
        raise DeployError(
            f"{app_name}: {told}; but no host that can be asked has {content.release} for those "
            "that lack it; nothing was changed"
        )
    return Decided(release, told, refused)


def _untyped(run: Run, me: Host) -> str | None:
    """What the release of an application is called where the name of another one was typed."""
    release = run.pyinfra.untyped(me.name).get("release")
    found = parse(me.name, {**me.data, "release": release})
    if found.settings is None:
        raise DeployError("\n".join(found.problems))
    return found.settings.release


def is_meant(typed: str, app_name: str, heads: Mapping[Source, Release]) -> bool:
    """Whether a name is about this application: git's for one of them is about that alone."""
    called_so = {source[0] for source, head in heads.items() if head.name == typed}
    return not called_so or app_name in called_so


def _serving(run: Run, hosts: Sequence[Host]) -> dict[str, Served]:
    """What hosts with one source serve, those too that --limit leaves out: a roll-back that Consul
    was not told of is known to them alone."""
    its, source = resolution.left_out(run, hosts[0].settings.app_name), _source(hosts[0])
    states = {name: each for name, each in its.items() if _source(run.fleet.host(name)) == source}
    states |= {each.name: run.state_of(each.name) for each in hosts}
    found = {name: _served(each) for name, each in states.items()}
    return {name: each for name, each in found.items() if each}


def _served(known: HostState) -> Served | None:
    generation = known.current_generation
    return served(generation, known.generations.get(generation, {}), known.last_switch)


def _keeps_its_settings(known: HostState, me: Host, release: Release) -> bool:
    """Whether today's settings are those that this host went back from: they return when they
    are changed, or when it has another plugin and has to be switched."""
    found = _served(known)
    if not found or not found.left or found.content != release.content:
        return False
    plugin = plugin_file(known)
    if not plugin or plugin.path != known.current_plugin:
        return False
    its_own = known.generations[known.current_generation].get("settings_alone")
    today = settings_alone(me, release.template)
    return today != its_own and today in {each["settings"] for each in known.last_switch["left"]}


def _who_has_it(run: Run, app_name: str, content: Content) -> list[Host]:
    """Also hosts that retire; where none of this run has it, those that --limit leaves out."""
    ours = [each for each in run.fleet.hosts if each.is_member or each.is_retired]
    ours = [each for each in ours if each.settings.app_name == app_name]
    there = [each.name for each in ours if each.name in run.pyinfra.connected]

    def those(states: Mapping[str, HostState]) -> list[Host]:
        made = {name: map(content_of, known.generations.values()) for name, known in states.items()}
        return [
            run.fleet.host(name) for name, contents in made.items() if content.digest in contents
        ]

    if not content.digest:
        return []
    inside = {name: run.state_of(name) for name in there}
    return those(inside) or those(resolution.left_out(run, app_name))


def _records(run: Run) -> dict[str, Record | None] | None:
    """What Consul knows of each application, from the first agent that can tell; None where there
    is a Consul, and none of them can."""
    asked = [each for each in run.fleet.asked if each.name in run.pyinfra.connected]
    for each in asked:
        contents = run.state_of(each.name).consul_contents
        if contents is not None:
            return _parsed(contents)
    left_out = ownership.left_out(run)
    if others := [each for each in run.fleet.asked if each.name in left_out]:
        contents = kept.contents(others)
        return None if contents is None else _parsed(contents)
    is_new = run.fleet.brings_consul and not any(run.state_of(x.name).consul_raft for x in asked)
    return {} if is_new else None


def _parsed(texts: Mapping[str, str]) -> dict[str, Record | None]:
    return {service: Record.parse(text) for service, text in texts.items()}


def _tell(found: Mapping[Source, Decided], hosts: Mapping[Source, list[Host]], run: Run) -> None:
    """A line for each application, and one where hosts keep older settings than today's."""
    for source, each in found.items():
        app_name = source[0]
        others = {one.told for key, one in found.items() if key[0] == app_name}
        where = f" ({', '.join(host.name for host in hosts[source])})" if len(others) > 1 else ""
        logger.info(f"    {app_name}{where}: {each.told}")
        keeping = [
            host.name
            for host in hosts[source]
            if _keeps_its_settings(run.state_of(host.name), host, each.release)
        ]
        if keeping:
            logger.info(
                f"    {app_name}: today's settings were rolled back from, and are not applied "
                f"until they are changed: {', '.join(keeping)}"
            )
