"""invoke ssh.trust"""

from invoke import Exit

from uwsgi_consul_fleet.commands.command import Fleet, command
from uwsgi_consul_fleet.errors import FleetError


@command(failure=2, meets=False, help={"yes": "do not ask"})
def trust(fleet: Fleet, yes: bool = False) -> None:
    """Show the host keys of all hosts that were never met, and remember them."""
    from uwsgi_consul_fleet.ssh import client, options, strangers

    hosts = [options.of(each.name, each.data) for each in fleet.hosts]
    count = 0
    for found in strangers.among(hosts, options.MODES.values()):
        if yes:
            print(strangers.listing(found))
        elif not strangers.is_asked():
            told = f"never met:\n{strangers.listing(found)}\nnothing was remembered"
            raise FleetError(f"{told}: without a terminal to ask at, say --yes")
        elif not strangers.agrees(found):
            raise Exit("nothing was remembered", 1)
        strangers.trust(found)
        count += len(found)
    print(f"{count} remembered" if count else "no host shows a key that is not known")
    if silent := client.silent():
        raise FleetError("\n".join(map(str, silent)))
