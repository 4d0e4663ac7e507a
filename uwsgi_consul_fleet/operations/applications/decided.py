"""What this run releases, decided once for the fleet before anything is touched."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pyinfra import logger

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.host.store import content_of
from uwsgi_consul_fleet.inventory.model import AppHost, Host
from uwsgi_consul_fleet.operations import ownership
from uwsgi_consul_fleet.operations.applications import kept, resolution, workers
from uwsgi_consul_fleet.operations.applications.dependencies import Supply
from uwsgi_consul_fleet.operations.applications.package import Package, make, settings_alone
from uwsgi_consul_fleet.operations.applications.release import Release, described, read
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.run import AppHere, Here, Run
from uwsgi_consul_fleet.operations.state import AppState
from uwsgi_consul_fleet.operations.uwsgi.uwsgi import plugin_file
from uwsgi_consul_fleet.releases.rule import CURRENT, Content, Record, Served, decide, served

# Hosts for which the same files on this machine are an application.
Source = tuple[str | None, ...]


@dataclass(frozen=True)
class Decided:
    """For the hosts with one source: what they get, the line that says why, what they do not
    get unless it is named, and whether one of them serves what they get."""

    release: Release
    told: str
    refused: tuple[Content, ...]
    is_served: bool


def prepare(here: AppHere) -> Package:
    """What of an application is released on this host.

    :raises DeployError: where something is missing or wrong, before any host is touched
    """
    me = here.me
    its = here.run.once(_decide)[_source(me)]
    with _named(here.run, me.app):
        return _prepare(here, its)


def _prepare(here: AppHere, its: Decided) -> Package:
    me, known = here.me, here.its
    if _keeps_its_settings(known, me, its.release):
        return replace(make(me, its.release), stays=known.current_generation, refused=its.refused)
    workers.refuse_a_move(here)
    release = replace(its.release, resolution=resolution.choose(here, its.release))
    package = replace(make(me, release), refused=its.refused, is_served=its.is_served)
    if package.virtualenv != "-" and known.python_closed:
        raise DeployError(
            f"{me.name}: app_python: {known.python_closed} is not for everybody: the "
            f"application runs as {me.app}, for whom there are no home folders; "
            "install it elsewhere, such as below /opt; nothing was changed"
        )
    here.run.once(Supply).want(me, release)
    return package


def mistaken(here: Here) -> str:
    """Why what was decided does not hold, now that the lock is held, or '': a Consul that could not
    be asked before may know better."""
    run = here.run
    if run.once(_records) is not None:
        return ""
    try:
        before, now = (
            [run.once(decide)[_source(its)].release.content.digest for its in here.me.applications]
            for decide in (_decide, _decide_again)
        )
    except DeployError as error:
        return str(error)
    if before == now:
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


def _by_source(run: Run) -> Mapping[Source, list[AppHost]]:
    found: dict[Source, list[AppHost]] = defaultdict(list)
    for each in run.fleet.applications:
        if each.name in run.pyinfra.connected:
            found[_source(each)].append(each)
    return found


def _decisions(
    run: Run, by_source: Mapping[Source, list[AppHost]], records: Mapping[str, Record | None]
) -> Mapping[Source, Decided]:
    heads = {}
    for source, hosts in by_source.items():
        with _named(run, hosts[0].app):
            heads[source] = read(hosts[0].settings)
    return {
        source: _decided(run, hosts, heads, records.get(hosts[0].app))
        for source, hosts in by_source.items()
    }


@contextmanager
def _named(run: Run, app: str) -> Iterator[None]:
    """Says of a mistake which application has it, where there are several."""
    try:
        yield
    except DeployError as error:
        if len(run.fleet.services) > 1:
            raise DeployError(f"{app}: {error}") from error
        raise


def _source(me: AppHost) -> Source:
    settings = me.settings
    return (settings.app_name, *described(settings), settings.release)


def _decided(
    run: Run, hosts: list[AppHost], heads: Mapping[Source, Release], record: Record | None
) -> Decided:
    """For the hosts with one source.

    :raises DeployError: where they should stay on what no host has
    """
    me = hosts[0]
    app_name, head = me.app, heads[_source(me)]
    typed = str(run.pyinfra.typed.get("release") or CURRENT)
    named = typed != CURRENT and is_meant(typed, app_name, heads)
    label = me.settings.release if named or typed == CURRENT else me.usual_release
    stay = label == CURRENT
    head = replace(head, name=head.name if stay else label or head.name)
    several = len({source[0] for source in heads}) > 1
    serving = _serving(run, hosts)
    try:
        content, told, refused = decide(
            head.content,
            record,
            serving,
            named=named,
            stay=stay,
            typed=heads[_source(me)].name if several else "",
        )
    except FleetError as error:
        raise DeployError(f"{app_name}: {error}") from error
    is_served = any(each.content == content for each in serving.values())
    if content.digest == head.content.digest:
        return Decided(replace(head, name=content.release), told, refused, is_served)
    release = kept.find(app_name, _who_has_it(run, app_name, content), content, head.template)
    if release is None:
        raise DeployError(
            f"{app_name}: {told}; but no host that can be asked has {content.release} for those "
            "that lack it; nothing was changed"
        )
    return Decided(release, told, refused, is_served)


def is_meant(typed: str, app_name: str, heads: Mapping[Source, Release]) -> bool:
    """Whether a name is about this application: git's for one of them is about that alone."""
    called_so = {source[0] for source, head in heads.items() if head.name == typed}
    return not called_so or app_name in called_so


def _serving(run: Run, hosts: Sequence[AppHost]) -> dict[str, Served]:
    """What hosts with one source serve, those too that --limit leaves out: a roll-back that Consul
    was not told of is known to them alone."""
    app, source = hosts[0].app, _source(hosts[0])
    alike = {each.name for each in run.fleet.serving(app) if _source(each) == source}
    its = resolution.left_out(run, app)
    states = {name: each for name, each in its.items() if name in alike}
    states |= {each.name: run.its_state(each) for each in hosts}
    found = {name: _served(each) for name, each in states.items()}
    return {name: each for name, each in found.items() if each}


def _served(known: AppState) -> Served | None:
    generation = known.current_generation
    return served(generation, known.generations.get(generation, {}), known.last_switch)


def _keeps_its_settings(known: AppState, me: AppHost, release: Release) -> bool:
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
    there = [each.name for each in ours if each.name in run.pyinfra.connected]

    def those(states: Mapping[str, AppState]) -> list[Host]:
        made = {name: map(content_of, known.generations.values()) for name, known in states.items()}
        return [
            run.fleet.host(name) for name, contents in made.items() if content.digest in contents
        ]

    if not content.digest:
        return []
    inside = {name: run.state_of(name).of(app_name) for name in there}
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


def _tell(found: Mapping[Source, Decided], hosts: Mapping[Source, list[AppHost]], run: Run) -> None:
    """A line for each application, and one where hosts keep older settings than today's."""
    for source, each in found.items():
        app_name = source[0]
        others = {one.told for key, one in found.items() if key[0] == app_name}
        where = f" ({', '.join(host.name for host in hosts[source])})" if len(others) > 1 else ""
        logger.info(f"    {app_name}{where}: {each.told}")
        keeping = [
            host.name
            for host in hosts[source]
            if _keeps_its_settings(run.its_state(host), host, each.release)
        ]
        if keeping:
            logger.info(
                f"    {app_name}: today's settings were rolled back from, and are not applied "
                f"until they are changed: {', '.join(keeping)}"
            )
        asked = [host for host in hosts[source] if host.settings.app_writable is None]
        for paths in sorted({tuple(run.its_state(host).writable) for host in asked} - {()}):
            logger.warning(
                f"    Warning: {app_name} can still write to {', '.join(paths)}, since a version "
                "before 0.5 let it: list what it needs in app_writable, [] for nothing"
            )
