"""How hosts look that --limit leaves out, where a run has to know."""

from collections.abc import Mapping, Sequence

from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations import state
from uwsgi_consul_fleet.operations.run import Run
from uwsgi_consul_fleet.operations.state import HostState


def ask(run: Run) -> Mapping[str, HostState | None]:
    """Of all members that the run is not about, by name; None where one can't be asked."""
    return look([each for each in run.fleet.active if each.name not in run.pyinfra.about])


def servers(run: Run) -> Mapping[str, HostState | None]:
    """Of the Consul servers alone, where the run is about none of them."""
    about = run.pyinfra.about
    found = [each for each in run.fleet.consul_servers if each.name not in about]
    return look(found) if len(found) == len(run.fleet.consul_servers) else {}


def look(others: Sequence[Host]) -> Mapping[str, HostState | None]:
    """Of these; None where one can't be asked."""
    if not others:
        return {}
    # Only here: it takes as long to load as a host takes to tell of itself.
    from uwsgi_consul_fleet.ssh import connection as ssh

    with ssh.side_by_side(len(others)) as pool:
        return dict(zip((each.name for each in others), pool.map(state.ask, others), strict=True))


def tell(other: Host, words: str, stdin: bytes = b"") -> str:
    """Run a command on one; why it failed, or ''."""
    from uwsgi_consul_fleet.ssh import connection as ssh

    try:
        with ssh.connect(other) as connection:
            done = ssh.run_script(connection, words, stdin)
    except UnreachableError as error:
        return str(error)
    return (
        done.stderr.strip() or f"{other.name}: {words.split()[0]} failed" if done.exit_code else ""
    )
