"""invoke build-plugin"""

from contextlib import nullcontext

from invoke import Exit

from uwsgi_consul_fleet.commands.command import INVENTORY, command, read


@command(
    iterable=["host", "package"],
    help={
        "list": "show which uWSGI each host has and whether its plugin is built; build nothing",
        "host": "only for this host (may be given several times)",
        "local": "for the uWSGI of this machine instead of the fleet's",
        "source": "another uWSGI plugin's sources: a folder, or a URL that git can clone",
        "package": "a Debian package that these sources need (may be given several times)",
        "keep-toolchain": "leave the compiler installed where it is needed",
        "force": "compile also where nothing has changed",
        "inventory": f"another inventory file than {INVENTORY}",
    },
)
def build_plugin(
    host: list[str],
    package: list[str],
    list: bool = False,  # noqa: A002 - an option's name
    local: bool = False,
    source: str = "",
    keep_toolchain: bool = False,
    force: bool = False,
    inventory: str = INVENTORY,
) -> None:
    """Compile the consul plugin for each different uWSGI on the fleet."""
    from uwsgi_consul_fleet.build import places
    from uwsgi_consul_fleet.build import source as sources
    from uwsgi_consul_fleet.build.builder import Build
    from uwsgi_consul_fleet.commands import progress
    from uwsgi_consul_fleet.ownership import hosts

    if local:  # which needs no inventory
        where = places.local(host)
    else:
        fleet = read(inventory)
        where = places.of_fleet(fleet, host, inventory)
        if not list:  # what is missing is installed on the hosts
            hosts.identity(fleet)
    with sources.find(source) if source else nullcontext(sources.own()) as found:
        how = Build(found, progress.reporter(), force, keep_toolchain, tuple(package))
        fine = progress.show(where, found) if list else progress.build(where, how)
    if not fine:
        raise Exit(code=1)
