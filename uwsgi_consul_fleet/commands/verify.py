"""invoke verify"""

from uwsgi_consul_fleet.commands.command import Answer, Fleet, command
from uwsgi_consul_fleet.errors import FleetError


@command(
    failure=2,
    json="print the report as JSON",
    app="only what concerns this application",
    help={
        "wait": "ask again until the catalog agrees, for at most so many SECONDS",
        "probe": "also make an HTTP request to each instance",
    },
)
def verify(fleet: Fleet, wait: str = "0", probe: bool = False) -> Answer:
    """Compare the catalog with the inventory. Exit 0: agree, 1: differ, 2: could not ask."""
    from uwsgi_consul_fleet.commands import report
    from uwsgi_consul_fleet.verify import inspection

    found = inspection.verify(fleet, seconds(wait), with_probe=probe)
    return Answer(found.as_dict(), lambda: report.show(found), 0 if found.agrees else 1)


def seconds(text: str) -> float:
    """What ``--wait`` says; Invoke itself answers a wrong number with a traceback."""
    try:
        return float(text)
    except ValueError:
        raise FleetError(f"--wait {text}: is not a number of seconds") from None
