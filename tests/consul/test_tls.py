"""Consul's servers speak with each other by certificates of the fleet's own authority."""

from __future__ import annotations

import re
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from consul_processes import Agent, until

from uwsgi_consul_fleet.secrets import certificates
from uwsgi_consul_fleet.secrets.document import Secrets

# How a fleet's agents are told in the last round: see operations/consul. Servers that have not
# agreed on a leader within 3 s say so.
VERIFIED = """
    verify_incoming_rpc = true verify_outgoing = true verify_server_hostname = true
    retry_interval = "1s" performance { raft_multiplier = 1 rpc_hold_timeout = "3s" }
"""


@dataclass
class Member:
    """A server's agent with the files that it would have on a host."""

    folder: Path
    agent: Agent

    def port(self, name: str) -> int:
        """As Consul calls it among its `ports`."""
        found = re.search(rf"\b{name}=(\d+)", self.agent.command[-1])
        assert found
        return int(found[1])

    def write(self, secrets: Secrets, server: bool = True) -> None:
        now = datetime.now(UTC)
        node = certificates.issue(secrets, self.folder.name, "127.0.0.1", "dc1", server, now)
        (self.folder / "node.pem").write_text(node)
        (self.folder / "ca.pem").write_text(certificates.trusted(secrets))


Start = Callable[..., Member]


@pytest.fixture
def member(tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    first: list[Member] = []

    def start(name: str, secrets: Secrets, server: bool = True) -> Member:
        folder = tmp_path / name
        folder.mkdir()
        config = (
            f'ca_file = "{folder}/ca.pem" cert_file = "{folder}/node.pem" '
            f'key_file = "{folder}/node.pem" encrypt = "{secrets.gossip}" {VERIFIED} '
        )
        config += f'retry_join = ["127.0.0.1:{first[0].port("serf_lan")}"]' if first else ""
        options = ("-server", "-bootstrap-expect", "2", "-data-dir", f"{folder}/data")
        made = Member(folder, Agent(folder, *options, "-node", name, config=config))
        made.write(secrets, server)
        request.addfinalizer(made.agent.kill)
        made.agent.start(wait=False)
        first.append(made)
        return made

    return start


def servers(one: Member) -> set[str]:
    """Those that a server knows to take part, once there is a leader."""
    try:
        listed = one.agent.call("GET", "/v1/operator/raft/configuration").json()["Servers"]
    except requests.RequestException:
        return set()
    return {each["Node"] for each in listed}


def write(one: Member, value: str) -> bool:
    """Whether it could be: what a follower is told goes to the leader."""
    try:
        return bool(one.agent.call("PUT", "/v1/kv/a", data=value).json())
    except requests.RequestException:
        return False


def test_a_pair_of_servers_by_certificates_of_ours(member: Start) -> None:
    secrets = Secrets.new("shop")
    drakar, cheetah = (member(name, secrets) for name in ("drakar", "cheetah"))
    both = {"drakar", "cheetah"}
    for each in (drakar, cheetah):
        until(lambda each=each: servers(each) == both, f"both; see {each.agent.log}", 30)
        until(lambda each=each: write(each, "x"), "both can write", 15)
    # A certificate is wanted, and is that of a server.
    until(lambda: presented(drakar, secrets, None)[0] == "refused", "none is refused")
    its = cheetah.folder / "node.pem"
    until(lambda: presented(drakar, secrets, its)[0] == "taken", "a server's is taken")
    other = cheetah.folder / "other.pem"
    of_others = Secrets.new("shop")
    now = datetime.now(UTC)
    other.write_text(certificates.issue(of_others, "cheetah", "127.0.0.1", "dc1", True, now))
    until(lambda: presented(drakar, secrets, other)[0] == "refused", "another fleet's is refused")


def test_an_authority_is_replaced_without_a_restart(member: Start) -> None:
    """First everybody trusts both, then each gets a certificate of the new one, by SIGHUP."""
    before = Secrets.new("shop")
    members = [member(name, before) for name in ("drakar", "cheetah")]
    for each in members:
        until(lambda each=each: write(each, "x"), f"it writes; see {each.agent.log}", 45)
    rotated = before.rotated("ca")
    for each in members:
        (each.folder / "ca.pem").write_text(certificates.trusted(rotated))
        each.agent.signal(signal.SIGHUP)
    for each in members:
        until(lambda each=each: write(each, "y"), "it writes with both trusted", 15)
    for each in members:
        each.write(rotated)
        each.agent.signal(signal.SIGHUP)
        new = certificates.public_part((each.folder / "node.pem").read_text())
        until(
            lambda each=each, new=new: presented(each, rotated, each.folder / "node.pem")[1] == new,
            "it presents its new certificate",
        )
    for each in members:
        each.write(rotated.settled("ca"))
        each.agent.signal(signal.SIGHUP)
    for each in members:
        until(lambda each=each: write(each, "z"), "it writes when one is trusted again", 15)
    old = members[0].folder / "old.pem"
    old.write_text(certificates.issue(before, "x", "127.0.0.1", "dc1", True, datetime.now(UTC)))
    until(lambda: presented(members[0], rotated, old)[0] == "refused", "the old one does not count")


def test_a_servers_certificate_that_names_no_server_is_refused(member: Start) -> None:
    """Else any host of the fleet could answer in a server's place."""
    secrets = Secrets.new("shop")
    drakar = member("drakar", secrets)
    cheetah = member("cheetah", secrets, server=False)
    refused = "server.dc1.consul"
    logs = (drakar.agent.log, cheetah.agent.log)
    until(lambda: refused in "".join(each.read_text() for each in logs), f"see {logs}", 30)
    assert not write(drakar, "x")
    cheetah.write(secrets)
    cheetah.agent.signal(signal.SIGHUP)
    until(lambda: write(drakar, "x"), f"with the right one it can; see {drakar.agent.log}", 60)


def presented(one: Member, secrets: Secrets, mine: Path | None) -> tuple[str, str]:
    """Whether a server takes the caller's certificate, and the one that it shows itself.

    :param mine: with its key; None for no certificate
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificates.trusted(secrets))
    if mine:
        context.load_cert_chain(mine)
    with socket.create_connection(("127.0.0.1", one.port("server")), 5) as plain:
        plain.sendall(b"\x03")  # of Consul's first byte: what follows is TLS
        try:
            with context.wrap_socket(plain, server_hostname="server.dc1.consul") as speaking:
                theirs = ssl.DER_cert_to_PEM_cert(speaking.getpeercert(binary_form=True) or b"")
                # With TLS 1.3 who connects learns only now whether it was taken.
                speaking.settimeout(1)
                try:
                    said = speaking.recv(1)
                except TimeoutError:
                    return "taken", theirs
                return repr(said), theirs
        except (ssl.SSLError, ConnectionError):
            return "refused", ""
        except TimeoutError:
            return "silent", ""
