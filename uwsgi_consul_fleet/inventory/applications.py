"""applications/: a Python file for each application, whose variables are its settings."""

import ast
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.errors import InventoryError
from uwsgi_consul_fleet.inventory.settings import (
    PYINFRA_KEYS,
    HostSettings,
    InstanceSettings,
    Settings,
    nearest,
)

FOLDER = "applications"
OWN = frozenset(Settings.model_fields) - frozenset(HostSettings.model_fields)


@dataclass(frozen=True)
class Described:
    """What a file says of the application that it is named after."""

    file: str
    data: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The application's name. A file may be called as its group is."""
        return Path(self.file).stem.replace("_", "-")

    @property
    def group(self) -> str:
        """The group of the inventory that lists its hosts, where there is one."""
        return self.name.replace("-", "_")

    @property
    def problems(self) -> list[str]:
        """What is no setting of an application."""
        found = _strange(self.file, self.data)
        if (value := self.data.get("app_name", self.name)) != self.name:
            found.append(
                f"{self.file}: app_name = {value!r}: the application is called as the file is: "
                "rename that, or take app_name out"
            )
        return found

    def problems_in(self, host: str, data: Mapping[str, Any]) -> list[str]:
        """What is none in a host's data."""
        said = data.get(self.name, data.get(self.group, {}))
        if isinstance(said, Mapping):
            return _strange(f"{host} ({self.name})", said)
        example = {self.name: {"app_processes": 4}}
        return [f"{host}: {self.name} = {said!r}: settings of an application look like {example}"]

    def on(self, own: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
        """Its settings on a host.

        :param own: what groups and the host say, which comes before the file
        :param usual: what group_data/all.py says too, which comes after it
        """
        found = {**usual, **self.data, **own, **self.said_in(usual), "app_name": self.name}
        return {key: value for key, value in found.items() if key in Settings.model_fields}

    def said_in(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a host's data say of this application alone, under its name."""
        found = data.get(self.name, data.get(self.group, {}))
        return found if isinstance(found, Mapping) else {}


def _strange(where: str, data: Iterable[str]) -> list[str]:
    """What is no setting of an application."""
    found = []
    for key in data:
        if key in HostSettings.model_fields or key in PYINFRA_KEYS:
            found.append(f"{where}: {key} is for whole hosts: it belongs into group_data/")
        elif key not in OWN:
            found.append(f"{where}: unknown setting {key!r}{nearest(key, OWN)}")
    return found


def files(folders: Iterable[Path]) -> list[Path]:
    """Those of all applications; of two with one name the first."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((folder / FOLDER).glob("[!_.]*.py")):
            found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def read(paths: Iterable[Path]) -> list[Described]:
    """:raises InventoryError: with a line for each file that can't be read"""
    found, problems = [], []
    for path in paths:
        try:
            found.append(Described(f"{FOLDER}/{path.name}", _variables(path)))
        except Exception as error:
            problems.append(f"{FOLDER}/{path.name}:{_line(error, path)}: {error!r}")
    if problems:
        raise InventoryError(problems)
    return found


def _variables(path: Path) -> dict[str, Any]:
    """As pyinfra takes them from files in group_data/: but for what is imported, unless it is a
    setting."""
    text = path.read_text("utf-8")
    names: dict[str, Any] = {"__file__": str(path)}
    exec(compile(text, str(path), "exec"), names)  # noqa: S102 - as pyinfra does
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.parse(text).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    } - Settings.model_fields.keys()
    return {
        name: value
        for name, value in names.items()
        if not name.startswith("_") and name not in imported
    }


def _line(error: Exception, path: Path) -> int:
    """Where in the file it happened."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 0
    frames = traceback.extract_tb(error.__traceback__)
    return next((each.lineno or 0 for each in reversed(frames) if each.filename == str(path)), 0)


def id_of(app: str, name: str, instance: InstanceSettings) -> str:
    """In Consul, where instances of several applications on a host may have one name."""
    return instance.id or f"{app}-{name}"
