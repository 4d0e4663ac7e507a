"""Which instances an operator means."""

from collections.abc import Collection, Sequence

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import Fleet, Host, Instance

Chosen = Sequence[tuple[Host, tuple[Instance, ...]]]


def choose(fleet: Fleet, hosts: Sequence[str] = (), instance: str = "") -> Chosen:
    """Hosts with those of their instances that are meant, in the order of the inventory.

    :param hosts: their names; none for all
    :param instance: a name or an id; '' for all
    :raises FleetError: where there is nothing of that name, with what there is
    """
    every = [each for host in fleet.app_servers for each in host.instances]
    expect("host", hosts, [host.name for host in fleet.app_servers])
    names = {name for each in every for name in (each.name, each.id)}
    expect("instance", [instance] if instance else [], names)
    found = [
        (host, tuple(one for one in host.instances if instance in ("", one.name, one.id)))
        for host in fleet.app_servers
        if not hosts or host.name in hosts
    ]
    if not (found := [each for each in found if each[1]]):
        raise FleetError("no instance is all of that: leave out one of the options")
    return found


def expect(what: str, wanted: Collection[str], there: Collection[str]) -> None:
    """
    :param what: the option that names them
    :raises FleetError: for one that is not there, with those that are
    """
    for name in wanted:
        if name not in there:
            listed = ", ".join(sorted(there)) or "none"
            raise FleetError(f"--{what} {name}: is not in the inventory; there is: {listed}")
