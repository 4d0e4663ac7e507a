"""A host of pyinfra's, as `debug-inventory --json` prints it (see pyinfra_cli.py).

In a module of its own, because nothing else of ours is loaded where the commands have pyinfra read
their inventory.
"""

from typing import Any


def told(host: Any) -> dict[str, Any]:
    """It, and which of its data are not all hosts', and which groups there are, those without hosts
    too."""
    return {
        "name": host.name,
        "groups": list(host.groups),
        "data": host.data,
        "own": [*host.group_data, *host.host_data],
        "all_groups": list(host.inventory.group_data),
    }
