"""What the operator's machine shows to the fleet's Consul, and how it knows that it is the right
one. Nothing makes tokens or certificates yet: whatever asks Consul takes them from here."""

from typing import NamedTuple


class Access(NamedTuple):
    """``token`` is the deploy's; the others are paths of files, '' for no TLS."""

    token: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What tells the host program to read the token from its standard input."""
        return ("--token-stdin",) if self.token else ()

    @property
    def stdin(self) -> str:
        """What it reads there first."""
        return f"{self.token}\n" if self.token else ""


def access() -> Access:
    """For this fleet."""
    return Access()
