"""Does each host's uWSGI have the plugin that was compiled for it?"""

from collections.abc import Iterable
from pathlib import Path

from uwsgi_consul_fleet.build.identity import IDENTIFY, binary, parse_identity
from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.model import AppHost, Fleet
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify.comparison import Difference

SCRIPT = IDENTIFY + (Path(__file__).parent / "plugins.sh").read_text()


def check(fleet: Fleet) -> Iterable[Difference]:
    """A difference for each host whose uWSGI was changed since the deploy, side by side."""
    hosts = fleet.applications
    with ssh.side_by_side(len(hosts)) as pool:
        # Applications of one host have the same to say.
        return dict.fromkeys(each for found in pool.map(_check, hosts) for each in found)


def _check(host: AppHost) -> list[Difference]:
    arguments = [binary(host.settings), host.app]
    try:
        with ssh.connect(host) as connection:
            result = ssh.run_script(connection, SCRIPT, "\n".join(arguments).encode())
    except FleetError as error:
        return [Difference("unreachable", f"node {host.name}", str(error))]
    return _differences(host, result.stdout.decode())


def _differences(host: AppHost, output: str) -> list[Difference]:
    """Hold what the host's uWSGI is against what its plugin was compiled for."""
    uwsgi = parse_identity(output)
    lines = dict(line.split(" ", 1) for line in output.splitlines() if line.startswith("plugin "))
    subject = f"node {host.name}"
    if uwsgi is None:
        return [Difference("wrong plugin", subject, "has no uWSGI; deploy to it")]
    if "plugin" not in lines:
        return []  # nothing is deployed: its instances are missing, and that is said
    made_for = lines["plugin"]
    if made_for == uwsgi.fingerprint:
        return []
    detail = (
        f"its uWSGI is {uwsgi.version} now (fingerprint {uwsgi.fingerprint}), its plugin is for "
        f"{made_for}, and its services will not start again: invoke build-plugin, then deploy"
    )
    return [Difference("wrong plugin", subject, detail)]
