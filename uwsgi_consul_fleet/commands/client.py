"""invoke client"""

from invoke import Exit

from uwsgi_consul_fleet.commands.command import Fleet, command
from uwsgi_consul_fleet.errors import FleetError


@command(
    failure=2,
    app="which application of the inventory to look for",
    help={
        "service": "which service to look for, also one of others (default: the application)",
        "once": "print once and exit",
        "json": "one JSON document for each change",
        "passing": "only instances whose checks pass",
        "datacenter": "ask about another datacenter",
    },
)
def client(
    fleet: Fleet,
    service: str = "",
    once: bool = False,
    json: bool = False,
    passing: bool = False,
    datacenter: str = "",
) -> None:
    """Print which servers a client finds, live, as seen from a Consul server of the fleet."""
    from uwsgi_consul_fleet.client import program
    from uwsgi_consul_fleet.consul import catalog

    if not service and fleet.is_described and len(fleet.services) > 1:
        raise FleetError(f"there are several applications: --app {'|'.join(fleet.services)}")
    arguments = ["--service", service or fleet.services[0]]
    arguments += ["--once"] * once + ["--json"] * json + ["--passing"] * passing
    arguments += ["--datacenter", datacenter] if datacenter else []
    with catalog.api(fleet) as way:
        raise Exit(code=program.run([*arguments, "--url", way.url], way.access))
