"""What uWSGI's configuration tells the application, for what runs beside its instances."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OPTION = re.compile(r"^[ \t]*(env|chdir|pythonpath)[ \t]*=[ \t]*(.*?)[ \t]*$", re.MULTILINE)
BY_DESCRIPTOR = re.compile(r"^[^;#\n]*=\s*fd://3\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Told:
    """``variables`` of its environment, and the folder where it works."""

    variables: dict[str, str]
    work: str


def told(folder: Path, port: int) -> Told:
    """By the configuration of an instance, in the folder of its release."""
    text = (folder / f"{port}.ini").read_text()
    return read(text, names(str(folder), port, os.uname().nodename, folder.name, "%"))


def names(folder: str, port: int, host: str, generation: str, percent: str) -> dict[str, str]:
    """What uWSGI puts into values there for `%` and a letter."""
    file = f"{port}.ini"
    known = {"d": f"{folder}/", "c": generation, "p": f"{folder}/{file}", "s": file}
    return {**known, "n": str(port), "h": host, "%": percent}


def read(ini: str, known: Mapping[str, str]) -> Told:
    """
    :param known: see names
    """
    found: dict[str, list[str]] = {"env": [], "chdir": ["%d"], "pythonpath": []}
    for option, value in OPTION.findall(ini):
        found[option].append(value)
    # Modules are found where the instances find them.
    path = [f"PYTHONPATH={':'.join(found['pythonpath'])}"] if found["pythonpath"] else []
    pairs = (_replaced(line, known).partition("=") for line in [*path, *found["env"]])
    variables = {name: value for name, _, value in pairs}
    return Told(variables, _replaced(found["chdir"][-1], known))


def takes_descriptor(ini: str) -> bool:
    """Whether it takes the socket that systemd hands it, wherever that listens."""
    return BY_DESCRIPTOR.search(ini) is not None


def _replaced(text: str, known: Mapping[str, str]) -> str:
    return re.sub("%(.)", lambda match: known.get(match[1], match[0]), text)
