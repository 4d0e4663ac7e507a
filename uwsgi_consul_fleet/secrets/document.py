"""The secrets of a fleet's own Consul: one small document, from which all others are derived.

Each of the three may be under way from one value to the next: `..._before` is then what is still
in use somewhere, and '' once nothing uses it any more.
"""

import hashlib
import json
import secrets
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.secrets import certificates

FORMAT = 1
BYTES = 32  # of the gossip key (AES-256), and of the seed
Kind = Literal["gossip", "tokens", "certificates", "ca"]


@dataclass(frozen=True)
class Secrets:
    """``gossip`` is Consul's gossip key in base64; ``seed``, in hex, is what tokens are derived
    from (see tokens.py); ``ca`` and ``ca_key`` are the certificate authority, in PEM. Nodes'
    certificates from before ``since``, a moment in ISO 8601, are replaced; '' for none.
    ``recovering``: tokens may still hold that were made from a seed that is lost."""

    gossip: str = field(repr=False)
    seed: str = field(repr=False)
    ca: str = field(repr=False)
    ca_key: str = field(repr=False)
    gossip_before: str = field(default="", repr=False)
    seed_before: str = field(default="", repr=False)
    ca_before: str = field(default="", repr=False)
    since: str = ""
    recovering: bool = False

    @classmethod
    def new(cls, name: str) -> Self:
        """
        :param name: the fleet's, which the authority's certificate carries
        """
        return cls(_gossip(), _seed(), *certificates.authority(name, datetime.now(UTC)))

    def rotated(self, kind: Kind) -> Self:
        """With another value of this kind, the present one before it; as it is where that kind is
        under way already, which must be completed first."""
        if kind == "gossip" and not self.gossip_before:
            return replace(self, gossip=_gossip(), gossip_before=self.gossip)
        if kind == "tokens" and not self.seed_before:
            return replace(self, seed=_seed(), seed_before=self.seed)
        if kind == "ca" and not self.ca_before:
            name = certificates.name_of(self.ca)
            ca, key = certificates.authority(name, datetime.now(UTC))
            return replace(self, ca=ca, ca_key=key, ca_before=self.ca)
        if kind == "certificates":
            return replace(self, since=datetime.now(UTC).isoformat(timespec="seconds"))
        return self

    def settled(self, kind: Kind) -> Self:
        """When nothing uses the value before any more."""
        if kind == "gossip":
            return replace(self, gossip_before="")
        if kind == "tokens":
            return replace(self, seed_before="", recovering=False)
        return replace(self, ca_before="")

    def to_text(self) -> str:
        """The document."""
        ca = {"value": self.ca, "key": self.ca_key, "before": self.ca_before or None}
        document = {
            "format": FORMAT,
            "gossip": {"value": self.gossip, "before": self.gossip_before or None},
            "tokens": {
                "value": self.seed,
                "before": self.seed_before or None,
                "recovering": self.recovering,
            },
            "ca": ca,
            "certificates": {"since": self.since or None},
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """
        :param where: what an error names: a file or a setting
        :raises FleetError: where it is no such document; nothing of it is shown
        """
        try:
            read = json.loads(text)
            if read["format"] != FORMAT:
                raise FleetError(
                    f"{where}: was written by another version of uwsgi-consul-fleet (format "
                    f"{read['format']!r}, this one knows {FORMAT}); nothing was changed"
                )
            return cls(
                gossip=_key(read["gossip"]["value"]),
                seed=_hex(read["tokens"]["value"]),
                ca=_certificate(read["ca"]["value"]),
                ca_key=_private(read["ca"]["key"]),
                gossip_before=_or_none(read["gossip"]["before"], _key),
                seed_before=_or_none(read["tokens"]["before"], _hex),
                ca_before=_or_none(read["ca"]["before"], _certificate),
                since=_or_none(read["certificates"]["since"], _moment),
                recovering=bool(read["tokens"].get("recovering")),  # not in every document
            )
        except (ValueError, TypeError, KeyError):
            # What went wrong would say what is in it.
            raise FleetError(
                f"{where}: holds no secrets of a fleet, or not all of them; nothing was changed"
            ) from None


def fingerprint(key: str) -> str:
    """By which a gossip key can be told from another one without being shown."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _gossip() -> str:
    return b64encode(secrets.token_bytes(BYTES)).decode()


def _seed() -> str:
    return secrets.token_hex(BYTES)


def _or_none(value: Any, read: Any) -> str:
    return "" if value is None else str(read(value))


def _key(text: str) -> str:
    # Consul takes 16 and 24 bytes too, and a recovered key may be such a one.
    if len(b64decode(text, validate=True)) not in (16, 24, 32):
        raise ValueError("no gossip key")
    return text


def _hex(text: str) -> str:
    if len(bytes.fromhex(text)) != BYTES:
        raise ValueError("no seed")
    return text


def _certificate(text: str) -> str:
    x509.load_pem_x509_certificate(text.encode())
    return text


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _private(text: str) -> str:
    load_pem_private_key(text.encode(), None)
    return text
