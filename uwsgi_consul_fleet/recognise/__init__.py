"""What an application is, seen from its folder. Nothing of it is ever imported or run."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.recognise import (
    dependencies,
    django,
    modules,
    others,
    paste,
    variables,
    workers,
)
from uwsgi_consul_fleet.recognise.candidate import Candidate
from uwsgi_consul_fleet.recognise.tree import Tree, strings

HEALTH = re.compile(
    r"\^?/?(_?health(z|[-_]?check)?|livez|readyz|ping|status|_?heartbeat|up)/?\$?", re.IGNORECASE
)
DEBIANS = {"Debian 12": 11, "Debian 13": 13}  # minor versions of its Python 3


@dataclass(frozen=True)
class Recognised:
    """What was found.

    :param said: what it was recognised by, a line each
    :param settings: for the application's file
    :param todo: by setting, what is left to whoever knows the application
    :param impossible: why it can't be deployed; '' where it can
    """

    said: list[str]
    settings: dict[str, Any]
    todo: dict[str, str]
    impossible: str = ""


def recognise(folder: Path) -> Recognised:
    """What a folder has in it."""
    tree = Tree(folder)
    found = sorted(_candidates(tree).values(), key=lambda each: each.order)
    if not found and (reason := others.impossible(tree)):
        return Recognised([reason], {}, {}, reason)
    said = [found[0].said] if found else []
    if found[1:]:
        said.append(f"taken of several; also there: {', '.join(each.entry for each in found[1:])}")
    best = found[0] if found else _nothing()
    settings = {"app_root": best.root, "app_entry_point": best.entry, **best.settings}
    todo = dict(best.todo)
    if "app_type" in best.settings:
        _check_health(
            {best.entry: _quoted(tree.text(best.entry))}, [best.entry], said, settings, todo
        )
        return Recognised(said, settings, todo)
    _require(tree, best.root, said, settings, todo)
    texts = {path: strings(module) for path, module in tree.python.items()}
    _check_health(texts, [best.routes, *modules.made(tree)], said, settings, todo)
    workers.find(tree, best.root, said, settings, todo)
    _look_at_python(tree, todo)
    _look_at_variables(tree, settings, todo)
    return Recognised(said, settings, todo)


def _candidates(tree: Tree) -> dict[tuple[str, str], Candidate]:
    """By entry point; the likelier where two say the same."""
    found: dict[tuple[str, str], Candidate] = {}
    python = [*django.projects(tree), *paste.inis(tree), *modules.applications(tree)]
    everything = [*python, *others.applications(tree)]
    for each in sorted(everything, key=lambda each: each.order):
        found.setdefault((each.root, each.entry), each)
    return found


def _nothing() -> Candidate:
    todo = {"app_entry_point": "MODULE:CALLABLE, MODULE:FACTORY(), a file or a paste ini"}
    return Candidate("", "wsgi:application", ".", (), todo=todo)


def _require(
    tree: Tree, root: str, said: list[str], settings: dict[str, Any], todo: dict[str, str]
) -> None:
    found = dependencies.find(tree, root)
    settings["app_requirements"] = found[0][0] if found else None
    if found:
        others = ", ".join(what for _, what in found[1:])
        said.append(f"requirements: {found[0][1]}" + f" (also there: {others})" * bool(others))
    elif lacks := dependencies.lacking(tree):
        todo["app_requirements"] = lacks


def _check_health(
    files: Mapping[str, Iterable[str]],
    routes: Sequence[str],
    said: list[str],
    settings: dict[str, Any],
    todo: dict[str, str],
) -> None:
    """A path that sounds like one for this, else the front page.

    :param files: the texts that stand in each
    :param routes: those in which a text is all of a path
    """
    for path in sorted(files, key=lambda path: path not in routes):
        for text in files[path]:
            if HEALTH.fullmatch(text) and (text.strip("/^$") == "healthz" or "/" in text):
                settings["health_path"] = found = "/" + text.strip("^$").lstrip("/")
                said.append(f"health: {found} in {path}")
                if path not in routes:
                    todo["health_path"] = f"{path} has it as {found}: does anything come before?"
                return
    settings["health_path"] = "/"
    todo["health_path"] = (
        "the front page, or what else answers 200 when it is well, without a log-in"
    )


def _quoted(text: str) -> list[str]:
    """What stands in quotes, in whatever language."""
    return [found for _, found in re.findall(r"""(["'])([^"'\s]+)\1""", text)]


def _look_at_python(tree: Tree, todo: dict[str, str]) -> None:
    wants = dependencies.wants_python(tree)
    if match := re.search(r"(?:>=|~=|==|\^)\s*3\.(\d+)", wants):
        older = [name for name, minor in DEBIANS.items() if minor < int(match[1])]
        if older:
            todo["app_python"] = (
                f"it asks for Python {wants}, which {' or '.join(older)} has not: install one "
                'there, name it here, and set uwsgi_source = "pypi"'
            )


def _look_at_variables(tree: Tree, settings: dict[str, Any], todo: dict[str, str]) -> None:
    needed = variables.needed(tree)
    secrets = [name for name in needed if variables.SECRET.search(name)]
    if secrets:
        settings["app_secrets"] = secrets
        todo["app_secrets"] = (
            f"{_readers(needed, secrets)}: yours has the values, or app_secrets_file"
        )
    if others := [name for name in needed if name not in secrets]:
        told = f"{_readers(needed, others)}"
        todo["app_env"] = "; ".join(filter(None, [todo.get("app_env"), told]))


def _readers(needed: Mapping[str, str], names: Sequence[str]) -> str:
    files = ", ".join(dict.fromkeys(needed[name] for name in names))
    return f"{files} reads {', '.join(names)} from the environment"
