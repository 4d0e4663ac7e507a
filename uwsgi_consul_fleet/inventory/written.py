"""The settings as Python for people to read and edit, each under its explanation.

A setting's default and its explanation are in settings.py and nowhere else.
"""

import ast
import textwrap
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.inventory import settings
from uwsgi_consul_fleet.inventory.settings import Settings, literal

SECTIONS = {  # by the first setting of each
    "fleet": "The fleet",
    "app_name": "The application",
    "release": "Releases",
    "uwsgi_source": "uWSGI",
    "datacenter": "Consul",
    "address": "Hosts",
}
ALL = "group_data/all.py"
# In it, what comes after the settings: how the hosts are reached.
END = "# --- How the hosts are reached "
WIDTH = 98  # characters of a comment's line


def explanations() -> dict[str, str]:
    """What stands under each setting, in the order of the settings."""
    classes = {each.__name__ for each in Settings.__mro__}
    found: dict[str, str] = {}
    for node in ast.parse(Path(settings.__file__).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            found |= dict(_explained(node.body))
    return found


def _explained(body: list[ast.stmt]) -> Iterable[tuple[str, str]]:
    for setting, text in pairwise(body):
        if (
            isinstance(setting, ast.AnnAssign)
            and isinstance(setting.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            yield setting.target.id, text.value.value.replace("\n    ", "\n")


def default(key: str) -> Any:
    """As people write it; None where there is none."""
    field = Settings.model_fields[key]
    value = None if field.is_required() else field.default
    return list(value) if isinstance(value, tuple) else value


def python(
    values: Mapping[str, Any],
    keys: Iterable[str] | None = None,
    todo: Mapping[str, str] | None = None,
) -> str:
    """Settings with these values, and their defaults where there is none.

    :param keys: these settings; all of them where it is None
    :param todo: by setting, what is left to be filled in
    """
    wanted = set(Settings.model_fields if keys is None else keys)
    lines: list[str] = []
    section = told = ""
    for key, text in explanations().items():
        section = SECTIONS.get(key, section)
        if key not in wanted:
            continue
        if section != told:
            lines += [f"# --- {section} ".ljust(78, "-"), ""]
            told = section
        lines += [f"# {line}" for line in text.splitlines()]
        lines += [f"# {line}" for line in _noted((todo or {}).get(key, ""))]
        lines += [*_assigned(key, values.get(key, default(key))), ""]
    return "\n".join(lines)


def _assigned(key: str, value: Any) -> list[str]:
    """In one line, or what is in it in one each."""
    line = f"{key} = {literal(value)}"
    if len(line) <= WIDTH or not isinstance(value, dict):
        return [line]
    items = (f"    {literal(name)}: {literal(its)}," for name, its in value.items())
    return [f"{key} = {{", *items, "}"]


def all_py(text: str, values: Mapping[str, Any], keys: Iterable[str] | None = None) -> str:
    """group_data/all.py: as it is before its settings and after them, between with these values."""
    first = text.index(f"# --- {next(iter(SECTIONS.values()))} ")
    return text[:first] + python(values, keys) + "\n" + text[text.index(END) :]


def _noted(text: str) -> list[str]:
    """Lines that an editor finds; those that are indented stay as they are."""
    lines = f"TODO: {text}".splitlines() if text else []
    return [
        part
        for line in lines
        for part in ([line] if line.startswith(" ") else textwrap.wrap(line, WIDTH - 2))
    ]
