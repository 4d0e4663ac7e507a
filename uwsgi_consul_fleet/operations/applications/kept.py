"""What hosts have that this run is not about, or that this machine has not any more.

A release as a host has it: its content comes from there, and never from what `app_source` has
become since.
"""

import hashlib
import os
import shlex
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from uwsgi_consul_fleet import host_program
from uwsgi_consul_fleet.errors import UnreachableError
from uwsgi_consul_fleet.host.content import BLOCK, LINK, Entry, header
from uwsgi_consul_fleet.inventory.model import Host
from uwsgi_consul_fleet.operations.applications.archive import Sources, temporary
from uwsgi_consul_fleet.operations.applications.release import Release
from uwsgi_consul_fleet.operations.applications.requirements import Requirements
from uwsgi_consul_fleet.operations.plan import DeployError
from uwsgi_consul_fleet.operations.state import about_consul
from uwsgi_consul_fleet.releases.releases import ask
from uwsgi_consul_fleet.releases.rule import Content
from uwsgi_consul_fleet.ssh import connection as ssh


def contents(hosts: Iterable[Host]) -> dict[str, str] | None:
    """What Consul knows of each service, from the first of their agents that can tell."""
    answers = (ask(each, *about_consul(each)) for each in hosts)
    return next((each["contents"] for each in answers if each.get("contents") is not None), None)


def find(app: str, hosts: Sequence[Host], content: Content, template: Path) -> Release | None:
    """An application's release with this content, from a host that has it; None where none has."""
    for position, host in enumerate(hosts):
        if fields := ask(host, "describe", app, content.digest):
            sources = KeptSources(app, fields["sources"], content, hosts[position:])
            files = {path: text.encode() for path, text in fields["files"].items()}
            wanted = Requirements(fields["requirements_file"], files) if files else None
            return Release(content.release, sources, wanted, template)
    return None


class KeptSources(Sources):
    """Sources that are on hosts; they are sent on from a file without a name, as others are."""

    def __init__(self, app: str, digest: str, content: Content, hosts: Iterable[Host]) -> None:
        super().__init__(())
        self._app = app
        self.digest = digest
        self._content = content
        self._hosts = hosts

    def _pack(self) -> IO[bytes]:
        problems = []
        for host in self._hosts:
            found = temporary()
            if not (problem := self._fetch(host, found)):
                return found
            found.close()
            problems.append(f"{host.name}: {problem}")
        raise DeployError(
            f"{self._content.release} can't be taken from a host that has it:\n"
            + "\n".join(problems)
            + "\nrelease it anew, under another name: --data release=NAME"
        )

    def _fetch(self, host: Host, into: IO[bytes]) -> str:
        """Why not, or ''."""
        fields = ask(host, "describe", self._app, self._content.digest)
        if not fields:
            return "it has none with this content"
        generation = fields["generation"]
        words = (*host_program.carried(), "pack", self._app, generation)
        try:
            with ssh.connect(host) as connection:
                result = ssh.run_script(connection, f"exec {shlex.join(words)}", into=into)
        except (UnreachableError, OSError) as error:
            return str(error)
        if result.exit_code:
            return result.stderr.strip()
        into.flush()
        into.seek(0)
        place = f"/srv/{self._app}/releases/{generation}"
        return "" if digest(into) == self.digest else f"{place} is not any more what was released"


def digest(packed: IO[bytes]) -> str:
    """Of sources that are packed; '' where they are damaged."""
    found = hashlib.sha256()
    try:
        with tarfile.open(fileobj=packed, mode="r|gz") as archive:
            for member in archive:
                for block in _blocks(archive, member):
                    found.update(block)
    except (tarfile.TarError, OSError, EOFError):
        return ""
    return found.hexdigest()


def _blocks(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    """As they are in the digest of sources; see host/content.py."""
    link = member.linkname if member.issym() else ""
    size = len(os.fsencode(link)) if link else member.size
    yield header(Entry(member.name, Path(), LINK if link else member.mode, size, link))
    if link:
        yield os.fsencode(link)
    elif file := archive.extractfile(member):
        while block := file.read(BLOCK):
            yield block
            time.sleep(0)  # other hosts' turn
