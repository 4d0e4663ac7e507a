"""What a project says of itself, as if it were installed: its name, its version, its entry points.

`importlib.metadata` finds it beside the modules: `use = egg:shop` of a paste ini, plugins, and a
`version("shop")` of the project itself need it. Nothing of the project is run for this.
"""

import ast
import configparser
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

# Group, name, and what it is: MODULE:NAME.
EntryPoints = Mapping[str, Mapping[str, str]]


class Project(NamedTuple):
    name: str
    version: str
    entry_points: EntryPoints

    @property
    def files(self) -> dict[str, bytes]:
        """As an installer leaves them, by their path beside the modules."""
        name = re.sub(r"[-_.]+", "_", self.name)
        folder = f"{name}-{re.sub(r'[^A-Za-z0-9.]+', '_', self.version)}.dist-info"
        about = f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n"
        groups = (
            f"[{group}]\n" + "".join(f"{name} = {what}\n" for name, what in sorted(its.items()))
            for group, its in sorted(self.entry_points.items())
        )
        return {
            f"{folder}/METADATA": about.encode(),
            f"{folder}/entry_points.txt": "\n".join(groups).encode(),
        }


def of(folder: Path) -> Project | None:
    """The project in a folder, as pyproject.toml, setup.cfg or plain values in setup.py say it;
    None where nobody names it.

    :raises ValueError: where one of them can't be read
    """
    for read in (_pyproject, _setup_cfg, _setup_py):
        said = read(folder)
        if isinstance(name := said.get("name"), str):
            points = {group: _pairs(its) for group, its in _table(said, "entry_points").items()}
            version = said.get("version")
            return Project(name, version if _is_plain(version) else "0", points)
    return None


def _is_plain(version: Any) -> TypeGuard[str]:
    """Not what setuptools would read elsewhere."""
    return isinstance(version, str) and not version.startswith(("attr:", "file:"))


def _table(said: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Empty where something else stands there."""
    found = said.get(key)
    return found if isinstance(found, dict) else {}


def _pyproject(folder: Path) -> dict[str, Any]:
    path = folder / "pyproject.toml"
    said = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
    project, poetry = _table(said, "project"), _table(_table(said, "tool"), "poetry")
    groups = {**_table(poetry, "plugins"), **_table(project, "entry-points")}
    if scripts := project.get("scripts") or poetry.get("scripts"):
        groups["console_scripts"] = scripts
    return {**poetry, **project, "entry_points": groups}


def _setup_cfg(folder: Path) -> dict[str, Any]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(folder / "setup.cfg", "utf-8")
    except configparser.Error as error:
        raise ValueError(f"setup.cfg: {error}") from error
    found = {key: {**parser[key]} for key in ("metadata", "options.entry_points") if key in parser}
    return {**found.get("metadata", {}), "entry_points": found.get("options.entry_points", {})}


def _setup_py(folder: Path) -> dict[str, Any]:
    """What stands there as a plain value; what is computed is not known."""
    path = folder / "setup.py"
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(path.read_bytes())) if path.is_file() else ():
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setup"):
            for word in node.keywords:
                try:
                    found[word.arg or ""] = ast.literal_eval(word.value)
                except (ValueError, TypeError):
                    continue
    return found


def _pairs(its: Any) -> dict[str, str]:
    """Of a group: a table, lines, or a list of them, such as "main = shop:main"."""
    if isinstance(its, dict):
        return {name: what for name, what in its.items() if isinstance(what, str)}
    lines = its.splitlines() if isinstance(its, str) else its
    if not isinstance(lines, (list, tuple, set)):
        return {}
    pairs = (line.partition("=") for line in lines if isinstance(line, str) and "=" in line)
    return {name.strip(): what.strip() for name, _, what in pairs}
