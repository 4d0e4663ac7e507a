"""Certificates of the fleet's own authority, and when a node gets another one."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from uwsgi_consul_fleet.secrets import certificates
from uwsgi_consul_fleet.secrets.document import Secrets

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NODE = ("web1.example.com", "10.0.3.11", "dc1", False)
SERVER = ("web1.example.com", "10.0.3.11", "dc1", True)


@pytest.fixture(scope="module")
def some() -> Secrets:
    ca, key = certificates.authority("shop", NOW)
    return replace(Secrets.new("shop"), ca=ca, ca_key=key)


def loaded(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def names(pem: str) -> tuple[list[str], list[str]]:
    found = loaded(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = found.get_values_for_type(x509.IPAddress)
    return found.get_values_for_type(x509.DNSName), [str(each) for each in addresses]


def verified(pem: str, bundle: str, name: str, at: datetime = NOW) -> bool:
    """As who connects to it decides, and as a server decides about who connects."""
    policy = PolicyBuilder().time(at).store(Store(x509.load_pem_x509_certificates(bundle.encode())))
    try:
        policy.build_server_verifier(x509.DNSName(name)).verify(loaded(pem), [])
        policy.build_client_verifier().verify(loaded(pem), [])
    except VerificationError:
        return False
    return True


def test_an_authority_holds_for_ten_years_and_makes_no_further_ones(some: Secrets) -> None:
    made = loaded(some.ca)
    assert certificates.expires(some.ca).date().isoformat() == "2036-11-26"
    assert made.subject.rfc4514_string() == "CN=shop Consul CA"
    assert certificates.name_of(some.ca) == "shop"
    limits = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical and limits.value.ca and limits.value.path_length == 0


def test_a_certificate_is_that_of_its_node_for_a_year(some: Secrets) -> None:
    pem = certificates.issue(some, *NODE, NOW)
    assert names(pem) == (
        ["web1.example.com", "client.dc1.consul", "localhost"],
        ["127.0.0.1", "::1", "10.0.3.11"],
    )
    assert certificates.expires(pem) == NOW + 365 * DAY
    key = load_pem_private_key(pem.encode(), None)
    assert key.public_key() == loaded(pem).public_key()
    for name in ("web1.example.com", "client.dc1.consul", "localhost"):
        assert verified(pem, some.ca, name)
        assert verified(pem, some.ca, name, NOW + 364 * DAY)
    assert not verified(pem, some.ca, "server.dc1.consul")
    assert not verified(pem, some.ca, "localhost", NOW + 366 * DAY)
    assert verified(certificates.issue(some, *SERVER, NOW), some.ca, "server.dc1.consul")


def test_openssl_takes_it(some: Secrets, tmp_path: Path) -> None:
    ca, node = tmp_path / "ca.pem", tmp_path / "node.pem"
    ca.write_text(some.ca)
    node.write_text(certificates.issue(some, *SERVER, NOW))
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
        moment = ["-attime", str(int(NOW.timestamp())), "-CAfile", str(ca), str(node)]
        result = subprocess.run([*command, *moment], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_a_certificate_of_another_authority_does_not_count(some: Secrets) -> None:
    """Although that has the same name."""
    other = Secrets.new("shop")
    pem = certificates.issue(other, *NODE, datetime.now(UTC))
    assert not verified(pem, some.ca, "localhost", datetime.now(UTC))
    assert certificates.is_by(pem, other.ca) and not certificates.is_by(pem, some.ca)
    assert not certificates.is_by(other.ca, some.ca)
    why = certificates.why_renew(pem, some, *NODE, datetime.now(UTC))
    assert why == "its certificate is of another authority"


def test_while_an_authority_is_replaced_both_count() -> None:
    some = Secrets.new("shop")
    rotated = some.rotated("ca")
    now = datetime.now(UTC)
    old, new = (certificates.issue(each, *NODE, now) for each in (some, rotated))
    bundle = certificates.trusted(rotated)
    assert certificates.trusted(some) == some.ca
    assert bundle.count("BEGIN CERTIFICATE") == 2
    for pem in (old, new):
        assert verified(pem, bundle, "localhost", now)
    settled = certificates.trusted(rotated.settled("ca"))
    assert verified(new, settled, "localhost", now)
    assert not verified(old, settled, "localhost", now)
    assert certificates.name_of(rotated.ca) == "shop"


def test_a_long_name_is_shortened_and_still_there(some: Secrets) -> None:
    name = ("x" * 60 + ".") * 3 + "example.com"
    pem = certificates.issue(some, name, *NODE[1:], NOW)
    assert name in names(pem)[0]
    assert not certificates.why_renew(pem, some, name, *NODE[1:], NOW)
    assert loaded(certificates.authority("x" * 200, NOW)[0])


def test_the_key_is_not_in_what_is_public(some: Secrets) -> None:
    pem = certificates.issue(some, *NODE, NOW)
    assert "PRIVATE KEY" in pem
    assert "PRIVATE" not in certificates.public_part(pem)
    assert not certificates.why_renew(certificates.public_part(pem), some, *NODE, NOW)


@pytest.mark.parametrize(
    ("node", "days", "why"),
    [
        (NODE, 0, ""),
        (NODE, 121, ""),
        (NODE, 122, "its certificate ends on 2027-11-27"),
        (NODE, 366, "its certificate ended on 2027-11-27"),
        (NODE, -1, "its certificate begins only later"),
        (SERVER, 0, "its certificate has other names than it should"),
        (("web2", *NODE[1:]), 0, "its certificate has other names than it should"),
        ((NODE[0], "10.0.3.12", *NODE[2:]), 0, "its certificate has other names than it should"),
        ((*NODE[:2], "dc2", False), 0, "its certificate has other names than it should"),
    ],
)
def test_when_it_is_renewed(
    some: Secrets, node: tuple[str, str, str, bool], days: int, why: str
) -> None:
    pem = certificates.issue(some, *NODE, NOW)
    assert certificates.why_renew(pem, some, *node, NOW + days * DAY) == why


@pytest.mark.parametrize(
    ("pem", "why"), [("", "it has no certificate"), ("hush", "its certificate can't be read")]
)
def test_what_is_none_is_renewed(some: Secrets, pem: str, why: str) -> None:
    assert certificates.why_renew(pem, some, *NODE, NOW) == why


def test_the_same_address_twice_is_one_name(some: Secrets) -> None:
    pem = certificates.issue(some, "localhost", "127.0.0.1", "dc1", False, NOW)
    assert names(pem)[0].count("localhost") == 1
    assert names(pem)[1] == ["127.0.0.1", "::1"]
    six = certificates.issue(some, "a", "fd00::1", "dc1", False, NOW)
    assert str(ip_address("fd00::1")) in names(six)[1]
