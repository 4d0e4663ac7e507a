"""Where Debian packages come from: the mirror that this machine's apt uses already."""

from dataclasses import dataclass

from uwsgi_consul_fleet.lab.host import LabError, run

RELEASES = {11: "bullseye", 12: "bookworm", 13: "trixie"}


@dataclass(frozen=True)
class Mirror:
    """The addresses of Debian's archive and of its security archive ('' where apt has none)."""

    archive: str
    security: str

    def sources(self, release: int) -> str:
        """A sources.list for a machine of this release."""
        name = RELEASES[release]
        lines = [f"deb {self.archive} {name} main", f"deb {self.archive} {name}-updates main"]
        if self.security:
            lines.append(f"deb {self.security} {name}-security main")
        return "\n".join(lines) + "\n"


def mirror() -> Mirror:
    """:raises LabError: where apt has no Debian archive among its sources"""
    listing = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"
    )
    return parse_mirror(listing)


def parse_mirror(listing: str) -> Mirror:
    """Pick the archives out of apt's list of `URI LABEL` lines."""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        uri, _, label = line.partition(" ")
        found.setdefault(label, uri)
    if "Debian" not in found:
        raise LabError(
            "apt on this machine has no Debian archive: run apt-get update and try again"
        )
    return Mirror(found["Debian"], found.get("Debian-Security", ""))
