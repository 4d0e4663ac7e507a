"""Does each host's uWSGI have the plugin that was compiled for it?"""

from pathlib import Path

from fabric import Connection

from uwsgi_consul_fleet.build.identity import IDENTIFY, binary, parse_identity
from uwsgi_consul_fleet.inventory.model import AppHost
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify.comparison import Difference

SCRIPT = IDENTIFY + (Path(__file__).parent / "plugins.sh").read_text()


def check(connection: Connection, host: AppHost) -> list[Difference]:
    """What is wrong where a host's uWSGI was changed since the deploy.

    :raises UnreachableError: where the connection is lost
    """
    arguments = [binary(host.settings), host.app]
    result = ssh.run_script(connection, SCRIPT, "\n".join(arguments).encode())
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
