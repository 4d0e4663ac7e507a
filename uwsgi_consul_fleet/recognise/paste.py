"""A PasteDeploy ini, as Pyramid has it."""

import configparser
from collections.abc import Iterator
from pathlib import Path

from uwsgi_consul_fleet.recognise.candidate import Candidate
from uwsgi_consul_fleet.recognise.tree import Tree

KINDS = ("app", "composite", "composit", "pipeline", "filter-app")
# The likeliest first; one of no such name lies between.
NAMES = ("production", "prod", "deploy", "", "development", "dev", "testing", "test")


def inis(tree: Tree) -> Iterator[Candidate]:
    """Each ini on top that describes an application."""
    for path in sorted(tree.folder.glob("*.ini")):
        sections = _sections(path)
        applications = [name for kind, _, name in sections if kind in KINDS]
        if not applications:
            continue
        name = "main" if "main" in applications else applications[0]
        entry = path.name if name == "main" else f"{path.name}#{name}"
        stem = path.stem if path.stem in NAMES else ""
        said = f"a paste ini: {path.name}, [{':'.join(_of(sections, name))}]"
        yield Candidate(said, entry, _root(tree), (1, NAMES.index(stem), path.name))


def _sections(path: Path) -> list[tuple[str, str, str]]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(path, "utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return []
    return [name.partition(":") for name in parser.sections()]


def _of(sections: list[tuple[str, str, str]], name: str) -> tuple[str, str]:
    return next((kind, its) for kind, _, its in sections if its == name and kind in KINDS)


def _root(tree: Tree) -> str:
    """Where its packages are."""
    return "src" if any(path.startswith("src/") for path in tree.python) else "."
