"""Files on a host, compared with what is there and sent by pyinfra's own operation."""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from pyinfra.api import StringCommand
from pyinfra.api.command import QuoteString
from pyinfra.operations import files

from uwsgi_consul_fleet.consul.access import Unseen
from uwsgi_consul_fleet.operations.pyinfra_run import embed
from uwsgi_consul_fleet.operations.run import Here
from uwsgi_consul_fleet.operations.state import FileState

_jinja = Environment(  # noqa: S701 - ini and unit files, where HTML escapes would be wrong
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class RemoteFile:
    """A file as it should be on a host."""

    path: str
    content: str | bytes
    mode: str = "644"
    user: str = "root"
    group: str = "root"

    @cached_property
    def state(self) -> FileState:
        data = self.content.encode() if isinstance(self.content, str) else self.content
        return FileState(self.mode, self.user, self.group, hashlib.sha256(data).hexdigest())


def render(template: Path, **values: Any) -> str:
    """Fill in a Jinja2 template; a name that it uses and nobody gave is an error."""
    return _compiled(template).render(**values)


@cache
def _compiled(template: Path) -> Template:
    return _jinja.from_string(template.read_text())


def converge(here: Here, wanted: Iterable[RemoteFile]) -> Generator[Any, None, None]:
    """The commands that bring these files to the state they should have; none if they have it."""
    known = here.known.files
    changed = [file for file in wanted if known.get(file.path) != file.state]
    for file in changed:
        content = file.content
        yield from embed(
            files.put,
            src=StringIO(content) if isinstance(content, str) else BytesIO(content),
            dest=file.path,
            mode=file.mode,
            user=file.user,
            group=file.group,
        )
    if changed:
        here.changed()


# From its beginning nobody else's; its folder is open, since names are no secrets. The end of what
# comes is also that of a run which was killed before it had sent all of it.
WRITE = """\
set -e; umask 022; mkdir -p "${1%/*}"; umask 077
cat >"$1.part"
if [ "$(stat -c %s "$1.part")" != "$4" ]; then
    rm "$1.part"; echo "$1 did not arrive whole" >&2; exit 1
fi
chown "$2" "$1.part"; chmod "$3" "$1.part"; mv "$1.part" "$1"
"""


def secretly(here: Here, wanted: Iterable[RemoteFile]) -> Generator[Any, None, None]:
    """As :func:`converge`, for what nobody is to see: no command and no difference has it."""
    changed = [file for file in wanted if here.known.files.get(file.path) != file.state]
    for file in changed:
        owner, content = f"{file.user}:{file.group}", Unseen(str(file.content))
        told = (file.path, owner, file.mode, str(len(content.encode())))
        yield StringCommand("sh", "-c", QuoteString(WRITE), "write", *told, _stdin=content)
    if changed:
        here.changed()


class Base64(list[str]):
    """For a command's standard input. pyinfra takes a list, and goes through it when it comes to
    write: nothing of it is there before."""

    def __init__(self, pieces: Callable[[], Iterable[bytes]]) -> None:
        super().__init__([""])  # one that is empty would not be asked
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        rest = b""
        for piece in self._pieces():
            whole = rest + piece
            end = len(whole) - len(whole) % 3
            rest = whole[end:]
            yield b64encode(whole[:end]).decode()
        yield b64encode(rest).decode()


def fail(message: str) -> StringCommand:
    """A command that does nothing but fail with this message: it fails this host alone."""
    return StringCommand("echo", QuoteString(message), ">&2;", "exit", "1")
