"""A step of the roll-out inside a pyinfra run."""

import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from pyinfra.api import StringCommand

from uwsgi_consul_fleet.consul.access import access
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.host_program import PROGRAM
from uwsgi_consul_fleet.operations.hooks import of_switch
from uwsgi_consul_fleet.operations.run import AppHere
from uwsgi_consul_fleet.releases.rollout import Step
from uwsgi_consul_fleet.ssh.client import LOST


def of_one(operation: Callable[..., Any]) -> Callable[..., None]:
    """An operation on one application: where it fails, the others of its host go on, and the host
    fails at the end of the run (see application.py's `conclude`)."""

    @wraps(operation)
    def call(name: str, here: AppHere, **arguments: Any) -> None:
        has_others = len(here.run.fleet.host(here.me.name).applications) > 1
        made = operation(name=name, here=here, _ignore_errors=has_others, **arguments)
        here.run.follow(here.me, made)

    return call


def step(here: AppHere, release: str, before: str, after: str) -> Step:
    """For a host, which may be put back from another host's operation."""
    # Not pyinfra's `host`, which is whichever one is in context when it is asked.
    mine = here.run.pyinfra.host(here.me.name)
    run = here.run.pyinfra.executor(here.me.name)
    shown = access(here.me)

    def lost(words: Sequence[str], why: str) -> bool:
        if words[0] == "passing":
            raise UnreachableError(f"connection lost ({why}): not switched")
        mine.log_styled(
            f"connection lost ({why}): the host goes on by itself, and may end on the new "
            "release; invoke releases shows it",
            fg="red",
        )
        return False

    def execute(words: Sequence[str]) -> bool:
        program = shlex.join([PROGRAM, *shown.words, *words])
        try:
            fine, output = run(StringCommand(program, _stdin=shown.stdin), True)
        except LOST as error:
            return lost(words, str(error))
        # The program says why it fails.
        return fine or (lost(words, "no answer") if not output.stderr_lines else False)

    instances = tuple(instance.id for instance in here.me.instances)
    hook = of_switch(here, mine.log)
    return Step(here.me, before, after, release, instances, execute, mine.log, hook=hook)
