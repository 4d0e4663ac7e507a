"""invoke exec"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from invoke import Exit

from uwsgi_consul_fleet.commands.command import Fleet, command
from uwsgi_consul_fleet.errors import FleetError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from uwsgi_consul_fleet.inventory.model import Host
    from uwsgi_consul_fleet.ownership.identity import Identity


@command(
    name="exec",
    failure=255,
    iterable=["host"],
    app="of which application, where there are several",
    help={
        "host": "only on this host (may be given several times)",
        "once": "on one host: the first that can be reached and serves it",
    },
)
def execute(fleet: Fleet, host: list[str], once: bool = False) -> None:
    """Run a command beside the instances, as they run: invoke exec --once -- COMMAND."""
    from uwsgi_consul_fleet.instances import choice, execution
    from uwsgi_consul_fleet.ownership import hosts as ownership

    words = typed(sys.argv, "invoke exec [--once] [--host HOST]")
    chosen = choice.choose(fleet, host)
    apps = sorted({each.service for _, instances in chosen for each in instances})
    if len(apps) > 1:
        raise FleetError(f"--app: name one of {', '.join(apps)}")
    hosts = [each for each, _ in chosen]
    # Refuses those of another fleet.
    identity = ownership.identity(fleet, hosts)
    if once:
        hosts = [execution.first(hosts, apps[0])]
    entry = began("exec", hosts, identity, {apps[0]: ""})
    its = execution.Command(apps[0], words, entry["who"])
    raise Exit(code=noted(fleet, entry, lambda: execution.run(hosts, its)))


def typed(arguments: list[str], before: str) -> list[str]:
    """The words behind --, which Invoke would join with blanks.

    :param before: what is typed before them
    """
    words = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    if not words:
        raise FleetError(f"no command: {before} -- COMMAND [WORD...]")
    return words


def began(
    what: str,
    hosts: "Sequence[Host]",
    identity: "Identity | None",
    releases: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """An entry of the audit, for :func:`noted`."""
    from uwsgi_consul_fleet.host.lock_session import now
    from uwsgi_consul_fleet.lock import lock

    return {
        **lock.operator(),
        "what": what,
        "since": now(),
        "releases": {**(releases or {})},
        "changed": [each.name for each in hosts],
        **({"fleet": identity.as_dict()} if identity else {}),
    }


def noted(fleet: Fleet, entry: dict[str, Any], run: Callable[[], int]) -> int:
    """What it returns, with an entry in the audit from its begin on."""
    is_noted = _note(fleet, {**entry, "outcome": "began"})
    begin, code = time.monotonic(), 255
    try:
        code = run()
    finally:
        ended = {"outcome": "failed" if code else "ok", "detail": f"exit status {code}"}
        seconds = round(time.monotonic() - begin, 1)
        if is_noted:
            _note(fleet, {**entry, **ended, "seconds": seconds})
    return code


def _note(fleet: Fleet, entry: dict[str, Any]) -> bool:
    """Whether Consul could be told: where it does not answer, a command may be what mends it."""
    from uwsgi_consul_fleet.consul import audit

    try:
        audit.note(fleet, entry)
    except (UnreachableError, RefusedError) as error:
        print(f"not noted in the audit: {error}", file=sys.stderr, flush=True)
        return False
    return True
