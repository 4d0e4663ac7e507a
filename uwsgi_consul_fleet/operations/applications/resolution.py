"""Which resolution of its requirements a release uses, and what the hosts have."""

from collections import Counter
from collections.abc import Mapping

from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.operations import left_out as beyond
from uwsgi_consul_fleet.operations import ownership
from uwsgi_consul_fleet.operations.applications.release import Release, made_by
from uwsgi_consul_fleet.operations.run import AppHere, Run
from uwsgi_consul_fleet.operations.state import AppState, HostState

States = Mapping[str, AppState]


def choose(here: AppHere, release: Release) -> str:
    """The id of the resolution that a release uses. It is that of the hosts which have the release;
    else that of what serves, where the requirements are written as they were then. What is named,
    and is nowhere yet, makes its own.

    :returns: '' for a release without requirements
    """
    if release.requirements is None:
        return ""
    app, chosen = here.me.app, here.run.once(_chosen)
    key = (app, release.name, release.requirements.digest)
    if key not in chosen:
        chosen[key] = _choose(here.run, app, release)
    return chosen[key]


def _chosen(run: Run) -> dict[tuple[str, ...], str]:
    """What was chosen, which is the same for all hosts."""
    return {}


def _choose(run: Run, app: str, release: Release) -> str:
    named = is_named(run, release)
    # Hosts that this run leaves out are asked only where the others don't know.
    return (
        _most(inside(run, app), release, of_this_name=True, serving=not named)
        or _most(everywhere(run, app), release, of_this_name=True, serving=not named)
        or _most(everywhere(run, app), release, of_this_name=True, serving=False)
        or ("" if named else _most(everywhere(run, app), release, of_this_name=False, serving=True))
        or made_by(release)
    )


def is_named(run: Run, release: Release) -> bool:
    """Whether its name was typed."""
    return bool(run.pyinfra.typed.get("release") == release.name)


def _most(states: States, release: Release, *, of_this_name: bool, serving: bool) -> str:
    """What most hosts have of the same requirements; '' where none has any."""
    assert release.requirements
    found = Counter(
        str(made["resolution"])
        for known in states.values()
        for generation, made in known.generations.items()
        if made.get("requirements") == release.requirements.digest and made.get("resolution")
        if made.get("release") == release.name or not of_this_name
        if generation == known.current_generation or not serving
    )
    return found.most_common(1)[0][0] if found else ""


def place(resolution: str, kind: str) -> str:
    """Where it lies among the resolutions of a host; '' without one."""
    return f"{resolution}/{kind}" if resolution else ""


def connected(run: Run, app: str) -> list[AppHost]:
    """The hosts of an application in this run."""
    return [each for each in run.fleet.serving(app) if each.name in run.pyinfra.connected]


def inside(run: Run, app: str) -> States:
    """How they look."""
    return {each.name: run.its_state(each) for each in connected(run, app)}


def left_out(run: Run, app: str) -> States:
    """How those of its hosts look that this run is not about, asked once."""
    found = run.once(ask_left_out)
    return {x.name: found[x.name].of(app) for x in run.fleet.serving(app) if x.name in found}


def everywhere(run: Run, app: str) -> States:
    """How all of its hosts look that can be asked."""
    return {**inside(run, app), **left_out(run, app)}


def ask_left_out(run: Run) -> dict[str, HostState]:
    """How the application servers look that this run is not about."""
    names = ownership.left_out(run)
    hosts = [each for each in run.fleet.app_servers if each.name in names]
    return {name: known for name, known in beyond.look(hosts).items() if known}
