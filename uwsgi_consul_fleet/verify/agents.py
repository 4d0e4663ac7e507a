"""How far access control and encryption are on a host, and until when its certificate is good."""

from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fabric import Connection

from uwsgi_consul_fleet.host.expiry import SOON
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.secrets import certificates
from uwsgi_consul_fleet.ssh import connection as ssh
from uwsgi_consul_fleet.verify.comparison import Difference

SCRIPT = (Path(__file__).parent / "agents.sh").read_text()
END = "-----END CERTIFICATE-----\n"


@dataclass(frozen=True)
class Agent:
    """What a host says of its Consul agent: its ``round`` as it runs, None where it does not; its
    ``certificate`` and the ``authorities`` that it believes, in PEM, nothing where it has none."""

    host: Host
    round: int | None = None
    certificate: str = ""
    authorities: tuple[str, ...] = ()


def ask(connection: Connection, host: Host) -> Agent:
    """:raises UnreachableError: where the connection is lost"""
    return parse(host, ssh.run_script(connection, SCRIPT).stdout.decode())


def parse(host: Host, said: str) -> Agent:
    """What the script printed."""
    found = {kind: rest for kind, _, rest in (line.partition(" ") for line in said.splitlines())}
    number = found.get("round", "")
    pem, listed = (
        b64decode(found.get(kind, "")).decode() for kind in ("certificate", "authorities")
    )
    authorities = tuple(each + END for each in listed.split(END) if each.strip())
    return Agent(host, int(number) if number.isdecimal() else None, pem, authorities)


def differences(agent: Agent, now: datetime | None = None) -> Iterator[Difference]:
    """What of its certificates ends soon, or is over."""
    now = now or datetime.now(UTC)
    subject = f"node {agent.host.name}"
    if agent.certificate and (when := _ends(agent.certificate, now)):
        told = f"its certificate {when}; the next deploy gives it another one"
        yield Difference("expiring", subject, told)
    # While one is replaced there are two, and the one before may end.
    ends = [_ends(each, now) for each in agent.authorities]
    if ends and all(ends):
        told = f"the authority of its certificate {ends[0]}: invoke secrets.rotate ca"
        yield Difference("expiring", subject, told)


def _ends(pem: str, now: datetime) -> str:
    """When, where that is soon; ''."""
    try:
        end = certificates.expires(pem)
    except ValueError:
        return "can't be read"
    left = end - now
    if left > SOON:
        return ""
    if left <= timedelta():
        return f"ended on {end:%Y-%m-%d}"
    return f"ends on {end:%Y-%m-%d}, in {_days(left)}"


def _days(left: timedelta) -> str:
    return (
        f"{left.days} days"
        if left >= timedelta(days=2)
        else f"{left.total_seconds() / 3600:.0f} hours"
    )
