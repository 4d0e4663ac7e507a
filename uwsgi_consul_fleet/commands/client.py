"""invoke client"""

from invoke import Exit

from uwsgi_consul_fleet.commands.command import Fleet, command


@command(
    failure=2,
    help={
        "service": "which service to look for (default: the inventory's application)",
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

    arguments = ["--service", service or fleet.services[0]]
    arguments += ["--once"] * once + ["--json"] * json + ["--passing"] * passing
    arguments += ["--datacenter", datacenter] if datacenter else []
    with catalog.api(fleet) as way:
        raise Exit(code=program.run([*arguments, "--url", way.url], way.access))
