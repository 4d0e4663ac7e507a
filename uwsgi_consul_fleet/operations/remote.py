"""Commands on another host than the one whose operation runs."""

from typing import Any

from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.context import state as run


def connector_arguments(target: Any) -> dict[str, Any]:
    """How commands run on a host (sudo and the like), as for an operation of its own."""
    arguments, _ = pop_global_arguments(run, target, {})
    known = dict(arguments)
    return {key: known[key] for key in CONNECTOR_ARGUMENT_KEYS if key in known}
