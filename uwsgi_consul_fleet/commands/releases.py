"""invoke releases, and going back to one of them"""

from uwsgi_consul_fleet import durations
from uwsgi_consul_fleet.commands.command import Answer, Fleet, command
from uwsgi_consul_fleet.commands.names import NamesTask
from uwsgi_consul_fleet.errors import FleetError


@command(failure=2, json="print them as JSON", app="only those of this application")
def releases(fleet: Fleet) -> Answer:
    """Show which releases each host has, which one serves, and since when."""
    from uwsgi_consul_fleet.commands import report
    from uwsgi_consul_fleet.releases import releases as fleet_releases

    found = fleet_releases.read(fleet)
    data = [each.as_dict() for each in found]
    code = int(any(each.problem for each in found))
    return Answer(data, lambda: report.show_releases(found, fleet.services), code)


@command(
    failure=2,
    klass=NamesTask,
    app="only this application (default: all that have such a release)",
    help={
        "names": "a release as `invoke releases` shows it (default: the one before)",
        "wait": "for so long for another deploy or roll-back to end, such as 10m",
        "without-consul": "in an emergency, where Consul does not answer: without its lock, and "
        "without waiting for what it reports",
    },
)
def rollback(fleet: Fleet, names: list[str], wait: str = "", without_consul: bool = False) -> None:
    """Let the release before serve again, or another that is on the hosts. Sends nothing."""
    from uwsgi_consul_fleet.releases import rollback as going_back

    seconds = durations.typed("wait", wait) if wait else 0
    if len(names) > 1:
        raise FleetError(f"one release, not {len(names)}: {' '.join(names)}")
    going_back.rollback(fleet, "".join(names), without_consul, seconds)
