"""A step of the roll-out inside a pyinfra run."""

import shlex
from collections.abc import Sequence
from typing import Any

from pyinfra import inventory
from pyinfra.api import StringCommand

from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations.remote import connector_arguments
from uwsgi_consul_fleet.releases.releases import PROGRAM
from uwsgi_consul_fleet.releases.rollout import Step
from uwsgi_consul_fleet.ssh.client import LOST


def step(me: Host, release: str, before: str, after: str) -> Step:
    """For the host in context. It may be put back from another host's operation, so it keeps
    what pyinfra says of how commands run on it (sudo and the like)."""
    # Not pyinfra's `host`, which is whichever one is in context when it is asked.
    mine = inventory.get_host(me.name)
    arguments = connector_arguments(mine)

    def execute(words: Sequence[str]) -> bool:
        return _execute(mine, words, arguments)

    instances = tuple(instance.id for instance in me.instances)
    return Step(me, before, after, release, instances, execute, mine.log)


def _execute(target: Any, words: Sequence[str], arguments: dict[str, Any]) -> bool:
    command = StringCommand(shlex.join([PROGRAM, *words]))
    try:
        fine, output = target.run_shell_command(command, print_output=True, **arguments)
    except LOST as error:
        _lost(target, str(error))
        return False
    if not fine and not output.stderr_lines:  # the program says why it fails
        _lost(target, "no answer")
    return bool(fine)


def _lost(target: Any, why: str) -> None:
    target.log_styled(
        f"connection lost ({why}): the host goes on by itself, and may end on the new release; "
        "invoke releases shows it",
        fg="red",
    )
