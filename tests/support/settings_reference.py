"""The settings for people: `python tests/support/settings_reference.py` writes them anew.

A setting's default and its explanation are in inventory/settings.py and nowhere else: from there
they go into group_data/all.py and docs/settings.md, which a test compares with what they should be.
"""

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from uwsgi_consul_fleet.inventory import settings
from uwsgi_consul_fleet.inventory.settings import (
    DEMO,
    FLEET_WIDE,
    HostSettings,
    Settings,
    literal,
)

SECTIONS = {  # by the first setting of each
    "fleet": "The fleet",
    "datacenter": "Consul",
    "address": "Hosts",
    "app_name": "The application",
    "release": "Releases",
    "uwsgi_source": "uWSGI",
}
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/settings.md"
ALL = ROOT / "group_data/all.py"
# In all.py, what comes after the settings: how the hosts are reached.
END = "# --- How the hosts are reached "

INTRODUCTION = """\
# Settings

They are in `group_data/all.py`, for every host. A file named after a group
(`group_data/app_servers.py`) overrides them for it, and data beside a host in `inventory.py`
overrides both. Where there are several applications, each has
[a file](operations.md#several-applications) with the settings from "The application" on; those
above are for whole hosts. A setting that is misspelt, missing or out of its range ends every
command before anything is touched, with the host and the key.

How ssh reaches the hosts is pyinfra's to know: `ssh_user`, `ssh_port`, `ssh_key`, `_sudo` and
the like are [described there](https://docs.pyinfra.com/en/3.x/connectors/ssh.html).
"""


def explanations() -> dict[str, str]:
    """What stands under each setting, in the order of the settings."""
    source = Path(settings.__file__).read_text()
    classes = {HostSettings.__name__, Settings.__name__}
    body = [
        each
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for each in node.body
    ]
    return {
        setting.target.id: text.value.value.replace("\n    ", "\n")
        for setting, text in pairwise(body)
        if isinstance(setting, ast.AnnAssign)
        and isinstance(setting.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def python() -> str:
    """The settings as group_data/all.py has them, with the demo's values."""
    lines = []
    for key, text in explanations().items():
        if key in SECTIONS:
            lines += [f"# --- {SECTIONS[key]} ".ljust(78, "-"), ""]
        lines += [f"# {line}" for line in text.splitlines()]
        lines += [f"{key} = {literal(DEMO.get(key, _default(key)))}", ""]
    return "\n".join(lines)


def page() -> str:
    """docs/settings.md."""
    lines = [INTRODUCTION]
    for key, text in explanations().items():
        if key in SECTIONS:
            lines += [f"## {SECTIONS[key]}\n", "| setting | default | what |", "|---|---|---|"]
        required = Settings.model_fields[key].is_required()
        default = "none" if required else f"`{literal(_default(key))}`"
        shared = " The same for all hosts." * (key in FLEET_WIDE)
        lines.append(f"| `{key}` | {default} | {_cell(text)}{shared} |")
    return "\n".join(lines).replace("|\n##", "|\n\n##") + "\n"


def _cell(text: str) -> str:
    """In one line; the values of a choice, which are indented, each in a line of its own."""
    choices = re.sub(r"^  (\w+) +", r"<br>`\1`: ", text, flags=re.MULTILINE)
    return " ".join(choices.split())


def _default(key: str) -> Any:
    default = Settings.model_fields[key].default
    return list(default) if isinstance(default, tuple) else default


def all_py() -> str:
    """group_data/all.py with its settings as they should be."""
    text = ALL.read_text()
    first = text.index(f"# --- {next(iter(SECTIONS.values()))} ")
    return text[:first] + python() + "\n" + text[text.index(END) :]


if __name__ == "__main__":
    written = {PAGE: page(), ALL: all_py()}
    for path, content in written.items():
        path.write_text(content)
