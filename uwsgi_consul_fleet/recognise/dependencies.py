"""What an application is installed with."""

import sys
import tomllib
from collections.abc import Iterator
from typing import Any

from uwsgi_consul_fleet.recognise.tree import Tree, imported

FILES = (
    "requirements.txt",
    "requirements/production.txt",
    "requirements/prod.txt",
    "requirements/base.txt",
    "requirements-prod.txt",
    "requirements/requirements.txt",
)
LOCKS = ("uv.lock", "poetry.lock")
# What others read, and nobody here does.
UNREAD = ("Pipfile", "setup.py", "setup.cfg", "environment.yml", "requirements.in")


def find(tree: Tree, root: str) -> list[tuple[str, str]]:
    """Files that say it, each with what it is for people; the likeliest first."""
    found: dict[str, str] = {}
    for path, what in _files(tree, _places(root)):
        found.setdefault(path, what)
    return list(found.items())


def lacking(tree: Tree) -> str:
    """What to do where no file says it; '' where nothing is needed."""
    if unread := [name for name in UNREAD if tree.has(name)]:
        return f"{unread[0]} is not read; a requirements.txt or a pyproject.toml is"
    own = {part.removesuffix(".py") for path in tree.python for part in path.split("/")}
    used = {name.partition(".")[0] for each in tree.python.values() for name in imported(each)}
    if others := sorted(used - own - sys.stdlib_module_names):
        named = ", ".join(others[:6]) + ", …" * (len(others) > 6)
        return f"nothing says what it needs, and it imports {named}: a requirements.txt has to"
    return ""


def _places(root: str) -> list[str]:
    """Beside the modules, or on top of the folder."""
    return list(dict.fromkeys(["" if root in (".", "src") else f"{root}/", ""]))


def _files(tree: Tree, places: list[str]) -> Iterator[tuple[str, str]]:
    for place in places:
        path = f"{place}pyproject.toml"
        for lock in LOCKS:
            if tree.has(place + lock) and _has_dependencies(tree.text(path)):
                yield path, f"{path} with {lock}"
    for place in places:
        yield from ((place + name, place + name) for name in FILES if tree.has(place + name))
    for place in places:
        path = f"{place}pyproject.toml"
        if _has_dependencies(tree.text(path)):
            yield path, f"{path} without a lock file"


def _has_dependencies(text: str) -> bool:
    said = _toml(text)
    project, poetry = said.get("project", {}), said.get("tool", {}).get("poetry", {})
    return bool(project.get("dependencies") or poetry.get("dependencies"))


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def wants_python(tree: Tree) -> str:
    """The Python that the project asks for, as it says that; '' where it does not."""
    project = _toml(tree.text("pyproject.toml")).get("project", {})
    return str(project.get("requires-python", ""))
