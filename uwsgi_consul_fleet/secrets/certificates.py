"""The fleet's own certificate authority, and the certificates by which agents know each other."""

from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from uwsgi_consul_fleet.secrets.document import Secrets

AUTHORITY = timedelta(days=3652)  # ten years
NODE = timedelta(days=365)
# A host's clock may be behind.
BEFORE = timedelta(hours=1)
CALLED = " Consul CA"


def authority(name: str, now: datetime) -> tuple[str, str]:
    """A new certificate authority, for ten years: its certificate and its key, in PEM.

    :param name: the fleet's
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name + CALLED)
    public = key.public_key()
    usage = _usage(key_cert_sign=True, crl_sign=True, digital_signature=True)
    made = (
        _certificate(subject, subject, public, now, AUTHORITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, SHA256())
    )
    return _pem(made), _key_pem(key)


def name_of(pem: str) -> str:
    """What :func:`authority` was told."""
    subject = x509.load_pem_x509_certificate(pem.encode()).subject
    (name,) = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value).removesuffix(CALLED)


def issue(
    secrets: "Secrets", node: str, address: str, datacenter: str, server: bool, now: datetime
) -> str:
    """A node's certificate for a year, and its key behind it, in PEM.

    :param node: what Consul calls it
    :param address: where other hosts reach it
    :param server: whether it is a Consul server, by whose name clients know servers
    """
    issuer = x509.load_pem_x509_certificate(secrets.ca.encode())
    signing = load_pem_private_key(secrets.ca_key.encode(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    names = x509.SubjectAlternativeName(_names(node, address, datacenter, server))
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    made = (
        _certificate(_name(node), issuer.subject, public, now, NODE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(by, critical=False)
        .add_extension(names, critical=False)
        .sign(signing, SHA256())
    )
    return _pem(made) + _key_pem(key)


def why_renew(
    pem: str,
    secrets: "Secrets",
    node: str,
    address: str,
    datacenter: str,
    server: bool,
    now: datetime,
) -> str:
    """Why a node's certificate (its key need not be there) is to be replaced; '' where it is good.

    :param pem: '' where there is none; the others as for :func:`issue`
    """
    if not pem.strip():
        return "it has no certificate"
    try:
        made = x509.load_pem_x509_certificate(pem.encode())
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return "its certificate can't be read"
    if not is_by(pem, secrets.ca):
        return "its certificate is of another authority"
    if {*names} != {*_names(node, address, datacenter, server)}:
        return "its certificate has other names than it should"
    first, last = made.not_valid_before_utc, made.not_valid_after_utc
    if secrets.since and first + BEFORE < datetime.fromisoformat(secrets.since):
        return "its certificate is to be replaced"
    if now >= last:
        return f"its certificate ended on {last:%Y-%m-%d}"
    if now >= first + (last - first) / 3:
        return f"its certificate ends on {last:%Y-%m-%d}"
    return "its certificate begins only later" if now < first else ""


def is_by(pem: str, ca: str) -> bool:
    """Whether this authority made a certificate; :raises ValueError: where one of them is none"""
    made, issuer = (x509.load_pem_x509_certificate(each.encode()) for each in (pem, ca))
    try:
        made.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return False
    return True


def expires(pem: str) -> datetime:
    """When a certificate ends; :raises ValueError: where there is none"""
    return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc


def trusted(secrets: "Secrets") -> str:
    """The authorities whose certificates count, in PEM: while one is replaced, both."""
    return secrets.ca + secrets.ca_before


def public_part(pem: str) -> str:
    """A certificate, without the key that may stand behind it."""
    return _pem(x509.load_pem_x509_certificate(pem.encode()))


def _names(node: str, address: str, datacenter: str, server: bool) -> list[x509.GeneralName]:
    kind = "server" if server else "client"
    dns = dict.fromkeys((node, f"{kind}.{datacenter}.consul", "localhost"))
    addresses = dict.fromkeys(map(ip_address, ("127.0.0.1", "::1", address)))
    return [*map(x509.DNSName, dns), *map(x509.IPAddress, addresses)]


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # no more is allowed


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + life)
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{**dict.fromkeys(every, False), **allowed})


def _pem(made: x509.Certificate) -> str:
    return made.public_bytes(Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
