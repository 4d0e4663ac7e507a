"""Which machines a build is for."""

from collections.abc import Iterable, Sequence

from uwsgi_consul_fleet.build.builder import Place
from uwsgi_consul_fleet.build.machines import Local, Remote
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Fleet
from uwsgi_consul_fleet.inventory.settings import nearest


def local(names: Iterable[str] = ()) -> list[Place]:
    """This machine, with the uWSGI on its PATH.

    :raises FleetError: where hosts are named as well
    """
    if list(names):
        raise FleetError("--local is this machine: it does not go together with --host")
    return [Place(Local())]


def of_fleet(fleet: Fleet, names: Sequence[str], inventory: str) -> list[Place]:
    """The application's hosts, and the builders.

    :param names: only these hosts; all where it is empty
    :param inventory: what a message calls the fleet's inventory
    :raises FleetError: where it has no such host
    """
    known = {host.name for host in fleet.app_servers}
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise FleetError(
                f"--host {name}: {inventory} has no host of this name in app_servers{hint}"
            )
    places = [
        Place(Remote(host), host.settings)
        for host in fleet.app_servers
        if not names or host.name in names
    ]
    return places + [Place(Remote(host), host.settings, True) for host in fleet.builders]
