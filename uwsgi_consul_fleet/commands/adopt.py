"""invoke adopt"""

from uwsgi_consul_fleet.commands.command import Fleet, command, expect
from uwsgi_consul_fleet.errors import FleetError


@command(
    failure=2,
    positional=["host"],
    help={"host": "its name in the inventory", "yes": "do not ask"},
)
def adopt(fleet: Fleet, host: str, yes: bool = False) -> None:
    """Hand a host over to this fleet, with what is on it, after showing what that is."""
    from uwsgi_consul_fleet.ownership import hosts
    from uwsgi_consul_fleet.ownership.belongings import told
    from uwsgi_consul_fleet.ownership.identity import ForeignError

    if host not in {each.name for each in fleet.hosts}:
        raise FleetError(f"{host}: is not in the inventory; put it there first")
    me = fleet.host(host)
    found = hosts.look(me)
    try:
        identity = str(found.identity or "")
        print(f"{host}: {f'is of the fleet {identity}' if identity else 'is of no fleet'}")
    except ForeignError:
        identity = found.record
        print(f"{host}: what says whose it is is damaged: {identity}")
    for what in (*sorted(found.ours), *found.strangers):
        for text in found.strangers.get(what, ["put there by a deploy"]):
            print(f"    {told(what, text)}")
    # What a version without identities put there may be of another cluster.
    if not identity and not found.strangers and not found.marks:
        print("Nothing is in the way of a deploy.")
        return
    if any(what.startswith("port:") for what in found.strangers):
        raise FleetError("free these ports, or give the instances others: nothing was changed")
    if not yes:
        stops = "Its Consul is stopped now and forgets its cluster.\n"
        question = (
            f"{stops if hosts.stops_consul(me, found) else ''}"
            "The next deploy overwrites what is in its way.\nIf you mean it, type the host's name:"
        )
        expect(question, host, otherwise="nothing was changed", exactly=True)
    hosts.adopt(me, found)
    print(f"{host}: is handed over; next: pyinfra inventory.py deploy/")
