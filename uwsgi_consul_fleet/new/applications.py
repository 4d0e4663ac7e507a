"""The applications that a new folder is made for: what is in each, and what it is called."""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from uwsgi_consul_fleet.errors import FleetError
from uwsgi_consul_fleet.inventory.applications import OWN
from uwsgi_consul_fleet.inventory.groups import ROLES
from uwsgi_consul_fleet.inventory.settings import TAKEN
from uwsgi_consul_fleet.recognise import Recognised, recognise
from uwsgi_consul_fleet.repository import URL, VARIABLE, Repository

LENGTH = 32  # of a name
# What the inventory has by these names is no application.
GROUPS = frozenset({*(role.replace("_", "-") for role in ROLES), "all", "inventory"})
FIRST_PORT = 2001
# In a URL. What is as long as a token, and has a digit as they do, is none's name.
PASSWORD = re.compile(r"[a-z]+://([^/@]*:(?!\$\{)[^/@]+|(?=[^/@]*\d)[\w-]{20,}:?)@")
PORTS_EACH = 10  # numbers from one application's first port to the next one's


@dataclass(frozen=True)
class Application:
    """One of those that were named; ``settings`` and ``todo`` are for its file."""

    name: str
    given: str
    said: list[str]
    settings: dict[str, Any]
    todo: dict[str, str]

    @property
    def file(self) -> str:
        """Called as its group in the inventory would be."""
        return f"{self.name.replace('-', '_')}.py"


def look(places: Iterable[str], folder: Path) -> list[Application]:
    """What is in each.

    :param places: folders, or URLs that git can clone
    :param folder: the new one, from which a relative path is to lead there
    :raises FleetError: where there is none, or it can't be deployed
    """
    found: list[Application] = []
    for place in places:
        with _opened(place) as source:
            seen = recognise(source)
        if seen.impossible:
            raise FleetError(f"--app {place}: {seen.impossible}; nothing was made")
        name = _name(place, {each.name for each in found})
        found.append(_application(name, place, folder, seen, len(found)))
    return found


@contextmanager
def _opened(place: str) -> Iterator[Path]:
    """Its folder; of a URL one that is there only meanwhile."""
    if URL.match(place):
        with tempfile.TemporaryDirectory(prefix="uwsgi-consul-fleet-") as temporary:
            yield _cloned(place, Path(temporary) / "clone")
        return
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise FleetError(f"--app {place}: there is no such folder, and it is no URL for git either")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise FleetError(f"--app {place}: that folder can't be read")
    yield folder.resolve()


def _cloned(url: str, folder: Path) -> Path:
    """A folder with its default branch.

    :param url: ``${NAME}`` in it is read from the environment
    :raises FleetError: where it can't be had
    """
    if PASSWORD.match(url):
        raise FleetError(
            f"--app {url.partition(':')[0]}://…: its password would be in a file: write "
            "'${NAME}' in its place, and have it in the environment"
        )
    if "${" in VARIABLE.sub("", url):
        raise FleetError(f"--app {url}: a variable has capital letters, digits and _ alone")
    values = {name: os.environ.get(name, "") for name in VARIABLE.findall(url)}
    if missing := [name for name, value in values.items() if not value]:
        raise FleetError(f"--app {url}: the environment has no {missing[0]}")
    try:
        found = Repository.at(VARIABLE.sub(lambda name: quote(values[name[1]], safe=""), url))
        words = ("clone", "--quiet", "--depth=1", "--", found.url, str(folder))
        found.git(*words, folder=folder.parent)
    except FleetError as error:
        said = str(error)
        for name, value in values.items():
            said = said.replace(quote(value, safe=""), f"${{{name}}}")
        raise FleetError(f"--app {url}: {said}") from None
    return folder


def _name(place: str, taken: set[str]) -> str:
    """After the folder or the repository; one that can be a group in the inventory too."""
    last = place if URL.match(place) else str(Path(place).expanduser().resolve())
    last = re.split(r"[/:]", last.rstrip("/"))[-1].removesuffix(".git")
    name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:LENGTH].strip("-")
    if not name or not name[0].isalpha() or name in GROUPS | TAKEN or name.startswith("systemd-"):
        name = f"app-{name}"[:LENGTH].strip("-")
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name[: LENGTH - 3]}-{count}"
    return unique


def _application(
    name: str, place: str, folder: Path, seen: Recognised, position: int
) -> Application:
    first = FIRST_PORT + position * PORTS_EACH
    is_relative = not URL.match(place) and not Path(place).expanduser().is_absolute()
    settings = {
        "app_source": os.path.relpath(Path(place).resolve(), folder) if is_relative else place,
        "instances": {"server1": first, "server2": first + 1},
        **seen.settings,
    }
    return Application(
        name,
        place,
        seen.said,
        {key: value for key, value in settings.items() if key in OWN},
        {key: text for key, text in seen.todo.items() if key in OWN},
    )


def example() -> Application:
    """Where none was named: everything about it is left to be filled in."""
    todo = {
        "app_source": "a folder on this machine, or the URL of a repository",
        "app_entry_point": "what uWSGI loads",
        "app_requirements": "a requirements.txt or a pyproject.toml of it",
        "health_path": "a path that answers 200 when it is well, without a log-in",
    }
    settings = {
        "app_source": "../shop",
        "app_root": ".",
        "app_entry_point": "shop.wsgi:application",
        "app_requirements": "requirements.txt",
        "instances": {"server1": FIRST_PORT, "server2": FIRST_PORT + 1},
    }
    return Application("shop", "", [], settings, todo)
