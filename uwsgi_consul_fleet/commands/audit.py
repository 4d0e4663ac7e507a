"""invoke audit"""

from uwsgi_consul_fleet.commands.command import Answer, Fleet, command
from uwsgi_consul_fleet.errors import FleetError


@command(
    failure=2,
    json="print it as JSON",
    app="only runs that released this application",
    help={"last": "only the last so many entries"},
)
def audit(fleet: Fleet, last: str = "200") -> Answer:
    """Show who deployed what, when, and how it went."""
    from uwsgi_consul_fleet.commands import report
    from uwsgi_consul_fleet.consul import audit as fleet_audit

    entries = fleet_audit.read(fleet, count(last))
    return Answer([entry.as_dict() for entry in entries], lambda: report.show_audit(entries))


def count(text: str) -> int:
    """What ``--last`` says."""
    if not text.isdecimal() or int(text) < 1:
        raise FleetError(f"--last {text}: is not a number of entries")
    return int(text)
